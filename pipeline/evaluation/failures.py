"""Tasks that cannot be answered: noted, so that the others are, and told in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stores.errors import ConfigError, LabelError, UnansweredError


@dataclass
class Failures:
    """Why some of the tasks of a config could not be answered.

    errors: the first of each task that says something new, by the task's name.
    """

    errors: list[tuple[str, LabelError | ConfigError]] = field(default_factory=list)

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Note what goes wrong with a task, and go on; what is wrong with the store is raised."""
        try:
            yield
        except (LabelError, ConfigError) as error:
            # Each method of a task fails for the same reason: it is told once.
            if (task, str(error)) not in [(name, str(each)) for name, each in self.errors]:
                self.errors.append((task, error))

    def raise_with(self, answers: Sequence[Any]) -> None:
        """Raise UnansweredError with the answers that there are, where any task has none.

        Where there is no answer and one reason alone, the error is that one.
        """
        if not self.errors:
            return
        reasons = {str(error) for _, error in self.errors}
        if not answers and len(reasons) == 1:
            raise self.errors[0][1]
        tasks = dict.fromkeys(name for name, _ in self.errors)
        # What several tasks fail for, such as a task and its shortcuts, is told once.
        by_reason: dict[str, list[str]] = {}
        for name, error in self.errors:
            by_reason.setdefault(str(error), []).append(name)
        lines = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        raise UnansweredError(
            "\n".join([f"These tasks could not be answered: {', '.join(tasks)}.", *lines]), answers
        )

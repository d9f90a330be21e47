"""Globs of a config against the paths of a collection, and which of them had no effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.shared.paths import matcher

Matcher = Callable[[str], bool]


class Globs:
    """Globs tried on one path after another, of which the first that matches counts.

    Threads may share it: what they note is a set that only grows.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        self._globs = tuple(globs)
        self._matchers: list[Matcher] = [matcher([glob]) for glob in globs]
        self._effective: set[int] = set()

    def first(self, path: str) -> str | None:
        """Return the first glob that matches a path, if any, and note that it had an effect."""
        for number, matches in enumerate(self._matchers):
            if matches(path):
                self._effective.add(number)
                return self._globs[number]
        return None

    def any(self, path: str) -> bool:
        """Return whether a glob matches a path, and note all those that do for the first time."""
        matched = False
        for number, matches in enumerate(self._matchers):
            # Once it is known that a glob matches something, one that matches is enough.
            if matched and number in self._effective:
                continue
            if matches(path):
                self._effective.add(number)
                matched = True
        return matched

    @property
    def idle(self) -> list[str]:
        """The globs that had no effect so far, in their order."""
        numbered = enumerate(self._globs)
        return [glob for number, glob in numbered if number not in self._effective]

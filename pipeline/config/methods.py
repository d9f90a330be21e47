"""The name of a method in settings and results: one of those that are declared.

The heads and the ways to tune a network are listed in `pipeline.config.heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticKnownError

from pipeline.config.heads import method_names


def one_of(value: str, known: Sequence[str]) -> str:
    """Return a value of a closed choice. Raises what a `Literal` of the choice would."""
    if value not in known:
        *most, last = map(repr, known)
        expected = f"{', '.join(most)} or {last}"
        raise PydanticKnownError("literal_error", {"expected": expected})
    return value


# A plain `str` to type checkers; refused where it is parsed.
Method = Annotated[str, AfterValidator(lambda name: one_of(name, method_names()))]

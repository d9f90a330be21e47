"""How far a run is, for those who show it, and what stops one that meets too many bad images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stores.errors import TooManyBadError


@dataclass(frozen=True)
class Progress:
    """What shows how far a run is: `plan` gets the number of slices once, `advance` how many more.

    What `advance` raises ends the run, as an error of its own would.
    """

    plan: Callable[[int], None] = lambda slices: None
    advance: Callable[[int], None] = lambda slices: None


@dataclass
class BadLimit:
    """Stops a run when more than a fraction of the slices and files seen are bad."""

    seen: int
    fraction: float
    bad: int = 0

    def check(self) -> None:
        """Raise TooManyBadError where the limit is passed."""
        if self.bad > self.fraction * self.seen:
            raise TooManyBadError(
                f"{self.bad} of {self.seen} slices and image files cannot be read, more than the "
                f"{self.fraction:g} that --max-bad allows. What was committed is kept; see "
                "files.parquet and the receipts in parts/ for the reasons."
            )

    def count(self) -> None:
        """Count one more bad slice."""
        self.bad += 1
        self.check()

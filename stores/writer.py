"""The one process that writes to a store in object storage, by a claim in the bucket.

Claim k is the object `claims/writer.claim.<k>`, created by a conditional put. The highest k counts.
A dead writer's place is taken by creating k + 1, which only one process can, so that nobody takes
over a claim that was renewed in between. A living writer puts its claim again once a minute.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stores._process import gone, me, name_of
from stores.bucket import Bucket
from stores.claims import Holder
from stores.contents import CLAIMS
from stores.errors import ClaimedError

log = logging.getLogger(__name__)

# Seconds between two signs of life, and of silence after which a writer counts as dead.
BEAT_S = 60.0
SILENT_S = 900.0
SHARE = (
    "Several processes share the work on a store in a folder that all of them see: extract there, "
    "then `radprobe copy FOLDER URL`."
)
_CLAIM = f"{CLAIMS}/writer.claim."


@dataclass(frozen=True)
class _Claimant:
    """Who made a claim, and whether that process is dead."""

    holder: Holder
    dead: bool


class WriterClaim:
    """The right to be the one writer to a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    @contextlib.contextmanager
    def hold(self) -> Iterator[int]:
        """Be the writer, and give signs of life meanwhile; yields the number of the claim.

        Raises ClaimedError where a living process is.
        """
        number = self._take()
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(number, ended), daemon=True)
        beat.start()
        try:
            yield number
        finally:
            # The thread ends first: a beat after the removal would put the claim again.
            ended.set()
            beat.join()
            self.bucket.remove([f"{_CLAIM}{number}"])

    def check(self, number: int) -> None:
        """Raise ClaimedError where a claim is no longer the one that counts."""
        if self._numbers()[-1:] != [number]:
            raise ClaimedError(f"{self.bucket.url} was taken over by another process.")

    def writer(self) -> Holder | None:
        """Return the living process that writes to the store, if any does."""
        numbers = self._numbers()
        claimant = self._claimant(numbers[-1]) if numbers else None
        return None if claimant is None or claimant.dead else claimant.holder

    def _take(self) -> int:
        while True:
            numbers = self._numbers()
            if numbers:
                claimant = self._claimant(numbers[-1])
                if claimant is None:
                    continue  # given back since it was listed
                if not claimant.dead:
                    raise ClaimedError(self._refusal(claimant.holder))
            number = numbers[-1] + 1 if numbers else 0
            # False where another process was quicker: then that one is looked at.
            if self.bucket.create(f"{_CLAIM}{number}", _sign_of_life()):
                # Only now: until the new claim was there, the dead ones kept others from 0.
                self.bucket.remove([f"{_CLAIM}{old}" for old in numbers])
                return number

    def _refusal(self, holder: Holder) -> str:
        return (
            f"{holder.name} writes to {self.bucket.url} (last sign of life "
            f"{holder.silent_s:.0f} s ago). Wait for it; if it is dead, its claim "
            f"lapses {SILENT_S / 60:g} minutes after that. {SHARE}"
        )

    def _numbers(self) -> list[int]:
        """Return the numbers of the claims that are there, ascending."""
        names = self.bucket.listing(CLAIMS)
        numbers = [name.removeprefix(_CLAIM) for name in names if name.startswith(_CLAIM)]
        # Others are nobody's claims.
        return sorted(int(n) for n in numbers if n.isdecimal() and n.isascii())

    def _claimant(self, number: int) -> _Claimant | None:
        """Return who made a claim; None where it was given back."""
        name = f"{_CLAIM}{number}"
        try:
            process = json.loads(self.bucket.get([name])[name])
            last = float(process["time"])
            since = float(process.get("since", last))
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # A claim is put whole or not at all: nobody who is alive made this one.
            return _Claimant(Holder("an unknown process", 0.0, SILENT_S), dead=True)
        now = time.time()
        silent_s = now - last
        holder = Holder(name_of(process), now - since, silent_s)
        # Of a process of this machine the system knows; of another, silence alone tells.
        ended = gone(process)
        # A time as far ahead, or none at all (NaN), is nobody's who is alive.
        is_silent = not abs(silent_s) <= SILENT_S
        return _Claimant(holder, is_silent if ended is None else ended)

    def _beat(self, number: int, ended: threading.Event) -> None:
        since = time.time()
        while not ended.wait(BEAT_S):
            try:
                self.bucket.put({f"{_CLAIM}{number}": _sign_of_life(since)})
            except Exception as error:  # the next beat may come through; the writer finds out
                log.info("No sign of life could be sent to %s: %s", self.bucket.url, error)


def _sign_of_life(since: float | None = None) -> bytes:
    """Return what a claim holds: who this process is, now, and since when it writes."""
    now = time.time()
    process: dict[str, Any] = {**me(), "time": now, "since": since or now}
    return json.dumps(process).encode()

"""One writer a part: exclusive claims that need no file locks, so that they hold on NFS too.

Claim k on a part is the file `<part>.claim.<k>`, made complete under a temporary name and then
hard-linked: the link either is ours or fails. The highest k owns the part. A dead owner's part is
taken by making k + 1, which only one process can; nothing is ever renamed over, so nobody can take
over a claim that was renewed in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stores._disk import (
    TEMPORARY,
    files_in,
    hard_link,
    is_silent,
    read_file,
    sweep_temporaries,
    temporary_name,
    write_new,
    writing,
)
from stores._process import gone, me, name_of
from stores.errors import ClaimedError, CorruptStoreError
from stores.uninterrupted import uninterrupted

# A claim of another host counts as dead when its owner has not touched it for this long.
STALE_AFTER_S = 900.0
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Claim:
    """The right to write one part."""

    path: Path

    @property
    def inherited(self) -> bool:
        """Whether another process held the part, and died."""
        return _split(self.path)[1] > 0

    def beat(self) -> None:
        """Say that the owner is alive, for readers on other hosts."""
        with contextlib.suppress(FileNotFoundError):  # taken over: `stands` will say so
            os.utime(self.path)

    def stands(self) -> bool:
        """Return whether the claim still stands: nobody took the part over."""
        stem, number = _split(self.path)
        latest = _latest(self.path.parent, stem)
        return latest is not None and _split(latest)[1] == number

    def release(self) -> None:
        """Give the part back: the newest claim goes last, so that no older one revives."""
        stem, number = _split(self.path)
        # Higher ones are of who took the part over: theirs to give back.
        for path in _claims(self.path.parent, stem):
            if _split(path)[1] <= number:
                with contextlib.suppress(IsADirectoryError):  # no claim
                    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """Who holds a part (`host:pid`), for how long, and how long ago it last gave a sign of life."""

    name: str
    for_s: float
    silent_s: float


def try_claim(folder: Path, stem: str) -> Claim | None:
    """Claim part `stem`; None where a live process holds it or was quicker."""
    latest = _latest(folder, stem)
    if latest is not None and not dead(latest):
        return None
    number = 0 if latest is None else _split(latest)[1] + 1
    path = folder / f"{stem}.claim.{number}"
    temporary = folder / temporary_name("claim")
    process = {**me(), "time": time.time()}
    with writing(path):
        folder.mkdir(exist_ok=True)
        # Not forced to disk: whatever loses the file loses its owner too.
        write_new(temporary, json.dumps(process).encode(), force=False)
        try:
            hard_link(temporary, path)
        except FileExistsError:
            return None
        finally:
            temporary.unlink(missing_ok=True)
    # Whoever looked before a release and links after it may find another just as hopeful: each
    # links first and looks then, so that at least one of the two sees the other and steps back.
    for other in _claims(folder, stem):
        if other != path and not dead(other):
            path.unlink(missing_ok=True)
            return None
    return Claim(path)


@contextlib.contextmanager
def exclusive(folder: Path, stem: str, wait_s: float = 60.0) -> Iterator[Claim]:
    """Hold claim `stem` for a moment, waiting for its turn. Raises ClaimedError after `wait_s`."""
    deadline = time.monotonic() + wait_s
    claim: Claim | None = None
    try:
        while True:
            with uninterrupted():
                claim = try_claim(folder, stem)
            if claim is not None:
                break
            if time.monotonic() > deadline:
                name = owner(folder, stem) or "Another process"
                raise ClaimedError(
                    f"{name} has held {folder / stem} for {wait_s:g} s. Wait for it; if it is "
                    f"dead, its claim lapses {STALE_AFTER_S / 60:g} minutes after its last sign of "
                    "life."
                )
            time.sleep(0.02)
        # Of processes that died while they claimed, whose names in the folder nobody else removes.
        sweep_temporaries(folder.glob(f"{TEMPORARY}*"))
        yield claim
    finally:
        if claim is not None:
            with uninterrupted():
                claim.release()


def owner(folder: Path, stem: str) -> str | None:
    """Return `host:pid` of whoever holds the part, or None."""
    latest = _latest(folder, stem)
    if latest is None or dead(latest):
        return None
    return _name(_read_if_allowed(latest))


def holders(folder: Path) -> dict[str, Holder]:
    """Return the live holder of each stem, by one look at the folder."""
    living: dict[str, Holder] = {}
    now = time.time()
    # Of a stem's claims the highest number comes last, and counts.
    for path in sorted(filter(_is_claim, files_in(folder, "*.claim.*")), key=_split):
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            beat = path.lstat().st_mtime
            if not dead(path):
                stem, _ = _split(path)
                process = _read_if_allowed(path)
                since = process.get("time")
                # Within what a clock says: it may be of a stranger.
                since = since if isinstance(since, float) and 0 < since < now else beat
                living[stem] = Holder(_name(process), now - since, now - beat)
    return living


def stems(folder: Path) -> set[str]:
    """Return what is claimed, or was by processes that died."""
    return {_split(path)[0] for path in files_in(folder, "*.claim.*") if _is_claim(path)}


def dead(path: Path) -> bool:
    """Return whether a claim's owner is certainly gone, or silent for too long; or it is no claim.

    A claim is linked once it is whole. What is none, such as a pipe, or a file that names no
    process, was put there by somebody else, or lost its bytes when its machine lost its power: it
    holds nothing up.
    """
    try:
        process = _read(path)
        if process is None:
            return True
        ended = gone(process)
    except FileNotFoundError:
        return True
    except OSError:  # another user's, perhaps, that may not be read
        ended = None
    # Of another host or user: its silence alone tells.
    try:
        return is_silent(path, STALE_AFTER_S) if ended is None else ended
    except FileNotFoundError:
        return True


def _read(path: Path) -> dict[str, object] | None:
    """Return the process that made a claim; None where it names none. Raises OSError."""
    try:
        process = json.loads(read_file(path, _MOST_BYTES))
    except (CorruptStoreError, ValueError, RecursionError):
        return None
    is_claim = isinstance(process, dict) and {"host", "place", "pid", "born"} <= process.keys()
    return process if is_claim else None


def _read_if_allowed(path: Path) -> dict[str, object]:
    """Return the process that made a claim; nothing where it is gone, or may not be read."""
    try:
        return _read(path) or {}
    except OSError:
        return {}


def _name(process: dict[str, object]) -> str:
    return name_of(process) if process else "another user's process"


def _claims(folder: Path, stem: str) -> list[Path]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    # Names with a number: others are nobody's claims.
    paths = [folder / name for name in names if name.startswith(f"{stem}.claim.")]
    return sorted(filter(_is_claim, paths), key=_split)


def _latest(folder: Path, stem: str) -> Path | None:
    return next(reversed(_claims(folder, stem)), None)


def _is_claim(path: Path) -> bool:
    number = path.name.rpartition(".claim.")[2]
    return number.isdecimal() and number.isascii()


def _split(path: Path) -> tuple[str, int]:
    stem, _, number = path.name.rpartition(".claim.")
    return stem, int(number)

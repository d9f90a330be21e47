"""Who a process is, told so that another process can find out whether it still lives."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

# In the place of a process's birth, where the system tells that it lives, and no more.
HIDDEN = "alive"
_LONGEST_NAME = 255


def me() -> dict[str, object]:
    """Return what names this process: host, place, pid and when it was born."""
    host = socket.gethostname()
    return {"host": host, "place": place(), "pid": os.getpid(), "born": own_birth()}


def name_of(holder: Mapping[str, object]) -> str:
    """Return `host:pid` of a process, as people are told of it."""
    # No host's name is longer, but a stranger's claim may say anything.
    return f"{holder.get('host')}:{holder.get('pid')}"[:_LONGEST_NAME]


@functools.cache
def place() -> str:
    """Return 8 hex that are equal where process ids can be compared: one machine, one container."""
    marks = [socket.gethostname()]
    with contextlib.suppress(OSError):  # two machines may bear one name
        marks.append(Path("/etc/machine-id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):  # two containers may see different processes
        marks.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]


def gone(holder: Mapping[str, object]) -> bool | None:
    """Return whether a process has ended; None where that cannot be seen from here."""
    here = holder.get("host") == socket.gethostname() and holder.get("place") == place()
    pid = holder.get("pid")
    return has_ended(pid, holder.get("born")) if here and type(pid) is int else None


def has_ended(pid: int, born: object) -> bool | None:
    """Return whether a process of this host has ended; None where it is hidden from this user."""
    now = birth(pid)
    if now == HIDDEN != born:
        return None
    return now is None or now != born


@functools.cache
def own_birth() -> str | None:
    """Return when this process started; asked once, since each temporary file's name tells it."""
    return birth(os.getpid())


os.register_at_fork(after_in_child=own_birth.cache_clear)


def birth(pid: int) -> str | None:
    """Return when a process of this host started, so that a reused pid is told apart.

    HIDDEN where it lives, and the system does not say since when; None where there is none.
    """
    if pid <= 0:  # these would be groups of processes
        return None
    try:
        # Field 22 of stat, counted after the command name, which may hold spaces.
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    try:  # a system without /proc, or one that hides there what other users run (hidepid)
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return HIDDEN

"""What a process leaves that ends at one of its calls to the disk or to a bucket.

Every call that changes something is a point: rename, link, fsync, unlink, mkdir, rmdir, opening a
file to write, each piece written; of a bucket, each object created, put or removed. Between two of
them a crash leaves nothing else, so that a crash behind each call is every crash there is, but for
those in the middle of one: half of a piece is written, half of the objects are put.

A power cut also empties the files that were not forced to disk, and may take back what was done to
the names in folders that were not forced. On a full disk, the call and all later ones that need
room fail, and the process goes on.

Of the disk, one run leaves a copy of the folder behind each of its calls, made while no other
thread may make one: what a process killed there leaves. Copies that are equal are one state, but
for what is in temporary files: nobody reads those, and they are swept by their names. Of a bucket
and on a full disk, a run is made for each point.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stores._disk import TEMPORARY

# The exit code of a process that was ended at its point.
CUT = 99
# Content (None of a folder) and time (ns) by name.
Files = dict[str, tuple[bytes | None, int]]
# What stands in the place of a name that is not there: no folder.
_NOTHING = (b"", 0)
How = Literal["killed", "half", "power cut", "full"]
_CREATE = os.O_CREAT | os.O_WRONLY
# The calls that a full disk refuses. Forcing is one: what is written there may find its room then.
_GROWING = ("open", "write", "mkdir", "link", "replace", "rename", "fsync")
_OF_DESCRIPTORS = ("write", "fsync")


@dataclass(frozen=True, order=True)
class Point:
    """The process ends behind call number `number` (from 0) of a kind, or half through it.

    full: it does not end there; the disk is full from this call on.
    """

    call: str
    number: int
    how: How

    def __str__(self) -> str:
        """Return the point in words."""
        return f"{self.call} {self.number} {self.how}"


def points_of(counts: Mapping[str, int]) -> list[Point]:
    """Return every point of a run that makes so many calls of each kind."""
    points = []
    for call, count in counts.items():
        halves = call in ("write", "bucket put")
        of_disk = not call.startswith("bucket")
        for number in range(count):
            points.append(Point(call, number, "killed"))
            if halves:
                points.append(Point(call, number, "half"))
            if of_disk:
                points.append(Point(call, number, "power cut"))
    return points


def full_points(counts: Mapping[str, int]) -> list[Point]:
    """Return every point at which the disk may be full, in a run of so many calls of each kind."""
    points = []
    for call in _GROWING:
        points += [Point(call, number, "full") for number in range(counts.get(call, 0))]
    return points


class Watch:
    """Counts the calls of this process that change what is below a folder.

    states: where to put a copy of the folder behind each. cut: the point at which it ends.
    """

    def __init__(self, root: Path, states: Path | None = None, cut: Point | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.points: dict[str, str] = {}  # a point in words -> the name of its state
        self._root = os.path.realpath(root)
        self._states = states
        self._cut = cut
        self._lock = threading.RLock()
        self._copying = False
        self._unforced: set[int] = set()  # inodes of files that were written
        # Folders whose names changed since they were forced -> what was below each before.
        self._unsynced: dict[str, Files] = {}
        self._full = False
        self._calls = {name: getattr(os, name) for name in _CALLS}
        self._open = io.open

    def start(self) -> None:
        """Watch from now on; for the rest of this process."""
        for name in ("replace", "rename", "link", "mkdir"):
            setattr(os, name, self._named(name))
        for name in ("unlink", "remove", "rmdir"):
            setattr(os, name, self._removing(name))
        os.fsync = self._fsync
        os.open = self._open_descriptor  # type: ignore[assignment]
        builtins.open = io.open = self._open_file  # type: ignore[assignment]

    def watch_bucket(self) -> None:
        """Watch what goes to a bucket, too."""
        from stores.bucket import Bucket

        create = Bucket.create
        put = Bucket.put
        remove = Bucket.remove

        def watched_create(bucket: Bucket, name: str, data: bytes) -> bool:
            return bool(self._step("bucket create", lambda: create(bucket, name, data)))

        def watched_put(bucket: Bucket, objects: Mapping[str, bytes]) -> None:
            half = dict(list(objects.items())[: len(objects) // 2])
            self._step("bucket put", lambda: put(bucket, objects), lambda: put(bucket, half))

        def watched_remove(bucket: Bucket, names: Iterable[str]) -> None:
            names = list(names)
            self._step("bucket remove", lambda: remove(bucket, names))

        Bucket.create = watched_create  # type: ignore[method-assign]
        Bucket.put = watched_put  # type: ignore[method-assign]
        Bucket.remove = watched_remove  # type: ignore[method-assign]

    # --- the calls -------------------------------------------------------------------------

    def _step(
        self, call: str, do: Callable[[], Any], do_half: Callable[[], Any] | None = None
    ) -> Any:
        """Do a call and count it; end the process where this is its point, or copy the folder."""
        with self._lock:  # no other thread changes anything meanwhile
            if self._copying:
                return do()
            number = self.counts[call]
            self.counts[call] += 1
            cut = self._cut
            here = cut is not None and (cut.call, cut.number) == (call, number)
            if cut is not None and cut.how == "full":
                self._full = self._full or here
                if self._full and call in _GROWING:
                    raise self._no_room(call, do_half)
                return do()
            if do_half is not None:
                ends = cut is not None and here and cut.how == "half"
                if ends or self._states is not None:
                    do_half()
                    self._note(Point(call, number, "half"))
                if ends:
                    os._exit(CUT)
            result = do()
            if here:
                os._exit(CUT)
            self._note(Point(call, number, "killed"))
            self._note(Point(call, number, "power cut"))
            return result

    def _no_room(self, call: str, do_half: Callable[[], Any] | None) -> OSError:
        """Return the error of a full disk, on which half of a piece may still find room."""
        if do_half is not None:
            do_half()
        # What is done to an open file has no name to tell.
        named = () if call in _OF_DESCRIPTORS else (self._root,)
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    def _note(self, point: Point) -> None:
        """Copy the folder as it is after a point, if no point before left the same."""
        if self._states is None:
            return
        self._copying = True
        try:
            power_cut = point.how == "power cut"
            files = self._files(self._root, power_cut=power_cut)
            self._keep(str(point), files)
            if power_cut:
                self._keep(f"{point}, names lost", self._without_names(files))
        finally:
            self._copying = False

    def _keep(self, point: str, files: Files) -> None:
        assert self._states is not None
        digest = _digest_of(files)
        self.points[point] = digest
        state = self._states / digest
        if not state.exists():
            _copy(files, state)

    def _without_names(self, files: Files) -> Files:
        """Return files with the names in each folder as they were when it was forced last."""
        left = dict(files)
        for folder in sorted(self._unsynced):  # what is below a folder comes after it
            name = self._name(folder)
            if name not in left:
                continue  # lost with a folder above it
            before = self._unsynced[folder]
            for entry in _entries(left, name) | _entries(before, name):
                # Of a folder that stays, the names in it are its own to lose.
                is_folder = left.get(entry, _NOTHING)[0] is None
                if is_folder and before.get(entry, _NOTHING)[0] is None:
                    continue
                left = {each: left[each] for each in left if not _is_at(each, entry)}
                left |= {each: before[each] for each in before if _is_at(each, entry)}
        return left

    def _changing_names(self, *paths: Any) -> None:
        """Remember what is in the folders of some paths, before the first change of a name there.

        It is forgotten once the folder is forced.
        """
        if self._states is None or self._copying:
            return
        for path in paths:
            if isinstance(path, int):
                continue  # of what is open the name is there
            folder = os.path.dirname(os.path.abspath(os.fsdecode(path)))
            if folder not in self._unsynced and self._is_inside(folder):
                self._unsynced[folder] = self._files(folder, power_cut=True)

    def _moved(self, source: Any, target: Any) -> None:
        """Go on with what is remembered of a folder under its new name."""
        old = os.path.abspath(os.fsdecode(source))
        new = os.path.abspath(os.fsdecode(target))
        for folder in list(self._unsynced):
            if _is_at(folder, old):
                moved = new + folder.removeprefix(old)
                names = {}
                for name, file in self._unsynced.pop(folder).items():
                    names[self._name(moved) + name.removeprefix(self._name(folder))] = file
                self._unsynced[moved] = names

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    def _files(self, below: str, *, power_cut: bool) -> Files:
        """Return content and time of each file below a folder, by name; None for each folder."""
        files: Files = {}
        for folder, _, names in os.walk(below):
            files[os.path.relpath(folder, self._root)] = (None, 0)
            for name in names:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                lost = power_cut and status.st_ino in self._unforced
                with self._open(path, "rb") as file:
                    data = b"" if lost else file.read()
                files[os.path.relpath(path, self._root)] = (data, status.st_mtime_ns)
        return files

    def _named(self, name: str) -> Callable[..., Any]:
        original = self._calls[name]

        def call(path: Any, *more: Any, **options: Any) -> Any:
            if not self._is_inside(path):
                return original(path, *more, **options)
            moves = name in ("replace", "rename")
            # The second path of the two; of a folder that is made, there is none.
            targets = () if name == "mkdir" else more[:1]
            sources = () if name == "link" else (path,)

            def do() -> Any:
                self._changing_names(*sources, *targets)
                result = original(path, *more, **options)
                if moves:
                    self._moved(path, *targets)
                return result

            return self._step(name, do)

        return call

    def _removing(self, name: str) -> Callable[..., Any]:
        original = self._calls[name]

        def call(path: Any, *, dir_fd: int | None = None) -> Any:
            place = path if dir_fd is None else dir_fd
            if not self._is_inside(place):
                return original(path, dir_fd=dir_fd)
            whole = path if dir_fd is None else f"{_place_of(place)}/{os.fsdecode(path)}"

            def do() -> Any:
                self._changing_names(whole)
                return original(path, dir_fd=dir_fd)

            return self._step("unlink", do)

        return call

    def _fsync(self, descriptor: int) -> None:
        fsync = self._calls["fsync"]
        if not self._is_inside(descriptor):
            fsync(descriptor)
            return
        inode = os.fstat(descriptor).st_ino
        place = _place_of(descriptor)

        def force() -> None:
            fsync(descriptor)
            self._unforced.discard(inode)
            self._unsynced.pop(place, None)

        self._step("fsync", force)

    def _open_descriptor(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        original = self._calls["open"]
        if not flags & _CREATE or not self._is_inside(path):
            return int(original(path, flags, *more, **options))

        def do() -> Any:
            self._changing_names(path)
            return original(path, flags, *more, **options)

        return int(self._step("open", do))

    def _open_file(self, file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        writes = any(letter in mode for letter in "wxa+")
        if not writes or not self._is_inside(file):
            return self._open(file, mode, *more, **options)
        opened: list[Any] = []

        def do() -> None:
            self._changing_names(file)
            opened.append(self._open(file, mode, *more, **options))
            self._unforced.add(os.fstat(opened[0].fileno()).st_ino)

        self._step("open", do)
        return _WatchedFile(opened[0], self._step)

    def _is_inside(self, path: Any) -> bool:
        """Return whether a path, or an open descriptor, is of the folder that is watched."""
        place = _place_of(path) if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        return f"{place}/".startswith(self._root + "/")


def _place_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _entries(files: Files, folder: str) -> set[str]:
    """Return the names of what is in a folder itself."""
    return {name for name in files if name != folder and (os.path.dirname(name) or ".") == folder}


def _is_at(name: str, place: str) -> bool:
    """Return whether a name is that of a place, or of what is below it."""
    return name == place or name.startswith(f"{place}/")


def _digest_of(files: Files) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        folder, _, last = name.rpartition("/")
        if f"/{TEMPORARY}" in f"/{folder}":
            continue  # in a temporary folder
        data = None if last.startswith(TEMPORARY) else files[name][0]
        # What is of another kind or length is told apart before its content is.
        digest.update(f"{name}\0{None if data is None else len(data)}\0".encode())
        digest.update(data or b"")
    return digest.hexdigest()[:16]


def _copy(files: Files, to: Path) -> None:
    for name, (data, time_ns) in files.items():  # a folder comes before what is in it
        path = to / name
        if data is None:
            path.mkdir(parents=True)
        else:
            path.write_bytes(data)
            os.utime(path, ns=(time_ns, time_ns))


_CALLS = ("replace", "rename", "link", "mkdir", "unlink", "remove", "rmdir", "fsync", "open")


class _WatchedFile:
    """A file that is being written, each piece of which is a call of its own."""

    def __init__(self, file: Any, step: Callable[..., Any]) -> None:
        self._file = file
        self._step = step

    def write(self, data: Any) -> Any:
        """Write a piece, or half of it."""
        piece = data if isinstance(data, str) else memoryview(data).cast("B")
        middle = len(piece) // 2
        left = [piece[:middle], piece[middle:]]

        def write_next() -> None:
            self._file.write(left.pop(0))
            self._file.flush()  # a point behind this call finds it on the way to the disk

        def write_rest() -> int:
            while left:
                write_next()
            return len(piece)

        return self._step("write", write_rest, write_next)

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

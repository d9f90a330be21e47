"""A store at a URL, used through a folder here: its mirror.

The mirror has the small files of the store as they were when it was opened, and its chunks as they
are asked for, each held against its receipt. The bucket leads: what is written goes there first, in
the order of a commit, and the mirror never knows more. One process at a time writes, by a claim in
the bucket; who reads needs none. A mirror can be removed at any time. The store's key lies beside
it and never travels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from stores import manifest
from stores._disk import TEMPORARY, sha256, temporary_name, write_new
from stores._process import gone, me, name_of
from stores.bucket import Bucket, Object
from stores.claims import Holder
from stores.errors import (
    ClaimedError,
    ConfigError,
    CorruptStoreError,
    OccupiedError,
    UnwritableError,
)

log = logging.getLogger(__name__)

# Where mirrors are; the variable names another folder.
PLACE = "RADPROBE_MIRRORS"
# What is computed from a store and goes where it is; networks are fetched when asked for.
DERIVED = ("results", "splits", "segmentations", "tuned")
# The folders of a store that are in a bucket, and the files beside them.
FOLDERS = ("parts", "features.zarr", manifest.COPIES, *DERIVED)
FILES = (manifest.MANIFEST, "recipe.json", "slices.parquet", "files.parquet", "withdrawn.json")
BEAT_S, SILENT_S = 60.0, 900.0
_CLAIM = "claims/writer.claim."
_TRIES = 3
_URL = re.compile(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)")
# The folders this process writes to, and its claim's number: stores opened anew must know too.
_held: dict[Path, int] = {}


def url_of(place: Path | str) -> str | None:
    """Return the URL that is meant, also by a Path (which makes one slash of two); else None."""
    found = _URL.fullmatch(str(place))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def located(place: Path | str) -> Path:
    """Return the folder of a store: of one at a URL, its mirror, brought up to what is there now.

    Raises ConfigError where the URL cannot be reached.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    mirror = Mirror(_folder(url), url)
    mirror.refresh()
    return mirror.folder


def place_of(folder: Path) -> str:
    """Return where the store of a folder is, as people are told: the folder, or a URL."""
    mirror = Mirror.of(folder)
    return str(folder) if mirror is None else mirror.url


def occupied(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Be the one writer of the store that a folder mirrors; any other folder needs no such thing.

    Raises ClaimedError where a living process is.
    """
    mirror = Mirror.of(folder)
    return contextlib.nullcontext() if mirror is None else mirror.occupied()


def check_shareable(folder: Path) -> None:
    """Raise ConfigError where the store of a folder is at a URL: one process writes there."""
    mirror = Mirror.of(folder)
    if mirror is not None:
        raise ConfigError(f"{mirror.url} is in object storage, where one process writes. {_SHARE}")


class Mirror:
    """The folder of a store at a URL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.objects: dict[str, Object] = {}  # as they were seen last

    @classmethod
    def of(cls, folder: Path) -> Mirror | None:
        """Return what a folder mirrors; None where it is a store of its own."""
        try:
            about = json.loads(_record(folder).read_text("utf-8"))
        except FileNotFoundError:
            return None
        mirror = cls(folder, about["url"])
        mirror.objects = {name: Object(*each) for name, each in about["objects"].items()}
        return mirror

    @cached_property
    def bucket(self) -> Bucket:
        """The objects of the store."""
        return Bucket(self.url)

    # --- what is there ---------------------------------------------------------------------

    def refresh(self, *, anew: bool = False) -> None:
        """Bring the folder to what the bucket holds now; anew: whatever is here already."""
        for left in reversed(range(_TRIES)):
            before = None if anew else Mirror.of(self.folder)
            self.objects = self.bucket.listing()
            try:
                self._fetch({} if before is None else before.objects)
                break
            except FileNotFoundError:  # replaced since it was listed
                if not left:
                    raise
        self._note()

    def _note(self) -> None:
        """Keep which objects were seen last."""
        objects = {name: [each.size, each.stamp] for name, each in self.objects.items()}
        _replace(_record(self.folder), json.dumps({"url": self.url, "objects": objects}).encode())

    def _fetch(self, known: Mapping[str, Object]) -> None:
        """Fetch the small files that are not here as they are there; remove what is no longer."""
        if manifest.MANIFEST not in self.objects:  # no store, or one that was cut short
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for folder in FOLDERS:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        other = {name for name, now in self.objects.items() if known.get(name) != now}
        wanted = [
            name
            for name, now in self.objects.items()
            if _small(name) and (name in other or not _is(self.folder / name, now.size))
        ]
        found = self.bucket.get(wanted)
        for name in sorted(found, key=_order):
            _replace(self.folder / name, found[name])
        for name in (other | known.keys() - self.objects.keys()) - found.keys():
            (self.folder / name).unlink(missing_ok=True)

    def bring(self, name: str, digest: str) -> None:
        """Fetch an object; digest: the sha256 it must have.

        Raises CorruptStoreError where it is missing or another.
        """
        try:
            data = self.bucket.get([name])[name]
        except FileNotFoundError:
            raise CorruptStoreError(f"{self.url}/{name} is missing. {_REPAIR}") from None
        if sha256(data) != digest:
            raise CorruptStoreError(
                f"{self.url}/{name} does not fit its checksum: bits flipped. {_REPAIR}"
            )
        _replace(self.folder / name, data)

    def bring_all(self, names: Iterable[str]) -> None:
        """Fetch those of some objects that are there, sound or not."""
        for name, data in self.bucket.get(name for name in names if name in self.objects).items():
            _replace(self.folder / name, data)

    # --- the one writer --------------------------------------------------------------------

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Be the store's one writer: see the function of this name."""
        number = _held[self.folder] = self._claim()
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(number, ended), daemon=True)
        beat.start()
        try:
            self.refresh()  # what the writer before did last
            yield
        finally:
            ended.set()
            beat.join()
            del _held[self.folder]
            self.bucket.remove([f"{_CLAIM}{number}"])

    def check_held(self) -> None:
        """Raise UnwritableError where this process is not to write, ClaimedError where no more."""
        number = _held.get(self.folder)
        if number is None:
            raise UnwritableError(
                f"{self.url} is in object storage, where `extract`, `withdraw` and `verify "
                "--repair` write, one process at a time. For all else bring it to a folder by "
                "`radprobe copy`, do it there, and send it back."
            )
        if self._claims()[-1:] != [number]:
            raise ClaimedError(f"{self.url} was taken over by another process.")

    def _claim(self) -> int:
        while True:
            numbers = self._claims()
            number = numbers[-1] + 1 if numbers else 0
            if numbers:
                holder, dead = self._holder(numbers[-1])
                if holder is None:
                    continue  # given back since it was listed
                if not dead:
                    raise ClaimedError(
                        f"{holder.name} writes to {self.url} (last sign of life "
                        f"{holder.silent_s:.0f} s ago). Wait for it; if it is dead, its claim "
                        f"lapses {SILENT_S / 60:g} minutes after that. {_SHARE}"
                    )
            if self.bucket.create(f"{_CLAIM}{number}", _self_told()):
                self.bucket.remove([f"{_CLAIM}{old}" for old in numbers])
                return number

    def _claims(self) -> list[int]:
        names = self.bucket.listing("claims")
        return sorted(int(n.removeprefix(_CLAIM)) for n in names if n.startswith(_CLAIM))

    def writer(self) -> Holder | None:
        """Return the living process that writes to the store, if any does."""
        numbers = self._claims()
        holder, dead = self._holder(numbers[-1]) if numbers else (None, True)
        return None if dead else holder

    def _holder(self, number: int) -> tuple[Holder | None, bool]:
        """Return who made a claim, None where it was given back, and whether that one is dead."""
        name = f"{_CLAIM}{number}"
        try:
            told = json.loads(self.bucket.get([name])[name])
        except FileNotFoundError:
            return None, False
        now = time.time()
        silent = now - float(told["time"])
        holder = Holder(name_of(told), now - float(told.get("since", told["time"])), silent)
        verdict = gone(told)
        return holder, silent > SILENT_S if verdict is None else verdict

    def _beat(self, number: int, ended: threading.Event) -> None:
        since = time.time()
        while not ended.wait(BEAT_S):
            try:
                self.bucket.put({f"{_CLAIM}{number}": _self_told(since)})
            except Exception as error:  # the next beat may come through; the writer finds out
                log.info("No sign of life could be sent to %s: %s", self.url, error)

    # --- writing ---------------------------------------------------------------------------

    def found(self, built: Path) -> None:
        """Send a new store of no rows that was built in a folder. Raises OccupiedError."""
        self.check_held()
        kept = {name: manifest.load(built, name) for name in manifest.digests(built)}
        recipe = kept["recipe.json"]
        if not self.bucket.create("recipe.json", recipe):
            there = manifest.MANIFEST in self.bucket.listing()
            if there or self.bucket.get(["recipe.json"])["recipe.json"] != recipe:
                raise OccupiedError(f"{self.url} holds another store. Choose another URL.")
        self._put_kept(kept, (built / manifest.MANIFEST).read_bytes())
        self.refresh()

    def restore(self, names: Iterable[str]) -> None:
        """Send kept files as they are here, where they were mended."""
        self.check_held()
        self.bucket.put({name: (self.folder / name).read_bytes() for name in names})
        self.refresh()

    def replace(self, new: Mapping[str, bytes]) -> None:
        """Replace kept files, all or none, there and then here (see `stores.manifest`)."""
        self.check_held()
        files = manifest.digests(self.folder) | {name: sha256(data) for name, data in new.items()}
        self._put_kept(new, manifest.text(files))
        self.refresh()

    def _put_kept(self, new: Mapping[str, bytes], said: bytes) -> None:
        self.bucket.put({f"{manifest.COPIES}/{sha256(data)}": data for data in new.values()})
        self.bucket.put({manifest.MANIFEST: said})
        self.bucket.put({name: data for name, data in new.items() if name != "recipe.json"})
        copies = {f"{manifest.COPIES}/{digest}" for digest in json.loads(said)["files"].values()}
        self.bucket.remove(self.bucket.listing(manifest.COPIES).keys() - copies)

    def commit(self, name: str, receipt: bytes, chunks: Mapping[str, str]) -> None:
        """Send a part: its chunks (name -> sha256), read back, then its receipt.

        Raises ClaimedError where another process committed it.
        """
        self.check_held()
        sizes = {}
        for chunk, digest in chunks.items():
            data = (self.folder / chunk).read_bytes()
            sizes[chunk] = Object(len(data), "")
            if not self.bucket.create(chunk, data):  # left by a writer that died, or written by us
                if sha256(self.bucket.get([chunk])[chunk]) == digest:
                    continue
                self.check_held()
                self.bucket.remove([chunk])
                self.bucket.create(chunk, data)
        for chunk, data in self.bucket.get(chunks).items():
            if sha256(data) != chunks[chunk]:
                raise CorruptStoreError(f"{self.url}/{chunk} is not as it was sent. Run it again.")
        self.check_held()
        if not self.bucket.create(name, receipt):
            raise ClaimedError(f"{self.url}/{name} was committed by another process.")
        self.objects |= sizes

    def withdraw(self, names: Iterable[str]) -> None:
        """Remove objects, there and here."""
        self.check_held()
        gone_now = [name for name in names if name in self.objects]
        self.bucket.remove(gone_now)
        for name in gone_now:
            del self.objects[name]
            (self.folder / name).unlink(missing_ok=True)

    def publish(self) -> None:
        """Send what was computed here; where that is forbidden, it stays here.

        Answers go last, so that none is there without its tables and networks.
        """
        paths = [path for each in DERIVED for path in (self.folder / each).rglob("*")]
        names = (p.relative_to(self.folder).as_posix() for p in paths if is_derived(p))
        news = [name for name in names if self._is_news(name)]
        lots = [[name] for name in news if is_large(name)]
        lots.append([name for name in news if not is_large(name) and not name.endswith(".json")])
        lots.append([name for name in news if name.endswith(".json")])
        try:
            for lot in lots:
                self.bucket.put({name: (self.folder / name).read_bytes() for name in lot})
        except PermissionError as error:
            log.warning("Answers stay in %s: %s takes none (%s).", self.folder, self.url, error)
            return
        if news:
            there = self.bucket.listing()
            self.objects |= {name: there[name] for name in news if name in there}
            self._note()

    def bring_below(self, folder: str) -> None:
        """Fetch those objects below a folder that are not here."""
        for name in self.objects:
            if name.startswith(f"{folder}/") and not (self.folder / name).is_file():
                self.bring_all([name])

    def _is_news(self, name: str) -> bool:
        path, there = self.folder / name, self.objects.get(name)
        seen = _record(self.folder).stat().st_mtime_ns
        return there is None or path.stat().st_mtime_ns > seen


_SHARE = (
    "Several processes share the work on a store in a folder that all of them see: extract there, "
    "then `radprobe copy FOLDER URL`."
)
_REPAIR = "Run `radprobe verify --repair` on the store, then `radprobe extract`."


def _folder(url: str) -> Path:
    place = os.environ.get(PLACE) or Path.home() / ".cache" / "radprobe" / "mirrors"
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Path(place).expanduser() / digest / url.rpartition("/")[2]


def _record(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.mirror")


def _small(name: str) -> bool:
    """Return whether an object is fetched when a store is opened: all but chunks and networks."""
    folder, _, rest = name.partition("/")
    chunk = folder == "features.zarr" and "/c/" in rest
    return name in FILES or (folder in FOLDERS and not chunk and not is_large(name))


def is_derived(path: Path) -> bool:
    """Return whether a path in a folder of DERIVED is a file to be sent: no half-written one."""
    return path.is_file() and not any(part.startswith(TEMPORARY) for part in path.parts)


def is_large(name: str) -> bool:
    """Return whether a derived file is a network, which is moved by itself and when asked for."""
    return name.endswith(".safetensors")


def _order(name: str) -> int:
    """Return when a file is put in place: copies, the manifest, the files, receipts."""
    firsts = (manifest.COPIES, manifest.MANIFEST)
    folder = name.partition("/")[0]
    return firsts.index(folder) if folder in firsts else 3 if folder == "parts" else 2


def _is(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place whole; not forced to disk, since it can be fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    write_new(temporary, data, force=False)
    os.replace(temporary, path)


def _self_told(since: float | None = None) -> bytes:
    now = time.time()
    told: dict[str, Any] = {**me(), "time": now, "since": since or now}
    return json.dumps(told).encode()

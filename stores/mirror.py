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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from functools import cached_property
from pathlib import Path

from stores import manifest
from stores._disk import TEMPORARY, below, read_file, sha256, temporary_name, write_new
from stores.bucket import Bucket, Object
from stores.claims import Holder
from stores.contents import (
    CLAIMS,
    COPIES,
    FEATURES,
    FOLDERS,
    LEDGER,
    MANIFEST,
    PARTS,
    PUBLISHED,
    RECIPE,
    TOP_FILES,
    TRAVELLING,
    WITHDRAWN_PATIENTS,
    chunk_file,
    folder_of,
    is_large,
)
from stores.errors import (
    REPAIR,
    ClaimedError,
    ConfigError,
    CorruptStoreError,
    OccupiedError,
    UnwritableError,
    as_corrupt,
)
from stores.folder import LocalFolder
from stores.inside import inside, is_store_name
from stores.writer import SHARE, WriterClaim

log = logging.getLogger(__name__)

# Where mirrors are; the variable names another folder.
PLACE = "RADPROBE_MIRRORS"
_TRIES = 3
_URL = re.compile(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)")
# The folders this process writes to, and its claim's number: stores opened anew must know too.
_occupied: dict[Path, int] = {}


def url_of(place: Path | str) -> str | None:
    """Return the URL that is meant, also by a Path (which makes one slash of two); else None."""
    match = _URL.fullmatch(str(place))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


class MirroredBucket:
    """A store in object storage and its mirror here; see `stores.storage.Storage`."""

    shareable = False
    dates_commits = False  # the receipts' times in the mirror are those of their fetching

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.objects: dict[str, Object] = {}  # as they were seen last
        self._here = LocalFolder(folder)

    @classmethod
    def at(cls, url: str) -> MirroredBucket:
        """Return the store at a URL, its mirror brought up to what is there now.

        Raises ConfigError where the URL cannot be reached.
        """
        mirror = cls(_folder(url), url)
        mirror.refresh()
        return mirror

    @classmethod
    def of(cls, folder: Path) -> MirroredBucket | None:
        """Return what a folder mirrors; None where it is a store of its own.

        A mirror lies where this machine has its mirrors, by its URL: beside any other folder, a
        record is of whoever packed that folder, and would send the store to where they like.
        """
        try:
            text = read_file(_record(folder))
        except FileNotFoundError:
            return None
        with as_corrupt(str(_record(folder))):
            record = json.loads(text)
            url = str(record["url"])
            if os.path.realpath(_folder(url)) != os.path.realpath(folder):
                log.warning("%s says that it mirrors a URL, and is no mirror: it is left.", folder)
                return None
            mirror = cls(folder, url)
            for name, (size, stamp) in record["objects"].items():
                if is_store_name(name):
                    mirror.objects[name] = Object(int(size), str(stamp))
        return mirror

    @cached_property
    def bucket(self) -> Bucket:
        """The objects of the store."""
        return Bucket(self.url)

    @property
    def place(self) -> str:
        """The URL."""
        return self.url

    # --- who writes ------------------------------------------------------------------------

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Be the store's one writer. Raises ClaimedError where a living process is."""
        with WriterClaim(self.bucket).hold() as number:
            _occupied[self.folder] = number
            try:
                self.refresh()  # what the writer before did last
                yield
            finally:
                del _occupied[self.folder]

    def writer(self) -> Holder | None:
        """Return the living process that writes to the store, if any does."""
        return WriterClaim(self.bucket).writer()

    def check_shareable(self) -> None:
        """Raise ConfigError: one process writes to a URL."""
        raise ConfigError(f"{self.url} is in object storage, where one process writes. {SHARE}")

    def check_writable(self) -> None:
        """Raise UnwritableError where this process is not to write, ClaimedError where no more."""
        number = _occupied.get(self.folder)
        if number is None:
            raise UnwritableError(
                f"{self.url} is in object storage, where `extract`, `withdraw` and `verify "
                "--repair` write, one process at a time. For all else bring it to a folder by "
                "`radprobe copy`, do it there, and send it back."
            )
        WriterClaim(self.bucket).check(number)

    # --- what is there ---------------------------------------------------------------------

    def refresh(self, *, anew: bool = False) -> None:
        """Bring the folder to what the bucket holds now; anew: whatever is here already."""
        for left in reversed(range(_TRIES)):
            before = None if anew else self._seen_last()
            self.objects = self.bucket.listing()
            try:
                self._bring_up_to_date({} if before is None else before.objects)
                break
            except FileNotFoundError:  # replaced since it was listed
                if not left:
                    raise
        # The record goes last: where a crash leaves the older one, files that it does not know as
        # they are here are fetched again.
        self._record_objects()

    def size(self, name: str) -> int | None:
        """Return the bytes of an object as it was seen last; None where there was none."""
        seen = self.objects.get(name)
        return None if seen is None else seen.size

    def names(self) -> set[str]:
        """Return the names of all files, there or here; the bucket's claims are its own."""
        there = {name for name in self.objects if folder_of(name) != CLAIMS}
        return there | self._here.names()

    def fetch(self, name: str, digest: str) -> None:
        """Fetch an object whose sha256 is known.

        Raises CorruptStoreError where it is missing or another.
        """
        try:
            data = self.bucket.get([name])[name]
        except FileNotFoundError:
            raise CorruptStoreError(f"{self.url}/{name} is missing. {REPAIR}") from None
        if sha256(data) != digest:
            raise CorruptStoreError(
                f"{self.url}/{name} does not fit its checksum: bits flipped. {REPAIR}"
            )
        self._put(name, data)

    @contextlib.contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[None]:
        """Have those of some objects that are there in the folder for a while, sound or not."""
        absent = [name for name in names if not (self.folder / name).is_file()]
        self._fetch_unchecked(absent)
        try:
            yield
        finally:
            self._here.remove(absent)

    def fetch_folder(self, folder: str) -> None:
        """Fetch those objects below a folder that are not here."""
        below = [name for name in self.objects if name.startswith(f"{folder}/")]
        for name in below:
            if not (self.folder / name).is_file():
                self._fetch_unchecked([name])  # one at a time: networks are large

    def _seen_last(self) -> MirroredBucket | None:
        """Return the mirror as its record has it; None where that is lost, and all is fetched."""
        try:
            return MirroredBucket.of(self.folder)
        except CorruptStoreError:
            return None

    def _bring_up_to_date(self, known: Mapping[str, Object]) -> None:
        """Fetch the small files that are not here as they are there; remove what is no longer.

        known: the objects as they were when the folder was last brought up to date.
        """
        if MANIFEST not in self.objects:  # no store, or one that was cut short
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for folder in TRAVELLING:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        changed = set()
        wanted = []
        for name, now in self.objects.items():
            if known.get(name) != now:
                changed.add(name)
            is_here = name not in changed and self._here.size(name) == now.size
            if _is_small(name) and not is_here:
                wanted.append(name)
        fetched = self.bucket.get(wanted)
        for name in sorted(fetched, key=_order):
            self._put(name, fetched[name])
        gone = known.keys() - self.objects.keys()
        self._here.remove((changed | gone) - fetched.keys())
        if WITHDRAWN_PATIENTS in known and WITHDRAWN_PATIENTS in changed:
            # What was computed here and never sent may be of whoever was withdrawn.
            for each in FOLDERS:
                unsent = self._here.names_in(each.name) if each.derived else set()
                self._here.remove(unsent - self.objects.keys())

    def _fetch_unchecked(self, names: Iterable[str]) -> None:
        there = [name for name in names if name in self.objects]
        for name, data in self.bucket.get(there).items():
            self._put(name, data)

    def _put(self, name: str, data: bytes) -> None:
        """Put an object in place here."""
        _put_here(inside(self.folder, name), data)

    def _record_objects(self) -> None:
        """Keep which objects were seen last."""
        objects = {name: list(astuple(each)) for name, each in self.objects.items()}
        record = {"url": self.url, "objects": objects}
        _put_here(_record(self.folder), json.dumps(record).encode())

    # --- writing ---------------------------------------------------------------------------

    def adopt(self, built: Path) -> None:
        """Send a new store of no rows that was built beside the folder. Raises OccupiedError."""
        self._here.adopt(built)
        self.check_writable()
        files = manifest.load_all(self.folder)
        recipe = files[RECIPE]
        # The recipe is created and never replaced: of two that found a store, one goes on. What an
        # earlier try of this very store left is taken up, as long as no manifest made it a store.
        if not self.bucket.create(RECIPE, recipe):
            is_store = MANIFEST in self.bucket.listing()
            if is_store or self.bucket.get([RECIPE])[RECIPE] != recipe:
                raise OccupiedError(f"{self.url} holds another store. Choose another URL.")
        self._send_files(files, (self.folder / MANIFEST).read_bytes())
        self.refresh()

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replace files of the manifest, all or none, there and then here."""
        self.check_writable()
        self._send_files(files, manifest.text_with(self.folder, files))
        self.refresh()

    def restore(self, names: Iterable[str]) -> None:
        """Send files of the manifest, and itself, as they were mended here."""
        self.check_writable()
        self.bucket.put(self._read(names))
        self.refresh()

    def _send_files(self, files: Mapping[str, bytes], manifest_text: bytes) -> None:
        """Replace files of the manifest in the bucket, in the order of `stores.manifest`."""
        # New copies first: once the manifest names them, a reader must find them.
        self.bucket.put(manifest.copies(files))
        # The commit: before it the old files count, after it the new ones, by their copies.
        self.bucket.put({MANIFEST: manifest_text})
        replaceable = dict(files)
        replaceable.pop(RECIPE, None)
        self.bucket.put(replaceable)
        # Last, the copies that nothing names any more; a crash before leaves them to the next.
        digests = manifest.parse(manifest_text, MANIFEST).values()
        valid = set(map(manifest.copy_name, digests))
        self.bucket.remove(self.bucket.listing(COPIES).keys() - valid)

    def commit(
        self, receipt: str, data: bytes, chunks: Mapping[str, str], *, over: bool = False
    ) -> None:
        """Send a part: its chunks (name -> sha256), read back, then its receipt; then here.

        Raises ClaimedError where another process committed it.
        """
        if over:
            self.remove([receipt])
        elif receipt in self.objects:  # before a chunk of it is replaced
            raise ClaimedError(f"{self.url}/{receipt} was committed by another process.")
        self.check_writable()
        sizes = {}
        for name, digest in chunks.items():
            sizes[name] = self._send_chunk(name, digest)
        # Read back before the receipt vouches for them: what was lost on the way has no receipt.
        for name, sent in self.bucket.get(chunks).items():
            if sha256(sent) != chunks[name]:
                raise CorruptStoreError(f"{self.url}/{name} is not as it was sent. Run it again.")
        # Once more, since sending takes long: a writer that was taken over commits nothing. And if
        # it is taken over right now, creating the receipt lets one of the two win.
        self.check_writable()
        if not self.bucket.create(receipt, data):
            raise ClaimedError(f"{self.url}/{receipt} was committed by another process.")
        self.objects |= sizes | {receipt: Object(len(data), "")}
        # The features are in the bucket now, and not kept here; the ledger is, which is small.
        self._here.remove(name for name in chunks if not _in_ledger(name))
        self._here.commit(receipt, data, chunks, over=True)  # the bucket leads

    def _send_chunk(self, name: str, digest: str) -> Object:
        """Put a chunk in the bucket, in the place of whatever no receipt vouches for."""
        data = (self.folder / name).read_bytes()
        sent = Object(len(data), "")
        if self.bucket.create(name, data):
            return sent
        # One is there: left by a writer that died, or sent by us before an error.
        if sha256(self.bucket.get([name])[name]) != digest:
            self.check_writable()  # what another writer sent is not ours to remove
            self.bucket.remove([name])
            self.bucket.create(name, data)
        return sent

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of some files that are there, from the bucket and from here."""
        names = list(names)
        self.check_writable()
        there = [name for name in names if name in self.objects]
        self.bucket.remove(there)
        for name in there:
            del self.objects[name]
        self._here.remove(names)

    def clear(self, folder: str) -> None:
        """Remove all that is in a folder of the store, from the bucket and from here."""
        self.remove([name for name in self.objects if folder_of(name) == folder])
        self._here.clear(folder)

    def publish(self) -> None:
        """Send what was computed here; where that is forbidden, it stays here."""
        news = [name for name in derived_files(self.folder) if self._is_news(name)]
        if not news or self._withdrawn_there():
            return
        try:
            for batch in _batches(news):
                self.bucket.put(self._read(batch))
        except PermissionError as error:
            log.warning("Answers stay in %s: %s takes none (%s).", self.folder, self.url, error)
            return
        # Looked at again: a purge that began meanwhile may have gone through the bucket already.
        # One that begins now finds what was sent.
        if self._withdrawn_there():
            self.bucket.remove(news)
        else:
            there = self.bucket.listing()
            self.objects |= {name: there[name] for name in news if name in there}
            self._record_objects()

    def _withdrawn_there(self) -> bool:
        """Return whether somebody else was withdrawn there since the mirror was brought up."""
        try:
            text = self.bucket.get([MANIFEST])[MANIFEST]
        except FileNotFoundError:  # a store that is being made
            return False
        there = manifest.parse(text, f"{self.url}/{MANIFEST}")
        here = manifest.digests(self.folder)
        changed = there.get(WITHDRAWN_PATIENTS) != here.get(WITHDRAWN_PATIENTS)
        if changed:
            log.warning(
                "Answers are not sent to %s: patients were withdrawn there since it was opened. "
                "Run the same command again.",
                self.url,
            )
        return bool(changed)

    def _read(self, names: Iterable[str]) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in names}

    def _is_news(self, name: str) -> bool:
        """Return whether a file was written since the bucket was last looked at."""
        seen_ns = _record(self.folder).stat().st_mtime_ns
        written_ns = (self.folder / name).stat().st_mtime_ns
        return name not in self.objects or written_ns > seen_ns


def derived_files(folder: Path) -> list[str]:
    """Return the names of what was computed from a store in a folder and goes where it goes.

    Half-written files are none.
    """
    names = []
    for published in PUBLISHED:
        # What lies elsewhere is not the store's to send.
        for path in below(inside(folder, published)):
            if path.is_symlink():
                continue
            half_written = any(part.startswith(TEMPORARY) for part in path.parts)
            if path.is_file() and not half_written:
                names.append(path.relative_to(folder).as_posix())
    return names


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield derived files to be sent together, in an order that a crash may cut anywhere.

    Answers go last, so that none is there without its tables and networks.
    """
    small = []
    answers = []
    for name in names:
        if is_large(name):
            yield [name]  # alone: it fills the memory
        elif name.endswith(".json"):
            answers.append(name)
        else:
            small.append(name)
    yield small
    yield answers


def _folder(url: str) -> Path:
    """Return the folder that mirrors a URL. Raises ConfigError where the URL names no store."""
    name = url.rpartition("/")[2]
    if not is_store_name(name):
        raise ConfigError(f"A URL must end in the name of a store. Got {url!r} instead.")
    default = Path.home() / ".cache" / "radprobe" / "mirrors"
    place = os.environ.get(PLACE) or default
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Path(place).expanduser() / digest / name


def _record(folder: Path) -> Path:
    """Return the file beside a mirror that says what it mirrors and what was seen there."""
    return folder.with_name(f".{folder.name}.mirror")


def _is_small(name: str) -> bool:
    """Return whether an object is fetched when a store is opened: all but chunks and networks."""
    folder, _, rest = name.partition("/")
    chunk = folder == FEATURES and "/c/" in rest
    if chunk or is_large(name):
        return False
    return name in TOP_FILES or folder in TRAVELLING


def _in_ledger(chunk: str) -> bool:
    return any(chunk.startswith(chunk_file(f"{array}/")) for array in LEDGER)


def _order(name: str) -> int:
    """Return when a file is put in place: copies, the manifest, the files, receipts.

    So a reader beside it, or a crash, meets no manifest without its copies and no receipt that
    the tables do not know.
    """
    orders = {COPIES: 0, MANIFEST: 1, PARTS: 3}
    return orders.get(folder_of(name), 2)


def _put_here(path: Path, data: bytes) -> None:
    """Put a file in place whole; not forced to disk, since it can be fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    write_new(temporary, data, force=False)
    os.replace(temporary, path)

"""Objects below one URL, by fsspec: listed, created, put, read, removed; whole or not at all.

No two writers create the same object: `create` is a conditional put.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stores.contents import is_large
from stores.errors import ConfigError, CorruptStoreError, RadprobeError
from stores.inside import is_store_name, most_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Object:
    """What a listing tells of an object: its bytes, and what differs once it was replaced."""

    size: int
    stamp: str


class Bucket:
    """Objects below one URL, by their names within a store."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError where the URL's file system is not installed or not known."""
        import fsspec

        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{url!r} cannot be reached: {error}. For s3:// install radprobe[s3]."
            ) from None
        self._root = str(root).rstrip("/")
        # Asked for several streams, s3fs asks for the size of each object before it reads it, and
        # reads only those above 50 MB in pieces: twice the requests for the small ones.
        self._one_stream = {"max_concurrency": 1} if "s3" in self._fs.protocol else {}

    def listing(self, folder: str = "") -> dict[str, Object]:
        """Return all objects, or those below a folder, by name.

        Objects whose names lead out of a store, such as those with `..`, are not among them, nor
        those too large for their name, since each is read whole: none of ours is so. Raises
        ConfigError where the place cannot be looked at.
        """
        try:
            with self._reached("looked at"):
                paths = self._fs.find(self._path(folder).rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        objects = {}
        odd = 0
        for path, about in paths.items():
            name = path.removeprefix(self._root + "/")
            size = int(about["size"] or 0)
            if is_store_name(name) and size <= most_bytes(name):
                objects[name] = Object(size, _stamp(about))
            else:
                odd += 1
        if odd:
            log.warning(
                "%s has %d objects whose names or sizes are none of a store's.", self.url, odd
            )
        return objects

    def names(self) -> set[str]:
        """Return the names of all objects."""
        return set(self.listing())

    def create(self, name: str, data: bytes) -> bool:
        """Put an object that is not there yet; False where it is, whoever was quicker."""
        try:
            with self._reached("written to"):
                self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise self._absent() from error
        return True

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects, each whole."""
        by_path = {self._path(name): data for name, data in objects.items()}
        if by_path:
            try:
                with self._reached("written to"):
                    self._fs.pipe(by_path)
            except FileNotFoundError as error:
                raise self._absent() from error

    def _absent(self) -> ConfigError:
        """Return the error of a bucket that is not there: who writes an object needs no other."""
        return ConfigError(
            f"{self.url} cannot be written to: there is no such bucket. Create it, or correct the "
            "URL."
        )

    def get(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return objects' bytes. Raises FileNotFoundError, ConfigError where they do not come."""
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}
        options = {} if any(map(is_large, paths.values())) else self._one_stream
        with self._reached("read"):
            contents: dict[str, bytes] = self._fs.cat(list(paths), **options)
        return {paths[path]: data for path, data in contents.items()}

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        paths = [self._path(name) for name in names]
        if paths:
            with self._reached("written to"):
                self._fs.rm(paths)

    @contextlib.contextmanager
    def _reached(self, doing: str) -> Iterator[None]:
        """Raise ConfigError for what a file system raises of the network, of rights or of damage.

        Each has errors of its own for these. That an object is not there, or there already, is for
        those to judge who asked for it.
        """
        try:
            yield
        except (RadprobeError, FileNotFoundError, FileExistsError, TypeError):
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.url} cannot be {doing}: {type(error).__name__}: {error}. Check the "
                "network, the credentials and what they allow, and the endpoint (for s3://: "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."
            ) from error

    def _path(self, name: str) -> str:
        if name and not is_store_name(name):
            raise CorruptStoreError(f"{name!r} is no name of a file of a store at {self.url}.")
        return f"{self._root}/{name}"


def _stamp(about: Mapping[str, Any]) -> str:
    # Each file system names in its own way what differs once an object was replaced.
    marks = (about.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "created"))
    return " ".join(str(mark) for mark in marks if mark is not None)

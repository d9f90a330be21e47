"""A file's bytes as a stream to search in, whether they are gzipped or not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from gzip import BadGzipFile
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.io.formats.gzip_stream import MAGIC, end_of_gzip, open_gzip
from pipeline.io.formats.limits import MAX_FILE_BYTES
from stores.errors import UnreadableError

# Pictures shrink to a half or a quarter, blank ones to a thousandth. A gzipped file may hold this
# many times its bytes, and a large one no less than what one blank picture takes.
_RATIO = 100
_FREE_BYTES = 2**28
# What is inflated is in memory up to this size, and beyond it in a file that has no name.
_IN_MEMORY = 2**26
_BLOCK = 2**20


@contextmanager
def open_inflated(path: Path) -> Iterator[BinaryIO]:
    """Yield a file from its start; of a gzipped one, what it holds.

    Raises UnreadableError: `too-large` where it holds more than can be meant.
    """
    with path.open("rb") as file:
        if file.read(2) != MAGIC:
            file.seek(0)
            yield file
            return
    with ExitStack() as stack:
        try:
            stream = _inflated(path, None, stack)
        except (EOFError, BadGzipFile):  # the first where few bytes follow
            end = end_of_gzip(path)  # of a whole stream, behind which the file goes on
            if end is None:
                raise
            stream = _inflated(path, end, stack)
        yield stream


def stream_size(stream: BinaryIO) -> int:
    """Return how many bytes a stream has; it is left where it was."""
    before = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(before)
    return size


def _inflated(path: Path, end: int | None, stack: ExitStack) -> BinaryIO:
    """Return what a gzipped file holds, at its start; no size that it tells is believed.

    end: where its stream ends, if before the file. stack: closes what is returned.
    """
    most = min(MAX_FILE_BYTES, max(_FREE_BYTES, path.stat().st_size * _RATIO))
    target: BinaryIO = BytesIO()
    done = 0
    with open_gzip(path, end) as source:
        while block := source.read(_BLOCK):
            done += len(block)
            if done > most:
                raise UnreadableError("too-large", f"is gzipped, and holds more than {most} bytes")
            if done > _IN_MEMORY and isinstance(target, BytesIO):
                target = _on_disk(target, stack)
            target.write(block)
    target.seek(0)
    return target


def _on_disk(begun: BytesIO, stack: ExitStack) -> BinaryIO:
    """Return a file without a name, which is gone with the process, that has the bytes so far."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the stack's caller closes it)
    stack.enter_context(file)
    begun.seek(0)
    shutil.copyfileobj(begun, file, _BLOCK)
    return cast(BinaryIO, file)

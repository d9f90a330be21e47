"""Writes that are either wholly there or not there: temporary name, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stores.errors import CorruptStoreError

TEMPORARY = ".tmp-"


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a crash leaves the old file or the new one, never a half."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a written file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, where the system can."""
    with contextlib.suppress(PermissionError):  # some systems refuse to open a folder
        sync_file(path)


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of a document: sorted keys, no spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as readable JSON that carries the sha256 of its own content."""
    sealed = {**document, "seal": hashlib.sha256(canonical(document)).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=True).encode() + b"\n"


def unseal(path: Path) -> dict[str, Any]:
    """Read a sealed document. Raises CorruptStoreError where its content is not what was sealed."""
    try:
        document = json.loads(path.read_bytes())
        expected = document.pop("seal")
        found = hashlib.sha256(canonical(document)).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptStoreError(f"{path} is not a sealed document: {error!r}.") from None
    if found != expected:
        raise CorruptStoreError(f"{path} was altered: its seal is {expected}, its content {found}.")
    return dict(document)

"""A model's folder: written wholly or not at all, and held against its digests when it is read.

<model>/model.json             what it is (`ModelRecord`), with its own checksum and the digests of
                               the other files
<model>/head.safetensors       what the head has learnt, and how features are scaled
<model>/unlike.safetensors     features that new ones are held against
<model>/training.safetensors   digests of the pixels and patients it has learnt from
<model>/network/               of what was tuned: the network, as `backbone.weights` takes it
<model>/card.md                the same for people

Nothing is unpickled. Other files of the folder are never read.
"""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.fitted.record import FORMAT, MASKS, FiledRecord, MaskRecord, ModelRecord
from stores._disk import (
    TEMPORARY,
    file_sha256,
    seal,
    sha256,
    status_of,
    sweep_temporaries,
    sync,
    sync_folder,
    temporary_name,
    unseal,
    write_new,
    writing,
)
from stores.errors import CorruptStoreError, ModelError, OccupiedError
from stores.inside import is_below

RECORD = "model.json"
HEAD = "head.safetensors"
UNLIKE = "unlike.safetensors"
TRAINING = "training.safetensors"
CARD = "card.md"
NETWORK = "network"

Arrays = Mapping[str, NDArray[Any]]
R = TypeVar("R", bound=FiledRecord)
Record = ModelRecord | MaskRecord


# --- writing -------------------------------------------------------------------------------


def check_free(path: Path) -> None:
    """Raise OccupiedError where something is at the path: a model replaces nothing."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OccupiedError(
            f"{str(path)!r} is there already, and a model replaces nothing. Name another folder, "
            "or move that one."
        )


def array_bytes(arrays: Arrays) -> bytes:
    """Return arrays as the bytes of a safetensors file."""
    from safetensors.numpy import save

    data: bytes = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    return data


def write_model(path: Path, record: R, files: Mapping[str, bytes | Path]) -> R:
    """Write a model's folder and return its record with the digests of its files.

    files: by their names in the folder, as bytes or as what is copied.

    Raises OccupiedError where something is there, UnwritableError for a full disk and its like.
    """
    check_free(path)
    aside = path.with_name(temporary_name(path.name))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # What was built aside by processes that died since.
            sweep_temporaries(path.parent.glob(f"{TEMPORARY}*-{glob.escape(path.name)}"))
            aside.mkdir()
            digests = {}
            for name, content in files.items():
                _write(aside / name, content)
                digests[name] = file_sha256(aside / name)
            # Last, since it vouches for all others: without a record, a folder is no model.
            record = record.model_copy(update={"files": digests})
            write_new(aside / RECORD, seal(record.model_dump(mode="json")))
            sync_folder(aside)
            # Onto nothing, or onto an empty folder, which a rename replaces.
            aside.rename(path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return record


def _write(path: Path, content: bytes | Path) -> None:
    """Write a file, or copy one, onto the disk."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        write_new(path, content)
        return
    shutil.copyfile(content, path)
    sync(path)
    sync_folder(path.parent)


# --- reading -------------------------------------------------------------------------------


def is_model(path: Path) -> bool:
    """Return whether a folder has a model's record."""
    return (path / RECORD).is_file()


def read_record(path: Path) -> Record:
    """Read what a model says of itself.

    Raises ModelError for a folder that is none, one that was altered, and one of another version.
    """
    file = path / RECORD
    try:
        document = unseal(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"There is no model at {str(path)!r} (no {RECORD}). Check the path, or make one by "
            "`radprobe fit`."
        ) from None
    except (CorruptStoreError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{str(file)!r} was altered or is no model: {error} Copy the model anew, or fit it "
            "again."
        ) from None
    # Before anything else of it is read: another format may call the same by other names.
    version = document.get("format")
    if version != FORMAT:
        raise ModelError(
            f"The model {str(path)!r} is of format {version!r}, and this radprobe reads format "
            f"{FORMAT}. Use the radprobe that wrote it, or fit it again."
        )
    try:
        kind = MaskRecord if document.get("kind") == MASKS else ModelRecord
        return kind.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(step) for step in fault["loc"])
        raise ModelError(
            f"The model {str(path)!r} was written by another radprobe: {where}: {fault['msg']}. "
            "Use that one, or fit the model again."
        ) from None


def read_verified(path: Path) -> Record:
    """Read what a model says of itself, and hold every file of it against its digest.

    Raises ModelError for one that is missing, damaged or of another version.
    """
    record = read_record(path)
    for name in record.files:
        _check_digest(path, record, name)
    return record


def read_file(path: Path, record: FiledRecord, name: str) -> bytes:
    """Read a file of a model and hold it against its digest. Raises ModelError."""
    with _there(path, name):
        data = (path / name).read_bytes()
    _compare(path, record, name, sha256(data))
    return data


def _check_digest(path: Path, record: FiledRecord, name: str) -> None:
    """Hold a file of a model, which may be larger than memory, against its digest."""
    with _there(path, name):
        digest = file_sha256(path / name)
    _compare(path, record, name, digest)


@contextlib.contextmanager
def _there(path: Path, name: str) -> Iterator[None]:
    """Raise ModelError where a file is none of the model's, or is not there."""
    if not is_below(name):
        raise ModelError(f"The model {str(path)!r} names the file {name!r}, outside its folder.")
    # Opening a pipe would wait for whoever may write to it.
    status = status_of(path / name)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{name!r} of the model {str(path)!r} is no file. Copy the model anew.")
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"The model {str(path)!r} lacks its file {name!r}: {error.strerror}. Copy the model "
            "anew, or fit it again."
        ) from None


def _compare(path: Path, record: FiledRecord, name: str, digest: str) -> None:
    expected = record.files.get(name)
    if digest != expected:
        raise ModelError(
            f"{str(path / name)!r} was altered: its sha256 is {digest[:12]}, model.json says "
            f"{str(expected)[:12]}. Copy the model anew, or fit it again."
        )


def read_arrays(path: Path, record: FiledRecord, name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file of a model. Raises ModelError."""
    from safetensors.numpy import load

    # The bytes that were held against the digest, not the file again.
    arrays: dict[str, NDArray[Any]] = load(read_file(path, record, name))
    return arrays


@contextlib.contextmanager
def parameters_of(path: Path) -> Iterator[None]:
    """Raise ModelError where a head of this version cannot be made of what the model has filed."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        # A network's parameters do not fit: torch has no class for it. Others are faults of ours.
        if isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise
        raise ModelError(
            f"The model {str(path)!r} was written by another radprobe: its head has not the "
            "parameters of this one's. Use that one, or fit the model again."
        ) from error

"""HDF5 that leads to other files: refused before it is followed, in imports and in collections."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.io.decode import read_headers
from stores.errors import ConfigError, UnreadableError
from stores.hdf5 import member
from stores.imports import read_foreign

NUMBERS = np.arange(48, dtype=np.float32).reshape(6, 8)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file of the user's, as HDF5 and as bare bytes beside it."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = NUMBERS
    NUMBERS.tofile(tmp_path / "secret.raw")
    return tmp_path / "secret.h5"


def external_link(file: h5py.File, name: str, secret: Path) -> None:
    file[name] = h5py.ExternalLink(str(secret), "/x")


def group_elsewhere(file: h5py.File, name: str, secret: Path) -> None:
    file["far"] = h5py.ExternalLink(str(secret), "/")
    file[name] = h5py.SoftLink("/far/x")


def external_storage(file: h5py.File, name: str, secret: Path) -> None:
    raw = str(secret.with_suffix(".raw"))
    file.create_dataset(name, (6, 8), "f4", external=[(raw, 0, NUMBERS.nbytes)])


def virtual(file: h5py.File, name: str, secret: Path) -> None:
    layout = h5py.VirtualLayout((6, 8), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (6, 8))
    file.create_virtual_dataset(name, layout)


def circle(file: h5py.File, name: str, secret: Path) -> None:
    file[name] = h5py.SoftLink("/again")
    file["again"] = h5py.SoftLink(f"/{name}")


def pipe(file: h5py.File, name: str, secret: Path) -> None:
    fifo = secret.with_name(f"{name}.pipe")
    os.mkfifo(fifo)
    file[name] = h5py.ExternalLink(str(fifo), "/x")


WAYS = [external_link, group_elsewhere, external_storage, virtual, circle, pipe]


@pytest.mark.parametrize("lead", WAYS)
def test_what_leads_elsewhere_is_imported_by_no_way(tmp_path: Path, secret: Path, lead) -> None:
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        lead(file, "features", secret)
    with pytest.raises(ConfigError, match="cannot be imported"):
        read_foreign(path)
    with h5py.File(path, "w") as file:
        file["features"] = NUMBERS
        lead(file, "patient", secret)
    with pytest.raises(ConfigError, match="cannot be imported"):
        read_foreign(path)


@pytest.mark.parametrize("lead", WAYS)
@pytest.mark.parametrize("name", ["image", "anything"])
def test_what_leads_elsewhere_is_no_picture(tmp_path: Path, secret: Path, lead, name: str) -> None:
    path = tmp_path / "in.mat"
    with h5py.File(path, "w") as file:
        lead(file, name, secret)
    with pytest.raises(UnreadableError) as error:
        read_headers(path)
    assert error.value.reason in ("unsupported", "not-an-image")


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["deep/er"] = NUMBERS
        file["features"] = h5py.SoftLink("/deep/er")
        file["deep/near"] = h5py.SoftLink("er")
        assert member(file, "features").shape == (6, 8)
        assert member(file, "deep/near").shape == (6, 8)
        assert member(file, "deep/er/x") is None
        assert member(file, "nothing/at/all") is None
    assert read_foreign(tmp_path / "in.h5").features.shape == (6, 8)

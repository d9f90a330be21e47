"""Headers opened by a cluster: the same tables as from one process, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from pipeline.config.data import Data
from pipeline.extraction.discover import discover, opened_by
from pipeline.extraction.distributed import dask_headers
from tests.phantoms import volume, write_series
from tests.pipeline.processes import cluster_of

KEY = bytes(32)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Return a collection of two series and a broken file."""
    write_series(tmp_path / "a", volume(7, 12, 12))
    write_series(tmp_path / "b", volume(4, 12, 12))
    (tmp_path / "b/broken.dcm").write_bytes(b"no image at all")
    return Data(root=tmp_path)


def far(data: Data, connect: Callable[[], Client]) -> dask_headers.Open:
    return dask_headers.open_on_cluster(connect, data, "axial", opened_by(data, "axial", 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cluster_finds_the_same(
    data: Data, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_headers, "_FILES", 3)
    with cluster_of(workers) as cluster:
        elsewhere = far(data, lambda: Client(cluster, set_as_default=False))
        found = discover(data, KEY, elsewhere=elsewhere)
        assert discover(data, KEY, known=found, elsewhere=elsewhere) == found
    assert found == discover(data, KEY, workers=0)
    assert (len(found.slices), found.files["reason"].drop_null().to_pylist()) == (
        11,
        ["not-an-image"],
    )


def test_what_a_cluster_cannot_see_is_opened_here(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_of(1) as cluster:
        elsewhere = dask_headers.open_on_cluster(
            lambda: Client(cluster, set_as_default=False),
            data.model_copy(update={"root": data.root / "not-there"}),
            "axial",
            opened_by(data, "axial", 0),
        )
        found = discover(data, KEY, elsewhere=elsewhere)
    assert found == discover(data, KEY, workers=0)
    assert "12 files are opened here: FileNotFoundError" in caplog.text


def test_a_collection_that_is_known_asks_nothing_of_a_cluster(data: Data) -> None:
    def connect() -> Client:
        raise AssertionError

    known = discover(data, KEY, workers=0)
    assert discover(data, KEY, known=known, elsewhere=far(data, connect)) == known

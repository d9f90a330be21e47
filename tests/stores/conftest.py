from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from stores import ArraySpec, FeatureStore, mirror
from stores.receipt import Receipt
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, row_numbers

NO_FILES = FILE_SCHEMA.empty_table()
ARRAYS = {"cls": ArraySpec((4, 6), "float16"), "mean": ArraySpec((6,), "float16")}


def slice_table(names: list[tuple[int, str]], **common: Any) -> pa.Table:
    """Return a slice table of (row, path), one frame a file."""
    rows = [
        {"row": row, "path": path, "frame": 0, "modality": "CT", "withdrawn": False, **common}
        for row, path in names
    ]
    return pa.Table.from_pylist(rows, schema=SLICE_SCHEMA)


def numbered(n: int, prefix: str = "f", **common: Any) -> pa.Table:
    """Return a slice table of n rows from 0 on, each of a file named by its number."""
    return slice_table([(row, f"{prefix}{row}") for row in range(n)], **common)


def fill(store: FeatureStore, index: int, seed: int = 0) -> Receipt:
    """Commit a part of random features, ok wherever there is a slice, and return the receipt."""
    part = store.layout.part(index)
    rng = np.random.default_rng([seed, index])
    arrays = store.empty_part()
    # The last part has rows of no slice, which stay void.
    rows = part.within(row_numbers(store.slices())) - part.start
    for name in ("cls", "mean"):
        values = arrays[name]
        values[rows] = rng.standard_normal(values[rows].shape)
    for name in ("file_digest", "pixel_digest"):
        digests = arrays[name]
        digests[rows] = rng.integers(1, 256, digests[rows].shape)
    arrays["status"][rows] = 1
    claim = store.claim(part)
    assert claim is not None
    receipt = store.write(part, claim, arrays, {"failures": []})
    claim.release()
    return receipt


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the two stores below, which tests get copies of."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("empty", "full"):
        store = FeatureStore.create(folder / name, '{"made": "by hand"}', ARRAYS, 8)
        store.write_tables(numbered(20), NO_FILES)
    for index in range(3):
        fill(store, index)
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> FeatureStore:
    """Return an empty store of 20 slices in parts of 8."""
    return FeatureStore.open(Path(shutil.copytree(made / "empty", tmp_path / "store")))


@pytest.fixture
def full(made: Path, tmp_path: Path) -> FeatureStore:
    """Return such a store whose three parts are committed; row 20 on is no slice."""
    return FeatureStore.open(Path(shutil.copytree(made / "full", tmp_path / "store")))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Run a real server of the S3 protocol on the loopback; return its address."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        """Says nothing of each request."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    # Its S3 alone: moto's own server looks at each request which of its services is meant.
    app = create_backend_app("s3")
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirrors(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this machine's mirrors."""
    folder = tmp_path_factory.mktemp("mirrors")
    monkeypatch.setenv(mirror.PLACE, str(folder))
    return folder


@pytest.fixture
def url(mirrors: Path) -> Iterator[str]:
    """Yield the URL of a place in a fresh bucket in memory: a request takes no time there.

    What a store asks of a bucket is asked of a server of S3 too, in tests/stores/test_bucket.py.
    """
    bucket = fresh_bucket()
    yield f"memory://{bucket}/features/vits"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{bucket}"):
        memory.rm(f"/{bucket}", recursive=True)


@pytest.fixture
def s3_url(server: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a place in a fresh bucket of S3, with what boto reads of the environment.

    For what is of S3 itself, and of several processes.
    """
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = fresh_bucket()
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/features/vits"


def fresh_bucket() -> str:
    return f"b{uuid.uuid4().hex[:20]}"

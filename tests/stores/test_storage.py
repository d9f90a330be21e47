"""The two backends, by the tests that every one passes; see `tests/stores/storage_tests.py`.

The bucket is in memory, and what it promises in `tests/stores/test_bucket.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from stores import folder, manifest
from stores._disk import link_new
from stores.bucket import Bucket
from stores.errors import ConfigError
from stores.folder import LocalFolder
from stores.mirror import MirroredBucket
from stores.storage import Storage, storage_at
from tests.stores.storage_tests import CutShortError, StorageTests


class TestLocalFolder(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = storage_at(tmp_path / "store")
        assert isinstance(storage, LocalFolder)
        with storage.occupied():
            yield storage

    def put(self, storage: Storage, name: str, data: bytes) -> None:
        path = Path(storage.place, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, storage: Storage, name: str) -> bytes | None:
        path = Path(storage.place, name)
        return path.read_bytes() if path.is_file() else None

    @contextlib.contextmanager
    def breaking(self, name: str) -> Iterator[None]:
        write = manifest.write_atomic

        def fails(path: Path, data: bytes) -> None:
            if path.as_posix().endswith(name):
                raise CutShortError
            write(path, data)

        def fails_to_link(path: Path, data: bytes) -> bool:
            if path.as_posix().endswith(name):
                raise CutShortError
            return link_new(path, data)

        with pytest.MonkeyPatch.context() as patch:
            for module in (manifest, folder):
                patch.setattr(module, "write_atomic", fails)
            patch.setattr(folder, "link_new", fails_to_link)
            yield


class TestMirroredBucket(StorageTests):
    @pytest.fixture
    def storage(self, url: str) -> Iterator[Storage]:
        storage = storage_at(url)
        assert isinstance(storage, MirroredBucket)
        with storage.occupied():
            yield storage

    def put(self, storage: Storage, name: str, data: bytes) -> None:
        file_system, root = fsspec.core.url_to_fs(storage.place)
        file_system.pipe_file(f"{root}/{name}", data)

    def get(self, storage: Storage, name: str) -> bytes | None:
        file_system, root = fsspec.core.url_to_fs(storage.place)
        try:
            data: bytes = file_system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None
        return data

    @contextlib.contextmanager
    def breaking(self, name: str) -> Iterator[None]:
        put = Bucket.put
        create = Bucket.create

        def fails_to_put(bucket: Bucket, objects: dict[str, bytes]) -> None:
            if name in objects:
                raise CutShortError
            put(bucket, objects)

        def fails_to_create(bucket: Bucket, created: str, data: bytes) -> bool:
            if created == name:
                raise CutShortError
            return create(bucket, created, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bucket, "put", fails_to_put)
            patch.setattr(Bucket, "create", fails_to_create)
            yield

    def refused(self, storage: Storage) -> Iterator[Callable[[], object]]:
        reader = MirroredBucket(storage.folder.with_name("elsewhere"), storage.place)
        yield reader.check_writable
        yield lambda: reader.remove([])
        yield lambda: reader.clear("results")
        yield lambda: reader.replace({})
        yield lambda: reader.restore([])
        yield lambda: reader.commit("parts/0000000.json", b"", {})


def test_a_feature_store_lives_in_s3(s3_url: str, tmp_path: Path) -> None:
    storage = storage_at(s3_url)
    with storage.occupied():
        StorageTests().test_a_feature_store_lives_on_it(storage, tmp_path)


def test_a_folder_without_a_name_is_called_by_the_one_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "store" / "sub")
    for place in (".", "./", Path()):
        assert storage_at(place).folder == tmp_path / "store" / "sub"
    assert storage_at("..").folder == tmp_path / "store"
    with pytest.raises(ConfigError, match="a folder with a name"):
        storage_at("/")

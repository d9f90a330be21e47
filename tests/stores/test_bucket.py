"""What stores ask of a bucket: the same of a server of the S3 protocol and of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores.bucket import Bucket
from stores.errors import ConfigError


@pytest.fixture(params=["s3_url", "url"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return Bucket(request.getfixturevalue(request.param))


def test_an_object_is_created_once_and_put_again(bucket: Bucket) -> None:
    assert bucket.create("recipe.json", b"first")
    assert not bucket.create("recipe.json", b"second")
    assert bucket.get(["recipe.json"]) == {"recipe.json": b"first"}
    bucket.put({"recipe.json": b"third", "parts/0.json": b""})
    assert bucket.get(["parts/0.json", "recipe.json"]) == {
        "recipe.json": b"third",
        "parts/0.json": b"",
    }
    network = "tuned/a/model.safetensors"
    bucket.put({network: b"weights"})
    assert bucket.get([network]) == {network: b"weights"}


def test_a_listing_tells_sizes_and_what_was_replaced(bucket: Bucket) -> None:
    assert bucket.listing() == bucket.listing("parts") == {}
    bucket.put({"recipe.json": b"12345", "parts/0.json": b"1", "parts/a/b.json": b"2"})
    first = bucket.listing()
    assert {name: each.size for name, each in first.items()} == {
        "recipe.json": 5,
        "parts/0.json": 1,
        "parts/a/b.json": 1,
    }
    assert bucket.listing("parts").keys() == {"parts/0.json", "parts/a/b.json"}
    assert bucket.listing() == first
    bucket.put({"recipe.json": b"54321"})
    changed = bucket.listing()
    assert [name for name in first if changed[name] != first[name]] == ["recipe.json"]


def test_what_is_removed_or_was_never_there_is_not_found(bucket: Bucket) -> None:
    bucket.put({"a.json": b"1", "b.json": b"2", "c.json": b"3"})
    bucket.remove(["a.json", "b.json"])
    bucket.remove([])
    assert bucket.names() == {"c.json"}
    assert bucket.get([]) == {}
    with pytest.raises(FileNotFoundError):
        bucket.get(["c.json", "a.json"])


def test_what_a_file_system_raises_of_its_own_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").mkdir()
    bucket = Bucket(f"file://{tmp_path}")
    with pytest.raises(ConfigError, match="cannot be read: IsADirectoryError.*what they allow"):
        bucket.get(["recipe.json"])
    with pytest.raises(ConfigError, match="cannot be written to: IsADirectoryError"):
        bucket.put({"recipe.json": b"1"})


def test_small_objects_of_s3_are_read_without_being_asked_for_their_sizes(s3_url: str) -> None:
    bucket = Bucket(s3_url)
    bucket.put({"a.json": b"1", "b.json": b"2"})
    asked: list[str] = []
    events = bucket._fs.s3.meta.events
    events.register("before-call.s3", lambda model, **_: asked.append(model.name), unique_id="t")
    try:
        bucket.get(["a.json", "b.json"])
    finally:
        events.unregister("before-call.s3", unique_id="t")
    assert asked == ["GetObject"] * 2


def test_a_bucket_that_is_not_there_is_told(s3_url: str) -> None:
    absent = Bucket(f"s3://no-such-bucket-{s3_url.split('/')[2]}/store")
    for write in (lambda: absent.create("a.json", b""), lambda: absent.put({"a.json": b""})):
        with pytest.raises(ConfigError, match="there is no such bucket. Create it"):
            write()

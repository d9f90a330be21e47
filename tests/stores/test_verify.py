from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores import FeatureStore
from stores._disk import seal, temporary_name, unseal, write_checked
from stores.duplicates import Twins
from stores.errors import CorruptStoreError, StoreNotFoundError
from stores.purge import withdraw
from stores.verify import Finding, repair, verify
from tests.stores.conftest import fill, slice_table


@pytest.fixture
def full(full: FeatureStore) -> FeatureStore:
    """Return a store whose three parts are committed, with an answer."""
    write_checked(full.path / "results/knn-1.json", b'{"auroc": 0.9}\n')
    return full


def kinds(store: FeatureStore) -> set[str]:
    return {finding.kind for finding in verify(store.path).findings}


def damages(store: FeatureStore) -> list[Finding]:
    return [finding for finding in verify(store.path).findings if finding.damage]


def test_a_whole_store_is_sound(full: FeatureStore) -> None:
    report = verify(full.path)
    assert report.findings == []
    assert (report.sound, report.parts, report.rows) == (True, 3, 20)


def test_a_folder_that_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "image.dcm").write_bytes(b"")
    with pytest.raises(StoreNotFoundError):
        repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image.dcm"]


def test_every_flipped_bit_is_found_and_mended(full: FeatureStore) -> None:
    """benchmarks/flips.py does this with a real extraction, 200 times."""
    rng = random.Random(0)
    whole = {p: p.read_bytes() for p in full.path.rglob("*") if p.is_file() and p.stat().st_size}
    for number, path in enumerate(sorted(whole)):
        data = bytearray(whole[path])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert not verify(full.path).sound, (number, path)
        repair(full.path)
        store = FeatureStore.open(full.path)
        for part in store.missing():
            fill(store, part.index)
        if not (store.path / "results/knn-1.json").exists():
            write_checked(store.path / "results/knn-1.json", b'{"auroc": 0.9}\n')
        assert verify(full.path).findings == [], (number, path)
        for p, content in whole.items():
            assert timeless(p, p.read_bytes()) == timeless(p, content), (number, path, p)


def timeless(path: Path, content: bytes) -> Any:
    """Return what a file holds; of a receipt, all but how long its part took to write."""
    if path.parent.name != "parts":
        return content
    return {k: v for k, v in json.loads(content).items() if k not in ("seal", "write_s")}


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json", "slices.parquet"])
def test_a_lost_file_is_found_and_restored(full: FeatureStore, name: str) -> None:
    before = (full.path / name).read_bytes()
    (full.path / name).unlink()
    assert not verify(full.path).sound
    assert any(line.startswith(name) for line in repair(full.path).mended)
    assert (full.path / name).read_bytes() == before
    assert verify(full.path).sound


def test_only_the_bad_part_is_queued_again(full: FeatureStore) -> None:
    chunk = full.path / "features.zarr/cls/c/1/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    report = repair(full.path)
    assert report.mended == ["part 1: queued again, run `radprobe extract`"]
    assert [part.index for part in full.missing()] == [1]


def test_two_losses_of_one_file_cannot_be_mended_and_are_said(full: FeatureStore) -> None:
    (full.path / "recipe.json").write_bytes(b"{}")
    for copy in (full.path / "copies").iterdir():
        copy.unlink()
    with pytest.raises(CorruptStoreError, match=r"recipe.json and its copy are both"):
        repair(full.path)


def test_no_store_is_no_sound_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        verify(tmp_path)


# --- values that checksums vouch for, and that are wrong all the same -------------------------


def rewrite(store: FeatureStore, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Commit part 0 again with other values, going round the store's own refusals."""
    part = store.layout.part(0)
    arrays = store.read_part(part)
    change(arrays)
    receipt = unseal(store.receipts.path(0))
    chunks = {}
    for name, array in store.arrays.items():
        for chunk in array.chunks(part):
            temporary, record = array.stage(chunk, arrays[name][: chunk.rows])
            temporary.replace(array.root / chunk.name)
            chunks[chunk.name] = record.as_json()
    store.receipts.path(0).write_bytes(seal(receipt | {"chunks": chunks}))


def set_value(name: str, row: int, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][row] = value

    return change


@pytest.mark.parametrize(
    ("name", "value", "kind", "detail"),
    [
        ("cls", np.nan, "values", "1 rows of cls are ok, and not finite (first: [3])"),
        ("mean", np.inf, "values", "1 rows of mean are ok, and not finite (first: [3])"),
        ("status", 9, "status", "1 rows have a status nobody writes (first: [3])"),
        ("status", 0, "status", "1 rows are live, and were never embedded (first: [3])"),
    ],
)
def test_wrong_values_are_damage(
    full: FeatureStore, name: str, value: float, kind: str, detail: str
) -> None:
    rewrite(full, set_value(name, 3, value))
    details = {finding.kind: finding.detail for finding in verify(full.path).findings}
    assert details[kind] == detail


def test_a_withdrawn_row_that_was_never_read_holds_nothing(full: FeatureStore) -> None:
    def vanish(arrays: dict[str, np.ndarray]) -> None:
        arrays["status"][3] = 2
        for name in ("cls", "mean"):
            arrays[name][3] = np.nan
        for name in ("file_digest", "pixel_digest"):
            arrays[name][3] = 0

    rewrite(full, vanish)
    withdraw(full, rows=np.array([3]), files={})
    assert verify(full.path).findings == []
    withdraw(full, rows=np.array([3, 4]), files={})
    (finding,) = verify(full.path).findings
    assert finding.detail.startswith("1 withdrawn rows hold numbers or digests")


def test_suspicious_values_are_noticed_and_no_damage(full: FeatureStore) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["cls"][2] = arrays["mean"][2] = 0
        arrays["cls"][5] = 60_000
        arrays["pixel_digest"][:2] = 7

    rewrite(full, change)
    report = verify(full.path)
    assert report.sound
    assert {(finding.kind, finding.detail) for finding in report.findings} == {
        ("zero", "1 rows are all zero (first: [2])"),
        ("outlier", "1 rows have norms far from all others (first: [5])"),
        (
            "duplicate",
            "2 slices have the pixels of another (1 picture, whatever file, format or modality "
            "they stand in): 0 of more than one patient, 1 with slices that name no patient",
        ),
    }
    assert report.twins == [Twins((0, 1), patients=0, nameless=2)]


def test_a_table_that_does_not_fit_the_arrays_is_damage(full: FeatureStore) -> None:
    table = slice_table([(i, f"f{i}") for i in (*range(10), *range(16, 20))])
    full.write_tables(table, full.files())
    (damage,) = damages(full)
    assert (damage.kind, damage.part) == ("status", 1)
    assert damage.detail.startswith("6 rows hold something, and no slice has their number")


# --- files nobody vouches for -----------------------------------------------------------------


def test_foreign_files_are_named_and_left_alone(full: FeatureStore) -> None:
    thesis = full.path / "thesis.txt"
    thesis.write_text("mine")
    assert kinds(full) == {"foreign"}
    repair(full.path)
    assert thesis.exists()


def test_what_dead_writers_left_is_swept_and_the_living_are_spared(full: FeatureStore) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from stores._disk import temporary_name\n"
        "from stores.claims import try_claim\n"
        "store = Path(sys.argv[1])\n"
        "(store / 'parts' / temporary_name('0')).write_bytes(b'half')\n"
        "claims = store / 'claims'\n"
        "assert all(try_claim(claims, stem) for stem in ('0000001', '0000009', 'tables'))"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(full.path), root], check=True)
    mine = full.path / "parts" / temporary_name("0")
    mine.write_bytes(b"half")
    living = full.claim(full.layout.part(7))
    assert living is not None
    assert kinds(full) == {"orphan"}
    assert len(repair(full.path).mended) == 1
    assert mine.exists()
    assert living.stands()
    assert verify(full.path).findings == []


def test_parts_to_come_are_no_damage(store: FeatureStore) -> None:
    fill(store, 1)
    report = verify(store.path)
    assert report.sound
    assert {finding.kind for finding in report.findings} == {"pending"}
    (store.path / "parts/0000001.json").unlink()
    assert kinds(store) == {"pending", "uncommitted"}


def test_a_receipt_of_another_part_is_damage(full: FeatureStore) -> None:
    receipt = json.loads(full.receipts.path(0).read_text())
    del receipt["seal"]
    full.receipts.path(1).write_bytes(seal(receipt))
    assert {(damage.kind, damage.part) for damage in damages(full)} == {("receipt", 1)}

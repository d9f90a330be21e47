"""Only slices with a mask: what is embedded, what it costs, and what masks that come later do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.extract import Speed, Summary, extract
from pipeline.extraction.plan import plan
from pipeline.segment import segment
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import LabelError
from stores.verify import verify
from tests.phantoms import volume, write_png, write_series
from tests.pipeline.models import write_tiny_folder

HERE = Speed(device="cpu", batch_size=4, workers=0)
PICTURES, SLICES = 8, 5
MASKED = [f"p{i}.png" for i in range(4)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of eight pictures, four with a mask, and of an MR series without any."""
    root, rng = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for i in range(PICTURES):
        write_png(root / f"images/p{i}.png", rng.integers(0, 60_000, (40, 40), np.uint16))
    write_series(root / "images/mr", volume(SLICES, 40, 40), Modality="MR", PatientID="ANNA")
    for name in MASKED:
        write_mask(root, name)
    write_tiny_folder(root / "network")
    return root


@pytest.fixture
def root(collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collection, tmp_path / "masked"))


def write_mask(root: Path, image: str) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 5:20] = 1
    write_png(root / f"masks/{image}", mask)


def config_of(root: Path, store: str = "masked", **data: Any) -> Config:
    return Config.model_validate(
        {
            "data": {
                "root": root / "images", "modality": {"*.png": "DX"}, "patient": r"(p\d+)",
                "only": "masked", **data,
            },
            "store": root / store,
            "backbone": {"name": f"hf:{root / 'network'}", "image_size": 56},
            "preprocess": {"mr": {"kind": "percentiles", "low": 1, "high": 99, "scope": "volume"}},
            "outputs": {"keep": ["patch"], "part_rows": 4},
            "split": {"folds": 3, "allow": ["near-duplicates"]},
            "masks": {
                "organ": {
                    "root": root / "masks", "values": "organ",
                    "files": {"*.png": "{name}", "mr/*": "mr/{stem}.png"},
                }
            },
            "segment": {"knn": {"k": [1], "method": "knn"}},
        }
    )  # fmt: skip


def tokens(config: Config) -> dict[tuple[str, int], NDArray[Any]]:
    """Return the patch tokens of each live slice by path and frame."""
    store = FeatureStore.open(config.store)
    slices = Names(store.path).revealed(store.slices()).to_pylist()
    read = store.read("patch")
    return {(s["path"], s["frame"]): read[s["row"]] for s in slices if not s["withdrawn"]}


def run(config: Config) -> Summary:
    """Extract, and hold what `plan` said before against it."""
    planned, before = plan(config), size(config)
    summary = extract(config, HERE)
    assert (planned.found, planned.slices) == (summary.found, summary.slices)
    assert planned.embed == summary.embedded
    assert planned.bytes == pytest.approx(size(config) - before, rel=0.01)  # but for checksums
    assert verify(config.store).sound
    return summary


def size(config: Config) -> int:
    chunks = (config.store / "features.zarr").rglob("c/**/*")
    return sum(path.stat().st_size for path in chunks if path.is_file())


def test_slices_without_a_mask_are_left_out_and_counted(root: Path) -> None:
    whole, config = config_of(root, "whole", only="all"), config_of(root)
    assert plan(config).bytes < plan(whole).bytes / 2
    summary = run(config)
    assert summary.slices == summary.embedded == len(MASKED)
    assert summary.found["unmasked"] == PICTURES - len(MASKED) + SLICES
    assert run(config).embedded == 0
    # What is embedded is what it would be among all.
    run(whole)
    every = tokens(whole)
    for name, own in tokens(config).items():
        np.testing.assert_allclose(own, every[name], atol=2e-3)
    (answer,) = segment(config)
    assert answer.counts["test"].units > 0
    assert sum(count.units for count in answer.counts.values()) == len(MASKED)


def test_masks_that_come_later_extend_the_store_and_those_that_go_take_nothing(root: Path) -> None:
    config = config_of(root)
    run(config)
    before = tokens(config)
    write_mask(root, "p6.png")
    (root / "masks/p0.png").unlink()
    summary = run(config)
    assert (summary.embedded, summary.found["same"], summary.found["added"]) == (1, 4, 1)
    assert summary.found["withdrawn"] == 0
    after = tokens(config)
    assert after.keys() - before.keys() == {("p6.png", 0)}
    assert all(np.array_equal(after[name], own) for name, own in before.items())
    # All slices can be asked for as well, in the same store.
    summary = run(config_of(root, only="all"))
    assert summary.embedded == PICTURES + SLICES - 5
    assert summary.found["same"] == 5


def test_a_volume_that_is_scaled_as_one_is_embedded_as_one(root: Path) -> None:
    some = next((root / "images/mr").iterdir())
    write_mask(root, f"mr/{some.stem}.png")
    config, whole = config_of(root), config_of(root, "whole", only="all")
    assert run(config).embedded == len(MASKED) + SLICES
    run(whole)
    every, own = tokens(whole), tokens(config)
    assert sum(path.startswith("mr/") for path, _ in own) == SLICES
    for name, values in own.items():
        np.testing.assert_allclose(values, every[name], atol=2e-3)


def test_what_has_no_mask_at_all_is_refused(root: Path) -> None:
    shutil.rmtree(root / "masks")
    for act in (plan, lambda config: extract(config, HERE)):
        with pytest.raises(LabelError, match="None of the 13 slices has a mask"):
            act(config_of(root))
    with pytest.raises(ValueError, match="only: masked needs `masks`"):
        Config.model_validate({"data": {"root": root, "only": "masked"}, "store": root / "s"})

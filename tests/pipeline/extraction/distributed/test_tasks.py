"""Parts embedded in a process that works for another: what it keeps from task to task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.extraction.distributed.tasks import EmbedResult, Work, WorkerOutcome, embed_parts
from pipeline.extraction.embed import Embedded, Progress, Speed
from pipeline.extraction.recipes import make_recipe, open_store
from pipeline.extraction.sync import update_tables
from pipeline.extraction.withdrawal import find_patient
from stores import FeatureStore
from stores.purge import purge, withdraw
from stores.receipt import Link
from tests.phantoms import write_png
from tests.pipeline.models import write_tiny_folder

DONE = WorkerOutcome()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Return work on 16 pictures in parts of 4, of which the last part copies the first."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (12, 30, 30), np.uint8)
    for i, picture in enumerate([*pictures, *pictures[:4]]):
        write_png(tmp_path / f"data/p{i // 4}/{i % 4}.png", picture)
    content = {
        "data": {"root": str(tmp_path / "data"), "patient": "(p.)/"},
        "backbone": {"name": f"hf:{write_tiny_folder(tmp_path / 'tiny')}", "image_size": 28},
        "store": str(tmp_path / "store"),
        "outputs": {"part_rows": 4},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "config.yaml")
    recipe, file = make_recipe(config)
    update_tables(config, open_store(config, recipe), workers=0)
    speed = Speed(device="cpu", batch_size=4, workers=0)
    name = config.backbone.name
    return Work(str(config.store), name, str(file), str(config.data.root), speed)


def test_known_pixels_are_read_once_and_go_on_to_the_next_task(work: Work) -> None:
    assert embed_parts(work, [0, 1], Progress()) == DONE
    store = FeatureStore.open(work.store)
    flipped = Path(work.store, "features.zarr/pixel_digest/c/1/0")
    flipped.write_bytes(bytes(len(flipped.read_bytes())))
    assert embed_parts(work, [2, 3], Progress()) == DONE
    receipt = store.receipt(3)
    assert receipt is not None
    assert receipt.links == (Link(12, 0), Link(13, 1), Link(14, 2), Link(15, 3))


def test_pixels_that_were_purged_meanwhile_are_embedded_anew(work: Work) -> None:
    assert embed_parts(work, [0, 1], Progress()) == DONE
    store = FeatureStore.open(work.store)
    first = store.read("mean", range(4))
    patient = find_patient(store.path, "p0").names[0]
    withdraw(store, patient)
    purge(store, patient)
    assert embed_parts(work, [2, 3], Progress()) == DONE
    receipt = store.receipt(3)
    assert receipt is not None
    assert receipt.links == ()
    np.testing.assert_allclose(store.read("mean", range(12, 16)), first, atol=1e-2)


def test_a_part_that_is_embedded_again_does_not_stand_for_itself(work: Work) -> None:
    assert embed_parts(work, [0, 1], Progress()) == DONE
    store = FeatureStore.open(work.store)
    before = store.read("mean", range(4))
    store.receipts.path(0).unlink()
    assert embed_parts(work, [0], Progress()) == DONE
    receipt = store.receipt(0)
    assert receipt is not None
    assert receipt.links == ()
    np.testing.assert_array_equal(store.read("mean", range(4)), before)


def test_results_of_two_runs_add_up_and_the_later_one_knows_who_is_at_the_rest() -> None:
    first = EmbedResult(Embedded(3, 1, ["part 4: a:1"], {"all": 1.5}, "reading"), {2: "no"})
    later = EmbedResult(Embedded(2, 0, [], {"all": 0.5, "load": 1.0}), {5: "neither"})
    both = first.then(later)
    assert both.embedded == Embedded(5, 1, [], {"all": 2.0, "load": 1.0}, "reading")
    assert both.failed == {2: "no", 5: "neither"}
    assert EmbedResult().then(first) == first.then(EmbedResult(Embedded(elsewhere=["part 4: a:1"])))

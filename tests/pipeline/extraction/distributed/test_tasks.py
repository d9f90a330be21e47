"""Parts embedded in a process that works for another: what it keeps from task to task."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.extraction.distributed import processes
from pipeline.extraction.distributed.processes import Processes, embed_by_processes
from pipeline.extraction.distributed.tasks import (
    EmbedResult,
    Work,
    WorkerOutcome,
    embed_locally,
    embed_parts,
)
from pipeline.extraction.embed import BadLimit, Embedded, Progress, Speed
from pipeline.extraction.recipes import make_recipe, open_store
from pipeline.extraction.sync import update_tables
from pipeline.extraction.withdrawal import find_patient
from pipeline.inference.speed import cores
from pipeline.inference.telemetry import processes_a_card
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


# --- several processes a card ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "workers", "count"),
    [
        ({"processor": 95.0, "forward": 30.0, "read": 300.0}, 15, 3),
        ({"processor": 95.0, "forward": 45.0, "read": 300.0}, 15, 2),
        ({"processor": 95.0, "forward": 10.0, "read": 100.0}, 15, 4),  # no more than that
        ({"processor": 95.0, "forward": 10.0, "read": 1000.0}, 15, 2),  # or readers would bind
        ({"processor": 95.0, "forward": 95.0, "read": 300.0}, 15, 1),  # the card is busy
        ({"processor": 40.0, "forward": 30.0, "read": 1490.0}, 15, 1),  # readers bind
        ({"processor": 95.0, "forward": 30.0, "read": 300.0, "stall": 40.0}, 15, 1),  # the disk
        ({"processor": 95.0, "forward": 30.0, "read": 300.0, "load": 50.0}, 15, 2),
        ({}, 15, 1),
    ],
    ids=str,
)
def test_as_many_processes_share_a_card_as_keep_it_busy(
    seconds: dict[str, float], workers: int, count: int
) -> None:
    assert processes_a_card({"all": 100.0, **seconds}, workers) == count


def test_what_the_first_parts_take_tells_how_many_processes_share_a_card(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the processor, called a card; the processes are runs in this one."""
    store = FeatureStore.open(work.store)
    before: list[int] = []
    works: list[Work] = []

    @contextlib.contextmanager
    def running(wanted: Sequence[Work]) -> Iterator[processes.Messages]:
        before.extend(part.index for part in store.missing())
        works.extend(wanted)
        limit = BadLimit(seen=1, fraction=1.0)
        for each in wanted:
            embed_locally(each, store, store.missing()[:1], Progress(), limit)
        messages: processes.Messages = queue.SimpleQueue()
        messages.put(None)
        yield messages

    monkeypatch.setattr(processes, "_MEASURED_OF", 4)
    monkeypatch.setattr(processes, "_card_of", lambda work: "cpu")
    monkeypatch.setattr(processes, "processes_a_card", lambda seconds, workers: 3)
    monkeypatch.setattr("pipeline.shared.devices.room_on_card", lambda card: 2)
    monkeypatch.setattr(processes, "_running", running)
    planned: list[int] = []
    result = embed_by_processes(
        Processes(),
        replace(work, speed=replace(work.speed, workers=None)),
        store,
        store.missing(),
        Progress(plan=planned.append),
        BadLimit(seen=16, fraction=1.0),
    )
    assert before == [1, 2, 3]
    assert [each.speed.device for each in works] == ["cpu", "cpu"]
    assert {each.speed.workers for each in works} == {max(1, max(1, cores() - 1) // 2)}
    assert planned == [16]
    # The part that both left undone, this process did.
    assert (result.embedded.rows, result.embedded.linked) == (12, 4)
    assert not store.missing()

"""Every way of segmenting learns a planted mapping, by its seed, choosing on validation alone."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.segmentation import training
from pipeline.segmentation.contracts import FittedHead, TokenSource
from pipeline.segmentation.heads import fit
from pipeline.segmentation.knn import class_shares, collect_references
from pipeline.segmentation.selection import Course, Overlap
from pipeline.shared.steps import listening_to_steps
from stores.errors import ConfigError, DeviceError
from tests.fresh import said
from tests.pipeline.segmentation.planted import GRID, Planted

# What each needs to learn the planted masks, as little as it takes.
LEARNING: dict[str, dict[str, Any]] = {
    "linear": {"learning_rates": (0.1, 10.0), "epochs": 15},
    "linear-bn": {"learning_rates": (0.1, 1.0), "epochs": 10},
    "decoder": {"learning_rates": (0.1,), "epochs": 4, "batch_size": 2},
    "image-decoder": {"learning_rates": (0.1,), "epochs": 3},
    "knn": {"k": (1, 5)},
    "unet": {"learning_rates": (0.1,), "epochs": 6, "loss": "dice-ce", "size": "small"},
    "transunet": {
        "learning_rates": (0.1,),
        "epochs": 5,
        "batch_size": 2,
        "loss": "dice-ce",
        "size": "small",
    },
}


def settings(method: str, **changes: Any) -> Segment:
    few = {"batch_size": 4, "refit": "none"}
    return Segment(method=method, **few | LEARNING[method] | changes)  # type: ignore[arg-type]


def build_of(method: str) -> training.Build:
    build: training.Build = importlib.import_module(SEGMENTATION_HEADS[method].module).build
    return build


def predicted(head: FittedHead, source: TokenSource, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    pairs = list(head.predict(source, rows))
    assert [row for row, _ in pairs] == rows.tolist()
    return np.stack([labels for _, labels in pairs])


def dice(source: Planted, labels: NDArray[np.uint8], rows: NDArray[np.int64]) -> float:
    """The mean Dice of both squares, said once more."""
    true = source.masks(rows)
    each = [
        2 * np.sum((true == c) & (labels == c)) / (np.sum(true == c) + np.sum(labels == c))
        for c in (1, 2)
    ]
    return float(np.mean(each))


def test_every_head_of_the_list_is_tried_here() -> None:
    assert LEARNING.keys() == SEGMENTATION_HEADS.keys()


def test_a_method_that_is_not_listed_is_refused_with_those_that_are() -> None:
    known = "'linear', 'linear-bn', 'decoder', 'image-decoder', 'knn', 'unet' or 'transunet'"
    with pytest.raises(ValidationError, match=f"Input should be {known}"):
        Segment(method="lineal")


def test_asking_for_a_head_imports_its_module_alone() -> None:
    code = (
        "import importlib, sys\n"
        "from pipeline.config.segmentation_heads import SEGMENTATION_HEADS\n"
        "from pipeline.segmentation import heads\n"
        "from tests.fresh import WITH_TORCH\n"
        "print((WITH_TORCH | {'faiss'}) & sys.modules.keys())\n"
        "importlib.import_module(SEGMENTATION_HEADS['knn'].module)\n"
        "others = {head.module for head in SEGMENTATION_HEADS.values()} & sys.modules.keys()\n"
        "print(others, 'monai' in sys.modules)"
    )
    assert said(code).splitlines() == ["set()", "{'pipeline.segmentation.knn'} False"]


def test_a_device_that_is_not_there_is_refused() -> None:
    source = Planted(16)
    with pytest.raises(DeviceError, match="There is no device 'cuda:99' here"):
        fit(source, source.parts, settings("linear"), device="cuda:99")


@pytest.mark.parametrize("method", LEARNING)
def test_every_method_learns_what_is_planted(method: str) -> None:
    source = Planted(48, blocks=5)
    rows = source.parts["test"]
    head = fit(source, source.parts, settings(method))
    labels = predicted(head, source, rows)
    assert labels.dtype == np.uint8
    assert labels.shape == (len(rows), 32, 32)
    assert dice(source, labels, rows) > 0.9
    # What has learned nothing does not: the score is not that of the images alone.
    assert dice(source, np.roll(labels, 1, axis=0), rows) < 0.8


@pytest.mark.parametrize("method", LEARNING)
def test_equal_seeds_give_equal_masks(method: str) -> None:
    def run() -> NDArray[np.uint8]:
        source = Planted(8, blocks=5)
        few = {"references": 100} if method == "knn" else {"epochs": 2}
        return predicted(fit(source, source.parts, settings(method, **few)), source, np.arange(8))

    np.testing.assert_array_equal(run(), run())


def test_another_seed_is_another_start() -> None:
    source = Planted(16, blocks=5)
    rows = source.parts["train"]
    for method in sorted(LEARNING.keys() - {"knn"}):
        asked = [settings(method, seed=seed) for seed in (0, 0, 1)]
        first, again, other = (
            training.new_network(build_of(method), source, rows, a).state_dict() for a in asked
        )
        assert all(torch.equal(first[name], again[name]) for name in first), method
        assert any(not torch.equal(first[name], other[name]) for name in first), method
    banks = [
        collect_references(source, rows, settings("knn", references=100, seed=s), "cpu").shares
        for s in (0, 1)
    ]
    assert (banks[0] != banks[1]).any()


@pytest.mark.parametrize("method", ["linear-bn", "decoder", "image-decoder", "transunet"])
def test_trained_together_is_trained_alone(method: str) -> None:
    source = Planted(8, blocks=5)
    rates = (1e-2, 1e-1)
    # The least rate that goes wrong must not spoil the others.
    asked = settings(method, learning_rates=(*rates, 1e6), epochs=2, batch_size=2)
    device, build = torch.device("cpu"), build_of(method)
    together = training.train(build, source, source.parts["train"], asked, (*rates, 1e6), device)
    for rate, run in zip(rates, together, strict=False):
        (alone,) = training.train(build, source, source.parts["train"], asked, (rate,), device)
        for name, value in alone.network.state_dict().items():
            found = run.network.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    differ = [
        torch.equal(a, b)
        for a, b in zip(*(run.network.parameters() for run in together[:2]), strict=True)
    ]
    assert not all(differ)


def test_the_learning_rate_is_chosen_on_val_and_test_is_not_looked_at() -> None:
    source = Planted(32)
    parts = source.parts
    head = fit(source, parts, settings("linear", learning_rates=(1e-6, 10.0), refit="none"))
    assert head.setting["lr"] == 10.0
    assert "learning rate chosen by the Dice on val (1e-06: " in head.notes[0]
    assert not np.isin(np.concatenate(source.reads), parts["test"]).any()
    # Where val says the contrary of train, the head that learned nothing is the better one.
    wrong = Planted(32)
    wrong.all_masks[parts["val"]] = np.array([0, 2, 1], np.uint8)[wrong.all_masks[parts["val"]]]
    contrary = fit(wrong, parts, settings("linear", learning_rates=(1e-6, 10.0), refit="none"))
    assert contrary.setting["lr"] == 1e-6


def test_a_network_ends_once_val_says_so_and_is_what_it_was_at_its_best() -> None:
    source = Planted(32)
    parts = source.parts
    # What is learned of `left` is worse and worse on val, where `right` is what looks like it.
    source.all_masks[parts["val"]] = np.array([0, 2, 1], np.uint8)[source.all_masks[parts["val"]]]
    asked = settings("linear-bn", learning_rates=(0.1,), epochs=40, patience=3, refit="none")
    head, again = (fit(source, parts, asked) for _ in range(2))
    best = int(head.setting["epochs"])
    assert f"epoch {best} of {best + 3}, where it ended (patience 3, 40 at most)" in head.notes[0]
    # The weights are those of so many epochs of the same training.
    device, rates = torch.device("cpu"), asked.learning_rates
    epochs: list[tuple[int, int]] = []
    with listening_to_steps(lambda _, done, of: epochs.append((done, of))):
        (told,) = training.train(
            build_of("linear-bn"), source, parts["train"], asked, rates, device, epochs=best
        )
    assert epochs == [(done, best) for done in range(best)]
    for name, value in told.network.state_dict().items():
        torch.testing.assert_close(head.network.state_dict()[name], value)  # type: ignore[attr-defined]
        assert torch.equal(head.network.state_dict()[name], again.network.state_dict()[name])  # type: ignore[attr-defined]
    # Without val nothing ends it.
    alone = fit(source, parts | {"val": np.empty(0, np.int64)}, asked)
    assert alone.setting["epochs"] == 40


def test_what_draws_nothing_yet_is_not_given_up() -> None:
    course = Course(patience=2)
    assert [course.add(dice) for dice in (0, 0, 0, 0, 0.5, 0.4)] == [True] * 5 + [False]
    assert not course.ended
    course.add(0.5)
    assert (course.ended, course.best) == (True, 5)


def test_refit_learns_from_val_too() -> None:
    source = Planted(16)
    parts = source.parts
    kept, refit = (
        fit(source, parts, settings("linear", learning_rates=(0.1,), refit=how, epochs=1))
        for how in ("none", "train+val")
    )
    both = {**parts, "train": np.concatenate([parts["train"], parts["val"]])}
    told = fit(source, both, settings("linear", learning_rates=(0.1,), refit="none", epochs=1))
    weights = [head.network.state_dict()["classify.weight"] for head in (kept, refit, told)]  # type: ignore[attr-defined]
    assert not torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[1], weights[2])


def test_the_loss_is_the_mean_dice_of_softmax() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((2, 3, 6, 6)))
    masks = torch.from_numpy(rng.integers(0, 3, (2, 1, 6, 6)))
    p, y = logits.softmax(1), torch.nn.functional.one_hot(masks[:, 0], 3).permute(0, 3, 1, 2)
    each = 1 - 2 * (p * y).sum((2, 3)) / (p.sum((2, 3)) + y.sum((2, 3)))
    entropy = torch.nn.functional.cross_entropy(logits, masks[:, 0])
    found = training.loss(Segment(loss="dice"))(logits, masks)
    torch.testing.assert_close(found, each.mean(), rtol=1e-5, atol=1e-5)
    both = training.loss(Segment(loss="dice-ce"))(logits, masks)
    torch.testing.assert_close(both, each.mean() + entropy, rtol=1e-5, atol=1e-5)


def test_overlap_is_the_dice_over_all_pixels() -> None:
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 3, (2, 5, 8, 8)).astype(np.uint8)
    overlap = Overlap(2, 4)  # the last class is nowhere true, and does not count
    for i in range(5):
        overlap.add(0, true[i], guess[i])
        overlap.add(1, true[i], true[i])
    by_hand = np.mean(
        [
            2 * np.sum((true == c) & (guess == c)) / (np.sum(true == c) + np.sum(guess == c))
            for c in (1, 2)
        ]
    )
    np.testing.assert_allclose(overlap.dice(), [by_hand, 1.0])


def test_knn_keeps_so_many_references_from_every_slice() -> None:
    source = Planted(16)
    bank = collect_references(source, source.parts["train"], settings("knn", references=100), "cpu")
    assert bank.index.ntotal == len(bank.shares) == 8 * (100 // 8)
    everything = collect_references(source, source.parts["train"], settings("knn"), "cpu")
    assert everything.index.ntotal == 8 * GRID * GRID


def test_knn_of_one_slice_needs_no_val() -> None:
    source = Planted(16)
    none = np.empty(0, np.int64)
    parts = {"train": source.parts["train"][:1], "val": none, "test": source.parts["test"]}
    head = fit(source, parts, settings("knn", k=(5,)))
    assert dice(source, predicted(head, source, parts["test"]), parts["test"]) > 0.9


def test_class_shares_are_those_of_the_pixels() -> None:
    mask = np.zeros((1, 6, 6), np.uint8)
    mask[0, :2, :3] = 1
    shares = class_shares(mask, (2, 2), 2)
    np.testing.assert_allclose(shares[0, ..., 1], [[6 / 9, 0], [0, 0]])
    uneven = class_shares(mask, (4, 4), 2)
    np.testing.assert_allclose(uneven.sum(axis=-1), 1)


def test_what_cannot_be_learned_is_refused() -> None:
    source = Planted(16)
    none = np.empty(0, np.int64)
    with pytest.raises(ConfigError, match=r"store has 1\. Extract a store with outputs\.patch\."):
        fit(source, source.parts, settings("decoder"))
    with pytest.raises(ConfigError, match="the train part is empty"):
        fit(source, source.parts | {"train": none}, settings("linear"))
    for method, name in (("linear", "learning_rates"), ("knn", "k")):
        with pytest.raises(ConfigError, match=f"2 values of {name} is chosen on val"):
            fit(source, source.parts | {"val": none}, settings(method))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_lone_slice_that_is_narrowed_to_one_value_is_named(batch_size: int) -> None:
    source = Planted(12)  # 6 slices train: the last batch of 5 is of one
    asked = settings("unet", epochs=1).model_copy(update={"batch_size": batch_size})
    with pytest.raises(ConfigError, match=r"one slice of 32 px .* Set `batch_size` so that"):
        fit(source, source.parts, asked)
    fit(source, source.parts, asked.model_copy(update={"batch_size": 6, "refit": "none"}))


@pytest.mark.parametrize("classes", [2, 3])
def test_networks_from_scratch_take_any_image_size(classes: int) -> None:
    source = Planted(2)
    source.classes, source.image_size = ("background", *"ab"[: classes - 1]), 70
    for method in ("unet", "transunet"):
        network = training.new_network(build_of(method), source, np.array([0]), settings(method))
        assert network.eval()(torch.zeros(2, 3, 70, 70)).shape == (2, classes, 70, 70)


def test_full_networks_have_their_papers_size() -> None:
    from pipeline.segmentation.transunet import TransUNet
    from pipeline.segmentation.unet import UNet

    with torch.device("meta"):
        networks = UNet(2, "full"), TransUNet(2, 224, "full")
    millions = [sum(p.numel() for p in n.parameters()) / 1e6 for n in networks]
    assert millions[0] == pytest.approx(31.1, abs=0.1)  # 64 to 1024 channels
    assert millions[1] == pytest.approx(105, rel=0.03)  # R50-ViT-B/16

"""From pixels to what the network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.preprocessing.content import body_box
from pipeline.preprocessing.intensity import apply_intensity, percentiles, sorted_percentiles
from pipeline.preprocessing.prepare import fit_aspect, prepare, prepare_batch, scale
from pipeline.recipe import (
    CT_WINDOWS,
    Architecture,
    FileWindow,
    Intensity,
    MinMax,
    Percentiles,
    Preprocess,
    Recipe,
    Window,
    ZScore,
)
from pipeline.types import Slice, Voi
from stores.errors import UnreadableError

ARCHITECTURE = Architecture(dim=8, depth=4, heads=2)


def recipe(size: int = 28, **preprocess) -> Recipe:
    return Recipe(
        architecture=ARCHITECTURE,
        weights="random:0",
        image_size=size,
        preprocess=Preprocess(**preprocess),
    )


def plain(out: torch.Tensor) -> np.ndarray:
    """Undo mean and std: (3, S, S) in [0, 1]."""
    mean = torch.tensor(ARCHITECTURE.mean)[:, None, None]
    std = torch.tensor(ARCHITECTURE.std)[:, None, None]
    return (out * std + mean).numpy()


def a_slice(shape=(40, 56), seed: int = 0, scale: float = 500) -> Slice:
    noise = np.random.default_rng(seed).normal(size=shape)
    return Slice(0, (noise * scale).astype(np.float32))


def grey_of(pixels: np.ndarray, rule: Intensity, voi: Voi | None = None) -> torch.Tensor:
    """Return one slice through a rule: (1 or 3, H, W)."""
    return apply_intensity(torch.from_numpy(pixels)[None], rule, [Slice(0, pixels, voi)])[0]


def test_shape_type_and_range():
    out = prepare(a_slice(), "CT", recipe())
    assert out.shape == (3, 28, 28)
    assert out.dtype == torch.float32
    grey = plain(out)
    assert grey.min() >= -1e-6
    assert grey.max() <= 1 + 1e-6
    np.testing.assert_allclose(grey[0], grey[2], atol=1e-6)


def test_ct_is_clamped_as_in_the_paper():
    pixels = np.full((28, 28), -4000, np.float32)
    pixels[:, 7:14], pixels[:, 14:21], pixels[:, 21:] = -212, 600, 9000
    grey = plain(prepare(Slice(0, pixels), "CT", recipe()))[0]
    np.testing.assert_allclose(grey[0, [0, 10, 17, 25]], [0, 0.5, 1, 1], atol=1e-6)


def test_same_size_is_not_resampled_and_resize_is_torch_bicubic_antialiased():
    item = a_slice((28, 28))
    expected = (np.clip(item.pixels, -1024, 600) + 1024) / 1624
    np.testing.assert_allclose(plain(prepare(item, "CT", recipe()))[1], expected, atol=1e-5)
    item = a_slice((100, 60))
    grey = torch.from_numpy((np.clip(item.pixels, -1024, 600) + 1024) / 1624)[None, None]
    expected = torch.nn.functional.interpolate(grey, (28, 28), mode="bicubic", antialias=True)
    np.testing.assert_allclose(
        plain(prepare(item, "CT", recipe()))[0], expected[0, 0].clamp(0, 1), atol=1e-5
    )


def test_overshoot_of_the_resize_is_clipped():
    pixels = np.zeros((40, 40), np.float32)
    pixels[:, 20:] = 1
    grey = plain(prepare(Slice(0, pixels), "DX", recipe(224)))
    assert grey.min() >= -1e-6
    assert grey.max() <= 1 + 1e-6


@pytest.mark.parametrize("rule", ["minmax", "percentiles", "zscore", "file", "brain"])
def test_constant_images_are_finite(rule):
    item = Slice(0, np.full((9, 9), 7, np.float32))
    out = prepare(item, "MR", recipe(mr=rule))
    assert torch.isfinite(out).all()
    if rule in ("minmax", "percentiles", "file"):
        assert not plain(out).round(6).any()


@pytest.mark.parametrize("rule", ["minmax", "percentiles", "zscore", "file", "lung"])
def test_padding_is_black_infinities_are_the_ends_and_neither_moves_the_scale(rule):
    clean = a_slice((20, 20)).pixels
    dirty = clean.copy()
    dirty[0, 0], dirty[0, 1], dirty[0, 2] = np.nan, np.inf, -np.inf
    rules = Preprocess(mr=rule)
    grey = scale(Slice(0, dirty), "MR", rules)[0].numpy()
    assert np.isfinite(grey).all()
    assert grey[0, :3].tolist() == [0, 1, 0]
    known = clean.copy()
    known[0, :3] = np.nan
    np.testing.assert_array_equal(grey[1:], scale(Slice(0, known), "MR", rules)[0][1:].numpy())


def test_nothing_finite_is_unreadable():
    with pytest.raises(UnreadableError) as caught:
        prepare(Slice(0, np.full((4, 4), np.nan, np.float32)), "CT", recipe())
    assert caught.value.reason == "not-finite"


def test_percentiles_are_of_the_slice():
    pixels = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    grey = grey_of(pixels, Percentiles(low=5, high=95))[0]
    low, high = np.percentile(pixels, (5, 95))
    np.testing.assert_allclose(grey, np.clip((pixels - low) / (high - low), 0, 1), atol=1e-6)


def test_zscore():
    pixels = a_slice().pixels
    grey = grey_of(pixels, ZScore(clip=2))[0]
    z = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(grey, np.clip((z + 2) / 4, 0, 1), atol=1e-5)


def test_three_windows_are_three_channels():
    item = a_slice((28, 28))
    grey = plain(prepare(item, "CT", recipe(ct=["lung", "mediastinum", "bone"])))
    for channel, name in enumerate(("lung", "mediastinum", "bone")):
        center, width = CT_WINDOWS[name]
        expected = np.clip((item.pixels - (center - width / 2)) / width, 0, 1)
        np.testing.assert_allclose(grey[channel], expected, atol=1e-5)


def test_file_window_linear_sigmoid_and_table():
    pixels = np.array([[-100, 0, 50, 100, 900]], np.float32)
    linear = grey_of(pixels, FileWindow(), Voi(0, 100))
    np.testing.assert_allclose(linear[0, 0], [0, 0, 0.5, 1, 1])
    sigmoid = grey_of(pixels, FileWindow(), Voi(0, 100, "sigmoid"))
    np.testing.assert_allclose(
        sigmoid[0, 0], 1 / (1 + np.exp(-4 * (pixels[0] - 50) / 100)), rtol=1e-5
    )
    table = grey_of(pixels, FileWindow(), Voi(0, 100, "table", (1.0, 0.25, 0.0)))
    np.testing.assert_allclose(table[0, 0], [1, 1, 0.25, 0, 0])
    np.testing.assert_array_equal(grey_of(pixels, FileWindow()), grey_of(pixels, MinMax()))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("lung", Window(low=-1350, high=150)),
        ({"center": 40, "width": 80}, Window(low=0, high=80)),
        ({"low": 1, "high": 2}, Window(low=1, high=2)),
        ("minmax", MinMax()),
        ("zscore", ZScore()),
        ("file", FileWindow()),
        ({"kind": "percentiles", "low": 5, "high": 95}, Percentiles(low=5, high=95)),
    ],
)
def test_short_forms_are_the_long_ones_in_the_recipe(short, long):
    assert Preprocess(ct=short).ct == long
    assert recipe(ct=short).digest == recipe(ct=long).digest


@pytest.mark.parametrize(
    ("rule", "message"),
    [("lugn", "lung"), (["lung", "bone"], "three"), ({"low": 2, "high": 1}, "low < high")],
)
def test_faults_in_rules_say_what_to_do(rule, message):
    with pytest.raises(ValidationError, match=message):
        Preprocess(ct=rule)


def test_pad_and_crop_keep_the_aspect():
    grey = torch.ones(1, 4, 8)
    padded = fit_aspect(grey, "pad")
    assert padded.shape == (1, 8, 8)
    assert padded[0].sum(dim=1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    grey[0, :, :2] = 0
    assert fit_aspect(grey, "crop").equal(torch.ones(1, 4, 4))
    assert fit_aspect(grey, "square") is grey
    item = a_slice((20, 40))
    assert not plain(prepare(item, "CT", recipe(28, aspect="pad")))[:, :6].round(5).any()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1001])
@pytest.mark.parametrize("way", [percentiles, sorted_percentiles])
def test_percentiles_are_those_of_numpy(count, way):
    """Slice by slice, of the finite values alone: the way of a CPU and that of a GPU."""
    values = np.random.default_rng(count).normal(size=(3, 1, count + 2)).astype(np.float32)
    values[:, 0, :2] = [[np.nan, np.inf], [-np.inf, 2], [1, 2]]
    ours = way(torch.from_numpy(values.copy()), (0, 1, 37.5, 99, 100))
    for i, one in enumerate(values):
        known = one[np.isfinite(one)].astype(np.float64)
        theirs = np.percentile(known, (0, 1, 37.5, 99, 100))
        np.testing.assert_allclose([float(value[i]) for value in ours], theirs, rtol=1e-12)


@pytest.mark.parametrize("rule", ["minmax", "percentiles", "zscore", "file", "lung"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_integers_are_scaled_as_the_same_numbers_in_float32(rule, dtype):
    """Readers send pixels in the narrowest type that holds them."""
    info = np.iinfo(dtype)
    pixels = np.random.default_rng(0).integers(info.min, info.max, (40, 30), endpoint=True)
    rules = recipe(56, mr=rule)
    narrow = prepare(Slice(0, pixels.astype(dtype)), "MR", rules)
    assert narrow.equal(prepare(Slice(0, pixels.astype(np.float32)), "MR", rules))


def test_crop_to_the_body():
    pixels = np.full((50, 60), -1000, np.float32)
    pixels[10:30, 15:45] = 40
    pixels[45:47, 5:55] = 40  # the table
    assert body_box(pixels, "CT") == (slice(10, 30), slice(15, 45))
    assert scale(Slice(0, pixels), "CT", Preprocess(crop="body")).shape == (1, 20, 30)
    empty = np.full((5, 6), -1000, np.float32)
    assert scale(Slice(0, empty), "CT", Preprocess(crop="body")).shape == (1, 5, 6)


def test_slices_depend_on_nothing_beside_them():
    items = [
        a_slice(shape, seed) for seed, shape in enumerate([(40, 56), (40, 56), (30, 30), (40, 56)])
    ]
    items += [Slice(0, a_slice((30, 30)).pixels, voi) for voi in (None, Voi(0, 9), Voi(1, 5))]
    items += [Slice(0, items[0].pixels, Voi(0, 100, "table", (1.0, 0.25, 0.0)))] * 2
    modalities = ["CT", "MR", "DX", "MR", "MR", "MR", "MR", "MR", "MR"]
    for rules in ({}, {"ct": ["lung", "bone", "brain"]}, {"mr": "file", "crop": "body"}):
        batch = prepare_batch(items, modalities, recipe(**rules))
        for got, item, modality in zip(batch, items, modalities, strict=True):
            alone = prepare(item, modality, recipe(**rules))
            np.testing.assert_allclose(got.numpy(), alone.numpy(), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_equals_cpu():
    items = [a_slice((512, 512), seed) for seed in range(4)]
    for rules in ({}, {"mr": "zscore"}, {"mr": "file"}):
        here = prepare_batch(items, ["CT", "MR", "DX", "MR"], recipe(224, **rules))
        there = prepare_batch(items, ["CT", "MR", "DX", "MR"], recipe(224, **rules), "cuda").cpu()
        np.testing.assert_allclose(there.numpy(), here.numpy(), atol=1e-3)


def test_huge_scanner_units_do_not_overflow():
    pixels = np.array([[-3e38, 3e38], [0, 1e38]], np.float32)
    assert torch.isfinite(scale(Slice(0, pixels), "MR", Preprocess(mr="minmax"))).all()
    assert torch.isfinite(scale(Slice(0, pixels), "MR", Preprocess(mr="zscore"))).all()


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (33, 33)])
def test_dinov2s_aspect_resizes_the_shorter_side_and_cuts_the_middle_out(shape: tuple[int, int]):
    item = a_slice(shape)
    grey = (np.clip(item.pixels, -1024, 600) + 1024) / 1624
    shorter = min(shape)
    to = [32 * side // shorter for side in shape]  # 32 of 28, as 256 of 224
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(grey)[None, None], tuple(to), mode="bicubic", antialias=True
    ).clamp(0, 1)[0, 0]
    top, left = (round((side - 28) / 2) for side in to)
    expected = resized[top : top + 28, left : left + 28]
    got = plain(prepare(item, "CT", recipe(aspect="dinov2")))[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)

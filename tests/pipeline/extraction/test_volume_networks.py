"""Volumes through 3D networks: what is stored, what is refused, and what answers make of it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from pipeline import api
from pipeline.backbones.volume_models import VOLUME_NETWORKS, VolumeNetwork
from pipeline.cli import app
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.extraction import volume_part
from pipeline.extraction.embed import Speed
from pipeline.extraction.exchange import exported_array
from pipeline.extraction.failures import failures, in_lines
from pipeline.extraction.plan import plan
from pipeline.extraction.recipes import create_store, make_recipe
from pipeline.fitted.fit import fit
from pipeline.fitted.predict import predictions
from pipeline.fitted.sources import FolderOptions
from pipeline.inference.volumes import VolumeForward
from pipeline.outlook import _not_kept
from pipeline.preprocessing.volume_input import Volume, network_input, stacked, window_starts
from pipeline.recipe import Architecture, Preprocess, Recipe, VolumeInput, recipe_of
from pipeline.segment import segment
from pipeline.segmentation.tokens import Tokens
from pipeline.tune import tune, tune_masks
from stores import FeatureStore
from stores.errors import ConfigError, WeightsError
from stores.slices import SliceRow
from stores.verify import verify

HERE = Speed(device="cpu", workers=0)
TINY = Architecture(
    family="segresenc",
    settings={"network": "tiny3d", "filters": 4, "blocks": [1, 1, 1]},
    dim=16,
    depth=1,
    heads=1,
    patch=1,
)
WINDOWS = VolumeInput(fit="windows", spacing_mm=(2, 2, 2), size=(16, 16, 16), window=(-1000, 1000))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a 3D network of a few thousand parameters known by name."""
    network = VolumeNetwork(TINY, WINDOWS, "nowhere", "mean", "none", 0.01)
    monkeypatch.setitem(VOLUME_NETWORKS, "tiny3d", network)


def write_volume(
    path: Path, voxels: NDArray[Any], spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
) -> None:
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([*spacing, 1.0])), path)


def config_of(root: Path, **more: Any) -> Config:
    given: dict[str, Any] = {
        "data": {"root": root / "images", "modality": {"**": "CT"}, "paths": "keep"},
        "backbone": {"name": "tiny3d", "weights": "random:0"},
        "store": root / "store",
    }
    return Config.model_validate(given | more)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of twelve volumes of 12 to 20 slices, bright ones and dark ones."""
    folder = tmp_path_factory.mktemp("volumes") / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        shape = (20, 18, int(rng.integers(12, 21)))
        write_volume(folder / f"v{i:02}.nii.gz", rng.normal(-600 + 900 * (i % 2), 200, shape))
    lines = [
        "path,patient,sick",
        *(f"v{i:02}.nii.gz,p{i // 2 * 2 + i % 2},{i % 2}" for i in range(12)),
    ]
    (folder.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def root_of(images: Path, tmp_path: Path) -> Path:
    shutil.copytree(images, tmp_path / "images")
    return tmp_path


def test_all_rows_of_a_volume_have_its_vector(images: Path, tmp_path: Path) -> None:
    config = config_of(root_of(images, tmp_path), outputs={"part_rows": 64, "dtype": "float32"})
    summary = extract(config, HERE)
    assert summary.clean
    store = FeatureStore.open(config.store)
    recipe = recipe_of(store)
    assert recipe.outputs == ("volume",)
    assert recipe.preprocess.volume == WINDOWS
    assert Recipe.from_text(recipe.canonical()) == recipe
    slices = store.slices()
    vectors = store.read("volume", slices["row"].to_numpy())
    assert vectors.shape == (len(slices), 16)
    paths = np.array(slices["path"].to_pylist())
    for path in np.unique(paths):
        assert len(np.unique(vectors[paths == path], axis=0)) == 1
    assert len(np.unique(vectors, axis=0)) == 12
    # By hand: the network on what it is to see of the first volume, windows averaged.
    voxels = np.asarray(nib.load(tmp_path / "images/v00.nii.gz").dataobj, np.float32)
    from pipeline.backbones import load_volume_backbone
    from pipeline.backbones.weights import Checkpoint

    network = load_volume_backbone(recipe, Checkpoint("tiny3d", "random:0"))
    inputs = list(network_input(Volume(voxels, (2.0, 2.0, 2.0), is_ct=True), WINDOWS))
    expected = torch.stack([network(x)[0] for x in inputs]).mean(dim=0).numpy()
    np.testing.assert_allclose(vectors[paths == "v00.nii.gz"][0], expected, atol=1e-5)
    assert not [each for each in verify(config.store).findings if each.damage]


def test_what_is_no_volume_is_named_and_counted(images: Path, tmp_path: Path) -> None:
    root = root_of(images, tmp_path)
    rng = np.random.default_rng(1)
    write_volume(root / "images/one.nii.gz", rng.normal(0, 100, (20, 20, 1)))
    write_volume(root / "images/large.nii.gz", rng.normal(0, 100, (20, 20, 40)))
    config = config_of(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_part, "MOST_VOXELS", 20 * 20 * 39)
        summary = extract(config, HERE)
    assert summary.unreadable == {"not-a-volume": 1, "too-large": 40}
    assert summary.unreadable_volumes == 2
    assert not summary.clean
    store = FeatureStore.open(config.store)
    reasons = Counter(store.failures().values())
    assert sorted(reasons) == ["not-a-volume", "too-large"]
    assert len(store.live_rows()) - 41 == int((store.status() == 1).sum())


def test_a_volume_that_lost_a_slice_says_nothing(images: Path, tmp_path: Path) -> None:
    from tests.phantoms import dicom, save

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for k, z in enumerate([0, 2, 4, 8, 10, 12]):  # one is missing between 4 and 8
        pixels = rng.integers(0, 2000, (16, 16)).astype(np.uint16)
        made = dicom(pixels, SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, z],
                     ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 2])  # fmt: skip
        save(made, folder / f"{k}.dcm")
    summary = extract(config_of(tmp_path), HERE)
    assert summary.unreadable == {"not-a-volume": 6}
    lost = list(in_lines(failures(tmp_path / "store")))
    (line,) = lost  # of the volume, not one a slice
    assert line.startswith("not-a-volume: 0.dcm and 5 other files of its series: slices are")
    assert "(missing-position); complete it" in line


@pytest.mark.parametrize(
    ("flag", "said"),
    [("no-orientation", "no orientation"), ("no-position", "does not say where its slices lie")],
)
def test_a_volume_that_says_nothing_of_its_place_is_told_so(flag: str, said: str) -> None:
    slices = [SliceRow(k, "a.nii", k, "s", "CT", flags=(flag,)) for k in range(2)]
    fault = volume_part._fault_of(slices, Preprocess.model_construct(volume=WINDOWS))
    assert fault is not None
    assert said in fault.detail
    assert "equal distances" not in fault.detail


def test_a_changed_volume_is_seen_anew_as_a_whole(images: Path, tmp_path: Path) -> None:
    root = root_of(images, tmp_path)
    config = config_of(root, outputs={"part_rows": 64})
    extract(config, HERE)
    write_volume(root / "images/v03.nii.gz", np.full((20, 18, 14), 500) + np.arange(14))
    assert extract(config, HERE).embedded == 14
    assert not [each for each in verify(config.store).findings if each.damage]
    assert extract(config, HERE).embedded == 0


def test_a_run_that_ends_early_goes_on_to_the_same_bits(images: Path, tmp_path: Path) -> None:
    root = root_of(images, tmp_path)
    config = config_of(root, outputs={"part_rows": 16})  # volumes lie across parts
    extract(config, HERE)
    other = config.model_copy(update={"store": root / "other"})
    calls = 0
    vector = VolumeForward.vector

    def fails(self: VolumeForward, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return vector(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VolumeForward, "vector", fails)
        with pytest.raises(KeyboardInterrupt):
            extract(other, HERE)
    store = FeatureStore.open(other.store)
    assert store.missing()
    assert not [each for each in verify(other.store).findings if each.damage]
    assert 0 < extract(other, HERE).embedded < len(store.live_rows())
    rows = store.live_rows()
    first = FeatureStore.open(config.store)
    assert store.read("volume", rows).tobytes() == first.read("volume", rows).tobytes()


def test_answers_are_of_volumes_and_never_of_images(images: Path, tmp_path: Path) -> None:
    root = root_of(images, tmp_path)
    shutil.copy(images.parent / "labels.csv", root / "labels.csv")
    more: dict[str, Any] = {
        "labels": {"file": root / "labels.csv", "patient": "patient"},
        "split": {"kind": "kfold", "folds": 3, "allow": ["near-duplicates"]},
        "knn": {"k": [3]},
        "probe": {"steps": 3},
    }
    config = config_of(root, tasks={"t": {"labels": ["sick"], "level": "series"}}, **more)
    extract(config, HERE)
    (result,) = evaluate(config, ["knn"])
    assert result.features == "volume"
    assert result.main_score.metrics["auroc"].value > 0.9
    # Whatever features are asked for by default: there is one vector of a volume.
    assert api.data(config, "t").X.shape == (12, 16)
    # Nothing to weigh: a script must not take it for an answer.
    (root / "c.yaml").write_text(config.model_dump_json(exclude_unset=True))
    done = CliRunner().invoke(app, ["attention", str(root / "c.yaml")])
    assert (done.exit_code, "each has one; ask the probe" in done.output) == (1, True)
    model = fit(config, root / "model", method="probe")
    table = predictions(model, root / "images", FolderOptions(modality="CT", speed=HERE))
    of_store = predictions(model, config.store)
    assert table.num_rows == of_store.num_rows == 12
    # A volume has one vector, and is named by its first slice of all that it has.
    for each in (table, of_store):
        depths = [nib.load(root / "images" / path).shape[2] for path in each["path"].to_pylist()]
        assert each["slices"].to_pylist() == depths
        assert each["frame"].to_pylist() == [0] * 12
        assert not any("learnt from units" in note for note in each["notes"].to_pylist())
    said = dict(zip(table["path"].to_pylist(), table["proba:1"].to_pylist(), strict=True))
    for path, proba in zip(
        *(of_store[name].to_pylist() for name in ("path", "proba:1")), strict=True
    ):
        assert said[path] == pytest.approx(proba, abs=1e-6)
    single = config_of(root, tasks={"t": {"labels": ["sick"], "level": "image"}}, **more)
    with pytest.raises(ConfigError, match="features of whole volumes.*series, study or patient"):
        evaluate(single, ["knn"])


def test_a_network_of_volumes_is_not_tuned_and_has_one_output(tmp_path: Path) -> None:
    from pipeline.backbones import load_backbone

    with pytest.raises(ConfigError, match="sees volumes and no slices"):
        load_backbone("tiny3d", "random:0")
    with pytest.raises(ConfigError, match="gives the output `volume` and nothing beside it"):
        make_recipe(config_of(tmp_path, outputs={"keep": ["cls"]}))
    for key, given in (
        ("outputs.raptor", {"outputs": {"raptor": {}}}),
        (
            "backbone.image_size",
            {"backbone": {"name": "tiny3d", "weights": "random:0", "image_size": 64}},
        ),
    ):
        with pytest.raises(ConfigError, match=f"^{key} .* 3D network tiny3d .*leave it out"):
            make_recipe(config_of(tmp_path, **given))
    with pytest.raises(WeightsError, match="user's to bring"):
        make_recipe(config_of(tmp_path, backbone={"name": "ct_fm"}))


# --- Raptor: a network of slices along three planes -----------------------------------------------

RAPTOR: dict[str, Any] = {
    "backbone": {"name": "dinov2_vits14", "weights": "random:0", "image_size": 28},
    "outputs": {"keep": ["volume"], "dtype": "float32", "raptor": {"numbers": 5, "seed": 3}},
}


@pytest.mark.parametrize("network", [{}, RAPTOR], ids=["3d", "raptor"])
def test_what_needs_slices_is_refused_before_labels_and_masks_are_read(
    network: dict[str, Any], tmp_path: Path
) -> None:
    more: dict[str, Any] = {
        "labels": {"file": tmp_path / "none.csv"},
        "tasks": {"t": {"labels": ["sick"], "level": "series"}},
        "masks": {"m": {"root": tmp_path, "files": {"**": "{stem}_m.nii.gz"}, "values": "m"}},
        "segment": {"k": {"method": "knn"}},
    }
    config = config_of(tmp_path, **more, **network, finetune={})
    for ask in (tune, tune_masks):
        with pytest.raises(ConfigError, match="needs a network that sees slices.*whole volumes"):
            ask(config)
    assert _not_kept(config) == [
        f"Masks are drawn and networks tuned on slices, and {config.backbone.name} sees whole "
        "volumes here, so that nothing is answered by segment and finetune: name a network of "
        "slices in another config, with a store of its own and `outputs: {keep: [cls, mean, "
        "patch]}`."
    ]
    recipe, _ = make_recipe(config)
    store = create_store(config, recipe)
    with pytest.raises(ConfigError, match="a store with .* by a network of slices"):
        Tokens(store)
    assert exported_array(config.store) == "volume"
    with pytest.raises(ConfigError, match="vectors of whole volumes instead"):
        segment(config)


@pytest.mark.parametrize("network", [{}, RAPTOR], ids=["3d", "raptor"])
@pytest.mark.parametrize(
    ("task", "asked"),
    [({}, "level: image"), ({"level": "region", "region": {"masks": "m"}}, "level: region")],
)
def test_a_task_of_less_than_volumes_is_refused_before_they_are_embedded(
    network: dict[str, Any], task: dict[str, Any], asked: str, tmp_path: Path
) -> None:
    masks = {"m": {"root": tmp_path, "files": {"**": "{stem}_m.nii.gz"}, "values": "m"}}
    good = {"labels": ["sick"], "level": "series"}
    tasks = {"good": good, "bad": {"labels": ["sick"], **task}}
    config = config_of(tmp_path, tasks=tasks, masks=masks, **network)
    for look in (plan, lambda config: extract(config, HERE)):
        with pytest.raises(ConfigError, match=f"^bad: .*{asked}.*series, study or patient"):
            look(config)
    assert not config.store.exists()


def test_raptor_is_what_numpy_makes_of_the_tokens_of_three_planes(
    images: Path, tmp_path: Path
) -> None:
    from pipeline.backbones import load_backbone
    from pipeline.io.formats.planes import AXIS, cut
    from pipeline.preprocessing.prepare import normalise, resize

    (tmp_path / "images").mkdir()
    shutil.copy(images / "v00.nii.gz", tmp_path / "images")
    config = config_of(tmp_path, **RAPTOR)
    assert extract(config, HERE).clean
    store = FeatureStore.open(config.store)
    recipe = recipe_of(store)
    assert recipe.network.startswith("Raptor over dinov2_vits14")
    assert Recipe.from_text(recipe.canonical()) == recipe
    vectors = store.read("volume", store.live_rows())
    assert len(np.unique(vectors, axis=0)) == 1
    assert vectors.shape[1] == 3 * 5 * 4  # planes, numbers, patches
    voxels = np.asarray(nib.load(tmp_path / "images/v00.nii.gz").dataobj, np.float32)
    scaled = np.clip((voxels + 1024) / 1624, 0, 1)  # the window of CT slices
    network = load_backbone("dinov2_vits14", "random:0", image_size=28, blocks=1)
    matrix = np.random.RandomState(3).randn(384, 5)  # as the authors' script draws it
    expected = []
    for plane in ("axial", "coronal", "sagittal"):
        shown = [cut(scaled, plane, k) for k in range(scaled.shape[AXIS[plane]])]
        x = torch.from_numpy(np.stack(shown))[:, None].expand(-1, 3, -1, -1)
        tokens = network(normalise(resize(x, 28), network.architecture)).patch.double().numpy()
        mean = tokens.mean(axis=0).reshape(4, 384)
        expected.append((matrix.T @ mean.T).ravel())
    np.testing.assert_allclose(vectors[0], np.concatenate(expected), atol=1e-4)


def test_raptor_names_what_it_cannot_see(tmp_path: Path) -> None:
    from pipeline.backbones import load_recipe_backbone
    from pipeline.backbones.weights import Checkpoint
    from pipeline.extraction.recipes import make_recipe

    def recipe(**more: Any) -> Recipe:
        return make_recipe(config_of(tmp_path, **RAPTOR | more))[0]

    with pytest.raises(ConfigError, match="keep other outputs than volume"):
        load_recipe_backbone(recipe(), Checkpoint("dinov2_vits14", "random:0"))
    with pytest.raises(ConfigError, match=r"one window. Got preprocess.ct of kind percentiles"):
        recipe(preprocess={"ct": "percentiles"})
    with pytest.raises(ConfigError, match=r"preprocess.crop must be none. Got body"):
        recipe(preprocess={"crop": "body"})
    with pytest.raises(ConfigError, match=r"outputs \['cls', 'volume'\]"):
        recipe(outputs={"keep": ["cls", "volume"]})
    with pytest.raises(ConfigError, match=r"raptor makes the output `volume`|nothing beside it"):
        recipe(outputs={"keep": ["cls"], "raptor": {"numbers": 5}})
    with pytest.raises(ConfigError, match=r"numbers must be at most the \d+ features of a patch"):
        recipe(outputs={"keep": ["volume"], "raptor": {"numbers": 10**8}})


def test_a_volume_is_shrunk_along_its_longer_axes_alone() -> None:
    voxels = np.arange(8 * 4 * 2, dtype=np.float32).reshape(8, 4, 2)
    how = VolumeInput(fit="shrink", size=(4, 4, 4), window=(0, 64))
    (x,) = network_input(Volume(voxels, None, is_ct=True), how)
    assert x.shape == (1, 1, 4, 4, 2)
    np.testing.assert_allclose(x[0, 0] * 64, voxels.reshape(4, 2, 4, 2).mean(axis=1))


# --- what a network sees -------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_of_any_plane_are_one_volume(plane: Any) -> None:
    from pipeline.io.formats.planes import AXIS, cut

    voxels = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    shown = [cut(voxels, plane, k) for k in range(voxels.shape[AXIS[plane]])]
    spacing = {"axial": ((2, 1), 3), "coronal": ((3, 1), 2), "sagittal": ((3, 2), 1)}[plane]
    volume = stacked(shown, plane, *spacing, is_ct=True)  # type: ignore[arg-type]
    assert (volume.voxels == voxels).all()
    assert volume.spacing_mm == (1, 2, 3)


def test_windows_cover_a_volume_to_its_end() -> None:
    starts = list(window_starts((40, 16, 20), (16, 16, 16), 0.5))
    assert starts == [(x, 0, z) for x in (0, 8, 16, 24) for z in (0, 4)]


def test_an_input_is_what_monai_makes_of_a_volume() -> None:
    from monai.data import MetaTensor
    from monai.transforms import (
        CenterSpatialCrop,
        CropForeground,
        Orientation,
        Resize,
        ScaleIntensityRange,
        Spacing,
        SpatialPad,
    )

    rng = np.random.default_rng(3)
    voxels = rng.normal(-400, 500, (24, 20, 10)).astype(np.float32)
    voxels[:3] = -1024
    volume = Volume(voxels, (1.0, 1.0, 2.0), is_ct=True)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    image = MetaTensor(torch.from_numpy(voxels)[None], affine=affine)
    how = VolumeInput(crop_above=-1000, fit="resize", size=(16, 16, 8), window=(-1000, 200))
    (ours,) = network_input(volume, how)
    cropped = CropForeground(select_fn=lambda x: x > -1000)(image)
    theirs = ScaleIntensityRange(-1000, 200, 0, 1, clip=True)(
        Resize((16, 16, 8), mode="area")(cropped)
    )
    torch.testing.assert_close(ours[0], theirs.as_tensor(), atol=1e-5, rtol=0)
    how = VolumeInput(
        axes="SPL", spacing_mm=(3.0, 1.5, 1.5), fit="pad", size=(8, 12, 20), window=(-1000, 1000)
    )
    (ours,) = network_input(volume, how)
    turned = Orientation("SPL", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    spaced = Spacing((3.0, 1.5, 1.5), mode="bilinear")(turned)
    scaled = ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)(spaced)
    fitted = CenterSpatialCrop((8, 12, 20))(SpatialPad((8, 12, 20))(scaled))
    torch.testing.assert_close(ours[0], fitted.as_tensor(), atol=1e-4, rtol=0)


def test_other_modalities_have_their_own_percentiles() -> None:
    voxels = np.linspace(0, 5000, 1000, dtype=np.float32).reshape(10, 10, 10)
    how = VolumeInput(size=(10, 10, 10), window=(-1000, 200), percentiles=(10, 90))
    (x,) = network_input(Volume(voxels, None, is_ct=False), how)
    assert float((x <= 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((x >= 1).float().mean()) == pytest.approx(0.1, abs=0.01)

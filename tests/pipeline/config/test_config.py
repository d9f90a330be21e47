from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.loading import load_config
from pipeline.config.modalities import modality_code
from pipeline.recipe import (
    XRAY_MODALITIES,
    Architecture,
    PatchTokens,
    Preprocess,
    Recipe,
    Window,
    recipe_of,
)
from stores import ArraySpec, FeatureStore
from stores.errors import ConfigError, CorruptStoreError

MINIMAL = "data: {root: images}\nstore: store\n"
VIT = Architecture(dim=384, depth=12, heads=6)
RANDOM = "random:0"


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_the_store_can_be_overridden(tmp_path: Path) -> None:
    text = MINIMAL + "labels: {file: ../labels.csv}\nbackbone: {weights: w.pth}\n"
    config = load_config(write(tmp_path, text))
    assert config.data.root == tmp_path / "images"
    assert config.store == tmp_path / "store"
    assert config.labels is not None
    assert config.labels.file == tmp_path.parent / "labels.csv"
    assert config.backbone.weights == str(tmp_path / "w.pth")
    assert load_config(tmp_path / "c.yaml", Path("elsewhere")).store == Path("elsewhere")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").glob("demo*.yaml")))
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.tasks or config.masks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "taks: {}", "taks: unknown key. Did you mean 'tasks'?"),
        (
            "data: {root: x, exlude: [a]}\nstore: s",
            "data.exlude: unknown key. Did you mean 'exclude'?",
        ),
        (MINIMAL + "tasks: {a: {lables: [b]}}", "tasks.a.lables: .*Did you mean 'labels'?"),
        (
            MINIMAL + "backbone: {quux: 1}",
            "backbone.quux: unknown key. Known here: image_size, name",
        ),
        ("data: {root: x}", "store: must be given$"),
        (MINIMAL + "preprocess: {ct: {low: 5, high: 1}}", "low < high. Got low=5.0 and high=1.0"),
        (MINIMAL + "split: {folds: 2}", "greater than or equal to 3 .*got 2"),
        (
            "data: {root: x, exclude: '**/x/**'}\nstore: s",
            r"data.exclude: must be a list, such as \['\*\*/x/\*\*'\] \(got '\*\*/x/\*\*'\)$",
        ),
        (MINIMAL + "tasks: {a: {labels: covid}}", r"labels: must be a list, such as \[covid\] "),
        (MINIMAL + "tasks: {a: [b]}", r"tasks.a: must be keys with values \(got \['b'\]\)"),
        (MINIMAL + "labels: l.csv", "labels: must be keys with values "),
        ("data: {root: x, modality: CT}\nstore: s", "modality: must be keys with values "),
        (MINIMAL + "split: {folds: many}", "split.folds: must be a whole number .got 'many'"),
        (MINIMAL + "split: {folds: 3.5}", "split.folds: must be a whole number .got 3.5"),
        (MINIMAL + "demo: {patients: 3, seed: [1]}", "demo.seed: must be a whole number "),
        (MINIMAL + "data_: 1", "unknown key"),
        (
            MINIMAL + "tasks: {a: {labels: [b], level: region, region: {masks: lung}}}",
            r"[^:]: Task a must name masks of the config. Got 'lung' instead; [^(]*$",
        ),
        (
            MINIMAL + "tasks: {t: {labels: [a], operating_point: {sensitivty: 0.9}}}",
            r": tasks.t.operating_point.sensitivty: unknown key. Did you mean 'sensitivity'\?$",
        ),
        (
            MINIMAL + "tasks: {t: {labels: [a], operating_point: yuden}}",
            ": tasks.t.operating_point: must be one of 'youden' or 'likeliest', or keys with "
            r"values \(got 'yuden'\)$",
        ),
        (
            MINIMAL + "tasks: {t: {labels: [a], operating_point: {sensitivity: high}}}",
            r": tasks.t.operating_point.sensitivity: must be a number \(got 'high'\)$",
        ),
        (
            MINIMAL + "tasks: {t: {labels: [a], operating_point: {}}}",
            "^[^\n]*: tasks.t.operating_point: An operating point reaches [^\n]*$",
        ),
        (MINIMAL + "tasks: {1: {labels: [a]}}", r": tasks: a key must be text.*quotes.*got 1\)$"),
        (MINIMAL + "tasks: {no: {labels: [a]}}", ": tasks: a key must be text.*got False"),
        (MINIMAL + "1: 2", ": the config: a key must be text.*got 1"),
        ("data: {root: x, paths: show}\nstore: s", "paths: must be one of 'hide' or 'keep' "),
        ("data: {root: x, patient: 7}\nstore: s", "data.patient: must be text "),
        (
            MINIMAL + "outputs: {raptor: {planes: [axiall]}}",
            "^[^\n]*: outputs.raptor.planes.0: must be one of [^\n]*'axiall'[^\n]*$",
        ),
        (MINIMAL + "outputs: {raptor: {planes: []}}", "planes: must have at least 1 item"),
        (MINIMAL + "data: [", "not YAML"),
        ("hello", "must hold keys and values"),
        ("data: {root: x, patient: 'p(['}\nstore: s", "data.patient: patient must be a regular"),
        ("data: {root: x, patient: 'p'}\nstore: s", "exactly one group. Got 'p'"),
        (MINIMAL + "store: other", "the key 'store' stands twice, in lines 2 and 3: keep one"),
        ("data:\n  root: a\n  root: b\nstore: s", "key 'root' stands twice, in lines 2 and 3"),
        ("data: {root: x, modality: {'**': MRI}}\nstore: s", "'MRI' is no modality .* 'MR'"),
        ("data: {root: x, modality: {'**': Xray}}\nstore: s", "'Xray' is no modality .* 'DX'"),
        (
            "data: {root: x, modality: {'**': quux}}\nstore: s",
            "no modality .* MRI is MR, others OT",
        ),
    ],
)
def test_a_wrong_config_is_said_in_one_plain_message(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(write(tmp_path, text))


def test_a_modality_is_a_code_whatever_its_case(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, "data: {root: x, modality: {a: ct, b: ' Mr ', c: DX}}\nstore: s")
    )
    assert config.data.modality == {"a": "CT", "b": "MR", "c": "DX"}
    for known in XRAY_MODALITIES:
        assert modality_code(known) == known


def test_merged_keys_are_no_repeated_ones(tmp_path: Path) -> None:
    text = "tasks:\n  a: &a {labels: [x], level: image}\n  b: {<<: *a, level: patient}\n" + MINIMAL
    tasks = load_config(write(tmp_path, text)).tasks
    assert (tasks["b"].labels, tasks["b"].level) == (("x",), "patient")


def test_a_missing_config_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


# --- the recipe -------------------------------------------------------------------------------


def test_equal_values_have_equal_digests_however_they_were_written() -> None:
    by_edges = Preprocess.model_validate({"ct": {"low": -160, "high": 240}})
    by_centre = Preprocess.model_validate({"ct": {"center": 40, "width": 400}})
    assert by_edges.ct == by_centre.ct == Window(low=-160, high=240)
    one = Recipe(architecture=VIT, weights=RANDOM, preprocess=by_edges)
    other = Recipe(architecture=VIT, weights=RANDOM, preprocess=by_centre)
    assert one.digest == other.digest
    assert Recipe.model_validate_json(one.canonical()) == one


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "random:1"},
        {"image_size": 518},
        {"blocks": 1},
        {"outputs": ("cls",)},
        {"dtype": "float32"},
        {"preprocess": Preprocess(ct=Window(low=0, high=1))},
        {"outputs": ("cls", "mean", "patch"), "patch": PatchTokens(blocks=5)},
        {"architecture": Architecture(dim=384, depth=12, heads=6, mean=(0, 0, 0))},
    ],
)
def test_every_field_is_in_the_digest(change: dict[str, object]) -> None:
    plain = Recipe(architecture=VIT, weights=RANDOM)
    assert Recipe(**{"architecture": VIT, "weights": RANDOM, **change}).digest != plain.digest


def test_the_recipe_of_a_store_is_parsed_once(tmp_path: Path) -> None:
    recipe = Recipe(architecture=VIT, weights=RANDOM, preprocess=Preprocess(plane="axial"))
    arrays = {"mean": ArraySpec((6,), "float16")}
    store = FeatureStore.create(tmp_path / "store", recipe.canonical(), arrays, 8)
    assert recipe_of(store) == recipe
    assert recipe_of(FeatureStore.open(store.path)) is recipe_of(store)


@pytest.mark.parametrize("text", ['{"preprocess": true}', "[]", '{"outputs": [NaN]}', "5"])
def test_a_recipe_of_a_stranger_is_corrupt(tmp_path: Path, text: str) -> None:
    arrays = {"mean": ArraySpec((6,), "float16")}
    store = FeatureStore.create(tmp_path / "store", text, arrays, 8)
    with pytest.raises(CorruptStoreError, match="is no recipe of this version"):
        recipe_of(store)


def test_patch_tokens_as_ever_leave_the_digest_as_it_was() -> None:
    plain = Recipe(architecture=VIT, weights=RANDOM, outputs=("patch",))
    assert "patch" not in json.loads(plain.canonical())
    digests = {
        Recipe(architecture=VIT, weights=RANDOM, outputs=("patch",), patch=how).digest
        for how in (
            PatchTokens(),
            PatchTokens(blocks=5),
            PatchTokens(coding="int8"),
            PatchTokens(pool=2),
        )
    }
    assert len(digests) == 4
    assert plain.digest in digests


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": PatchTokens(pool=2)}, "outputs.keep has none. Got .*cls.* add patch"),
        (
            {"outputs": ("patch",), "patch": PatchTokens(blocks=13)},
            "outputs.patch.blocks must be at most the depth 12. Got 13",
        ),
        (
            {"outputs": ("patch",), "image_size": 518, "patch": PatchTokens(pool=2)},
            r"divide the 37 x 37 patches .* 518 px. Got 2 instead; these do: \[1, 37\]",
        ),
        ({"image_size": 225}, "multiple of the patch size 14. Got 225 instead; .* 224 and 238"),
        ({"blocks": 13}, "at most the depth 12. Got 13"),
        ({"outputs": ()}, "one or more"),
        ({"outputs": ("cls", "cls")}, "each once"),
        ({"weights": "my-model"}, "weights"),
    ],
)
def test_a_recipe_is_validated_when_made(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recipe(**{"architecture": VIT, "weights": RANDOM, **change})


def test_random_weights_are_known_as_such() -> None:
    assert Recipe(architecture=VIT, weights=RANDOM).random
    assert not Recipe(architecture=VIT, weights="sha256:" + "0" * 64).random


def test_a_recipe_of_patches_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="patch"):
        Architecture(dim=384, depth=12, heads=6, patch=0)

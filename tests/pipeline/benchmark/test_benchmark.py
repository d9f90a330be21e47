"""A benchmark of real files: killed and resumed, one table, one page; what fails is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import t as student
from typer.testing import CliRunner

from benchmarks import resumed
from pipeline.benchmark.collect import Entry, gather
from pipeline.benchmark.page import _layouts, published_text, write_benchmark
from pipeline.benchmark.paired import dice_apart, of_units
from pipeline.benchmark.published import PUBLISHED, published
from pipeline.benchmark.run import Planned, on_file, plan_of, run
from pipeline.benchmark.settings import FROM_SCRATCH, Setting, cells_of, load_benchmark
from pipeline.cli import app
from pipeline.commands.benchmark import _faults
from pipeline.config.tasks import Task
from pipeline.datasets.describing import describe
from pipeline.datasets.known import DATASETS
from pipeline.datasets.volumes import AMOS_ORGANS
from pipeline.datasets.xrays import NIH_FINDINGS, NIH_LABELS
from pipeline.evaluation.metrics.ranking import critical_difference, ranking
from pipeline.extraction.embed import Speed
from pipeline.extraction.recipes import make_recipe
from pipeline.results import Metric, Result, Score, Segmented
from stores.errors import ConfigError, LabelError
from tests.pipeline import layouts

ROOT = Path(__file__).parents[3]
SPEED = Speed(device="cpu", workers=0)


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark file whose run was killed and then ended."""
    sets = {
        "montgomery": lambda root: layouts.montgomery(root, 16),
        "msd-spleen": lambda root: layouts.decathlon(root, "spleen", 1),
    }
    root = tmp_path_factory.mktemp("benchmark")
    file = resumed.prepare(root, sets)
    before = resumed.kill_after(file, root / "out", 4)
    command = ["benchmark", str(file), "--json", "--device", "cpu", "--workers", "0"]
    last = CliRunner().invoke(app, command)
    assert last.exit_code == 0, last.output
    (root / "told.json").write_text(json.dumps([before, json.loads(last.stdout)]))
    return file


def test_nothing_is_computed_twice(finished: Path) -> None:
    before, last = json.loads((finished.parent / "told.json").read_text())
    now = resumed.done(finished.parent / "out")
    answers = resumed.answers_of(now)
    assert len(answers) == 3 * (4 + 2 + 2)  # four settings and two of masks; masks alone
    kept = resumed.answers_of(before)
    assert len(kept) >= 4
    assert len(kept) + sum(cell["computed"] for cell in last["cells"]) == len(answers)
    assert {path: tuple(stamp) for path, stamp in before.items()}.items() <= now.items()
    cells = cells_of(load_benchmark(finished))
    outcomes = run(cells, SPEED, silent)
    assert all(o.answers and not o.computed and not o.embedded and not o.fault for o in outcomes)
    assert resumed.done(finished.parent / "out") == now


def test_the_plan_tells_what_is_there_and_writes_nothing(finished: Path, tmp_path: Path) -> None:
    asked = load_benchmark(finished)
    planned = plan_of(cells_of(asked))
    assert len(planned) == 9
    assert all(p.answered == p.cells and p.embed == 0 and p.hours == 0 for p in planned)
    elsewhere = asked.model_copy(update={"out": tmp_path / "out"})
    planned = plan_of(cells_of(elsewhere))
    assert [(p.embed, p.answered) for p in planned[:2]] == [(16, 0), (16, 0)]
    assert {p.embed for p in planned if p.dataset == "msd-spleen"} == {24}
    assert not (tmp_path / "out").exists()


def test_the_table_has_every_number_with_its_origin(finished: Path) -> None:
    out = finished.parent / "out"
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert {row["setting"] for row in table} == {*resumed.SETTINGS}
    assert {row["backbone"] for row in table} == {"tiny", "registers", "shallow"}
    for cell in cells_of(load_benchmark(finished)):
        (answer,) = on_file(cell)
        about = {"dataset": cell.dataset, "backbone": cell.backbone, "setting": cell.setting}
        own = [row for row in table if about.items() <= row.items()]
        numbers = [m.value for score in answer.scores for m in score.metrics.values()]
        numbers += [
            m.value for s in answer.scores for own_ in s.labels.values() for m in own_.values()
        ]
        assert sorted(row["value"] for row in own) == pytest.approx(sorted(numbers), nan_ok=True)
        assert {row["key"] for row in own} == {answer.provenance.key}
        assert all(row["published"] is None for row in own)  # of these networks there is none


def test_the_plan_tells_a_fault_of_many_stores_once() -> None:
    def line(dataset: str, store: str, fault: str) -> Planned:
        return Planned(store, dataset, "L", 0, 0, None, 1, 0, None, fault)

    absent = "the weights are not here"
    planned = [line("nih", "L-224", absent), line("nih", "L-448-tokens", absent)]
    planned += [line("amos", "L-224", absent), line("sars", "L-224", "")]
    planned += [line("sars", "L-448-tokens", "SAM takes 1024")]
    assert _faults(planned) == [f"nih by L, amos by L: {absent}", "sars by L: SAM takes 1024"]


def test_pairs_ranks_and_page(finished: Path) -> None:
    asked = load_benchmark(finished)
    outcomes = run(cells_of(asked), SPEED, silent)
    found = gather(outcomes)
    assert len(found.tests) == 3 * (3 + 4)  # pairs in three settings, two of two masks; no episodes
    for test in found.tests:
        # Montgomery's test has one healthy patient, which DeLong's test says nothing of.
        assert test.paired.p is not None or test.question.task == "tuberculosis"
        assert (test.p_holm is None) == (test.paired.p is None)
        assert (test.p_holm or 1) >= (test.paired.p or 0)
        one, two = (
            found.scores[test.question][name].metric.value for name in (test.first, test.second)
        )
        assert test.paired.difference.value == pytest.approx(two - one, abs=1e-6)
    assert set(found.mean_ranks) == {*resumed.SETTINGS}
    assert all(sum(own.values()) == pytest.approx(6) for own in found.mean_ranks.values())
    assert found.ranking.blocks == 3
    _, page = write_benchmark(asked, outcomes)
    text = page.read_text()
    assert "RANDOM WEIGHTS" not in text  # these networks have weights of their own
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "critical difference" in text
    assert "published" not in text.partition("<main")[2].partition("How it was made")[0]
    for name in ("results.md", "results.tex", "results.csv", "cost.png", "ranks.svg"):
        assert (page.parent / name).stat().st_size > 100


def test_patients_are_paired_by_the_test_units_whatever_they_are_called() -> None:
    def units(patients: str, dice: list[float]) -> pa.Table:
        return pa.table({"patient": list(patients), "dice": pa.array(dice, pa.float64())})

    nan = float("nan")
    one, two = units("dbbca", [0.1, 0.2, 0.4, nan, 0.9]), units("wxxyz", [0.2, 0.3, 0.5, 0.0, nan])
    # c is undefined in the first, and z in the second: by order alone, others would be paired.
    difference, _ = dice_apart(one, two)
    assert difference.value == pytest.approx(0.1)
    same, p = dice_apart(one, one)
    assert p == 1
    # Others may differ by as much as three patients without a difference allow.
    assert same.low == pytest.approx(-0.56, abs=0.01)
    assert same.high == -same.low
    # Of four patients: Student's distribution of three degrees of freedom, not a bootstrap's.
    rising = units("dbbca", [0.1, 0.2, 0.4, 0.3, 0.9]), units("wxxyz", [0.2, 0.4, 0.6, 0.3, 0.7])
    paired, _ = dice_apart(*rising)
    apart = np.array([0.1, 0.2, 0.0, -0.2])
    reach = student.ppf(0.975, 3) * apart.std(ddof=1) / 2
    assert paired.low == pytest.approx(apart.mean() - reach, abs=0.02)
    assert paired.high == pytest.approx(apart.mean() + reach, abs=0.02)
    with pytest.raises(LabelError, match="other test patients"):
        dice_apart(one, units("wxyyz", [0.2, 0.3, 0.5, 0.0, nan]))
    with pytest.raises(LabelError, match="by both"):
        dice_apart(units("a", [nan]), units("b", [0.5]))


def test_rows_of_units_are_taken_in_the_order_of_the_pairs() -> None:
    table = pa.table({"unit": list("abcabc"), "structure": list("kkklll"), "dice": range(6)})
    taken = of_units(table, np.array([2, 0]))
    assert taken["unit"].to_pylist() == ["c", "a", "c", "a"]
    assert taken["dice"].to_pylist() == [2, 0, 5, 3]


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(finished: Path, tmp_path: Path) -> None:
    asked = yaml.safe_load(finished.read_text())
    root = finished.parent
    asked["out"] = str(tmp_path / "out")
    montgomery = str(root / "sets/montgomery/config.yaml")
    asked["datasets"] = {"montgomery": montgomery, "nih": str(tmp_path / "nowhere.yaml")}
    asked["backbones"] = {
        "absent": {"name": "dinov2_vits14", "weights": str(tmp_path / "no.pth")},
        "tiny": {"name": f"hf:{root / 'networks/tiny'}", "image_size": 56},
    }
    shots = {"method": "fewshot", "options": {"shots": [1], "queries": 500}}
    asked["settings"] = {"kNN": asked["settings"]["kNN"], "too few": shots}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(asked))
    cells = cells_of(load_benchmark(tmp_path / "b.yaml"))
    outcomes = {outcome.cell.name: outcome for outcome in run(cells, SPEED, silent)}
    assert "no.pth" in outcomes["montgomery/absent/kNN/0"].fault
    assert "no.pth" in outcomes["montgomery/absent/too few/0"].fault
    assert outcomes["montgomery/tiny/kNN/0"].answers
    found, page = write_benchmark(load_benchmark(tmp_path / "b.yaml"), list(outcomes.values()))
    assert "montgomery/absent/kNN/0" in page.read_text()
    assert "not there: nih" in page.read_text()
    assert "answered by all" in found.ranking.unable


def test_a_seed_that_changes_nothing_is_not_asked_twice(tmp_path: Path) -> None:
    sets = {"medmnist": lambda root: layouts.medmnist(root / "breastmnist.npz")}
    file = resumed.prepare(tmp_path, sets, seeds=(0, 1))
    cells = cells_of(load_benchmark(file), only=("*/tiny/kNN/*",))
    cells += cells_of(load_benchmark(file), only=("*/tiny/few-shot/*",))
    outcomes = run(cells, SPEED, silent)
    assert [outcome.computed for outcome in outcomes] == [1, 0, 1, 1]
    seeds = {
        question.setting: own["tiny"].seeds
        for question, own in gather(outcomes).scores.items()
        if question.ranked
    }
    assert seeds == {"kNN": 1, "few-shot": 2}


def test_pairs_of_data_sets_stand_beside_what_the_second_says_of_itself(tmp_path: Path) -> None:
    sets = {"medmnist": lambda root: layouts.medmnist(root / "breastmnist.npz")}
    file = resumed.prepare(tmp_path, sets)
    layouts.medmnist(tmp_path / "other" / "breastmnist.npz", seed=100)
    other = describe("medmnist", tmp_path / "other", tmp_path / "sets" / "other")
    content = yaml.safe_load(file.read_text()) | {"pairs": ["there -> here"]}
    here = content["datasets"]["medmnist"]
    content["datasets"] = {"here": here, "there": str(other.config)}
    content["backbones"] = {"tiny": content["backbones"]["tiny"]}
    content["settings"] = {"kNN": content["settings"]["kNN"]}
    file.write_text(yaml.safe_dump(content))
    settings = load_benchmark(file)
    cells = cells_of(settings)
    assert [cell.name for cell in cells][-1] == "there->here/tiny/kNN/0"
    outcomes = run(cells, SPEED, silent)
    assert [outcome.fault for outcome in outcomes] == [""] * 3
    (gathered, page) = write_benchmark(settings, outcomes)
    (across,) = gathered.across
    own, theirs, pair = (outcome.answers[0] for outcome in outcomes)
    assert pair.counts == {**theirs.counts, "test": own.counts["test"]}
    assert (across.fitted, across.question.dataset, across.backbone) == ("there", "here", "tiny")
    assert across.home is not None
    assert across.difference is not None
    assert across.difference.value == pytest.approx(across.away.value - across.home.value)
    assert set(gathered.tidy["dataset"].to_pylist()) == {"here", "there", "there->here"}
    # It is of the same test units as the second's own: no block of the ranking.
    assert {question.dataset for question in gathered.scores} == {"here", "there"}
    assert "From one data set to another" in page.read_text()
    assert "| there |" in (page.parent / "results.md").read_text()
    assert run(cells, SPEED, silent)[-1].computed == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"a": {"method": "knn", "options": {"neighbours": 3}}}}, "no option 'neighb"),
        ({"settings": {"a": {"method": "knn", "options": {"k": [0]}}}}, "options.k.0"),
        ({"settings": {"a": {"method": "knn", "of": "masks"}}}, "knn is not asked of masks"),
        (
            {"settings": {"a": {"method": "segment", "of": "tasks"}}},
            "segment is not asked of tasks",
        ),
        ({"settings": {"a/b": {"method": "knn"}}}, "one part of a path"),
        ({"sedes": [1]}, "Did you mean 'seeds'"),
        ({"pairs": ["a"]}, "names two data sets, as `a -> b`. Got 'a' instead"),
        ({"pairs": ["a -> c"]}, "The pair a->c names no data set 'c'. There are a"),
        ({"datasets": {"nih": "nowhere.yaml"}}, "radprobe dataset"),
    ],
)
def test_a_mistake_in_the_file_is_told(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "data.yaml").write_text("data: {root: x}\nstore: s\ntasks: {a: {labels: [a]}}\n")
    asked = {"out": "out", "datasets": {"a": "data.yaml"}, "backbones": {"b": {"name": "b"}}}
    asked |= {"settings": {"k": {"method": "knn"}}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(asked | change))
    with pytest.raises(ConfigError, match=said):
        cells_of(load_benchmark(tmp_path / "b.yaml"))


def test_globs_that_fit_no_cell_are_refused(finished: Path) -> None:
    assert len(cells_of(load_benchmark(finished), only=("*/tiny/kNN/*",))) == 1
    with pytest.raises(ConfigError, match="dataset/backbone/setting/seed"):
        cells_of(load_benchmark(finished), only=("tiny/*",))


def test_the_papers_file_can_be_read() -> None:
    asked = load_benchmark(ROOT / "configs/paper.yaml")
    assert asked.datasets.keys() >= {"nih", "amos", "msd-spleen"}
    known = {p.backbone for p in PUBLISHED} - {FROM_SCRATCH}
    assert known <= {b.name for b in asked.backbones.values()}
    assert known == {
        "dinov2_vitl14",
        "dinov2_vitg14",
        "vit_large_in21k",
        "resnet_152",
        "densenet_201",
        "vgg_19",
    }


def test_every_store_of_the_papers_file_can_be_embedded(tmp_path: Path) -> None:
    layouts.montgomery(tmp_path / "set", images=4)  # of tasks and of masks
    described = describe("montgomery", tmp_path / "set", tmp_path / "montgomery")
    asked = load_benchmark(ROOT / "configs/paper.yaml")
    # The weights are not here; shapes, sizes and outputs are those of the file.
    networks = {
        name: network.model_copy(update={"weights": "random:0"})
        for name, network in asked.backbones.items()
    }
    update = {"datasets": {"montgomery": described.config}, "backbones": networks}
    cells = cells_of(asked.model_copy(update=update))
    stores = {cell.config.store: cell.config for cell in cells}
    # Of slices seen either way, and of patch tokens at both sizes; SAM takes one alone, and shares
    # those.
    assert len(stores) == 4 * len(networks) - 1
    from_scratch = [cell.name for cell in cells if cell.backbone == FROM_SCRATCH]
    assert from_scratch == [
        f"montgomery/from scratch/{name}/{seed}"
        for name in ("U-Net", "TransUNet")
        for seed in range(3)
    ]
    assert not any("ML-kNN" in cell.name for cell in cells)  # of NIH and CheXpert alone
    for config in stores.values():
        recipe, _ = make_recipe(config)  # refuses what does not fit the network
        assert recipe.patch.blocks in (1, 5)


def test_what_is_trained_on_images_alone_stands_once_and_in_no_rank(
    finished: Path, tmp_path: Path
) -> None:
    """Beside answers of networks that are on file: the one that is trained alone is computed."""
    file = Path(shutil.copytree(finished.parent, tmp_path / "copy"), finished.name)
    unet = {"method": "unet", "size": "small", "epochs": 1, "learning_rates": [1e-2]}
    settings = {
        "U-Net": Setting.model_validate({"method": "segment", "options": unet}),
        "segmentation": Setting.model_validate(
            {"method": "segment", "options": resumed.SETTINGS["segmentation"]["options"]}
        ),
    }
    asked = load_benchmark(file)
    montgomery = {"montgomery": asked.datasets["montgomery"]}
    cells = cells_of(asked.model_copy(update={"settings": settings, "datasets": montgomery}))
    names = [cell.name for cell in cells]
    assert names.count("montgomery/from scratch/U-Net/0") == 1
    assert len(names) == 4
    outcomes = run(cells, SPEED, silent)
    assert [outcome.computed for outcome in outcomes] == [1, 0, 0, 0]
    gathered = gather(outcomes)
    assert gathered.backbones == ("tiny", "registers", "shallow")
    assert gathered.columns == ("from scratch", *gathered.backbones)
    lines = {layout.setting: layout.lines for layout in _layouts(gathered)}
    assert [name for name, _ in lines["U-Net"]] == ["from scratch"]
    assert [name for name, _ in lines["segmentation"]] == [*gathered.backbones]
    assert gathered.mean_ranks.keys() == {"segmentation"}
    alone = gather(run(cells[:1], SPEED, silent))
    assert alone.backbones == ()
    assert [name for name, _ in _layouts(alone)[0].lines] == ["from scratch"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"method": "knn", "datasets": ["msd-heart"]}, "names no data set 'msd-heart'"),
        ({"method": "knn", "preprocess": {"aspect": "round"}}, "aspect"),
        ({"method": "knn", "preprocess": {"view": "noise"}}, "`views`"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    content = {
        "out": "out",
        "datasets": {"montgomery": "montgomery.yaml"},
        "backbones": {"S": {"name": "dinov2_vits14"}},
        "settings": {"kNN": setting},
    }
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=said):
        load_benchmark(tmp_path / "b.yaml")


def labelled(method: str, labels: Sequence[str] = NIH_LABELS, draw: str = "paper") -> Result:
    return Result.model_construct(
        method=method, question=Task(labels=tuple(labels)), settings={"draw": draw}
    )


def outlined(method: str, *structures: str) -> Segmented:
    return Segmented.model_construct(method=method, classes=("background", *structures))


LUNGS = ("right lung", "left lung")
ALL = None  # patients


@pytest.mark.parametrize(
    ("dataset", "network", "answer", "shots", "image_size", "value"),
    [
        ("nih", "dinov2_vitl14", labelled("fewshot"), 16, 224, 0.601),
        ("nih", "dinov2_vitl14", labelled("linear"), ALL, 224, 0.763),
        ("nih", "dinov2_vitl14", labelled("frozen"), ALL, 224, 0.763),
        ("nih", "dinov2_vitl14", labelled("linear"), ALL, 448, None),
        ("nih", "dinov2_vitl14", labelled("fewshot", draw="episodes"), 16, 224, None),
        ("nih", "dinov2_vitl14", labelled("knn"), ALL, 224, None),
        # The published means are of 15 labels: beside a mean of 14 they would say something else.
        ("nih", "dinov2_vitl14", labelled("linear", NIH_FINDINGS), ALL, 224, None),
        # With the final norm, which the published figure was made without.
        ("nih", "vit_large_in21k", labelled("linear"), ALL, 224, None),
        ("chexpert", "dinov2_vitl14", labelled("linear"), ALL, 224, None),
        ("montgomery", "dinov2_vitl14", outlined("decoder", *LUNGS), 1, 448, 0.929),
        ("montgomery", "dinov2_vitl14", outlined("decoder", *LUNGS), 1, 224, None),
        ("montgomery", "dinov2_vitl14", outlined("decoder", "left lung"), 1, 448, None),
        ("montgomery", FROM_SCRATCH, outlined("unet", *LUNGS), 1, 448, 0.583),
        ("montgomery", "dinov2_vitl14", outlined("unet", *LUNGS), 1, 448, None),
        ("amos", "dinov2_vitg14", outlined("decoder", *AMOS_ORGANS), ALL, 448, 0.642),
        ("amos", "dinov2_vitg14", outlined("decoder", *AMOS_ORGANS[:-1]), ALL, 448, None),
    ],
)
def test_published_figures_stand_beside_the_same_question_alone(
    dataset: str,
    network: str,
    answer: Result | Segmented,
    shots: int | None,
    image_size: int,
    value: float | None,
) -> None:
    seen = published(dataset, network, answer, shots, image_size=image_size)
    assert (seen and seen.value) == value


def test_a_published_figure_is_held_against_what_it_measures() -> None:
    seen = published("montgomery", FROM_SCRATCH, outlined("unet", *LUNGS), 1, image_size=448)
    assert seen is not None
    dice, papers = Metric(value=0.8), Metric(value=0.9)
    metrics = {"dice": dice, "paper_dice": papers, "paper_jaccard": Metric(value=0.7)}
    score = Score.model_construct(metrics=metrics)
    assert seen.of_ours(score) == pytest.approx(0.8)
    assert seen.of_ours(Score.model_construct(metrics={"dice": dice})) is None
    entry = Entry(dice, 1, None, seen, 0.75, "")
    assert published_text(entry) == "published 0.583, here so measured 0.750"
    assert published_text(replace(entry, of_ours=0.8)) == "published 0.583"


def test_the_paper_s_task_of_nih_is_the_one_that_figures_were_published_of() -> None:
    nih = [frozenset(task["labels"]) for task in DATASETS["nih"].tasks.values()]
    assert {figure.labels for figure in PUBLISHED if figure.dataset == "nih"} < {*nih}


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_demsars(methods: int, q: float) -> None:
    """Table 5a of Demsar, JMLR 7 (2006)."""
    wanted = q * np.sqrt(methods * (methods + 1) / (6 * 12))
    assert critical_difference(methods, 12) == pytest.approx(wanted, rel=5e-4)


def test_ranks_that_lie_apart_are_told_apart() -> None:
    ranks = np.array([[3.0, 1.0, 2.0, 4.0]] * 12)
    found = ranking(("c", "a", "b", "d"), ranks)
    assert found.names == ("a", "b", "c", "d")
    assert found.p is not None
    assert found.critical is not None
    assert found.p < 1e-6
    assert 1 < found.critical < 2
    assert found.alike == ((0, 1), (1, 2), (2, 3))
    tied = ranking(("a", "b", "c"), np.full((4, 3), 2.0))
    assert tied.p == 1
    assert tied.alike == ((0, 2),)

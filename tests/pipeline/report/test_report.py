"""The report: its numbers against references, its words, and the page in a real browser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve
from typer.testing import CliRunner

from pipeline.annotations.units import Truth
from pipeline.cli import app
from pipeline.config.heads import DEFAULT_HEADS
from pipeline.config.loading import load_config
from pipeline.config.methods import Method
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics.metrics import score
from pipeline.evaluation.result_files import predicted_units, read_predictions, read_thresholds
from pipeline.fitted.fit import fit
from pipeline.fitted.model import Model
from pipeline.fitted.section import sections_of
from pipeline.report import curves
from pipeline.report.atlas import coded, draw_map
from pipeline.report.cases import task_cases
from pipeline.report.comparison import compare_sources, linear_cka, mutual_overlap
from pipeline.report.figures import task_figures
from pipeline.report.findings import findings
from pipeline.report.judged import Judged
from pipeline.report.page import Written, write_report
from pipeline.report.pictures import pictures
from pipeline.report.segmented import segmentation_figures
from pipeline.report.sources import open_sources, take_stock
from pipeline.report.tables import latex, lines_of, markdown, tables_of
from pipeline.report.wording import GLOSSARY, METRICS, interval, method_title
from pipeline.segment import segment
from stores.errors import ConfigError, ModelError, StoreNotFoundError, UnwritableError
from tests.phantoms import write_png
from tests.pipeline.collection import make_store, write_csv
from tests.pipeline.test_segment import write_volumes
from tests.pipeline.tokens import token_store

PATIENTS, EACH = 50, 2
N = PATIENTS * EACH


def collection(
    root: Path, seed: int, strength: float = 2.5, methods: Sequence[Method] = DEFAULT_HEADS
) -> Path:
    """Write pictures, labels, a store and its answers by some methods; return the config file.

    `sick` leans on the features, and so does `view`; `a` and `b` are multi-label. One picture is
    there under two patients.
    """
    rng = np.random.default_rng(0)
    patient = np.arange(N) // EACH
    sick = rng.integers(0, 2, PATIENTS)[patient]
    view, a, b = (rng.integers(0, 2, N) for _ in range(3))
    noise = np.random.default_rng(seed)
    cls = noise.standard_normal((N, 4, 16))
    cls[:, 3, 0] += strength * sick
    cls[:, 3, 1] += 6 * view
    images = np.arange(N) + 1
    images[10] = images[90]
    slices = [{"patient": f"SECRET-{p:03}", "height": 40, "width": 50} for p in patient]
    make_store(root / "store", cls, slices, images=images)
    for i in range(N):
        write_png(root / f"data/f{i}.png", rng.integers(0, 255, (40, 50), np.uint8))
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        sick=["sick" if s else "well" for s in sick],
        view=["AP" if v else "PA" for v in view],
        sex=["F" if p % 2 else "M" for p in patient],
        a=a,
        b=b,
    )
    config = {
        "title": "Ward <7>",
        "description": "Taken in 2024.",
        "data": {"root": "data", "paths": "keep"},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "split": {"allow": ["duplicates"]},
        "tasks": {
            "sick": {"labels": ["sick"], "subgroups": ["sex"], "shortcuts": ["view"]},
            "find<ings": {"labels": ["a", "b"]},
        },
        "knn": {"k": [3, 5]},
        "probe": {"steps": 5},
        "fewshot": {"episodes": 30, "shots": [1, 2]},
    }
    (root / "my.yaml").write_text(yaml.safe_dump(config))
    evaluate(load_config(root / "my.yaml"), methods)
    return root / "my.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collection(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collection(tmp_path_factory.mktemp("two"), 2, strength=0.5, methods=["probe"])


@pytest.fixture(scope="module")
def written(config: Path) -> Written:
    return write_report([config])


@pytest.fixture(scope="module")
def page(written: Written) -> str:
    return written.page.read_text("utf-8")


class Reader(HTMLParser):
    """What a page loads, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self._code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code = tag in ("script", "style")
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.ids += [v or "" for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        self._code = False

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- numbers ------------------------------------------------------------------------------------


def truth_of(seed: int, n: int = 60) -> tuple[Truth, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    p = np.clip(np.round(rng.normal(0.4 + 0.2 * y, 0.2), 2), 0, 1)  # with ties
    groups = np.array([f"p{i // 2}" for i in range(n)])
    return Truth(y, groups, ("no", "yes"), "binary"), np.stack([1 - p, p], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_those_of_scikit_learn(seed: int) -> None:
    truth, proba = truth_of(seed)
    roc = curves.roc(truth, proba, None, 1)
    assert roc is not None
    x, y, _ = roc_curve(truth.y, proba[:, 1], drop_intermediate=False)
    assert np.allclose(np.stack([roc.x, roc.y]), np.stack([x, y]))
    auroc = score(truth, proba)[0]["auroc"].value
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auroc, abs=1e-12)
    pr = curves.precision_recall(truth, proba, None, 1)
    assert pr is not None
    precision, recall, _ = precision_recall_curve(truth.y, proba[:, 1])
    assert np.allclose(
        np.stack([pr.x, pr.y])[:, 1:], np.stack([recall, precision])[:, :-1][:, ::-1]
    )


def test_the_band_holds_the_curve_and_a_label_of_one_side_has_none() -> None:
    truth, proba = truth_of(0, 400)
    roc = curves.roc(truth, proba, None, 1)
    assert roc is not None
    middle = np.interp(curves.GRID, roc.x, roc.y)
    assert ((roc.low <= middle + 1e-9) & (middle <= roc.high + 1e-9)).mean() > 0.95
    assert 0.02 < (roc.high - roc.low)[5:60].mean() < 0.4
    assert curves.roc(truth.at(truth.y == 1), proba[truth.y == 1], None, 1) is None


def test_curves_of_folds_are_averaged_not_pooled() -> None:
    truth, proba = truth_of(0, 200)
    fold = np.arange(200) // 2 % 2
    shifted = proba + 5 * fold[:, None]  # another model's scores, which do not compare
    one, two = (curves.roc(truth, p, fold, 1) for p in (proba, shifted))
    assert one is not None
    assert two is not None
    assert np.allclose(one.y, two.y)


def test_confusion_counts_every_unit_once() -> None:
    truth, proba = truth_of(1)
    counts = curves.confusion(truth, proba)
    called = proba.argmax(axis=1)
    for i in range(2):
        for j in range(2):
            assert counts[i, j] == ((truth.y == i) & (called == j)).sum()
    marks = Truth(np.array([[1], [0], [-1], [1]], np.int8), truth.groups[:4], ("a",), "multilabel")
    said = np.array([[0.9], [0.8], [0.9], [0.1]])
    half = np.full((4, 1), np.nan)
    assert curves.label_confusion(marks, said, half, 0).tolist() == [[0, 1], [1, 1]]
    points = np.full((4, 1), 0.85)
    assert curves.label_confusion(marks, said, points, 0).tolist() == [[1, 0], [1, 1]]


def test_likeness_of_spaces() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    other = rng.standard_normal((300, 5)).astype(np.float32)
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, other) < 0.1
    assert mutual_overlap(x, x @ turn, 10) > 0.99
    assert mutual_overlap(x, other, 10) == pytest.approx(10 / 299, abs=0.02)


def test_rare_words_are_other_and_none_is_none() -> None:
    words = [f"w{i}" for i in range(10) for _ in range(10 - i)] + [""]
    column = coded("x", words)
    assert column.values == (*(f"w{i}" for i in range(7)), "other")
    assert column.codes[0] == 0
    assert column.codes[-2] == 7
    assert column.codes[-1] == 255


def test_neighbours_are_the_nearest_of_other_patients(config: Path) -> None:
    (source,) = open_sources([config])
    atlas = draw_map(source)
    assert atlas is not None
    x = source.store.read("cls", source.rows)[:, -1].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    patient = np.arange(N) // EACH
    cosine[patient[:, None] == patient[None]] = -2
    assert np.allclose(atlas.cosine, -np.sort(-cosine, axis=1)[:, :6], atol=1e-5)
    labels = {column.name: column for column in atlas.columns}
    assert {"modality", "sick", "view", "sex", "a", "b"} <= labels.keys()
    assert labels["view"].values == ("AP", "PA")


def test_neighbours_are_of_other_patients_by_the_label_table(tmp_path: Path) -> None:
    """Patients of labels, also where a slice has no label and a header says another name."""
    slices = [{"patient": f"H{i}"} for i in range(12)]
    cls = np.random.default_rng(0).standard_normal((12, 4, 8))
    make_store(tmp_path / "store", cls, slices)
    write_csv(
        tmp_path / "labels.csv",
        path=[f"f{i}.png" for i in range(12)],
        who=[f"p{i // 3}" for i in range(12)],
        sick=["", *"01010101010"],
    )
    labels = {"file": "labels.csv", "patient": "who", "headers": "ignore"}
    config = {"data": {"root": "."}, "store": "store", "labels": labels}
    config["tasks"] = {"sick": {"labels": ["sick"]}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    (source,) = open_sources([tmp_path / "my.yaml"])
    atlas = draw_map(source)
    assert atlas is not None
    patient = np.arange(12) // 3
    assert (patient[atlas.pictured[atlas.nearest]] != patient[:, None]).all()
    assert take_stock(source).patients == 4


def test_a_patient_is_shown_by_slices_that_the_task_asks_about(tmp_path: Path) -> None:
    """Not by the chest X-ray that lies between those of his CT, which no head was asked about."""
    n = 60
    who = [f"p{i // 3}" for i in range(n)]
    slices = [{"patient": who[i], "modality": ("CT", "DX", "MR")[i % 3]} for i in range(n)]
    cls = np.random.default_rng(0).standard_normal((n, 4, 8))
    make_store(tmp_path / "store", cls, slices)
    sick = [i // 3 % 2 for i in range(n)]
    write_csv(tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(n)], sick=sick)
    task = {"labels": ["sick"], "level": "patient", "modality": ["MR"]}
    config = {"data": {"root": "."}, "store": "store", "labels": {"file": "labels.csv"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config | {"tasks": {"sick": task}}))
    evaluate(load_config(tmp_path / "my.yaml"), ["knn"])
    (source,) = open_sources([tmp_path / "my.yaml"])
    judged = Judged.of(source, source.results["sick", "knn"])
    assert judged is not None
    assert all(row % 3 == 2 for rows in judged.rows for row in rows)
    assert {len(rows) for rows in judged.rows} == {1}


# --- words --------------------------------------------------------------------------------------


def test_findings_say_what_may_undo_a_result(config: Path) -> None:
    (source,) = open_sources([config])
    said = {(f.kind, f.weight): f.text for f in findings(source, take_stock(source))}
    assert "RANDOM WEIGHTS" in said["weights", "warn"]
    leak = " ".join(text for (kind, _), text in said.items() if kind == "leakage")
    assert "1 picture exists" in leak
    assert "on two sides of the split of sick" in leak
    assert "The features tell view with an AUROC of" in said["shortcut", "warn"]


def test_a_copy_of_nobody_is_no_other_patient_and_shortcuts_wait_for_an_evaluation(
    config: Path,
) -> None:
    (source,) = open_sources([config])
    changed = dataclasses.replace(source)
    patients = source.patients.copy()
    patients[[10, 90]] = "", patients[10]
    changed.__dict__["patients"] = patients
    changed.__dict__["results"] = {
        name: result for name, result in source.results.items() if "/" not in name[0]
    }
    texts = [f.text for f in findings(changed, take_stock(changed))]
    (leak,) = [text for text in texts if "exists more than once" in text]
    # This is the report on the config: its labels do not say either.
    assert "a slice has no patient, in its header or in the labels" in leak
    assert not any("under more than one patient" in text for text in texts)
    (shortcut,) = [text for text in texts if "shortcut" in text]
    assert "`radprobe evaluate` asks whether the features tell view" in shortcut


def test_an_answer_of_an_earlier_store_is_called_stale(config: Path) -> None:
    (source,) = open_sources([config])
    changed = dataclasses.replace(source)
    changed.__dict__["fingerprint"] = "another"
    stale = [f for f in findings(changed, take_stock(changed)) if f.kind == "stale"]
    assert len(stale) == 1
    assert "sick by kNN" in stale[0].text
    assert [f for f in findings(source, take_stock(source)) if f.kind == "stale"] == []


def test_answers_of_other_labels_are_named_and_not_drawn(tmp_path: Path) -> None:
    make_store(
        tmp_path / "store",
        np.random.default_rng(0).standard_normal((60, 4, 16)),
        [{"patient": f"P{i}"} for i in range(60)],
    )
    paths = [f"f{i}.png" for i in range(60)]
    sick = [i % 2 for i in range(60)]
    (tmp_path / "data").mkdir()
    base = {"data": {"root": "data"}, "store": "store", "tasks": {"sick": {"labels": ["sick"]}}}
    configs = {}
    for name in ("first", "second"):
        write_csv(tmp_path / f"{name}.csv", path=paths, sick=sick)
        configs[name] = tmp_path / f"{name}.yaml"
        text = yaml.safe_dump({**base, "labels": {"file": f"{name}.csv"}})
        configs[name].write_text(text)
        sick = [0, 1, *sick[2:]][::-1]
    ((first, second), knn) = ((configs["first"], configs["second"]), ["knn"])
    own = evaluate(load_config(first), knn)[0]
    other = evaluate(load_config(second), knn)[0]
    assert own.provenance.labels != other.provenance.labels
    (source,) = open_sources([first])
    assert [r.provenance.key for r in source.results.values()] == [own.provenance.key]
    assert source.unfitting == []
    # The newest answer is of the other labels: a probe of these is not on file at all.
    evaluate(load_config(second), ["probe"])
    (source,) = open_sources([first])
    assert [r.provenance.key for r in source.results.values()] == [own.provenance.key]
    (said,) = [f.text for f in findings(source, take_stock(source)) if f.kind == "stale"]
    assert "sick by Linear probe" in said
    assert "kNN" not in said
    # Nor is there anything to evaluate again of a task that the config has no more.
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(first.read_text().replace("sick:", "ill:", 1))
    (source,) = open_sources([renamed])
    (said,) = [f.text for f in findings(source, take_stock(source)) if f.kind == "stale"]
    assert "what the config does not ask" in said
    assert "Evaluate again" not in said
    # Of a folder no config says which fit; `compare` takes of a config those that do.
    (folder,) = open_sources([tmp_path / "store"])
    assert {r.provenance.labels for r in folder.results.values()} == {other.provenance.labels}
    assert {r.method for r in folder.results.values()} == {"knn", "probe"}
    compared = CliRunner().invoke(
        app, ["compare", str(first), str(first), "--heads", "knn", "probe"]
    )
    assert "answered no task" in str(compared.exception)
    # A figure of a task never holds answers that were tested otherwise than its newest.
    mine = evaluate(load_config(first), ["probe"])[0]
    (folder,) = open_sources([tmp_path / "store"])
    assert [r.provenance.key for r in folder.results.values()] == [mine.provenance.key]
    (said,) = [f.text for f in findings(folder, take_stock(folder)) if f.kind == "stale"]
    assert "sick by kNN" in said


def test_tables_for_a_paper(config: Path, tmp_path: Path) -> None:
    lines = lines_of(open_sources([config]))
    rows = markdown(lines, random=True).splitlines()
    assert rows[0].startswith("**RANDOM WEIGHTS**")
    table = rows[2:]
    assert len(table) == len(lines) + 2
    assert len({row.count("|") for row in table}) == 1
    tex = latex(lines, random=True)
    body = tex.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)
    assert columns
    assert {line.count(" & ") + 1 for line in body} == {len(columns[1])}
    odd = dataclasses.replace(lines[0], task="50%_a&b")
    assert "50\\%\\_a\\&b" in latex([odd], random=False)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_whole_and_tells_nobody(page: str, config: Path, written: Written) -> None:
    read = Reader(page)
    assert [x for x in read.loads if not x.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(read.ids) == len(set(read.ids))
    for word in ("RANDOM WEIGHTS", "Before you believe it", "find<ings", "100 slices"):
        assert word in read.text
    (source,) = open_sources([config])
    for word in ("Ward <7>", "Taken in 2024.", f"embedded once by {source.network}"):
        assert word in read.text
    for note in {note for answer in source.answers for note in answer.notes}:
        assert read.text.count(" ".join(note.split())) == 1
    # the store keeps paths, as its config asks; the page tells none
    assert "f17.png" in source.slices["path"].to_pylist()
    for secret in ("SECRET", "f17.png", str(config.parent)):
        assert secret not in page
    assert written.pictures == N


def test_a_store_alone_has_no_pictures_and_says_why(tmp_path: Path) -> None:
    slices = [{"patient": f"P{i // 2}", "height": 40, "width": 50} for i in range(20)]
    cls = np.random.default_rng(0).standard_normal((20, 1, 8))
    make_store(tmp_path / "store", cls, slices)
    written = write_report([tmp_path / "store"], tmp_path / "deep/page.html")
    assert written.pictures == 0
    assert "a store does not know where its files are" in Reader(written.page.read_text()).text


def test_every_figure_is_a_file(modelled: Written) -> None:
    names = {path.name for path in modelled.figures}
    stems = {n.removesuffix(".svg") for n in names if n.endswith(".svg")}
    assert stems >= {"overview", "sick-curves", "sick-settings", "sick-subgroups", "find-ings-roc"}
    assert names == {f"{s}{x}" for s in stems for x in (".svg", ".png")} | {
        "results.md",
        "results.tex",
        *(f"short.{suffix}" for suffix in ("md", "tex", "csv", "html")),
    }
    folder = modelled.page.with_name("figures")
    for stem in stems:
        assert ET.parse(folder / f"{stem}.svg").getroot().tag.endswith("svg")
        with Image.open(folder / f"{stem}.png") as image:
            assert np.asarray(image.convert("L")).std() > 1


def test_a_star_marks_what_val_chose_and_of_shots_none(config: Path) -> None:
    (source,) = open_sources([config])
    (drawn,) = [each for each in task_figures(source, "sick") if each.title == "By setting"]
    stars = {}
    for axis in drawn.figure.axes:
        lines = [line for line in axis.lines if line.get_marker() == "*"]
        stars[axis.get_title(loc="left")] = [list(line.get_xdata()) for line in lines]
    chosen = source.results["sick", "knn"].main_score.setting["k"]
    assert stars == {"kNN": [[chosen]], "Few-shot": []}


def test_stores_side_by_side(config: Path, other: Path, tmp_path: Path) -> None:
    sources = open_sources([config, other.parent / "store"])
    assert len({s.name for s in sources}) == 2
    held = compare_sources(sources)
    sick = next(r for r in held.ranked if (r.task, r.method) == ("sick", "probe"))
    assert sick.ranks == (1.0, 2.0)
    (pair,) = held.pairs
    assert pair.shared == N - 1  # one picture is there twice
    assert pair.cka is not None
    assert 0 < pair.cka < 1
    found = next(d for r, d in pair.differences if (r.task, r.method) == ("sick", "probe"))
    assert found.difference.value == pytest.approx(sick.values[1].value - sick.values[0].value)
    written = write_report([config, other.parent / "store"], tmp_path / "two.html")
    text = Reader(written.page.read_text("utf-8")).text
    for word in ("Side by side", "linear CKA", "Mean rank"):
        assert word in text


def test_what_cannot_be_reported(config: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no feature store"):
        write_report([tmp_path / "none"])
    with pytest.raises(ConfigError, match="each store once"):
        write_report([config, config.parent / "store"])
    make_store(tmp_path / "bad", np.zeros((4, 1, 2)), [{}] * 4, status=np.full(4, 2))
    with pytest.raises(ConfigError, match="nothing to report"):
        write_report([tmp_path / "bad"])


def test_a_page_that_cannot_be_put_in_place_leaves_no_half(tmp_path: Path) -> None:
    make_store(tmp_path / "store", np.eye(8)[:, None], [{"patient": f"P{i}"} for i in range(8)])
    (tmp_path / "pages/page.html").mkdir(parents=True)
    with pytest.raises(UnwritableError):
        write_report([tmp_path / "store"], tmp_path / "pages/page.html")
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["page.html"]


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write the report of volumes that two heads segmented, in a store of patch tokens alone."""
    root = tmp_path_factory.mktemp("segmented")
    config = write_volumes(root)
    told = config.model_dump(mode="json", exclude_unset=True)
    told["segment"]["line"] = {"method": "linear", "learning_rates": [1.0], "epochs": 2}
    (root / "my.yaml").write_text(yaml.safe_dump(told))
    token_store(config)
    segment(load_config(root / "my.yaml"))
    return write_report([root / "my.yaml"], root / "page.html", root / "figures")


def test_segmentations_are_reported_as_other_answers_are(segmented: Written) -> None:
    read = Reader(segmented.page.read_text("utf-8"))
    for word in ("organ, segmented", "Few shots", "Overlays", "Training, s", "Paper's Jaccard"):
        assert word in read.text
    assert [x for x in read.loads if not x.startswith(("#", "data:"))] == []
    stems = {path.stem for path in segmented.figures if path.suffix == ".svg"}
    parts = ("structures", "patients", "overlays")
    assert stems == {f"organ-segmented-{part}" for part in parts}
    (source,) = open_sources([segmented.page.with_name("my.yaml")])
    lines = lines_of([source])
    assert {(line.method, line.setting) for line in lines} >= {("near", "patients = 1, draws = 6")}
    text = markdown(lines, random=True)
    assert all(
        f"{a.scores[-1].metrics['dice'].value:.3f}" in text for a in source.segmented.values()
    )
    changed = dataclasses.replace(source)
    changed.__dict__["fingerprint"] = "another"
    said = [f.text for f in findings(changed, take_stock(changed)) if f.kind == "stale"]
    assert "organ by near" in said[0]


def test_segmentations_without_their_images_have_no_overlays(segmented: Written) -> None:
    store = segmented.page.with_name("store")
    (source,) = open_sources([store])
    keys = [drawn.key for drawn in segmentation_figures(source, "organ")]
    assert keys == ["organ-segmented-structures", "organ-segmented-patients"]


# --- a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(config: Path) -> Model:
    return fit(load_config(config), config.parent / "sick-model", task="sick")


@pytest.fixture(scope="module")
def modelled(config: Path, model: Model) -> Written:
    """Return the report with a model and with its figures, as the command writes and tells it."""
    command = ["report", str(config), "--out", str(config.parent / "modelled.html")]
    command += ["--figures", str(config.parent / "figures"), "--model", str(model.path), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    figures = tuple(map(Path, told["figures"]))
    return Written(Path(told["page"]), told["bytes"], figures, told["pictures"])


def test_each_task_has_a_plain_sentence_on_top(page: str, config: Path) -> None:
    (source,) = open_sources([config])
    text = Reader(page).text
    top = text[: text.index("Before you believe it")]
    for task in ("sick", "find<ings"):
        metrics = source.results[task, "probe"].main_score.metrics
        patients = source.results[task, "probe"].counts["test"].patients
        by = method_title("probe").lower()
        assert f"{task}, {by}: AUROC {interval(metrics['auroc'])} on {patients} patients" in top
    metrics = source.results["sick", "probe"].main_score.metrics
    told = (
        f"at the chosen threshold {metrics['sensitivity'].value:.0%} of 'sick' and "
        f"{metrics['specificity'].value:.0%} of 'well' are told right."
    )
    assert top.count(told) == 1


def test_a_model_is_told_with_its_worst_cases(
    modelled: Written, config: Path, model: Model
) -> None:
    page = modelled.page.read_text("utf-8")
    read = Reader(page)
    (source,) = open_sources([config])
    (section,) = sections_of([model.path], [source])
    titles = ["Worst false positives", "Worst false negatives", "Unlike what it learnt from"]
    assert [group.title for group in section.groups] == titles
    # By hand, from the answer's own predictions.
    result = source.results["sick", "probe"]
    truth, proba, _ = read_predictions(config.parent / "store", result)
    rows = predicted_units(config.parent / "store", result).astype(int)
    sick = proba[:, 1]
    called = sick >= model.record.thresholds["sick"]
    wrong = np.flatnonzero(called & (truth.y == 0))
    missed = np.flatnonzero(~called & (truth.y == 1))
    assert len(wrong) + len(missed)
    expected = [
        rows[wrong[np.argsort(-sick[wrong])]][:6].tolist(),
        rows[missed[np.argsort(sick[missed])]][:6].tolist(),
    ]
    assert [[case.row for case in group.cases] for group in section.groups[:2]] == expected
    shown = sum(len(group.cases) for group in section.groups)
    assert section.pictures == shown
    start = page.index('<section class="task model"')
    of_model = page[start : page.index("</section>", start)]
    assert of_model.count('src="data:image/webp') == shown
    for word in ("sick-model", "Operating point", "sick is called from", "Learnt from"):
        assert word in read.text
    assert [x for x in read.loads if not x.startswith(("#", "data:"))] == []
    for secret in ("SECRET", "f17.png", str(config.parent)):
        assert secret not in page


def test_the_worst_cases_stand_with_their_neighbours_and_colour_the_map(
    page: str, config: Path
) -> None:
    (source,) = open_sources([config])
    atlas = draw_map(source)
    assert atlas is not None
    drawn = pictures(source, atlas.pictured)
    cases = task_cases(source, atlas, drawn)
    assert cases.keys() == {"sick", "find<ings"}
    wrong, missed = cases["sick"]
    # By hand, from the answer's own predictions.
    result = source.results["sick", "probe"]
    truth, proba, _ = read_predictions(config.parent / "store", result)
    rows = predicted_units(config.parent / "store", result).astype(int)
    called = proba[:, 1] >= read_thresholds(config.parent / "store", result)[:, 1]
    false = {
        "false positive": rows[called & (truth.y == 0)],
        "false negative": rows[~called & (truth.y == 1)],
    }
    assert {case.row for case in wrong.cases} <= set(false["false positive"])
    assert {case.row for case in missed.cases} <= set(false["false negative"])
    assert wrong.cases or missed.cases
    patient = np.arange(N) // EACH
    for case in (*wrong.cases, *missed.cases):
        assert case.picture
        assert len(case.neighbours) == 3
        assert all(patient[each.row] != patient[case.row] for each in case.neighbours)
        assert all(each.about.startswith(("sick, ", "well, ")) for each in case.neighbours)
    labelled = [group for group in cases["find<ings"] if group.cases]
    assert {group.title.partition(" of ")[2] for group in labelled} <= {"a", "b"}
    for group in labelled:
        assert all(n.about.startswith(("yes, ", "no, ")) for c in group.cases for n in c.neighbours)
    columns = {column.name: column for column in atlas.columns}
    for word, of_word in false.items():
        coloured = [row for row in range(N) if columns["sick: right"].word(row) == word]
        assert coloured == sorted(of_word)
    assert set(columns["sick: called"].values) <= {"sick", "well"}
    assert "Nearest slices of other patients" in page


def test_numbers_have_a_scatter_their_worst_and_their_colours(tmp_path: Path) -> None:
    file = collection(tmp_path, 3, methods=["knn"])
    settings = yaml.safe_load(file.read_text())
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    ages = [f"{row},{40 + i % 37}" for i, row in enumerate(rows[1:])]
    (tmp_path / "labels.csv").write_text("\n".join([f"{rows[0]},age", *ages]) + "\n")
    settings["tasks"] = {"age": {"labels": ["age"], "values": "number"}}
    file.write_text(yaml.safe_dump(settings))
    evaluate(load_config(file), ["probe"])
    (source,) = open_sources([file])
    assert next(drawn.title for drawn in task_figures(source, "age")) == "Predicted by true"
    atlas = draw_map(source)
    assert atlas is not None
    scales = {scale.name: scale for scale in atlas.scales}
    assert scales["age"].numbers.tolist() == [40 + i % 37 for i in range(N)]
    off = scales["age: predicted less true"].numbers
    (farthest,) = task_cases(source, atlas, {})["age"]
    assert farthest.cases[0].row == int(np.nanargmax(np.abs(off)))
    beside = farthest.cases[0].neighbours[0]
    assert beside.about.startswith(f"{40 + beside.row % 37}, ")
    (table,) = tables_of(lines_of([source]))
    assert (table.title, table.words) == ("Numbers", ("Task", "Method", "Setting", "Tested on"))
    assert table.metrics == ("r2", "mae", "rmse", "correlation")
    assert not {column.name for column in atlas.columns} & {"age: called", "age: right"}


def test_every_score_is_in_the_glossary(page: str) -> None:
    assert GLOSSARY.keys() == METRICS.keys()
    assert GLOSSARY["auroc"] in page


def test_a_model_of_another_store_has_no_cases_and_a_damaged_one_no_page(
    other: Path, model: Model, tmp_path: Path
) -> None:
    sources = open_sources([other])
    (section,) = sections_of([model.path], sources)
    assert section.groups == ()
    assert "its answer is in none of these stores, so that no case is shown" in section.notes
    copy = Path(shutil.copytree(model.path, tmp_path / "copy"))
    (copy / "head.safetensors").write_bytes(b"no head")
    words = ["report", str(other), "--out", str(tmp_path / "page.html"), "--model", str(copy)]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, ModelError)
    assert not (tmp_path / "page.html").exists()


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, written: Written) -> Iterator[Any]:
    """Yield the report, open; afterwards, no fault was on the console and nothing was loaded."""
    yield from tab_of(browser, written)


def tab_of(browser: Any, written: Written) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.page.as_uri())
    yield tab
    assert faults == []
    assert {url for url in asked if not url.startswith("data:")} == {written.page.as_uri()}
    tab.close()


def test_search_leaves_what_was_asked_for(opened: Any) -> None:
    lines = opened.locator("#scores tbody tr:visible")
    every = lines.count()
    opened.fill("#search", "sick probe")
    texts = lines.all_inner_texts()
    assert 0 < len(texts) < every
    assert all("sick" in t and "Linear probe" in t for t in texts)
    assert opened.inner_text("#shown") == f"{len(texts)} of {every} lines"
    opened.fill("#search", "")
    assert lines.count() == every


def test_columns_sort_both_ways_and_by_keyboard(opened: Any) -> None:
    head = opened.locator("#scores thead th", has_text="AUROC")
    column = head.evaluate("cell => cell.cellIndex")

    def values() -> list[float]:
        cells = opened.locator(f"#scores tbody tr > :nth-child({column + 1})")
        texts = cells.evaluate_all("cells => cells.map(cell => cell.dataset.v)")
        assert "" not in texts[: len([t for t in texts if t])]  # nothing stands last
        return [float(t) for t in texts if t]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())


def test_a_point_shows_its_picture_and_its_neighbours(opened: Any) -> None:
    canvas, chosen = opened.locator("canvas"), opened.locator(".chosen")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    opened.keyboard.press("ArrowRight")  # the first key takes the middle
    first = chosen.locator("h3").first.inner_text()
    assert re.fullmatch(r"Row \d+", first)
    assert chosen.locator("img").count() == 7
    assert chosen.locator("img").first.evaluate("image => image.naturalWidth") == 50
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        opened.keyboard.press(key)
        if chosen.locator("h3").first.inner_text() != first:
            break
    else:
        pytest.fail("no arrow leads away from the middle")
    opened.fill("input.row", "42")
    opened.keyboard.press("Enter")
    assert chosen.locator("h3").first.inner_text() == "Row 42"
    near = chosen.locator("ol button span").first
    row = re.search(r"row (\d+)", near.get_attribute("title"))
    assert row
    chosen.locator("ol button").first.click()
    assert chosen.locator("h3").first.inner_text() == f"Row {row[1]}"


def test_a_click_on_the_map_takes_the_point_under_it(opened: Any, config: Path) -> None:
    (source,) = open_sources([config])
    atlas = draw_map(source)
    assert atlas is not None
    canvas = opened.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box, places = canvas.bounding_box(), atlas.places[0]
    far = (places.x - 0.5) ** 2 + (places.y - 0.5) ** 2
    place = int(np.argmax(far))  # at the rim, where points stand alone
    at = {
        "x": box["width"] * (0.5 + 0.93 * (float(places.x[place]) - 0.5)),
        "y": box["height"] * (0.5 - 0.93 * (float(places.y[place]) - 0.5)),
    }
    canvas.click(position=at)
    shown = opened.locator(".chosen h3").first.inner_text()
    assert shown == f"Row {source.rows[place]}"


def test_colours_follow_the_column_and_the_legend_hides(opened: Any) -> None:
    opened.locator("canvas").scroll_into_view_if_needed()
    picture = "canvas => canvas.toDataURL()"
    before = opened.locator("canvas").evaluate(picture)
    opened.select_option("select.colour", label="view")
    legend = opened.locator(".legend button")
    assert [t.split(" ")[0] for t in legend.all_inner_texts()] == ["AP", "PA"]
    coloured = opened.locator("canvas").evaluate(picture)
    assert coloured != before
    legend.first.click()
    assert legend.first.get_attribute("aria-pressed") == "false"
    assert opened.locator("canvas").evaluate(picture) != coloured


def violations(tab: Any, *rules: str) -> list[tuple[str, str]]:
    """Return what axe finds on a page, by all of its rules or by some."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = axe.Axe().run(tab, options=options).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120]) for each in found]


def test_nothing_stands_in_the_way_of_anyone(browser: Any, modelled: Written) -> None:
    """With a model, and with a point chosen on the map; a theme changes colours alone."""
    for tab in tab_of(browser, modelled):
        tab.emulate_media(color_scheme="light")
        tab.locator("canvas").scroll_into_view_if_needed()
        tab.locator("canvas").press("ArrowRight")
        pictures = tab.locator(".cases img")
        assert pictures.count() == tab.locator(".cases li").count() > 0
        assert pictures.first.evaluate("x => x.naturalWidth") > 10
        assert violations(tab) == []
        tab.emulate_media(color_scheme="dark")
        assert violations(tab, "color-contrast", "link-in-text-block") == []
        tab.set_viewport_size({"width": 390, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_fits_a_telephone_and_paper(opened: Any, tmp_path: Path) -> None:
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    # What a line is of stays beside its score, and what is wider than the page can be scrolled to.
    region = opened.locator("#scores .scroll")
    region.evaluate("x => { x.scrollLeft = 200; }")
    assert opened.locator("#scores tbody th").first.bounding_box()["x"] >= 0
    region.evaluate("x => { x.scrollLeft = 0; }")
    score = opened.locator("#scores tbody td.n").first.bounding_box()
    assert score["x"] + score["width"] <= 390
    # Panels stand one below the other, and no figure is wider than the page.
    panels = [
        panel.bounding_box() for panel in opened.locator(".panels").first.locator(".panel").all()
    ]
    assert len({round(box["x"]) for box in panels}) == 1
    assert all(high["y"] < low["y"] for high, low in itertools.pairwise(panels))
    wider = "all => all.filter(x => x.scrollWidth > x.clientWidth + 1).length"
    assert opened.locator("figure").evaluate_all(wider) == 0
    assert violations(opened) == []
    opened.screenshot(path=tmp_path / "narrow.png")
    with Image.open(tmp_path / "narrow.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    paper = opened.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    opened.emulate_media(media="print")
    assert not opened.locator(".contents").is_visible()
    assert opened.locator("#scores tbody tr").last.is_visible()
    opened.set_viewport_size({"width": 688, "height": 1000})  # A4 between its margins
    assert opened.evaluate("document.documentElement.scrollWidth") <= 688


def test_dark_is_dark(opened: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    opened.emulate_media(color_scheme="light")
    light = opened.evaluate(paper)
    opened.click("#theme")
    dark = opened.evaluate(paper)
    assert light == "rgb(253, 252, 250)"
    assert dark == "rgb(23, 22, 20)"
    assert opened.inner_text("#theme") == "Light"
    assert opened.get_attribute("#theme", "aria-label") == "Light: show the page in light colours"


def test_segmentations_in_a_browser(browser: Any, segmented: Written) -> None:
    for tab in tab_of(browser, segmented):
        figures = tab.locator(".task figure")
        assert figures.locator("h3").all_inner_texts() == ["By structure", "Few shots", "Overlays"]
        pictures = figures.last.locator("svg image:visible")
        assert pictures.count() == 2 + 2  # one volume tests; image, mask and two heads
        box = pictures.first.bounding_box()
        assert min(box["width"], box["height"]) > 100
        head = tab.locator("#scores thead th", has_text="Training")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        tab.fill("#search", "near draws")
        assert tab.locator("#scores tbody tr:visible").count() == 1
        assert violations(tab) == []
        # On a telephone a column a volume, as wide as the page: nothing is scrolled to.
        tab.set_viewport_size({"width": 390, "height": 800})
        assert pictures.count() == 2 + 2
        wider = "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).length"
        assert figures.evaluate_all(wider) == 0

"""How far a run is where no terminal shows it, and what a plan says of files it sets aside."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.cli import app
from pipeline.commands import common
from pipeline.commands import extract as command
from pipeline.commands.common import duration
from pipeline.commands.extract import _print_plan, _ProgressLines
from pipeline.commands.printing import PlainConsole
from pipeline.config.loading import load_config
from pipeline.extraction.plan import plan
from pipeline.inference.speed import Speed
from pipeline.inference.telemetry import bottleneck
from pipeline.recipe import Architecture, Precision, Preprocess, Recipe
from pipeline.shared.steps import report_epoch
from tests.phantoms import volume, write_png
from tests.waiting import until


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines that are printed."""
    lines: list[str] = []
    for module in (common, command):
        monkeypatch.setattr(module, "print_line", lambda _, text, style=None: lines.append(text))
    monkeypatch.setattr(command, "print_lines", lambda _, texts: lines.extend(texts))
    return lines


def test_what_takes_long_is_seen_to_be_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(common, "err", PlainConsole(file=shown, force_terminal=True, width=80))
    with common.busy("fitting"):
        report_epoch(2, 5)
    assert "fitting, 2 of 5 epochs" in shown.getvalue()
    report_epoch(3, 5)  # nobody listens any more
    shown.truncate(0)
    monkeypatch.setattr(common, "err", PlainConsole(file=shown))
    with common.busy("fitting"):
        report_epoch(2, 5)
    assert shown.getvalue() == ""


def test_a_log_has_a_line_a_minute_of_whatever_works(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(common, "err", PlainConsole(file=shown, width=80))
    now = iter([0.0, 59.0, 61.0, 62.0, 122.0])
    lines = common.MinuteLines(lambda: next(now))
    for done in (10, 20, 30, 40):
        lines.tell("lesion: knn, slices predicted", done, 1200)
    assert shown.getvalue().splitlines() == [
        "lesion: knn, slices predicted: 20 of 1,200.",
        "lesion: knn, slices predicted: 40 of 1,200.",
    ]


def test_a_log_tells_of_what_makes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As searching and copying, and what is between two steps for long."""
    shown = io.StringIO()
    monkeypatch.setattr(common, "err", PlainConsole(file=shown, width=80))
    monkeypatch.setattr(common, "_LINE_EVERY_S", 0.02)

    with common.busy("copying"):
        until(lambda: "copying: 0 seconds so far." in shown.getvalue().splitlines())
    with common.busy("fitting"):
        report_epoch(2, 5)
        until(lambda: "fitting, epochs: 2 of 5." in shown.getvalue().splitlines())
    told = shown.getvalue()
    time.sleep(0.1)
    assert shown.getvalue() == told
    now = iter([0.0, 181.0, 181.0])
    common.MinuteLines(lambda: next(now), "copying").repeat()
    assert shown.getvalue().removeprefix(told) == "copying: 3 minutes so far.\n"


def test_without_a_terminal_a_line_a_minute_says_how_far_a_run_is(said: list[str]) -> None:
    now = [0.0]
    lines = _ProgressLines(lambda: now[0])
    lines.plan(1000)
    for second in range(1, 151):
        now[0] = float(second)
        lines.advance(2)
    assert said == [
        "Embedded 120 of 1,000 slices, 2 slices/s, about 7 minutes left.",
        "Embedded 240 of 1,000 slices, 2 slices/s, about 6 minutes left.",
    ]


def test_a_time_is_told_in_the_unit_that_suits_it() -> None:
    times = [duration(seconds) for seconds in (1, 40, 115.2, 3600, 36_000)]
    assert times == ["1 second", "40 seconds", "2 minutes", "60 minutes", "10 hours"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a picture, what is none, and a config."""
    write_png(tmp_path / "data/a.png", volume(1)[0].astype("uint16"))
    (tmp_path / "data/notes.txt").write_text("text")
    (tmp_path / "data/lost.dcm").write_bytes(b"")
    content = {
        "data": {"root": "data"},
        "store": "store",
        "backbone": {"name": "dinov2_vits14", "image_size": 28, "weights": "random:0"},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "my.yaml"


def test_a_plan_names_files_where_it_is_asked_to(config: Path) -> None:
    by_default = CliRunner().invoke(app, ["plan", str(config)]).output
    assert "other: no known image format" in by_default
    assert "notes.txt" not in by_default
    as_json = CliRunner().invoke(app, ["plan", str(config), "--json"]).output
    assert "notes.txt" not in as_json
    by_name = CliRunner().invoke(app, ["plan", str(config), "--paths"]).output
    assert "other: notes.txt: no known image format" in by_name


def test_a_plan_names_every_file_that_is_set_aside_by_reason(config: Path) -> None:
    data = config.parent / "data"
    (data / ".git").mkdir()
    for number in range(4):
        (data / f"empty{number}.dcm").write_bytes(b"")
        (data / f"letter{number}.dcm").write_text("a letter")
        (data / f"notes{number}.txt").write_text("text")
    by_name = CliRunner().invoke(app, ["plan", str(config), "--paths"]).output
    named = [line.split(":")[:2] for line in by_name.splitlines() if line.startswith("  ")]
    assert named == [
        *(["  empty", f" {name}.dcm"] for name in ("empty0", "empty1", "empty2", "empty3", "lost")),
        *(["  not-an-image", f" letter{number}.dcm"] for number in range(4)),
        *(["  other", f" {name}.txt"] for name in ("notes", *(f"notes{i}" for i in range(4)))),
        ["  other", " .git"],
    ]
    # Without their names, one of each reason says enough.
    by_default = CliRunner().invoke(app, ["plan", str(config)]).output
    shown = [line for line in by_default.splitlines() if line.startswith("  ")]
    assert shown == [
        "  empty: the file has no bytes",
        "  not-an-image: no known image format",
        "  other: no known image format",
        "  --paths tells which files these are.",
    ]


def test_a_plan_tells_what_is_set_aside_and_counts_in_grammar(
    config: Path, said: list[str]
) -> None:
    _print_plan(plan(load_config(config)))
    assert said[0] == "1 slice in the collection (1 added)."
    assert "To embed: 1 slice in 1 part, " in said[1]
    assert "(a part takes the room of 1,024 slices, full or not)" in said[1]
    # Those of the store itself and of answers come to that.
    assert " MB of features in " in said[1]
    assert said[-2:] == [
        "  empty: lost.dcm: the file has no bytes",
        "  other: notes.txt: no known image format",
    ]


def test_what_would_be_faster_is_said_in_plain_words() -> None:
    recipe = Recipe(architecture=Architecture(dim=384, depth=12, heads=6), weights="random:0")
    said = bottleneck({"all": 100.0, "forward": 97.0}, 180, Speed("cpu"), recipe)
    assert said == (
        "The network took 97 % of the time, 1.8 slices/s: a GPU is faster. So are a smaller "
        "network, a smaller backbone.image_size or backbone.precision: bfloat16, each with other "
        "features and so another store."
    )


@pytest.mark.parametrize(
    ("precision", "ways"),
    [
        ("float32", "are a smaller network or backbone.precision: bfloat16, each with other"),
        ("bfloat16", "is a smaller network, with other"),
    ],
)
def test_no_other_size_is_advised_where_a_network_sees_one_alone(
    precision: Precision, ways: str
) -> None:
    network = VOLUME_NETWORKS["med3d_resnet10"]
    recipe = Recipe(
        architecture=network.architecture,
        weights="random:0",
        blocks=1,
        outputs=("volume",),
        image_size=128,
        precision=precision,
        preprocess=Preprocess(volume=network.input),
    )
    said = bottleneck({"all": 100.0, "forward": 97.0}, 180, Speed("cpu"), recipe)
    assert said.endswith(f": a GPU is faster. So {ways} features and so another store.")

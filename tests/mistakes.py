"""The likeliest mistakes, each as a command that is run for real, and the page that lists them.

`python -m tests.mistakes` writes docs/mistakes.md anew.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import openpyxl
import torch
import yaml

from tests.phantoms import write_png
from tests.pipeline.models import official_shapes, write_tiny_folder

PAGE = Path(__file__).parents[1] / "docs/mistakes.md"
HEAD = """# Mistakes, and what is said

Each command below is run by a test, and says what stands beside it: what is wrong, what was got,
what was expected, and what to do. Exit codes: 2 for wrong usage or config, 1 for a finding.
`--debug`, anywhere on the line, adds the traceback.

| mistake | command | message |
|---|---|---|
"""


# What stands in the names of files and the cells of labels, and must stand in no message.
NAME = "MARKDOE^JOHN"
DATE = "19570101"
MARKS = ("MARKDOE", "MARKID", DATE)


def picture(i: int) -> str:
    """Return the path of a picture, which names its patient, as those of hospitals do."""
    return f"{NAME}/{i:02d}-{DATE}.png"


class Project:
    """A folder with 24 pictures of 12 patients, labels, a config, and a store made by it.

    output: all that the last command printed and logged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = ""
        rng = np.random.default_rng(0)
        lines = ["path,patient,look,age"]
        for i in range(24):
            write_png(root / "data" / picture(i), rng.integers(0, 255, (40, 40), np.uint8))
            look = ("dark", "bright")[i // 2 % 2]
            lines.append(f"{picture(i)},MARKID{i // 2},{look},{30 + i}")
        (root / "labels.csv").write_text("\n".join(lines) + "\n")
        network = write_tiny_folder(root / "tiny")
        self.settings: dict[str, Any] = {
            "data": {"root": "data"},
            "backbone": {"name": f"hf:{network}", "image_size": 28},
            "store": "store",
            "labels": {"file": "labels.csv", "patient": "patient"},
            "tasks": {"look": {"labels": ["look"], "positive": "bright"}},
        }
        self.config({})
        assert self.run("extract my.yaml --device cpu --workers 0")[0] == 0

    def config(self, changes: dict[str, Any]) -> None:
        """Write my.yaml, with values changed at dotted keys."""
        settings = yaml.safe_load(yaml.safe_dump(self.settings))
        for key, value in changes.items():
            *above, last = key.split(".")
            place = settings
            for step in above:
                place = place.setdefault(step, {})
            place[last] = value
        (self.root / "my.yaml").write_text(yaml.safe_dump(settings))

    def run(self, line: str) -> tuple[int, str]:
        """Run a command line in this process; return its exit code and what it said as errors."""
        from pipeline.cli import main

        said = io.StringIO()
        out = io.StringIO()
        before = Path.cwd()
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        os.chdir(self.root)
        try:
            with (
                mock.patch.object(sys, "argv", ["radprobe", *line.split()]),
                contextlib.redirect_stderr(said),
                contextlib.redirect_stdout(out),
                _logged(out),
            ):
                main()
        except SystemExit as end:
            self.output = out.getvalue() + said.getvalue()
            text = re.sub(r"[╭╮╰╯│─]", "", said.getvalue().replace(str(self.root), "."))
            # what torch says of a device is its own
            text = re.sub(r"(no device '\S+' here: ).* (?=Take)", r"\1... ", text)
            return int(end.code or 0), re.sub(r"\s+", " ", text).strip()
        finally:
            os.chdir(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        raise AssertionError("main returned")


@contextlib.contextmanager
def _logged(out: io.StringIO) -> Iterator[None]:
    """Have what is logged, at any level, written as the command line writes it."""
    from pipeline.cli import _Formatter

    handler = logging.StreamHandler(out)
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger("pipeline")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@dataclass(frozen=True)
class Mistake:
    """One mistake: what it is, the config's changes, the command, and what else was done before."""

    name: str
    command: str
    changes: dict[str, Any] | None = None
    prepare: Callable[[Path], None] | None = None
    limit: int | None = None  # bytes a file may have


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


def _small_weights(root: Path) -> None:
    torch.save({k: torch.zeros(s) for k, s in official_shapes(48, 5).items()}, root / "small.pth")


def _torn_weights(root: Path) -> None:
    _small_weights(root)
    data = (root / "small.pth").read_bytes()
    (root / "torn.pth").write_bytes(data[: len(data) // 2])


def _pickle(root: Path) -> None:
    torch.save({"model": Project}, root / "pickled.pth")


def _no_pictures(root: Path) -> None:
    (root / "empty").mkdir(exist_ok=True)


def _lose_key(root: Path) -> None:
    (root / "store.key").rename(root / "store.key.away")


def _labels(name: str, column: str, values: Callable[[int], str]) -> Callable[[Path], None]:
    """Return what writes a label file of all pictures with one more column."""
    rows = [
        f"{picture(i)},MARKID{i // 2},{('dark', 'bright')[i // 2 % 2]},{values(i)}"
        for i in range(24)
    ]
    return _write(name, "\n".join([f"path,patient,look,{column}", *rows]) + "\n")


def _workbook(root: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["file", "patient", "look"])
    book.active.append([picture(0), "MARKID0", "dark"])
    book.save(root / "ward.xlsx")


def _masks(root: Path) -> None:
    """Write masks of all pictures, as TIFF."""
    for i in range(24):
        path = root / "masks" / f"{Path(picture(i)).stem}.tif"
        write_png(path, np.full((40, 40), 255, np.uint8))


EXTRACT = "extract my.yaml --device cpu --workers 0"
MISTAKES = [
    Mistake("the config is not there", "extract nowhere.yaml"),
    Mistake("the config is no YAML", "extract bad.yaml", prepare=_write("bad.yaml", "a: [1\nb: }")),
    Mistake(
        "a key stands twice",
        "extract twice.yaml",
        prepare=_write("twice.yaml", "data: {root: data}\nstore: a\nstore: b\n"),
    ),
    Mistake("a key is misspelt", EXTRACT, {"stroe": "x"}),
    Mistake("a modality is no code of DICOM", EXTRACT, {"data.modality": {"**": "MRI"}}),
    Mistake("a command is misspelt", "extrakt my.yaml"),
    Mistake("a command is another tool's", "train my.yaml"),
    Mistake("a word is none of those that a key takes", EXTRACT, {"split.kind": "random"}),
    Mistake("a number is a word", EXTRACT, {"probe.steps": "many"}),
    Mistake("a number is out of its range", EXTRACT, {"split.folds": 1}),
    Mistake("a list is empty", EXTRACT, {"knn.k": []}),
    Mistake("a part has a number of rows that none can have", EXTRACT, {"outputs.part_rows": 100}),
    Mistake("a key that is needed is not there", EXTRACT, {"tasks.look": {"level": "image"}}),
    Mistake("a block is a list", EXTRACT, {"tasks": ["look"]}),
    Mistake("a task's level is misspelt", "evaluate my.yaml", {"tasks.look.level": "pateint"}),
    Mistake("a shard that is none", "extract my.yaml --shard 9/8 --device cpu --workers 0"),
    Mistake("the folder of images is not there", EXTRACT, {"data.root": "dta"}),
    Mistake(
        "the folder holds no image", EXTRACT, {"data.root": "empty", "store": "s2"}, _no_pictures
    ),
    Mistake("the window is reversed", EXTRACT, {"preprocess.ct": {"low": 600, "high": -1024}}),
    Mistake("a window's name is misspelt", EXTRACT, {"preprocess.ct": "lungs"}),
    Mistake(
        "the image size is no multiple of 14", EXTRACT, {"backbone.image_size": 30, "store": "s3"}
    ),
    Mistake("the store is of another recipe", EXTRACT, {"backbone.image_size": 56}),
    Mistake("the store's place is taken", EXTRACT, {"store": "data"}),
    Mistake("the network's name is misspelt", EXTRACT, {"backbone.name": "dinov2_vits_14"}),
    Mistake("the weights are not there", EXTRACT, {"backbone.weights": "none.pth"}),
    Mistake("the weights are of another network", "weights add small.pth", prepare=_small_weights),
    Mistake("the weights are torn", "weights add torn.pth", prepare=_torn_weights),
    Mistake("the weights hold code", "weights add pickled.pth", prepare=_pickle),
    Mistake("there is no such GPU", "extract my.yaml --device cuda:7 --workers 0", {"store": "s4"}),
    Mistake("there is no space", EXTRACT, {"store": "s5"}, limit=400),
    Mistake("evaluated before extracted", "evaluate my.yaml", {"store": "s6"}),
    Mistake("the labels are not there", "evaluate my.yaml", {"labels.file": "lables.csv"}),
    Mistake("a label column is misspelt", "evaluate my.yaml", {"tasks.look.labels": ["lok"]}),
    Mistake(
        "a row of the labels has a cell too many",
        "evaluate my.yaml",
        {"labels.file": "torn.csv"},
        _write(
            "torn.csv",
            f"path;patient;look\n{picture(0)};MARKID1;dark\n{picture(1)};MARKID2;a;b\n",
        ),
    ),
    Mistake(
        "a quote of the labels is never closed",
        "evaluate my.yaml",
        {"labels.file": "open.csv"},
        _write("open.csv", f'path,patient,look\n{picture(0)},MARKID1,"dark\n'),
    ),
    Mistake(
        "the labels are a workbook of old Excel",
        "evaluate my.yaml",
        {"labels.file": "old.xls"},
        lambda root: (root / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(508)) and None,
    ),
    Mistake(
        "dates are split by that have the day first",
        "evaluate my.yaml",
        {"labels.file": "days.csv", "split": {"kind": "date", "column": "day"}},
        _labels("days.csv", "day", lambda i: f"{i + 1}.4.2024"),
    ),
    Mistake(
        "a date is no day of the calendar",
        "evaluate my.yaml",
        {
            "labels": {"file": "days2.csv", "patient": "patient", "dates": "day.month.year"},
            "split": {"kind": "date", "column": "day"},
        },
        _labels("days2.csv", "day", lambda i: f"{i + 20}.4.2024"),
    ),
    Mistake(
        "numbers have a word among them",
        "evaluate my.yaml",
        {
            "labels.file": "crp.csv",
            "tasks.look": {"labels": ["crp"], "values": "number"},
        },
        _labels("crp.csv", "crp", lambda i: "low" if i == 7 else f"{i}.5"),
    ),
    Mistake(
        "a word may be a class or nothing",
        "evaluate my.yaml",
        {"labels.file": "sick.csv", "tasks.look": {"labels": ["sick"]}},
        _labels("sick.csv", "sick", lambda i: "unknown" if i < 4 else ("ja", "nein")[i // 2 % 2]),
    ),
    Mistake(
        "two rows say two things of one picture",
        "evaluate my.yaml",
        {"labels.file": "twice.csv"},
        _write(
            "twice.csv",
            f"path,patient,look\n{picture(0)},MARKID0,dark\n{picture(0)},MARKID0,bright\n",
        ),
    ),
    Mistake(
        "no sheet of a workbook has the columns",
        "evaluate my.yaml",
        {"labels.file": "ward.xlsx"},
        _workbook,
    ),
    Mistake(
        "predictions are asked for in another format",
        "evaluate my.yaml --out predictions.txt",
    ),
    Mistake("a head that is none", "compare store store --heads knn svm"),
    Mistake("a config in the place of a model", "predict my.yaml data --out out.csv"),
    Mistake(
        "which class is positive is not said", "evaluate my.yaml", {"tasks.look.positive": None}
    ),
    Mistake(
        "a column of numbers is taken for classes",
        "evaluate my.yaml",
        {"tasks.look": {"labels": ["age"]}},
    ),
    Mistake("rows are joined by what is no key", "evaluate my.yaml", {"labels.by": "accession"}),
    Mistake("the key column is not there", "evaluate my.yaml", {"labels.key": "file"}),
    Mistake("the patient column is not there", "evaluate my.yaml", {"labels.patient": "pid"}),
    Mistake("no patient column was named", "evaluate my.yaml", {"labels.patient": None}),
    Mistake(
        "the labels' paths are of another folder",
        "evaluate my.yaml",
        {"labels.file": "other.csv"},
        _write(
            "other.csv",
            f"path,patient,look\nx/{picture(0)},MARKID1,dark\nx/{picture(1)},MARKID2,bright\n",
        ),
    ),
    Mistake(
        "the labels' paths have another suffix",
        "evaluate my.yaml",
        {"labels.file": "suffix.csv"},
        _write(
            "suffix.csv",
            "path,patient,look\n"
            + "".join(f"{picture(i)[:-4]}.dcm,MARKID{i},dark\n" for i in range(3)),
        ),
    ),
    Mistake(
        "no mask is where its pattern says",
        "segment my.yaml",
        {
            "masks.lung": {"root": "masks", "files": {"**": "{stem}.png"}, "values": "lung"},
            "segment": {"knn": {"method": "knn"}},
        },
        _masks,
    ),
    Mistake(
        "nothing that is asked can be answered",
        "plan my.yaml",
        {"tasks.look.labels": ["lok"]},
    ),
    Mistake("more folds than patients", "evaluate my.yaml", {"split.folds": 50}),
    Mistake("a store's path is misspelt", "verify stroe"),
    Mistake("a store in the place of a config", "evaluate store"),
    Mistake("what is searched is not there", "search my.yaml 99.png"),
    Mistake("a report of a store that has none", "report nowhere"),
    Mistake("the store's key is lost", "evaluate my.yaml", prepare=_lose_key),
]


def told(project: Project, mistake: Mistake) -> tuple[int, str]:
    """Make a mistake, with --debug; return the exit code and the message behind the traceback."""
    project.config(mistake.changes or {})
    if mistake.prepare:
        mistake.prepare(project.root)
    try:
        with _limited(mistake.limit):
            code, said = project.run(f"{mistake.command} --debug")
            start = said.rfind("radprobe: ") if "Traceback" in said else 0
            return code, said[start:]
    finally:
        away = project.root / "store.key.away"
        if away.exists():
            away.rename(project.root / "store.key")


@contextlib.contextmanager
def _limited(size: int | None) -> Iterator[None]:
    """Let no file grow beyond size: what a full disk does, without filling one."""
    if size is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def line_of(mistake: Mistake, message: str) -> str:
    """Return a mistake's line of the page."""
    changes = "; ".join(f"{key}: {value}" for key, value in (mistake.changes or {}).items())
    command = mistake.command.removesuffix(" --device cpu --workers 0").removesuffix(" --workers 0")
    said = message.replace("|", "\\|").replace("<", "&lt;")
    with_changes = f"<br>`{changes}`" if changes else ""
    return f"| {mistake.name} | `{command}`{with_changes} | {said} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        lines = [line_of(mistake, told(project, mistake)[1]) for mistake in MISTAKES]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")

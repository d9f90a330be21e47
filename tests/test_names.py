"""No message, warning, log or traceback names a patient, an id, a date, a file or a cell."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.shared.private import INSTEAD, keep_private, without_files
from stores.errors import ConfigError, LabelError
from tests.mistakes import DATE, MARKS, NAME, Project, picture
from tests.phantoms import write_png

Prepare = Callable[[Path], None]
HEAD = "path,patient,look,born\n"
ROWS = [f"{picture(i)},MARKID{i // 2},{('dark', 'bright')[i // 2 % 2]},{DATE}" for i in range(24)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("names")
        patch.setenv("RADPROBE_WEIGHTS", str(root / "weights"))
        yield Project(root)


def labels(*rows: str, head: str = HEAD) -> Prepare:
    text = head + "".join(f"{row}\n" for row in rows)
    return lambda root: (root / "l.csv").write_text(text, encoding="latin-1") and None


def table(**columns: list[Any]) -> Prepare:
    def write(root: Path) -> None:
        np.save(root / "f.npy", np.ones((2, 32), np.float32))
        pq.write_table(pa.table(columns), root / "t.parquet")

    return write


def csv_table(text: str) -> Prepare:
    def write(root: Path) -> None:
        np.save(root / "f.npy", np.ones((2, 32), np.float32))
        (root / "t.csv").write_text(text)

    return write


def mask(values: Any) -> Prepare:
    def write(root: Path) -> None:
        for i in range(24):
            write_png(root / "masks" / picture(i), values)

    return write


def h5(**columns: Any) -> Prepare:
    def write(root: Path) -> None:
        with h5py.File(root / "f.h5", "w") as file:
            file["features"] = np.ones((2, 32), np.float32)
            for name, values in columns.items():
                file[name] = values

    return write


L = {"labels.file": "l.csv"}


def masks(values: Any) -> dict[str, Any]:
    """Return the changes of a config that asks for masks of these values."""
    of = {"root": "masks", "values": values, "files": {"**/*.png": "{path}"}}
    return {"masks": {"m": of}, "segment": {"knn": {"k": [1], "method": "knn"}}}


EVALUATE = "knn my.yaml"
IMPORT = "import f.npy made --recipe r.json --table"
CASES: dict[str, tuple[str, dict[str, Any], Prepare]] = {
    "a row is torn": (EVALUATE, L, labels(*ROWS, f"{NAME},MARKID9")),
    "no UTF-8": (EVALUATE, L, labels(*ROWS, f"{NAME} \x81,MARKID9,dark,{DATE}")),
    "no header": (EVALUATE, L, labels(*ROWS, head="")),
    "no header, and one id": (EVALUATE, L, labels("MARKIDX", "MARKIDY", head="")),
    "a key twice": (EVALUATE, L, labels(*ROWS, f"{picture(0)},MARKID1,{NAME},x")),
    "a class that is a name": (EVALUATE, L, labels(f"{picture(0)},MARKID0,{NAME},x")),
    "one class": (
        EVALUATE,
        L,
        labels(*(f"{picture(i)},MARKID{i},{NAME},{DATE}" for i in range(24))),
    ),
    "numbers": (
        EVALUATE,
        L | {"tasks.look": {"labels": ["born"], "values": "number"}},
        labels(f"{picture(0)},MARKID0,dark,{NAME}", *ROWS[1:]),
    ),
    "several findings": (
        EVALUATE,
        L | {"tasks.look": {"labels": ["born", "look"]}},
        labels(*ROWS),
    ),
    "missing is zero": (
        EVALUATE,
        L | {"labels.missing": "zero"},
        labels(f"{picture(0)},MARKID0,{NAME},x", f"{picture(1)},MARKID0,,x", *ROWS[2:]),
    ),
    "no patient": (EVALUATE, L | {"labels.patient": None}, labels(*ROWS)),
    "another root": (EVALUATE, L, labels(*(f"x/{row}" for row in ROWS))),
    "ids that join nothing": (EVALUATE, L | {"labels.by": "patient"}, labels(*ROWS)),
    "one value each": (
        EVALUATE,
        L | {"tasks.look": {"labels": ["look"], "level": "patient"}},
        labels(f"{picture(0)},MARKID0,bright,x", *ROWS[1:]),
    ),
    "by site": (EVALUATE, L | {"split": {"kind": "site", "column": "born"}}, labels(*ROWS)),
    "two sites": (
        EVALUATE,
        L | {"split": {"kind": "site", "column": "born"}},
        labels(f"{picture(0)},MARKID0,dark,{NAME}", *ROWS[1:]),
    ),
    "no date": (
        EVALUATE,
        L | {"split": {"kind": "date", "column": "look"}},
        labels(*ROWS),
    ),
    "a list of odd parts": (
        EVALUATE,
        {"split": {"kind": "list", "file": "parts.csv"}},
        lambda root: (root / "parts.csv").write_text(f"key,part\n{picture(0)},{NAME}\n") and None,
    ),
    "labels that are a folder": (EVALUATE, {"labels.file": "data"}, labels(*ROWS)),
    "a search": (f"search my.yaml {NAME}/99.png", {}, labels(*ROWS)),
    "no such patient": ("withdraw store --patient MARKIDZ", {}, labels(*ROWS)),
    "masks of another size": (
        "segment my.yaml",
        masks("organ"),
        mask(np.ones((9, 9), np.uint8)),
    ),
    "masks of odd values": (
        "segment my.yaml",
        masks({"organ": 7}),
        mask(np.full((40, 40), 3, np.uint8)),
    ),
    "masks without tokens": (
        "segment my.yaml",
        masks("organ"),
        mask(np.ones((40, 40), np.uint8)),
    ),
    "import: torn": (f"{IMPORT} t.csv", {}, csv_table(f"path,patient\n{NAME},MARKID1,x\n")),
    "import: path": (f"{IMPORT} t.parquet", {}, table(path=[f"/{NAME}", "b"])),
    "import: up": (f"{IMPORT} t.parquet", {}, table(path=[f"../{NAME}", "b"])),
    "import: list": (f"{IMPORT} t.parquet", {}, table(patient=[[NAME], ["b"]])),
    "import: date": (f"{IMPORT} t.csv", {}, csv_table(f"path,frame\na,{NAME}\nb,{DATE}\n")),
    "import: modality": (f"{IMPORT} t.csv", {}, csv_table(f"path,modality\na,{NAME}\nb,CT\n")),
    "import: bytes": (f"{IMPORT} t.parquet", {}, table(patient=[b"\xff" + NAME.encode(), b"x"])),
    "import: too few": (f"{IMPORT} t.csv", {}, csv_table(f"path,patient\n{NAME},MARKID1\n")),
    "import: wrong column": (
        "import f.h5 made --recipe r.json",
        {},
        h5(patient=np.array([[NAME.encode()] * 2] * 2)),
    ),
    "import: position": (
        "import f.h5 made --recipe r.json",
        {},
        h5(position_mm=[NAME.encode(), b"1"]),
    ),
    "import: another recipe": (
        "import f.h5 made --recipe r2.json",
        {},
        lambda root: (root / "r2.json").write_text('{"image_size": [1]}') and h5()(root),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_error_names_anybody(
    project: Project, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    command, changes, prepare = CASES[name]
    project.config(changes)
    recipe = json.loads((project.root / "store/recipe.json").read_text())
    recipe["architecture"]["dim"] = 32 // recipe["blocks"]
    (project.root / "r.json").write_text(json.dumps(recipe))
    prepare(project.root)
    code, message = project.run(f"{command} --debug")
    assert code in (1, 2), message
    assert "fault of radprobe" not in message
    shown = project.output + " ".join(str(warning.message) for warning in recwarn)
    assert not [mark for mark in MARKS if mark in shown], shown
    assert not (project.root / "made").exists()
    assert not (project.root / "made.key").exists()


def test_a_fault_of_ours_quotes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever raises, and whatever it quotes: a cell as a key, a file that cannot be opened."""

    def fail(*_: Any, **__: Any) -> None:
        words = " of ".join(MARKS)
        try:
            {}[NAME]
        except KeyError as error:
            raise ValueError(words) from error

    project.config({})
    monkeypatch.setattr("pipeline.evaluate.evaluate", fail)
    code, message = project.run("knn my.yaml --debug")
    assert code == 70
    assert "KeyError" in message
    assert "ValueError" in message
    assert not [mark for mark in MARKS if mark in project.output]


def test_words_of_the_system_lose_the_names_of_files(project: Project) -> None:
    project.config({})
    project.run("plan my.yaml")
    file = project.root / "data" / picture(0)
    denied = PermissionError(13, "Permission denied", str(file))
    code, message = cli._code_and_message(denied)
    assert code == 2
    shown = without_files(message)
    assert INSTEAD in shown
    assert "Permission denied" in shown
    assert not [mark for mark in MARKS if mark in shown]
    record = logging.LogRecord("x", logging.WARNING, "", 0, "no %s\x1b[31m", (file,), None)
    assert cli._Formatter("%(message)s").format(record) == f"no {INSTEAD}"


def test_paths_beside_the_collection_keep_their_names(tmp_path: Path) -> None:
    keep_private([tmp_path / "c"], but=[tmp_path / "c/out/store"])
    assert without_files(f"{tmp_path}/c/a.png: bad") == INSTEAD
    assert without_files(f"{tmp_path}/c2/a.png: bad") == f"{tmp_path}/c2/a.png: bad"
    store = f"{tmp_path}/c/out/store"
    assert without_files(f"{store}/recipe.json is lost") == f"{store}/recipe.json is lost"
    assert without_files(f"'{tmp_path}/c/a.png' and {store}.") == f"'{INSTEAD}' and {store}."


def test_errors_of_ours_keep_their_words_in_a_traceback() -> None:
    try:
        try:
            raise LabelError("a column lacks")
        except LabelError as error:
            raise ConfigError("so set it") from error
    except ConfigError as error:
        lines = list(cli._traceback(error))
    assert lines[-1].endswith("ConfigError: so set it")
    assert any(line.endswith("LabelError: a column lacks") for line in lines)
    assert sum(line.startswith("Traceback") for line in lines) == 2

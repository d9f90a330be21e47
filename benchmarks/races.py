"""A patient is purged while a command runs: afterwards no file of the store holds the patient.

    .venv/bin/python -m benchmarks.races --of extract knn tune --moments 40

A command runs in one process, and at one of its calls that open, rename, link or remove a file
`radprobe withdraw --purge` runs in another; the command waits for it, unless the purge waits for
the command. When both have ended, every file of the store is searched for the patient: for the
pseudonym and the paths, as bytes and in tables; for features and digests; for networks that no
answer on file is of. What the command wrote elsewhere, such as a report, a model, or a copy in a
bucket, must be without the patient too, unless it was there when the purge ended: that is what a
purge says it cannot reach. The command ends well, or in words; and verify finds nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.crash import FAILED, NETWORKS, STORE, done, forked, radprobe, server
from pipeline.fitted.learnt import patient_digest
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.contents import DERIVED, RUNS, TUNED, WITHDRAWN_PATIENTS
from stores.remote import push
from stores.slices import row_numbers
from stores.verify import verify
from tests.pipeline.models import write_tiny_folder

PATIENTS = 6
PATIENT = "p1"
# Where commands write outside the store.
OUT = "out"
# How long a command waits for a purge, which may be waiting for the command.
PATIENCE_S = 1.0
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Command:
    """A command beside which a patient is purged.

    before: the commands that come first. task: what is asked beside the finding of images.
    """

    name: str
    arguments: tuple[str, ...]
    before: tuple[str, ...] = ("extract",)
    bucket: bool = False
    task: dict[str, Any] | None = None


def commands() -> dict[str, Command]:
    """Return the commands that are tried, by name."""
    extract = ("extract", "config.yaml", "--device", "cpu", "--workers", "0", "--batch-size", "4")
    on_cpu = ("--device", "cpu")
    tune = ("tune", "config.yaml", "--workers", "0", "--checkpoint-s", "0", *on_cpu)
    region = {"labels": ["finding"], "level": "region", "region": {"masks": "area"}}
    survival = {"time": "days", "event": "died", "level": "image"}
    every = [
        Command("extract", extract, ()),
        Command("knn", ("knn", "config.yaml")),
        Command("regions", ("regions", "config.yaml"), task=region),
        Command("cox", ("cox", "config.yaml"), task=survival),
        Command("segment", ("segment", "config.yaml", "--out", f"{OUT}/masks", *on_cpu)),
        Command("tune", tune),
        Command("fit", ("fit", "config.yaml", "--out", f"{OUT}/model", "--method", "probe")),
        Command(
            "predict", ("predict", "model", STORE, "--out", f"{OUT}/p.csv"), ("extract", "fit")
        ),
        Command("report", ("report", "config.yaml", "--out", f"{OUT}/r.html"), ("extract", "knn")),
        Command("export", ("export", STORE, f"{OUT}/features.npy")),
        Command("slices", ("slices", STORE, f"{OUT}/slices.csv")),
        Command("copy", ("copy", STORE, "URL"), ("extract", "knn"), bucket=True),
        Command("fetch", ("copy", "URL", f"{OUT}/fetched"), ("extract", "knn"), bucket=True),
    ]
    return {command.name: command for command in every}


@dataclass
class Outcome:
    """What became of the moments of a command.

    moments: at which the patient was purged; refused: after how many of them the command ended in
    words; early: at how many there was no such patient yet.
    """

    command: str
    moments: int = 0
    early: int = 0
    refused: int = 0
    held: int = 0
    unsound: int = 0
    failed: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """True where nothing held the patient, and nothing went wrong."""
        return not self.held + self.unsound + self.failed


_COLUMNS = ("moments", "early", "refused", "held", "unsound", "failed", "seconds")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--of", nargs="+", choices=commands(), default=list(commands()))
    options.add_argument("--moments", type=int, help="Try so many of each command, not all.")
    args = options.parse_args()
    good = True
    print(f"{'command':<9}" + "".join(f"{name:>9}" for name in _COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder, server(_needing_buckets(args.of)) as url:
        for name in args.of:
            outcome = Place(commands()[name], Path(folder) / name, url).race(args.moments)
            good = good and outcome.good
            cells = [getattr(outcome, column) for column in _COLUMNS]
            print(f"{name:<9}" + "".join(f"{cell:>9.0f}" for cell in cells), flush=True)
            for fault in outcome.faults[:20]:
                print(f"    {fault}", flush=True)
    sys.exit(not good)


def _needing_buckets(names: list[str]) -> list[str]:
    return ["copy"] if any(commands()[name].bucket for name in names) else []


class Place:
    """A command with the state that it starts from."""

    def __init__(self, command: Command, folder: Path, url: str) -> None:
        self.command = command
        self.folder = folder
        self.url = url
        self.start = folder / "start"

    def race(self, moments: int | None) -> Outcome:
        """Purge the patient at some moments of the command, or at all of them."""
        began = time.perf_counter()
        self.start.mkdir(parents=True)
        for name in NETWORKS:
            importlib.import_module(name)
        done(forked(lambda: _collect(self.start, self.command.task)))
        for name in self.command.before:
            self._to_its_end(self.start, commands()[name])
        # Once for the modules, which every process forked from now on has already.
        for name in done(forked(lambda: self._modules(self._fresh(-3)))):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        count = done(forked(lambda: self._count(self._fresh(-1))))
        places = range(count) if moments is None else np.linspace(0, count - 1, moments, dtype=int)
        print(f"{self.command.name}: {count} moments", file=sys.stderr)
        outcome = Outcome(self.command.name)
        for number in sorted({int(place) for place in places}):
            self._try(number, outcome)
        outcome.seconds = time.perf_counter() - began
        shutil.rmtree(self.folder)
        return outcome

    def _to_its_end(self, at: Path, command: Command) -> None:
        arguments = self._arguments(command, -2)
        if command.name == "fit":
            arguments = ["fit", "config.yaml", "--out", "model", "--method", "probe"]
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        ended = forked(lambda: radprobe(at, *arguments))
        if ended.code:
            raise RuntimeError(f"{arguments}: {ended}")

    def _arguments(self, command: Command, number: int) -> list[str]:
        url = f"{self.url}/{self.command.name}{number}"
        return [url if argument == "URL" else argument for argument in command.arguments]

    def _fresh(self, number: int) -> Path:
        at = self.folder / f"moment{number}"
        shutil.copytree(self.start, at)
        if self.command.name == "fetch":
            done(forked(lambda: self._send(at, number)))
        return at

    def _send(self, at: Path, number: int) -> None:
        """Send the store as it is, to be fetched."""
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        push(at / STORE, f"{self.url}/{self.command.name}{number}")

    def _modules(self, at: Path) -> list[str]:
        """Make the command and purge; return the names of all modules that took."""
        for work in (
            lambda: radprobe(at, *self._arguments(self.command, -3)),
            lambda: _withdraw(at),
        ):
            with contextlib.suppress(SystemExit):
                work()
        _needles(at)
        verify(at / STORE)
        return list(sys.modules)

    def _count(self, at: Path) -> int:
        """Make the command; return at how many moments a patient may be purged."""
        moments = Moments(at)
        try:
            radprobe(at, *self._arguments(self.command, -1))
        except SystemExit as error:
            if error.code:
                raise RuntimeError(str(error.code)) from None
        return moments.count

    # --- one moment ------------------------------------------------------------------------

    def _try(self, number: int, outcome: Outcome) -> None:
        """Purge the patient at one moment of the command, and look for the patient afterwards."""
        at = self._fresh(number)
        needles = forked(lambda: _needles(at)).result if self.command.before else None
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        call, called = os.pipe()
        answer, answered = os.pipe()
        purger = os.fork()
        if not purger:
            os.close(called)
            os._exit(self._purge(at, call, answered))
        os.close(call)
        os.close(answered)

        def purge_now() -> None:
            os.write(called, b"!")
            select.select([answer], [], [], PATIENCE_S)

        def run() -> None:
            Moments(at, number, purge_now)
            radprobe(at, *self._arguments(self.command, number))

        code = forked(run).code
        os.close(called)
        _, status = os.waitpid(purger, 0)
        os.close(answer)
        purged = os.waitstatus_to_exitcode(status)
        log = at.with_name(f"{at.name}.log").read_text()
        if purged == FAILED:
            outcome.early += 1
        else:
            outcome.moments += 1
            outcome.refused += code == FAILED
            failed = purged != 0 or code not in (0, FAILED) or "fault of radprobe" in log
            state = forked(lambda: self._judge(at, number, needles)).result
            outcome.failed += failed
            outcome.held += bool(state.get("holding"))
            outcome.unsound += not state.get("sound")
            if failed or state.get("holding") or not state.get("sound"):
                told = f"moment {number}: {code}, purge {purged}, {state}"
                outcome.faults.append(told)
                print(f"{self.command.name} {told} {log[-600:]}", file=sys.stderr, flush=True)
        shutil.rmtree(at)

    def _purge(self, at: Path, call: int, answered: int) -> int:
        """Wait for the moment, purge the patient, and note what is outside the store then."""
        if not os.read(call, 1):
            return FAILED  # the command ended before
        ended = forked(lambda: _withdraw(at))
        if self.command.name == "fetch":  # a copy is without the patient once it is sent again
            number = int(at.name.removeprefix("moment"))
            done(forked(lambda: self._send(at, number)))
        (at / "purged.json").write_text(json.dumps(sorted(_stamps(at / OUT))))
        if self.command.name == "copy":
            (at / "sent.json").write_text(json.dumps(sorted(self._sent(at))))
        os.write(answered, b"!")
        return ended.code

    def _sent(self, at: Path) -> set[str]:
        """Return the objects in the bucket, and their stamps."""
        from stores.bucket import Bucket

        number = at.name.removeprefix("moment")
        objects = Bucket(f"{self.url}/{self.command.name}{number}").listing()
        return {f"{name} {each.stamp}" for name, each in objects.items()}

    def _judge(self, at: Path, number: int, needles: dict[str, Any] | None) -> dict[str, Any]:
        """Return what still holds the patient, and whether verify finds nothing."""
        needles = needles or _needles(at)
        store = at / STORE
        holding = list(_holding(store, needles))
        stems = {path.stem for path in store.glob("results/*.json")}
        stems |= {path.stem for path in store.glob("segmentations/*.json")}
        holding += [f"{TUNED}/{p.name}" for p in (store / TUNED).glob("*") if p.name not in stems]
        holding += [f"{RUNS}/{path.name}" for path in (store / RUNS).glob("*/")]
        there = set(json.loads((at / "purged.json").read_text()))
        fetched = at / OUT / "fetched"
        lists = {fetched / name for name in _lists(fetched)} if fetched.is_dir() else set()
        new = {Path(each.split(" ")[0]) for each in _stamps(at / OUT) - there}
        holding += [str(path) for path in sorted(new - lists) if _holds(path, needles)]
        if self.command.name == "copy":
            holding += self._held_by_objects(at, needles)
        findings = [each for each in verify(store).findings if each.damage]
        return {"holding": holding, "sound": not findings, "findings": list(map(str, findings[:3]))}

    def _held_by_objects(self, at: Path, needles: dict[str, Any]) -> Iterator[str]:
        """Yield the objects that were sent after the purge and hold the patient."""
        from stores.bucket import Bucket

        number = at.name.removeprefix("moment")
        bucket = Bucket(f"{self.url}/{self.command.name}{number}")
        before = set(json.loads((at / "sent.json").read_text()))
        lists = _lists(at / STORE)
        for each in self._sent(at) - before:
            name, _, _ = each.partition(" ")
            path = at / "objects" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.get([name])[name])
            if name not in lists and _holds(path, needles):
                yield f"object {name}"


class Moments:
    """Counts the calls of this process on files below a folder; at one of them it does something.

    From the first of them on, for the rest of the process, in whichever thread.
    """

    def __init__(
        self, root: Path, number: int = -1, then: Callable[[], None] | None = None
    ) -> None:
        self.count = 0
        self._root = os.path.realpath(root) + "/"
        self._number = number
        self._then = then
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        # What was written elsewhere, or read of the images, tells of no moment of its own.
        if not path.startswith((f"{self._root}made", f"{self._root}{OUT}", f"{self._root}model")):
            return
        number = self.count
        self.count += 1
        if number == self._number and self._then is not None:
            self._then()


# --- what is looked for ------------------------------------------------------------------------


def _needles(at: Path) -> dict[str, Any]:
    """Return by what the patient is known: texts, bytes as hex, and rows."""
    store = FeatureStore.open(at / STORE)
    pseudonym = Names(store.path).pseudonym("patient", PATIENT)
    slices = store.slices()
    theirs = slices.filter([name == pseudonym for name in slices["patient"].to_pylist()])
    rows = row_numbers(theirs)
    ok = [row for row in rows.tolist() if store.status()[row] == 1]
    pieces = [patient_digest(pseudonym).tobytes().hex()]
    for name in ("cls", "file_digest", "pixel_digest"):
        pieces += [values.tobytes().hex() for values in store.read(name, ok)]
    texts = [pseudonym, f"{PATIENT}/"]
    return {"texts": texts, "bytes": pieces, "rows": rows.tolist()}


def _holding(store: Path, needles: dict[str, Any]) -> Iterator[str]:
    """Yield the files of a store that hold the patient, but for the list of who is withdrawn."""
    lists = _lists(store)
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and name not in lists and _holds(path, needles):
            yield name
        elif path.is_file() and name.split("/")[0] in DERIVED and _names_rows(path, needles):
            yield f"{name} (rows)"


def _lists(store: Path) -> set[str]:
    """Return the names of the list of who is withdrawn, and of its copy."""
    files = json.loads((store / "manifest.json").read_text())["files"]
    return {WITHDRAWN_PATIENTS, f"copies/{files[WITHDRAWN_PATIENTS]}"}


def _holds(path: Path, needles: dict[str, Any]) -> bool:
    """Return whether a file holds any of the needles, in its bytes or its table."""
    data = path.read_bytes()
    if any(text.encode() in data for text in needles["texts"]):
        return True
    if any(bytes.fromhex(piece) in data for piece in needles["bytes"]):
        return True
    if data[:4] == b"PAR1":
        text = str(pq.read_table(path).to_pylist())
        return any(each in text for each in needles["texts"])
    return False


def _names_rows(path: Path, needles: dict[str, Any]) -> bool:
    """Return whether a table of what was computed names a row of the patient."""
    if path.suffix != ".parquet" or "row" not in pq.read_schema(path).names:
        return False
    return bool(set(pq.read_table(path)["row"].to_pylist()) & set(needles["rows"]))


def _stamps(folder: Path) -> set[str]:
    """Return the files below a folder, each with what tells it from one that replaces it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {f"{path} {path.stat().st_ino} {path.stat().st_mtime_ns}" for path in files}


# --- states ------------------------------------------------------------------------------------


def _withdraw(at: Path) -> None:
    log = os.open(at / "withdraw.log", os.O_CREAT | os.O_WRONLY)
    from pipeline import cli

    os.chdir(at)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["radprobe", "withdraw", STORE, "--patient", PATIENT, "--purge"]
    cli.main()


def _collect(at: Path, task: dict[str, Any] | None) -> None:
    """Write a collection, masks, a network, labels and the config that names them."""
    rng = np.random.default_rng(0)
    lines = ["path,finding,days,died"]
    for patient in range(PATIENTS):
        for number in range(2):
            name = f"p{patient}/{number}.png"
            for folder, most in (("data", 255), ("masks", 2)):
                path = at / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, most, (20, 20), np.uint8)).save(path)
            lines.append(f"{name},{patient % 2},{10 * patient + number + 1},{number}")
    (at / "labels.csv").write_text("\n".join(lines) + "\n")
    write_tiny_folder(at.with_name("network"), depth=3)  # not copied with each state
    block = {"epochs": 2, "batch": 4, "at_once": 4, "patience": 2}
    config = {
        "data": {"root": "data", "paths": "keep", "patient": r"(p\d+)/", "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{at.with_name('network')}", "image_size": 28},
        "store": STORE,
        "outputs": {"part_rows": 4, "blocks": 1, "keep": ["cls", "mean", "patch"]},
        "labels": {"file": "labels.csv", "key": "path"},
        "tasks": {"finding": {"labels": ["finding"], "level": "image"}}
        | ({"other": task} if task else {}),
        "split": {"kind": "kfold", "folds": 3},
        "masks": {"area": {"root": "masks", "files": {"*/*": "{path}"}, "values": {1: "area"}}},
        "segment": {"knn": {"method": "knn", "shots": [1]}},
        "knn": {"k": [1]},
        "probe": {"steps": 3},
        "lora": {**block, "rank": 2},
    }
    (at / "config.yaml").write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main()

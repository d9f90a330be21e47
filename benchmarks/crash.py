"""Commands that are ended at each of their calls to the disk: the same command mends everything.

    .venv/bin/python -m benchmarks.crash --of extract append purge
    .venv/bin/python -m benchmarks.crash --sample 20
    .venv/bin/python -m benchmarks.crash --of extract --share 1/8   # to 8/8: all of it, in pieces

Every call of a command that changes something on the disk, or in a bucket, is a point at which it
may end, killed or by a power cut, or from which on the disk is full, of which it must tell as of no
fault of its own (`benchmarks.crash_points`). On what each point leaves, the same command is made
once more. After that the features must be those of a run that was left alone, bit for bit; verify
must find nothing; and Zarr and Parquet alone, without radprobe, must read the same.
All of it happens in processes forked from one that has imported everything, with a network of three
blocks and pictures of 20 pixels. Points that leave the very same state are tried once, and counted
each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
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
import zarr
from PIL import Image

from benchmarks.crash_points import CUT, Point, Watch, full_points, points_of
from pipeline import cli
from pipeline.fitted.folder import read_record
from stores import FeatureStore
from stores._disk import file_sha256
from stores.verify import verify
from tests.pipeline.models import write_tiny_folder

PATIENTS = 4
# In a folder that is made with it.
STORE = "made/store"
MODEL = "made/model"
SAFETENSORS = ".safetensors"
# With which a command ends that failed by no fault of radprobe.
FAILED = 2
# What must be equal of slices: pseudonyms are of a key, which a new store makes.
COLUMNS = ["row", "path", "frame", "withdrawn"]
# Findings that are no fault of a crash.
EXPECTED = ("duplicate", "pending")


@dataclass(frozen=True)
class Command:
    """A command that is ended and made again.

    before: brings the folder to the state it starts from. arguments: of radprobe, in the folder.
    after: what else is to be done before the state is compared, such as extracting what a repair
    has queued. bucket: the store is at a URL. codes: with which it ends well. makes: a folder that
    it makes whole or not at all, and refuses to make twice.
    """

    name: str
    arguments: tuple[str, ...]
    before: tuple[Callable[[Path], None], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()
    bucket: bool = False
    codes: tuple[int, ...] = (0,)
    makes: str = ""


@dataclass(frozen=True)
class Trial:
    """The points that leave one state.

    name: of the state; cut: the point at which a run is still to be ended, or the disk full.
    """

    points: tuple[str, ...]
    name: str = ""
    cut: Point | None = None


@dataclass(frozen=True)
class Left:
    """The folder that a command left, and how it ended: well, if in words or as it was cut."""

    at: Path
    code: int = CUT
    well: bool = True


@dataclass
class Outcome:
    """What became of the points of a command; each counts by the state that it leaves.

    ended: the same command, made again, ended well. equal: bit for bit; clean: for verify; plain:
    for Zarr and Parquet alone.
    """

    command: str
    points: int = 0
    states: int = 0
    ended: int = 0
    equal: int = 0
    clean: int = 0
    plain: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """True where every point came out as if nothing had been."""
        return self.points == self.ended == self.equal == self.clean == self.plain


_JUDGED = ("equal", "clean", "plain")
_COLUMNS = ("points", "states", "ended", *_JUDGED, "seconds")
# What networks take to import.
NETWORKS = ("torch", "transformers.models.dinov2.modeling_dinov2")
EXTRACT = ("extract", "config.yaml", "--device", "cpu", "--workers", "0", "--batch-size", "4")
EVALUATE = ("knn", "config.yaml")
FIT = ("fit", "config.yaml", "--out", MODEL, "--method", "knn")


def commands() -> dict[str, Command]:
    """Return the commands that are tried, by name."""
    extracted = (_extracted,)
    answered = (_extracted, _answered)
    purge = ("withdraw", STORE, "--patient", "p1", "--purge")
    repair = ("verify", STORE, "--repair")
    damaged = (*answered, _damaged)
    every = [
        Command("extract", EXTRACT),
        Command("append", EXTRACT, (_extracted, _grown)),
        Command("purge", purge, answered),
        # It ends with 1 where it found damage, and with 0 where the ended one had mended all.
        Command("repair", repair, damaged, (EXTRACT,), codes=(0, 1)),
        Command("evaluate", EVALUATE, extracted),
        Command("fit", FIT, extracted, makes=MODEL),
        Command("copy", ("copy", STORE, "URL"), extracted, bucket=True),
        Command("s3", EXTRACT, bucket=True),
    ]
    return {command.name: command for command in every}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--of", nargs="+", choices=commands(), default=list(commands()))
    options.add_argument("--sample", type=int, help="Try so many states of each, not all.")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--share", metavar="I/N", default="1/1", help="Try one of N shares.")
    args = options.parse_args()
    number, of = map(int, args.share.split("/"))
    good = True
    print(f"{'command':<9}" + "".join(f"{name:>9}" for name in _COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder, server(args.of) as url:
        for name in args.of:
            place = Place(commands()[name], Path(folder) / name, url)
            outcome = crash(place, args.seed, slice(number - 1, args.sample, of))
            good = good and outcome.good
            print(_row(outcome), flush=True)
            for fault in outcome.faults[:20]:
                print(f"    {fault}", flush=True)
            shutil.rmtree(place.folder)
    sys.exit(not good)


def crash(place: Place, seed: int, sample: slice) -> Outcome:
    """Try what a command leaves at each of its points, or a sample of it in a random order."""
    began = time.perf_counter()
    trials = place.prepare()
    points = sum(len(trial.points) for trial in trials)
    print(f"{place.command.name}: {points} points leave {len(trials)} states", file=sys.stderr)
    random.Random(seed).shuffle(trials)  # so that what was tried until now tells of the rest
    outcome = Outcome(place.command.name)
    for number, trial in enumerate(trials[sample]):
        try_again(place, trial, number, outcome)
        if number % 20 == 19:
            print(_row(outcome), file=sys.stderr, flush=True)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _row(outcome: Outcome) -> str:
    cells = [getattr(outcome, column) for column in _COLUMNS]
    return f"{outcome.command:<9}" + "".join(f"{cell:>9.0f}" for cell in cells)


def try_again(place: Place, trial: Trial, number: int, outcome: Outcome) -> None:
    """Make a command again on what it left, and note what came of it."""
    left = place.left_by(trial, number)
    at = left.at
    # What a full disk did not keep from its end must be whole as it is.
    code = left.code
    makes = place.command.makes
    is_made = makes and (at / makes).exists()
    if code not in place.command.codes and not is_made:
        code = forked(lambda: place.run(at, number)).code
    state = forked(lambda: place.judge(at, number)).result or {}
    weight = len(trial.points)
    outcome.states += 1
    outcome.points += weight
    ended = left.well and (bool(is_made) or code in place.command.codes)
    outcome.ended += weight * ended
    for name in _JUDGED:
        setattr(outcome, name, getattr(outcome, name) + weight * bool(state.get(name)))
    if not ended or not all(state.get(name) for name in _JUDGED):
        detail = {**state, "codes": (left.code, code), "log": _tail(at)}
        outcome.faults.append(f"{', '.join(trial.points[:3])}: {detail}")
        print(outcome.faults[-1], file=sys.stderr, flush=True)
    shutil.rmtree(at)


def log_of(at: Path) -> Path:
    """Return where the output of the commands that are made in a folder goes."""
    return at.with_name(f"{at.name}.log")


def _tail(at: Path) -> str:
    log = log_of(at)
    return log.read_text()[-400:] if log.is_file() else ""


# --- processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a forked process ended, and what it returned."""

    code: int
    result: Any = None


def forked(work: Callable[[], Any]) -> Ended:
    """Do some work in a process forked from this one, and wait for its end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        code = 1
        try:
            result = work()
            os.write(writer, json.dumps(result).encode())
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            os.write(writer, json.dumps({"error": repr(error)}).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), json.loads(text) if text else None)


def radprobe(at: Path, *arguments: str) -> None:
    """Make a command of radprobe in a folder, in this process, which it ends by SystemExit."""
    os.chdir(at)
    log = os.open(log_of(at), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["radprobe", *arguments]
    cli.main()


# --- what is tried -----------------------------------------------------------------------------


class Place:
    """A command with the state it starts from, and what a run that is left alone makes of it."""

    def __init__(self, command: Command, folder: Path, url: str) -> None:
        self.command = command
        self.folder = folder
        self.url = url
        self.start = folder / "start"
        self.calm = folder / "calm"

    def prepare(self) -> list[Trial]:
        """Make the state before and the state after; return what the command leaves on its way."""
        self.start.mkdir(parents=True)
        for name in NETWORKS:  # seconds, in each process forked from here on
            importlib.import_module(name)
        done(forked(lambda: _collect(self.start)))
        for step in self.command.before:
            step(self.start)
        # Once for the modules, which every process forked from now on has already.
        for name in done(forked(lambda: self.modules(self.fresh(-2)))):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        at = self.fresh(-1)
        counts, points = done(forked(lambda: self.watched(at)))
        state = forked(lambda: self.judge(at, -1, first=True))
        if state.code or not state.result["clean"]:
            raise RuntimeError(f"{self.command.name} left alone: {state}, {_tail(at)}")
        at.rename(self.calm)
        if self.command.bucket:
            return [Trial((str(point),), cut=point) for point in points_of(counts)]
        by_state: dict[str, list[str]] = {}
        for point, name in points.items():
            by_state.setdefault(name, []).append(point)
        trials = [Trial(tuple(points), name) for name, points in by_state.items()]
        return trials + [Trial((str(point),), cut=point) for point in full_points(counts)]

    def left_by(self, trial: Trial, number: int) -> Left:
        """Return what the command left at the points of a trial."""
        if trial.cut is None:
            return Left(self.folder / "states" / trial.name)
        at = self.fresh(number)
        ended = forked(lambda: self.run(at, number, trial.cut))
        if trial.cut.how == "full":
            return Left(at, ended.code, well=ended.code in (*self.command.codes, FAILED))
        if ended.code != CUT:
            raise RuntimeError(f"{trial.points} was not reached: {ended}, {_tail(at)}")
        return Left(at)

    def fresh(self, number: int) -> Path:
        """Return a folder with the state before."""
        at = self.folder / f"point{number}"
        shutil.copytree(self.start, at)
        if self.command.name == "s3":
            config = yaml.safe_load((at / "config.yaml").read_text())
            config["store"] = self.url_of(number)
            (at / "config.yaml").write_text(yaml.safe_dump(config))
        return at

    def url_of(self, number: int) -> str:
        """Return where in the bucket the store of a point is."""
        return f"{self.url}/{self.command.name}{number}"

    def modules(self, at: Path) -> list[str]:
        """Make the command and judge it; return the names of all modules that took."""
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        with contextlib.suppress(SystemExit):
            radprobe(at, *self._arguments(-2))
        self.judge(at, -2, first=True)
        return list(sys.modules)

    def watched(self, at: Path) -> tuple[dict[str, int], dict[str, str]]:
        """Make the command; return how many calls it made of each kind, and what points left."""
        watch = self._watch(at)
        try:
            radprobe(at, *self._arguments(-1))
        except SystemExit as error:
            if (error.code or 0) not in self.command.codes:
                raise RuntimeError(_tail(at)) from None
        return dict(watch.counts), watch.points

    def run(self, at: Path, number: int, cut: Point | None = None) -> None:
        """Make the command, ended at a point, or to its end by another machine."""
        if cut is not None:
            self._watch(at, cut)
        elif self.command.bucket:  # the key goes along, and nothing else
            _forget_mirrors(at)
        radprobe(at, *self._arguments(number))

    def _watch(self, at: Path, cut: Point | None = None) -> Watch:
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        if self.command.bucket:
            watch = Watch(at / "nowhere", cut=cut)
            watch.watch_bucket()
            return watch
        watch = Watch(at, None if cut else self.folder / "states", cut)
        watch.start()
        return watch

    def _arguments(self, number: int) -> list[str]:
        url = self.url_of(number)
        return [url if argument == "URL" else argument for argument in self.command.arguments]

    def judge(self, at: Path, number: int, *, first: bool = False) -> dict[str, Any]:
        """Return whether features, verify and other readers find what they must."""
        os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
        for arguments in self.command.after:
            _to_its_end(at, arguments)
        where: Path | str = self.url_of(number) if self.command.bucket else at / STORE
        findings = [each for each in verify(where).findings if each.kind not in EXPECTED]
        store = FeatureStore.open(where)
        state: dict[str, Any] = {
            "clean": not findings,
            "plain": plain_equals(store, str(where)),
            "findings": [f"{each.kind} {each.where} {each.detail}" for each in findings[:3]],
        }
        if not first:
            calm = self.calm / STORE
            if self.command.bucket:
                os.environ["RADPROBE_MIRRORS"] = str(self.calm / "mirrors")
                calm = Path(FeatureStore.open(self.url_of(-1)).path)
            state["equal"] = stores_equal(store, FeatureStore.open(calm))
            if self.command.name == "evaluate":
                state["equal"] = scores(at) == scores(self.calm)
            if self.command.name == "fit":
                state["equal"] = model_digests(at) == model_digests(self.calm)
        return state


def done(ended: Ended) -> Any:
    """Return what a process returned. Raises RuntimeError where it failed."""
    if ended.code:
        raise RuntimeError(str(ended.result))
    return ended.result


def stores_equal(store: FeatureStore, calm: FeatureStore) -> bool:
    """Return whether two stores hold the same slices and the same bits."""
    if not store.slices(COLUMNS).equals(calm.slices(COLUMNS)):
        return False
    for name in calm.arrays:
        here = store.read(name)
        there = calm.read(name)
        if here.tobytes() != there.tobytes():
            return False
    return True


def plain_equals(store: FeatureStore, where: str) -> bool:
    """Return whether Zarr and Parquet alone read what radprobe reads (docs/STORE.md)."""
    import fsspec

    file_system, root = fsspec.core.url_to_fs(where, use_listings_cache=False)
    with file_system.open(f"{root}/slices.parquet", "rb") as file:
        slices = pq.read_table(file)
    if not slices.select(COLUMNS).equals(store.slices(COLUMNS)):
        return False
    group = zarr.open_group(f"{where}/features.zarr", mode="r")
    for name in store.arrays:
        values = np.asarray(group[name][:])
        if values.tobytes() != store.read(name).tobytes():
            return False
    return True


def scores(at: Path) -> list[Any]:
    """Return the tidy scores of a store, without what a key or a clock changes."""
    table = pq.read_table(at / STORE / "results/results.parquet")
    rows = table.select(["task", "method", "metric", "setting", "value"]).to_pylist()
    return sorted(map(str, rows))


def model_digests(at: Path) -> dict[str, str]:
    """Return the sha256 of what a model has learnt, by file; its record is read, and believed."""
    folder = at / MODEL
    files = read_record(folder).files
    for name, digest in files.items():
        if file_sha256(folder / name) != digest:
            raise RuntimeError(f"{name} is not what the model's record says")
    return {name: digest for name, digest in files.items() if name.endswith(SAFETENSORS)}


# --- states ------------------------------------------------------------------------------------


def _collect(at: Path) -> None:
    """Write a collection, a network, labels and the config that names them."""
    rng = np.random.default_rng(0)
    lines = ["path,finding"]
    for patient in range(PATIENTS):
        for number in range(2):
            _write_picture(at / f"data/p{patient}/{number}.png", rng)
            lines.append(f"p{patient}/{number}.png,{patient % 2}")
    (at / "labels.csv").write_text("\n".join(lines) + "\n")
    network = write_tiny_folder(at.with_name("network"), depth=3)  # not copied with each state
    config = {
        "data": {"root": "data", "paths": "keep", "patient": r"(p\d+)/", "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{network}", "image_size": 28},
        "store": STORE,
        "outputs": {"part_rows": 4, "blocks": 1},
        "labels": {"file": "labels.csv", "key": "path"},
        "tasks": {"finding": {"labels": ["finding"], "level": "image"}},
        "split": {"kind": "kfold", "folds": 3},
        "knn": {"k": [1]},
    }
    (at / "config.yaml").write_text(yaml.safe_dump(config))


def _write_picture(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).save(path)


def _extracted(at: Path) -> None:
    _to_its_end(at, EXTRACT)


def _answered(at: Path) -> None:
    _to_its_end(at, EVALUATE)


def _to_its_end(at: Path, arguments: tuple[str, ...]) -> None:
    ended = forked(lambda: radprobe(at, *arguments))
    if ended.code:
        raise RuntimeError(f"{arguments}: {ended}, {_tail(at)}")


def _grown(at: Path) -> None:
    """Add a picture to a patient, and one of a new patient."""
    rng = np.random.default_rng(1)
    _write_picture(at / "data/p1/new.png", rng)
    _write_picture(at / "data/p9/0.png", rng)


def _damaged(at: Path) -> None:
    """Flip a bit in a chunk, in the slice table and in an answer."""
    answer = next((at / STORE / "results").glob("knn-*.json"))
    store = at / STORE
    for path in (store / "features.zarr/cls/c/1/0/0", store / "slices.parquet", answer):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


# --- a bucket ----------------------------------------------------------------------------------


def _forget_mirrors(at: Path) -> None:
    """Leave of the mirrors the keys alone, as another machine has it."""
    os.environ["RADPROBE_MIRRORS"] = str(at / "mirrors")
    for folder in (at / "mirrors").glob("*/"):
        for path in folder.iterdir():
            if path.suffix == ".key":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextlib.contextmanager
def server(names: list[str]) -> Iterator[str]:
    """Run a server of the S3 protocol in a process of its own, where a command needs it."""
    if not any(commands()[name].bucket for name in names):
        yield ""
        return
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _serve(writer)
    with os.fdopen(reader, "rb") as pipe:
        port = pipe.readline().decode().strip()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        done(forked(_make_bucket))
        yield "s3://crash"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _make_bucket() -> None:
    import fsspec

    fsspec.filesystem("s3").mkdir("crash")


def _serve(writer: int) -> None:
    """Serve until killed; tell the port first."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").disabled = True
    serving = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    serving.start()
    _, port = serving.get_host_and_port()
    os.write(writer, f"{port}\n".encode())
    signal.pause()


if __name__ == "__main__":
    main()

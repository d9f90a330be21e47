"""The command line: arguments, progress bars, printing, exit codes. Nothing imports it.

Exit codes: 0 success; 1 a finding (images that could not be read, ...); 2 wrong usage or config;
130 and 143 interrupted, with a store that resumes.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from pipeline._show_answers import RANDOM, show_differences, show_hits, show_results
from stores.errors import ConfigError, RadprobeError, TooManyBadError

if TYPE_CHECKING:
    from pipeline.embed import Progress
    from pipeline.extract import Summary
    from pipeline.plan import Explanation, Plan
    from pipeline.questions import Level, Method
    from stores.verify import Report

app = typer.Typer(
    name="radprobe",
    help="Embed a radiology collection once with DINOv2, then ask the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# Where no terminal says its width, tables keep their lines whole.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)

ConfigArg = Annotated[Path, typer.Argument(help="The YAML file that names data, store and tasks.")]
StorePath = Annotated[Path, typer.Argument(help="The folder of a store.")]
RehashOpt = Annotated[
    bool, typer.Option("--rehash", help="Open every file, whatever its size and time say.")
]
StoreOpt = Annotated[Path | None, typer.Option(help="Use this store instead of the config's.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def main() -> NoReturn:
    """Run the command line; our own errors become one message and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        app()
    except RadprobeError as error:
        err.print(f"radprobe: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, TooManyBadError) else 2)
    sys.exit(0)


@app.command(epilog="Example: radprobe extract configs/demo.yaml --batch-size 16")
def extract(
    config: ConfigArg,
    store: StoreOpt = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Slices a forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read files.")] = 1,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when more than this part is unreadable.")
    ] = 1.0,
    rehash: RehashOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Embed what is not in the store yet: every slice once, resumable at any moment."""
    from pipeline.config import load_config
    from pipeline.embed import Speed
    from pipeline.extract import extract

    settings = load_config(config, store)
    with _progress() as progress:
        speed = Speed(device=device, batch_size=batch_size, workers=workers)
        summary = extract(settings, speed, progress, max_bad=max_bad, rehash=rehash)
    if as_json:
        print(json.dumps(asdict(summary) | {"clean": summary.clean}, indent=1))
    else:
        _print_summary(summary)
    if not summary.clean:
        sys.exit(1)


@app.command(epilog="Example: radprobe plan configs/demo.yaml")
def plan(
    config: ConfigArg,
    store: StoreOpt = None,
    rehash: RehashOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say what extract would do: how many slices, bytes, files and hours. Writes nothing."""
    from pipeline.config import load_config
    from pipeline.plan import plan

    planned = plan(load_config(config, store), rehash=rehash)
    if as_json:
        print(json.dumps(asdict(planned), indent=1))
    else:
        _print_plan(planned)


@app.command(epilog="Example: radprobe explain configs/demo.yaml --rehash")
def explain(
    config: ConfigArg,
    store: StoreOpt = None,
    rehash: RehashOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say which field, file or part makes the store stale, and why. Writes nothing."""
    from pipeline.config import load_config
    from pipeline.plan import explain

    why = explain(load_config(config, store), rehash=rehash)
    if as_json:
        print(json.dumps(asdict(why) | {"fresh": why.fresh}, indent=1))
    else:
        _print_explanation(why)
    if not why.fresh:
        sys.exit(1)


@app.command(epilog="Example: radprobe verify demo/store --repair")
def verify(
    store: StorePath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended, queue bad parts again.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Check every byte of a store against its checksums, and every value against the tables."""
    from stores import verify as checks

    report = checks.repair(store) if repair else checks.verify(store)
    if as_json:
        print(json.dumps(asdict(report) | {"sound": report.sound}, indent=1))
    else:
        _print_report(report)
    if not report.sound:
        sys.exit(1)


@app.command(
    epilog="Example: radprobe export demo/store features.h5 --to h5 --array cls --blocks 4"
)
def export(
    store: StorePath,
    target: Annotated[Path, typer.Argument(help="The file to write; with --per-study, a folder.")],
    to: Annotated[str, typer.Option(help="h5, npy, parquet or faiss.")] = "h5",
    array: Annotated[str, typer.Option(help="cls, mean or patch.")] = "cls",
    blocks: Annotated[int, typer.Option(min=1, help="Last blocks of cls, side by side.")] = 1,
    per_study: Annotated[bool, typer.Option("--per-study", help="One HDF5 a study.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Write features for other tools, with the slice table beside them."""
    from pipeline.exchange import export_store

    rows = export_store(store, target, to, array, blocks, per_study=per_study)
    if as_json:
        print(json.dumps({"file": str(target), "rows": rows}))
    else:
        out.print(f"{rows} rows of {array} are in {target}.", highlight=False, soft_wrap=True)


@app.command("import", epilog="Example: radprobe import features.h5 my/store --recipe recipe.yaml")
def import_(
    source: Annotated[Path, typer.Argument(help="HDF5 with `features`, or .npy: (n, d).")],
    store: Annotated[Path, typer.Argument(help="The store to make.")],
    recipe: Annotated[Path, typer.Option(help="JSON or YAML: what made the features.")],
    table: Annotated[
        Path | None, typer.Option(help="Parquet or CSV, a row a feature: path, patient, ...")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a store of features that another tool computed; its receipts say so."""
    from pipeline.exchange import import_file

    made = import_file(source, store, recipe, table)
    rows = made.slices().num_rows
    if as_json:
        print(json.dumps({"store": str(made.path), "rows": rows}))
    else:
        out.print(f"{rows} rows are in {made.path}.", highlight=False, soft_wrap=True)


@app.command(epilog="Example: radprobe withdraw demo/store --patient RP-0042 --purge")
def withdraw(
    store: StorePath,
    patient: Annotated[str, typer.Option(help="The id as in the images, or its pseudonym.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the numbers from the files too.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let the patient in again.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Take a patient out of the store, and keep later images of the patient out."""
    from pipeline.collection import name_patient
    from stores import FeatureStore
    from stores import purge as taking

    name, opened = name_patient(store, patient), FeatureStore.open(store)
    if undo:
        taking.readmit(opened, name)
    done = {
        "patient": name,
        "withdrawn": 0 if undo else taking.withdraw(opened, name),
        "purged": taking.purge(opened, name) if purge and not undo else 0,
    }
    if as_json:
        print(json.dumps(done))
    elif undo:
        out.print(f"Patient {name} is let in again by the next extract.")
    else:
        out.print(f"Patient {name}: {done['withdrawn']} slices withdrawn, {done['purged']} purged.")


@app.command(epilog="Example: radprobe evaluate configs/demo.yaml --json")
def evaluate(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Answer every task of the config from the store: kNN, logistic probe and few-shot."""
    _answer(config, store, ("knn", "probe", "fewshot"), as_json)


@app.command(epilog="Example: radprobe knn configs/demo.yaml")
def knn(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Score each test case by its nearest neighbours among the training cases."""
    _answer(config, store, ("knn",), as_json)


@app.command(epilog="Example: radprobe probe configs/demo.yaml")
def probe(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Fit a logistic regression on the training cases and score the test cases."""
    _answer(config, store, ("probe",), as_json)


@app.command(epilog="Example: radprobe fewshot configs/demo.yaml")
def fewshot(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Score nearest centroids of a few patients a class, over many episodes."""
    _answer(config, store, ("fewshot",), as_json)


@app.command(epilog="Example: radprobe search configs/demo.yaml ct/0042 --k 5")
def search(
    config: ConfigArg,
    query: Annotated[str, typer.Argument(help="A row, a path of the collection, a pseudonym.")],
    k: Annotated[int, typer.Option(min=1, help="How many neighbours.")] = 10,
    level: Annotated[str, typer.Option(help="image, series, study or patient.")] = "series",
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Find the nearest series of a slice, file, folder or patient; its own patient is left out."""
    from pipeline.config import load_config
    from pipeline.search import is_random, search

    settings = load_config(config, store)
    hits = search(settings, query, k=k, level=_level(level))
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
    else:
        show_hits(out, hits, is_random(settings))


@app.command(epilog="Example: radprobe compare stores/vits14 stores/vitb14")
def compare(
    first: StorePath,
    second: StorePath,
    as_json: JsonOpt = False,
) -> None:
    """Say what the second store scores above the first, on tasks that both have answered."""
    from pipeline.compare import compare_stores

    found = compare_stores(first, second)
    if as_json:
        rows = [
            {"task": result.task, "method": result.method, **difference.model_dump(mode="json")}
            for result, differences in found
            for difference in differences
        ]
        print(json.dumps(rows, indent=1))
    else:
        show_differences(out, found)


@app.command("demo-data", epilog="Example: radprobe demo-data /tmp/collection --patients 20")
def demo_data(
    root: Annotated[Path, typer.Argument(help="The folder to write; empty or not there yet.")],
    patients: Annotated[int, typer.Option(min=10, help="How many patients.")] = 60,
    seed: Annotated[int, typer.Option(help="Equal seeds write equal files.")] = 0,
) -> None:
    """Write a synthetic collection of real DICOM, NIfTI and PNG files, with labels and masks."""
    from pipeline.demo import write_demo

    write_demo(root, patients, seed)
    out.print(f"A synthetic collection of {patients} patients is in {root}.")


# --- printing --------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show slices/s and time left while a run embeds; silent where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from pipeline.embed import Progress

    columns = (
        TextColumn("embed"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task("embed", total=None, visible=False, rate="")

        def advance(slices: int) -> None:
            bars.advance(task, slices)
            speed = bars.tasks[0].speed
            bars.update(task, rate=f"{speed:.1f} slices/s" if speed else "")

        yield Progress(lambda total: bars.update(task, total=total, visible=True), advance)


def _print_plan(plan: Plan) -> None:
    if plan.weights.startswith("random:"):
        out.print(RANDOM, style="bold yellow")
    found = ", ".join(f"{n} {name}" for name, n in plan.found.items() if n)
    state = "not there yet" if plan.new else "there"
    pace = "time unknown until a part is embedded"
    if plan.hours is not None:
        pace = f"about {plan.hours:.2g} hours"
    lines = [
        f"{plan.slices} slices in the collection ({found or 'none'}).",
        f"The store {plan.store} is {state}. To embed: {plan.embed} slices in {plan.parts} parts, "
        f"{plan.bytes / 1e6:.1f} MB in {plan.files} files, {pace}.",
    ]
    if plan.files_set_aside:
        each = ", ".join(f"{reason} {n}" for reason, n in sorted(plan.files_set_aside.items()))
        lines.append(f"Files set aside: {each}.")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_explanation(why: Explanation) -> None:
    lines = [
        f"recipe: {name} is {have!r} in the store, {want!r} in the config"
        for name, have, want in why.fields
    ]
    lines += [f"{c.kind}: {c.path} frame {c.frame}, row {c.row}: {c.why}" for c in why.changes]
    lines += [f"part {index}: {doubt}" for index, doubt in why.parts]
    for line in lines or [f"Nothing is stale: {why.store} holds the whole collection."]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_report(report: Report) -> None:
    for finding in report.findings:
        style = "red" if finding.damage else "yellow"
        line = f"{finding.kind}: {finding.where}: {finding.detail}"
        out.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    for line in report.mended:
        out.print(f"mended: {line}", highlight=False, markup=False, soft_wrap=True)
    verdict = "Sound" if report.sound else "Was damaged" if report.mended else "DAMAGED"
    size = f"{report.parts} parts, {report.rows} slices, {report.bytes / 1e6:.1f} MB"
    hint = "" if report.sound or report.mended else " --repair mends it."
    out.print(f"{verdict}: {size}.{hint}", highlight=False)


def _print_summary(summary: Summary) -> None:
    if summary.weights.startswith("random:"):
        out.print(RANDOM, style="bold yellow")
    found = ", ".join(f"{n} {name}" for name, n in summary.found.items() if n)
    out.print(f"{summary.slices} slices in the collection ({found or 'none'}).", highlight=False)
    out.print(
        f"{summary.embedded} embedded into {summary.store} in {summary.seconds['all']:.1f} s.",
        highlight=False,
        soft_wrap=True,
    )
    if summary.linked:
        out.print(
            f"{summary.linked} slices have the pixels of another and share its features; "
            "`radprobe verify` tells which: across train and test they are leakage.",
            highlight=False,
        )
    if summary.telling:
        out.print(
            f"{summary.telling} slices have their patient's id or a UID in their path, and the "
            "store keeps paths: rename those files before you pass the store on.",
            highlight=False,
        )
    for what, counts in (
        ("slices unreadable", summary.unreadable),
        ("files set aside", summary.files_set_aside),
    ):
        if counts:
            each = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
            out.print(f"{sum(counts.values())} {what}: {each}.", highlight=False)
    for line in summary.parts_elsewhere:
        out.print(f"Not done here, another process holds it: {line}.", highlight=False)


def _level(name: str) -> Level:
    """Return a level by name."""
    from typing import get_args

    from pipeline.questions import Level

    known: tuple[Level, ...] = get_args(Level)
    for level in known:
        if level == name:
            return level
    raise ConfigError(f"--level must be one of {', '.join(known)}. Got {name!r} instead.")


def _answer(config: Path, store: Path | None, methods: Sequence[Method], as_json: bool) -> None:
    from pipeline.config import load_config
    from pipeline.evaluate import evaluate

    results = evaluate(load_config(config, store), methods)
    if as_json:
        print(json.dumps([result.model_dump(mode="json") for result in results], indent=1))
    else:
        show_results(out, results)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """End on Ctrl-C and SIGTERM: claims are given back on the way out, finished parts stay."""
    err.print("Interrupted. What was committed is kept; the same command goes on from there.")
    sys.exit(128 + number)

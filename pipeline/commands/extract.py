"""Embed a collection, and say before what that would do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import (
    ConfigArg,
    JsonOpt,
    MinuteLines,
    PathsOpt,
    RehashOpt,
    StoreOpt,
    busy,
    duration,
    err,
    out,
)
from pipeline.commands.printing import RANDOM, print_line, print_lines
from pipeline.shared.texts import count

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.extract import Summary
    from pipeline.extraction.embed import Progress
    from pipeline.extraction.plan import Explanation, Plan
    from pipeline.extraction.sync import Look
    from pipeline.outlook import Outlook


app = typer.Typer()


@app.command(epilog="Example: radprobe extract configs/demo.yaml --batch-size 16")
def extract(
    config: ConfigArg,
    store: StoreOpt = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Slices a forward pass; by the machine if not given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda (all GPUs), cuda:1, or several: cuda:0,cuda:1")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read files; by the machine if not given."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network (torch.compile) first.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace of the first batches, for chrome://tracing.")
    ] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when more than this part is unreadable.")
    ] = 1.0,
    rehash: RehashOpt = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="One of N processes that share the store: 1/8 to 8/8."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Embed in so many processes of this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Embed on a dask cluster: tcp://host:8786.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Embed what is not in the store yet: every slice once, resumable at any moment.

    What labels, masks and split will come to is said first.
    """
    from pipeline.config.loading import load_config
    from pipeline.extract import extract, placement
    from pipeline.extraction.embed import Speed

    settings = load_config(config, store)
    # No part of the recipe: runs of any speed go on with one store.
    speed = Speed(device, batch_size, workers, compiled=compiled, trace=profile)
    where = placement(settings, shard, processes, scheduler)
    # Told at once, before the hours that it may save; JSON has standard output for itself.
    tell = partial(_print_outlook, err if as_json else out)
    with _progress() as progress:
        summary = extract(
            settings, speed, progress, max_bad=max_bad, rehash=rehash, where=where, ahead=tell
        )
    if as_json:
        print(json.dumps(asdict(summary) | {"clean": summary.clean}, indent=1))
    else:
        _print_summary(summary)
    if profile is not None:
        written = f"The trace is in {profile}: open it in chrome://tracing or ui.perfetto.dev."
        nothing = "Nothing was embedded, so there is no trace."
        print_line(err, written if summary.embedded else nothing)
    if not summary.slices:
        root = settings.data.root
        print_line(err, f"No image was found in {root}: check data.root, include and exclude.")
        raise typer.Exit(1)
    # What a shard leaves to live ones is theirs to do.
    if not (summary.done_here if shard else summary.clean):
        raise typer.Exit(1)


@app.command(epilog="Example: radprobe plan configs/demo.yaml")
def plan(
    config: ConfigArg,
    store: StoreOpt = None,
    rehash: RehashOpt = False,
    paths: PathsOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say what extract would do, and whether labels, masks and split join. Writes nothing.

    How many slices, bytes, files and hours; how many rows of the labels join, and why others do
    not; units, patients and positives of each task, and which cannot be answered; of masks some are
    read. Exits with 1 where nothing that is asked can be answered.
    """
    from pipeline.config.loading import load_config
    from pipeline.extraction.plan import plan, unnamed
    from pipeline.outlook import Outlook, outlook_of

    settings = load_config(config, store)
    outlook = Outlook()

    def look_ahead(look: Look) -> None:
        nonlocal outlook
        outlook = outlook_of(settings, look.reconciled.slices, look.names, look.withdrawn)

    with busy("looking at the collection"):
        planned = plan(settings, rehash=rehash, on_look=look_ahead)
    if not paths:
        planned = replace(planned, set_aside=unnamed(planned.set_aside))
    if as_json:
        print(
            json.dumps(
                asdict(planned) | {"outlook": asdict(outlook) | {"answerable": outlook.answerable}},
                indent=1,
            )
        )
    else:
        _print_plan(planned)
        _print_outlook(out, outlook)
    if not outlook.answerable:
        if not as_json:
            nothing = "Nothing that the config asks can be answered as it stands"
            print_line(err, f"{nothing}: the lines above say why.")
        raise typer.Exit(1)


@app.command(epilog="Example: radprobe explain configs/demo.yaml --rehash")
def explain(
    config: ConfigArg,
    store: StoreOpt = None,
    rehash: RehashOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Say which field, file or part makes the store stale, and why. Writes nothing."""
    from pipeline.config.loading import load_config
    from pipeline.extraction.plan import explain

    settings = load_config(config, store)
    with busy("looking at the collection"):
        why = explain(settings, rehash=rehash)
    if as_json:
        print(json.dumps(asdict(why) | {"fresh": why.fresh}, indent=1))
    else:
        _print_explanation(why)
    if not why.fresh:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show slices/s and time left while a run embeds; without a terminal in a line a minute."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from pipeline.extraction.embed import Progress

    if not err.is_terminal:
        with _ProgressLines().watched() as lines:
            yield Progress(lines.plan, lines.advance)
        return
    columns = (
        TextColumn("embed"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, transient=True) as bars:
        task = bars.add_task("embed", total=None, visible=False, rate="")

        def advance(slices: int) -> None:
            bars.advance(task, slices)
            speed = bars.tasks[0].speed
            bars.update(task, rate=f"{speed:.1f} slices/s" if speed else "")

        yield Progress(lambda total: bars.update(task, total=total, visible=True), advance)


class _ProgressLines(MinuteLines):
    """How far a run is, on stderr, a line a minute: for logs, which have no bar that moves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock, "looking at the collection")
        self._total = self._done = 0

    def plan(self, slices: int) -> None:
        """Take the number of slices that are to be embedded."""
        self._total = slices
        self._began = self._clock()

    def advance(self, slices: int) -> None:
        """Count slices that are done, and print a line where the last is a minute old."""
        self._done += slices
        self.repeat()

    @property
    def text(self) -> str:
        """How far it is, how fast, and how long it will take."""
        if not self._total:
            return super().text
        rate = self._done / (self._clock() - self._began)
        left = ""
        if rate:
            left = f", about {duration(max(self._total - self._done, 0) / rate)} left"
        return f"Embedded {self._done:,} of {self._total:,} slices, {rate:.2g} slices/s{left}."


def _print_summary(summary: Summary) -> None:
    """Print what was embedded and what was not, the faults last."""
    if summary.weights.startswith("random:"):
        out.print(RANDOM, style="bold yellow")
    modalities = ", ".join(f"{n} {name}" for name, n in summary.found.items() if n)
    out.print(
        f"{count(summary.slices, 'slice')} in the collection ({modalities or 'none'}).",
        highlight=False,
    )
    out.print(
        f"{summary.embedded} embedded into {summary.store} in {summary.seconds['all']:.1f} s.",
        highlight=False,
        soft_wrap=True,
    )
    if summary.linked:
        out.print(
            f"{count(summary.linked, 'slice has', 'slices have')} the pixels of another that is "
            "scaled alike, and its features; `radprobe verify` lists all copies, those scaled "
            "otherwise too: across train and test they are leakage.",
            highlight=False,
        )
    if summary.telling:
        out.print(
            f"{count(summary.telling, 'slice has', 'slices have')} a patient's id or a UID in "
            "the path, and the store keeps paths, as data.paths asks: set it to hide before you "
            "pass the store on.",
            highlight=False,
        )
    volumes = summary.unreadable_volumes
    of_volumes = f" (of {count(volumes, 'volume')})" if volumes else ""
    _print_losses("slice", f"unreadable{of_volumes}", summary.unreadable)
    _print_losses("file", "set aside", summary.files_set_aside)
    _print_left_out(summary.folders_left_out, summary.notes)
    if summary.unreadable or summary.files_set_aside:
        out.print(f"`radprobe failures {summary.store}` lists them.", soft_wrap=True)
    if summary.bottleneck:
        out.print(summary.bottleneck, highlight=False, soft_wrap=True)
    for line in summary.parts_elsewhere:
        out.print(f"Not done here, another process holds it: {line}.", highlight=False)
    for line in summary.parts_failed:
        print_line(out, f"Failed: {line}", style="red")


def _print_losses(what: str, how: str, counts: Mapping[str, int]) -> None:
    """Print how many were lost, and for which reasons; nothing where none were."""
    if counts:
        each = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
        out.print(f"{count(sum(counts.values()), what)} {how}: {each}.", highlight=False)


def _print_left_out(folders: Mapping[str, int], notes: Sequence[str]) -> None:
    """Print which folders were not searched, and what of the config had no effect."""
    if folders:
        each = ", ".join(f"{kind} {n}" for kind, n in sorted(folders.items()))
        out.print(
            f"{count(sum(folders.values()), 'folder')} left out: {each}. Name one in data.include "
            "to have it searched.",
            highlight=False,
        )
    for note in notes:
        print_line(out, f"Note: {note}", style="yellow")


def _print_plan(plan: Plan) -> None:
    """Print what extract would do, in two or three lines."""
    if plan.weights.startswith("random:"):
        out.print(RANDOM, style="bold yellow")
    modalities = ", ".join(f"{n} {name}" for name, n in plan.found.items() if n)
    state = "not there yet" if plan.new else "there"
    pace = "time unknown (`radprobe doctor --bench CONFIG` measures it)"
    if plan.hours is not None:
        by = {"bench": "`radprobe doctor --bench`", "store": "what the store took so far"}
        pace = f"about {duration(plan.hours * 3600)} by {by[plan.hours_by]}"
    lines = [
        f"{count(plan.slices, 'slice')} in the collection ({modalities or 'none'}).",
        f"The store {plan.store} is {state}. To embed: {count(plan.embed, 'slice')} in "
        f"{count(plan.parts, 'part')}, {plan.bytes / 1e6:.1f} MB of features in "
        f"{count(plan.files, 'file')} "
        f"(a part takes the room of {count(plan.part_rows, 'slice')}, full or not), {pace}.",
    ]
    print_lines(out, lines)
    _print_losses("file", "set aside", plan.files_set_aside)
    for each in plan.set_aside:
        path = f"{each.path}: " if each.path else ""
        print_line(out, f"  {each.reason}: {path}{each.detail}")
    if any(not each.path for each in plan.set_aside):
        print_line(out, "  --paths tells which files these are.")
    _print_left_out(plan.folders_left_out, plan.notes)


def _print_outlook(console: Console, outlook: Outlook) -> None:
    """Print what labels, masks and split will come to."""
    print_lines(console, outlook.lines())


def _print_explanation(why: Explanation) -> None:
    """Print each reason why the store is stale, or that it is not."""
    from pipeline.extraction.sync import EXCLUDED, UNWANTED
    from stores.reconcile import NOT_FOUND

    lines = [
        f"recipe: {name} is {have!r} in the store, {want!r} in the config"
        for name, have, want in why.fields
    ]
    # The word withdrawn is for patients.
    in_words = {EXCLUDED: "excluded", UNWANTED: "excluded", NOT_FOUND: "gone"}
    for change in why.changes:
        kind = in_words.get(change.why, change.kind)
        lines.append(f"{kind}: {change.path} frame {change.frame}, row {change.row}: {change.why}")
    lines += [f"part {index}: {doubt}" for index, doubt in why.parts]
    print_lines(out, lines or [f"Nothing is stale: {why.store} holds the whole collection."])

"""Look after a store: check, mend, withdraw patients, pass features on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import JsonOpt, PathsOpt, StorePath, busy, out
from pipeline.commands.printing import print_line, print_lines
from pipeline.shared.texts import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.extraction.copies import Copy
    from pipeline.extraction.withdrawal import PatientSlices
    from stores.purge import Purged
    from stores.verify import Report


app = typer.Typer()


@app.command(epilog="Example: radprobe verify demo/store --repair")
def verify(
    store: StorePath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended, queue bad parts again.")
    ] = False,
    paths: PathsOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Check every byte of a store against its checksums, and every value against the tables."""
    from pipeline.extraction.copies import copies_of
    from stores import verify as checks

    with busy("checking every byte"):
        report = checks.repair(store) if repair else checks.verify(store)
        copies = copies_of(store, report.twins, reveal=paths)
    if as_json:
        of_each = [[asdict(copy) for copy in group] for group in copies]
        document = asdict(report) | {"sound": report.sound, "copies": of_each}
        print(json.dumps(document, indent=1))
    else:
        _print_report(report, copies)
    if not report.sound:
        raise typer.Exit(1)


@app.command(epilog="Example: radprobe failures demo/store --json")
def failures(store: StorePath, as_json: JsonOpt = False) -> None:
    """List the files that were set aside and the slices that cannot be read, each with why."""
    from pipeline.extraction.failures import failures, in_lines

    lost = failures(store)
    if as_json:
        print(json.dumps([asdict(each) for each in lost], indent=1))
        return
    print_lines(out, in_lines(lost))
    if not lost:
        out.print("Every file was read, and every slice has features.")


@app.command(epilog="Example: radprobe slices demo/store slices.csv")
def slices(
    store: StorePath,
    target: Annotated[Path, typer.Argument(help="The .csv or .parquet file to write.")],
    as_json: JsonOpt = False,
) -> None:
    """Write the slice table with the real paths: which row is which file. Needs the store's key."""
    from pipeline.extraction.exchange import export_slices

    rows = export_slices(store, target)
    if as_json:
        print(json.dumps({"file": str(target), "rows": rows}))
    else:
        out.print(
            f"{count(rows, 'slice is', 'slices are')} in {target}.", highlight=False, soft_wrap=True
        )


@app.command(
    epilog="Example: radprobe export demo/store features.h5 --to h5 --array cls --blocks 4"
)
def export(
    store: StorePath,
    target: Annotated[Path, typer.Argument(help="The file to write; with --per-study, a folder.")],
    to: Annotated[
        str | None, typer.Option(help="h5, npy, parquet or faiss; by the file's name if not given.")
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(help="cls, mean, patch or volume; if not given, cls, or all that there is."),
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Last blocks of cls, side by side.")] = 1,
    per_study: Annotated[bool, typer.Option("--per-study", help="One HDF5 a study.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Write features for other tools, with the slice table beside them."""
    from pipeline.extraction.exchange import export_store, exported_array

    with busy("writing"):
        array = array or exported_array(store)
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
    from pipeline.extraction.exchange import import_file

    with busy("reading"):
        made = import_file(source, store, recipe, table)
    rows = made.slices().num_rows
    if as_json:
        print(json.dumps({"store": str(made.path), "rows": rows}))
    else:
        out.print(f"{rows} rows are in {made.path}.", highlight=False, soft_wrap=True)


@app.command(epilog="Example: radprobe copy demo/store s3://bucket/features/vits")
def copy(
    source: Annotated[str, typer.Argument(help="The folder of a store, or a URL with one.")],
    target: Annotated[str, typer.Argument(help="A URL, or a new folder.")],
    as_json: JsonOpt = False,
) -> None:
    """Send a store to object storage or fetch it from there, every byte checked; not its key."""
    from stores import remote
    from stores.errors import ConfigError

    if ("://" in source) == ("://" in target):
        raise ConfigError(
            f"One of both must be a URL such as s3://bucket/store. Got {source!r} and {target!r}."
        )
    with busy("copying"):
        if "://" in target:
            copied = remote.push(Path(source), target)
        else:
            copied = remote.fetch(source, Path(target))
    if as_json:
        print(json.dumps(asdict(copied)))
    else:
        text = f"{copied.objects} objects, {copied.bytes / 1e6:.1f} MB, are now in {target}."
        out.print(text, highlight=False, soft_wrap=True)


@app.command(epilog="Example: radprobe withdraw configs/demo.yaml --patient RP-0042 --purge")
def withdraw(
    store: Annotated[
        Path,
        typer.Argument(help="A store, its URL, or a config whose labels and path rule name too."),
    ],
    patient: Annotated[
        str,
        typer.Option(
            help="The id as in images or labels (site_a/7 of a named root), or a pseudonym."
        ),
    ],
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the numbers from the files too.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let the patient in again.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Take a patient out of the store, and keep later images of the patient out."""
    from pipeline.config.loading import load_config
    from pipeline.extraction.withdrawal import find_patient
    from pipeline.fitted.learnt import models_that_know
    from stores import FeatureStore
    from stores.storage import storage_at

    config = load_config(store) if store.is_file() else None
    storage = storage_at(store if config is None else config.store)
    # A store in object storage has one writer at a time; a local folder needs no claim here.
    with busy("withdrawing"), storage.occupied():
        slices = find_patient(storage.folder, patient, config)
        opened = FeatureStore.open(storage.folder)
        if undo:
            slices.readmit(opened)
            withdrawn = 0
        else:
            withdrawn = slices.withdraw(opened)
        purged = slices.purge(opened) if purge and not undo else None
    models: list[Path] = []
    if not undo:
        # Models lie where their maker put them: most often beside the store or the config.
        folders = {Path.cwd(), store.parent, storage.folder.parent}
        models = models_that_know(slices.names, folders)
    if as_json:
        done = {"patient": slices.names[0], "names": slices.names, "found_by": slices.found_by}
        counts = {"withdrawn": withdrawn, "purged": purged.rows if purged else 0}
        reach = {} if purged is None else {"removed": purged.files, "left": purged.out_of_reach}
        print(json.dumps(done | counts | reach | {"models": [str(path) for path in models]}))
    else:
        _print_withdrawal(slices, withdrawn, purged, models, undo=undo)


def _print_withdrawal(
    slices: PatientSlices,
    withdrawn: int,
    purged: Purged | None,
    models: Sequence[Path],
    *,
    undo: bool,
) -> None:
    """Print what became of a patient's slices, and by what they were found."""
    patient = f"Patient {' = '.join(slices.names)}"
    found_by = ", ".join(f"{n} by {what}" for what, n in slices.found_by.items())
    lines = [f"{patient}: {found_by or 'no slice is left in the table'}."]
    if undo:
        lines.append(f"{patient} is let in again by the next extract.")
    else:
        rows = 0 if purged is None else purged.rows
        lines.append(f"{patient}: {count(withdrawn, 'slice')} withdrawn, {rows} purged.")
        if models:
            each = ", ".join(map(str, models))
            lines.append(f"Models that have learnt from the patient, to be fitted again: {each}.")
        others = "Other models" if models else "Models"
        lines.append(
            f"{others} that were made before by `radprobe fit` still hold the patient if they have "
            "learnt from the patient, wherever they lie: fit them again, and remove the old."
        )
    if purged is not None:
        each = ", ".join(f"{name} {n}" for name, n in purged.files.items())
        lines.append(f"Removed from the store, or rewritten without the patient: {each or 'none'}.")
        lines.append(f"Out of reach, for you to look after: {'; '.join(purged.out_of_reach)}.")
    print_lines(out, lines)


def _print_report(report: Report, copies: Sequence[Sequence[Copy]]) -> None:
    for group in copies:
        each = []
        for copy in group:
            path = "" if copy.path is None else f" ({copy.path} frame {copy.frame})"
            each.append(f"row {copy.row}{path}")
        print_line(out, f"equal pixels: {', '.join(each)}")
    if any(copy.path is None for group in copies for copy in group):
        print_line(out, "--paths tells which files these rows are.")
    for finding in report.findings:
        style = "red" if finding.damage else "yellow"
        print_line(out, f"{finding.kind}: {finding.where}: {finding.detail}", style=style)
    print_lines(out, [f"mended: {line}" for line in report.mended])
    verdict = "Sound" if report.sound else "Was damaged" if report.mended else "DAMAGED"
    size = f"{count(report.parts, 'part')}, {count(report.rows, 'slice')}"
    size += f", {report.bytes / 1e6:.1f} MB"
    hint = "" if report.sound or report.mended else " --repair mends it."
    out.print(f"{verdict}: {size}.{hint}", highlight=False)

"""From an answer to a model, and what it says of new images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pipeline.commands.common import ConfigArg, JsonOpt, StoreOpt, busy, out
from pipeline.commands.printing import (
    RANDOM,
    print_line,
    print_lines,
    show_mask_validation,
    show_validation,
)
from pipeline.shared.texts import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from pipeline.fitted.draw import DrawTally
    from pipeline.fitted.mask_model import MaskModel
    from pipeline.fitted.model import Model
    from pipeline.fitted.predict import PredictTally, RunTally
    from pipeline.fitted.sources import FolderOptions
    from pipeline.fitted.validate import AnyValidation

V = TypeVar("V", bound="AnyValidation")
app = typer.Typer()
ModelArg = Annotated[Path, typer.Argument(help="The folder that `radprobe fit` wrote.")]


@app.command(epilog="Example: radprobe fit configs/demo.yaml --task chest --out chest-model")
def fit(
    config: ConfigArg,
    out_to: Annotated[Path, typer.Option("--out", help="Write the model into this new folder.")],
    task: Annotated[
        str | None, typer.Option(help="Which task or masks of the config, where it has several.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="probe (by default), knn, linear, attention or transformer; of masks a head of "
            "the config, or knn, linear, decoder, unet and others as `segment` has them; "
            "finetune, lora, bitfit, norm or frozen: a tuned network."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to fit, such as cuda; by default the CPU, of masks a GPU if any."),
    ] = None,
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a model of an answer: fitted as `evaluate` or `segment` does, in a folder of its own."""
    from pipeline.config.loading import load_config
    from pipeline.fitted.kinds import fit_model

    settings = load_config(config, store)
    with busy("fitting"):
        model = fit_model(settings, out_to, task=task, method=method, device=device)
    if as_json:
        print(json.dumps(model.record.model_dump(mode="json"), indent=1))
    else:
        _print_model(model)


@app.command(epilog="Example: radprobe predict chest-model new_studies --out predictions.csv")
def predict(
    model: ModelArg,
    target: Annotated[
        Path, typer.Argument(help="A folder of images, a store, or a config whose store is there.")
    ],
    out_to: Annotated[
        Path,
        typer.Option(
            "--out", help="Write a row a unit: .csv, .parquet or .json; masks into a new folder."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="files; dicom-sr: a structured report a unit, into a new folder; of masks "
            "dicom-seg: DICOM segmentations in place of NIfTI and PNG."
        ),
    ] = "files",
    tag: Annotated[
        str | None,
        typer.Option(help="A DICOM keyword, such as AccessionNumber, as a column more."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Keep a folder's features in this store; else they are thrown away."),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="Of files that name none, such as DX; by default the model's own."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The model's weights, a file or folder, where they are elsewhere now."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where a folder is embedded: auto, cpu, mps, cuda, cuda:1.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read files; by the machine if not given."),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Look at the folder again and again, and answer what arrives; needs --store.",
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Say what a model makes of new images: probabilities, a decision, and how unlike they are.

    A folder is embedded by the model's own recipe first; a store is answered at once. Of masks: a
    file an image, in its own space, and a table of what each structure fills.
    """
    from pipeline.extraction.embed import Speed
    from pipeline.fitted.kinds import load_model
    from pipeline.fitted.model import Model
    from pipeline.fitted.predict import predict, slices_file
    from pipeline.fitted.predict import watch as watch_folder
    from pipeline.fitted.reports import report
    from pipeline.fitted.sources import FolderOptions
    from stores.errors import ConfigError

    loaded = load_model(model)
    speed = Speed(device=device, workers=workers)
    options = FolderOptions(store=store, modality=modality, weights=weights, speed=speed)
    if not isinstance(loaded, Model):
        _draw(loaded, target, out_to, options, tag, to, watch is not None, as_json)
        return
    _one_of(("files", "dicom-sr"), to)
    if to == "dicom-sr":
        if watch is not None:
            raise ConfigError("--watch writes one table anew, and dicom-sr is a folder of reports.")
        with busy("predicting"):
            tally = report(loaded, target, out_to, options, tag=tag)
        _show_tally(loaded, tally, out_to, as_json)
        raise typer.Exit(int(bool(tally.unreadable or tally.unwritten)))
    if watch is not None:  # until it is stopped
        for tally in watch_folder(loaded, target, out_to, options, every_s=watch, tag=tag):
            _show_tally(loaded, tally, out_to, as_json)
    with busy("predicting"):
        tally = predict(loaded, target, out_to, options, tag=tag)
    _show_tally(loaded, tally, out_to, as_json)
    if loaded.sees == "slices" and not as_json:
        print_line(out, f"How much each slice counted: {slices_file(out_to)}.")
    if tally.unreadable:
        raise typer.Exit(1)


@app.command(epilog="Example: radprobe validate chest-model elsewhere.yaml")
def validate(
    model: ModelArg,
    config: ConfigArg,
    task: Annotated[
        str | None, typer.Option(help="Which task of the config is the model's question.")
    ] = None,
    leave_out_known: Annotated[
        bool,
        typer.Option("--leave-out-known", help="Leave out what the model has learnt from."),
    ] = False,
    recalibrate: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Make the probabilities right on this share of the patients, such as 0.3, and "
            "score the others alone.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where masks are drawn: auto, cpu, cuda:1, mps.")
    ] = "auto",
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Hold a model against the labels of another collection: external validation.

    Discrimination, calibration, net benefit and subgroups at the model's own operating point, and
    how far the images differ; of masks Dice and distances. Refused where patients or pixels of
    training are among them.
    """
    from pipeline.config.loading import load_config
    from pipeline.fitted.kinds import load_model
    from pipeline.fitted.model import Model
    from pipeline.fitted.validate import validate
    from stores.errors import ConfigError

    loaded = load_model(model)
    settings = load_config(config, store)
    if isinstance(loaded, Model):
        with busy("validating"):
            validation = validate(
                loaded,
                settings,
                task=task,
                leave_out_known=leave_out_known,
                recalibrate=recalibrate,
            )
        _show(validation, show_validation, as_json)
        return
    from pipeline.fitted.validate_masks import validate_masks

    if recalibrate is not None:
        raise ConfigError("Masks have no probabilities that --recalibrate could make right.")
    with busy("validating"):
        of_masks = validate_masks(
            loaded, settings, task=task, leave_out_known=leave_out_known, device=device
        )
    _show(of_masks, show_mask_validation, as_json)


def _show(validation: V, show: Callable[[Console, V], None], as_json: bool) -> None:
    if as_json:
        print(json.dumps(validation.model_dump(mode="json"), indent=1))
    else:
        show(out, validation)


def _one_of(forms: tuple[str, ...], to: str) -> None:
    """Raise ConfigError where a model writes no such form."""
    from stores.errors import ConfigError

    if to not in forms:
        raise ConfigError(f"This model writes {', '.join(forms)}. Got --to {to} instead.")


def _draw(
    model: MaskModel,
    target: Path,
    out_to: Path,
    options: FolderOptions,
    tag: str | None,
    to: str,
    is_watching: bool,
    as_json: bool,
) -> None:
    """Draw masks, and print what came of it."""
    from pipeline.fitted.draw import draw
    from pipeline.segmentation.mask_writer import MASK_FORMS
    from stores.errors import ConfigError

    _one_of(MASK_FORMS, to)
    if is_watching:
        raise ConfigError("--watch writes one table anew, and this model writes a folder of masks.")
    form = MASK_FORMS[MASK_FORMS.index(to)]
    with busy("drawing masks"):
        tally = draw(model, target, out_to, options, tag=tag, to=form)
    if as_json:
        print(json.dumps(asdict(tally), indent=1))
    else:
        _print_drawn(model, tally, out_to)
    if tally.unreadable or tally.unwritten:
        raise typer.Exit(1)


def _print_model(model: Model | MaskModel) -> None:
    """Print what was made, in a few lines."""
    from pipeline.fitted.card import summary_line

    record = model.record
    if record.random:
        out.print(RANDOM, style="bold yellow")
    print_lines(out, [summary_line(record), *(f"{note}." for note in record.notes)])
    print_line(out, f"The model is in {model.path}; its card.md tells what it is made of.")


def _show_tally(model: Model, tally: PredictTally, written: Path, as_json: bool) -> None:
    if as_json:
        counts = asdict(tally) | {"called_from": model.record.thresholds}
        print(json.dumps(counts, indent=1), flush=True)
    else:
        _print_tally(model, tally, written)


def _print_drawn(model: MaskModel, tally: DrawTally, written: Path) -> None:
    """Print on how many units masks were drawn, and what was left out."""
    if model.record.random:
        out.print(RANDOM, style="bold yellow")
    lines = [f"{tally.units} units were drawn on: {tally.files} files of masks."]
    lines += _learnt_lines(tally.learnt)
    lines += _left_out_lines(tally, "masks were not written")
    lines.append(f"Written to {written}.")
    print_lines(out, lines)


def _learnt_lines(learnt: int) -> list[str]:
    """Return what is said where a model was asked about what it has learnt from."""
    if not learnt:
        return []
    text = (
        f"{learnt} are of patients or images that the model has learnt from: what it says of them"
    )
    return [f"{text} is no test of it."]


def _left_out_lines(tally: RunTally, unwritten: str, other: int = 0) -> list[str]:
    """Return what is said of units that are unlike, and of those that were left out.

    unwritten: of units without their file; other: slices of other modalities.
    """
    counts = {
        "are unlike the images that the model learnt from": tally.unlike,
        "could not be read: their notes say why": tally.unreadable,
        f"{unwritten}: their notes say why": tally.unwritten,
        "slices of other modalities were left out": other,
        "slices await `radprobe extract`, and their units were left out": tally.pending,
    }
    lines = [f"{n} {what}." for what, n in counts.items() if n]
    # What nobody took for an image is told apart from what should have been one.
    lines += _by_kind_lines(
        "Without a row, as no images by themselves", "file", tally.files_set_aside
    )
    lines += _by_kind_lines("Not searched", "folder", tally.folders_left_out)
    return [*lines, *(f"{note}." for note in tally.notes)]


def _by_kind_lines(how: str, one: str, counts: Mapping[str, int]) -> list[str]:
    """Return how many files or folders have no part in a run, and how many are what."""
    if not counts:
        return []
    each = "; ".join(f"{what} {n}" for what, n in sorted(counts.items()))
    return [f"{how}: {count(sum(counts.values()), one)} ({each})."]


def _print_tally(model: Model, tally: PredictTally, written: Path) -> None:
    """Print how many units were decided which way, and what was left out."""
    if model.record.random:
        out.print(RANDOM, style="bold yellow")
    record = model.record
    called = [f"{n} called {name or 'none'}" for name, n in sorted(tally.decided.items())]
    lines = [f"{tally.units} {record.level} units{': ' if called else ''}{', '.join(called)}."]
    positive = ", the positive class," if record.kind == "binary" else ""
    for name, point in record.thresholds.items():
        text = f"{name}{positive} is called from a probability of {point:.4g} on (proba:{name})."
        lines.append(text)
    lines += _learnt_lines(tally.learnt)
    lines += _left_out_lines(tally, "have no report", tally.other)
    lines.append(f"Written to {written}.")
    print_lines(out, lines)

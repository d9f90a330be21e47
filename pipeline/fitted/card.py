"""A model told to people: the Markdown page `card.md` of its folder."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.config.tasks import CLASS_KINDS
from pipeline.evaluation.splits import PARTS
from pipeline.fitted.calibration import IN_WORDS, Calibration, Isotonic, Sigmoid
from pipeline.fitted.folder import Record
from pipeline.fitted.record import FiledRecord, MaskRecord, ModelRecord
from pipeline.report.wording import (
    RANDOM,
    interval,
    method_title,
    metric_title,
    sentence,
    setting_text,
)


def card_text(record: Record) -> str:
    """Return the page."""
    return "\n".join(_lines(record)) + "\n"


def summary_line(record: Record) -> str:
    """Return how well a model did on its test units, in one sentence."""
    tested = f"{record.counts['test'].patients} patients that it has not seen"
    classes: tuple[str, ...] = ()
    if isinstance(record, ModelRecord) and record.kind == "binary" and record.thresholds:
        classes = record.classes
    return f"{sentence(record.task, record.score.metrics, tested, classes)}."


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what is to be known of a model, each with what it is called."""
    modalities = ", ".join(record.trained_on.modalities)
    if isinstance(record, MaskRecord):
        yield "Draws", f"{', '.join(record.structures)}, on each {record.level}"
        yield "Head", _head(record)
        yield "Images", modalities
    else:
        what = ", ".join(record.classes)
        yield "Says", f"{what}, of each {record.level}"
        yield "Head", f"{_head(record)} on {record.features}, {_pooling(record)}"
        yield "Images", ", ".join(record.question.modality or ()) or modalities
        for name, threshold in record.thresholds.items():
            text = f"{name} is called from {threshold:.4g} on ({_rule(record)}, chosen on val)"
            yield "Operating point", text
        if record.kind in CLASS_KINDS:
            for text in _calibration_facts(record.calibration):
                yield "Calibration", text
    learnt = record.trained_on
    yield "Learnt from", f"{learnt.units} units of {learnt.patients} patients, {modalities}"
    yield "Answer", record.provenance.key[:12]


def _in_words(made: Sigmoid | Isotonic) -> str:
    """Return what makes the probabilities of a label right."""
    if isinstance(made, Isotonic):
        return f"isotonic regression, {len(made.said)} steps"
    return f"Platt's sigmoid, slope {made.slope:.3g}, intercept {made.intercept:.3g}"


def _calibration_facts(calibration: Calibration | None) -> Iterator[str]:
    if calibration is None:
        yield "none: the probabilities are as they are"
        return
    place = IN_WORDS[calibration.fitted_on]
    for name, made in calibration.sigmoids.items():
        yield f"{name}: {_in_words(made)}, on {made.units} units of {place}"
    if calibration.temperature is not None:
        temperature = calibration.temperature
        yield f"temperature {temperature.temperature:.3g}, on {temperature.units} units of {place}"


def _lines(record: Record) -> Iterator[str]:
    yield f"# {record.task}: {_head(record)}"
    yield ""
    if record.random:
        yield f"**{RANDOM}**: an untrained network made the features. This is a test of a pipeline."
        yield ""
    yield summary_line(record)
    yield ""
    if isinstance(record, MaskRecord):
        yield from _what_is_drawn(record)
    else:
        yield from _what(record)
    yield from _training(record)
    yield from _scores(record)
    yield from _limits(record)
    yield from _origin(record)


def _pooling(record: ModelRecord, quote: str = "") -> str:
    """Return how features of slices become one of a unit: of some heads that is theirs to learn."""
    if record.sees == "slices":
        return "each slice seen by itself"
    return f"pooled by {quote}{record.question.pool}{quote}"


def _head(record: Record) -> str:
    """Return what made a model, in words."""
    if isinstance(record, MaskRecord):
        method = record.method
        return method if record.name == method else f"{record.name} ({method})"
    return method_title(record.method).lower()


def _what_is_drawn(record: MaskRecord) -> Iterator[str]:
    seen = SEGMENTATION_HEADS[record.drawn_by.method].features
    yield "## What it draws"
    yield ""
    yield f"On each {record.level}, at its own resolution: {_codes(record.structures)}."
    yield f"Images: {', '.join(record.trained_on.modalities)}; the head sees {seen}."
    if record.setting:
        yield f"Setting: {setting_text(record.setting)}."
    yield ""


def _what(record: ModelRecord) -> Iterator[str]:
    question = record.question
    yield "## What it says"
    yield ""
    if record.kind == "regression":
        yield f"The number `{record.classes[0]}` of each {record.level}."
    elif record.kind == "survival":
        yield f"The risk of `{record.classes[0]}` of each {record.level}, as the log of the hazard"
        yield "against that of the mean of those it learnt from: higher is sooner."
    elif record.kind == "multilabel":
        yield f"For each {record.level}, how likely each of {_codes(record.classes)} is."
    else:
        yield f"For each {record.level}, how likely it is each of {_codes(record.classes)}."
    modality = ", ".join(question.modality or record.trained_on.modalities)
    yield f"Images: {modality}; features `{record.features}`, {_pooling(record, '`')},"
    yield f"scaled by `{record.scaling.kind}`."
    for name, threshold in record.thresholds.items():
        yield f"`{name}` is called from a probability of {threshold:.4g} on"
        yield f"({_rule(record)}, chosen on val)."
    if record.calibration is not None:
        yield from _calibration(record.calibration)
    if record.setting:
        yield f"Setting: {setting_text(record.setting)}."
    yield ""


def _rule(record: ModelRecord) -> str:
    rule = record.question.operating_point
    if isinstance(rule, str):
        return rule
    name = "specificity" if rule.sensitivity is None else "sensitivity"
    return f"{name} of {rule.sensitivity or rule.specificity:g}"


def _calibration(calibration: Calibration) -> Iterator[str]:
    place = IN_WORDS[calibration.fitted_on]
    for name, made in calibration.sigmoids.items():
        yield f"`{name}` is calibrated on {made.units} units of {place} ({_in_words(made)})."
    temperature = calibration.temperature
    if temperature is not None:
        yield f"Probabilities are calibrated on {temperature.units} units of {place} (temperature"
        yield f"{temperature.temperature:.3g})."


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _training(record: FiledRecord) -> Iterator[str]:
    trained_on = record.trained_on
    modalities = ", ".join(f"{n} {name}" for name, n in trained_on.modalities.items())
    yield "## What it was made of"
    yield ""
    yield f"{trained_on.units} units of {trained_on.patients} patients; slices: {modalities}."
    yield ""
    yield "| part | units | patients | of each class |"
    yield "|---|---|---|---|"
    for part in PARTS:
        count = record.counts[part]
        each = ", ".join(f"{name}: {n}" for name, n in count.positives.items())
        yield f"| {part} | {count.units} | {count.patients} | {each} |"
    yield ""


def _scores(record: FiledRecord) -> Iterator[str]:
    yield "## How well it did"
    yield ""
    yield "On the test units of the answer it comes from, with intervals of 95 %:"
    yield ""
    yield "| metric | value |"
    yield "|---|---|"
    for name, metric in record.score.metrics.items():
        yield f"| {metric_title(name)} | {interval(metric)} |"
    yield ""


def _limits(record: FiledRecord) -> Iterator[str]:
    yield "## What to mind"
    yield ""
    yield "It is no medical device. Its scores are of patients like those above, at the places they"
    yield "come from; `radprobe validate` says how it does elsewhere. A row of its predictions with"
    yield "`unlike_p` of 0.05 or less is of an image farther from all it has learnt from than 95 of"
    yield f"100 of these are from each other ({record.unlike.references} references)."
    yield ""
    for note in record.notes:
        yield f"- {note}."
    if record.notes:
        yield ""


def _origin(record: FiledRecord) -> Iterator[str]:
    provenance = record.provenance
    yield "## Where it comes from"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| network | `{record.backbone.name}` at {record.recipe.image_size} px |"
    yield f"| weights | `{record.recipe.weights}` |"
    yield f"| recipe | `{provenance.recipe}` |"
    yield f"| answer | `{provenance.key}` |"
    yield f"| split | `{provenance.split}` |"
    yield f"| labels | `{provenance.labels}` |"
    for name, version in provenance.versions.items():
        yield f"| {name} | {version} |"
    yield ""
    yield "It holds features and digests of the images it learnt from, no pixels, no path and no"
    yield "identifier of a patient."

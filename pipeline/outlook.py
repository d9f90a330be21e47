"""What modalities, labels, masks and split come to on a collection, before it is embedded.

The same functions join and divide as in an evaluation, so that neither can say another thing than
the other. Nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, read_labels
from pipeline.annotations.label_report import EXAMPLES, JoinReport, join_report
from pipeline.annotations.labels import label_units
from pipeline.annotations.mask_matching import (
    absent_files,
    join,
    other_suffixes,
    unjoined,
    why_none,
)
from pipeline.annotations.units import Truth, Units
from pipeline.config.feature_sets import are_kept, kept_features, made_of
from pipeline.config.heads import DEFAULT_HEADS, TUNED, declared
from pipeline.config.root import Config
from pipeline.config.tasks import FeatureSet, Task
from pipeline.evaluation.cases import features_alone, keys_of_units, split_texts
from pipeline.evaluation.failures import Failures
from pipeline.evaluation.questions import tables_of, with_policies
from pipeline.evaluation.splits import (
    Split,
    check_column,
    load_split,
    make_split,
    merged,
    split_new_patients,
    split_path,
)
from pipeline.extraction.modalities import modalities_of, unnamed_note
from pipeline.extraction.recipes import sees_volumes
from pipeline.shared.few import FEW_PATIENTS
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.errors import ConfigError, LabelError
from stores.features import OK, WITHDRAWN
from stores.withdrawn import NOBODY, Withdrawn

log = logging.getLogger(__name__)

# Of more classes than these, the largest are told.
_MOST_CLASSES = 5
# Said of regions, before `radprobe regions` has read their masks.
AS_IF_ALL = "masks are not read yet: counted as if each had every structure"
# A class of fewer patients may be a name by mistake, and stands in no message.
_FEWEST_SHOWN = 2


@dataclass(frozen=True)
class ClassCount:
    """Of a class, or of a label that is present: how many units and patients, and test patients."""

    name: str
    units: int
    patients: int
    test_patients: int


@dataclass(frozen=True)
class TaskOutlook:
    """What a task comes to: units, patients, and who of them tests, by holdout or by fold.

    refused: why it cannot be answered; "" where it can.
    """

    task: str
    level: str = ""
    units: int = 0
    patients: int = 0
    test_patients: int = 0
    classes: tuple[ClassCount, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""

    def lines(self) -> list[str]:
        """Return it in sentences, of a task that can be answered."""
        shown = [each for each in self.classes if each.patients >= _FEWEST_SHOWN]
        shown = sorted(shown, key=lambda each: -each.units)[:_MOST_CLASSES]
        counts = [
            f"{each.units} with {each.name!r} ({count(each.patients, 'patient')})" for each in shown
        ]
        others = len(self.classes) - len(shown)
        if others:
            counts.append(count(others, "other class", "other classes"))
        each = f": {', '.join(counts)}" if counts else ""
        units = count(self.units, f"{self.level} unit")
        head = f"Task {self.task}: {units} of {count(self.patients, 'patient')}"
        return [f"{head}{each}.", *(f"Task {self.task}: {note}." for note in self.notes)]


@dataclass(frozen=True)
class MaskOutlook:
    """What a set of masks comes to: slices that have one, and files that are not there.

    absent_suffixes: what files end in that are otherwise called as those. unknown: why they are not
    joined here; "" where they are. refused: why none can be used; "" where some can. read: how many
    of `files` masks were looked into; faults: what was wrong with how many of these; not_shown: the
    structures that none of them shows.
    """

    masks: str
    masked: int = 0
    slices: int = 0
    absent: int = 0
    absent_examples: tuple[str, ...] = ()
    absent_suffixes: tuple[str, ...] = ()
    unknown: str = ""
    refused: str = ""
    files: int = 0
    read: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    not_shown: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether any may be of use, as far as is known."""
        return not self.refused and (not self.read or sum(self.faults.values()) < self.read)

    def lines(self) -> list[str]:
        """Return it in sentences."""
        if self.unknown:
            return [f"Masks {self.masks}: {self.unknown}"]
        if self.refused:
            return [f"Masks {self.masks} cannot be used: {self.refused}"]
        lines = [f"{self.masked} of {self.slices} slices have a mask."]
        if self.absent:
            shown = f", first {', '.join(self.absent_examples)}" if self.absent_examples else ""
            there = ""
            if self.absent_suffixes:
                suffixes = " and ".join(self.absent_suffixes)
                there = f"; there are files of such names in {suffixes}"
            lines.append(f"{count(self.absent, 'file is', 'files are')} not there{shown}{there}.")
        return [f"Masks {self.masks}: {line}" for line in lines + self._lines_of_read()]

    def _lines_of_read(self) -> list[str]:
        """Return what was seen in the masks that were looked into."""
        if not self.read:
            return []
        looked_at = f"{self.read} of {count(self.files, 'mask')} looked at"
        if not self.faults:
            lines = [f"{looked_at}, values and sizes fit."]
        else:
            shown = [*self.faults.items()][:EXAMPLES]
            told = [f"it {why} ({n})" for why, n in shown]
            unusable = sum(self.faults.values())
            others = unusable - sum(n for _, n in shown)
            more = f"; {others} for other reasons" if others else ""
            lines = [f"{looked_at}, {unusable} cannot be used: {'; '.join(told)}{more}."]
        if self.not_shown:
            lines.append(f"none looked at shows {', '.join(map(repr, self.not_shown))}.")
        return lines


@dataclass(frozen=True)
class Outlook:
    """What a config asks of a collection, and whether that can be answered.

    modalities: how many slices each has, the commonest first. labels: how the label file joins,
    None where there is none. notes: which slices name no modality, what is asked of features that
    are not kept, and why labels that no task needs cannot be read. segments: whether heads are to
    segment by the masks.
    """

    modalities: dict[str, int] = field(default_factory=dict)
    labels: JoinReport | None = None
    tasks: tuple[TaskOutlook, ...] = ()
    masks: tuple[MaskOutlook, ...] = ()
    notes: tuple[str, ...] = ()
    segments: bool = False

    @property
    def answerable(self) -> bool:
        """Whether any task, or masks of heads that segment, can be answered; or none is asked."""
        can_be = [not task.refused for task in self.tasks]
        if self.segments:
            can_be += [masks.usable for masks in self.masks]
        return any(can_be) or not can_be

    def lines(self) -> list[str]:
        """Return it in sentences, a line each."""
        lines = []
        if self.modalities:
            each = ", ".join(f"{n} {name}" for name, n in self.modalities.items())
            lines.append(f"Slices by modality: {each}.")
        lines += self.labels.lines() if self.labels else []
        # What several tasks cannot be answered for is told once.
        refused: dict[str, list[str]] = {}
        for task in self.tasks:
            if task.refused:
                refused.setdefault(task.refused, []).append(task.task)
            else:
                lines += task.lines()
        for why, names in refused.items():
            tasks = f"Task{'s' * (len(names) > 1)} {', '.join(names)}"
            lines.append(f"{tasks} cannot be answered: {why}")
        for masks in self.masks:
            lines += masks.lines()
        return lines + list(self.notes)


def log_outlook(outlook: Outlook) -> None:
    """Log what there is to say, line by line."""
    for line in outlook.lines():
        log.info("%s", line)


def outlook_of(
    config: Config,
    slices: pa.Table,
    names: Names,
    withdrawn: Withdrawn = NOBODY,
    *,
    read_masks: bool = True,
) -> Outlook:
    """Return what a config comes to on slices (SLICE_SCHEMA, real paths).

    withdrawn: whose labels are no longer expected to join any. read_masks: whether some masks are
    looked into.
    """
    if not len(slices):
        return Outlook()
    labels, tasks, notes = _labels(config, slices, names, withdrawn)
    masks = []
    for name in config.masks:
        masks.append(_masks(config, name, slices, names, read=read_masks))
    live = slices.filter(pc.invert(slices["withdrawn"]))
    return Outlook(
        modalities=modalities_of(live),
        labels=labels,
        tasks=tuple(tasks),
        masks=tuple(masks),
        segments=bool(config.segment),
        notes=(*unnamed_note(config.data, live), *notes, *_not_kept(config)),
    )


def _labels(
    config: Config, slices: pa.Table, names: Names, withdrawn: Withdrawn
) -> tuple[JoinReport | None, list[TaskOutlook], list[str]]:
    if config.labels is None:
        return None, [], []
    try:
        table = read_labels(config.labels, [])
        report = join_report(table, slices, config.data.root, names, withdrawn)
    except LabelError as error:
        refused = [TaskOutlook(name, refused=str(error)) for name in config.tasks]
        return None, refused, [] if refused else [str(error)]
    failures = Failures()
    tasks = {name: with_policies(task, config.labels) for name, task in config.tasks.items()}
    tables = tables_of(config, config.labels, tasks, failures)
    outlooks = {}
    for name, of_task in tables.items():
        with failures.of(name):
            if not report.joined_slices:
                # Why is said of the file, once for all tasks.
                raise LabelError(f"No row of {report.file!r} joins a slice, as is said above.")
            outlooks[name] = _task(config, name, tasks[name], of_task, slices, names)
    # The first reason of each task that cannot be answered.
    for name, why in reversed(failures.errors):
        outlooks[name] = TaskOutlook(name, refused=str(why))
    # What is said of the file is said once, above.
    shown_above = set(report.notes)
    in_order = [outlooks[name] for name in config.tasks]
    return report, [_without_notes(each, shown_above) for each in in_order], []


def _without_notes(outlook: TaskOutlook, shown_above: set[str]) -> TaskOutlook:
    return replace(outlook, notes=tuple(note for note in outlook.notes if note not in shown_above))


# --- a task --------------------------------------------------------------------------------


def _task(
    config: Config, name: str, task: Task, table: LabelTable, slices: pa.Table, names: Names
) -> TaskOutlook:
    """Return what a task comes to, if every slice becomes features. Raises LabelError."""
    more: tuple[str, ...] = ()
    if task.region is not None:
        # Here, since it brings what reads masks.
        from pipeline.segmentation.region_outlook import regions_ahead

        table, slices = regions_ahead(config, task, table, slices, names)
        more = (AS_IF_ALL,)
    rows = slices["row"].to_numpy()
    status = np.full(rows.max() + 1, OK, np.uint8)
    status[rows[slices["withdrawn"].to_numpy(zero_copy_only=False)]] = WITHDRAWN
    units = label_units(table, task, slices, status, config.data.root, names)
    split = _split(config, name, task, table, units, slices, names)
    # Of folds all test, one after the other; what one of them tests is what there is to go by.
    tests = split.folds[0]["test"]
    in_test = np.isin(units.groups, [p for side in tests for p in split.patients[side]])
    classes = _class_counts(units, in_test)
    test_patients = len(np.unique(units.groups[in_test]))
    outlook = TaskOutlook(
        name,
        level=task.level,
        units=len(units.ids),
        patients=len(np.unique(units.groups)),
        test_patients=test_patients,
        classes=tuple(classes),
        notes=(*units.notes, *more),
    )
    if config.split.kind == "kfold":
        return outlook
    return replace(outlook, notes=(*outlook.notes, *_few(outlook)))


def _class_counts(units: Truth, in_test: NDArray[np.bool_]) -> list[ClassCount]:
    if units.kind == "regression":
        return []
    counts = []
    for name, carries in zip(units.classes, units.indicator.T, strict=True):
        patients = len(np.unique(units.groups[carries]))
        test_patients = len(np.unique(units.groups[carries & in_test]))
        counts.append(ClassCount(name, int(carries.sum()), patients, test_patients))
    return counts


def _few(outlook: TaskOutlook) -> list[str]:
    """Return a note where a holdout tests too few patients for a score to say much."""
    # Of two equals the last, which is the positive one.
    classes = reversed(outlook.classes)
    rarest = min(classes, key=lambda each: each.test_patients, default=None)
    if outlook.test_patients >= FEW_PATIENTS and (rarest is None or rarest.test_patients):
        return []
    of_rarest = ""
    if rarest is not None:
        name = repr(rarest.name) if rarest.patients >= _FEWEST_SHOWN else "the rarest class"
        of_rarest = f", {rarest.test_patients} of them with {name}"
    return [
        f"test has {count(outlook.test_patients, 'patient')}{of_rarest}: their score would say "
        f"little. `split: {{kind: kfold}}` tests all {outlook.patients} in turn"
    ]


def _split(
    config: Config,
    name: str,
    task: Task,
    table: LabelTable,
    units: Units,
    slices: pa.Table,
    names: Names,
) -> Split:
    """Return the split as it will be, but for copies, which features tell. Raises LabelError."""
    choice = config.split
    texts = split_texts(choice, table, units, slices, config.data.root, names)
    path = split_path(config.store, name, task, choice)
    if not path.is_file():
        return make_split(units, choice, texts, keys=keys_of_units(units, slices))
    on_file = load_split(path)
    if texts is not None:
        check_column(on_file, units, texts, choice)
    keys = keys_of_units(units, slices) if choice.new == "deal" else None
    addition = split_new_patients(on_file, units, choice, keys=keys)
    return on_file if addition is None else merged(on_file, addition)


# --- masks and features --------------------------------------------------------------------


def _masks(config: Config, name: str, slices: pa.Table, names: Names, *, read: bool) -> MaskOutlook:
    """Return what masks come to; read: whether some are looked into."""
    masks = config.masks[name]
    why = unjoined(config, masks)
    if why:
        return MaskOutlook(name, unknown=why)
    try:
        groups = join(config, masks, slices, names)
        absent = absent_files(config, masks, slices, groups)
        refused = "" if groups else why_none(config, masks, slices)
    except (ConfigError, LabelError) as error:
        return MaskOutlook(name, refused=str(error))
    outlook = MaskOutlook(
        name,
        masked=sum(len(group.numbers) for group in groups),
        slices=int((~slices["withdrawn"].to_numpy(zero_copy_only=False)).sum()),
        absent=len(absent),
        absent_examples=tuple(absent[:EXAMPLES]) if names.paths == "keep" else (),
        absent_suffixes=tuple(other_suffixes(masks.root or config.data.root, absent)),
        refused=refused,
        files=len(groups),
    )
    if not read or not groups:
        return outlook
    # Here, since it brings what reads masks.
    from pipeline.segmentation.mask_outlook import sample_masks

    sample = sample_masks(config, masks, slices, names, groups)
    return replace(outlook, read=sample.read, faults=sample.faults, not_shown=sample.absent)


def _not_kept(config: Config) -> Sequence[str]:
    """Return what the config asks of features that the store would not have."""
    if sees_volumes(config):
        return _not_of_volumes(config)
    notes = list(_not_kept_for_heads(config))
    if "patch" in config.outputs.keep:
        return notes
    keep = ", ".join([*config.outputs.keep, "patch"])
    if config.segment:
        notes.append(
            "Segmentation heads read patch tokens, which are not kept: write `outputs: {keep: "
            f"[{keep}]}}`, or nothing can be segmented."
        )
    if any(task.region is not None for task in config.tasks.values()):
        notes.append(
            "Regions are made of patch tokens, which are not kept: write `outputs: {keep: "
            f"[{keep}]}}`, or no task of regions can be answered."
        )
    return notes


def _not_of_volumes(config: Config) -> Sequence[str]:
    """Return which blocks of a config that sees volumes ask for slices."""
    asking = ["segment"] if config.segment else []
    asking += [name for name in TUNED if getattr(config, name) is not None]
    if not asking:
        return []
    # A vector of the whole volume stands alone: slices are another store's.
    keep = "cls, mean, patch" if config.segment else "cls, mean"
    return [
        f"Masks are drawn and networks tuned on slices, and {config.backbone.name} sees whole "
        f"volumes here, so that nothing is answered by {' and '.join(asking)}: name a network of "
        f"slices in another config, with a store of its own and `outputs: {{keep: [{keep}]}}`."
    ]


def _not_kept_for_heads(config: Config) -> Iterator[str]:
    """Yield what the heads of `evaluate` see of whole slices and the store would not have."""
    outputs = config.outputs
    of_slices = [task for task in config.tasks.values() if task.region is None]
    of_survival = {task.time is not None for task in of_slices}
    lacking: dict[FeatureSet, list[str]] = {}
    for method in DEFAULT_HEADS:
        head = declared(method)
        if ("survival" in head.kinds) not in of_survival:
            continue
        features = features_alone(config.settings_of(head).features)
        if not are_kept(features, outputs.keep, outputs.blocks):
            lacking.setdefault(features, []).append(method)
    for features, methods in lacking.items():
        missing = [name for name in made_of(features).outputs if name not in outputs.keep]
        keep = ", ".join([*outputs.keep, *missing])
        available = kept_features(outputs.keep, outputs.blocks)
        instead = f", or e.g. `{methods[0]}: {{features: {available[0]}}}`" if available else ""
        how = f"`outputs: {{keep: [{keep}]}}`" if missing else "`outputs: {blocks: 4}`"
        yield (
            f"Nothing is answered by {' and '.join(methods)}, of {features}, which is not kept: "
            f"write {how}{instead}."
        )

"""A public data set's folder to a config: labels, split and masks as the rest of radprobe reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.datasets.contracts import Contents, DataSet
from pipeline.datasets.known import DATASETS
from pipeline.datasets.systematic import with_parts
from pipeline.shared.spreadsheets import quoted_cell
from stores._disk import write_atomic, writing
from stores.errors import ConfigError

CONFIG = "config.yaml"
LABELS = "labels.csv"
SPLIT = "split.csv"
BOXES = "boxes.csv"


@dataclass(frozen=True)
class Counted:
    """How many of something are there, and how many were published; None where that is unknown."""

    what: str
    got: int
    published: int | None

    @property
    def full(self) -> bool:
        """False where there are other than were published."""
        return self.published in (None, self.got)


@dataclass(frozen=True)
class Described:
    """What was found in a folder and written. kept: the config was there and was left as it is."""

    name: str
    config: Path
    kept: bool
    images: int
    counts: list[Counted]
    notes: list[str]

    @property
    def full(self) -> bool:
        """Whether every count is the published one."""
        return all(count.full for count in self.counts)


def describe(name: str, folder: Path, out: Path, *, paper_split: bool = False) -> Described:
    """Check a downloaded data set, and write a config with its labels and split under `out`.

    paper_split: whether it is dealt by the rule of arXiv 2312.02366, in the place of an official
    one. Tables are written anew each time; a config that is there stays. Raises ConfigError for an
    unknown name, and where the folder has another layout, saying which is expected.
    """
    if name not in DATASETS:
        raise ConfigError(f"There is no data set {name!r}. Known: {', '.join(DATASETS)}.")
    known = DATASETS[name]
    out = out.resolve()
    try:
        contents = known.find(folder.resolve(), out)
    except ConfigError as error:
        raise ConfigError(f"{error} {known.title} is looked for as: {known.layout}.") from None
    except KeyError as error:
        raise ConfigError(f"A table of {known.title} in {folder} has no column {error}.") from None
    if not contents.items:
        raise ConfigError(
            f"{str(folder)!r} has the layout of {known.title} and none of its images: "
            f"{known.layout}."
        )
    if paper_split:
        contents = _as_the_paper(name, contents)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / LABELS, _labels(contents).encode())
    if _is_split(contents):
        write_atomic(out / SPLIT, _split(contents).encode())
    if _has_boxes(contents):
        write_atomic(out / BOXES, _boxes(known, contents).encode())
    # The config comes last: where it is there, the tables that it names are too.
    was_there = (out / CONFIG).exists()
    if not was_there:
        write_atomic(out / CONFIG, _config(name, known, contents).encode())
    published = contents.published or known.published
    counts = [Counted(what, got, published.get(what)) for what, got in contents.counts.items()]
    notes = list(contents.notes)
    if was_there and paper_split:
        notes.append(f"{SPLIT} counts where the config says split: {{kind: list, file: {SPLIT}}}")
    return Described(name, out / CONFIG, was_there, len(contents.items), counts, notes)


def _as_the_paper(name: str, contents: Contents) -> Contents:
    """Return what a folder has with the parts that the paper's rule gives. Raises ConfigError."""
    steps = DATASETS[name].paper_split
    if steps is None:
        known = ", ".join(each for each, about in DATASETS.items() if about.paper_split)
        raise ConfigError(
            f"arXiv 2312.02366 deals {name!r} by no rule that is known, or by its official lists. "
            f"Leave --paper-split out; it is for {known}."
        )
    note = (
        "the split has the paper's rule and sizes, in the order of names: the paper's own lists "
        "follow the order of a file system"
    )
    items = with_parts(contents.items, steps)
    notes = [*contents.notes, note]
    left_out = sum(item.part is None for item in items)
    if left_out:
        notes.append(f"{left_out} of {len(items)} stand in no part of it, and are not asked about")
    return replace(contents, items=items, notes=notes)


def _is_split(contents: Contents) -> bool:
    """Return whether the set has an official split."""
    return any(item.part for item in contents.items)


def _has_masks(contents: Contents) -> bool:
    return any(item.mask for item in contents.items)


def _has_boxes(contents: Contents) -> bool:
    return any(item.box for item in contents.items)


def _boxes(known: DataSet, contents: Contents) -> str:
    """Return the table of boxes: a row an item that is one."""
    column = known.labels["structure"]
    rows = [[item.path, item.labels[column], *item.box] for item in contents.items if item.box]
    return _csv([["path", column, "x0", "x1", "y0", "y1", "z0", "z1"], *rows])


def _split(contents: Contents) -> str:
    """Return the table of the official split: a row an item that it names."""
    rows = [[item.path, item.part] for item in contents.items if item.part]
    return _csv([["key", "part"], *rows])


def _labels(contents: Contents) -> str:
    """Return the label table: a row an item, a column a label in the order they first come."""
    columns: dict[str, None] = {}
    for item in contents.items:
        columns |= dict.fromkeys(item.labels)
    masks = ["mask"] if _has_masks(contents) else []
    rows: list[list[Any]] = [["path", "patient", *masks, *columns]]
    for item in contents.items:
        mask = [item.mask] if masks else []
        labels = [item.labels.get(name, "") for name in columns]
        rows.append([item.path, item.patient, *mask, *labels])
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns, *items = rows
    writer.writerow(columns)
    for item in items:
        # Names come from the files of a set: to a spreadsheet, none is a formula.
        writer.writerow([quoted_cell(cell) if isinstance(cell, str) else cell for cell in item])
    return text.getvalue()


def _config(name: str, known: DataSet, contents: Contents) -> str:
    """Return the text of the config."""
    join = dict(contents.join)
    if known.values is not None and _has_masks(contents):
        join = {"by": "table", "column": "mask", "values": _plain(known.values)}
    tasks = contents.tasks or known.tasks
    # Tasks read features of slices; segmentation, and tasks of regions, those of patches: what
    # nobody reads is not kept.
    by_slices = any(task.get("level") != "region" for task in tasks.values())
    of_slices = ["cls", "mean"] if by_slices else []
    of_patches = ["patch"] if join or _has_boxes(contents) else []
    split = {"kind": "list", "file": SPLIT} if _is_split(contents) else {"kind": "holdout"}
    config: dict[str, Any] = {
        # Ids of research sets stand for nobody; where paths are kept, tables can be read.
        "data": {"root": str(contents.root), **_plain(known.data), "paths": "keep"},
        "backbone": {"name": "dinov2_vitb14", "image_size": 224},
        "outputs": {"keep": of_slices + of_patches},
        "store": "store",
        "labels": {"file": LABELS, "key": "path", "patient": "patient", **known.labels},
        "split": split | dict(known.split),
    }
    if _has_boxes(contents):
        column = known.labels["structure"]
        config["boxes"] = {f"{column}s": {"file": BOXES, "structure": column, "unit": "LPS"}}
    if tasks:
        config["tasks"] = _plain(tasks)
    if join:
        config["masks"] = {name: {"root": str(contents.masks or contents.root), **join}}
        config["segment"] = {"knn": {"method": "knn"}, "linear": {"method": "linear"}}
    head = f"# {known.title}, as `radprobe dataset {name}` found it. Yours to edit.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Return mappings as dicts, as YAML writes them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value

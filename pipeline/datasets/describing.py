"""A public data set's folder to a config: labels, split and masks as the rest of radprobe reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.datasets.contracts import DataSet, Found
from pipeline.datasets.known import DATASETS
from stores._disk import write_atomic, writing
from stores.errors import ConfigError

CONFIG, LABELS, SPLIT = "config.yaml", "labels.csv", "split.csv"


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


def describe(name: str, folder: Path, out: Path) -> Described:
    """Check a downloaded data set, and write a config with its labels and split under `out`.

    Tables are written anew each time; a config that is there stays. Raises ConfigError for an
    unknown name, and where the folder has another layout, saying which is expected.
    """
    if name not in DATASETS:
        raise ConfigError(f"There is no data set {name!r}. Known: {', '.join(DATASETS)}.")
    known, out = DATASETS[name], out.resolve()
    try:
        found = known.find(folder.resolve(), out)
    except ConfigError as error:
        raise ConfigError(f"{error} {known.title} is looked for as: {known.layout}.") from None
    except KeyError as error:
        raise ConfigError(f"A table of {known.title} in {folder} has no column {error}.") from None
    if not found.items:
        raise ConfigError(
            f"{str(folder)!r} has the layout of {known.title} and none of its images: "
            f"{known.layout}."
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / LABELS, _labels(found).encode())
    if any(item.part for item in found.items):
        rows = [[item.path, item.part] for item in found.items if item.part]
        write_atomic(out / SPLIT, _csv([["key", "part"], *rows]).encode())
    kept = (out / CONFIG).exists()
    if not kept:
        write_atomic(out / CONFIG, _config(name, known, found).encode())
    published = found.published or known.published
    counts = [Counted(what, got, published.get(what)) for what, got in found.counts.items()]
    return Described(name, out / CONFIG, kept, len(found.items), counts, list(found.notes))


def _labels(found: Found) -> str:
    columns = list(dict.fromkeys(name for item in found.items for name in item.labels))
    masks = any(item.mask for item in found.items)
    head = ["path", "patient", *(["mask"] if masks else []), *columns]
    rows = [
        [
            item.path,
            item.patient,
            *([item.mask] if masks else []),
            *(item.labels.get(name, "") for name in columns),
        ]
        for item in found.items
    ]
    return _csv([head, *rows])


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _config(name: str, known: DataSet, found: Found) -> str:
    """Return the text of the config."""
    masks = known.values is not None and any(item.mask for item in found.items)
    tasks = found.tasks or known.tasks
    keep = (["cls", "mean"] if tasks else []) + (["patch"] if masks else [])
    official = any(item.part for item in found.items)
    split = {"kind": "list", "file": SPLIT} if official else {"kind": "holdout"}
    config: dict[str, Any] = {
        # Ids of research sets stand for nobody; where paths are kept, tables can be read.
        "data": {"root": str(found.root), **_plain(known.data), "paths": "keep"},
        "backbone": {"name": "dinov2_vitb14", "image_size": 224},
        "outputs": {"keep": keep},
        "store": "store",
        "labels": {"file": LABELS, "key": "path", "patient": "patient", **known.labels},
        "split": split | dict(known.split),
    }
    if tasks:
        config["tasks"] = _plain(tasks)
    if masks:
        join = {"by": "table", "column": "mask", "values": _plain(known.values)}
        config["masks"] = {name: {"root": str(found.masks or found.root), **join}}
        config["segment"] = {"knn": {"method": "knn"}, "linear": {"method": "linear"}}
    head = f"# {known.title}, as `radprobe dataset {name}` found it. Yours to edit.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Return mappings as dicts, as YAML writes them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value

"""Answers as tables: predictions a unit, and all scores in one tidy table."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.annotations.units import Truth, Units
from pipeline.config.tasks import Method
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.scoring import heads_of
from pipeline.evaluation.splits import Tested
from pipeline.results import Result, Segmented
from stores import FeatureStore
from stores._disk import write_checked

log = logging.getLogger(__name__)

SEGMENTATION = "segmentation"  # what a tidy row calls such an answer
SEGMENTATIONS = "segmentations"  # the folder of a store
Answer = TypeVar("Answer", Result, Segmented)

TIDY = pa.schema(
    [(name, pa.string()) for name in ("task", "method", "features", "kind", "level", "setting")]
    + [(name, pa.string()) for name in ("metric", "label", "subgroup")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "p")]
    + [(name, pa.string()) for name in ("recipe", "weights", "split", "labels", "key")]
    + [("contract", pa.int32()), ("random", pa.bool_())]
)


# What segmentation heads see; a network from scratch sees images alone.
SEEN = {"image-decoder": "patch+image", "unet": "image", "transunet": "image"}


def tidy(results: Sequence[Result | Segmented]) -> pa.Table:
    """Return one row a number: what it is, its interval, and what it was computed from.

    A segmentation is of kind `segmentation`, its method the head's name in the config.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        origin = result.provenance.model_dump(exclude={"store", "versions"})
        origin |= _question(result)
        for score in result.scores:
            setting = _setting_text(score.setting)
            parts = [("", "", score.metrics)]
            parts += [(label, "", metrics) for label, metrics in score.labels.items()]
            parts += [("", name, group.metrics) for name, group in score.subgroups.items()]
            rows += [
                {
                    **origin,
                    "setting": setting,
                    "metric": name,
                    "label": label,
                    "subgroup": subgroup,
                    **metric.model_dump(),
                }
                for label, subgroup, metrics in parts
                for name, metric in metrics.items()
            ]
    return pa.Table.from_pylist(rows, schema=TIDY)


def _question(result: Result | Segmented) -> dict[str, str]:
    if isinstance(result, Result):
        return result.model_dump(include={"task", "method", "features", "kind", "level"})
    return {
        "task": result.task,
        "method": result.head,
        "features": SEEN.get(result.method, "patch"),
        "kind": SEGMENTATION,
        "level": result.level,
    }


def publish(store: Path, answers: Sequence[Result | Segmented]) -> None:
    """Bring the tidy table up to date, and send what is new to where the store is, if elsewhere.

    Every flow ends here; what an earlier run could not send goes along.
    """
    if not all(answer.cached for answer in answers):
        write_tidy(store, answers)
    FeatureStore.open(store).publish()


def write_tidy(store: Path, results: Sequence[Result | Segmented]) -> None:
    """Write results/results.parquet, and .jsonl: these, and those of other tasks and methods."""
    path, new = store / "results" / "results.parquet", tidy(results)
    answered = set(zip(*_asked(new), strict=True))
    if path.is_file():
        old = _read(path)
        if old.schema.equals(TIDY):
            kept = [each not in answered for each in zip(*_asked(old), strict=True)]
            new = pa.concat_tables([old.filter(pa.array(kept, pa.bool_())), new])
    path.parent.mkdir(exist_ok=True)
    write_table(path, new)
    lines = "".join(json.dumps(row) + "\n" for row in new.to_pylist())
    write_checked(path.with_suffix(".jsonl"), lines.encode())


def _asked(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the columns that tell questions apart: a task and masks may share a name."""
    yield table["task"].to_pylist()
    yield table["method"].to_pylist()
    yield [kind == SEGMENTATION for kind in table["kind"].to_pylist()]


def segmentation_path(store: Path, task: str, head: str, key: str) -> Path:
    """Return where the answer of a head for some masks is filed; key: of all it depends on."""
    name = re.sub(r"[^\w.-]", "_", f"{task}-{head}")
    return store / SEGMENTATIONS / f"{name}-{key[:16]}.json"


def read_units(answer: Path) -> pa.Table:
    """Return a row a test unit and structure of a filed segmentation, of all training patients."""
    table = _read(answer.with_suffix(".units.parquet"))
    return _of_setting(table, table["setting"][-1].as_py())


def write_predictions(path: Path, units: Units, tested: Tested) -> None:
    """Write a Parquet row a test unit and setting: unit, patient, truth and probability a class."""
    rows, tables = tested.rows, []
    truth = units.at(rows)
    for each in tested.predictions:
        columns: dict[str, Any] = {"unit": units.ids[rows], "patient": truth.groups}
        columns["setting"] = [_setting_text(each.setting)] * len(rows)
        if tested.fold is not None:
            columns["fold"] = tested.fold
        for j, name in enumerate(units.classes):
            columns[f"truth:{name}"] = (
                truth.y
                if units.kind == "regression"
                else pa.array(truth.indicator[:, j], mask=~truth.known[:, j])
            )
            columns[f"proba:{name}"] = each.proba[:, j]
        tables.append(pa.table(columns))
    write_table(path, pa.concat_tables(tables))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file and its checksum. Raises UnwritableError."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_checked(path, sink.getvalue().to_pybytes())


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _of_setting(table: pa.Table, setting: str) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["setting"], setting))


def _setting_text(setting: Mapping[str, float]) -> str:
    return json.dumps({name: float(value) for name, value in setting.items()})


def answer_in(path: Path, kind: type[Answer]) -> Answer | None:
    """Return the answer in a file, as found and not computed; None where none can be read."""
    try:
        found = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s is no answer and is found anew: %s", path, error)
        return None
    return found.model_copy(update={"cached": True})


def filed(store: Path) -> Iterator[tuple[Path, Result]]:
    """Yield the answers in results/ and their files, the oldest first.

    What is there and is no answer of this version is skipped: `evaluate` computes it anew.
    """
    yield from _filed(store / "results", Result)


def filed_segmentations(store: Path) -> Iterator[tuple[Path, Segmented]]:
    """Yield the answers in segmentations/ and their files, as `filed` does."""
    yield from _filed(store / SEGMENTATIONS, Segmented)


def _filed(folder: Path, kind: type[Answer]) -> Iterator[tuple[Path, Answer]]:
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            yield path, kind.model_validate_json(path.read_bytes())
        except ValidationError as error:
            log.warning("%s is not an answer of this version: %d faults", path, error.error_count())


def predictions_path(store: Path, result: Result) -> Path:
    """Return where the predictions behind a result are, where it has any."""
    return store / "results" / f"{result.method}-{result.provenance.key[:16]}.parquet"


def read_predictions(
    store: Path, result: Result, setting: int
) -> tuple[Truth, NDArray[np.float64], NDArray[np.int64] | None]:
    """Return truth, probabilities (n, c) and folds (n,), if any, of one setting of a result."""
    table = _predictions(store, result, setting)
    proba = np.stack([table[f"proba:{c}"].to_numpy() for c in result.classes], axis=1)
    fold = table["fold"].to_numpy() if "fold" in table.column_names else None
    groups = table["patient"].to_numpy(zero_copy_only=False).astype(np.str_)
    return Truth(_y(table, result), groups, result.classes, result.kind), proba, fold


def predicted_units(store: Path, result: Result, setting: int) -> NDArray[np.str_]:
    """Return the ids (n,) of the units that `read_predictions` tells of."""
    table = _predictions(store, result, setting)
    units: NDArray[np.str_] = table["unit"].to_numpy(zero_copy_only=False).astype(np.str_)
    return units


def _predictions(store: Path, result: Result, setting: int) -> pa.Table:
    table = _read(predictions_path(store, result))
    return _of_setting(table, _setting_text(result.scores[setting].setting))


def _y(table: pa.Table, result: Result) -> NDArray[Any]:
    """Return the truth as `Truth.y` has it."""
    columns = [table[f"truth:{name}"] for name in result.classes]
    if result.kind == "regression":
        values: NDArray[Any] = columns[0].to_numpy()
        return values
    bits = [column.cast(pa.int8()).fill_null(-1).to_numpy() for column in columns]
    y = np.stack(bits, axis=1)
    return y if result.kind == "multilabel" else y.argmax(axis=1)


# Raised whenever a method answers the same question otherwise: older results are then not found.
CONTRACT: dict[Method, int] = {
    "knn": 7,
    "probe": 8,
    "fewshot": 7,
    "linear": 5,
    "attention": 5,
    "efficiency": 6,
    "finetune": 4,
    "lora": 4,
    "bitfit": 4,
    "norm": 4,
}


def result_path(cases: Cases, method: Method) -> Path:
    """Return where an answer is filed, by all that it depends on."""
    return cases.store.path / "results" / f"{method}-{_key(cases, method)[:16]}.json"


def _key(cases: Cases, method: Method) -> str:
    """Return the sha256 of all that the answer depends on."""
    asked = {
        "method": method,
        "contract": CONTRACT[method],
        "settings": [head.model_dump(mode="json") for head in heads_of(cases, method)],
        "name": cases.name,
        "task": cases.task.model_dump(mode="json", exclude={"shortcuts"}),
        "join": cases.table.settings.model_dump(
            mode="json", exclude={"file", "uncertain", "missing"}
        ),
        "labels": cases.labels_digest,
        "split": cases.split.digest,
        "rules": cases.config.split.model_dump(mode="json", include={"new", "allow"}),
        "store": cases.fingerprint,
    }
    if cases.fitted is not None:
        asked["fit_on"] = cases.fitted.fingerprint
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

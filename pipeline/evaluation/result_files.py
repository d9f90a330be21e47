"""Answers on file: where they lie, how one is found or computed, and what is filed with it.

A store's `results/` has the answers to tasks, `segmentations/` those to masks. An answer is a JSON
file named by all that it depends on; its predictions lie beside it under the same name. All scores
of a store stand in one tidy table too, `results/results.parquet` and `.jsonl`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.annotations.units import Truth, Units
from pipeline.config.data import Labels
from pipeline.config.heads import declared
from pipeline.config.methods import Method
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.config.tasks import Task
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.folds import OutOfFold
from pipeline.evaluation.pairs import PairedCases
from pipeline.results import Metric, Result, Score, Segmented
from pipeline.shared.texts import file_name
from stores import FeatureStore
from stores._disk import (
    CHECKSUM,
    MOST_TABLE_BYTES,
    files_in,
    fits_checksum,
    read_checked,
    read_file,
    remove_folder,
    write_checked,
)
from stores.contents import MASKS as MASK_FOLDER
from stores.contents import RUNS
from stores.contents import TUNED as TUNED_NETWORKS
from stores.errors import CorruptStoreError, StaleTablesError, as_corrupt
from stores.filed_tables import read_filed_table

log = logging.getLogger(__name__)

# Folders of a store.
RESULTS = "results"
SEGMENTATIONS = "segmentations"
TIDY_FILE = "results.parquet"
LINES = ".jsonl"  # the same rows, by the suffix of their file
# What stands in a segmentation's file beside its name: predicted masks, and scores a unit.
MASKS = ".masks.parquet"
UNITS = ".units.parquet"
# Of the columns that either kind of table a unit has.
_TEXTS = dict.fromkeys(("unit", "patient", "setting"), pa.types.is_string)
_UNIT_KINDS = _TEXTS | {
    "structure": pa.types.is_string,
    "draw": pa.types.is_integer,
    "dice": pa.types.is_floating,
}
KEY_LENGTH = 16  # hex digits of a key in a file's name
# Of `Labels`, younger than keys: in them only where they are set, so that other answers keep their
# names. A setting of labels that is new belongs here.
YOUNGER_SETTINGS = ("dates", "root", "structure")
# The column of predictions that says how long each unit was watched, of survival.
WATCHED = "watched"
# How often the tidy table is written where other processes write it too.
_TRIES = 10

Answer = TypeVar("Answer", Result, Segmented)

# What a tidy row calls an answer to masks.
SEGMENTATION = "segmentation"
TIDY = pa.schema(
    [
        ("task", pa.string()),
        ("method", pa.string()),
        ("features", pa.string()),
        ("kind", pa.string()),
        ("level", pa.string()),
        ("setting", pa.string()),
        ("metric", pa.string()),
        ("label", pa.string()),
        ("subgroup", pa.string()),
        ("positive", pa.string()),
        ("positives", pa.int64()),
        ("threshold", pa.float64()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("recipe", pa.string()),
        ("weights", pa.string()),
        ("split", pa.string()),
        ("labels", pa.string()),
        ("key", pa.string()),
        ("contract", pa.int32()),
        ("random", pa.bool_()),
        ("network", pa.string()),
    ]
)


# --- where answers lie ---------------------------------------------------------------------


def _join_settings(labels: Labels) -> dict[str, Any]:
    """Return how a label file joins, as keys have it."""
    settings = labels.model_dump(mode="json", exclude={"file", "uncertain", "missing"})
    for name in YOUNGER_SETTINGS:
        if getattr(labels, name) == Labels.model_fields[name].default:
            del settings[name]
    return settings


def _task_settings(task: Task) -> dict[str, Any]:
    """Return what a task asks, as keys have it."""
    # Of tasks too: only where it is set.
    young = {name for name in ("region", "time", "event", "columns") if not getattr(task, name)}
    return task.model_dump(mode="json", exclude={"shortcuts", *young})


def result_key(cases: Cases, method: Method) -> str:
    """Return the sha256 of all that the answer to a task by a method depends on.

    Of the method as its settings, those of the heads it is built on, and its contract number. What
    is written here, and how, names every result on file: a change loses them all.
    """
    config = cases.config
    declaration = declared(method)
    settings = config.settings_of(declaration)
    built_on = [config.settings_of(declared(name)) for name in settings.built_on]
    content = {
        "method": method,
        "contract": declaration.contract,
        "settings": [each.model_dump(mode="json") for each in (settings, *built_on)],
        **_question_of(cases),
    }
    if cases.fit_store is not None:
        content["fit_on"] = cases.fit_store.fingerprint
    if isinstance(cases, PairedCases):
        content["fit_on"] = _question_of(cases.fitted)
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _question_of(cases: Cases) -> dict[str, Any]:
    """Return all of a task over a store that an answer to it depends on."""
    content = {
        "name": cases.name,
        "task": _task_settings(cases.task),
        "join": _join_settings(cases.table.settings),
        "labels": cases.labels_digest,
        "split": cases.split.digest,
        "rules": cases.config.split.model_dump(mode="json", include={"new", "allow"}),
        "store": cases.fingerprint,
    }
    # Only where there is one: other answers keep their names.
    if cases.split_column_digest is not None:
        content["split_column"] = cases.split_column_digest
    return content | cases.depends_on


def result_path(cases: Cases, method: Method) -> Path:
    """Return where the answer to a task by a method is filed."""
    return _result_file(cases.store.path, method, result_key(cases, method))


def segmentation_path(
    store: Path,
    task: str,
    head: str,
    key: str,
) -> Path:
    """Return where the answer of a head for some masks is filed; key: of all it depends on."""
    name = file_name(f"{task}-{head}")
    return store / SEGMENTATIONS / f"{name}-{key[:KEY_LENGTH]}.json"


def predictions_path(store: Path, result: Result) -> Path:
    """Return where the predictions behind a result are, where it has any."""
    return _predictions_file(_result_file(store, result.method, result.provenance.key))


def _result_file(store: Path, method: Method, key: str) -> Path:
    return store / RESULTS / f"{method}-{key[:KEY_LENGTH]}.json"


def _predictions_file(answer: Path) -> Path:
    return answer.with_suffix(".parquet")


# --- found, or computed and filed ----------------------------------------------------------


@dataclass(frozen=True)
class Computed(Generic[Answer]):
    """An answer that is not on file yet. tables: what is filed with it, by the file's suffix."""

    answer: Answer
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


def find_or_compute(
    cases: Cases,
    path: Callable[[], Path],
    kind: type[Answer],
    compute: Callable[[], Computed[Answer]],
) -> Answer:
    """Return the answer that is on file, or compute it and file it.

    path: where the answer is filed, by all that it depends on, the split as it is among it.
    """
    # An answer under the split on file knew all patients there are, since its key holds the labels
    # and the store: it is found without a look at features.
    if cases.is_split:
        answer = read_answer(path(), kind)
        if answer is not None:
            return answer
    # New patients change the split, and so the key: what follows is filed under the key that they
    # make.
    cases.ensure_split()
    file = path()
    answer = read_answer(file, kind)
    if answer is not None:
        return answer
    try:
        computed = compute()
        with cases.store.filing(cases.withdrawn):
            _file(file, computed)
    except Exception:
        # Whatever it says: files that a purge takes away are missed by whoever computes from them.
        with _without_traces(cases.store, file.stem):
            cases.store.check_withdrawn(cases.withdrawn)
        raise
    return computed.answer


def _file(path: Path, computed: Computed[Answer]) -> None:
    """Write an answer and its tables."""
    path.parent.mkdir(exist_ok=True)
    # The answer comes last: tables that a crash leaves without one are written again.
    for suffix, table in computed.tables.items():
        write_table(path.with_suffix(suffix), table)
    text = computed.answer.model_dump_json(indent=1)
    write_checked(path, text.encode())


@contextlib.contextmanager
def _without_traces(store: FeatureStore, name: str) -> Iterator[None]:
    """Remove what an answer of this name left, where it is of a patient who was withdrawn since.

    Its networks, the state of their runs, and masks, which are made anew where they are gone.
    """
    try:
        yield
    except StaleTablesError:
        for folder in (TUNED_NETWORKS, RUNS):
            with contextlib.suppress(OSError):
                remove_folder(store.path / folder / name)
        store.storage.clear(MASK_FOLDER)
        raise


def answer_on_file(cases: Cases, method: Method) -> Result | None:
    """Return the answer to a task by a method that is on file; None where there is none."""
    # Without a split there is no key, and no answer under one.
    return read_answer(result_path(cases, method), Result) if cases.is_split else None


def read_answer(path: Path, kind: type[Answer]) -> Answer | None:
    """Return the answer in a file, as found and not computed; None where none can be read."""
    try:
        answer = _parsed(path, kind)
    except FileNotFoundError:
        return None
    except (ValidationError, CorruptStoreError) as error:
        log.warning("%s is no answer and is found anew: %s", path, error)
        return None
    if not _tables_fit(path):
        log.warning("%s has lost a table, or has a damaged one, and is found anew.", path)
        return None
    return answer.model_copy(update={"cached": True})


def _parsed(path: Path, kind: type[Answer]) -> Answer:
    """Return the answer in a file, which whoever made the store may have chosen.

    Raises FileNotFoundError, ValidationError, and CorruptStoreError where it does not fit its
    checksum, has the key of another file, by which its tables are found, or lacks what it is of.
    """
    answer = kind.model_validate_json(read_checked(path))
    fault = _fault_of(path, answer)
    if fault:
        raise CorruptStoreError(f"{path} {fault}, which no answer of radprobe's does.")
    return answer


def _fault_of(path: Path, answer: Result | Segmented) -> str:
    """Return what is wrong with an answer, in words; "" where nothing is."""
    # The name of a file has no slash, and so neither has a key that it ends with.
    if not path.stem.endswith(f"-{answer.provenance.key[:KEY_LENGTH]}"):
        return "has the key of another file"
    if "test" not in answer.counts:
        return "counts no test units"
    if not isinstance(answer, Result):
        return ""
    if not answer.classes:
        return "names no classes"
    positives = answer.counts["test"].positives
    if answer.kind != "regression" and not positives.keys() >= set(answer.classes):
        return "does not count its classes"
    n = len(answer.scores)
    if not n:
        return "has predictions and no score" if _predictions_file(path).exists() else ""
    return "" if -n <= answer.chosen < n else "chose a score that is not there"


def _tables_fit(answer: Path) -> bool:
    """Return whether each table that was filed with an answer is there, as it was written."""
    for checksum in answer.parent.glob(f"{glob.escape(answer.stem)}.*{CHECKSUM}"):
        table = checksum.with_name(checksum.name.removesuffix(CHECKSUM))
        if table != answer and not fits_checksum(table):
            return False
    return True


def filed(store: Path, since_ns: int = 0) -> Iterator[tuple[Path, Result]]:
    """Yield the answers in results/ and their files, the oldest first; since_ns: from a time on.

    What is there and is damaged, or no answer of this version, is skipped: `evaluate` computes it
    anew.
    """
    yield from _filed(store / RESULTS, Result, since_ns)


def filed_segmentations(store: Path, since_ns: int = 0) -> Iterator[tuple[Path, Segmented]]:
    """Yield the answers in segmentations/ and their files, as `filed` does."""
    yield from _filed(store / SEGMENTATIONS, Segmented, since_ns)


def _filed(folder: Path, kind: type[Answer], since_ns: int) -> Iterator[tuple[Path, Answer]]:
    times = _times(folder)
    for path in sorted(times, key=times.__getitem__):
        if times[path] < since_ns:
            continue
        try:
            yield path, _parsed(path, kind)
        except ValidationError as error:
            log.warning("%s is not an answer of this version: %d faults", path, error.error_count())
        except CorruptStoreError as error:
            log.warning("%s is left out: %s", path, error)
        except FileNotFoundError:
            continue  # removed since it was listed


def _times(folder: Path) -> dict[Path, int]:
    """Return when each answer in a folder was filed, in ns."""
    times = {}
    for path in files_in(folder, "*.json"):
        with contextlib.suppress(FileNotFoundError):
            # A link is refused when it is read.
            times[path] = path.lstat().st_mtime_ns
    return times


def publish(store: Path, answers: Sequence[Result | Segmented]) -> None:
    """Bring the tidy table up to date, and send what is new to where the store is, if elsewhere.

    Every flow ends here; what an earlier run could not send goes along.
    """
    opened = FeatureStore.open(store)
    path = store / RESULTS / TIDY_FILE
    # Where all answers were on file, the table has them, unless it was lost or damaged since, or
    # whoever filed one was killed before the table.
    tables = (path, path.with_suffix(LINES))
    is_new = not all(answer.cached for answer in answers)
    if is_new or not all(map(_is_sound, tables)) or not _has_all(tables[1], answers):
        with opened.deriving():
            # What a purge has removed meanwhile does not come back by the table.
            write_tidy(
                store, [answer for answer in answers if _answer_file(store, answer).is_file()]
            )
    opened.publish()


def _answer_file(store: Path, answer: Result | Segmented) -> Path:
    """Return where an answer is filed."""
    key = answer.provenance.key
    if isinstance(answer, Result):
        return _result_file(store, answer.method, key)
    return segmentation_path(store, answer.task, answer.head, key)


def _has_all(lines: Path, answers: Sequence[Result | Segmented]) -> bool:
    """Return whether the tidy table, of which these are the lines, has all answers with scores."""
    text = read_file(lines, MOST_TABLE_BYTES)  # without Arrow, which takes longer to be there
    keys = [answer.provenance.key for answer in answers if answer.scores]
    return all(json.dumps(key).encode() in text for key in keys)


def _is_sound(path: Path) -> bool:
    return path.is_file() and fits_checksum(path) is not False


# --- the tidy table ------------------------------------------------------------------------


def tidy(results: Sequence[Result | Segmented]) -> pa.Table:
    """Return one row a number: what it is, its interval, and what it was computed from.

    positive: of two classes, or the class or label that a row is of; positives: how many of the
    test units (of the subgroup) carry it; threshold: its operating point, of several models the
    mean. A segmentation is of kind `segmentation`, its method the head's name in the config.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        origin = result.provenance.model_dump(exclude={"store", "versions"})
        about = origin | _question(result)
        positives = result.counts["test"].positives
        positive = result.classes[-1] if result_kind(result) == "binary" else ""
        for score in result.scores:
            about["setting"] = _setting_text(score.setting)
            of_two = about | _positive_of(positive, positives, score)
            rows += _rows_of(of_two, score.metrics)
            for label, metrics in score.labels.items():
                of_label = about | _positive_of(label, positives, score)
                rows += _rows_of(of_label, metrics, label=label)
            for name, subgroup in score.subgroups.items():
                of_subgroup = about | _positive_of(positive, subgroup.positives, score)
                rows += _rows_of(of_subgroup, subgroup.metrics, subgroup=name)
    return pa.Table.from_pylist(rows, schema=TIDY)


def result_kind(result: Result | Segmented) -> str:
    """Return the kind of question that was answered."""
    return result.kind if isinstance(result, Result) else SEGMENTATION


def _positive_of(name: str, positives: Mapping[str, int], score: Score) -> dict[str, Any]:
    """Return what a tidy row says of the class or label that it calls positive; "" for none."""
    points = score.operating_points.get(name) or score.operating_points.get("")
    return {
        "positive": name or None,
        "positives": positives.get(name),
        "threshold": float(np.mean(points)) if name and points else None,
    }


def _rows_of(
    about: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    label: str = "",
    subgroup: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of a label, of a subgroup, or of all."""
    for name, metric in metrics.items():
        which = {"metric": name, "label": label, "subgroup": subgroup}
        yield {**about, **which, **metric.model_dump()}


def _question(result: Result | Segmented) -> dict[str, str]:
    """Return what a tidy row says of the question that was answered."""
    if isinstance(result, Result):
        return result.model_dump(include={"task", "method", "features", "kind", "level"})
    head = SEGMENTATION_HEADS.get(result.method)
    return {
        "task": result.task,
        "method": result.head,
        "features": head.features if head else "patch",  # of which a tuned network draws masks
        "kind": SEGMENTATION,
        "level": result.level,
    }


def write_tidy(store: Path, results: Sequence[Result | Segmented]) -> None:
    """Write results/results.parquet, and .jsonl: these, and those of other tasks and methods.

    A table that is lost or damaged is made anew, of all answers on file. Of processes that write at
    once, whoever ends last writes what all have answered.
    """
    path = store / RESULTS / TIDY_FILE
    path.parent.mkdir(exist_ok=True)
    # Answers are taken from the time on at which the table was written that is there first: what
    # another process files meanwhile is older than what this one writes.
    since_ns = None
    for _ in range(_TRIES):
        on_file = _all_times(store)
        before = _tidy_on_file(path)
        if before is None:
            since_ns = 0
        elif since_ns is None:
            since_ns = path.stat().st_mtime_ns
        table = _brought_up_to_date(store, before, since_ns, results)
        write_table(path, table)
        lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
        write_checked(path.with_suffix(LINES), "".join(lines).encode())
        # An answer that came meanwhile may be in another process's table, which this one replaced.
        if _all_times(store) == on_file and _is_sound(path):
            return


def _all_times(store: Path) -> dict[Path, int]:
    return _times(store / RESULTS) | _times(store / SEGMENTATIONS)


def _brought_up_to_date(
    store: Path,
    before: pa.Table | None,
    since_ns: int,
    results: Sequence[Result | Segmented],
) -> pa.Table:
    """Return a table with what was filed since a time, and with results."""
    table = TIDY.empty_table() if before is None else before
    # The oldest first, and these last: the later answer to a question counts.
    for _, answer in filed(store, since_ns):
        table = _with_answers(table, [answer])
    for _, segmented in filed_segmentations(store, since_ns):
        table = _with_answers(table, [segmented])
    return _with_answers(table, results)


def _with_answers(table: pa.Table, results: Sequence[Result | Segmented]) -> pa.Table:
    """Return a tidy table with answers, in the place of those to the same questions."""
    new = tidy(results)
    answered = set(_questions(new))
    stays = [question not in answered for question in _questions(table)]
    others = table.filter(pa.array(stays, pa.bool_()))
    return pa.concat_tables([others, new])


def _tidy_on_file(path: Path) -> pa.Table | None:
    """Return the tidy table at a path; None where there is none that can be read.

    A table of another version has other columns: its rows come back as they are answered.
    """
    try:
        table = read_filed_table(path)
    except FileNotFoundError:
        return None
    except (CorruptStoreError, pa.ArrowException, OSError) as error:
        log.warning("%s is made anew: %s", path, error)
        return None
    return table if table.schema.equals(TIDY) else None


def _questions(table: pa.Table) -> Iterator[tuple[str, str, bool]]:
    """Yield what tells questions apart, a row each: a task and masks may share a name."""
    tasks = table["task"].to_pylist()
    methods = table["method"].to_pylist()
    of_masks = [kind == SEGMENTATION for kind in table["kind"].to_pylist()]
    return zip(tasks, methods, of_masks, strict=True)


# --- predictions ---------------------------------------------------------------------------


def predictions_table(units: Units, tested: OutOfFold) -> pa.Table:
    """Return a row a test unit and setting: unit, patient, truth and probability a class.

    And from which probability on it is called so, where it has an operating point.
    """
    tables = []
    truth = units.at(tested.rows)
    for prediction in tested.predictions:
        setting = _setting_text(prediction.setting)
        columns: dict[str, Any] = {
            "unit": units.ids[tested.rows],
            "patient": truth.groups,
            "setting": [setting] * len(tested.rows),
        }
        if tested.fold is not None:
            columns["fold"] = tested.fold
        for j, name in enumerate(units.classes):
            columns[f"truth:{name}"] = _truth_column(truth, j)
            columns[f"proba:{name}"] = prediction.proba[:, j]
            if truth.kind == "survival":
                columns[WATCHED] = truth.y[:, 0]
            thresholds = prediction.thresholds
            if thresholds is not None and not np.isnan(thresholds[:, j]).all():
                columns[f"threshold:{name}"] = thresholds[:, j]
        tables.append(pa.table(columns))
    # A label may have an operating point in one setting and none in another.
    return pa.concat_tables(tables, promote_options="default")


def _truth_column(truth: Truth, j: int) -> Any:
    """Return (q,) the number of each unit, or whether it carries a class; null if not known."""
    if truth.kind == "regression":
        return truth.y
    unknown = ~truth.known[:, j]
    return pa.array(truth.indicator[:, j], mask=unknown)


def read_predictions(
    store: Path, result: Result, setting: int | None = None
) -> tuple[Truth, NDArray[np.float64], NDArray[np.int64] | None]:
    """Return truth, probabilities (n, c) and folds (n,), if any, of one setting of a result.

    By default of the one that stands for the answer.
    """
    table = _predictions(store, result, setting)
    columns = [table[f"proba:{name}"].to_numpy() for name in result.classes]
    proba = np.stack(columns, axis=1)
    patients = _texts(table, "patient")
    with as_corrupt(str(predictions_path(store, result))):
        folds = table["fold"].cast(pa.int64()) if "fold" in table.column_names else None
        truth = Truth(_y(table, result), patients, result.classes, result.kind)
    return truth, proba, None if folds is None else folds.to_numpy()


def read_thresholds(store: Path, result: Result, setting: int | None = None) -> NDArray[np.float64]:
    """Return (n, c) the operating points of what `read_predictions` tells; NaN where none is."""
    table = _predictions(store, result, setting)
    thresholds = np.full((table.num_rows, len(result.classes)), np.nan)
    for j, name in enumerate(result.classes):
        column = f"threshold:{name}"
        if column in table.column_names:
            with as_corrupt(str(predictions_path(store, result))):
                thresholds[:, j] = table[column].to_numpy(zero_copy_only=False)
    return thresholds


def predicted_units(store: Path, result: Result, setting: int | None = None) -> NDArray[np.str_]:
    """Return the ids (n,) of the units that `read_predictions` tells of."""
    return _texts(_predictions(store, result, setting), "unit")


def read_units(answer: Path) -> pa.Table:
    """Return a row a test unit and structure of a filed segmentation, of all training patients."""
    table = read_filed_table(answer.with_suffix(UNITS), _UNIT_KINDS)
    last = table["setting"][-1].as_py() if len(table) else ""
    return _of_setting(table, last)


def _texts(table: pa.Table, column: str) -> NDArray[np.str_]:
    values = table[column].to_numpy(zero_copy_only=False)
    texts: NDArray[np.str_] = values.astype(np.str_)
    return texts


def _predictions(store: Path, result: Result, setting: int | None) -> pa.Table:
    of_classes = {f"proba:{name}": pa.types.is_floating for name in result.classes}
    table = read_filed_table(predictions_path(store, result), _TEXTS | of_classes)
    score = result.main_score if setting is None else result.scores[setting]
    of_setting = _of_setting(table, _setting_text(score.setting))
    if not len(of_setting):
        path = predictions_path(store, result)
        raise CorruptStoreError(f"{path} predicts nothing under the settings of its answer.")
    return of_setting


def _y(table: pa.Table, result: Result) -> NDArray[Any]:
    """Return the truth as `Truth.y` has it."""
    columns = [table[f"truth:{name}"] for name in result.classes]
    if result.kind == "regression":
        values: NDArray[Any] = columns[0].to_numpy()
        return values
    bits = []
    for column in columns:
        known = column.cast(pa.int8()).fill_null(-1)
        bits.append(known.to_numpy())
    if result.kind == "survival":
        return np.stack([table[WATCHED].to_numpy(), bits[0]], axis=1).astype(np.float64)
    y = np.stack(bits, axis=1)
    return y if result.kind == "multilabel" else y.argmax(axis=1)


def _setting_text(setting: Mapping[str, float]) -> str:
    numbers = {name: float(value) for name, value in setting.items()}
    return json.dumps(numbers)


# --- Parquet, imported where a table is read or written: an answer on file needs none --------


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file and its checksum. Raises UnwritableError."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_checked(path, sink.getvalue().to_pybytes())


def _of_setting(table: pa.Table, setting: str) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["setting"], setting))

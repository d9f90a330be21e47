"""What a config says of files by their paths against the slices that its store has.

`extract` takes a change of either into the store. Until then every answer would be of the slices as
they were found before: of another modality or patient, or of files that the config leaves out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.data import Data
from pipeline.config.root import Config
from pipeline.extraction.discover import UNKNOWN_MODALITY, IdKind, PathRules
from pipeline.extraction.selection import Selection
from pipeline.extraction.sync import rules_of
from pipeline.shared.bids import SUBJECT
from pipeline.shared.paths import matcher, unescape_path
from pipeline.shared.pseudonyms import Names, load_key, pseudonym
from stores import FeatureStore
from stores.errors import RecipeMismatchError

_COLUMNS = ["row", "path", "patient", "study", "modality", "flags", "withdrawn"]


def _is_there(data: Data) -> bool:
    """Return whether the folder of the collection, or each of its named roots, is there."""
    return all(root.is_dir() for root in data.roots.values() or [data.root])


@dataclass(frozen=True)
class _Change:
    """A key of the config that says another thing of slices than the store does.

    differs (m,): of which slices; had, has: what the store and the config say of the first of them.
    """

    key: str
    differs: NDArray[np.bool_]
    had: str = ""
    has: str = " as of others"


def check_rules(config: Config, store: FeatureStore, files: pa.Table) -> str:
    """Refuse rules by which slices of the store would be others; return what is left out, or "".

    files: the file table of the store, of whatever columns.

    Only what a file itself does not name is of its path: such as the store says that it took.
    Raises RecipeMismatchError for another modality, patient or study.
    """
    names = Names(store.path, config.data.paths)
    if not names.has_key:
        return ""
    slices = names.revealed(store.slices(_COLUMNS))
    slices = slices.filter(pc.invert(slices["withdrawn"]))
    paths = [unescape_path(path) for path in slices["path"].to_pylist()]
    then = rules_of(files)
    if then is not None:
        _, _, modalities, patient, *more = json.loads(then)
        study = next((each["study"] for each in more if "study" in each), None)
        changes = []
        # Without its folder, nothing says that a config is one over a BIDS folder.
        if patient != SUBJECT or _is_there(config.data):
            changes.append(_modality_change(config.data, modalities, slices, paths))
            if config.labels is None or config.labels.patient is None:
                changes.append(_id_change(config, store, "patient", patient, slices, paths))
            changes.append(_id_change(config, store, "study", study, slices, paths))
        for change in changes:
            if change.differs.any():
                _refuse(change, store, names, slices)
    return _left_out(config.data, store, slices, paths)


def _modality_change(
    data: Data, before: dict[str, str], slices: pa.Table, paths: list[str]
) -> _Change:
    """Compare the modality of slices that have it by a glob: before as the store was told."""
    earlier = [(matcher([glob]), code) for glob, code in before.items()]
    now = PathRules(data)
    differs = np.zeros(len(paths), bool)
    had = has = ""
    for i, (path, modality) in enumerate(zip(paths, slices["modality"].to_pylist(), strict=True)):
        # Which of several was the first is not on file.
        given = {code for matches, code in earlier if matches(path)} or {UNKNOWN_MODALITY}
        wanted = now.modality(path)
        if modality in given and wanted != modality:
            differs[i] = True
            had = had or modality
            has = has or wanted
    return _Change("data.modality", differs, f" as {had}", f" as {has}")


def _id_change(
    config: Config,
    store: FeatureStore,
    kind: IdKind,
    before: str | None,
    slices: pa.Table,
    paths: list[str],
) -> _Change:
    """Compare the patients, or studies, of slices that have them by their paths; none is told.

    before: the rule that the store was told.
    """
    differs = np.zeros(len(paths), bool)
    if before != getattr(config.data, kind):
        key = load_key(store.path)
        earlier = PathRules(config.data.model_copy(update={kind: before}))
        now = PathRules(config.data)

        def hidden(rules: PathRules, path: str) -> str | None:
            raw = rules.named(path, kind)
            return pseudonym(key, kind, rules.id_of(path, raw)) if raw else None

        for i, (path, stored) in enumerate(zip(paths, slices[kind].to_pylist(), strict=True)):
            differs[i] = stored == hidden(earlier, path) != hidden(now, path)
    return _Change(f"data.{kind}", differs)


def _refuse(change: _Change, store: FeatureStore, names: Names, slices: pa.Table) -> None:
    first = int(np.flatnonzero(change.differs)[0])
    row = slices.slice(first, 1).to_pylist()[0]
    example = names.in_message(row["path"], row["row"])
    raise RecipeMismatchError(
        f"The store {store.place} was made by another {change.key}: it has {change.differs.sum()} "
        f"slices{change.had}, such as {example}, which the config takes"
        f"{change.has}. Run `radprobe extract` to take them so, or undo the change."
    )


def _left_out(data: Data, store: FeatureStore, slices: pa.Table, paths: list[str]) -> str:
    """Return a sentence on the slices that the config leaves out and the store has; "" for none."""
    selection = Selection(data)
    wanted = {path: selection.wants(path) for path in dict.fromkeys(paths)}
    unwanted_flags = set(data.leave_out)
    reasons = {
        "data.include and data.exclude": sum(not wanted[path] for path in paths),
        "data.leave_out": sum(
            not unwanted_flags.isdisjoint(flags or ()) for flags in slices["flags"].to_pylist()
        ),
    }
    each = [f"{number} by {key}" for key, number in reasons.items() if number]
    if not each:
        return ""
    return (
        f"The config leaves out slices that the store {store.place} has ({', '.join(each)}, of "
        f"{len(paths)}), and they are answered with all the same. Run `radprobe extract` to leave "
        "them out."
    )

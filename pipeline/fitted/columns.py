"""The columns that a model sees beside features: those of the target's own label table."""

from __future__ import annotations

from pathlib import Path

from pipeline.annotations.labels import read_labels
from pipeline.evaluation.covariates import ColumnTexts
from pipeline.fitted.record import ModelRecord
from pipeline.fitted.sources import Source
from stores.errors import ConfigError


def check_columns(record: ModelRecord, target: Path) -> None:
    """Raise ConfigError where a model sees columns and a target can be no config: it has none.

    Before anything of it is embedded.
    """
    if record.covariates.columns and not target.is_file():
        raise _no_columns(record, target)


def columns_of(record: ModelRecord, source: Source) -> ColumnTexts | None:
    """Return what the columns say that a model sees; None of a model that sees none.

    Raises ConfigError where the source has no labels, and LabelError where these lack a column.
    """
    names = tuple(column.name for column in record.covariates.columns)
    if not names:
        return None
    if source.config is None or source.config.labels is None:
        raise _no_columns(record, source.store.path)
    table = read_labels(source.config.labels, [], names)
    slices = source.names.revealed(source.store.slices())
    return ColumnTexts.of(table, names, slices, source.config.data.root, source.names)


def _no_columns(record: ModelRecord, target: Path) -> ConfigError:
    names = ", ".join(column.name for column in record.covariates.columns)
    return ConfigError(
        f"The model sees columns beside features: {names}. Name a config whose `labels` have them, "
        f"not a store or a folder: got {str(target)!r}."
    )

"""The two kinds of models, of tasks and of masks: which is meant, and which a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.heads import TUNED
from pipeline.config.root import Config
from pipeline.fitted.folder import read_verified
from pipeline.fitted.model import Model
from pipeline.fitted.record import ModelRecord
from stores import FeatureStore
from stores.errors import ConfigError
from stores.leaving import leaving

if TYPE_CHECKING:
    from pipeline.fitted.mask_model import MaskModel


def fit_model(
    config: Config,
    out: Path,
    *,
    task: str | None = None,
    method: str | None = None,
    device: str | None = None,
) -> Model | MaskModel:
    """Make a model of a task or of masks of a config; see `fit`, `fit_masks` and `fit_tuned`.

    method: unset, the probe, of survival Cox, or the config's only segmentation head.
    """
    with leaving(FeatureStore.open(config.store)) as written:
        model = _fitted(config, out, task, method, device)
        written.append(out)
    return model


def _fitted(
    config: Config, out: Path, task: str | None, method: str | None, device: str | None
) -> Model | MaskModel:
    if method in TUNED:
        from pipeline.fitted.fit_tuned import fit_tuned, fit_tuned_masks

        make = fit_tuned_masks if is_of_masks(config, task) else fit_tuned
        return make(config, out, task=task, method=method, device=device)
    if is_of_masks(config, task):
        from pipeline.fitted.fit_masks import fit_masks

        return fit_masks(config, out, task=task, method=method, device=device)
    from pipeline.fitted.fit import fit, of_one_task

    if method is None:
        of_survival = {each.time is not None for each in of_one_task(config, task).tasks.values()}
        method = "cox" if of_survival == {True} else "probe"
    return fit(config, out, task=task, method=method, device=device)


def is_of_masks(config: Config, name: str | None) -> bool:
    """Return whether a name is of masks of a config; None is where it has no task.

    Raises ConfigError where a task and masks have one name.
    """
    if name is None:
        return bool(config.masks) and not config.tasks
    if name in config.masks and name in config.tasks:
        raise ConfigError(
            f"The config has a task and masks that are called {name!r}. Give one of them another "
            "name."
        )
    return name in config.masks


def load_model(path: Path) -> Model | MaskModel:
    """Read a model's folder and hold every file of it against its digest.

    Raises ModelError for one that is missing, damaged or of another version.
    """
    record = read_verified(path)
    if isinstance(record, ModelRecord):
        return Model(path, record)
    # Here and not above: a model of a task needs no torch.
    from pipeline.fitted.mask_model import MaskModel

    return MaskModel(path, record)

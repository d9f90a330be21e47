"""An answer of a tuned network, to a task or to masks, filed with the network as a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction
from pipeline.config.data import Outputs
from pipeline.config.feature_sets import made_of
from pipeline.config.heads import declared
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.pooling import FittedScaling
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import read_thresholds
from pipeline.extraction.recipes import make_recipe
from pipeline.extraction.same_store import check_store
from pipeline.fitted.filing import FiledNetwork, Filing, difference_of, record_and_files
from pipeline.fitted.fit import of_one_task
from pipeline.fitted.fit_masks import (
    MaskFiling,
    mask_record_and_files,
    masks_named,
    share_differing,
)
from pipeline.fitted.folder import NETWORK, check_free, write_model
from pipeline.fitted.mask_model import MaskModel
from pipeline.fitted.model import Model
from pipeline.fitted.sources import tuned_network
from pipeline.recipe import PatchTokens
from pipeline.results import Result, Segmented
from pipeline.segmentation.cases import SegmentationCases
from pipeline.tune import tune, tune_masks
from pipeline.tuning.fold import fold_name
from pipeline.tuning.tuned import (
    TunedNetwork,
    from_state,
    label_state,
    mask_head,
    mask_state,
)
from stores._disk import files_in, fits_checksum
from stores.errors import CorruptStoreError, LabelError
from stores.features import FeatureStore
from stores.inside import inside

# The weights are the answer's own: what differs by more than this is no rounding of any device.
MOST_DIFFERENT = 1e-3
# Of a network as tuning saves it, what is needed to load it.
NETWORK_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def fit_tuned(
    config: Config,
    out: Path,
    *,
    method: str,
    task: str | None = None,
    device: str | None = None,
) -> Model:
    """Make the model of a network tuned on a task; the answer is found, or the network tuned.

    Raises as `fit` and `tune` do. Nothing is written then.
    """
    check_free(out)  # before hours of work
    config = of_one_task(config, task)
    check_store(config)
    where = device or "auto"
    (result,) = tune(config, [method], device=where)
    (cases,) = cases_of(config)
    folder = _network_of(result, cases.store, len(cases.folds))
    settings = config.settings_of(declared(method))
    assert isinstance(settings, Tuning)
    units = cases.units
    parts = cases.folds[0]
    network = TunedNetwork.load(config, cases.store, folder, settings, device=where)
    used = np.concatenate([parts["train"], parts["val"], parts["test"]])
    features, there = network.unit_features(units, used)
    x = np.zeros((len(units.ids), features.shape[1]), np.float32)
    x[used] = features
    is_there = np.zeros(len(units.ids), bool)
    is_there[used] = there
    train, val, test = (parts[part][is_there[parts[part]]] for part in ("train", "val", "test"))
    setting = dict(result.main_score.setting)
    state = label_state(folder, units, parts["train"], setting)
    predict = from_state(state)
    (on_test,) = predict(x[test], units)
    chosen = Prediction(setting, on_test.proba)
    if settings.refit == "none":
        (on_val,) = predict(x[val], units)
        chosen = replace(chosen, on_val=on_val.proba)
    else:
        chosen = replace(chosen, thresholds=_points(result, cases))
    filing = Filing(
        cases=cases,
        result=result,
        chosen=chosen,
        val=units.at(val),
        state=state,
        x=x,
        learnt_from=np.concatenate([train, val]),
        scaling=FittedScaling("none"),
        difference=difference_of(cases, result, test, on_test.proba, MOST_DIFFERENT),
        tuned=_filed_network(config, folder, settings, blocks=made_of(settings.features).blocks),
    )
    record, files = record_and_files(filing)
    return Model(out, write_model(out, record, files))


def fit_tuned_masks(
    config: Config,
    out: Path,
    *,
    method: str,
    task: str | None = None,
    device: str | None = None,
) -> MaskModel:
    """Make the model of a network tuned on masks, as `fit_tuned` does of a task."""
    check_free(out)
    task = masks_named(config, task)
    config = config.model_copy(update={"masks": {task: config.masks[task]}})
    check_store(config)
    where = device or "auto"
    (result,) = tune_masks(config, [method], device=where)
    cases = SegmentationCases.of(config, task)
    folds = cases.task_cases.folds
    folder = _network_of(result, cases.store, len(folds))
    settings = cases.settings(method)
    assert isinstance(settings, Tuning)
    state = mask_state(folder)
    head = mask_head(state, len(result.classes), cases.source.image_size)
    network = TunedNetwork.load(config, cases.store, folder, settings, head, where)
    learnt_from = np.concatenate([folds[0]["train"], folds[0]["val"]])
    x, there = network.unit_features(cases.task_cases.units, learnt_from)
    drawn = network.masks(cases.rows_of(folds[0]["test"]))
    filing = MaskFiling(
        cases=cases,
        result=result,
        method=method,
        drawn_by=Segment(method="linear", batch_size=settings.at_once),
        setting=dict(result.scores[-1].setting),
        state=state,
        x=x[there],
        learnt_from=learnt_from[there],
        difference=share_differing(cases, result, drawn),
        tuned=_filed_network(config, folder, settings, blocks=1),
    )
    record, files = mask_record_and_files(filing)
    return MaskModel(out, write_model(out, record, files))


def _points(result: Result, cases: Cases) -> NDArray[np.float64] | None:
    """Return (n, c) the operating points of the answer, first the first fold's; None for none.

    Val chose them by what a network said that had not learnt it; the one that is filed has.
    """
    points = read_thresholds(cases.store.path, result)
    return None if np.isnan(points).all() else points


# --- the network -----------------------------------------------------------------------------


def _network_of(result: Result | Segmented, store: FeatureStore, folds: int) -> Path:
    """Return the folder of the network of an answer's first fold, each file of it checked."""
    for tuned in result.tuned:
        if Path(tuned.weights).name == fold_name(0, folds):
            folder = inside(store.path, tuned.weights)
            _check_files(folder)
            return folder
    raise LabelError(
        f"{result.task}: no network was tuned, so that there is no model of it: "
        f"{'; '.join(result.notes) or 'no reason is noted'}."
    )


def _check_files(folder: Path) -> None:
    """Raise CorruptStoreError where a file does not fit the checksum that tuning put beside it."""
    for path in files_in(folder, "[!.]*"):
        if fits_checksum(path) is False:
            raise CorruptStoreError(
                f"{path} does not fit the checksum beside it: bits flipped. `radprobe verify "
                "--repair` removes it, and it is tuned again."
            )


def _filed_network(config: Config, folder: Path, settings: Tuning, blocks: int) -> FiledNetwork:
    """Return a tuned network as it is filed, and the recipe of features by it.

    Those are kept in float32, in which they were while it was tuned.
    """
    backbone = config.backbone.model_copy(
        update={**tuned_network(config.backbone.name, str(folder)), "precision": settings.precision}
    )
    outputs = Outputs(
        keep=("cls", "mean", "patch"), blocks=blocks, dtype="float32", patch=PatchTokens()
    )
    recipe, _ = make_recipe(config.model_copy(update={"backbone": backbone, "outputs": outputs}))
    names = [name for name in NETWORK_FILES if (folder / name).is_file()]
    return FiledNetwork(
        files={f"{NETWORK}/{name}": folder / name for name in names},
        recipe=recipe,
        # Found in the model's folder from now on.
        backbone=config.backbone.model_copy(
            update={"weights": None, "precision": settings.precision}
        ),
    )

"""The config file: one YAML that names data, backbone, preprocessing, outputs, store and tasks.

Relative paths are relative to the config file. Unknown keys are refused with the nearest known
one. Defaults stand here and in `pipeline.types`, each once.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from pipeline.types import FeatureSet, Frozen, Output, Preprocess, Task
from stores.errors import ConfigError


class Data(Frozen):
    """Which files to embed, and what their headers do not say.

    include, exclude: globs over paths relative to root. modality: glob -> DICOM modality code, for
    files that carry none (NIfTI, PNG); the first glob that matches wins. patient: a regular
    expression whose first group, searched in the relative path, names the patient of such a file.
    """

    root: Path
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    modality: dict[str, str] = Field(default_factory=dict)
    patient: str | None = None

    @field_validator("patient")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(
                    f"patient must be a regular expression. {value!r}: {error}."
                ) from None
            if groups != 1:
                raise ValueError(f"patient must have exactly one group. Got {value!r} instead.")
        return value


class Demo(Frozen):
    """A synthetic collection to be written to `data.root` on the spot.

    Only a config with this block may fall back to random weights.
    """

    patients: Annotated[int, Field(ge=10)] = 60
    seed: int = 0


class BackboneChoice(Frozen):
    """Which network, and where its weights are.

    weights: a file or folder; `random:<seed>` asks for untrained weights by name; unset means the
    local cache, then the hub.
    """

    name: str = "dinov2_vits14"
    weights: str | None = None
    image_size: int = 224


class Outputs(Frozen):
    """What to store of each slice."""

    keep: tuple[Output, ...] = ("cls", "mean")
    blocks: int = 4
    dtype: Literal["float16", "float32"] = "float16"
    # Rows that are committed together, a power of two; unset, as many as a part's memory allows.
    # Fewer lose less to a crash, more make fewer files.
    part_rows: int | None = None


class Labels(Frozen):
    """Where the labels are and what joins them to the slices.

    key: the column with a file or folder path (relative to data.root), or with a patient, study or
    series id, as `by` says. patient: the column that names each row's patient, for files whose
    headers do not.
    """

    file: Path
    key: str = "path"
    by: Literal["path", "patient", "study", "series"] = "path"
    patient: str | None = None
    headers: Literal["agree", "ignore"] = "agree"


class SplitChoice(Frozen):
    """How patients are divided: one of `folds` parts tests, one validates, the rest train."""

    folds: Annotated[int, Field(ge=3)] = 5
    seed: int = 0


class Knn(Frozen):
    """FAISS kNN settings.

    multilabel: how neighbours vote on multi-label tasks: as on any other (DINOv2's soft vote), or
    by ML-kNN; "mlknn-paper" counts a training image among its own neighbours, as the code of
    arXiv 2312.02366 does.
    """

    features: FeatureSet = "cls"
    k: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10, 20)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    multilabel: Literal["soft", "mlknn", "mlknn-paper"] = "soft"


class Probe(Frozen):
    """Logistic probe settings: C = 10^linspace(low, high, steps), chosen on validation."""

    features: FeatureSet = "cls+mean"
    low: float = -6
    high: float = 5
    steps: Annotated[int, Field(ge=1)] = 45


class FewShot(Frozen):
    """Few-shot settings: episodes of `shots` patients a class.

    head: the nearest centroid by cosine, or SimpleShot, which first takes the mean of train and
    val from every feature.
    """

    head: Literal["centroid", "simpleshot"] = "centroid"
    features: FeatureSet = "cls"
    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8)
    queries: Annotated[int, Field(ge=1)] = 15
    episodes: Annotated[int, Field(ge=2)] = 600
    seed: int = 0


class Config(Frozen):
    """One config file."""

    data: Data
    store: Path
    demo: Demo | None = None
    backbone: BackboneChoice = BackboneChoice()
    preprocess: Preprocess = Preprocess()
    outputs: Outputs = Outputs()
    labels: Labels | None = None
    split: SplitChoice = SplitChoice()
    tasks: dict[str, Task] = Field(default_factory=dict)
    knn: Knn = Knn()
    probe: Probe = Probe()
    fewshot: FewShot = FewShot()


def load_config(path: Path, store: Path | None = None) -> Config:
    """Read and validate a config file; `store` overrides the one it names.

    Raises ConfigError with one line a fault: what, got, expected, what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {str(path)!r} cannot be read: {error}.") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {str(path)!r} is not YAML: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"The config file {str(path)!r} must hold keys and values.")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"{path}: " + "\n".join(_fault(fault) for fault in error.errors())
        ) from None
    return _anchored(config, path.parent, store)


def _anchored(config: Config, base: Path, store: Path | None) -> Config:
    """Return the config with its relative paths taken from the folder of the file."""
    weights = config.backbone.weights
    if weights is not None and not weights.startswith("random:"):
        weights = str(_under(base, Path(weights)))
    labels = config.labels and config.labels.model_copy(
        update={"file": _under(base, config.labels.file)}
    )
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": _under(base, config.data.root)}),
            "store": store if store is not None else _under(base, config.store),
            "backbone": config.backbone.model_copy(update={"weights": weights}),
            "labels": labels,
        }
    )


def _under(base: Path, path: Path) -> Path:
    """Return a path of the config, from the folder of the file, without detours by `..`."""
    return Path(os.path.normpath(base / path.expanduser()))


def _fault(fault: Any) -> str:
    """Return one pydantic fault as one sentence; an unknown key comes with the nearest known."""
    where = ".".join(str(step) for step in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"
    known = _known_keys(fault["loc"][:-1])
    near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
    return f"{where}: unknown key. {hint}"


def _known_keys(steps: tuple[int | str, ...]) -> list[str]:
    """Return the keys known at a place in the config, walking down its models."""
    models: list[Any] = [Config]
    for step in steps:
        below: list[Any] = []
        for model in models:
            field = model.model_fields.get(step) if hasattr(model, "model_fields") else None
            below += _models_in(field.annotation) if field else []
        models = below or models
    return sorted({key for model in models for key in model.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    """Return the settings models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]

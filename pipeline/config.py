"""The config file: one YAML that names data, backbone, preprocessing, outputs, store and tasks.

Relative paths are relative to the config file. Unknown keys are refused with the nearest known
one. Defaults stand here and in `pipeline.types`, each once.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.questions import FeatureSet, Method, Missing, Scaling, Task, Uncertain
from pipeline.types import Frozen, Output, PatchTokens, Precision, Preprocess, Treatment
from stores.errors import ConfigError
from stores.mirror import located, url_of

Settings = TypeVar("Settings", bound=Frozen)


class Data(Frozen):
    """Which files to embed, and what their headers do not say.

    include, exclude: globs over paths relative to root. modality: glob -> DICOM modality code, for
    files that carry none (NIfTI, PNG); the first glob that matches wins. patient: a regular
    expression whose first group, searched in the relative path, names the patient of such a file.
    tags: DICOM keywords, such as AccessionNumber, whose values labels are keyed by. paths: whether
    the store hides the names of folders and files, which may name patients, or keeps them. only:
    "masked" embeds those slices alone that have a mask file (see `Masks`), of a volume all.
    """

    root: Path
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    modality: dict[str, str] = Field(default_factory=dict)
    patient: str | None = None
    tags: tuple[str, ...] = ()
    paths: Literal["hide", "keep"] = "hide"
    only: Literal["all", "masked"] = "all"

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
    local cache, then the hub. precision: what the network computes in; the lower ones are several
    times faster on a GPU and change features beyond rounding (`doctor --drift` tells by how much).
    treatment: `paper` gives comparators what the code of arXiv 2312.02366 gives them.
    """

    name: str = "dinov2_vits14"
    weights: str | None = None
    image_size: int = 224
    precision: Precision = "float32"
    treatment: Treatment = "own"


class Outputs(Frozen):
    """What to store of each slice. patch: how, where patch tokens are among it."""

    keep: tuple[Output, ...] = ("cls", "mean")
    patch: PatchTokens = PatchTokens()
    blocks: int = 4
    dtype: Literal["float16", "float32"] = "float16"
    # Rows that are committed together, a power of two; unset, as many as a part's memory allows.
    # Fewer lose less to a crash, more make fewer files.
    part_rows: int | None = None


class Labels(Frozen):
    """Where the labels are, what joins them to the slices, and what unclear values mean.

    key: the column with a file or folder path (relative to data.root), or with a patient, study or
    series id, or with the value of a DICOM tag listed in data.tags, as `by` says
    ("tag:AccessionNumber"). patient: the column that names each row's patient, for files whose
    headers do not. uncertain: what -1 means in a column of zeros and ones ("zero" is U-Zeros of
    Irvin et al., arXiv 1901.07031); missing: what an empty cell means.
    """

    file: Path
    key: str = "path"
    by: Annotated[str, Field(pattern=r"^(path|patient|study|series|tag:[A-Za-z0-9]+)$")] = "path"
    patient: str | None = None
    headers: Literal["agree", "ignore"] = "agree"
    uncertain: Uncertain = "refuse"
    missing: Missing = "leave-out"


class SplitChoice(Frozen):
    """How patients are divided.

    holdout: of `folds` parts one tests, one validates, the rest train; kfold: each part tests in
    turn; list: as `file` says, a CSV of the columns key (as labels.by) and part; site: the label
    column `column` stays on one side; date: its latest test. new: what becomes of patients that a
    split on file does not know. allow: what is otherwise refused as leakage.
    """

    kind: Literal["holdout", "kfold", "list", "site", "date"] = "holdout"
    folds: Annotated[int, Field(ge=3)] = 5
    seed: int = 0
    file: Path | None = None
    column: str | None = None
    new: Literal["refuse", "deal", "leave-out"] = "refuse"
    allow: tuple[Literal["duplicates", "near-duplicates"], ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> SplitChoice:
        needs = {"list": "file", "site": "column", "date": "column"}.get(self.kind)
        for name in ("file", "column"):
            if (getattr(self, name) is not None) != (name == needs):
                verb = "needs" if name == needs else "takes no"
                raise ValueError(f"A split of kind {self.kind!r} {verb} `{name}`.")
        if self.new == "deal" and self.kind not in ("holdout", "kfold"):
            raise ValueError(
                f"New patients cannot be dealt into a split of kind {self.kind!r}. Set new to "
                '"refuse" or "leave-out".'
            )
        return self


class Head(Frozen):
    """What every head has: which features it sees, and scaled how, as the train units alone say.

    components: how many principal components `whiten` keeps at most.
    """

    features: FeatureSet = "cls"
    scaling: Scaling = "none"
    components: Annotated[int, Field(ge=1)] = 256


class Knn(Head):
    """FAISS kNN settings.

    multilabel: how neighbours vote on multi-label tasks: as on any other (DINOv2's soft vote), or
    by ML-kNN; "mlknn-paper" counts a training image among its own neighbours, as the code of
    arXiv 2312.02366 does. exact_up_to: how many references are all looked at; where there are more,
    an inverted file is asked, so many of its lists that the share `recall` of the true neighbours
    is found: faster from about 2,560 + 4 sqrt(references) test units on, and for ML-kNN, which asks
    about the references too. Unset, all are always looked at.
    """

    k: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10, 20, 50, 100, 200)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    multilabel: Literal["soft", "mlknn", "mlknn-paper"] = "soft"
    exact_up_to: Annotated[int, Field(ge=1)] | None = None
    recall: Annotated[float, Field(gt=0, le=1)] = 0.99


class Probe(Head):
    """Probe settings: C = 10^linspace(low, high, steps), chosen on validation.

    Regression is ridge with the penalty alpha = 1 / C.
    """

    features: FeatureSet = "cls+mean"
    low: float = -6
    high: float = 5
    steps: Annotated[int, Field(ge=1)] = 45


class Linear(Head):
    """The grid of linear heads of arXiv 2312.02366, by SGD: rates times parts of the features.

    The parts of cls4+mean are CLS of the last block or of the last four, with or without the mean
    patch token. DINOv2's own rates are 1e-5 to 0.1 times batch / 256.
    """

    features: FeatureSet = "cls4+mean"
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-3,
        5e-3,
        1e-2,
        5e-2,
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    batch: Annotated[int, Field(ge=1)] = 128
    seed: int = 0

    @model_validator(mode="after")
    def _columns_stay(self) -> Linear:
        if self.scaling == "whiten":
            raise ValueError(
                "The linear grid takes parts of the features, which whitening mixes. Set scaling "
                'to "none", "l2" or "standardise".'
            )
        return self


class Attention(Head):
    """Gated attention over a unit's slices, trained by AdamW; `epochs` at most, as val says."""

    scaling: Scaling = "standardise"
    hidden: Annotated[int, Field(ge=1)] = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0


class Efficiency(Probe):
    """Label efficiency: the probe fitted on `shots` patients a class, on twice as many, up to all.

    Each number of patients is drawn `draws` times, or fewer where the draws together would take
    more patients than there are (three at least), and scored on all test units.
    """

    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        1,
        2,
        4,
        8,
        16,
    )
    draws: Annotated[int, Field(ge=1)] = 10
    seed: int = 0


class FewShot(Head):
    """Few-shot settings: episodes of `shots` patients a class.

    head: the nearest centroid by cosine; SimpleShot, which first takes the mean of train and val
    from every feature; or logistic regression. draw: "paper" is the one draw of arXiv 2312.02366,
    fitted by the probe and scored on all test units.
    """

    draw: Literal["episodes", "paper"] = "episodes"
    head: Literal["centroid", "simpleshot", "logistic"] = "centroid"
    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16)
    queries: Annotated[int, Field(ge=1)] = 15
    episodes: Annotated[int, Field(ge=2)] = 600
    seed: int = 0


# How the code of arXiv 2312.02366 trains networks; its learning rates of heads are a grid.
_PAPER: dict[str, Any] = {
    "optimizer": "sgd",
    "rate": 1e-5,
    "head_rate": 1e-2,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "warmup": 0.0,
    "epochs": 10,
    "patience": 10,
    "batch": 128,
    "augment": "paper",
}


class Tuning(Head):
    """How a network is trained on a task, with a linear head on its features; val says when to end.

    protocol: `paper` takes the settings of the code of arXiv 2312.02366 where none are given, but
    for its grid of heads. rate: of the network's own parameters, at its last block; layer_decay:
    what a block's rate is of the next one's; head_rate: of the head; warmup: the share of all steps
    in which rates rise to theirs, before they fall along a cosine. patience: epochs without a
    better AUROC (or Dice, or squared error) on val before it ends; the best epoch is kept. batch:
    units a step (of masks, slices), of which `at_once` images pass through the network together,
    gradients added up; slices: how many of a unit's are drawn each time, tested on all. masks are
    drawn from the last block's patch tokens, whatever `features` are. augment: `mild` turns, shifts
    and scales by a little and changes contrast, `paper` crops and flips. start: the head from
    noise, or from the probe on the cached features (LP-FT, arXiv 2202.10054), for masks the linear
    head on cached tokens.
    """

    features: FeatureSet = "cls+mean"
    protocol: Literal["own", "paper"] = "own"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-3
    head_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 20
    patience: Annotated[int, Field(ge=1)] = 5
    batch: Annotated[int, Field(ge=1)] = 32
    at_once: Annotated[int, Field(ge=1)] = 8
    slices: Annotated[int, Field(ge=1)] = 8
    augment: Literal["none", "mild", "paper"] = "mild"
    precision: Literal["float32", "bfloat16"] = "float32"
    start: Literal["noise", "probe"] = "noise"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _of_protocol(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("protocol") == "paper":
            return {**cls._paper(), **data}
        return data

    @classmethod
    def _paper(cls) -> dict[str, Any]:
        return _PAPER

    @model_validator(mode="after")
    def _unscaled(self) -> Tuning:
        if self.scaling != "none":
            raise ValueError(
                f"A network is tuned on its features as they are. Got scaling: {self.scaling} "
                "instead; leave it out."
            )
        return self


class FineTune(Tuning):
    """Every parameter of the network is trained."""

    rate: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75


class Lora(Tuning):
    """Low-rank updates of linear layers are trained (arXiv 2106.09685), in the end added to them.

    targets: query, key and value; the projection behind them; the layers of the MLP, whatever a
    network calls them. An update is alpha / rank times the product of two matrices. biases: `lora`
    trains those of the layers that have updates too.
    """

    rate: Annotated[float, Field(gt=0)] = 5e-4
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Annotated[tuple[Literal["qkv", "proj", "fc1", "fc2"], ...], Field(min_length=1)] = (
        "qkv",
        "fc1",
        "fc2",
    )
    biases: Literal["none", "lora"] = "none"

    @classmethod
    def _paper(cls) -> dict[str, Any]:
        return _PAPER | {"rank": 48, "alpha": 16.0, "dropout": 0.1, "biases": "lora"}


class BitFit(Tuning):
    """The biases of the network are trained (arXiv 2106.10199)."""


class NormTune(Tuning):
    """The scales and biases of the network's norms are trained."""


TUNED: tuple[Method, ...] = ("finetune", "lora", "bitfit", "norm")  # the methods that tune


class JobQueue(Frozen):
    """Jobs of a batch system that embed: `workers` jobs of one process each, by dask-jobqueue.

    options: as dask-jobqueue's cluster class of that kind takes them (queue, walltime, memory,
    job_extra_directives, ...); a job has one core for Python unless they say so.
    """

    kind: Literal["slurm", "pbs", "lsf", "sge"]
    workers: Annotated[int, Field(ge=1)]
    options: dict[str, Any] = Field(default_factory=dict)


class Masks(Frozen):
    """Where the masks are, what joins them to the images, and what their values mean.

    by: path, a pattern over the image's own path; table, a column of `labels.file`; uid, the images
    that a DICOM segmentation says it is of. root: the folder of the masks, by default data.root.
    files: glob over the images' paths -> path of the mask under root, in which {path}, {folder},
    {name} and {stem} stand for the image's path, its folder, its file name and that without
    suffix; the first glob that matches wins. column: of the table, with paths under root. values:
    value in the mask, or label of a DICOM segment -> name of the structure, "background" for what
    is none; or one name, for whatever is not 0; or several, each of a file of its own: paths in
    files, or column, are then as many and in the same order. tolerance: of the surface Dice, in mm,
    or pixels where an image has no spacing.
    """

    by: Literal["path", "table", "uid"] = "path"
    root: Path | None = None
    files: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    column: str | tuple[str, ...] | None = None
    values: str | tuple[str, ...] | dict[int | str, str]
    tolerance: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _complete(self) -> Masks:
        for name, by in (("files", "path"), ("column", "table")):
            if bool(getattr(self, name)) != (self.by == by):
                verb = "need" if self.by == by else "take no"
                raise ValueError(f"Masks joined by {self.by} {verb} `{name}`.")
        for named in (*self.files.values(), *([self.column] if self.column else [])):
            if self.apart != isinstance(named, tuple) or len(self.each(named)) != self.count:
                raise ValueError(
                    f"values and {'files' if self.files else 'column'} must both be lists of equal "
                    f"length where each structure has a file of its own. Got {self.values!r} and "
                    f"{named!r}."
                )
        if self.apart and (self.by == "uid" or "background" in self.values):
            raise ValueError(
                "Structures in files of their own are joined by path or table, and the background "
                f"has no file. Got by {self.by!r} and {self.values!r}."
            )
        if not 2 <= len(self.classes) <= 256:
            raise ValueError(
                f"Masks must have 1 to 255 structures beside the background. Got {self.values!r}."
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The names by label value as heads see it: background, then structures as listed."""
        named = self.values.values() if isinstance(self.values, dict) else self.each(self.values)
        return tuple(dict.fromkeys(["background", *named]))

    @property
    def apart(self) -> bool:
        """Whether each structure has a file of its own."""
        return isinstance(self.values, tuple)

    @property
    def count(self) -> int:
        """How many files a mask is of."""
        return len(self.values) if isinstance(self.values, tuple) else 1

    @staticmethod
    def each(named: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return what is one or several as several."""
        return (named,) if isinstance(named, str) else named


# A head on the last block's tokens: a 1x1 convolution, with batch norm before it (DINOv2's BNHead),
# or their nearest neighbours; on the last five blocks': the decoder of arXiv 2312.02366; on the
# last block's and the image: image-decoder. Networks trained from scratch on images: U-Net, and
# TransUNet.
SegmentMethod = Literal[
    "linear", "linear-bn", "decoder", "image-decoder", "knn", "unet", "transunet"
]


class Segment(Frozen):
    """How a segmentation head, or a network from scratch, is trained and chosen.

    learning_rates: all are trained at once, and one is chosen by the Dice on val; the defaults are
    those of arXiv 2312.02366, whose batches are of 128. epochs: at most; patience: epochs without a
    better Dice on val before it ends; the best epoch is kept. loss: MONAI's, softmax. refit:
    whether what was chosen is trained again on train and val, as there, for as many epochs. knn
    takes from it refit and seed, and k (one is chosen on val), temperature, and references: how
    many patches it keeps at most. size: of a network from scratch; `small` is for tests and for
    trying out without a GPU. shots: numbers of training patients to be asked beside all of them,
    never trained again on val; each is drawn `draws` times.
    """

    method: SegmentMethod = "linear"
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-4,
        5e-4,
        1e-3,
        5e-3,
        1e-2,
        5e-2,
        1e-1,
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 16
    loss: Literal["dice", "dice-ce"] = "dice"
    refit: Literal["train+val", "none"] = "train+val"
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5, 20, 50)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    references: Annotated[int, Field(ge=1)] = 100_000
    size: Literal["full", "small"] = "full"
    seed: int = 0
    shots: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: Annotated[int, Field(ge=1)] = 5


class Config(Frozen):
    """One config file.

    fit_on: a store of the same collection by the same network, whose features heads are fitted on
    in place of this one's, which are tested alone: how answers hold where the images are others.
    masks: what is to be segmented, each by a name of its own; segment: the heads that are asked to,
    each by a name of its own. finetune, lora, bitfit, norm: how the network is tuned, where it is.
    """

    data: Data
    store: Path
    fit_on: Path | None = None
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
    scale: JobQueue | None = None
    masks: dict[str, Masks] = Field(default_factory=dict)
    segment: dict[str, Segment] = Field(default_factory=dict)
    linear: Linear = Linear()
    attention: Attention = Attention()
    efficiency: Efficiency = Efficiency()
    finetune: FineTune | None = None
    lora: Lora | None = None
    bitfit: BitFit | None = None
    norm: NormTune | None = None

    @field_validator("segment")
    @classmethod
    def _own_names(cls, value: dict[str, Segment]) -> dict[str, Segment]:
        taken = sorted({*TUNED} & value.keys())
        if taken:
            raise ValueError(
                f"A head must have a name of its own. Got {taken[0]!r}, which `radprobe tune` "
                "calls its answers by."
            )
        return value

    @model_validator(mode="after")
    def _masks_for_masked(self) -> Config:
        if self.data.only == "masked" and not self.masks:
            raise ValueError("data.only: masked needs `masks`, which say where the masks are.")
        return self


def load_config(path: Path, store: Path | None = None) -> Config:
    """Read and validate a config file; `store` overrides the one it names. Raises ConfigError."""
    return _anchored(read_settings(path, Config), path.parent, store)


def read_settings(path: Path, model: type[Settings]) -> Settings:
    """Read a YAML file as settings of some kind.

    Raises ConfigError with one line a fault: what, got, expected, what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {str(path)!r}. Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {str(path)!r} cannot be read: {error}.") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {str(path)!r} is not YAML: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"The config file {str(path)!r} must hold keys and values.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"{path}: " + "\n".join(_fault(fault, model) for fault in error.errors())
        ) from None


def _anchored(config: Config, base: Path, store: Path | None) -> Config:
    """Return the config with its relative paths taken from the folder of the file."""
    weights = config.backbone.weights
    if weights is not None and not weights.startswith("random:"):
        weights = str(anchored(base, Path(weights)))
    labels = config.labels and config.labels.model_copy(
        update={"file": anchored(base, config.labels.file)}
    )
    masks = {
        name: own.model_copy(update={"root": anchored(base, own.root or config.data.root)})
        for name, own in config.masks.items()
    }
    split = config.split
    if split.file is not None:
        split = split.model_copy(update={"file": anchored(base, split.file)})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": anchored(base, config.data.root)}),
            "store": _store(base, config.store) if store is None else located(store),
            "fit_on": config.fit_on and _store(base, config.fit_on),
            "backbone": config.backbone.model_copy(update={"weights": weights}),
            "labels": labels,
            "split": split,
            "masks": masks,
        }
    )


def _store(base: Path, store: Path) -> Path:
    """Return the folder of a config's store; of one at a URL, its mirror here."""
    return located(store) if url_of(store) else anchored(base, store)


def anchored(base: Path, path: Path) -> Path:
    """Return a path of settings, from the folder of their file, without detours by `..`."""
    return Path(os.path.normpath(base / path.expanduser()))


def _fault(fault: Any, model: type[Frozen]) -> str:
    """Return one pydantic fault as one sentence; an unknown key comes with the nearest known."""
    where = ".".join(str(step) for step in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"
    known = _known_keys(fault["loc"][:-1], model)
    near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
    return f"{where}: unknown key. {hint}"


def _known_keys(steps: tuple[int | str, ...], top: type[Frozen]) -> list[str]:
    """Return the keys known at a place in the settings, walking down their models."""
    models: list[Any] = [top]
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

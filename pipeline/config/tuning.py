"""Settings of networks trained further."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config.base import HeadSettings
from pipeline.config.heads import LIBRARIES, Declaration
from pipeline.config.presets import PRESETS
from pipeline.config.tasks import COLUMNS, SliceFeatures

LoraTarget = Literal["qkv", "shared-qkv", "proj", "fc1", "fc2"]


class Tuning(HeadSettings):
    """How a network is trained on a task, with a linear head on its features; val says when to end.

    protocol: `paper` takes this block of the preset `paper` (see `pipeline.config.presets`) where
    nothing else is given. optimizer: of torch's. rate: of the network's own parameters, at its last
    block; layer_decay: what a block's rate is of the next one's. head_rate: of the head.
    weight_decay: of all that has decay. warmup: the share of all steps in which rates rise to
    theirs, before they fall along a cosine. epochs: at most. patience: epochs without a better
    AUROC (or Dice, or squared error) on val before it ends; the best epoch is kept. batch: units a
    step (of masks, slices). at_once: how many images of a step pass through the network together,
    gradients added up. slices: how many of a unit's are drawn each time, tested on all. features:
    as heads have them, but that masks are drawn from the last block's patch tokens, whatever these
    are. scaling, components: as heads have them; a network is tuned on features as they are.
    precision: what the forward pass computes in. augment: `mild` turns, shifts and scales by a
    little and changes contrast, `paper` crops and flips. start: the head from noise, or from the
    probe on the cached features (LP-FT, arXiv 2202.10054), for masks the linear head on cached
    tokens. refit: whether it is trained anew on train and val, for as many epochs as val chose.
    seed: of what is drawn.
    """

    block: ClassVar[str]  # its key in a config

    features: SliceFeatures = "cls+mean"
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
    refit: Literal["none", "train+val"] = "none"
    seed: int = 0

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `refit` out where it is not asked for: answers without it are named as ever."""
        settings: dict[str, Any] = serialise(self)
        if self.refit == "none":
            settings.pop("refit", None)
        return settings

    @property
    def built_on(self) -> tuple[str, ...]:
        """The probe, where the head begins as one."""
        return ("probe",) if self.start == "probe" else ()

    @model_validator(mode="before")
    @classmethod
    def _of_protocol(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("protocol") == "paper":
            return {**PRESETS["paper"][cls.block], **data}
        return data

    @model_validator(mode="before")
    @classmethod
    def _of_images_alone(cls, data: Any) -> Any:
        features = data.get("features") if isinstance(data, dict) else None
        if isinstance(features, str) and features.endswith(COLUMNS):
            raise ValueError(
                "A network is tuned on images, whose pixels no column changes. Got features "
                f"{features!r}; leave the columns out, or ask a head on cached features about "
                "them: probe, or mlp."
            )
        return data

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

    block: ClassVar[str] = "finetune"

    rate: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75


class Lora(Tuning):
    """Low-rank updates of linear layers are trained (arXiv 2106.09685), in the end added to them.

    targets: query, key and value, or shared-qkv, of which the three see one projection to the rank,
    as where one layer makes them all; the projection behind them; the layers of the MLP, whatever a
    network calls them. rank: of an update. alpha: an update is alpha / rank times the product of
    two matrices. dropout: of what an update sees. biases: `lora` trains those of the layers that
    have updates too.
    """

    block: ClassVar[str] = "lora"

    rate: Annotated[float, Field(gt=0)] = 5e-4
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = ("qkv", "fc1", "fc2")
    biases: Literal["none", "lora"] = "none"


class BitFit(Tuning):
    """The biases of the network are trained (arXiv 2106.10199)."""

    block: ClassVar[str] = "bitfit"


class NormTune(Tuning):
    """The scales and biases of the network's norms are trained."""

    block: ClassVar[str] = "norm"


class FrozenTune(Tuning):
    """The network stays as it is: its head alone is trained, on images that are changed by chance.

    As the paper and DINOv2 train linear heads on crops and flips, embedded anew in every epoch.
    rate, layer_decay: of nothing.
    """

    block: ClassVar[str] = "frozen"


def _declared(
    name: str, title: str, settings: type[Tuning], contract: int = 8
) -> Declaration[Tuning]:
    # Those of heads, and what makes networks and LoRA's updates.
    libraries = (*LIBRARIES, "transformers", "peft")
    return Declaration(
        name=name,
        title=title,
        settings=settings,
        contract=contract,
        libraries=libraries,
        compared=False,
    )


# What `pipeline.config.heads.declared` finds for the names of TUNED.
DECLARED = {
    "finetune": _declared("finetune", "Fine-tuning", FineTune),
    "lora": _declared("lora", "LoRA", Lora),
    "bitfit": _declared("bitfit", "BitFit", BitFit),
    "norm": _declared("norm", "Norms alone", NormTune),
    "frozen": _declared("frozen", "Head alone", FrozenTune),
}

"""The recipe: all that changes feature values. Frozen, canonical JSON, one digest."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from pipeline.shared.frozen import Frozen
from pipeline.types import Plane
from stores.contents import RECIPE
from stores.errors import CorruptStoreError

if TYPE_CHECKING:
    import torch

    from stores import FeatureStore

FORMAT_VERSION: Literal[1] = 1

# The outputs of one forward pass that a store can hold.
Output = Literal["cls", "mean", "patch", "volume"]
# What the network computes in. Weights and what leaves a LayerNorm stay float32 (autocast).
Precision = Literal["float32", "bfloat16", "float16"]
# What a modality code (DICOM 0008,0060) means for intensities.
IntensityKind = Literal["ct", "mr", "xray", "other"]
XRAY_MODALITIES = frozenset({"CR", "DX", "MG", "RF", "RG", "XA", "PX", "IO", "DR"})

# Customary CT windows, (centre, width) in HU, as viewers preset them; a recipe holds the numbers,
# not the name.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "abdomen": (40, 400),
    "liver": (60, 160),
    "bone": (480, 2500),
    "brain": (40, 80),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "angio": (300, 600),
}


class Window(Frozen):
    """Clip to [low, high] (HU for CT) and scale to [0, 1]. Also made from centre and width."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="before")
    @classmethod
    def _from_centre_and_width(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not {"center", "width"} & set(data):
            return data
        rest = {key: value for key, value in data.items() if key not in ("center", "width")}
        if not {"center", "width"} <= set(data) or {"low", "high"} & set(data):
            raise ValueError(
                f"A window is either low and high, or center and width. Got {sorted(data)} instead."
            )
        center, width = float(data["center"]), float(data["width"])
        return {**rest, "low": center - width / 2, "high": center + width / 2}

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if not self.low < self.high:
            raise ValueError(
                f"A window must have low < high. Got low={self.low} and high={self.high} instead; "
                "swap them if the window was reversed."
            )
        return self


class Windows(Frozen):
    """Three windows of one slice as the red, green and blue channel."""

    kind: Literal["windows"] = "windows"
    red: Window
    green: Window
    blue: Window


class FileWindow(Frozen):
    """The file's own window or VOI LUT; a slice without one falls back to minimum and maximum."""

    kind: Literal["file"] = "file"


# Whose values make a range: the slice's own, or all of its volume's. A volume that gains, loses or
# changes a slice is then embedded anew as a whole.
Scope = Literal["slice", "volume"]


class Percentiles(Frozen):
    """Clip to the percentiles [low, high] of the slice or volume and scale to [0, 1]."""

    kind: Literal["percentiles"] = "percentiles"
    low: Annotated[float, Field(ge=0, le=100)] = 1.0
    high: Annotated[float, Field(ge=0, le=100)] = 99.0
    scope: Scope = "slice"

    @model_validator(mode="after")
    def _ordered(self) -> Percentiles:
        if not self.low < self.high:
            raise ValueError(
                f"Percentiles must have low < high. Got {self.low} and {self.high} instead."
            )
        return self


class MinMax(Frozen):
    """Scale the slice's own minimum and maximum to [0, 1]."""

    kind: Literal["minmax"] = "minmax"


class ZScore(Frozen):
    """Clip to `clip` standard deviations round the mean of the slice or volume; scale to [0, 1]."""

    kind: Literal["zscore"] = "zscore"
    clip: Annotated[float, Field(gt=0)] = 3.0
    scope: Scope = "slice"


def _intensity(value: Any) -> Any:
    """Return the long form of a rule written short: a window's name, or three of them."""
    if isinstance(value, (list, tuple)):
        if len(value) != 3:
            raise ValueError(f"Windows as channels must be three. Got {len(value)} instead.")
        red, green, blue = map(_window, value)
        return {"kind": "windows", "red": red, "green": green, "blue": blue}
    if value in _NAMES:
        return {"kind": value}
    return _window(value)


def _window(value: Any) -> Any:
    """Return a window's numbers for its name; anything else as it is."""
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "window", **value}
    if not isinstance(value, str):
        return value
    if value not in CT_WINDOWS:
        near = difflib.get_close_matches(value, CT_WINDOWS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(CT_WINDOWS)}."
        raise ValueError(f"There is no CT window named {value!r}. {hint}")
    center, width = CT_WINDOWS[value]
    return {"kind": "window", "center": center, "width": width}


# The intensity rules. A new one is a class above, its name here, and what it does to pixels in
# `preprocessing.intensity`.
Rule = Window | Windows | FileWindow | Percentiles | MinMax | ZScore
Intensity = Annotated[Rule, Field(discriminator="kind")]


def _names() -> tuple[str, ...]:
    """Return the kinds of the rules that a config may write as one word, having all defaults."""
    names = []
    for rule in get_args(Rule):
        if not any(field.is_required() for field in rule.model_fields.values()):
            names.append(rule.model_fields["kind"].default)
    return tuple(names)


_NAMES = _names()
# A rule as a config may write it: `lung`, `[lung, mediastinum, bone]`, `file`, or the long form.
ShortIntensity = Annotated[Intensity, BeforeValidator(_intensity)]


# What a slice is changed to before all else, to see whether features mind (`views`); `thick` is
# made of its neighbours in the volume too.
SeenAs = Literal["noise", "shift", "turn", "jpeg", "thick"]
ViewName = Literal["none", SeenAs]


# How a slice comes to be a square; see `Preprocess`.
Aspect = Literal["square", "pad", "crop", "dinov2"]
# DINOv2's evaluation resizes the shorter side to 256 of each 224 pixels that it then cuts out.
RESIZED_OF_CROPPED = 256 / 224


# How a volume comes to the size that a 3D network takes: squeezed to it; padded and cut about its
# middle; seen in windows of it that overlap, whose features are averaged; or, of Raptor, squeezed
# along the axes that are longer.
VolumeFit = Literal["resize", "pad", "windows", "shrink"]


class VolumeInput(Frozen):
    """How a volume becomes what a 3D network sees, as the network's authors have it.

    axes: where its three axes lead, as nibabel's codes (RAS: right, anterior, superior).
    crop_above: the box of all that is above this value is cut out first. spacing_mm: of voxels,
    along these axes, to which the volume is resampled linearly; unset as it is. fit, size: see
    `VolumeFit`. overlap: of windows, as a part of their side. window: the HU that become 0 and 1,
    of CT; volumes of other modalities have their own percentiles there.
    """

    axes: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] = "RAS"
    crop_above: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    fit: VolumeFit = "resize"
    size: tuple[int, int, int]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    window: tuple[float, float]
    percentiles: tuple[float, float] = (1.0, 99.0)

    @model_validator(mode="after")
    def _sensible(self) -> VolumeInput:
        if {frozenset(pair) for pair in ("RL", "AP", "SI")} != {
            frozenset(pair) for letter in self.axes for pair in ("RL", "AP", "SI") if letter in pair
        }:
            raise ValueError(f"axes must name each direction once. Got {self.axes!r} instead.")
        for low, high in (self.window, self.percentiles):
            if not low < high:
                raise ValueError(f"A range must have low < high. Got {low} and {high} instead.")
        return self


class Preprocess(Frozen):
    """How pixels become numbers in [0, 1], one rule for each kind of image, and which pixels.

    The defaults follow arXiv 2312.02366: HU clamped to [-1024, 600], X-rays by minimum and
    maximum, the whole image squeezed to a square; MR by percentiles of the slice. ct, mr, xray,
    other: the rule of that kind of image. plane: which of a volume's planes slices are cut along.
    aspect: `pad`
    adds black to make the square, `crop` cuts its middle out, `dinov2` resizes the shorter side to
    8 / 7 of the input and cuts the input out of the middle. crop: `body` cuts to the box of the
    body first; `region` says that the images are crops round structures, as `radprobe crops` writes
    them, and cuts nothing more. view: what the slice is changed to before all that, to ask how
    steady answers are. shift: whether a shifted view is shifted after it was scaled, where the rule
    takes its range from the slice and would undo it, or before, as stores have it that were made
    before there was a choice. volume: how a 3D network sees volumes, where the backbone is one;
    unset as its authors have it.
    """

    ct: ShortIntensity = Window(low=-1024, high=600)
    mr: ShortIntensity = Percentiles()
    xray: ShortIntensity = MinMax()
    other: ShortIntensity = MinMax()
    plane: Plane = "axial"
    aspect: Aspect = "square"
    crop: Literal["none", "body", "region"] = "none"
    view: ViewName = "none"
    shift: Literal["scaled", "pixels"] = "scaled"
    volume: VolumeInput | None = None

    def rule(self, modality: str) -> Intensity:
        """Return the rule that scales slices of a modality."""
        rule: Intensity = getattr(self, intensity_kind(modality))
        return rule

    def by_volume(self, modality: str) -> bool:
        """Return whether what is made of a slice of a modality depends on its volume as well."""
        is_whole = self.volume is not None
        return is_whole or self.thickens(modality) or of_volume(self.rule(modality))

    def shifts_scaled(self, modality: str, has_window: bool) -> bool:
        """Return whether a slice is shifted after it was scaled; has_window: of its file's own.

        A rule that goes by the slice's own values makes the same of a shifted slice.
        """
        if self.view != "shift" or self.shift != "scaled":
            return False
        rule: Rule = self.rule(modality)
        match rule:
            case Window() | Windows():
                return False
            case FileWindow():
                return not has_window  # then it goes by minimum and maximum
            case MinMax() | Percentiles() | ZScore():
                return not of_volume(rule)

    def thickens(self, modality: str) -> bool:
        """Return whether slices of a modality are seen thicker; X-rays have no neighbours."""
        return self.view == "thick" and intensity_kind(modality) != "xray"


def of_volume(rule: Intensity) -> bool:
    """Return whether a rule takes its range from the whole volume."""
    scope: Scope = getattr(rule, "scope", "slice")  # rules without one are of the slice
    return scope == "volume"


def intensity_kind(modality: str) -> IntensityKind:
    """Return which intensity rule a DICOM modality code falls under."""
    if modality in ("CT", "MR"):
        return "ct" if modality == "CT" else "mr"
    return "xray" if modality in XRAY_MODALITIES else "other"


# Which of transformers' model types a network is (`comparators`); DINOv2's two are one here.
FamilyName = Literal[
    "dinov2",
    "vit",
    "vit_mae",
    "vit_msn",
    "clip",
    "sam",
    "resnet",
    "dinov3_vit",
    "timm_wrapper",
    "i3resnet",
    "monai_resnet",
    "segresenc",
    "efficientnet_lite",
]
# A network's own mean, std and final norm; or as the code of arXiv 2312.02366 treats comparators:
# ImageNet's mean and std, tokens before the final norm (DINOv2's keep theirs).
Treatment = Literal["own", "paper"]


class Architecture(Frozen):
    """The shape of a network and its input's mean and std: what the weights do not say.

    settings: what the config of a family other than DINOv2's says beside.
    """

    family: FamilyName = "dinov2"
    settings: dict[str, Any] = Field(default_factory=dict)
    treatment: Treatment = "own"
    dim: int
    depth: int
    heads: int
    patch: Annotated[int, Field(gt=0)] = 14
    registers: int = 0
    ffn: Literal["mlp", "swiglu"] = "mlp"
    mlp_ratio: int = 4
    eps: float = 1e-6
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def name(self) -> str:
        """What the network is called: DINOv2's as configs do, others by family and shape."""
        size = _SIZES.get((self.dim, self.depth))
        defaults = Architecture.model_fields
        is_normed_alike = self.mean == defaults["mean"].default
        if self.family == "dinov2" and self.patch == 14 and size and is_normed_alike:
            return f"dinov2_vit{size}14{'_reg' if self.registers else ''}"
        if "architecture" in self.settings:  # timm's name of it
            return f"timm {self.settings['architecture']}"
        if "network" in self.settings:  # a 3D network's name
            return str(self.settings["network"])
        shape = f"{self.depth} blocks of {self.dim}, patch {self.patch}"
        if size:
            shape = f"ViT-{size.upper()}/{self.patch}"
        return f"{self.family} {shape}"


# What vision transformers of a width and depth are called.
_SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1280, 32): "h", (1536, 40): "g"}


class Raptor(Frozen):
    """How a network of slices sees a volume: by Raptor (arXiv 2507.08254), which trains nothing.

    planes: those that the volume is cut along. Of each, the patch tokens of all slices are averaged
    at each place of the grid, and what comes of it is multiplied by a matrix (d, numbers) of
    standard normal values. numbers: K of the paper. seed: of the matrix.
    """

    planes: Annotated[tuple[Plane, ...], Field(min_length=1)] = ("axial", "coronal", "sagittal")
    numbers: Annotated[int, Field(ge=1)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _each_once(self) -> Raptor:
        if len(set(self.planes)) != len(self.planes):
            raise ValueError(f"planes must name each plane once. Got {self.planes} instead.")
        return self


class PatchTokens(Frozen):
    """How patch tokens are kept, each after the final LayerNorm.

    blocks: of how many last blocks. coding: `plain` in the dtype of the other outputs, `int8` with
    a float32 scale for each token. pool: the mean of so many by so many neighbours is kept in their
    place.
    """

    blocks: Annotated[int, Field(ge=1)] = 1
    coding: Literal["plain", "int8"] = "plain"
    pool: Annotated[int, Field(ge=1)] = 1


class Recipe(Frozen):
    """All that changes feature values, and nothing else.

    `weights` is `sha256:<hex of the weights file>`, or `random:<seed>` for weights nobody trained,
    or both, with a plus, for what was tuned from those on a few labels.
    """

    format: Literal[1] = FORMAT_VERSION
    architecture: Architecture
    weights: Annotated[
        str, Field(pattern=r"^(sha256:[0-9a-f]{64}|random:\d+(\+sha256:[0-9a-f]{64})?)$")
    ]
    image_size: Annotated[int, Field(gt=0)] = 224
    blocks: Annotated[int, Field(ge=1)] = 4
    outputs: tuple[Output, ...] = ("cls", "mean")
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "float32"
    patch: PatchTokens = PatchTokens()
    raptor: Raptor | None = None
    preprocess: Preprocess = Preprocess()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        patch = self.architecture.patch
        depth = self.architecture.depth
        if self.image_size % patch:
            below = self.image_size // patch * patch
            raise ValueError(
                f"image_size must be a multiple of the patch size {patch}. Got {self.image_size} "
                f"instead; the nearest are {below} and {below + patch}."
            )
        only = self.architecture.settings.get("image_size", self.image_size)
        if only != self.image_size:
            raise ValueError(
                f"image_size must be {only}, the only one that this network takes. "
                f"Got {self.image_size} instead."
            )
        if self.blocks > depth:
            raise ValueError(
                f"outputs.blocks must be at most the depth {depth}. Got {self.blocks} instead."
            )
        if len(set(self.outputs)) != len(self.outputs) or not self.outputs:
            raise ValueError(f"outputs must be one or more, each once. Got {self.outputs} instead.")
        if (self.preprocess.volume is not None) != (self.outputs == ("volume",)):
            raise ValueError(
                "What sees volumes gives the output `volume` and nothing beside it: a 3D network, "
                "or a network of slices with `outputs: {keep: [volume]}`. Got outputs "
                f"{list(self.outputs)} of {self.architecture.name} instead."
            )
        if self.raptor is not None:
            self._check_raptor()
        if self.patch != PatchTokens() and "patch" not in self.outputs:
            raise ValueError(
                f"outputs.patch says how patch tokens are kept, and outputs.keep has none. Got "
                f"{list(self.outputs)} instead; add patch."
            )
        if self.patch.blocks > depth:
            raise ValueError(
                f"outputs.patch.blocks must be at most the depth {depth}. Got {self.patch.blocks} "
                "instead."
            )
        grid = self.image_size // patch
        if grid % self.patch.pool:
            fit = [n for n in range(1, grid + 1) if grid % n == 0]
            raise ValueError(
                f"outputs.patch.pool must divide the {grid} x {grid} patches of an image of "
                f"{self.image_size} px. Got {self.patch.pool} instead; these do: {fit}."
            )
        return self

    def _check_raptor(self) -> None:
        """Raise ValueError for settings that slices cut out of a volume know nothing of."""
        if self.outputs != ("volume",):
            raise ValueError(
                f"outputs.raptor makes the output `volume`. Got outputs {list(self.outputs)} "
                "instead; write `keep: [volume]`."
            )
        assert self.raptor is not None
        if self.raptor.numbers > self.architecture.dim:
            raise ValueError(
                f"outputs.raptor.numbers must be at most the {self.architecture.dim} features of a "
                f"patch, of which more tell nothing new. Got {self.raptor.numbers} instead."
            )
        assert self.preprocess.volume is not None
        for name, asked, only in (
            ("preprocess.volume.fit", self.preprocess.volume.fit, "shrink"),
            ("preprocess.volume.axes", self.preprocess.volume.axes, "RAS"),
            ("preprocess.crop", self.preprocess.crop, "none"),
            ("preprocess.view", self.preprocess.view, "none"),
        ):
            if asked != only:
                raise ValueError(
                    f"Where a network of slices sees volumes, {name} must be {only}. "
                    f"Got {asked} instead."
                )

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return the arrays that are filled: name -> shape of a row, dtype."""
        dim = self.architecture.dim
        grid = self.image_size // self.architecture.patch
        side = grid // self.patch.pool
        blocks = self.patch.blocks
        # One block has no axis of its own.
        tokens = (side, side) if blocks == 1 else (blocks, side, side)
        shapes = {
            "cls": (self.blocks, dim),
            "mean": (dim,),
            "patch": (*tokens, dim),
            "volume": (dim,),
        }
        if self.raptor is not None:
            shapes["volume"] = (len(self.raptor.planes) * self.raptor.numbers * grid**2,)
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for name in self.outputs:
            arrays[name] = shapes[name], self.dtype
        if self.patch.coding == "int8":
            arrays["patch"] = shapes["patch"], "int8"
            arrays["patch_scale"] = tokens, "float32"
        return arrays

    @property
    def level(self) -> Literal["slice", "volume"]:
        """What features are of: each slice by itself, or the whole volume, which its rows share."""
        return "slice" if self.preprocess.volume is None else "volume"

    @property
    def sees(self) -> Literal["slices", "volumes", "planes"]:
        """What the network is given: slices, whole volumes, or slices along planes of volumes."""
        if self.raptor is not None:
            return "planes"
        return "slices" if self.level == "slice" else "volumes"

    @property
    def random(self) -> bool:
        """True where the weights are seeded noise: whatever shows a number must say so."""
        return self.weights.startswith("random:")

    @property
    def seeded(self) -> bool:
        """True where a seed alone made the weights; what was tuned from them is in a file."""
        return self.random and "+" not in self.weights

    @property
    def network(self) -> str:
        """The network that made the features, and by which weights, for whatever shows a number."""
        # Of a digest so much as tells two files apart.
        weights = re.sub(r"(?<=sha256:)[0-9a-f]{64}", lambda match: match[0][:8], self.weights)
        treatment = "" if self.architecture.treatment == "own" else ", as the paper treats it"
        raptor = "" if self.raptor is None else "Raptor over "
        return f"{raptor}{self.architecture.name} ({weights}{treatment})"

    @classmethod
    def from_text(cls, text: str) -> Recipe:
        """Return the recipe that a store has the text of, `canonical` as it was in its time."""
        content = json.loads(text)
        # Before there was a choice, pixels were shifted whatever the rule made of it.
        match content:
            case {"preprocess": {"view": "shift", **others}} if "shift" not in others:
                content["preprocess"]["shift"] = "pixels"
        return cls.model_validate(content)

    def canonical(self) -> str:
        """Return the one JSON text of this recipe: sorted keys, no spaces."""
        content = self.model_dump(mode="json")
        if self.precision == "float32":  # as before there was a choice: the digest stays
            del content["precision"]
        if self.patch == PatchTokens():  # so here
            del content["patch"]
        if self.raptor is None:
            del content["raptor"]
        if self.preprocess.view == "none":
            del content["preprocess"]["view"]
        if self.preprocess.view != "shift" or self.preprocess.shift == "pixels":
            del content["preprocess"]["shift"]
        if self.preprocess.volume is None:
            del content["preprocess"]["volume"]
        network = content["architecture"]
        for name, plain in (("family", "dinov2"), ("settings", {}), ("treatment", "own")):
            if network[name] == plain:
                del network[name]
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Return the sha256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


@dataclass(frozen=True)
class BatchFeatures:
    """One batch's features, float32.

    cls (b, l, d): CLS tokens of the last l blocks after the final LayerNorm, oldest first;
    mean (b, d): mean of the last block's patch tokens; patch (b, h, w, d): those tokens; where
    several blocks are asked for, (b, l, h, w, d), as cls.
    """

    cls: torch.Tensor
    mean: torch.Tensor
    patch: torch.Tensor


def recipe_of(store: FeatureStore) -> Recipe:
    """Return the recipe of a store, whose text is parsed once however often it is asked for.

    Raises CorruptStoreError where it is of another version, or was never a recipe.
    """
    try:
        return _parsed(store.recipe_text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "all of it"
        raise CorruptStoreError(
            f"{store.path / RECIPE} is no recipe of this version of radprobe: {key}: "
            f"{first['msg']}. Use the version that made the store, or take the store from where it "
            "came, again."
        ) from None


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> Recipe:
    return Recipe.from_text(text)

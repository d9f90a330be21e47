"""What a benchmark is of: data sets, backbones, settings and seeds, and the config of each cell.

A cell is an ordinary config: its store is embedded by `extract`, its answers are filed by
`evaluate` or `segment` under all they depend on. So a benchmark keeps no state that could be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from pipeline.backbones.models import COMPARATORS
from pipeline.config.data import BackboneChoice
from pipeline.config.heads import HEADS, TUNED, declared, method_names
from pipeline.config.loading import anchored, load_config, read_settings
from pipeline.config.methods import one_of
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.recipe import PatchTokens, Preprocess, SeenAs, ViewName
from pipeline.shared.frozen import Frozen
from pipeline.shared.paths import matcher
from stores.errors import ConfigError

SEGMENT = "segment"
# What stands in the place of a backbone where a network is trained on images alone.
FROM_SCRATCH = "from scratch"


def _block_of(method: str) -> type[Frozen]:
    """Return the block of a config that a method takes its settings from."""
    return Segment if method == SEGMENT else declared(method).settings


def _seen_otherwise(method: str) -> bool:
    """Return whether a method can be tested on images seen otherwise than those it is fitted on."""
    return method in HEADS and declared(method).compared


# The name of a method, or `segment`.
CellMethod = Annotated[str, AfterValidator(lambda name: one_of(name, (*method_names(), SEGMENT)))]


class BenchmarkBackbone(BackboneChoice):
    """A network; blocks: how many of its last blocks are kept (1 for ResNet)."""

    blocks: Annotated[int, Field(ge=1)] = 4


class Setting(Frozen):
    """What is done with the features: a method, and its block's options.

    of: the masks of a data set, or its tasks; where it is not given, those for `segment` and these
    for the others. Networks alone are tuned on either. image_size: where it is another than the
    backbone's, of those that take any. options: instead of those in the config of a data set.
    preprocess: instead of that block's keys there, in stores of their own. datasets: that it is
    asked of, by name; all that have what it needs, if not given.
    """

    method: CellMethod
    of: Literal["tasks", "masks"] = "tasks"
    image_size: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    preprocess: dict[str, str] = Field(default_factory=dict)
    datasets: tuple[str, ...] = ()

    @property
    def is_from_scratch(self) -> bool:
        """Whether it trains a network on images, and so is asked once and not of each backbone."""
        if self.method != SEGMENT:
            return False
        head = SEGMENTATION_HEADS[Segment.model_validate(self.options).method]
        return "tokens" not in head.needs

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("method") == "segment":
            return {"of": "masks", **data}
        return data

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Setting:
        can = {"segment": ("masks",)} | dict.fromkeys(TUNED, ("tasks", "masks"))
        if self.of not in can.get(self.method, ("tasks",)):
            raise ValueError(
                f"{self.method} is not asked of {self.of}: segment is of masks; "
                f"{', '.join(TUNED)} are of tasks or masks; all else is of tasks."
            )
        return self

    @field_validator("preprocess")
    @classmethod
    def _known_rules(cls, value: dict[str, str]) -> dict[str, str]:
        if "view" in value:
            raise ValueError("Views are the benchmark's own key, `views`, and no preprocessing.")
        Preprocess.model_validate(value)
        return value

    @model_validator(mode="after")
    def _known_options(self) -> Setting:
        # Here rather than in each cell's config: the fault is of this file, and named by it.
        block = _block_of(self.method)
        extra = sorted(self.options.keys() - block.model_fields.keys())
        if extra:
            raise ValueError(f"{self.method} has no option {extra[0]!r}.")
        try:
            block.model_validate(self.options)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))
            raise ValueError(f"options.{path}: {first['msg']}.") from None
        return self


class Pair(Frozen):
    """Two data sets, by name: heads are fitted on the first and tested on the second."""

    fitted: str
    tested: str

    @model_validator(mode="before")
    @classmethod
    def _written_with_an_arrow(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        names = [name.strip() for name in data.split("->")]
        if len(names) != 2 or names[0] == names[1]:
            raise ValueError(f"A pair names two data sets, as `a -> b`. Got {data!r} instead.")
        return dict(zip(("fitted", "tested"), names, strict=True))

    @property
    def name(self) -> str:
        """What the pair is called where a data set is."""
        return f"{self.fitted}->{self.tested}"


class Benchmark(Frozen):
    """One benchmark file.

    out: the folder of stores and results. datasets: name -> config file, such as `radprobe dataset`
    writes; its data, preprocessing, labels, split, tasks and masks count. seeds: of splits that
    are dealt, and of heads that draw. pairs: two data sets each, as `nih -> chexpert`: heads are
    fitted on train and val of the first, and tested on test of the second. views: what else the
    test images are seen as, by heads (those that are `compared`) that were fitted on the images as
    they are. tokens: how patch tokens are kept, for segmentation.
    """

    out: Path
    datasets: Annotated[dict[str, Path], Field(min_length=1)]
    backbones: Annotated[dict[str, BenchmarkBackbone], Field(min_length=1)]
    settings: Annotated[dict[str, Setting], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    pairs: tuple[Pair, ...] = ()
    views: tuple[SeenAs, ...] = ()
    tokens: PatchTokens = PatchTokens()

    @field_validator("datasets", "backbones", "settings")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"A name must be one part of a path. Got {name!r} instead.")
        return value

    @model_validator(mode="after")
    def _settings_of_data_sets(self) -> Benchmark:
        for name, setting in self.settings.items():
            unknown = [each for each in setting.datasets if each not in self.datasets]
            if unknown:
                raise ValueError(
                    f"The setting {name!r} names no data set {unknown[0]!r}. There are "
                    f"{', '.join(self.datasets)}."
                )
        if FROM_SCRATCH in self.backbones:
            raise ValueError(
                f"{FROM_SCRATCH!r} is what networks trained on images alone are called, and no "
                "name of a backbone."
            )
        return self

    @model_validator(mode="after")
    def _pairs_of_data_sets(self) -> Benchmark:
        for pair in self.pairs:
            for name in (pair.fitted, pair.tested):
                if name not in self.datasets:
                    raise ValueError(
                        f"The pair {pair.name} names no data set {name!r}. There are "
                        f"{', '.join(self.datasets)}."
                    )
        return self


@dataclass(frozen=True)
class Cell:
    """One data set, by one backbone, in one setting, with one seed; config: all of that.

    of: whether its tasks or its masks are answered; view: what its test images are seen as; needs:
    the configs whose stores it reads. Of a pair, dataset names both, and tested the second.
    """

    dataset: str
    backbone: str
    setting: str
    seed: int
    config: Config
    method: CellMethod
    of: Literal["tasks", "masks"]
    view: ViewName
    needs: tuple[Config, ...]
    tested: str = ""

    @property
    def name(self) -> str:
        """The name on the command line and in tables."""
        seen = "" if self.view == "none" else f"+{self.view}"
        return f"{self.dataset}/{self.backbone}/{self.setting}{seen}/{self.seed}"


def load_benchmark(path: Path) -> Benchmark:
    """Read a benchmark file; its paths are relative to it. Raises ConfigError."""
    settings = read_settings(path, Benchmark)
    base = path.parent
    anchored_paths = {
        "out": anchored(base, settings.out),
        "datasets": {name: anchored(base, file) for name, file in settings.datasets.items()},
        "backbones": {
            name: _anchored_weights(base, each) for name, each in settings.backbones.items()
        },
    }
    return settings.model_copy(update=anchored_paths)


def _anchored_weights(base: Path, backbone: BenchmarkBackbone) -> BenchmarkBackbone:
    """Return a backbone whose weights, where they are a file, are named from anywhere."""
    weights = backbone.weights
    if weights is None or weights.startswith("random:"):
        return backbone
    return backbone.model_copy(update={"weights": str(anchored(base, Path(weights)))})


def cells_of(settings: Benchmark, only: tuple[str, ...] = ("**",)) -> list[Cell]:
    """Return the cells that a benchmark has, in order.

    only: globs over their names. A setting is for the data sets that have what it needs:
    tasks, or masks; those that are absent have no cells. Raises ConfigError where all are, for a
    config that cannot be read, and where `only` leaves no cell.
    """
    if len(absent(settings)) == len(settings.datasets):
        name, file = next(iter(settings.datasets.items()))
        raise ConfigError(
            f"No data set of the benchmark is here: there is no {str(file)!r} of {name!r}, ... "
            "`radprobe dataset NAME FOLDER --out DIR` writes the configs of public sets."
        )
    wanted = matcher(only)
    cells = [cell for cell in _cells(settings) if wanted(cell.name)]
    if not cells:
        raise ConfigError(
            f"No cell of the benchmark fits {', '.join(only)}. A cell is called "
            "dataset/backbone/setting/seed; a data set needs the `tasks` or `masks` that a "
            "setting is of."
        )
    return cells


def absent(settings: Benchmark) -> list[str]:
    """Return the names of the data sets whose config is not there."""
    return [name for name, file in settings.datasets.items() if not file.is_file()]


def _cells(settings: Benchmark) -> Iterator[Cell]:
    """Yield every cell, by data set, backbone, setting and seed, as the file lists them."""
    bases = {n: load_config(file) for n, file in settings.datasets.items() if file.is_file()}
    for dataset, base in bases.items():
        for backbone, name, seed in _columns(settings):
            setting = settings.settings[name]
            if getattr(base, setting.of) and dataset in (setting.datasets or bases):
                plain = _config(settings, base, dataset, backbone, name, seed)
                shown = FROM_SCRATCH if setting.is_from_scratch else backbone
                yield from _seen_each_way(settings, setting, (dataset, shown, name, seed), plain)
    for pair in settings.pairs:
        if {pair.fitted, pair.tested} <= bases.keys():
            yield from _paired(settings, pair, bases[pair.fitted], bases[pair.tested])


def _columns(settings: Benchmark) -> Iterator[tuple[str, str, int]]:
    """Yield each backbone, setting and seed.

    What is trained on images alone stands with the first backbone, whose store names the images.
    """
    first = next(iter(settings.backbones))
    for backbone, name, seed in product(settings.backbones, settings.settings, settings.seeds):
        if backbone == first or not settings.settings[name].is_from_scratch:
            yield backbone, name, seed


def _paired(settings: Benchmark, pair: Pair, fitted: Config, tested: Config) -> Iterator[Cell]:
    """Yield the cells of a pair: of the tasks that both data sets have, by heads on features."""
    shared = [name for name in tested.tasks if name in fitted.tasks]
    if not shared:
        return
    tested = tested.model_copy(update={"tasks": {name: tested.tasks[name] for name in shared}})
    for backbone, name, seed in _columns(settings):
        setting = settings.settings[name]
        if setting.method not in HEADS:
            continue
        there = _config(settings, fitted, pair.fitted, backbone, name, seed)
        here = _config(settings, tested, pair.tested, backbone, name, seed)
        yield Cell(
            dataset=pair.name,
            backbone=backbone,
            setting=name,
            seed=seed,
            config=here.model_copy(update={"fit_on": there}),
            method=setting.method,
            of="tasks",
            view="none",
            needs=(there, here),
            tested=pair.tested,
        )


def _seen_each_way(
    settings: Benchmark, setting: Setting, about: tuple[str, str, str, int], plain: Config
) -> Iterator[Cell]:
    """Yield the cell of the images as they are, then one a view. about: what names a cell."""
    method = setting.method
    yield Cell(*about, plain, method, setting.of, "none", (plain,))
    if not _seen_otherwise(method):
        return
    for view in settings.views:
        seen = _seen_as(view, plain)
        # The plain store has the images that the head is fitted on, so it is needed too.
        yield Cell(*about, seen, method, setting.of, view, (plain, seen))


def _seen_as(view: SeenAs, plain: Config) -> Config:
    """Return a config whose heads are fitted on its store, and tested on a view of its slices."""
    store = plain.store.with_name(f"{plain.store.name}-{view}")
    changed = plain.preprocess.model_copy(update={"view": view})
    return plain.model_copy(update={"store": store, "fit_on": plain.store, "preprocess": changed})


def _config(
    settings: Benchmark, base: Config, dataset: str, backbone: str, name: str, seed: int
) -> Config:
    """Return a data set's config by one backbone, in the setting of a name, with one seed."""
    network = settings.backbones[backbone]
    setting = settings.settings[name]
    size = _size(setting, network)
    on_tokens = setting.of == "masks"
    # Tokens are stored apart, so that a setting more never asks for another recipe.
    suffix = "-tokens" if on_tokens else ""
    suffix += "".join(f"-{value}" for value in setting.preprocess.values())
    store = settings.out / "stores" / dataset / f"{backbone}-{size}{suffix}"
    choice = BackboneChoice(**network.model_dump(exclude={"blocks"}) | {"image_size": size})
    outputs = {
        "keep": ("patch",) if on_tokens else ("cls", "mean"),
        "patch": _tokens(settings, network) if on_tokens else PatchTokens(),
        "blocks": network.blocks,
    }
    head = _head_settings(setting, base, seed)
    seen = base.preprocess.model_dump(exclude_unset=True) | setting.preprocess
    return base.model_copy(
        update={
            "preprocess": Preprocess.model_validate(seen),
            "store": store,
            "fit_on": None,
            "backbone": choice,
            "outputs": base.outputs.model_copy(update=outputs),
            "split": base.split.model_copy(update={"seed": seed}),
            # A config has one block a method, but names its heads of segmentation.
            setting.method: {name: head} if setting.method == SEGMENT else head,
        }
    )


def _head_settings(setting: Setting, base: Config, seed: int) -> Frozen:
    """Return a method's block: the data set's, over it the setting's options, over them the seed.

    Heads of segmentation begin with the defaults: a data set's config has them by other names.
    """
    block = _block_of(setting.method)
    given = None if setting.method == SEGMENT else getattr(base, setting.method)
    options = given.model_dump(exclude_unset=True) if given else {}
    options |= setting.options
    if "seed" in block.model_fields:
        options["seed"] = seed
    return block.model_validate(options)


def _size(setting: Setting, network: BenchmarkBackbone) -> int:
    """Return the image size of a network in a setting: its own, where it takes no other."""
    known = COMPARATORS.get(network.name)
    if known is not None and "image_size" in known.architecture.settings:
        return network.image_size
    return setting.image_size or network.image_size


def _tokens(settings: Benchmark, network: BenchmarkBackbone) -> PatchTokens:
    """Return how a network's patch tokens are kept: of no more blocks than it has."""
    known = COMPARATORS.get(network.name)
    if known is None:
        return settings.tokens
    blocks = min(settings.tokens.blocks, known.architecture.depth)
    return settings.tokens.model_copy(update={"blocks": blocks})

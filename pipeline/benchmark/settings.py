"""What a benchmark asks: data sets, backbones, settings and seeds, and the config of each cell.

A cell is an ordinary config: its store is embedded by `extract`, its answers are filed by
`evaluate` or `segment` under all they depend on. So a benchmark has no state of its own to lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from pipeline.config.data import BackboneChoice
from pipeline.config.heads import HEADS, TUNED, declared, method_names
from pipeline.config.loading import anchored, load_config, read_settings
from pipeline.config.methods import one_of
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.recipe import PatchTokens, SeenAs, ViewName
from pipeline.shared.paths import matcher
from pipeline.types import Frozen
from stores.errors import ConfigError

SEGMENT = "segment"


def _block_of(method: str) -> type[Frozen]:
    """Return the block of a config that a method takes its settings from."""
    return Segment if method == SEGMENT else declared(method).settings


def _seen_otherwise(method: str) -> bool:
    """Return whether a method can be tested on images seen otherwise than those it is fitted on."""
    return method in HEADS and declared(method).compared


# The name of a method, or `segment`.
CellMethod = Annotated[str, AfterValidator(lambda name: one_of(name, (*method_names(), SEGMENT)))]


class Backbone(BackboneChoice):
    """A network; blocks: how many of its last blocks are kept (1 for ResNet)."""

    blocks: Annotated[int, Field(ge=1)] = 4


class Setting(Frozen):
    """What is done with the features: a method, and its block's options.

    of: the masks of a data set, or its tasks; where it is not given, those for `segment` and these
    for the others. Networks alone are tuned on either. image_size: where it is another than the
    backbone's. options: instead of those in a data set's own config.
    """

    method: CellMethod
    of: Literal["tasks", "masks"] = "tasks"
    image_size: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("method") == "segment":
            return {"of": "masks", **data}
        return data

    @model_validator(mode="after")
    def _askable(self) -> Setting:
        can = {"segment": ("masks",)} | dict.fromkeys(TUNED, ("tasks", "masks"))
        if self.of not in can.get(self.method, ("tasks",)):
            raise ValueError(
                f"{self.method} is not asked of {self.of}: segment is of masks; "
                f"{', '.join(TUNED)} are of tasks or masks; all else is of tasks."
            )
        return self

    @model_validator(mode="after")
    def _known_options(self) -> Setting:
        block = _block_of(self.method)
        extra = sorted(self.options.keys() - block.model_fields.keys())
        if extra:
            raise ValueError(f"{self.method} has no option {extra[0]!r}.")
        try:
            block.model_validate(self.options)
        except ValidationError as error:
            said = error.errors()[0]
            raise ValueError(f"options.{'.'.join(map(str, said['loc']))}: {said['msg']}.") from None
        return self


class Benchmark(Frozen):
    """One benchmark file.

    out: the folder of stores and results. datasets: name -> config file, such as `radprobe dataset`
    writes; its data, preprocessing, labels, split, tasks and masks count. seeds: of splits that
    are dealt, and of heads that draw. views: what else the test images are seen as, by heads
    (those that are `compared`) that were fitted on the images as they are. tokens: how patch
    tokens are kept, for segmentation.
    """

    out: Path
    datasets: Annotated[dict[str, Path], Field(min_length=1)]
    backbones: Annotated[dict[str, Backbone], Field(min_length=1)]
    settings: Annotated[dict[str, Setting], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    views: tuple[SeenAs, ...] = ()
    tokens: PatchTokens = PatchTokens()

    @field_validator("datasets", "backbones", "settings")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"A name must be one part of a path. Got {name!r} instead.")
        return value


@dataclass(frozen=True)
class Cell:
    """One data set, by one backbone, in one setting, with one seed; config: all of that.

    of: whether its tasks or its masks are asked; view: what its test images are seen as; needs: the
    configs whose stores it reads.
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

    @property
    def name(self) -> str:
        """What it is called on the command line and in tables."""
        seen = "" if self.view == "none" else f"+{self.view}"
        return f"{self.dataset}/{self.backbone}/{self.setting}{seen}/{self.seed}"


def load_benchmark(path: Path) -> Benchmark:
    """Read a benchmark file; its paths are relative to it. Raises ConfigError."""
    asked, base = read_settings(path, Benchmark), path.parent
    backbones = {
        name: each.model_copy(update={"weights": str(anchored(base, Path(each.weights)))})
        if each.weights is not None and not each.weights.startswith("random:")
        else each
        for name, each in asked.backbones.items()
    }
    datasets = {name: anchored(base, file) for name, file in asked.datasets.items()}
    return asked.model_copy(
        update={"out": anchored(base, asked.out), "datasets": datasets, "backbones": backbones}
    )


def cells_of(asked: Benchmark, only: tuple[str, ...] = ("**",)) -> list[Cell]:
    """Return the cells that a benchmark has, in order.

    only: globs over their names. A setting is asked of the data sets that have what it needs:
    tasks, or masks; those that are absent have no cells. Raises ConfigError where all are, for a
    config that cannot be read, and where `only` leaves no cell.
    """
    wanted, gone = matcher(only), absent(asked)
    if len(gone) == len(asked.datasets):
        name, file = next(iter(asked.datasets.items()))
        raise ConfigError(
            f"No data set of the benchmark is here: there is no {str(file)!r} of {name!r}, ... "
            "`radprobe dataset NAME FOLDER --out DIR` writes the configs of public sets."
        )
    found = [cell for cell in _cells(asked) if wanted(cell.name)]
    if not found:
        raise ConfigError(
            f"No cell of the benchmark fits {', '.join(only)}. A cell is called "
            "dataset/backbone/setting/seed; a data set needs the `tasks` or `masks` that a "
            "setting is of."
        )
    return found


def absent(asked: Benchmark) -> list[str]:
    """Return the names of the data sets whose config is not there."""
    return [name for name, file in asked.datasets.items() if not file.is_file()]


def _cells(asked: Benchmark) -> Iterator[Cell]:
    for dataset, file in asked.datasets.items():
        if not file.is_file():
            continue
        base = load_config(file)
        for backbone in asked.backbones:
            for setting, what in asked.settings.items():
                if not getattr(base, what.of):
                    continue
                for seed in asked.seeds:
                    plain = _config(asked, base, dataset, backbone, setting, seed)
                    about = dataset, backbone, setting, seed
                    yield Cell(*about, plain, what.method, what.of, "none", (plain,))
                    for view in asked.views if _seen_otherwise(what.method) else ():
                        seen = _seen_as(view, plain)
                        yield Cell(*about, seen, what.method, what.of, view, (plain, seen))


def _seen_as(view: SeenAs, plain: Config) -> Config:
    """Return a config whose heads are fitted on its store, and tested on a view of its slices."""
    store = plain.store.with_name(f"{plain.store.name}-{view}")
    changed = plain.preprocess.model_copy(update={"view": view})
    return plain.model_copy(update={"store": store, "fit_on": plain.store, "preprocess": changed})


def _config(
    asked: Benchmark, base: Config, dataset: str, backbone: str, setting: str, seed: int
) -> Config:
    """Return a data set's config, asked by one backbone in one setting with one seed."""
    network, what = asked.backbones[backbone], asked.settings[setting]
    size, on_tokens = what.image_size or network.image_size, what.of == "masks"
    # Tokens have a store of their own, so that a setting more never asks for another recipe.
    store = asked.out / "stores" / dataset / f"{backbone}-{size}{'-tokens' if on_tokens else ''}"
    choice = BackboneChoice(**network.model_dump(exclude={"blocks"}) | {"image_size": size})
    keep = {"keep": ("patch",) if on_tokens else ("cls", "mean"), "patch": asked.tokens}
    block = _block_of(what.method)
    given = None if what.method == "segment" else getattr(base, what.method)
    own = (given.model_dump(exclude_unset=True) if given else {}) | what.options
    if "seed" in block.model_fields:
        own["seed"] = seed
    head = block.model_validate(own)
    return base.model_copy(
        update={
            "store": store,
            "fit_on": None,
            "backbone": choice,
            "outputs": base.outputs.model_copy(update={**keep, "blocks": network.blocks}),
            "split": base.split.model_copy(update={"seed": seed}),
            **({"segment": {setting: head}} if what.method == "segment" else {what.method: head}),
        }
    )

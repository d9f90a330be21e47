"""What a model is asked about: a store, the store of a config, or a folder that is embedded first.

A folder is embedded by the model's own recipe, into a store that stays or is thrown away.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.labels import labelled_patients
from pipeline.config.data import BackboneChoice, Data, Outputs
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.discover import UNKNOWN_MODALITY
from pipeline.extraction.embed import Speed
from pipeline.extraction.failures import Lost, aside, failures
from pipeline.extraction.recipes import Difference, create_store, make_recipe, recipe_differences
from pipeline.extraction.same_store import check_store
from pipeline.extraction.sync import update_tables
from pipeline.fitted.folder import NETWORK, Record
from pipeline.fitted.model import FiledModel
from pipeline.fitted.record import FiledRecord, MaskRecord, ModelRecord
from pipeline.inference.speed import cores
from pipeline.recipe import recipe_of
from pipeline.shared.interruption import leaving_behind
from pipeline.shared.pseudonyms import Names, drop_key
from stores.contents import MANIFEST, RECIPE
from stores.errors import ConfigError, RecipeMismatchError
from stores.features import FeatureStore
from stores.mirror import url_of
from stores.slices import is_withdrawn
from stores.storage import located

Texts = NDArray[np.str_]
# What an interruption leaves of a folder whose store has no place.
_NOT_KEPT = (
    "What was embedded is thrown away, since no --store says where to keep it; with one, the same "
    "command goes on from there."
)
# Of a task, or of masks.
AnyModel = FiledModel[ModelRecord] | FiledModel[MaskRecord]


class NoImagesError(ConfigError):
    """A folder holds no image that can be read, or none yet."""


@dataclass(frozen=True)
class Source:
    """A store that a model may be asked about.

    config: of its images, where that is known. patients (slices,): who each slice is of
    where labels say it; None for the headers' word. lost: the files that were set aside, with
    their real paths where the key is there. notes: what was taken for granted.
    """

    store: FeatureStore
    names: Names
    config: Config | None = None
    patients: Texts | None = None
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path | None:
        """The folder of its files, where that is known."""
        return None if self.config is None else self.config.data.root


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is embedded. store: where its features stay; unset, they are thrown away.

    modality: of the files that name none; unset, the one that the model was fitted on. weights: a
    file or folder with the model's weights, where they are not where they were.
    """

    store: Path | None = None
    modality: str | None = None
    weights: str | None = None
    speed: Speed = field(default_factory=Speed)


@contextlib.contextmanager
def open_source(
    model: AnyModel,
    target: Path,
    options: FolderOptions = FolderOptions(),
) -> Iterator[Source]:
    """Yield the store that a target names: a store, a config, or a folder of images.

    Raises ConfigError for what is none of them and for a folder without images, and
    RecipeMismatchError with both values where the images were embedded otherwise.
    """
    if url_of(target) or _is_store(target):
        yield _of_store(model, located(target))
    elif target.is_file():
        yield _of_config(model, target)
    elif target.is_dir():
        with _embedded(model, target, options) as source:
            yield source
    else:
        raise ConfigError(
            f"There is nothing at {str(target)!r}. Name a store, a config, or a folder of images."
        )


def _is_store(path: Path) -> bool:
    return any((path / name).is_file() for name in (MANIFEST, RECIPE))


def _of_store(model: AnyModel, path: Path) -> Source:
    store = FeatureStore.open(path)
    check_recipe(model, store)
    names = Names(store.path)
    files = store.files()
    return Source(store, names, lost=aside(names.revealed(files) if names.has_key else files))


def _of_config(model: AnyModel, path: Path) -> Source:
    """Return the store of a config, with the patients that its labels name."""
    config = load_config(path)
    check_store(config)
    source = _of_store(model, config.store)
    patients = None
    if config.labels is not None:
        slices = source.names.revealed(source.store.slices())
        patients = labelled_patients(config, slices, source.names)
    return replace(source, config=config, patients=patients)


# --- is it the model's kind of features ----------------------------------------------------


def check_recipe(model: AnyModel, store: FeatureStore) -> None:
    """Raise RecipeMismatchError, with both values, where a store's features are of another kind."""
    record = model.record
    recipe = recipe_of(store)
    same = {name: getattr(record.recipe, name) for name in record.not_of_values}
    ours = recipe.model_copy(update=same)
    fields = recipe_differences(ours, record.recipe)
    if fields:
        _refuse(model, store.place, fields)


def _refuse(model: AnyModel, place: str, fields: list[Difference]) -> None:
    lines = []
    for name, have, want in fields:
        lines.append(f"  {name}: {have!r} there, {want!r} in the model")
    raise RecipeMismatchError(
        f"The features of {place} are not those that the model {str(model.path)!r} was fitted "
        "on:\n" + "\n".join(lines) + "\nName a store of the model's recipe, or a folder, which is "
        "embedded by it."
    )


# --- a folder ------------------------------------------------------------------------------


@contextlib.contextmanager
def _embedded(model: AnyModel, folder: Path, options: FolderOptions) -> Iterator[Source]:
    """Embed a folder by the model's recipe; the store is gone at the end, unless it has a place."""
    with contextlib.ExitStack() as stack:
        place = options.store
        if place is None:
            stack.enter_context(leaving_behind(lambda: _NOT_KEPT))
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="radprobe-"))
            place = Path(temporary) / "store"
        config = folder_config(model, folder, place, options)
        is_new = not _is_store(place) and not Names(place).has_key
        store = _look(model, config, options.speed)
        try:
            _refuse_empty(folder, store, model.record)
        except NoImagesError:
            if is_new:  # nothing is left of what is refused
                _remove(place)
            raise
        _extract(model, config, options.speed)
        names = Names(store.path)
        yield Source(
            store,
            names,
            config,
            lost=failures(store.path),
            notes=_assumed(model.record, store, options),
        )


def folder_config(
    model: AnyModel,
    folder: Path,
    store: Path,
    options: FolderOptions,
) -> Config:
    """Return the config that embeds a folder as the model's own images were.

    Of the outputs those alone that the model reads.
    """
    record = model.record
    recipe = record.folder_recipe
    modality = options.modality or only_modality(record)
    return Config(
        data=Data(root=folder, modality={} if modality is None else {"**": modality}),
        store=store,
        backbone=BackboneChoice(
            **_network(model, options),
            image_size=recipe.image_size,
            precision=recipe.precision,
            treatment=recipe.architecture.treatment,
        ),
        preprocess=recipe.preprocess,
        outputs=Outputs(
            keep=recipe.outputs,
            blocks=recipe.blocks,
            dtype=recipe.dtype,
            patch=recipe.patch,
            **({} if recipe.raptor is None else {"raptor": recipe.raptor}),
        ),
    )


def _network(model: AnyModel, options: FolderOptions) -> dict[str, str | None]:
    """Return the name of a model's network and where its weights are."""
    record = model.record
    if not record.tuned:
        return {
            "name": record.backbone.name,
            "weights": options.weights or record.backbone.weights,
        }
    return tuned_network(record.backbone.name, options.weights or str(model.path / NETWORK))


def tuned_network(name: str, folder: str) -> dict[str, str | None]:
    """Return the name and the weights by which a tuned network in a folder is found.

    name: of the one that it was; where a folder, or a hub, has its shape, this folder does too.
    """
    return {"name": f"hf:{folder}" if ":" in name else name, "weights": folder}


def only_modality(record: FiledRecord) -> str | None:
    """Return the one modality that a model was fitted on; None where it knows several."""
    modalities = [*record.trained_on.modalities]
    return modalities[0] if len(modalities) == 1 else None


def _look(model: AnyModel, config: Config, speed: Speed) -> FeatureStore:
    """Return the folder's store, made by the model's recipe, with the slices it is to have.

    Whatever weights are found later must then fit that recipe: what does not is refused before
    anything is embedded.
    """
    if _is_store(config.store):
        store = FeatureStore.open(config.store)
        check_recipe(model, store)
    else:
        store = create_store(config, model.record.folder_recipe)
    workers = cores() if speed.workers is None else speed.workers
    update_tables(config, store, workers=workers)
    return store


def _extract(model: AnyModel, config: Config, speed: Speed) -> None:
    """Embed what is not in the store yet. Raises RecipeMismatchError, naming the model's values."""
    try:
        extract(config, speed)
    except RecipeMismatchError:
        recipe, _ = make_recipe(config)
        fields = recipe_differences(recipe, model.record.folder_recipe)
        if fields:
            _refuse(model, str(config.data.root), fields)
        raise


def _remove(store: Path) -> None:
    """Remove a store that was made just now, and its key."""
    shutil.rmtree(store)
    drop_key(store)


def _refuse_empty(folder: Path, store: FeatureStore, record: Record) -> None:
    """Raise NoImagesError where a folder holds nothing that the model is asked about."""
    slices = store.slices(["modality", "withdrawn"])
    live = slices.filter(pa.array(~is_withdrawn(slices)))
    if not len(live):
        reasons = Counter(store.files(["reason"])["reason"].drop_null().to_pylist())
        aside = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
        raise NoImagesError(
            f"The folder {str(folder)!r} holds no image that can be read. Files set aside: "
            f"{aside or 'none'}. Check the path."
        )
    counts = Counter(live["modality"].to_pylist())
    wanted = record.modality
    # Before hours of work for nothing.
    if wanted is not None and not counts.keys() & set(wanted):
        raise NoImagesError(
            f"The folder {str(folder)!r} holds no image of {', '.join(wanted)}, which the model is "
            f"asked about. It holds {_counted(counts)}. Name another folder, or say by --modality "
            "what files are that name none."
        )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


def _assumed(record: FiledRecord, store: FeatureStore, options: FolderOptions) -> list[str]:
    """Return what was taken for granted of files that name no modality."""
    modality = options.modality or only_modality(record)
    if modality is not None:
        return [f"Files that name no modality are taken as {modality}"]
    names = store.slices(["modality"])["modality"].to_pylist()
    number = names.count(UNKNOWN_MODALITY)
    if not number:
        return []
    known = ", ".join(record.trained_on.modalities)
    return [
        f"{number} slices name no modality, and the model knows {known}: say which by --modality"
    ]

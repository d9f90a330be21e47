"""A YAML file to a config: anchors, unknown keys, and what is wrong in plain words."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from pipeline.config.bids import with_bids
from pipeline.config.heads import HEADS, declared
from pipeline.config.root import Config
from pipeline.config.yaml_text import RepeatedKeyError, parse_yaml
from pipeline.shared.frozen import Frozen
from pipeline.shared.private import keep_private
from pipeline.shared.roots import linked
from stores.contents import MANIFEST, RECIPE
from stores.errors import ConfigError
from stores.mirror import url_of
from stores.storage import located

Settings = TypeVar("Settings", bound=Frozen)
# What is told of a file that is wrong in many places, or in long ones.
_MOST_FAULTS = 20
_MOST_SHOWN = 200


def load_config(path: Path, store: Path | None = None) -> Config:
    """Read and validate a config file; `store` overrides the one it names. Raises ConfigError."""
    config = with_bids(_anchored(read_settings(path, Config), path.parent, store))
    masks = [masks.root for masks in config.masks.values() if masks.root is not None]
    labels = [] if config.labels is None else [config.labels.file]
    keep_private(
        [config.data.root, *config.data.roots.values(), *masks], but=[path, config.store, *labels]
    )
    return config


def read_settings(path: Path, model: type[Settings]) -> Settings:
    """Read a YAML file as settings of some kind.

    Raises ConfigError with one line a fault: what, got, expected, what to do.
    """
    return validated(path, read_keys(path, "config file"), model)


def read_keys(path: Path, what: str) -> dict[Any, Any]:
    """Read the keys and values of a YAML file; what: messages call it. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {str(path)!r}. Check the path.") from None
    except IsADirectoryError:
        is_store = any((path / name).is_file() for name in (MANIFEST, RECIPE))
        kind = "a feature store" if is_store else "a folder"
        names = "whose `store` it is" if is_store else "itself"
        raise ConfigError(
            f"{str(path)!r} is {kind}, and a {what} is asked for. Name the YAML file {names}."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{str(path)!r} is no text, and a {what} is YAML. Name that file; of an image, name "
            "its folder."
        ) from None
    except OSError as error:
        raise ConfigError(f"The {what} {str(path)!r} cannot be read: {error}.") from None
    try:
        data = parse_yaml(text)
    except RepeatedKeyError as error:
        raise ConfigError(f"In the {what} {str(path)!r}, {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"The {what} {str(path)!r} is not YAML: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"The {what} {str(path)!r} must hold keys and values.")
    return data


def validated(path: Path, data: dict[Any, Any], model: type[Settings]) -> Settings:
    """Return the keys of a file as settings. Raises ConfigError with one line a fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = _of_one_kind_each(error.errors())
        lines = [_fault(fault, model) for fault in faults[:_MOST_FAULTS]]
        if len(faults) > _MOST_FAULTS:
            lines.append(f"and {len(faults) - _MOST_FAULTS} more")
        raise ConfigError(f"{path}: " + "\n".join(lines)) from None


def _anchored(config: Config, base: Path, store: Path | None) -> Config:
    """Return the config with its relative paths taken from the folder of the file."""
    weights = config.backbone.weights
    if weights is not None and not weights.startswith("random:"):
        weights = str(anchored(base, Path(weights)))
    labels = config.labels and config.labels.model_copy(
        update={"file": anchored(base, config.labels.file)}
    )
    located_store = _store(base, config.store) if store is None else located(store)
    roots = {name: anchored(base, root) for name, root in config.data.roots.items()}
    root = linked(located_store, roots) if roots else anchored(base, config.data.root)
    masks = {
        name: masks.model_copy(
            update={"root": root if masks.root is None else anchored(base, masks.root)}
        )
        for name, masks in config.masks.items()
    }
    tasks = {}
    for name, task in config.tasks.items():
        region = task.region
        if region is not None and region.crops is not None:
            region = region.model_copy(update={"crops": _store(base, region.crops)})
        tasks[name] = task.model_copy(update={"region": region})
    split = config.split
    if split.file is not None:
        split = split.model_copy(update={"file": anchored(base, split.file)})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": root, "roots": roots}),
            "store": located_store,
            "fit_on": _fit_on(base, config.fit_on),
            "backbone": config.backbone.model_copy(update={"weights": weights}),
            "labels": labels,
            "split": split,
            "masks": masks,
            "tasks": tasks,
            "boxes": {
                name: boxes.model_copy(update={"file": anchored(base, boxes.file)})
                for name, boxes in config.boxes.items()
            },
        }
    )


def _fit_on(base: Path, named: Path | Config | None) -> Path | Config | None:
    """Return the folder of the store that heads are fitted on, or the config that a file holds.

    Raises ConfigError where that config has a `fit_on` itself.
    """
    if not isinstance(named, Path):
        return named and _anchored(named, base, None)
    file = anchored(base, named)
    if url_of(named) or not file.is_file():
        return _store(base, named)
    # Read before it is loaded: two configs that name each other would go on for ever.
    if read_settings(file, Config).fit_on is not None:
        raise ConfigError(
            f"Heads are fitted on the store of {str(file)!r}, which has `fit_on` itself. Name a "
            "config without it."
        )
    return load_config(file)


def _store(base: Path, store: Path) -> Path:
    """Return the folder of a config's store; of one at a URL, its mirror here."""
    return located(store if url_of(store) else anchored(base, store))


def anchored(base: Path, path: Path) -> Path:
    """Return a path of settings, from the folder of their file, without detours by `..`."""
    return Path(os.path.normpath(base / path.expanduser()))


# What pydantic puts into the place of a fault for each kind that a value may be of.
_KIND_STEP = re.compile(r"(literal|function-(after|before|wrap))\[.*", re.DOTALL)


def _of_one_kind_each(faults: Sequence[Any]) -> list[Any]:
    """Return faults at the keys of the file, for a value of several kinds as that which it is of.

    A word may be one of several, and keys with values in their place: keys that are wrong are told
    as keys, and no word is asked for then.
    """
    of_values: list[Any] = []
    for fault in faults:
        steps = [step for step in fault["loc"] if not _is_kind(step)]
        # Whether the fault is that the value is not of this kind, and not one within it.
        is_of_kind = _is_kind(fault["loc"][-1]) if fault["loc"] else False
        asks_for_word = fault["type"] == "literal_error"
        asks_for_keys = fault["type"].endswith(_OF_KIND)
        has_keys = isinstance(fault["input"], dict)
        if is_of_kind and (asks_for_word if has_keys else asks_for_keys):
            continue
        of_values.append({**fault, "loc": tuple(steps), "of_kind": is_of_kind})
    return [fault for fault in of_values if not _is_for_want_of_items(fault, of_values)]


def _is_for_want_of_items(fault: Any, faults: Sequence[Any]) -> bool:
    """Return whether a list is too short only since pydantic leaves out items with faults."""
    place = fault["loc"]
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in faults
    )


def _is_kind(step: int | str) -> bool:
    return isinstance(step, str) and _KIND_STEP.fullmatch(step) is not None


def _fault(fault: Any, model: type[Frozen]) -> str:
    """Return one pydantic fault as one sentence; an unknown key comes with the nearest known."""
    where = ".".join(str(step) for step in fault["loc"])
    if fault["loc"][-1:] == ("[key]",) or fault["type"] == "invalid_key":
        above = fault["loc"][: -1 if fault["type"] == "invalid_key" else -2]
        what = f"{'.'.join(map(str, above)) or 'the config'}: a key must be text"
        return f"{what}. Write it in quotes, or choose another (got {_few(fault['input'])})"
    if fault["type"] == "missing":
        return f"{where}: must be given"
    if not fault["loc"] and fault["type"] == "value_error":  # of the whole, which need not be shown
        return _in_words(fault)
    if fault["type"] != "extra_forbidden":
        return f"{where}: {_in_words(fault)} (got {_few(fault['input'])})"
    known = _known_keys(fault["loc"][:-1], model)
    near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
    return f"{where}: unknown key. {hint}"


# How the types of pydantic's faults end that a value of another kind has.
_OF_KIND = ("_type", "_parsing", "_from_float", "_required")
# How the types of pydantic's faults begin that say of which kind a value must be, and the kind as
# YAML has it. The first that fits counts.
_KINDS = {
    ("tuple", "list", "set", "frozen_set", "iterable"): "a list",
    ("dict", "mapping", "model_type", "model_attributes", "dataclass"): "keys with values",
    ("bool",): "true or false",
    ("int",): "a whole number",
    ("float", "decimal"): "a number",
    ("string_type", "path"): "text",
    ("none",): "left empty",
}


# How pydantic begins a fault of a value of the right kind: "Input should be greater than 0".
_SHOULD = re.compile(r"^(Input|Value|String|Tuple|List|Set|Dictionary) should ")


def _in_words(fault: Any) -> str:
    """Return what a value must be, in the words of YAML instead of Python's."""
    kind = fault["type"]
    given = fault["input"]
    if kind == "literal_error":
        others = ", or keys with values" if fault["of_kind"] else ""
        return f"must be one of {fault['ctx']['expected']}{others}"
    for beginnings, what in _KINDS.items():
        if kind.startswith(beginnings) and kind.endswith(_OF_KIND):
            is_one = what == "a list" and isinstance(given, str | int | float)
            return f"must be {what}, such as {_as_list(given)}" if is_one else f"must be {what}"
    text = _SHOULD.sub("must ", fault["msg"].removeprefix("Value error, "))
    return text.replace(" after validation", "")


def _as_list(given: Any) -> str:
    """Return one value as a list of YAML, in a line."""
    return yaml.safe_dump([given], default_flow_style=True, width=_MOST_SHOWN).strip()


def _few(value: Any) -> str:
    """Return a value as it is told: of a long one, its beginning."""
    # Bounded on the way too: what a file holds may be as long as the file.
    bounded = reprlib.Repr()
    bounded.maxstring = bounded.maxother = _MOST_SHOWN
    bounded.maxlist = bounded.maxdict = 20
    text = bounded.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _known_keys(steps: tuple[int | str, ...], top: type[Frozen]) -> list[str]:
    """Return the keys known at a place in the settings, walking down their models."""
    models: list[Any] = [top]
    for step in steps:
        below: list[Any] = []
        for model in models:
            below += _models_under(model, step)
        models = below or models
    return sorted({key for model in models for key in model.model_fields})


def _models_under(model: Any, step: int | str) -> list[Any]:
    """Return the settings models that the value of a key of a model can be of."""
    # The annotation of a head's key is what all heads have; its own settings have more.
    if model is Config and step in HEADS:
        return [declared(str(step)).settings]
    field = model.model_fields.get(step) if hasattr(model, "model_fields") else None
    return _models_in(field.annotation) if field else []


def _models_in(annotation: Any) -> list[Any]:
    """Return the settings models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]

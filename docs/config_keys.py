"""Write docs/config.md: every key of a config with its type, default and meaning.

Keys, types and defaults are those of the models that validate a config; a meaning is what the
docstring of the model says behind the name of the key.

Run: .venv/bin/python -m docs.config_keys
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.heads import HEADS, TUNED, declared
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.recipe import Rule

PAGE = Path(__file__).parent / "config.md"
_TOP = """# Every key of a config

radprobe refuses a key that is not here, and names the nearest that is. Paths are relative to the
config file. This page is written by `python -m docs.config_keys`, and a test holds it against the
code.
"""
_RULES = """## Rules of `preprocess`

A rule is written by its name where it needs no number (`file`, `percentiles`, `minmax`, `zscore`);
a window also by a customary name (`lung`), by `{center: -600, width: 1500}` or by `{low: -1350,
high: 150}`, and three windows as channels by a list of three.
"""
# Blocks that differ from another in a few keys.
_LIKE = {"lora": "finetune", "bitfit": "finetune", "norm": "finetune", "frozen": "finetune"}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def text() -> str:
    """Return the page."""
    sections = [_TOP, *_sections(), _RULES, _rules()]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def meanings() -> dict[str, str]:
    """Return what each key means, such as data.root."""
    return {
        f"{t}.{name}": said for t, model in _blocks() for name, said in _meanings(model).items()
    }


# --- sections ------------------------------------------------------------------------------------


def _blocks() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every block of a config by its name: those of `Config` in its order, then heads."""
    yield "", Config
    for name, field in Config.model_fields.items():
        model = _model_in(field.annotation)
        # The config of another collection has these keys as well.
        if model not in (None, Config) and name not in (*HEADS, *TUNED):
            # A name of the user's own stands between these keys and theirs.
            yield f"{name}.NAME" if get_origin(field.annotation) is dict else name, model
    yield "outputs.patch", _required_model(Config, "outputs", "patch")
    yield "outputs.raptor", _required_model(Config, "outputs", "raptor")
    yield "tasks.NAME.region", RegionChoice
    for name in (*HEADS, *TUNED):
        yield name, declared(name).settings


def _sections() -> Iterator[str]:
    for title, model in _blocks():
        head = f"## `{title}`" if title else "## The blocks"
        like = _LIKE.get(title)
        about = _first_sentence(model)
        if like is not None:
            about += f" Keys as [{like}](#{like}) has them, but for these:"
        yield f"{head}\n\n{about}\n\n{_table(model, like and declared(like).settings)}"


def _rules() -> str:
    lines = []
    for rule in get_args(Rule):
        kind = rule.model_fields["kind"].default
        numbers = [name for name in rule.model_fields if name != "kind"]
        listed = ", ".join(f"`{name}`{_given(rule.model_fields[name])}" for name in numbers)
        lines.append(f"- `kind: {kind}`{': ' if numbers else ''}{listed}. {_first_sentence(rule)}")
    return "\n".join(lines)


def _given(field: FieldInfo) -> str:
    return "" if field.is_required() else f" ({field.default})"


def _table(model: type[BaseModel], like: type[BaseModel] | None = None) -> str:
    """Return a row a key; like: a model whose keys are left out where they have its defaults."""
    rows = ["| key | value | by default | meaning |", "|---|---|---|---|"]
    meanings = _meanings(model)
    known = {} if like is None else like.model_fields
    # Heads are a config's first fields, and what people look for last.
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in HEADS):
        if name in known and known[name].default == field.default:
            continue
        cells = (f"`{name}`", _type(name, field), _default(name, field), meanings[name])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


# --- meanings ------------------------------------------------------------------------------------


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what each key means: what docstrings say, or of a block where it is told."""
    said: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel):
            said |= _said(each, model.model_fields)
    return {name: _meaning(name, field, said) for name, field in model.model_fields.items()}


def _meaning(name: str, field: FieldInfo, said: Mapping[str, str]) -> str:
    if name in said:
        return said[name]
    if name in HEADS:
        return HEADS[name].help
    block = _model_in(field.annotation)
    return _first_sentence(block) if block is not None else ""


def _said(model: type[BaseModel], fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return what a docstring says behind the names of fields, such as that epochs are at most."""
    words = re.sub(r"\s+", " ", model.__dict__.get("__doc__") or "")
    names = "|".join(sorted(fields, key=len, reverse=True))
    starts = [*re.finditer(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ", words)]
    said: dict[str, str] = {}
    ends = [*(start.start() for start in starts), len(words)]
    for start, end in zip(starts, ends[1:], strict=True):
        meaning = words[start.end() : end].strip(" ;.")
        for name in start[1].split(", "):
            said[name] = meaning[:1].upper() + meaning[1:] + "."
    return said


def _first_sentence(model: type[BaseModel]) -> str:
    words = re.sub(r"\s+", " ", model.__doc__ or "").strip()
    return re.split(r"(?<=[^.]{3}\.) (?=[A-Za-z])", words, maxsplit=1)[0]


# --- types and defaults --------------------------------------------------------------------------


def _type(name: str, field: FieldInfo) -> str:
    if name in (*HEADS, *TUNED):
        return f"[block](#{name})"
    if field is Segment.model_fields.get(name) and name == "method":
        return ", ".join(f"`{head}`" for head in SEGMENTATION_HEADS)
    return _of(field.annotation) + _bounds(field.metadata)


def _of(kind: Any) -> str:
    """Return in words what a type admits."""
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "block"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_of(inner[0])}"
    if origin is dict:
        return f"{_of(inner[0])}: {_of(inner[1])}"
    if inner and hasattr(kind, "__metadata__"):
        return _of(inner[0]) + _bounds(kind.__metadata__)
    several = [_of(each) for each in inner if each is not type(None)]
    return " or ".join(dict.fromkeys(several)) or "any"


def _bounds(metadata: Any) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = []
    for each in metadata:
        for one in (each, *getattr(each, "metadata", ())):
            found += [f"{signs[s]} {getattr(one, s):g}" for s in signs if hasattr(one, s)]
    return f", {', '.join(dict.fromkeys(found))}" if found else ""


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = {} if name in (*HEADS, *TUNED) else value.model_dump(mode="json")
        return _short(value) if len(_short(value)) < 60 else ""
    return "" if value is None or value == {} else _short(value)


def _short(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    if value in ({}, []):
        return ""
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return f"`{written.removesuffix('...').strip()}`"


def _model_in(kind: Any) -> type[BaseModel] | None:
    """Return the model in a type such as Demo | None; of several, None."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = {model for each in get_args(kind) if (model := _model_in(each)) is not None}
    return found.pop() if len(found) == 1 else None


def _required_model(model: type[BaseModel], *path: str) -> type[BaseModel]:
    for name in path:
        found = _model_in(model.model_fields[name].annotation)
        assert found is not None, name
        model = found
    return model


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")

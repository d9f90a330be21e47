"""YAML of a stranger: bounded, whatever it repeats, nests or refers to."""

from __future__ import annotations

import time

import pytest
import yaml

from pipeline.config.yaml_text import parse_yaml

LAUGHS = 'a0: &a0 ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]\n' + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 11)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("[" * 20_000, "more than 40 deep"),
        ("{a: " * 20_000, "more than 40 deep"),
        ("- " * 20_000, "more than 40 deep"),
        ("&a [*a]", "refers to itself"),
        ("a: &x {b: {c: *x}}", "refers to itself"),
        ("[*nowhere]", "undefined alias"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 2024-13-45", "cannot be read"),
        ("? [a]\n: b", "unhashable|cannot be read"),
    ],
)
def test_what_has_no_bounds_is_refused(text: str, says: str) -> None:
    began = time.perf_counter()
    with pytest.raises(yaml.YAMLError, match=says):
        parse_yaml(text)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "text", ["", "a: 1", "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "[" * 39 + "]" * 39, "- 1\n- ~"]
)
def test_all_else_is_as_ever(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)

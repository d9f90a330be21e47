"""YAML as it is read everywhere: without objects, and without a key that stands twice."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKeyError(yaml.YAMLError):
    """A mapping has one key twice, of which a plain reader would drop the first without a word."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a repeated key: keys are unique (YAML 1.2, 3.2.1.1)."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Return a mapping as it is written, before what `<<` merges into it."""
        node = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            # `<<` is no key of the mapping, and several may be merged.
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            written = (key.tag, key.value)
            if written in lines:
                raise RepeatedKeyError(
                    f"the key {key.value!r} stands twice, in lines {lines[written]} and {line}: "
                    "keep one"
                )
            lines[written] = line
        return node  # type: ignore[no-any-return]


def read_yaml(text: str) -> Any:
    """Return what a YAML text says. Raises yaml.YAMLError, for a key that stands twice too."""
    return yaml.load(text, Loader=_UniqueKeyLoader)

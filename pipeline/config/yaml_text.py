"""YAML as data, of bounded depth and size, no key twice: configs are passed on by strangers."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.events import AliasEvent

# Deeper than any settings, and far from what Python's stack takes.
MAX_DEPTH = 40
# Of nodes, an alias counted as often as it is used: a page of aliases may stand for billions.
MAX_NODES = 100_000

_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKeyError(yaml.YAMLError):
    """A mapping has one key twice, of which a plain reader would drop the first without a word."""


class _BoundedLoader(yaml.SafeLoader):
    """Reads what `yaml.safe_load` does, unless it nests or names itself without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[int, int] = {}  # of each node that is complete, by its identity

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return a node; raises ComposerError where the document is too deep or too large."""
        if self.check_event(AliasEvent):
            mark = self._mark()
            node = super().compose_node(parent, index)
            size = self._sizes.get(id(node))
            if size is None:
                raise yaml.composer.ComposerError(None, None, "an alias refers to itself", mark)
            self._count(size, mark)
            return node
        mark = self._mark()
        before = self._nodes
        self._depth += 1
        self._count(1, mark)
        if self._depth > MAX_DEPTH:
            text = f"it is nested more than {MAX_DEPTH} deep"
            raise yaml.composer.ComposerError(None, None, text, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as written, its keys unique (YAML 1.2, 3.2.1.1), before `<<` merges."""
        node = super().compose_mapping_node(anchor)
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
        return node

    def _mark(self) -> Any:
        """Return where the next event stands."""
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def _count(self, nodes: int, mark: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            text = f"it has more than {MAX_NODES} values, each alias counted as what it stands for"
            raise yaml.composer.ComposerError(None, None, text, mark)


def parse_yaml(text: str) -> Any:
    """Return the data of a YAML document. Raises yaml.YAMLError, also for what has no bounds."""
    try:
        return yaml.load(text, _BoundedLoader)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # A date that is none, a key that is a list, a number of more digits than are read.
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__})") from None

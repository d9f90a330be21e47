"""Versions of what made a number, as far as they are known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# A checkout that is on the path and was never installed has none.
UNKNOWN = "unknown"


@cache
def version_of(name: str) -> str:
    """Return the version of a package; "unknown" where it is used without being installed."""
    # Kept: finding it looks through every folder of the path, milliseconds for each answer.
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package."""
    return {name: version_of(name) for name in names}

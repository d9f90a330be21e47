"""What all settings share."""

from __future__ import annotations

from typing import TypeVar

from pipeline.types import Frozen

Settings = TypeVar("Settings", bound=Frozen)

"""Where the regions of an answer lie: by which slice each is shown, and its rectangle there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.annotations.regions import Regions, region_name
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.report.models import Mark
from pipeline.report.sources import Source
from pipeline.segmentation.placement import placement_of
from pipeline.segmentation.region_sources import RegionSource, region_source
from stores.errors import ConfigError, RadprobeError
from stores.slices import SliceRow, slice_rows

log = logging.getLogger(__name__)

Piece = Mapping[str, Any]  # INDEX_SCHEMA


@dataclass(frozen=True)
class RegionPlaces:
    """Where regions lie. pieces: what each has of its slices, by its name and the slice's row."""

    source: Source
    config: Config
    choice: RegionChoice
    pieces: dict[str, dict[int, Piece]]

    @classmethod
    def of(cls, source: Source, name: str) -> RegionPlaces | None:
        """Return where the regions of a task lie; None where it has none that are known here."""
        config = source.config
        task = config.tasks.get(name) if config else None
        if config is None or task is None or task.region is None:
            return None
        try:
            index = Regions.of(config, source.store, task.region).index
        except ConfigError as error:  # the rest of the page stands
            log.warning("The regions of %s are not drawn: %s", name, error)
            return None
        live = set(source.rows.tolist())
        pieces: dict[str, dict[int, Piece]] = {}
        for piece in index.to_pylist():
            if piece["weight"] and piece["row"] in live:
                region = region_name(piece["whole"], piece["structure"], piece["box"])
                pieces.setdefault(region, {})[piece["row"]] = piece
        return cls(source, config, task.region, pieces)

    def row(self, region: str) -> int | None:
        """Return the row of the slice that shows most of a region; None for none that does."""
        of_region = self.pieces.get(region, {})
        return max(of_region, key=lambda row: of_region[row]["seen"], default=None)

    def mark(self, region: str, row: int) -> Mark | None:
        """Return the rectangle of a region on the picture of a slice; None where it has none."""
        piece = self.pieces.get(region, {}).get(row)
        # Of a mask that is another by now, features tell what it was before.
        if piece is None or self._digests.get(row) != piece["mask"]:
            return None
        assert self._now is not None
        try:
            placement = placement_of(
                self._slices[row], self.config.data.root, self.config.preprocess
            )
        except RadprobeError:  # nor does it have a picture
            return None
        shows = placement.shows
        top, bottom, left, right = self._now.rectangle(row, piece["structure"], piece["box"])
        return Mark(
            size=(shows.width, shows.height),
            left=left - shows.left,
            top=top - shows.top,
            width=right - left,
            height=bottom - top,
        )

    @functools.cached_property
    def _now(self) -> RegionSource | None:
        """The masks or boxes as they are now; None where they cannot be read."""
        try:
            return region_source(self.config, self.source.store, self.choice)
        except RadprobeError as error:  # the rest of the page stands
            log.warning("The regions of %s are not drawn: %s", self.choice.name, error)
            return None

    @functools.cached_property
    def _digests(self) -> dict[int, str]:
        now = self._now
        return {} if now is None else dict(zip(now.rows.tolist(), now.digests, strict=True))

    @functools.cached_property
    def _slices(self) -> dict[int, SliceRow]:
        slices = slice_rows(self.source.names.revealed(self.source.slices))
        return {each.row: each for each in slices}

"""FLOW 1: discover, read, preprocess, embed, write. The only place that runs a backbone.

Everything that can be known without a network is done first, so that a finished store costs a
look at the folder and no import of torch. `pipeline.embed` does the rest.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.collection import make_recipe, open_store, settle
from pipeline.config import Config
from pipeline.discover import IDENTIFIER_IN_PATH
from pipeline.embed import BadLimit, Progress, Speed, embed_missing
from pipeline.names import load_key, reveal_path
from stores import FeatureStore


@dataclass(frozen=True)
class Summary:
    """What one run found, did and left aside; every count is of slices unless it says files.

    linked: slices that took the features of another slice with the same pixels. telling: slices
    whose path holds their patient's id or a UID, where the store keeps paths.
    """

    store: str
    weights: str
    slices: int
    embedded: int
    linked: int
    telling: int
    found: dict[str, int]
    unreadable: dict[str, int]
    files_set_aside: dict[str, int]
    parts_elsewhere: list[str]
    seconds: dict[str, float]

    @property
    def clean(self) -> bool:
        """True where every image found has features now."""
        bad_files = sum(n for reason, n in self.files_set_aside.items() if reason != "other")
        return not (bad_files or self.unreadable or self.parts_elsewhere)


def extract(
    config: Config,
    speed: Speed = Speed(),  # noqa: B008 (frozen)
    progress: Progress = Progress(),  # noqa: B008 (frozen)
    *,
    max_bad: float = 1.0,
    rehash: bool = False,
) -> Summary:
    """Embed whatever of the collection is not in the store yet.

    max_bad: the part of the collection (bad files and unreadable slices, over all slices and bad
    files) above which the run stops. Raises TooManyBadError then, RecipeMismatchError where the
    store was made by another recipe, WeightsError where the weights are not to be had. What was
    committed before is kept. rehash: open every file, whatever its size and time say.
    """
    started = time.perf_counter()
    if config.demo is not None:
        from pipeline.demo import write_demo

        write_demo(config.data.root, config.demo.patients, config.demo.seed)
    recipe, weights_file = make_recipe(config)
    store = open_store(config, recipe)
    store.sweep()
    settled = settle(config, store, rehash=rehash)
    found = settled.found
    looked = time.perf_counter()
    reasons = Counter(r for r in settled.files["reason"].to_pylist() if r is not None)
    live = settled.slices.filter(pc.invert(settled.slices["withdrawn"]))
    bad = reasons.total() - reasons["other"]
    done = embed_missing(
        store,
        recipe,
        config.backbone.name,
        weights_file or recipe.weights,
        config.data.root,
        functools.partial(reveal_path, load_key(store.path)),
        speed,
        progress,
        BadLimit(seen=len(live) + bad, fraction=max_bad, bad=bad),
    )
    return Summary(
        store=str(store.path),
        weights=recipe.weights,
        slices=len(live),
        embedded=done.rows,
        linked=done.linked,
        telling=_flagged(live, IDENTIFIER_IN_PATH) if config.data.paths == "keep" else 0,
        found=found.counts,
        unreadable=dict(_unreadable(store)),
        files_set_aside=dict(reasons),
        parts_elsewhere=done.elsewhere,
        seconds={
            "look": round(looked - started, 3),
            **done.seconds,
            "all": round(time.perf_counter() - started, 3),
        },
    )


def _flagged(live: pa.Table, flag: str) -> int:
    """Count the slices that carry a flag."""
    return int(pc.sum(pc.equal(pc.list_flatten(live["flags"]), flag)).as_py() or 0)


def _unreadable(store: FeatureStore) -> Counter[str]:
    """Count the store's unreadable live slices by reason, from the receipts."""
    slices = store.slices()
    withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
    live = set(slices["row"].to_numpy()[~withdrawn].tolist())
    return Counter(reason for row, reason in store.failures().items() if row in live)

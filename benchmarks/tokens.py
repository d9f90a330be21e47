"""What is lost where patch tokens are kept in fewer bytes: cosine and Dice against float32.

    .venv/bin/python -m benchmarks.tokens [--images DIR --masks DIR] [--weights FILE]

Images of the folder that have a mask of the same name (PNG, more than 0 is the structure) are
embedded once in float32; from these tokens the others are made as a store would keep them.
`cosine`: mean and least over all patch tokens; on a pooled grid, against each of the tokens it
stands for. `Dice`: of a linear head fitted to what was kept, over all pixels of every fourth image,
which it did not see; `lost`: against float32. Without folders, the demo's synthetic X-rays. Without
weights, `random:0`: how near the codes come hardly depends on what tokens mean; the Dice does.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import BackboneChoice, Config, Data, Outputs, Segment
from pipeline.demo import write_demo
from pipeline.embed import Speed
from pipeline.embedding.forward import coded
from pipeline.extract import extract
from pipeline.segmentation.choice import Overlap
from pipeline.segmentation.contracts import Parts
from pipeline.segmentation.heads import fit
from pipeline.segmentation.tokens import Tokens
from pipeline.types import PatchTokens
from stores import FeatureStore

Rows = NDArray[np.int64]
WAYS: dict[str, tuple[PatchTokens, torch.dtype]] = {
    "float32": (PatchTokens(), torch.float32),
    "float16": (PatchTokens(), torch.float16),
    "int8": (PatchTokens(coding="int8"), torch.float32),
    "float16, pool 2": (PatchTokens(pool=2), torch.float16),
    "int8, pool 2": (PatchTokens(coding="int8", pool=2), torch.float32),
}


@dataclass(frozen=True)
class Kept:
    """Tokens (n, h, w, d) and masks (n, S, S) in memory."""

    kept: NDArray[np.float32]
    true: NDArray[np.uint8]
    classes: tuple[str, ...] = ("background", "structure")
    chunk_rows: int = 1

    @property
    def image_size(self) -> int:
        return self.true.shape[1]

    def tokens(self, rows: Rows) -> NDArray[Any]:
        return self.kept[rows][:, None]

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        return self.true[rows]

    def images(self, rows: Rows) -> NDArray[np.float32]:
        raise NotImplementedError("Heads on tokens alone are compared.")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=Path)
    options.add_argument("--masks", type=Path)
    options.add_argument("--backbone", default="dinov2_vits14")
    options.add_argument("--weights", default="random:0")
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--epochs", type=int, default=20)
    args = options.parse_args()
    logging.disable(logging.WARNING)  # of random weights
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            write_demo(Path(folder) / "demo", 12, seed=0)
            args.images, args.masks = (Path(folder) / "demo" / d for d in ("cxr", "masks/cxr"))
        tokens, masks = embedded(Path(folder), args)
    print(f"{len(tokens)} images, {args.backbone} ({args.weights}) at {args.size} px")
    print(f"{'':<18}{'bytes a slice':>14}{'cosine':>9}{'least':>9}{'Dice':>8}{'lost':>8}")
    base = None
    for name, (how, dtype) in WAYS.items():
        arrays = coded(torch.from_numpy(tokens), how, dtype)
        size = sum(a.numel() * a.element_size() for a in arrays.values()) // len(tokens)
        kept = arrays["patch"].float().numpy()
        if "patch_scale" in arrays:
            kept *= arrays["patch_scale"].numpy()[..., None]
        near = cosine(tokens, kept.repeat(how.pool, axis=1).repeat(how.pool, axis=2))
        found = dice(Kept(kept, masks), args.epochs)
        base = found if base is None else base
        print(
            f"{name:<18}{size:>14,}{near.mean():>9.5f}{near.min():>9.5f}{found:>8.4f}"
            f"{base - found:>8.4f}",
            flush=True,
        )


def embedded(folder: Path, args: argparse.Namespace) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the tokens (n, h, w, d) of the images with a mask, and their masks (n, S, S)."""
    masks = {path.stem: path for path in sorted(args.masks.glob("*.png"))}
    names = tuple(p.name for p in sorted(args.images.iterdir()) if p.stem in masks)
    config = Config(
        data=Data(root=args.images, include=names, modality={"**": "DX"}, paths="keep"),
        store=folder / "store",
        backbone=BackboneChoice(name=args.backbone, weights=args.weights, image_size=args.size),
        outputs=Outputs(keep=("patch",), dtype="float32"),
    )
    extract(config, Speed())
    store = FeatureStore.open(config.store)
    slices = store.slices().filter(store.status()[store.slices()["row"].to_numpy()] == 1)
    found = [Image.open(masks[Path(p).stem]) for p in slices["path"].to_pylist()]
    square = [
        m.convert("L").resize((args.size, args.size), Image.Resampling.NEAREST) for m in found
    ]
    true = np.stack([np.asarray(m) > 0 for m in square]).astype(np.uint8)
    return Tokens(store).read(slices["row"].to_numpy())[:, 0], true


def cosine(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of tokens (n, h, w, d) with others: (n, h, w)."""
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    found: NDArray[np.float32] = (x * y).sum(axis=-1) / norms
    return found


def dice(source: Kept, epochs: int) -> float:
    """Return the Dice of a linear head on every fourth image."""
    rows = np.arange(len(source.kept))
    part = rows % 4
    parts: Parts = {"train": rows[part < 2], "val": rows[part == 2], "test": rows[part == 3]}
    head = fit(source, parts, Segment(method="linear-bn", epochs=epochs))
    overlap = Overlap(1, 2)
    for row, labels in head.predict(source, parts["test"]):
        overlap.add(0, source.true[row], labels)
    return float(overlap.dice()[0])


if __name__ == "__main__":
    main()

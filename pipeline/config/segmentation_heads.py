"""The ways of segmenting, each by its name: where it is, and what its network is given.

This is the one list of them: a config takes these names as `method`, training reads from it what to
load, and the table of all scores what a head has seen. The list is plain text: whoever reads it
imports no head, and asking for one imports its module alone.

To add a head:

1. Write `pipeline/segmentation/<name>.py` with `fit(source, parts, settings, *, device)`, which
   returns a `pipeline.segmentation.contracts.FittedHead`. Where the head is a network, it has a
   `build` as well, and `fit` is `training.fit` of that: `linear.py` is an example; `knn.py` is one
   without a network. So that its model can be filed (`radprobe fit`), what `fit` returns has
   `to_state`, and the module `from_state` (`contracts.FileableHead`); networks have both already.
2. Add its line to `SEGMENTATION_HEADS`.
3. Add what it needs to learn to `LEARNING` in `tests/pipeline/segmentation/test_heads.py`, which
   tries every head.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# What a network can be given of a slice: its patch tokens, and the image as the backbone saw it.
Need = Literal["tokens", "images"]
_SEEN: dict[Need, str] = {"tokens": "patch", "images": "image"}


class SegmentationHead(NamedTuple):
    """The module whose `fit` a head is, and what it is given, in the order of its arguments."""

    module: str
    needs: tuple[Need, ...]

    @property
    def features(self) -> str:
        """What the head has seen, as the table of all scores calls it: patch, image or both."""
        return "+".join(_SEEN[need] for need in self.needs)


SEGMENTATION_HEADS: dict[str, SegmentationHead] = {
    # A 1x1 convolution on the last block's tokens; and with batch norm before it (DINOv2's BNHead).
    "linear": SegmentationHead("pipeline.segmentation.linear", ("tokens",)),
    "linear-bn": SegmentationHead("pipeline.segmentation.linear", ("tokens",)),
    # On the last five blocks' tokens: the decoder of arXiv 2312.02366.
    "decoder": SegmentationHead("pipeline.segmentation.decoder", ("tokens",)),
    # On the last block's tokens and the image.
    "image-decoder": SegmentationHead("pipeline.segmentation.image_decoder", ("tokens", "images")),
    # Nearest neighbours of the last block's tokens.
    "knn": SegmentationHead("pipeline.segmentation.knn", ("tokens",)),
    # Networks trained from scratch on images.
    "unet": SegmentationHead("pipeline.segmentation.unet", ("images",)),
    "transunet": SegmentationHead("pipeline.segmentation.transunet", ("images",)),
}

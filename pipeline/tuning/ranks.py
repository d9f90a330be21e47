"""Several processes that train one network: each learns from a part of every step.

Gradients are added up over all, so that each takes the same step; the first alone looks at val,
keeps the state and says when to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; by itself, nothing to be told."""

    number: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process looks at val and keeps the state."""
        return self.number == 0

    def align(self, parameters: Iterable[torch.Tensor]) -> None:
        """Set parameters to the first process's."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def add(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Set each gradient to the sum over all processes."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # none of this process's slices could be used
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def told(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, 0, device=_CPU)
        return said[0]

    def every(self, value: Any) -> list[Any]:
        """Return what each process has."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held


ALONE = Ranks()

"""Several processes that train one network: each learns from a part of every step.

Gradients are added up over all, so that each takes the same step; the first alone looks at val,
keeps the state and decides when training ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# Python objects are exchanged over gloo, which knows no GPU.
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; alone, it exchanges nothing.

    number: of this process, from 0; size: how many there are. Every method that exchanges must be
    called by all processes, in the same order: one that is missing keeps the others waiting.
    """

    number: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process looks at val and keeps the state."""
        return self.number == 0

    def align(self, parameters: Iterable[torch.Tensor]) -> None:
        """Set parameters to those of the first process."""
        if self.size == 1:
            return
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Set each gradient to its sum over all processes."""
        if self.size == 1:
            return
        for parameter in parameters:
            # None of this process's slices could be used: it still takes part in the sum.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value; what the others pass is not looked at."""
        if self.size == 1:
            return value
        message = [value]
        dist.broadcast_object_list(message, 0, device=_CPU)
        return message[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, by its number."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()

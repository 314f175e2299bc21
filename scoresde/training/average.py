"""The average of the weights: kept beside the model, and put into it for as long as it is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """a <- a + (1 - d)(w - a) with d = min(decay, (1 + n)/(10 + n)) after step n; the first step copies.

    Only parameters that are trained are averaged; the others, and buffers, are those of the model. The averages of parameters in half
    precision are kept in float32, whose rounding is finer than a step of the average. No copy of the model is made: it may hold what
    cannot be copied.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.n = dict(parameters), decay, 0
        self.tensors = {name: p.detach().to(_kept_in(p), copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follows the weights, after a step."""
        averages, weights = list(self.tensors.values()), [p.detach().to(_kept_in(p)) for p in self.parameters.values()]
        if self.n:
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + self.n) / (10 + self.n)))
        else:
            torch._foreach_copy_(averages, weights)
        self.n += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights; it is given back its own."""
        own = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = self.tensors[name].to(p.dtype)
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]

    @torch.no_grad()
    def take(self) -> None:
        """Leaves the model with the averaged weights, if there are any."""
        if self.n:
            for name, p in self.parameters.items():
                p.copy_(self.tensors[name])

    def state(self) -> dict[str, Tensor]:
        """What the model's own state cannot hold: averages that are wider than the parameters."""
        return {name: a for name, a in self.tensors.items() if a.dtype != self.parameters[name].dtype}

    @torch.no_grad()
    def restore(self, averaged: Mapping[str, Tensor], state: Mapping[str, Tensor], n: int) -> None:
        """Goes on with the averages of a checkpoint after n steps."""
        self.n = n
        for name, a in self.tensors.items():
            a.copy_(state[name] if name in state else averaged[name])


def _kept_in(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype

"""What a solver sees in a model's place: one base for all of them, so that a view says what it changes and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from scoresde.errors import ConfigError
from scoresde.models.answers import Answers
from scoresde.models.conditions import slice_cond
from scoresde.models.counting import Calls


class View(Answers):
    """A model in whose place something else answers. A view gives ``seen(x, t)``; all that a solver may ask follows from it.

    What is counted is counted by the model behind it.
    """

    def __init__(self, inner: Answers) -> None:
        self.inner = inner
        self.sde, self.event_shape, self.reference = inner.sde, inner.event_shape, inner.reference

    def seen(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(x0, eps) at (x, t)."""
        x0, eps, _ = self.inner._evaluate(x, t, {}, noise=True)
        return x0, eps

    def _evaluate(self, x: Tensor, t: Tensor | float, cond: dict[str, Any], noise: bool = False) -> tuple[Any, Any, Any]:
        if cond:
            raise ConfigError(f"conditions {', '.join(cond)} given to a model whose conditions are bound")
        return *self.seen(x, t), self.sde.level(t, x)

    @property
    def learned(self) -> bool:
        return self.inner.learned

    @property
    def _calls(self) -> list[Calls]:
        return self.inner._calls

    def count_vjp(self, n: int) -> None:
        self.inner.count_vjp(n)

    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        self.inner.count_samples(ids, n)


class InDtype(View):
    """A network that is asked in its own dtype about states that are kept in another, and answers in theirs."""

    def __init__(self, inner: Answers, dtype: torch.dtype) -> None:
        super().__init__(inner)
        self.dtype = dtype

    def seen(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        x0, eps, _ = self.inner._evaluate(x.to(self.dtype), t, {}, noise=True)
        return x0.to(x.dtype), eps.to(x.dtype)

    def repeated(self, times: int, n: int) -> InDtype:
        return InDtype(self.inner.repeated(times, n), self.dtype)


class Conditioned(View):
    """A model with its conditions bound: ``model.score(x, t)`` is ``inner.score(x, t, **cond)``."""

    def __init__(self, inner: Answers, cond: dict[str, Any]) -> None:
        super().__init__(inner)
        self.cond = cond

    def seen(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        x0, eps, _ = self.inner._evaluate(x, t, self.cond, noise=True)
        return x0, eps

    def repeated(self, times: int, n: int) -> Conditioned:
        def repeat(value: Tensor) -> Tensor:
            return torch.cat([value] * times)

        return Conditioned(self.inner, slice_cond(self.cond, repeat, n))

"""Network calls: counted, timed, or only imagined."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.core.doors import checked
from scoresde.errors import ConfigError


@dataclass
class Calls:
    """Network calls: ``forward`` evaluations of the model (of a batch), ``vjp`` vector-Jacobian products through one.

    ``rows``: samples evaluated, a batch of 16 counts 16. ``seconds``: inside the network, if they were asked for (on a GPU a call
    returns before it is done). ``per_sample``: sample id -> evaluations that this sample needed, of solvers in which that differs
    (``AdaptiveODE``, ``AdaptiveSDE``, ``Picard``); empty for all others. Solves with the same id add up.
    """

    forward: int = 0
    vjp: int = 0
    rows: int = field(default=0, repr=False)
    seconds: float = field(default=0.0, repr=False)
    per_sample: dict[int, int] = field(default_factory=dict, repr=False)
    timed: bool = field(default=False, repr=False)
    free: bool = field(default=False, repr=False)

    def a_sample(self, n: int) -> float:
        """Network calls a sample, of n samples: ``rows``/n. The unit of all that is reported; an int where it is a whole number."""
        whole, rest = divmod(self.rows, max(n, 1))
        return self.rows / n if rest else whole


@runtime_checkable
class Counted(Protocol):
    """A model that tells those who listen of its calls."""

    _calls: list[Calls]


def counted(listening: list[Calls], evaluate: Callable[..., Any], x: Tensor, /, *arguments: Any, **cond: Any) -> Any:
    """``evaluate(x, ...)``, counted by those who listen; x0 = 0 in its place if one of them only wants to know what would be asked."""
    if not listening:
        return evaluate(x, *arguments, **cond)
    for calls in listening:
        calls.forward += 1
        calls.rows += len(x)
    if any(calls.free for calls in listening):
        return torch.zeros_like(x), None
    timed = [calls for calls in listening if calls.timed]
    begun = time.perf_counter() if timed else 0.0
    answer = evaluate(x, *arguments, **cond)
    for calls in timed:
        calls.seconds += time.perf_counter() - begun
    return answer


@checked
@contextmanager
def count_evaluations(model: Counted, timed: bool = False, free: bool = False) -> Iterator[Calls]:
    """Counts the calls of a model: of a batch in ``forward`` and ``vjp``, of each sample in ``per_sample`` where they differ.

    Args:
        model: a ScoreModel.
        timed: also measure the seconds inside the network.
        free: make no calls; the model answers x0 = 0, to learn what a solver would ask.

    >>> import scoresde as sd
    >>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
    >>> with sd.count_evaluations(model) as calls:
    ...     x = sd.sample(model, 4, solver=sd.Heun(), steps=10)
    >>> calls
    Calls(forward=20, vjp=0)
    """
    if not isinstance(model, Counted):
        raise ConfigError(f"model is a {type(model).__name__}, expected a ScoreModel: its calls are to be counted")
    calls = Calls(timed=timed, free=free)
    model._calls.append(calls)
    try:
        yield calls
    finally:
        model._calls[:] = [c for c in model._calls if c is not calls]

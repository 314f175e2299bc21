r"""Solvers: one small frozen dataclass a method, one step each; the loop is in ``loop.py``.

A solver has ``step(model, x, t, s, state, noise) -> (x, state)``, from time t to s < t. ``model`` gives ``denoise``, ``predict``,
``eps``, ``score`` and ``velocity`` at (x, t). t and s are ``Level``s: floats that know alpha, sigma and their derivatives.
``noise(stream)`` is a standard normal tensor like x, already bound to seed, sample ids and step. ``state`` is explicit: a solver
object never changes, and can serve many solves at once. All else that is asked of a solver is declared in ``Solver``, with an answer
that suits most: ``init`` plans ahead, ``grid`` spaces the steps, ``bind`` takes what is needed from a model, ``asks`` says which of a
model's answers it works with, ``accuracy`` and ``noise`` how fast it converges.

Yours is one more class, with nothing to register:

>>> from dataclasses import dataclass
>>> import torch, scoresde as sd
>>> @dataclass(frozen=True)
... class Midpoint(sd.Solver):
...     def step(self, model, x, t, s, state, noise):
...         middle = (t + s) / 2
...         x_m = x + (middle - t) * model.velocity(x, t)
...         return x + (s - t) * model.velocity(x_m, middle), state
>>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
>>> sd.sample(model, 4, solver=Midpoint(), steps=20).shape
torch.Size([4, 2])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from scoresde.core.checks import check_positive, check_positive_int
from scoresde.core.streams import STEP
from scoresde.errors import ConfigError
from scoresde.sdes import grid

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level


class Draw(Protocol):
    """``noise(stream)``: a standard normal tensor like x, bound to seed, sample ids and step."""

    @property
    def ids(self) -> Any: ...

    def __call__(self, stream: int = STEP) -> Tensor: ...



ASKS = ("x0", "eps", "velocity")
NOISES = ("deterministic", "strong", "weak")


if TYPE_CHECKING:
    fact = property
else:

    class fact:
        """A property that a field of a subclass may stand in for, one without a default too."""

        def __init__(self, function: Any) -> None:
            self.function, self.__doc__ = function, function.__doc__

        def __get__(self, solver: Any, owner: type) -> Any:
            return self if solver is None else self.function(solver)


class Solver(ABC):
    """The base of all solvers, and everything that is asked of one. A subclass gives ``step``, and says where it differs.

    What it says of itself (an attribute of the class will do, or a property):
        default_steps: used by ``sample`` when neither steps nor times are given; 1 for a solver that chooses its own steps.
        asks: "x0", "eps" or "velocity", what it takes from the model. log p along the way of samples is a part of the state for those
            that ask for the velocity; for all others its rate is noted at their calls, which must be at decreasing times.
        accuracy: the order at which its results converge in the number of steps; None if they do not, however many there are.
        order: the same; of a family of methods its member's own number, as the papers count it (UniPC of order p converges at p + 1).
        noise: what the accuracy is that of: "deterministic" results, "strong" (each path for its own noise) or "weak" (the law).
        needs_path: whether it looks its noise up on a Brownian path (``noise.brownian``), to return to it.
        per_sample: whether a sample can fail alone, as NaN, while the others go on.
        needs_memory: whether its state holds where it is, so that nobody else may move x between its steps.
        blocks: blocks of noise streams that one of its steps uses beside its own (see ``Restart``).
        reference: the Gaussian reference in whose coordinates it works, if it is not the model's.
        label: its name in tables; None: its class and arguments.
        own_grid: whether it spaces its steps otherwise than the SDE does.
    """

    default_steps: int = 50

    @fact
    def asks(self) -> str:
        return "velocity"

    @fact
    def accuracy(self) -> float | None:
        return None

    @fact
    def order(self) -> Any:
        return self.accuracy

    @fact
    def noise(self) -> str:
        return "deterministic"

    @fact
    def needs_path(self) -> bool:
        return False

    @fact
    def per_sample(self) -> bool:
        return False

    @fact
    def needs_memory(self) -> bool:
        return False

    @fact
    def blocks(self) -> int:
        return 0

    @fact
    def reference(self) -> GaussianReference | None:
        return None

    @fact
    def label(self) -> str | None:
        return None

    @fact
    def own_grid(self) -> bool:
        return type(self).grid is not Solver.grid

    def bind(self, model: Answers, steps: int | None) -> Solver:
        """This solver for a model and a number of steps, None where a user gave the times: itself, if it need not know them."""
        return self

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The n + 1 decreasing times of n steps, float64: the SDE's default grid, if it knows no better."""
        return grid.default(sde, n, start, end)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> Any:
        """The state before the first step: what is computed once per solve. None by default."""
        return None

    @abstractmethod
    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        """One step from x at t to x at s."""

    def loosened(self, factor: float) -> Solver | None:
        """The same solver with tolerances ``factor`` times as large; None for one whose steps are given."""
        return None


class Corrector(ABC):
    """What moves x towards p_t without leaving t; used inside ``PredictorCorrector``."""

    @abstractmethod
    def correct(self, model: Answers, x: Tensor, t: Level, noise: Draw) -> Tensor:
        """x after it, of the shape of x. ``noise(CORRECTOR + i)`` is the noise of its i-th step."""


class Wrapper(Solver):
    """A solver around another one, which is its field ``wraps``: what it does not change is that of the inner one."""

    wraps: ClassVar[str] = "solver"

    @property
    def inner(self) -> Solver:
        """The solver inside."""
        return vars(self)[self.wraps]

    def around(self, inner: Solver) -> Any:
        """The same around another solver."""
        return replace(self, **{self.wraps: inner})  # type: ignore[type-var]

    @property
    def asks(self) -> str:
        return self.inner.asks

    @property
    def accuracy(self) -> float | None:
        return self.inner.accuracy

    @property
    def noise(self) -> str:
        return self.inner.noise

    @property
    def needs_path(self) -> bool:
        return self.inner.needs_path

    @property
    def needs_memory(self) -> bool:
        return self.inner.needs_memory

    @property
    def blocks(self) -> int:
        return self.inner.blocks

    @property
    def own_grid(self) -> bool:
        return self.inner.own_grid

    def bind(self, model: Answers, steps: int | None) -> Any:
        return self.around(self.inner.bind(model, steps))

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        return self.inner.grid(sde, n, start, end)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> Any:
        return self.inner.init(model, x, times)


def in_units_of_data(solver: Any, model: Answers, **units: float) -> Any:
    """The solver with every field that is None set to its unit times the std of the model's data, ``model.reference.scale``.

    Without a reference nothing is known of the data, and the solver is given back as it is.
    """
    reference = model.reference
    unset = [name for name in units if vars(solver)[name] is None]
    return replace(solver, **{name: units[name] * reference.scale for name in unset}) if reference is not None and unset else solver


def brief_repr(solver: Any) -> str:
    """A dataclass's repr without the fields that are None, that is left to the model."""
    values = {field.name: getattr(solver, field.name) for field in fields(solver)}
    return f"{type(solver).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items() if value is not None)})"


def check_decreasing(solver: Any, times: Sequence[Level]) -> None:
    """Raises ConfigError if times increase: a step of the reverse SDE the other way is no step of the forward one."""
    for t, s in pairwise(times):
        if s > t:
            raise ConfigError(f"{solver} from t = {float(t):.6g} to {float(s):.6g}: the reverse SDE runs from noise to data")


def check_eta(eta: float, most: float) -> None:
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= most or eta == math.inf:
        raise ConfigError(f"eta = {eta!r}, expected a number from 0 to {most}")


def check_solver(solver: Any, name: str = "solver") -> None:
    """Checks that this is a solver, and an instance. Raises ConfigError."""
    if isinstance(solver, type):
        raise ConfigError(f"{name} = {solver.__name__} is a class, expected an instance: {solver.__name__}()")
    if not isinstance(solver, Solver):
        raise ConfigError(f"{name} = {solver!r}, expected a solver, scoresde.Heun() for instance, or yours, a subclass of scoresde.Solver")


def check_tolerances(rtol: float, atol: float, max_nfe: int) -> None:
    """Raises ConfigError unless rtol > 0, atol > 0 and max_nfe is a positive integer."""
    check_positive(rtol, "rtol")
    check_positive(atol, "atol")
    check_positive_int(max_nfe, "max_nfe")

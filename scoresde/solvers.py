r"""Solvers: one small frozen dataclass a method, one step each; the loop is in ``sampling``.

A solver has ``step(model, x, t, s, state, noise) -> (x, state)``, from time t to s < t, and ``init(model, x, times) -> state`` if
it plans ahead or remembers. ``model`` gives ``denoise``, ``predict``, ``eps``, ``score`` and ``velocity`` at (x, t). t and s are
``Level``s: floats that know alpha, sigma and their derivatives. ``noise(stream)`` is a standard normal tensor like x, already
bound to seed, sample ids and step. ``state`` is explicit: a solver object never changes, and can serve many solves at once.
A solver that has a ``grid(sde, n, start=None, end=None)`` spaces its steps by it, all others by the SDE's default grid. One that
has a ``bind(model, steps)`` gives there the solver for this model, the scale of its data for instance (``in_units_of_data``).

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import grid
from ._tensor import affine, check_positive, check_positive_int, expand, per_sample_norm
from .errors import ConfigError
from .noise import CORRECTOR, STEP
from .sde import SDE, Level

Draw = Callable[..., Tensor]


class Solver(ABC):
    """The base of all solvers. ``default_steps`` is used by ``sample`` when neither steps nor times are given."""

    default_steps: ClassVar[int] = 50

    def init(self, model: Any, x: Tensor, times: list[Level]) -> Any:
        """The state before the first step: what is computed once per solve. None by default."""
        return None

    @abstractmethod
    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        """One step from x at t to x at s."""


def bound(solver: Any, model: Any, steps: int | None) -> Any:
    """``solver.bind(model, steps)`` of a solver that has it: for those that wrap one. steps are None if times are given."""
    return solver.bind(model, steps) if hasattr(solver, "bind") else solver


def in_units_of_data(solver: Any, model: Any, **units: float) -> Any:
    """The solver with every field that is None set to its unit times the std of the model's data, ``model.reference.scale``.

    Without a reference nothing is known of the data, and the solver is given back as it is.
    """
    reference = getattr(model, "reference", None)
    unset = [name for name in units if getattr(solver, name) is None]
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


def _variance_grid(sde: SDE, n: int, start: float | None, end: float | None, scale: float | None) -> Tensor:
    """Equal steps in w = s/sqrt(c + s^2), s = sigma/alpha, c = (0.8 scale)^2: where ancestral sampling loses least variance.

    For Gaussian data of variance c a step takes (1 - r)^2 c u/(c + u) from the variance of y = x/alpha, with u = s^2 and r the
    ratio of its ends, and what follows shrinks that by (c/(c + u))^2. The sum over n steps is least for a density of steps
    proportional to sqrt(u)/(c + u)^(3/2) in log u: equal steps in w. It is 4/n of c then, 20 % of the std at 10 steps.
    """
    c = (0.8 * (1.0 if scale is None else scale)) ** 2
    times = grid.log_snr(sde, n, start, end)  # checks the arguments; its ends are kept
    w = 1 / (1 + c * sde.log_snr(times[[0, -1]]).exp()).sqrt()
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:-1]
    w = w[0] * (1 - u) + w[1] * u
    times[1:-1] = sde.time_of_log_snr(((1 - w) * (1 + w) / (c * w**2)).log())
    return times


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method on the probability-flow ODE: x_s = x + (s - t) velocity(x, t). Order 1, one call a step."""

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        return x + (s - t) * model.velocity(x, t), state


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method on the probability-flow ODE (2206.00364, algorithm 1 in any SDE's time). Order 2, two calls a step."""

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        h = s - t
        v_t = model.velocity(x, t)
        v_s = model.velocity(x + h * v_t, s)
        return x + (h / 2) * (v_t + v_s), state


@dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge-Kutta method on the probability-flow ODE. Order 4, four calls a step."""

    def init(self, model: Any, x: Tensor, times: list[Level]) -> dict[float, Level]:
        middles = model.sde.levels([(t + s) / 2 for t, s in pairwise(times)])
        return dict(zip(times, middles, strict=False))  # the middle of each step, by its start

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        h, m = s - t, state[t]
        v1 = model.velocity(x, t)
        v2 = model.velocity(x + (h / 2) * v1, m)
        v3 = model.velocity(x + (h / 2) * v2, m)
        v4 = model.velocity(x + h * v3, s)
        return x + (h / 6) * (v1 + 2 * v2 + 2 * v3 + v4), state


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw (2011.13456, eq. 6; eta = 1 is the reverse SDE).

    Written as velocity - eta^2/2 g^2 score, which is finite where alpha = 0. Order 1 weak, and strong, since g depends on t only.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check_eta(self.eta, math.inf)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> None:
        if self.eta:
            check_decreasing(self, times)

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        h = s - t
        x0, eps = model.predict(x, t)
        if self.eta == 0:
            return x + affine(h * t.alpha_dot, x0, h * t.sigma_dot, eps), state
        g2 = self.eta**2 * t.g2
        x = x + affine(h * t.alpha_dot, x0, h * (t.sigma_dot + g2 / (2 * t.sigma)), eps)
        return x + math.sqrt(g2 * abs(h)) * noise(STEP), state


def transition(t: Level, s: Level) -> tuple[float, float]:
    """x_t = r x_s + b z of the forward process from s to t: r = alpha_t/alpha_s and b^2 = sigma_t^2 - r^2 sigma_s^2."""
    r = t.alpha / s.alpha
    return r, max((t.sigma - r * s.sigma) * (t.sigma + r * s.sigma), 0.0)


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z, v = sigma_s^2 b^2/sigma_t^2 (2010.02502, eq. 12).

    eta = 0 is deterministic, the exponential Euler method of the probability-flow ODE (order 1); eta = 1 is ``Ancestral``.
    One call a step, on any grid and for any alpha and sigma. ``scale`` is the std of the data, of its own grid alone; None: that of
    the model's reference, 1 without one.
    """

    eta: float = 0.0
    scale: float | None = None
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _check_eta(self.eta, 1.0)
        _check_scale(self.scale)

    def bind(self, model: Any, steps: int | None) -> DDIM:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, scale=1.0)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic`` for eta = 0, the grid of ``Ancestral`` for others: both keep the std of the data at 10 steps."""
        if self.eta:
            return _variance_grid(sde, n, start, end, self.scale)
        return grid.logistic(sde, n, start, end, center=0.4 * (1.0 if self.scale is None else self.scale))

    def init(self, model: Any, x: Tensor, times: list[Level]) -> None:
        if self.eta:
            check_decreasing(self, times)

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        x0, eps = model.predict(x, t)
        if self.eta == 0:
            return affine(s.alpha, x0, s.sigma, eps), state
        _, b2 = transition(t, s)
        variance = self.eta**2 * s.sigma**2 * b2 / t.sigma**2
        x = affine(s.alpha, x0, math.sqrt(max(s.sigma**2 - variance, 0.0)), eps)
        return x + math.sqrt(variance) * noise(STEP), state


@dataclass(frozen=True)
class Ancestral(Solver):
    """Ancestral sampling: draws from q(x_s | x_t, x0), Gaussian for every SDE and exact on any grid (2107.00630, eq. 25).

    Mean r sigma_s^2/sigma_t^2 x + alpha_s b^2/sigma_t^2 x0, variance sigma_s^2 b^2/sigma_t^2. One call a step. ``scale`` as in ``DDIM``.
    """

    scale: float | None = None
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def bind(self, model: Any, steps: int | None) -> Ancestral:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, scale=1.0)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """Equal steps in s/sqrt(c + s^2), s = sigma/alpha, c = (0.8 scale)^2: little loss of variance for stds of 0.3 to 1.2 scale."""
        return _variance_grid(sde, n, start, end, self.scale)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> None:
        check_decreasing(self, times)

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        r, b2 = transition(t, s)
        x0 = model.denoise(x, t)
        mean = affine(r * s.sigma**2 / t.sigma**2, x, s.alpha * b2 / t.sigma**2, x0)
        return mean + (s.sigma * math.sqrt(b2) / t.sigma) * noise(STEP), state


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """Reverse diffusion: x_s = (2 - r) x + b^2 score + b z (2011.13456, eq. 46), with the exact r and b of any grid."""

    def init(self, model: Any, x: Tensor, times: list[Level]) -> None:
        check_decreasing(self, times)

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        r, b2 = transition(t, s)
        return affine(2 - r, x, b2, model.score(x, t)) + math.sqrt(b2) * noise(STEP), state


@dataclass(frozen=True)
class Langevin(Solver):
    """Langevin corrector: x + h score + sqrt(2 h) z with h = 2 (snr |z|/|score|)^2 (2011.13456, algorithm 4).

    Norms are per sample, so that samples do not depend on their batch. h is at most sigma_t^2, half the stability limit of the
    sharpest p_t there can be: in few dimensions the score is close to 0 now and then, and the step would be without bound. Take a
    small snr there, 0.01 in two dimensions: a step that depends on x is biased. Used inside ``PredictorCorrector``; as a solver
    of its own it corrects at each time without a predictor. ``steps`` calls a step.
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        check_positive(self.snr, "snr")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"steps = {self.steps!r} of Langevin, expected an integer of at least 0")

    def correct(self, model: Any, x: Tensor, t: Level, noise: Draw) -> Tensor:
        """Moves x towards p_t, at t."""
        for i in range(self.steps):
            z = noise(CORRECTOR + i)
            score = model.score(x, t)
            tiny = torch.finfo(score.dtype).tiny
            ratio = per_sample_norm(z) / per_sample_norm(score).clamp_min(tiny)
            h = expand((2 * (self.snr * ratio) ** 2).clamp_max(t.sigma**2), x)
            x = torch.addcmul(x, h, score).addcmul_((2 * h).sqrt(), z)
        return x

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        return self.correct(model, x, s, noise), state


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A predictor step from t to s, then a corrector at s (2011.13456, algorithm 1).

    order="corrector-predictor" corrects at t first, as the paper's code does. The grid is the predictor's, or the SDE's.

    Raises ConfigError: a corrector or order that is none; in a solve, a predictor in the coordinates of a reference
    (``ReferenceSolver``), which goes on from its own state and would not see the corrections.
    """

    predictor: Solver = ReverseDiffusion()
    corrector: Langevin = Langevin()
    order: str = "predictor-corrector"

    def __post_init__(self) -> None:
        if self.order not in ("predictor-corrector", "corrector-predictor"):
            raise ConfigError(f"order = {self.order!r}, expected 'predictor-corrector' or 'corrector-predictor'")
        check_solver(self.predictor, "predictor")
        if isinstance(self.corrector, type) or not hasattr(self.corrector, "correct"):
            raise ConfigError(f"corrector = {self.corrector!r}, expected a corrector, scoresde.Langevin() for instance")

    @property
    def restart_blocks(self) -> int:
        """Blocks of noise streams that the predictor uses beside its own (see ``Restart``)."""
        return getattr(self.predictor, "restart_blocks", 0)

    def bind(self, model: Any, steps: int | None) -> PredictorCorrector:
        """With the predictor for this model."""
        if hasattr(self.predictor, "reference"):
            raise ConfigError(
                f"{type(self.predictor).__name__} as a predictor goes on from its own state, which a corrector does not move: "
                "take DDIM(), Ancestral() or a solver of another kind"
            )
        return replace(self, predictor=bound(self.predictor, model, steps))

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The predictor's own grid, or the SDE's."""
        return getattr(self.predictor, "grid", grid.default)(sde, n, start, end)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> Any:
        return self.predictor.init(model, x, times) if hasattr(self.predictor, "init") else None

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        if self.order == "corrector-predictor":
            x = self.corrector.correct(model, x, t, noise)
        x, state = self.predictor.step(model, x, t, s, state, noise)
        if self.order == "predictor-corrector":
            x = self.corrector.correct(model, x, s, noise)
        return x, state


def _check_eta(eta: float, most: float) -> None:
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= most or eta == math.inf:
        raise ConfigError(f"eta = {eta!r}, expected a number from 0 to {most}")


def _check_scale(scale: float | None) -> None:
    if scale is not None:
        check_positive(scale, "scale")


def check_solver(solver: Any, name: str = "solver") -> None:
    """Checks that this is something with a ``step``, and an instance. Raises ConfigError."""
    if isinstance(solver, type):
        raise ConfigError(f"{name} = {solver.__name__} is a class, expected an instance: {solver.__name__}()")
    if not callable(getattr(solver, "step", None)):
        raise ConfigError(f"{name} = {solver!r}, expected a solver, scoresde.Heun() for instance")


def check_tolerances(rtol: float, atol: float, max_nfe: int) -> None:
    """Raises ConfigError unless rtol > 0, atol > 0 and max_nfe is a positive integer."""
    check_positive(rtol, "rtol")
    check_positive(atol, "atol")
    check_positive_int(max_nfe, "max_nfe")

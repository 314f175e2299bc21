"""Methods of one network call a step without memory: Euler-Maruyama, reverse diffusion, ancestral sampling, DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_positive
from scoresde.core.doors import checked
from scoresde.core.streams import STEP
from scoresde.core.tensors import affine
from scoresde.sdes import grid
from scoresde.solvers.base import Solver, brief_repr, check_decreasing, check_eta, in_units_of_data

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


def _variance_grid(sde: SDE, n: int, start: float | None, end: float | None, scale: float | None) -> Tensor:
    """Equal steps in w = s/sqrt(c + s^2), s = sigma/alpha, c = (0.8 scale)^2: where ancestral sampling loses least variance.

    For Gaussian data of variance c a step takes (1 - r)^2 c u/(c + u) from the variance of y = x/alpha, with u = s^2 and r the
    ratio of its ends, and what follows shrinks that by (c/(c + u))^2. The sum over n steps is least for a density of steps
    proportional to sqrt(u)/(c + u)^(3/2) in log u: equal steps in w. It is 4/n of c then, 20 % of the std at 10 steps.
    """
    c = (0.8 * (1.0 if scale is None else scale)) ** 2
    times = grid.log_snr(sde, n, start, end)  # checks the arguments; its ends are kept
    w = 1 / (1 + c * sde.log_snr(times[[0, -1]]).exp()).sqrt()
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu")[1:-1]
    w = w[0] * (1 - u) + w[1] * u
    times[1:-1] = sde.time_of_log_snr(((1 - w) * (1 + w) / (c * w**2)).log())
    return times


@checked
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw (2011.13456, eq. 6; eta = 1 is the reverse SDE).

    Written as velocity - eta^2/2 g^2 score, which is finite where alpha = 0. Order 1 weak, and strong, since g depends on t only.
    """

    eta: float = 1.0
    asks: ClassVar[str] = "x0"
    accuracy: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta, math.inf)

    @property
    def noise(self) -> str:
        return "strong" if self.eta else "deterministic"

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> None:
        if self.eta:
            check_decreasing(self, times)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
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


@checked
@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z, v = sigma_s^2 b^2/sigma_t^2 (2010.02502, eq. 12).

    eta = 0 is deterministic, the exponential Euler method of the probability-flow ODE (order 1); eta = 1 is ``Ancestral``.
    One call a step, on any grid and for any alpha and sigma. ``scale`` is the std of the data, of its own grid alone; None: that of
    the model's reference, 1 without one.
    """

    eta: float = 0.0
    scale: float | None = None
    asks: ClassVar[str] = "x0"
    accuracy: ClassVar[float] = 1.0
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        check_eta(self.eta, 1.0)
        _check_scale(self.scale)

    @property
    def noise(self) -> str:
        return "strong" if self.eta else "deterministic"

    def bind(self, model: Answers, steps: int | None) -> DDIM:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, scale=1.0)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic`` for eta = 0, the grid of ``Ancestral`` for others: both keep the std of the data at 10 steps."""
        if self.eta:
            return _variance_grid(sde, n, start, end, self.scale)
        return grid.logistic(sde, n, start, end, center=0.4 * (1.0 if self.scale is None else self.scale))

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> None:
        if self.eta:
            check_decreasing(self, times)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        x0, eps = model.predict(x, t)
        if self.eta == 0:
            return affine(s.alpha, x0, s.sigma, eps), state
        _, b2 = transition(t, s)
        variance = self.eta**2 * s.sigma**2 * b2 / t.sigma**2
        x = affine(s.alpha, x0, math.sqrt(max(s.sigma**2 - variance, 0.0)), eps)
        return x + math.sqrt(variance) * noise(STEP), state


@checked
@dataclass(frozen=True)
class Ancestral(Solver):
    """Ancestral sampling: draws from q(x_s | x_t, x0), Gaussian for every SDE and exact on any grid (2107.00630, eq. 25).

    Mean r sigma_s^2/sigma_t^2 x + alpha_s b^2/sigma_t^2 x0, variance sigma_s^2 b^2/sigma_t^2. One call a step. ``scale`` as in ``DDIM``.
    """

    scale: float | None = None
    asks: ClassVar[str] = "x0"
    accuracy: ClassVar[float] = 1.0
    noise: ClassVar[str] = "strong"
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def bind(self, model: Answers, steps: int | None) -> Ancestral:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, scale=1.0)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """Equal steps in s/sqrt(c + s^2), s = sigma/alpha, c = (0.8 scale)^2: little loss of variance for stds of 0.3 to 1.2 scale."""
        return _variance_grid(sde, n, start, end, self.scale)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> None:
        check_decreasing(self, times)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        r, b2 = transition(t, s)
        x0 = model.denoise(x, t)
        mean = affine(r * s.sigma**2 / t.sigma**2, x, s.alpha * b2 / t.sigma**2, x0)
        return mean + (s.sigma * math.sqrt(b2) / t.sigma) * noise(STEP), state


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """Reverse diffusion: x_s = (2 - r) x + b^2 score + b z (2011.13456, eq. 46), with the exact r and b of any grid."""

    asks: ClassVar[str] = "eps"
    accuracy: ClassVar[float] = 1.0
    noise: ClassVar[str] = "strong"

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> None:
        check_decreasing(self, times)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        r, b2 = transition(t, s)
        return affine(2 - r, x, b2, model.score(x, t)) + math.sqrt(b2) * noise(STEP), state


def _check_scale(scale: float | None) -> None:
    if scale is not None:
        check_positive(scale, "scale")

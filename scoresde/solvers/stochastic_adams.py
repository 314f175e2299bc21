r"""Stochastic solvers for few calls: exponential Adams methods of the reverse SDE, EDM's churn, and restarts.

All are written in y = x/alpha and s = sigma/alpha, where every linear Gaussian diffusion is y = x_0 + s eps, so that they hold for
any alpha and sigma. With D = E[x_0 | x_t] and lam = -log s, the family of reverse SDEs that share the marginals of the forward one is

.. math:: dy = (1 + \tau^2) (D - y)\, d\lambda + \tau s \sqrt2\, dW_\lambda

for any tau(lam) >= 0 (2309.05019, eq. 5): tau = 0 is the probability-flow ODE, tau = 1 the reverse SDE of 2011.13456.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde.core.checks import check_integer, check_least, check_positive, theirs
from scoresde.core.doors import checked
from scoresde.core.exponential import lagrange_at
from scoresde.core.quadrature import legendre
from scoresde.core.streams import STEP
from scoresde.core.tensors import affine
from scoresde.errors import ConfigError
from scoresde.sdes import grid
from scoresde.solvers.base import Solver, brief_repr, check_decreasing, in_units_of_data

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw

DATA_STD, CENTER = 0.25, 0.4  # in units of the std of the data

NODES = 32  # of the quadrature of one step's weights


@dataclass(frozen=True)
class _Plan:
    """x_s = a x + sum of c_k R_k + b z, step by step, and what a new residual adds to the x that it was taken at."""

    a: list[float]
    b: list[float]
    skip: list[float]  # the residual is R = D - skip x
    predict: list[list[float]]  # weights c of the residuals, newest first
    correct: list[list[float]]  # weights of the residual at s and of the older ones, to be added to x at s
    keep: int  # residuals to remember


def adams(times: list[Level], tau2: list[float], c: float, predictor: int, corrector: int) -> _Plan:
    r"""The coefficients of an exponential Adams method for all steps of a solve.

    With v = c + s^2 and the residual R = D - (c/v) y, which vanishes for data of N(0, c I), the SDE on a step with constant tau is

    .. math:: y_s = A y_t + \int (1 + \tau^2) E R\, d\lambda + \sqrt{v_s (1 - (v_s/v_t)^{\tau^2})}\, z, \quad
              E = (v_s/v_\lambda)^{(1 + \tau^2)/2}, \quad A = E(\lambda_t).

    R is replaced by a polynomial in lam through its latest values. c = 0 is data prediction (2309.05019, eq. 14). The integrals
    are Gauss-Legendre sums: no cancellation for steps of any length.

    Args:
        times: the n + 1 levels of the solve.
        tau2: tau^2 of each step.
        c: variance of the Gaussian data that is solved exactly.
        predictor, corrector: number of residuals in the polynomials; the corrector's include the one at s, 0 is none.
    """
    t, s = times[:-1], times[1:]
    lam = torch.tensor([u.lam for u in times], dtype=torch.float64, device="cpu")
    rate = 1 + torch.tensor(tau2, dtype=torch.float64, device="cpu")
    log_c = torch.tensor(math.log(c) if c else -math.inf, dtype=torch.float64, device="cpu")
    log_v = torch.logaddexp(log_c, -2 * lam)
    gain = log_v.diff()  # log(v_s/v_t)
    # where E has fallen below 1e-17 nothing is left to integrate
    decay = rate * torch.minimum((-2 * lam - log_v)[:-1], (-2 * lam - log_v)[1:]).exp()
    nodes, weights, _ = legendre(NODES)
    h = torch.minimum(lam.diff().abs(), 40 / decay).copysign(lam.diff())[:, None]
    at = lam[1:, None] - h * nodes
    E = (0.5 * rate[:, None] * (log_v[1:, None] - torch.logaddexp(log_c, -2 * at))).exp()
    density = torch.tensor([u.alpha for u in s], dtype=torch.float64, device="cpu")[:, None] * rate[:, None] * h * weights * E
    predict = _lagrange(lam, at, density, predictor, 0)
    correct = _lagrange(lam, at, density, corrector, 1) if corrector else [[] for _ in s]
    std = (log_v[1:].exp() * -torch.expm1((rate - 1) * gain)).clamp(min=0).sqrt().tolist()
    return _Plan(
        [v.alpha / u.alpha * g for u, v, g in zip(t, s, (0.5 * rate * gain).exp().tolist(), strict=True)],
        [v.alpha * sd for v, sd in zip(s, std, strict=True)],
        [c * u.alpha / (c * u.alpha**2 + u.sigma**2) for u in t],
        predict,
        # the prediction is part of the x that is handed on: what is left is the difference
        [[new[0], *(a - b for a, b in zip_longest(new[1:], old, fillvalue=0.0))] if new else []
         for new, old in zip(correct, predict, strict=True)],
        max(predictor - 1, predictor if corrector else 0, corrector - 1),
    )


def _lagrange(lam: Tensor, at: Tensor, density: Tensor, points: int, ahead: int) -> list[list[float]]:
    """Weights of the values at lam[i + ahead], lam[i + ahead - 1], ... for step i: integrals of Lagrange's polynomials."""
    found: list[list[float]] = []
    n = len(at)
    while len(found) < n:
        i = len(found)
        k = min(i + 1 + ahead, points)  # as many as there are at the beginning
        stop = n if k == points else i + 1
        newest_first = torch.stack([lam[i + ahead - j : stop + ahead - j] for j in range(k)], -1)
        found += (lagrange_at(newest_first, at[i:stop]) * density[i:stop, None]).sum(-1).tolist()
    return found


class _History(NamedTuple):
    """The state of an exponential Adams method: its plan, the next step and the latest residuals, newest first."""

    plan: _Plan
    i: int = 0
    residuals: tuple[Tensor, ...] = ()


def _adams_step(model: Answers, x: Tensor, t: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
    """Corrects x at t with the call there, which serves the prediction at s as well: one call (PEC)."""
    plan, i, old = state
    R = model.denoise(x, t)
    if plan.skip[i]:
        R = torch.add(R, x, alpha=-plan.skip[i])
    if i and plan.correct[i - 1]:
        x = _add(x, plan.correct[i - 1], (R, *old))
    first, *rest = plan.predict[i]
    x = affine(plan.a[i], x, first, R)
    for weight, residual in zip(rest, old, strict=False):
        x.add_(residual, alpha=weight)
    if plan.b[i]:
        x.add_(noise(STEP), alpha=plan.b[i])
    return x, _History(plan, i + 1, (R, *old)[: plan.keep])


def _add(x: Tensor, weights: list[float], residuals: tuple[Tensor, ...]) -> Tensor:
    x = torch.add(x, residuals[0], alpha=weights[0])
    for weight, residual in zip(weights[1:], residuals[1:], strict=False):
        x.add_(residual, alpha=weight)
    return x


@checked
@dataclass(frozen=True)
class SASolver(Solver):
    """Stochastic Adams in data prediction, predictor and corrector (2309.05019, algorithm 1). One call a step.

    tau scales the noise: 0 is the probability-flow ODE, 1 the reverse SDE. The call at the predicted point serves the corrector at
    this step and the predictor at the next; after the last step there is none, and nothing to correct. tau = 0 and
    ``predictor_order=1, corrector_order=0`` is ``DDIM()``. Strong order 1, weak order 2 (up to 3 for tau = 0).

    Args:
        predictor_order: number of denoised samples in the predictor's polynomial, 1 to 4.
        corrector_order: the same of the corrector, the new one included; 0: no corrector.
        tau: a number of at least 0, or a function of lam = log(alpha/sigma). A function enters by the mean of tau^2 over a step.
        center: of its grid, in units of s = sigma/alpha; None: 0.4 times the scale of the model's reference, 0.4 without one.

    Raises ConfigError for other orders or a negative tau.
    """

    predictor_order: int = 3
    corrector_order: int = 3
    tau: float | Callable[[float], float] = 0.5
    center: float | None = None
    asks: ClassVar[str] = "x0"
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        keep_fields(self, predictor_order=check_integer(self.predictor_order, "predictor_order", 1, 4))
        keep_fields(self, corrector_order=check_integer(self.corrector_order, "corrector_order", 0, 4))
        if not callable(self.tau):
            keep_fields(self, tau=check_least(self.tau, 0.0, "tau"))
        if self.center is not None:
            keep_fields(self, center=check_positive(self.center, "center"))

    @property
    def accuracy(self) -> float:
        """Weak order 2 at most, with noise; without, the corrector's, for a predictor of at least one less: it corrects once."""
        order = min(self.predictor_order + 1, self.corrector_order) if self.corrector_order else self.predictor_order
        return min(order, 2) if self.noise == "weak" else order

    @property
    def noise(self) -> str:
        return "weak" if self.tau else "deterministic"

    def bind(self, model: Answers, steps: int | None) -> SASolver:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, center=CENTER)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic``, wider: in data prediction a step may not be long where s is small."""
        return grid.logistic(sde, n, start, end, self.center or CENTER, width=2.5)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _History:
        if self.tau:
            check_decreasing(self, times)
        tau2 = _mean_square(self.tau, times) if callable(self.tau) else [self.tau**2] * (len(times) - 1)
        return _History(adams(times, tau2, 0.0, self.predictor_order, self.corrector_order))

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
        return _adams_step(model, x, t, state, noise)


@checked
@dataclass(frozen=True)
class StochasticExponential(Solver):
    """A stochastic exponential integrator whose linear part is the SDE of Gaussian data N(0, data_std^2 I). One call a step.

    Its law is exact for such data, in any number of steps; for others the residual, E[x_0 | x] less that of the Gaussian, is
    integrated by Adams polynomials, predictor and corrector of the same order (see ``adams``). eta = 1 is the reverse SDE, eta = 0
    the probability-flow ODE. Strong order 1, weak order 2.

    Args:
        order: 1 (predictor only), 2 or 3.
        eta: amount of noise, a number of at least 0.
        data_std: std of the Gaussian; 0 is data prediction. Best between the std of a mode and that of the data: a residual then
            changes little while samples settle within their modes, where most of the error is made. None: a quarter of the scale of
            the model's reference, 0.25 without one.
        center: of its grid, in units of s = sigma/alpha; None: 0.4 times the scale of the model's reference, 0.4 without one.

    Raises ConfigError for other arguments.
    """

    order: int = 2
    eta: float = 1.0
    data_std: float | None = None
    center: float | None = None
    asks: ClassVar[str] = "x0"
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        keep_fields(self, order=check_integer(self.order, "order", 1, 4), eta=check_least(self.eta, 0.0, "eta"))
        if self.order > 3:
            raise ConfigError(f"order = {self.order}, expected 1, 2 or 3")
        if self.data_std is not None:
            keep_fields(self, data_std=check_least(self.data_std, 0.0, "data_std"))
        if self.center is not None:
            keep_fields(self, center=check_positive(self.center, "center"))

    @property
    def accuracy(self) -> float:
        return min(self.order, 2) if self.eta else self.order

    @property
    def noise(self) -> str:
        return "weak" if self.eta else "deterministic"

    def bind(self, model: Answers, steps: int | None) -> StochasticExponential:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, data_std=DATA_STD, center=CENTER)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic`` of width 1.75: 20 calls reach the noise floor of 20,000 samples of a 16-D mixture."""
        return grid.logistic(sde, n, start, end, self.center or CENTER, width=1.75)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _History:
        if self.eta:
            check_decreasing(self, times)
        tau2, data_std = [self.eta**2] * (len(times) - 1), DATA_STD if self.data_std is None else self.data_std
        return _History(adams(times, tau2, data_std**2, self.order, self.order if self.order > 1 else 0))

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
        return _adams_step(model, x, t, state, noise)


def _mean_square(tau: Callable[[float], float], times: list[Level]) -> list[float]:
    """The mean of tau(lam)^2 over each step."""
    nodes, weights, _ = legendre()
    found = []
    for t, s in pairwise(times):
        lam, h = t.lam, s.lam - t.lam
        with theirs("your function tau"):
            answers = [(lam + h * u, tau(lam + h * u)) for u in nodes.tolist()]
        values = [check_least(value, 0.0, f"tau({at:.6g})") for at, value in answers]
        found.append(sum(w * v**2 for w, v in zip(weights.tolist(), values, strict=True)))
    return found


def keep_fields(solver: Any, **values: Any) -> None:
    """Sets checked values of a frozen solver, while it is made."""
    for name, value in values.items():
        object.__setattr__(solver, name, value)

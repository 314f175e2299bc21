r"""Stochastic solvers for few calls: exponential Adams methods of the reverse SDE, EDM's churn, and restarts.

All are written in y = x/alpha and s = sigma/alpha, where every linear Gaussian diffusion is y = x_0 + s eps, so that they hold for
any alpha and sigma. With D = E[x_0 | x_t] and lam = -log s, the family of reverse SDEs that share the marginals of the forward one is

.. math:: dy = (1 + \tau^2) (D - y)\, d\lambda + \tau s \sqrt2\, dW_\lambda

for any tau(lam) >= 0 (2309.05019, eq. 5): tau = 0 is the probability-flow ODE, tau = 1 the reverse SDE of 2011.13456.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import grid as grids
from ._quadrature import legendre
from ._tensor import affine, check_positive
from .errors import ConfigError
from .noise import STEP
from .sde import SDE, Level
from .solvers import Draw, Heun, Solver, bound, brief_repr, check_decreasing, check_solver, in_units_of_data

DATA_STD, CENTER = 0.25, 0.4  # in units of the std of the data
NODES = 32  # of the quadrature of one step's weights
RESTART = 1 << 40  # the size of a block of streams: each restart, and each step inside of it, has blocks of its own


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
    lam = torch.tensor([math.log(u.alpha / u.sigma) for u in times], dtype=torch.float64)
    rate = 1 + torch.tensor(tau2, dtype=torch.float64)
    log_c = torch.tensor(math.log(c) if c else -math.inf, dtype=torch.float64)
    log_v = torch.logaddexp(log_c, -2 * lam)
    gain = log_v.diff()  # log(v_s/v_t)
    # where E has fallen below 1e-17 nothing is left to integrate
    decay = rate * torch.minimum((-2 * lam - log_v)[:-1], (-2 * lam - log_v)[1:]).exp()
    nodes, weights, _ = legendre(NODES)
    h = torch.minimum(lam.diff().abs(), 40 / decay).copysign(lam.diff())[:, None]
    at = lam[1:, None] - h * nodes
    E = (0.5 * rate[:, None] * (log_v[1:, None] - torch.logaddexp(log_c, -2 * at))).exp()
    density = torch.tensor([u.alpha for u in s], dtype=torch.float64)[:, None] * rate[:, None] * h * weights * E
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
        p = torch.stack([lam[i + ahead - j : stop + ahead - j] for j in range(k)])[..., None]
        L = [density[i:stop] for _ in range(k)]
        for j in range(k):
            for m in range(k):
                if m != j:
                    L[j] = L[j] * ((at[i:stop] - p[m]) / (p[j] - p[m]))
        found += torch.stack([row.sum(1) for row in L], 1).tolist()
    return found


class _History(NamedTuple):
    """The state of an exponential Adams method: its plan, the next step and the latest residuals, newest first."""

    plan: _Plan
    i: int = 0
    residuals: tuple[Tensor, ...] = ()


def _adams_step(model: Any, x: Tensor, t: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
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
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _keep(self, predictor_order=_check_order(self.predictor_order, 1, "predictor_order"))
        _keep(self, corrector_order=_check_order(self.corrector_order, 0, "corrector_order"))
        if not callable(self.tau):
            _keep(self, tau=_check_least(self.tau, 0.0, "tau"))
        if self.center is not None:
            _keep(self, center=check_positive(self.center, "center"))

    def bind(self, model: Any, steps: int | None) -> SASolver:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, center=CENTER)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic``, wider: in data prediction a step may not be long where s is small."""
        return grids.logistic(sde, n, start, end, self.center or CENTER, width=2.5)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> _History:
        if self.tau:
            check_decreasing(self, times)
        tau2 = _mean_square(self.tau, times) if callable(self.tau) else [self.tau**2] * (len(times) - 1)
        return _History(adams(times, tau2, 0.0, self.predictor_order, self.corrector_order))

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
        return _adams_step(model, x, t, state, noise)


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
    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _keep(self, order=_check_order(self.order, 1, "order"), eta=_check_least(self.eta, 0.0, "eta"))
        if self.order > 3:
            raise ConfigError(f"order = {self.order}, expected 1, 2 or 3")
        if self.data_std is not None:
            _keep(self, data_std=_check_least(self.data_std, 0.0, "data_std"))
        if self.center is not None:
            _keep(self, center=check_positive(self.center, "center"))

    def bind(self, model: Any, steps: int | None) -> StochasticExponential:
        """This solver for data of the model's scale."""
        return in_units_of_data(self, model, data_std=DATA_STD, center=CENTER)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.logistic`` of width 1.75: 20 calls reach the noise floor of 20,000 samples of a 16-D mixture."""
        return grids.logistic(sde, n, start, end, self.center or CENTER, width=1.75)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> _History:
        if self.eta:
            check_decreasing(self, times)
        tau2, data_std = [self.eta**2] * (len(times) - 1), DATA_STD if self.data_std is None else self.data_std
        return _History(adams(times, tau2, data_std**2, self.order, self.order if self.order > 1 else 0))

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: _History, noise: Draw) -> tuple[Tensor, _History]:
        return _adams_step(model, x, t, state, noise)


@dataclass(frozen=True)
class EDMStochastic(Solver):
    """Heun's method in s = sigma/alpha with churn: noise is added before each step (2206.00364, algorithm 2). Two calls a step.

    On a step from s to s' with n steps in all: s^ = (1 + min(s_churn/n, sqrt(2) - 1)) s if s_min <= s <= s_max, else s;
    y^ = y + sqrt(s^^2 - s^2) s_noise z; then Heun's method on dy/ds = (y - D)/s from s^ to s'. s^ is at most the SDE's largest s.
    The paper ends with an Euler step to s = 0. Here s is positive at the end, so that the last step is one of Heun's as well
    and the model is never called at s = 0; ``denoise=True`` of ``sample`` is the step to 0. s_churn = 0 is the ODE, of order 2.

    Args:
        s_churn: amount of noise, at least 0. s_min, s_max: where, in units of s. s_noise: its scale.

    Raises ConfigError for negative numbers, or s_min > s_max.
    """

    s_churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("s_churn", "s_min", "s_noise"):
            _keep(self, **{name: _check_least(getattr(self, name), 0.0, name)})
        if isinstance(self.s_max, bool) or not isinstance(self.s_max, (int, float)) or not self.s_max >= self.s_min:
            raise ConfigError(f"s_min = {self.s_min!r} and s_max = {self.s_max!r}, expected s_min <= s_max")

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.karras``, as in the paper."""
        return grids.karras(sde, n, start, end)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> dict[float, Level]:
        """The level that noise is added up to, by the time a step starts from; steps without churn are left out."""
        if self.s_churn:
            check_decreasing(self, times)
        gamma = min(self.s_churn / (len(times) - 1), math.sqrt(2) - 1)
        largest = _ratio(model.sde.levels([model.sde.t_max])[0])
        wanted = {t: min((1 + gamma) * _ratio(t), largest) for t in times[:-1] if self.s_min <= _ratio(t) <= self.s_max}
        wanted = {t: s for t, s in wanted.items() if s > _ratio(t)}
        if not wanted:
            return {}
        log_snr = torch.tensor([-2 * math.log(s) for s in wanted.values()], dtype=torch.float64)
        found = model.sde.levels(model.sde.time_of_log_snr(log_snr).clamp(max=model.sde.t_max))
        return {t: hat for t, hat in zip(wanted, found, strict=True) if _ratio(hat) > _ratio(t)}

    def step(
        self, model: Any, x: Tensor, t: Level, s: Level, state: dict[float, Level], noise: Draw
    ) -> tuple[Tensor, dict[float, Level]]:
        hat = state.get(t, t)
        if hat is not t:
            std = self.s_noise * math.sqrt((_ratio(hat) - _ratio(t)) * (_ratio(hat) + _ratio(t)))
            x = affine(hat.alpha / t.alpha, x, hat.alpha * std, noise(STEP))
        # dy/ds = (y - D)/s = eps: in x, y' = y + h eps is x' = alpha'/alpha^ x + alpha' h eps
        h = _ratio(s) - _ratio(hat)
        d_hat = model.eps(x, hat)
        y = affine(s.alpha / hat.alpha, x, s.alpha * h, d_hat)
        d_s = model.eps(y, s)
        return y.add_(d_s, alpha=0.5 * s.alpha * h).add_(d_hat, alpha=-0.5 * s.alpha * h), state


@dataclass(frozen=True)
class Restart(Solver):
    """Restart sampling: a solver that goes back to more noise and down again, several times (2306.14878, algorithm 1).

    Where the grid first comes to s = sigma/alpha <= low, ``rounds`` times: noise is added from there up to ``high``
    (y + sqrt(high^2 - s^2) z) and ``solver`` leads back in ``steps`` steps of a Karras grid. Errors made above are contracted
    by the noise. Calls: those of the solver on the grid, and rounds times its calls for ``steps`` steps. ``rounds=0`` is the solver.
    A grid that ends above ``low``, or starts below it, meets no restart. Several ranges: ``Restart(Restart(...), ...)``, which must not
    overlap. ``high`` is at most the s that the grid starts from.

    Args:
        solver: takes all steps. low, high: the range of s. rounds: restarts. steps: steps of each.

    Raises ConfigError unless 0 < low < high, rounds >= 0 and steps >= 1, and for ``AdaptiveSDE``, whose one Brownian path goes down once.
    """

    solver: Solver = Heun()  # noqa: RUF009 (frozen)
    low: float = 0.1
    high: float = 0.5
    rounds: int = 2
    steps: int = 2

    def __post_init__(self) -> None:
        check_solver(self.solver)
        check_positive(self.low, "low")
        check_positive(self.high, "high")
        if self.low >= self.high:
            raise ConfigError(f"low = {self.low} and high = {self.high}, expected low < high")
        _keep(self, rounds=_check_count(self.rounds, 0, "rounds"), steps=_check_count(self.steps, 1, "steps"))
        if getattr(self.solver, "on_path", False):
            raise ConfigError(
                f"{type(self.solver).__name__} has one Brownian path from noise to data, and none for a way back: "
                "restart a solver of fixed steps or AdaptiveODE()"
            )
        if self.restart_blocks >= 1 << 22:
            raise ConfigError(f"{self.restart_blocks} steps within restarts, expected fewer than 2^22: each takes noise of its own")

    @property
    def restart_blocks(self) -> int:
        """Blocks of streams beyond the first one that a step of this solver may use: those of the inner solver, then its own.

        A restart has a block for the noise that is added, and each of its steps one more; with those of the solver within.
        """
        inner = getattr(self.solver, "restart_blocks", 0)
        return inner + self.rounds * (1 + self.steps) * (1 + inner)

    def bind(self, model: Any, steps: int | None) -> Restart:
        """With the solver for this model, as on given times: it starts anew, at low noise too, so no first step may be special."""
        return replace(self, solver=bound(self.solver, model, None))

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The solver's own grid, or the SDE's."""
        return getattr(self.solver, "grid", grids.default)(sde, n, start, end)

    def init(self, model: Any, x: Tensor, times: list[Level]) -> _Detour:
        meet = next((i for i, t in enumerate(times) if _ratio(t) <= self.low), 0)  # 0: never
        plan: list[Level] = []
        high = min(self.high, _ratio(times[0]))
        if meet and self.rounds and high > _ratio(times[meet]):
            top = model.sde.time_of_log_snr(torch.tensor([-2 * math.log(high)], dtype=torch.float64)).clamp(max=float(times[0]))
            plan = model.sde.levels(grids.karras(model.sde, self.steps, float(top), float(times[meet])))
        if self.rounds:
            check_decreasing(self, times)
        return _Detour(self._start(model, x, times), times, plan)

    def _start(self, model: Any, x: Tensor, times: list[Level]) -> Any:
        return self.solver.init(model, x, times) if hasattr(self.solver, "init") else None

    def step(self, model: Any, x: Tensor, t: Level, s: Level, state: _Detour, noise: Draw) -> tuple[Tensor, _Detour]:
        x, inner = self.solver.step(model, x, t, s, state.inner, noise)
        plan = state.plan
        if not plan or s != plan[-1]:
            return x, replace(state, inner=inner)
        top = plan[0]
        std = math.sqrt(max((_ratio(top) - _ratio(s)) * (_ratio(top) + _ratio(s)), 0.0))
        blocks = itertools.count(1)  # block 0 is that of the steps on the grid
        size = RESTART * (1 + getattr(self.solver, "restart_blocks", 0))
        for _ in range(self.rounds):
            x = affine(top.alpha / s.alpha, x, top.alpha * std, noise(size * next(blocks)))
            within = self._start(model, x, plan)
            for u, v in pairwise(plan):
                x, within = self.solver.step(model, x, u, v, within, _Within(noise, size * next(blocks)))
        rest = state.times[state.times.index(s) :]
        # what a multistep solver remembers belongs to the path before: it starts anew
        return x, replace(state, inner=self._start(model, x, rest) if len(rest) > 1 else inner)


@dataclass(frozen=True)
class _Within:
    """The noise of a step within a restart: the streams of a block of its own."""

    noise: Any
    first: int

    @property
    def ids(self) -> Any:
        """The sample ids of the rows."""
        return self.noise.ids

    def __call__(self, stream: int = STEP) -> Tensor:
        return self.noise(self.first + stream)


@dataclass(frozen=True)
class _Detour:
    """The state of ``Restart``: the solver's state, the times of the solve, and those of a restart (none: no restart)."""

    inner: Any
    times: list[Level]
    plan: list[Level]


def _ratio(t: Level) -> float:
    return t.sigma / t.alpha


def _mean_square(tau: Callable[[float], float], times: list[Level]) -> list[float]:
    """The mean of tau(lam)^2 over each step."""
    nodes, weights, _ = legendre()
    found = []
    for t, s in pairwise(times):
        lam, h = math.log(t.alpha / t.sigma), math.log(s.alpha / s.sigma) - math.log(t.alpha / t.sigma)
        values = [_check_least(tau(lam + h * u), 0.0, f"tau({lam + h * u:.6g})") for u in nodes.tolist()]
        found.append(sum(w * v**2 for w, v in zip(weights.tolist(), values, strict=True)))
    return found


def _check_order(value: Any, least: int, name: str) -> int:
    found = _integer(value)
    if found is None or not least <= found <= 4:
        raise ConfigError(f"{name} = {value!r}, expected an integer from {least} to 4")
    return found


def _check_count(value: Any, least: int, name: str) -> int:
    found = _integer(value)
    if found is None or found < least:
        raise ConfigError(f"{name} = {value!r}, expected an integer of at least {least}")
    return found


def _integer(value: Any) -> int | None:
    """An int, or anything that is an index (NumPy's integers); None for all else, and for True and False."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _check_least(value: Any, least: float, name: str) -> float:
    """A number: Python's, NumPy's, or a tensor of one."""
    number = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not least <= float(number) < math.inf:
        raise ConfigError(f"{name} = {value!r}, expected a finite number of at least {least:g}")
    return float(number)


def _keep(solver: Any, **values: Any) -> None:
    """Sets checked values of a frozen solver, while it is made."""
    for name, value in values.items():
        object.__setattr__(solver, name, value)

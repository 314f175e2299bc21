r"""Adaptive solvers in which every sample has its own time, step size and error: no sample depends on its batch mates.

They work in an angle and a scale that make all SDEs one. With c = sqrt(alpha^2 + sigma^2), alpha = c cos(theta) and
sigma = c sin(theta), the state y = x/c obeys, whatever the SDE,

.. math:: dy/d\theta = v(y, \theta) = \cos\theta\, \varepsilon - \sin\theta\, x_0

(the v of 2202.00512; the probability-flow ODE), noise at theta near pi/2 and data at theta near 0. Data and noise of size 1
have size 1 at all times, so a tolerance means the same everywhere; from alpha and sigma alone, without their derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.brownian import on_path
from scoresde.core.doors import checked
from scoresde.core.noise import BROWNIAN_LEVELS
from scoresde.core.streams import STEP
from scoresde.core.tensors import affine, expand, like, per_sample_rms
from scoresde.errors import ConfigError
from scoresde.solvers.base import Solver, check_eta, check_tolerances

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw

LOOK_EVERY = 4  # steps between two looks of the host whether all samples are done, on a GPU: each look waits for the device

NOT_FINITE, UNDERFLOW, TOO_MANY = 1, 2, 3


@dataclass(frozen=True)
class _Pair:
    """An embedded Runge-Kutta pair whose last stage is the first one of the next step."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]  # the last one holds the weights of the solution
    error: tuple[float, ...]  # weights of the solution less those of the embedded one
    order: int

# fmt: off
PAIRS = {
    # Dormand and Prince 1980, 5(4)
    "dopri5": _Pair(
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        ((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9), (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
         (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
         (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
        (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40), 5,
    ),
    # Bogacki and Shampine 1989, 3(2)
    "bosh3": _Pair(
        (0, 1 / 2, 3 / 4, 1), ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (-5 / 72, 1 / 12, 1 / 9, -1 / 8), 3,
    ),
}


# fmt: on
@dataclass
class _Progress:
    """What is known of each row: its next step size (0: none yet), last error and calls; and why the failed ones failed."""

    h: Tensor
    error: Tensor
    nfe: Tensor
    failures: dict[int, str] = field(default_factory=dict)


def _begin(x: Tensor) -> _Progress:
    zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return _Progress(zeros, torch.ones_like(zeros), torch.zeros_like(zeros, dtype=torch.int64))


class _Path:
    """The way from t to s: theta of both, and what belongs to any theta between."""

    def __init__(self, sde: SDE, t: Level, s: Level) -> None:
        self.sde, self.t, self.s = sde, t, s
        self.start, self.end = (math.atan2(level.sigma, level.alpha) for level in (t, s))
        self.sign = 1.0 if self.end > self.start else -1.0

    def time(self, theta: Tensor) -> Tensor:
        """t of theta, (B,) float64, never outside [s, t]."""
        t = self.sde.time_of_log_snr(-2 * theta.tan().log())
        return t.clamp(min(self.t, self.s), max(self.t, self.s))


def _finite_rows(x: Tensor) -> Tensor:
    return x.flatten(1).isfinite().all(1)


def _only(rows: Tensor, x: Tensor, y: Tensor | float) -> Tensor:
    """x in these rows, y in all others (whatever NaN may be in x there)."""
    other = y if isinstance(y, Tensor) else torch.full_like(x, y)
    return torch.where(expand(rows, x), x, other)


def _stop(active: Tensor, these: Tensor, why: Tensor, code: int) -> tuple[Tensor, Tensor]:
    """The reasons, and who is still active, after these were given up."""
    return why.masked_fill(active & these, code), active & ~these


def _finish(
    solver: Any, model: Answers, path: _Path, y: Tensor, why: Tensor, at: Tensor, before: Tensor, state: _Progress, noise: Draw
) -> tuple[Tensor, _Progress]:
    """x at s, NaN in the rows that failed, which are explained; the calls of each sample are told to those who count."""
    model.count_samples(noise.ids, state.nfe - before)
    texts = {
        NOT_FINITE: "the state or the model's answer is not finite",
        UNDERFLOW: "the step size underflowed",
        TOO_MANY: f"max_nfe = {solver.max_nfe} network calls reached",
    }
    failed = (why > 0).nonzero().flatten()
    for row, code, t in zip(failed.tolist(), why[failed].tolist(), path.time(at)[failed].tolist(), strict=True):
        state.failures.setdefault(row, f"{texts[code]} at t = {t:.6g}")
    x = model.rescale(y, math.hypot(path.s.alpha, path.s.sigma))
    return _only(why == 0, x, math.nan), state


@checked
@dataclass(frozen=True)
class AdaptiveODE(Solver):
    """An embedded Runge-Kutta pair on the probability-flow ODE, with time, step size and error control for each sample alone.

    In y = x/c and theta (see the module): dy/dtheta = v. A step is accepted if the root mean square over a sample of
    (y_s - its embedded twin)/(atol + rtol max(|y|, |y_s|)) is at most 1; PI control (Gustafsson 1991) chooses the next.
    No steps are needed: ``sample(model, n, solver=AdaptiveODE())`` goes from t_max to t_end in one; in ``log_prob`` it goes the
    other way. A sample is the same alone and among any others, to rounding, and those that are done wait for the last one.

    Args:
        rtol, atol: tolerance of one step, relative and absolute, in the units of y: of the data, and of noise of size 1.
        method: "dopri5" (order 5, six calls a step), "bosh3" (order 3, three calls).
        max_nfe: network calls allowed for one sample.

    A sample whose state or velocity is not finite, whose step size underflows or that needs more than max_nfe calls fails alone:
    ``sample`` raises SolverError with its id and reason, ``log_prob`` answers NaN for it and warns.
    Raises ConfigError: a tolerance that is not positive, an unknown method.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    method: str = "dopri5"
    max_nfe: int = 10_000
    default_steps = 1
    per_sample: ClassVar[bool] = True

    @property
    def accuracy(self) -> float:
        """The order of the pair: how the error of given steps shrinks. What results from it follows the tolerance."""
        return PAIRS[self.method].order

    def loosened(self, factor: float) -> AdaptiveODE:
        return replace(self, rtol=factor * self.rtol, atol=factor * self.atol)

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_nfe)
        if self.method not in PAIRS:
            raise ConfigError(f"method = {self.method!r}, expected one of {', '.join(PAIRS)}")

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _Progress:
        return _begin(x)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _Progress, noise: Draw) -> tuple[Tensor, _Progress]:
        path, pair = _Path(model.sde, t, s), PAIRS[self.method]
        norm: Callable[[Tensor], Tensor] = model.error_norm
        calls, look = len(pair.nodes) - 1, 1 if x.device.type == "cpu" else LOOK_EVERY
        before, nfe, h, last_error = state.nfe, state.nfe, state.h, state.error
        why = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        def v(y: Tensor, theta: Tensor) -> Tensor:
            return model.angular_velocity(y, path.time(theta))

        def scale(y: Tensor, z: Tensor) -> Tensor:
            return torch.maximum(y.abs(), z.abs()).mul_(self.rtol).add_(self.atol)

        y = model.rescale(x, 1 / math.hypot(t.alpha, t.sigma))
        theta = torch.full((len(x),), path.start, dtype=torch.float64, device=x.device)
        good = _finite_rows(y)
        y = _only(good, y, 0.0)
        first = v(y, theta)
        good &= _finite_rows(first)
        first = _only(good, first, 0.0)
        why = why.masked_fill(~good, NOT_FINITE)
        nfe = nfe + good
        new = good & (h == 0)
        if x.device.type != "cpu" or bool(new.any()):
            # the step that Euler's method would take, then one after a look at the second derivative
            size, slope = norm(y / scale(y, y)).double(), norm(first / scale(y, y)).double()
            probe = (0.01 * size.clamp_min(1e-5) / slope.clamp_min(1e-5)).clamp_max(abs(path.end - path.start))
            second = v(y + expand(path.sign * probe, y).to(y.dtype) * first, theta + path.sign * probe)
            bend = norm((second - first) / scale(y, y)).double() / probe
            guess = (0.01 / torch.maximum(slope, bend).nan_to_num(1e10).clamp_min(1e-10)) ** (1 / pair.order)
            h = torch.where(new, torch.minimum(100 * probe, guess), h)
            nfe = nfe + new
        why, active = _stop(good, nfe + calls > self.max_nfe, why, TOO_MANY)
        for i in range(self.max_nfe):
            if i % look == 0 and not bool(active.any()):
                break
            nfe = nfe + calls * active
            left = (path.end - theta).abs()
            last = h >= left * (1 - 1e-9)
            step = torch.where(active, torch.minimum(h, left), 0.0) * path.sign
            reached = torch.where(last, path.end, theta + step)
            wide = expand(step, y).to(y.dtype)
            stages = [first]
            for node, row in zip(pair.nodes[1:], pair.rows[1:], strict=True):
                z = torch.addcmul(y, wide, _combine(row, stages))
                stages.append(v(z, reached if node == 1 else theta + node * step))
            error = norm(wide * _combine(pair.error, stages) / scale(y, z)).double().nan_to_num(math.inf, math.inf)
            accepted = active & (error <= 1)
            y, first = _only(accepted, z, y), _only(accepted, stages[-1], first)
            theta = torch.where(accepted, reached, theta)
            error = error.clamp_min(1e-6)
            grow = 0.9 * error ** (-0.7 / pair.order) * last_error ** (0.4 / pair.order)
            factor = torch.where(accepted, grow.clamp(0.2, 10.0), (0.9 * error ** (-1 / pair.order)).clamp(0.2, 0.9))
            h = torch.where(active & ~(accepted & last), step.abs() * factor, h)  # a cut last step says nothing of the next
            last_error = torch.where(accepted, error.clamp_min(1e-4), last_error)
            why, active = _stop(active & ~(accepted & last), ~accepted & (h <= 1e-14 * theta), why, UNDERFLOW)
            why, active = _stop(active, nfe + calls > self.max_nfe, why, TOO_MANY)
        state = _Progress(h, last_error, nfe, state.failures)
        return _finish(self, model, path, y, why, theta, before, state, noise)


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """The sum of weights times stages."""
    (w, k), *rest = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
    total = w * k
    for w, k in rest:
        total.add_(k, alpha=w)
    return total


@checked
@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    r"""The adaptive stochastic improved Euler method of "Gotta Go Fast" (2105.14080, algorithm 1) on the reverse SDE.

    In y = x/c and u = asinh(sigma/alpha) (see the module; cos(theta) = 1/cosh u, sin(theta) = tanh u) the reverse SDE is

    .. math:: dy = [\cos\theta\, v + \eta^2 \varepsilon]\, du + \eta \sqrt{2 \tanh u}\, dW(u), \quad u \text{ decreasing}

    The Euler-Maruyama step y' and the step y~ with drift and diffusion at (y', u + du) have the mean y''. It is accepted if the
    root mean square of (y' - y'')/max(atol, rtol max(|y'|, |y'_before|)) over a sample is at most 1; the next step size is
    0.9 h error^(-2/3), since the difference shrinks as h^(3/2) (the paper's exponent 0.9 rejects more). Two calls a step; every
    sample has its own u, h and error.

    The noise is one Brownian path a sample over lam = log(alpha/sigma), a function of (seed, sample id) (``Noise.brownian``), looked
    up wherever a step ends; dW(u) is its increment times sqrt(|du/dlam|). A rejected step and the shorter one after it see the same
    path, so rejection does not bias the noise. It is the path of ``noise="path"``, whatever ``noise`` is: other tolerances, and
    ``EulerMaruyama`` or ``Ancestral`` with ``noise="path"``, solve the same equation with the same noise.

    Args:
        rtol, atol: tolerance of one step; atol 0.0078 is one level of 256 on [-1, 1].
        eta: size of the noise; 1 is the reverse SDE.
        max_nfe: network calls allowed for one sample.

    Failures as for ``AdaptiveODE``. Raises ConfigError: a tolerance that is not positive, eta outside (0, infinity), times that
    increase (``log_prob``) or lie closer than 2^-20 of the path, a place without a path (within ``Restart`` or ``Picard``).
    """

    rtol: float = 0.02
    atol: float = 0.0078
    eta: float = 1.0
    max_nfe: int = 10_000
    default_steps = 1
    per_sample: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    asks: ClassVar[str] = "x0"
    noise: ClassVar[str] = "strong"

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_nfe)
        check_eta(self.eta, math.inf)
        if self.eta == 0:
            raise ConfigError("eta = 0 of AdaptiveSDE: the noise is gone; use AdaptiveODE for the probability-flow ODE")

    def loosened(self, factor: float) -> AdaptiveSDE:
        return replace(self, rtol=factor * self.rtol, atol=factor * self.atol)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _Progress:
        return _begin(x)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _Progress, noise: Any) -> tuple[Tensor, _Progress]:
        if not s < t:
            raise ConfigError(f"{self} runs from noise to data only; use AdaptiveODE, TorchDiffEq or Heun the other way")
        path = _Path(model.sde, t, s)
        start, end = (math.asinh(level.s) for level in (t, s))
        # lam is first + k tick for an integer k, so that W is known there: the clock of noise="path"
        first, last, *lam = (u.lam for u in [*model.sde.levels([model.sde.t_max, model.sde.t_min]), t, s])
        k_t, k_s = (on_path(min(max(v - first, 0.0), last - first), last - first) for v in lam)
        if k_s <= k_t:
            raise ConfigError(f"{self} from t = {float(t):.6g} to {float(s):.6g}: too short for the Brownian path; take fewer steps")
        tick = (last - first) / (1 << BROWNIAN_LEVELS)
        before, nfe, look = state.nfe, state.nfe, 1 if x.device.type == "cpu" else LOOK_EVERY
        h = torch.where(state.h > 0, state.h, 0.05)

        def u_of(k: Tensor) -> Tensor:
            inside = (-first - tick * k.double()).exp().asinh()
            return torch.where(k == k_s, end, torch.where(k == k_t, start, inside))

        def drift(y: Tensor, u: Tensor) -> Tensor:
            """cos(theta) v + eta^2 eps."""
            at = path.time(u.sinh().atan())
            level: Any = model.sde.level(at, y)
            c2 = level.alpha.square() + level.sigma.square()
            x0, eps = model.predict(like(c2.sqrt(), y) * y, at)
            return affine(level.alpha.square() / c2 + self.eta**2, eps, -level.alpha * level.sigma / c2, x0)

        def diffusion(u: Tensor) -> Tensor:
            return expand(self.eta * (2 * u.tanh()).sqrt(), x).to(x.dtype)

        y = model.rescale(x, 1 / math.hypot(t.alpha, t.sigma))
        good = _finite_rows(y)
        y = _only(good, y, 0.0)
        k = torch.full((len(x),), k_t, dtype=torch.int64, device=x.device)
        w, y_before = noise.brownian(k, STEP), y
        why = torch.zeros_like(k).masked_fill(~good, NOT_FINITE)
        why, active = _stop(good, nfe + 2 > self.max_nfe, why, TOO_MANY)
        for i in range(self.max_nfe):
            if i % look == 0 and not bool(active.any()):
                break
            nfe = nfe + 2 * active
            # the end of the step, rounded to an eighth of it at most: W there takes a few levels of the tree, not all
            u = u_of(k)
            ahead = (-(u - h).clamp_min(end).sinh().log() - first) / tick - k
            want = ahead.clamp(8.0, float(k_s - k_t))
            grain = (want.log2().floor().exp2() / 8).long().clamp_min(1)
            aim = (((k + want) / grain).round().long() * grain).clamp_max(k_s).masked_fill(u - h <= end, k_s)
            aim = torch.where(active, aim, k)
            u_s = u_of(aim)
            du = expand(u_s - u, y).to(y.dtype)
            w_s = noise.brownian(aim, STEP)
            # W of the tree has the variance (aim - k) 2^-LEVELS, dW(u) that of the step in u
            stretch = ((u - u_s) / (aim - k).clamp_min(1) * (1 << BROWNIAN_LEVELS)).sqrt()
            dw = ((w_s - w) * expand(stretch, y)).to(y.dtype)
            euler = torch.addcmul(y, du, drift(y, u)).addcmul_(diffusion(u), dw)
            other = torch.addcmul(y, du, drift(euler, u_s)).addcmul_(diffusion(u_s), dw)
            better = (euler + other) / 2
            scale = torch.maximum(euler.abs(), y_before.abs()).mul_(self.rtol).clamp_min_(self.atol)
            error = per_sample_rms((euler - better) / scale).double().nan_to_num(math.inf, math.inf)
            accepted = active & (error <= 1)
            y, y_before, w = _only(accepted, better, y), _only(accepted, euler, y_before), _only(accepted, w_s, w)
            k = torch.where(accepted, aim, k)
            factor = (0.9 * error.clamp_min(1e-6) ** (-2 / 3)).clamp(0.1, 5.0)
            done = accepted & (aim == k_s)
            h = torch.where(active & ~done, (u - u_s) * factor, h)
            why, active = _stop(active & ~done, ~accepted & (want <= 8), why, UNDERFLOW)
            why, active = _stop(active, nfe + 2 > self.max_nfe, why, TOO_MANY)
        state = _Progress(h, state.error, nfe, state.failures)
        return _finish(self, model, path, y, why, u_of(k).sinh().atan(), before, state, noise)

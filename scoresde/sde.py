r"""Linear Gaussian diffusions: two functions of time turn data into noise.

.. math:: x_t = \alpha(t) x_0 + \sigma(t) \varepsilon, \qquad dx = f(t)\, x\, dt + g(t)\, dw

with f = alpha'/alpha and g^2 = 2 sigma (sigma' - sigma f) (Song et al., arXiv 2011.13456; Kingma et al., arXiv 2107.00630).
Time runs from t_min (data, blurred by sigma(t_min)) to t_max (noise). An SDE gives either pair, (alpha, sigma) or
(f, g) = (drift_coefficient, diffusion); the other is derived, by automatic differentiation or by quadrature:

>>> from dataclasses import dataclass
>>> import torch, scoresde as sd
>>> @dataclass(frozen=True)
... class Trigonometric(sd.SDE):
...     t_max: float = 1.5
...     def alpha(self, t): return torch.cos(t)
...     def sigma(self, t): return torch.sin(t)
>>> Trigonometric().diffusion(0.5) ** 2  # g^2 = 2 tan t
tensor(1.0926, dtype=torch.float64)
>>> sd.check_sde(Trigonometric())
[]
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._quadrature import graded_edges, legendre
from ._tensor import check_positive, expand
from .errors import ConfigError, NonFiniteError, TimeRangeError

MARGINAL, COEFFICIENTS = ("alpha", "sigma"), ("drift_coefficient", "diffusion")


class Level(float):
    """A time that knows its noise level: a float with alpha, sigma and their derivatives, computed once per solve.

    Solvers are handed Levels, so ``t - s`` and ``s.alpha * x0 + s.sigma * eps`` are arithmetic of Python floats.
    ``SDE.level`` gives the same attributes as tensors that broadcast against x where every sample has a time of its own.
    """

    __slots__ = ("alpha", "alpha_dot", "sigma", "sigma_dot")
    alpha: float
    sigma: float
    alpha_dot: float
    sigma_dot: float

    def __new__(cls, t: float, alpha: float, sigma: float, alpha_dot: float, sigma_dot: float) -> Level:
        self = super().__new__(cls, t)
        self.alpha, self.sigma, self.alpha_dot, self.sigma_dot = alpha, sigma, alpha_dot, sigma_dot
        return self

    def __getnewargs__(self) -> tuple[float, ...]:  # type: ignore[override]
        return float(self), self.alpha, self.sigma, self.alpha_dot, self.sigma_dot

    @property
    def f(self) -> float:
        """The drift coefficient f = alpha'/alpha."""
        return self.alpha_dot / self.alpha

    @property
    def g2(self) -> float:
        """The squared diffusion coefficient g^2 = 2 sigma (sigma' - sigma f)."""
        return 2 * self.sigma * (self.sigma_dot - self.sigma * self.f)


class _BatchLevel:
    """What a Level holds, as float64 tensors that broadcast against a batch; derivatives are taken when asked for."""

    def __init__(self, sde: SDE, t: Tensor) -> None:
        self._sde, self._t = sde, t
        self.alpha, self.sigma = sde.alpha(t), sde.sigma(t)

    @functools.cached_property
    def _dots(self) -> tuple[Tensor, Tensor]:
        return self._sde._derivatives(self._t)

    @property
    def alpha_dot(self) -> Tensor:
        return self._dots[0]

    @property
    def sigma_dot(self) -> Tensor:
        return self._dots[1]


class SDE(ABC):
    """A linear Gaussian diffusion dx = f(t) x dt + g(t) dw with x_t = alpha(t) x_0 + sigma(t) eps.

    Subclass it (a frozen dataclass is best) with ``alpha(t)`` and ``sigma(t)``, or with ``drift_coefficient(t)`` and
    ``diffusion(t)``; functions of a tensor of times, elementwise. The methods also take a float, and then answer in float64.
    ``log_snr`` and ``time_of_log_snr`` may be given in closed form. Check yours with ``check_sde``.

    Attributes:
        t_min, t_max: the time range; training and likelihood use all of it.
        t_end: where ``sample`` stops by default (None: at t_min).
        sigma_0: sigma(0) of an SDE given by (f, g).
        default_grid: name of the function in ``scoresde.grid`` that ``sample`` spaces its steps with.
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    t_end: float | None = None
    sigma_0: float = 0.0
    default_grid: ClassVar[str] = "uniform"

    alpha: Callable[..., Tensor]
    sigma: Callable[..., Tensor]
    drift_coefficient: Callable[..., Tensor]
    diffusion: Callable[..., Tensor]
    log_snr: Callable[..., Tensor]
    time_of_log_snr: Callable[..., Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Completes a subclass: derives the pair that it does not give, and lets every function of time take floats."""
        super().__init_subclass__(**kwargs)
        given = {name for name in (*MARGINAL, *COEFFICIENTS) if hasattr(cls, name)}
        if not given.issuperset(MARGINAL) and not given.issuperset(COEFFICIENTS):
            raise ConfigError(
                f"{cls.__name__} defines {sorted(given) or 'none'} of its functions of time: "
                "an SDE needs alpha(t) and sigma(t), or drift_coefficient(t) and diffusion(t)"
            )
        for name, derived in _DERIVED.items():
            function = getattr(cls, name, derived)
            if not hasattr(function, "of_time"):
                setattr(cls, name, _of_time(function))

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The drift f(t) x. x (B, *event), t () or (B,)."""
        t = self._check_time(t)
        return expand(self.drift_coefficient(t).to(x), x) * x

    def marginal(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean alpha(t) x_0, of the shape of x0, and standard deviation sigma(t), of the shape of t, of x_t given x_0."""
        t = self._check_time(t)
        return expand(self.alpha(t).to(x0), x0) * x0, self.sigma(t).to(x0)

    def perturb(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps for standard normal eps of the shape of x0."""
        mean, std = self.marginal(x0, t)
        return mean + expand(std, x0) * eps

    @property
    def prior_std(self) -> float:
        """Standard deviation sigma(t_max) of the prior N(0, prior_std^2 I) that sampling starts from."""
        return float(self.sigma(float(self.t_max)))

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, prior_std^2 I) in nats, float64: (B, *event) -> (B,)."""
        z2 = (x.double().flatten(1) / self.prior_std).square().sum(1)
        return -0.5 * z2 - x[0].numel() * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))

    def levels(self, times: Tensor | Iterable[float]) -> list[Level]:
        """The noise levels of some times, in one float64 computation: what a solver plans with."""
        t = torch.as_tensor(times, dtype=torch.float64, device="cpu").flatten()
        columns = (t, self.alpha(t), self.sigma(t), *self._derivatives(t))
        return [Level(*row) for row in torch.stack([c.expand_as(t) for c in columns], 1).tolist()]

    def level(self, t: Tensor | float, x: Tensor) -> Level | _BatchLevel:
        """The noise level at t, ready to be combined with x: floats for one time, broadcastable tensors for (B,) times.

        Raises TimeRangeError, NonFiniteError (t outside [t_min, t_max], or NaN), ShapeError (t neither () nor (B,)).
        """
        if isinstance(t, Level):
            return t
        t = self._check_time(t)
        if t.ndim == 0:
            return self.levels([float(t)])[0]
        return _BatchLevel(self, expand(t.to(x.device), x).double())

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(t) and sigma'(t)."""
        if type(self).alpha.of_time is _alpha_by_quadrature:  # type: ignore[attr-defined]
            f, g2, sigma = self.drift_coefficient(t), self.diffusion(t).square(), self.sigma(t)
            return f * self.alpha(t), f * sigma + g2 / (2 * sigma)
        return _derivative(self.alpha, t), _derivative(self.sigma, t)

    def _check_time(self, t: Tensor | float) -> Tensor:
        """t as a tensor, inside [t_min, t_max]. A GPU's times are taken on trust: to look at them would stall it."""
        if not isinstance(t, Tensor):
            try:
                t = torch.tensor(float(t), dtype=torch.float64)
            except (TypeError, ValueError):
                raise ConfigError(f"t = {t!r}, expected a number, or a tensor of shape () or (B,)") from None
        if t.device.type == "cpu" and t.numel():
            low, high = (float(v) for v in torch.aminmax(t.detach()))
            if math.isnan(low) or math.isnan(high):
                raise NonFiniteError("t holds NaN: expected times in [t_min, t_max]")
            slack = 1e-6 if t.dtype != torch.float64 else 1e-12  # float32(1e-5) is not 1e-5
            if low < self.t_min * (1 - slack) or high > self.t_max * (1 + slack):
                t_bad = low if low < self.t_min else high
                raise TimeRangeError(
                    f"t = {t_bad:.6g} is outside [t_min, t_max] = [{self.t_min:.6g}, {self.t_max:.6g}] of {self}"
                )
        return t


def _of_time(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Lets a function of a tensor of times take floats (answered in float64) and return plain numbers."""

    @functools.wraps(function)
    def of_time(self: SDE, t: Tensor | float) -> Tensor:
        t = t if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64)
        if not t.is_floating_point():
            t = t.double()
        value = function(self, t)
        return value if isinstance(value, Tensor) else torch.full_like(t, value)

    of_time.of_time = function  # type: ignore[attr-defined]
    return of_time


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function/dt, for a function that is elementwise.

    By reverse mode: the first use of forward mode in a process imports seconds' worth of modules. It is kept for where reverse
    mode does not work, that is under inference_mode and inside the transforms of torch.func.
    """
    if not torch.is_inference_mode_enabled():
        try:
            with torch.enable_grad():
                s = t.detach().clone().requires_grad_()
                value = function(s)
                (slope,) = torch.autograd.grad(value.sum(), s, allow_unused=True) if value.requires_grad else (None,)
            return torch.zeros_like(t) if slope is None else slope
        except RuntimeError:
            pass
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def _f_by_derivative(self: SDE, t: Tensor) -> Tensor:
    """f = alpha'/alpha."""
    return _derivative(self.alpha, t) / self.alpha(t)


def _g_by_derivative(self: SDE, t: Tensor) -> Tensor:
    """g = sqrt(2 sigma (sigma' - sigma f))."""
    sigma = self.sigma(t)
    return (2 * sigma * (_derivative(self.sigma, t) - sigma * self.drift_coefficient(t))).sqrt()


def _alpha_by_quadrature(self: SDE, t: Tensor) -> Tensor:
    """alpha(t) = exp of the integral of f from 0 to t."""
    return _integrals(self, t)[0].exp().to(t.dtype)


def _sigma_by_quadrature(self: SDE, t: Tensor) -> Tensor:
    """sigma(t)^2 = alpha(t)^2 (sigma_0^2 + integral of g^2/alpha^2 from 0 to t)."""
    return _integrals(self, t)[1].sqrt().to(t.dtype)


def _integrals(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """log alpha(t) and sigma(t)^2, float64: what they are at the start of t's panel, and one panel's quadrature from there."""
    edges, log_alpha, variance = (c.to(t.device) for c in _panels(sde))
    t = t.double().contiguous()
    k = (torch.searchsorted(edges, t, right=True) - 1).clamp(0)
    gain, added = _over_panel(sde, edges[k], t - edges[k])
    return log_alpha[k] + gain, variance[k] * (2 * gain).exp() + added


def _over_panel(sde: SDE, start: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the SDE does from start to start + h: log alpha gained, and variance that noise adds."""
    nodes, weights, cumulative = (c.to(h.device) for c in legendre())
    s = start[..., None] + h[..., None] * nodes
    f, g = sde.drift_coefficient(s), sde.diffusion(s)
    gain = h * (f @ weights)
    rest = gain[..., None] - h[..., None] * (f @ cumulative.mT)  # log alpha gained from each node to the end
    return gain, h * ((g * rest.exp()).square() @ weights)


def _panels(sde: SDE) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of panels of [0, t_max], and log alpha and sigma^2 there. Kept, for an SDE that is a value."""
    frozen = dataclasses.is_dataclass(sde) and sde.__dataclass_params__.frozen  # type: ignore[attr-defined]
    fields = dataclasses.fields(sde) if frozen else ()  # type: ignore[arg-type]
    if frozen and all(isinstance(getattr(sde, field.name), (int, float, str, type(None))) for field in fields):
        return _kept_panels(sde)
    return _make_panels(sde)


def _make_panels(sde: SDE) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # its tensors could not be kept for other modes
        edges = graded_edges() * float(sde.t_max)
        gains, added = _over_panel(sde, edges[:-1], edges.diff())
        variance = [torch.tensor(float(sde.sigma_0) ** 2, dtype=torch.float64)]
        for gain, new in zip(gains, added, strict=True):
            variance.append(variance[-1] * (2 * gain).exp() + new)
        return edges, torch.cat([edges[:1], gains.cumsum(0)]), torch.stack(variance)


_kept_panels = functools.lru_cache(maxsize=64)(_make_panels)


def _log_snr(self: SDE, t: Tensor) -> Tensor:
    """log-SNR = 2 log(alpha/sigma)."""
    return 2 * (self.alpha(t).log() - self.sigma(t).log())


def _time_of_log_snr(self: SDE, log_snr: Tensor) -> Tensor:
    """The t in [t_min, t_max] with this log-SNR: bisection, then Newton with d log-SNR/dt = -g^2/sigma^2."""
    target = log_snr.double()
    low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
    for _ in range(24):
        middle = (low * high).sqrt()  # log-SNR is closer to linear in log t than in t
        before = self.log_snr(middle) > target
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    t = (low * high).sqrt()
    for _ in range(4):
        slope = -(self.diffusion(t) / self.sigma(t)).square()
        t = torch.minimum(torch.maximum(t - (self.log_snr(t) - target) / slope, low), high)
    return t.to(log_snr.dtype)


_DERIVED: dict[str, Callable[..., Tensor]] = {
    "alpha": _alpha_by_quadrature,
    "sigma": _sigma_by_quadrature,
    "drift_coefficient": _f_by_derivative,
    "diffusion": _g_by_derivative,
    "log_snr": _log_snr,
    "time_of_log_snr": _time_of_log_snr,
}


def check_range(sde: SDE) -> None:
    """Checks 0 < t_min < t_max < infinity, and t_end within. Raises ConfigError."""
    for name in ("t_min", "t_max"):
        value = getattr(sde, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value!r} of {type(sde).__name__}, expected a finite number: {name} > 0")
    if sde.t_min >= sde.t_max:
        raise ConfigError(f"t_min = {sde.t_min} and t_max = {sde.t_max}: expected t_min < t_max")
    if sde.t_end is not None and not (isinstance(sde.t_end, (int, float)) and 0 < sde.t_end < sde.t_max):
        raise ConfigError(f"t_end = {sde.t_end!r} and t_max = {sde.t_max}: expected 0 < t_end < t_max")


def check_ends(sde: SDE) -> None:
    """Checks that alpha and sigma are numbers to calculate with at both ends of the time range. Raises ConfigError."""
    for t in sde.levels([sde.t_min, sde.t_max]):
        if not (1e-100 < t.alpha < 1e100 and 1e-100 < t.sigma < 1e100):
            raise ConfigError(
                f"alpha = {t.alpha:.3g} and sigma = {t.sigma:.3g} at t = {float(t):.6g} of {sde}: expected numbers between "
                "1e-100 and 1e100; give another t_min or t_max"
            )


@dataclass(frozen=True)
class _LinearBeta:
    """The schedule that VP and sub-VP share: B(t) = beta_min t + (beta_max - beta_min) t^2/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        check_positive(self.beta_min, "beta_min")
        check_positive(self.beta_max, "beta_max")
        if self.beta_min > self.beta_max:
            raise ConfigError(
                f"beta_min = {self.beta_min} and beta_max = {self.beta_max}: expected 0 < beta_min <= beta_max"
            )
        check_range(self)  # type: ignore[arg-type]

    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def inverse(self, B: Tensor) -> Tensor:
        """The t with B(t) = B, in the form without cancellation at small B."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B).sqrt()
        return 2 * B / (self.beta_min + root)


@dataclass(frozen=True)
class VPSDE(_LinearBeta, SDE):
    """Variance preserving: alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)), f = -beta/2, g^2 = beta (2011.13456, eq. 11).

    beta(t) = beta_min + t (beta_max - beta_min), B its integral from 0. Raises ConfigError unless 0 < beta_min <= beta_max.

    >>> import scoresde as sd
    >>> sd.VPSDE().prior_std
    0.9999784...
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()  # expm1: 1 - exp is 1 % off at t = 1e-5 in float32

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.inverse(torch.nn.functional.softplus(-log_snr))  # B = log(1 + sigma^2/alpha^2)


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta, SDE):
    """Sub-VP: alpha = exp(-B/2), sigma = 1 - exp(-B), f = -beta/2, g^2 = beta (1 - exp(-2B)) (2011.13456, eq. 12)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.inverse(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))  # sigma/alpha = 2 sinh(B/2)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (2011.13456, eq. 30).

    sigma(0) = sigma_min: x_0 is the data, x at t = 0 the data blurred by sigma_min. g = sigma sqrt(2 log(sigma_max/sigma_min)).
    Raises ConfigError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        check_range(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return -(0.5 * log_snr + math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class CosineSDE(SDE):
    """Cosine schedule: alpha = cos(pi t/2), sigma = sin(pi t/2), f = -(pi/2) tan(pi t/2), g^2 = pi tan(pi t/2) (2102.09672)."""

    t_min: float = 1e-5
    t_max: float = 0.999
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self)
        _check_below_one(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))  # 1 - t is exact near 1, where cos(pi t/2) loses its digits

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-0.5 * log_snr)) * (2 / math.pi)


@dataclass(frozen=True)
class EDMSDE(SDE):
    """EDM: alpha = 1, sigma = t, f = 0, g^2 = 2 t; time is the noise level, in [sigma_min, sigma_max] (2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    default_grid: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """Rectified flow: alpha = 1 - t, sigma = t, f = -1/(1 - t), g^2 = 2 t/(1 - t) (2209.03003)."""

    t_min: float = 1e-5
    t_max: float = 0.999
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self)
        _check_below_one(self)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    check_positive(sigma_min, "sigma_min")
    check_positive(sigma_max, "sigma_max")
    if sigma_min >= sigma_max:
        raise ConfigError(f"sigma_min = {sigma_min} and sigma_max = {sigma_max}: expected 0 < sigma_min < sigma_max")


def _check_below_one(sde: SDE) -> None:
    if sde.t_max >= 1:
        raise ConfigError(f"t_max = {sde.t_max} of {type(sde).__name__}: expected t_max < 1, since alpha(1) = 0")

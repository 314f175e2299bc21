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

import math
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_floating, theirs
from scoresde.core.doors import checked
from scoresde.core.tensors import expand, transformed
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError, TimeRangeError
from scoresde.sdes.completion import DERIVED, alpha_by_quadrature, function_of_time, time_derivative
from scoresde.sdes.levels import SLACK, BatchLevel, Level

LEAST_SIGNAL = 1e-8  # alpha/sigma at t_max: below it x0 = (x - sigma eps)/alpha has no digits left

MARGINAL, COEFFICIENTS = ("alpha", "sigma"), ("drift_coefficient", "diffusion")


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
        for name, derived in DERIVED.items():
            function = getattr(cls, name, derived)
            if not hasattr(function, "of_time"):
                setattr(cls, name, function_of_time(function))

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The drift f(t) x. x (B, *event), t () or (B,)."""
        t = self._check_time(t)
        return expand(self.drift_coefficient(t).to(x), x) * x

    def marginal(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean alpha(t) x_0, of the shape of x0, and standard deviation sigma(t), of the shape of t, of x_t given x_0."""
        t = self._check_time(t)
        return expand(self.alpha(t).to(x0), x0) * x0, self.sigma(t).to(x0)

    @checked
    def perturb(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps for standard normal eps of the shape of x0."""
        check_floating(x0, "x0")
        check_floating(eps, "eps")
        if eps.shape != x0.shape:
            raise ShapeError(f"eps has shape {tuple(eps.shape)}, expected that of x0, {tuple(x0.shape)}")
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
        t = torch.as_tensor(times, dtype=torch.float64, device=device_of(self)).flatten()
        columns = (t, self.alpha(t), self.sigma(t), *self._derivatives(t))
        return [Level(*row) for row in torch.stack([c.expand_as(t) for c in columns], 1).tolist()]

    def level(self, t: Tensor | float, x: Tensor) -> Level | BatchLevel:
        """The noise level at t, ready to be combined with x: floats for one time, broadcastable tensors for (B,) times.

        Raises TimeRangeError, NonFiniteError (t outside [t_min, t_max], or NaN), ShapeError (t neither () nor (B,)).
        """
        if isinstance(t, Level):
            return t
        t = self._check_time(t)
        if t.ndim == 0 and not self._differentiated(t):
            return self.levels([float(t)])[0]
        t = t.to(x.device)
        return BatchLevel(self, expand(t.expand(x.shape[0]) if t.ndim == 0 else t, x).double())

    def _differentiated(self, t: Tensor) -> bool:
        """Whether there are derivatives in t, or in parameters of this SDE, which floats would lose."""
        if transformed(t):
            return True
        return torch.is_grad_enabled() and (t.requires_grad or self.alpha(t).requires_grad or self.sigma(t).requires_grad)

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(t) and sigma'(t)."""
        if type(self).alpha.of_time is alpha_by_quadrature:  # type: ignore[attr-defined]
            f, g2, sigma = self.drift_coefficient(t), self.diffusion(t).square(), self.sigma(t)
            return f * self.alpha(t), f * sigma + g2 / (2 * sigma)
        return time_derivative(self.alpha, t), time_derivative(self.sigma, t)

    def _check_time(self, t: Tensor | float) -> Tensor:
        """t as a tensor, inside [t_min, t_max]. A GPU's times are taken on trust: to look at them would stall it."""
        if not isinstance(t, Tensor):
            try:
                if isinstance(t, (str, bool)):
                    raise TypeError
                t = torch.tensor(float(t), dtype=torch.float64, device="cpu")
            except (TypeError, ValueError, OverflowError):
                raise ConfigError(f"t = {t!r}, expected a number, or a tensor of shape () or (B,)") from None
        if t.is_complex() or t.layout is not torch.strided or t.is_meta:
            raise DTypeError(f"t has dtype {t.dtype} and layout {t.layout} on {t.device}, expected dense real numbers: times")
        if t.device.type == "cpu" and t.numel() and not transformed(t):
            low, high = (float(v) for v in torch.aminmax(t.detach()))
            if math.isnan(low) or math.isnan(high):
                raise NonFiniteError("t holds NaN: expected times in [t_min, t_max]")
            if low < self.t_min * (1 - SLACK) or high > self.t_max * (1 + SLACK):
                t_bad = low if low < self.t_min else high
                raise TimeRangeError(
                    f"t = {t_bad:.8g} is outside [t_min, t_max] = [{self.t_min:.8g}, {self.t_max:.8g}] of {self}"
                )
        return t


def own_parameters(sde: Any) -> Iterator[torch.nn.Parameter]:
    """The parameters of an SDE that is an nn.Module too; none of all others."""
    return sde.parameters() if isinstance(sde, torch.nn.Module) else iter(())


def device_of(sde: Any) -> torch.device:
    """The device of an SDE's parameters; the CPU if it has none, as all of ours."""
    first = next(own_parameters(sde), None)
    return torch.device("cpu") if first is None else first.device


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
    with theirs(f"{type(sde).__name__}, asked for alpha, sigma and their derivatives at a tensor of times (check_sde says more),"):
        ends = sde.levels([sde.t_min, sde.t_max])
    for t in ends:
        if not (1e-100 < t.alpha < 1e100 and 1e-100 < t.sigma < 1e100):
            raise ConfigError(
                f"alpha = {t.alpha:.3g} and sigma = {t.sigma:.3g} at t = {float(t):.6g} of {sde}: expected numbers between "
                "1e-100 and 1e100; give another t_min or t_max"
            )
    if t.s > 1 / LEAST_SIGNAL:
        raise ConfigError(
            f"alpha/sigma = {1 / t.s:.3g} at t_max = {float(t):.6g} of {sde}, which is zero terminal SNR but for rounding: nothing can be "
            f"divided by alpha there. Give a t_max where alpha/sigma is at least {LEAST_SIGNAL:g}; the prior is the same to that accuracy"
        )

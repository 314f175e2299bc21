"""The diffusions of the literature: VP, sub-VP, VE, cosine, EDM, rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_positive
from scoresde.core.doors import checked
from scoresde.errors import ConfigError
from scoresde.sdes.base import SDE, check_range


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


@checked
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


@checked
@dataclass(frozen=True)
class SubVPSDE(_LinearBeta, SDE):
    """Sub-VP: alpha = exp(-B/2), sigma = 1 - exp(-B), f = -beta/2, g^2 = beta (1 - exp(-2B)) (2011.13456, eq. 12)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.inverse(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))  # sigma/alpha = 2 sinh(B/2)


@checked
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


@checked
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


@checked
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


@checked
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

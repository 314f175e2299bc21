"""Noise levels: times that know alpha, sigma and their derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

SLACK = 1e-6  # relative, of times at the ends of the range: float32(1e-5) is not 1e-5, whatever it is turned into afterwards


class FunctionsOfTime(Protocol):
    """What levels and completion ask of an SDE: its functions of time and their range."""

    t_min: float
    t_max: float
    sigma_0: float
    alpha: Callable[..., Tensor]
    sigma: Callable[..., Tensor]
    drift_coefficient: Callable[..., Tensor]
    diffusion: Callable[..., Tensor]
    log_snr: Callable[..., Tensor]

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    def __hash__(self) -> int: ...


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
    def s(self) -> float:
        """sigma/alpha, the noise level of y = x/alpha = x_0 + s eps."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float:
        """lambda = log(alpha/sigma), half of the log-SNR: it grows from noise to data."""
        return math.log(self.alpha / self.sigma)

    @property
    def f(self) -> float:
        """The drift coefficient f = alpha'/alpha."""
        return self.alpha_dot / self.alpha

    @property
    def g2(self) -> float:
        """The squared diffusion coefficient g^2 = 2 sigma (sigma' - sigma f)."""
        return 2 * self.sigma * (self.sigma_dot - self.sigma * self.f)


class BatchLevel:
    """What a Level holds, as float64 tensors that broadcast against a batch; derivatives are taken when asked for."""

    def __init__(self, sde: FunctionsOfTime, t: Tensor) -> None:
        self._sde, self._t = sde, t
        self.alpha, self.sigma = sde.alpha(t), sde.sigma(t)

    @functools.cached_property
    def _dots(self) -> tuple[Tensor, Tensor]:
        return self._sde._derivatives(self._t)

    @property
    def s(self) -> Tensor:
        return self.sigma / self.alpha

    @property
    def lam(self) -> Tensor:
        return (self.alpha / self.sigma).log()

    @property
    def alpha_dot(self) -> Tensor:
        return self._dots[0]

    @property
    def sigma_dot(self) -> Tensor:
        return self._dots[1]


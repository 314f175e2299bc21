"""Problems with known answers: exact targets, the six SDEs, closed-form paths, references and power calculations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import scoresde as sd
from scoresde.core.streams import CORRECTOR, STEP
from scoresde.solvers.loop import solve

SDES = (sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow())


B0, B1, SMIN, SMAX = 0.1, 20.0, 0.01, 50.0
PI = math.pi


def beta(t):
    return B0 + (B1 - B0) * t


def B(t):
    return B0 * t + (B1 - B0) * t * t / 2


# (alpha, sigma, f, g^2), from the papers, in a form of our own: exp where the package has expm1, cos where it has sin, ...
CLOSED = {
    "VPSDE": (
        lambda t: (-B(t) / 2).exp(),
        lambda t: (2 * (B(t) / 2).sinh() * (-B(t) / 2).exp()).sqrt(),
        lambda t: -beta(t) / 2,
        beta,
    ),
    "SubVPSDE": (
        lambda t: (-B(t) / 2).exp(),
        lambda t: 2 * (B(t) / 2).sinh() * (-B(t) / 2).exp(),
        lambda t: -beta(t) / 2,
        lambda t: beta(t) * 2 * B(t).sinh() * (-B(t)).exp(),
    ),
    "VESDE": (
        torch.ones_like,
        lambda t: SMIN ** (1 - t) * SMAX**t,
        torch.zeros_like,
        lambda t: SMIN ** (2 - 2 * t) * SMAX ** (2 * t) * 2 * math.log(SMAX / SMIN),
    ),
    "CosineSDE": (
        lambda t: (PI * t / 2).cos(),
        lambda t: (PI * t / 2).sin(),
        lambda t: -PI / 2 * (PI * t / 2).tan(),
        lambda t: PI * (PI * t / 2).tan(),
    ),
    "EDMSDE": (torch.ones_like, lambda t: t, torch.zeros_like, lambda t: 2 * t),
    "RectifiedFlow": (lambda t: 1 - t, lambda t: t, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
}


def name(sde: sd.SDE) -> str:
    return type(sde).__name__


def gaussian(dim: int = 2) -> sd.GaussianMixture:
    """One Gaussian with a full covariance (eigenvalues spread from about 0.04 to 1) and a mean off the origin."""
    return correlated_mixture(dim, 1, seed=1)


def two_modes(dim: int = 2) -> sd.GaussianMixture:
    """Two well separated modes of different widths and weights."""
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[0, 0], means[1, 0], means[1, 1] = -1.0, 1.0, 0.5
    return sd.GaussianMixture(means, torch.tensor([0.3, 0.4], dtype=torch.float64), torch.tensor([0.4, 0.6]))


def correlated_mixture(dim: int, components: int = 3, seed: int = 0) -> sd.GaussianMixture:
    """Full covariances: a non-diagonal Jacobian everywhere."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(components, dim, dim, dtype=torch.float64, generator=generator) * 0.5 / dim**0.5
    means = 0.7 * torch.randn(components, dim, dtype=torch.float64, generator=generator)
    covariances = root @ root.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    return sd.GaussianMixture(means, covariances, torch.arange(1.0, components + 1))


def image_mixture() -> sd.GaussianMixture:
    """A mixture on images of shape (2, 3, 3), diagonal covariances."""
    generator = torch.Generator().manual_seed(3)
    means = 0.5 * torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=generator)
    stds = 0.2 + 0.3 * torch.rand(4, 2, 3, 3, dtype=torch.float64, generator=generator)
    return sd.GaussianMixture(means, stds)


def marginal_sample(target: sd.GaussianMixture, sde: sd.SDE, t: float, n: int, seed: int = 0) -> Tensor:
    """Exact draws from p_t."""
    x0 = target.sample(n, seed=seed)
    eps = torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(seed + 1))
    return sde.alpha(t) * x0 + sde.sigma(t) * eps


def gaussian_path(target: sd.GaussianMixture, sde: sd.SDE, x: Tensor, t: float, s: float) -> Tensor:
    """The probability-flow ODE of a single Gaussian, solved: (x - alpha m)/sqrt(alpha^2 c + sigma^2) is constant."""
    basis, c, mean = target.basis[0], target.variances[0], target.means[0]
    z = ((x - sde.alpha(t) * mean) @ basis) / (sde.alpha(t) ** 2 * c + sde.sigma(t) ** 2).sqrt()
    return sde.alpha(s) * mean + (z * (sde.alpha(s) ** 2 * c + sde.sigma(s) ** 2).sqrt()) @ basis.T


def reference_path(model: sd.ExactModel, x: Tensor, times: Tensor) -> Tensor:
    """The probability-flow ODE to 1e-12 by an eighth-order method that shares nothing with the solvers under test."""
    return sd.sample(model, x_init=x, times=times[[0, -1]], solver=sd.TorchDiffEq("dopri8", rtol=1e-12, atol=1e-13), batch_size=len(x))


HIGH, LOW = -1.2, -0.2  # lam: in the middle of things, and not symmetric, where errors cancel


def graded(sde, n, high=HIGH, low=LOW):
    """n equal steps in lam, of which the first is cut in three: the low orders of the start, over steps of n^-2 and n^(-4/3)."""
    cuts = torch.tensor([0.0, 0.05 / n, 0.05**0.5 * n ** (-1 / 3)], dtype=torch.float64)
    u = torch.cat([cuts, torch.arange(1, n + 1, dtype=torch.float64)]) / n
    return sde.time_of_log_snr(2 * (high + (low - high) * u))


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence on the last doubling."""
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])


def z_limit(tests: int, family_alpha: float = 1e-6) -> float:
    """Two-sided normal threshold for a family of tests, by Bonferroni."""
    return float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - family_alpha / (2 * tests), dtype=torch.float64)))


# ---- laws on Gaussian data: every solver is affine in x_T and its noise, x = a + b x_T + sum of c_i z_i


class Unit:
    """Noise that is 1 in one row a draw: row 2 + k for the k-th of all (step, stream) that are asked for, 0 in the rows before.

    Asked twice for the same stream of a step, it answers twice with the same row: draws that collide do not add in variance.
    """

    def __init__(self, rows: int, fresh: bool = False) -> None:
        self.rows, self.asked, self.fresh = rows, {}, fresh
        self.ids = np.arange(rows)

    def at(self, step):
        def noise(stream=STEP):
            z = torch.zeros(self.rows, 1, dtype=torch.float64)
            z[2 + self.asked.setdefault((step, stream, len(self.asked) if self.fresh else None), len(self.asked))] = 1.0
            return z

        return noise


def law(solver, sde, times, mean, c, draws=1, fresh=False):
    """Mean and variance at the end, exactly, of data of N(mean, c), started from the exact law at times[0]."""
    target = sd.GaussianMixture(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([c**0.5], dtype=torch.float64))
    levels = sde.levels(times)
    x = torch.zeros((len(levels) + 50) * draws, 1, dtype=torch.float64)
    x[1] = 1.0
    with torch.no_grad():
        *_, (_, _, y) = solve(sd.ExactModel(target, sde), solver, x, levels, Unit(len(x), fresh))
    offset = float(y[0, 0])
    slopes = (y[1:, 0] - offset).tolist()
    variance = slopes[0] ** 2 * (levels[0].alpha ** 2 * c + levels[0].sigma ** 2) + sum(r**2 for r in slopes[1:])
    return offset + slopes[0] * levels[0].alpha * mean, variance


def law_error(solver, sde, n, mean=0.4, c=0.3, draws=1):
    """Error of the mean and of the variance against the exact marginal, in units of the exact std and variance."""
    times = sd.grid.log_snr(sde, n)
    found, end = law(solver, sde, times, mean, c, draws), sde.levels(times)[-1]
    variance = end.alpha**2 * c + end.sigma**2
    return abs(found[0] - end.alpha * mean) / variance**0.5 + abs(found[1] / variance - 1)


@dataclass(frozen=True)
class LinearLangevin(sd.Corrector):
    """A corrector that is affine in x and z, of two draws: its step does not depend on norms."""

    h: float

    def correct(self, model, x, t, noise):
        for i in range(2):
            h = self.h * t.sigma**2
            x = x + h * model.score(x, t) + math.sqrt(2 * h) * noise(CORRECTOR + i)
        return x

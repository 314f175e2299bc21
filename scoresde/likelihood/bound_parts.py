"""The terms of the variational bound that are known in closed form, and the times at which the rest is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scoresde.core.streams import BOUND_LAST, BOUND_NOISE, BOUND_TIMES
from scoresde.core.tensors import expand, like
from scoresde.likelihood.clock import Clock

if TYPE_CHECKING:
    from scoresde.core.noise import Noise
    from scoresde.data.transform import Transform
    from scoresde.models.base import ScoreModel
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level


class Ends(NamedTuple):
    """What is computed once."""

    first: Level
    last: Level
    reference: GaussianReference | None
    prior: GaussianReference | None


def prior_term(x: Tensor, ends: Ends) -> Tensor:
    """KL of N(alpha x, sigma^2 I) at t_max from the prior, in nats."""
    t = ends.last
    if ends.prior is None:
        return 0.5 * (t.alpha / t.sigma * x.double()).square().flatten(1).sum(1)
    here = ends.prior.to(x.double())
    ratio = 1 + (t.alpha / t.sigma) ** 2 * here.variance
    r = t.alpha / t.sigma * here.analyse(x.double() - here.mean)
    return 0.5 * (ratio.log() + (1 + r.square()) / ratio - 1).expand(r.shape).flatten(1).sum(1)


def diffusion_term(model: ScoreModel, x: Tensor, ends: Ends, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
    """1/2 the integral of E|eps - eps_hat|^2 over the log-SNR, and the standard error of this estimate, (B,), in nats."""
    found = []
    uniform = replace(noise, event_shape=(1,), dtype=torch.float64).uniform
    u = torch.stack([(j + uniform(BOUND_TIMES, j)[:, 0]) / draws for j in range(draws)])
    for j, (t, slope) in enumerate(zip(*bound_times(model.sde, u, ends), strict=True)):
        eps = noise.normal(BOUND_NOISE, j)
        level: Any = model.sde.level(t, x)
        x_t = like(level.alpha, x) * x + like(level.sigma, x) * eps
        # the rounding of x_t is noise that nobody drew: 1e-7/sigma of it, in float32
        drawn = (x_t.double() - level.alpha * x.double()) / level.sigma
        error = (drawn - model.predict(x_t, t)[1].double()).square().flatten(1).sum(1)
        found.append(0.5 * slope * (error - reference_error(x, drawn, level.s.flatten(), ends.reference)))
    estimates = torch.stack(found, 1)
    spread = estimates.std(1) / math.sqrt(draws) if draws > 1 else torch.full_like(estimates[:, 0], math.nan)
    return reference_integral(x, ends) + estimates.mean(1), spread


def bound_times(sde: SDE, u: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Times of u in [0, 1), and the log-SNR that a unit of u is there, in the shape of u."""
    low, high = (2 * t.lam for t in (ends.last, ends.first))
    if ends.reference is None:
        snr, slope = low + (high - low) * u, torch.full_like(u, high - low)
    else:
        clock = Clock.of(ends.reference)
        log_s = clock.log_s(u, ends.first, ends.last)
        snr = -2 * log_s
        slope = 2 * (clock.time(ends.last) - clock.time(ends.first)) / clock.rate(log_s)
    return sde.time_of_log_snr(snr).clamp(float(ends.first), float(ends.last)), slope


def reference_error(x: Tensor, eps: Tensor, s: Any, reference: GaussianReference | None) -> Tensor:
    """|eps - eps_ref|^2 with U^T (eps - eps_ref) = (c U^T eps - s r)/(c + s^2); |eps|^2 without a reference. (B,)"""
    if reference is None:
        return eps.double().square().flatten(1).sum(1)
    here = reference.to(x.double())
    r, e = here.analyse(x.double() - here.mean), here.analyse(eps.double())
    s = expand(s, r) if isinstance(s, Tensor) else s
    return ((here.variance * e - s * r) / (here.variance + s**2)).square().flatten(1).sum(1)


def reference_integral(x: Tensor, ends: Ends) -> Tensor:
    """The diffusion part of the reference itself, in closed form, (B,)."""
    u, v = (t.s ** 2 for t in (ends.first, ends.last))
    if ends.reference is None:
        return torch.full((len(x),), 0.5 * x[0].numel() * math.log(v / u), dtype=torch.float64, device=x.device)
    here = ends.reference.to(x.double())
    c, r2 = here.variance, here.analyse(x.double() - here.mean).square()
    whole = (v / (c + v)).log() - (u / (c + u)).log() + (c - r2) * (1 / (c + v) - 1 / (c + u))
    return 0.5 * whole.flatten(1).sum(1)


def last_term(model: ScoreModel, x: Tensor, ends: Ends, noise: Noise, transform: Transform | None) -> Tensor:
    """-log of the density of x, or of the probability of its level, given a draw of x_t at t_min: (B,), in nats."""
    t, D = ends.first, x[0].numel()
    s = t.s
    eps = noise.normal(BOUND_LAST)
    x_t = t.alpha * x + t.sigma * eps
    drawn = (x_t.double() - t.alpha * x.double()) / t.sigma
    x0, guess = model.predict(x_t, t)
    if transform is None:
        error = (drawn - guess.double()).square().flatten(1).sum(1) - reference_error(x, drawn, s, ends.reference)
        return 0.5 * D * math.log(2 * math.pi * s**2) + 0.5 * (error + expected_error(x, s, ends.reference))
    k, half = transform.quantize(x), transform.bin_width / 2
    away = x.double() - x0.double()  # the middle of the bin from the middle of the normal
    inside = torch.where(k == 0, -math.inf, (away - half) / s), torch.where(k == transform.levels - 1, math.inf, (away + half) / s)
    # in the tail on whose side both ends are: no cancellation
    flip = inside[0] > 0
    low, high = torch.where(flip, -inside[1], inside[0]), torch.where(flip, -inside[0], inside[1])
    a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -(b + torch.log1p(-(a - b).exp())).flatten(1).sum(1)


def expected_error(x: Tensor, s: float, reference: GaussianReference | None) -> Tensor:
    """The mean of ``reference_error`` over eps, (B,)."""
    if reference is None:
        return torch.full((len(x),), float(x[0].numel()), dtype=torch.float64, device=x.device)
    here = reference.to(x.double())
    r2, c = here.analyse(x.double() - here.mean).square(), here.variance
    return ((c.square() + s**2 * r2) / (c + s**2).square()).flatten(1).sum(1)

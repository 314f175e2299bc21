r"""The variational bound on log p, of the generative process that runs the reverse SDE and then draws x from N(D(x_t), s^2 I) at t_min.

.. math:: -\log p(x) \le \mathrm{KL}(q(x_T|x)\,\|\,\mathrm{prior}) + \tfrac12 \int E|\varepsilon - \hat\varepsilon(x_t, t)|^2\, d\Lambda
          + E[-\log N(x; D, s^2 I)]_{t_\mathrm{min}}

with Lambda the log-SNR, s = sigma/alpha and D = E[x_0|x_t] (2107.00630, eq. 11-15; 2101.09258). It is the likelihood of the SDE, an upper
bound on -log p that holds for any network, and equal to -log p of the data for an exact one.

The integral is that of the Gaussian reference, which is known, plus that of the difference, which is estimated:

.. math:: \tfrac12 \int E|\varepsilon - \varepsilon_\mathrm{ref}|^2 d\Lambda
          = \tfrac12 \sum_i \Big[\log\frac{u}{c_i + u} + \frac{c_i - r_i^2}{c_i + u}\Big]_{u = s^2(t_\mathrm{min})}^{s^2(t_\mathrm{max})},
          \qquad r = U^T (x - m)

The difference fades at both ends, and times are stratified, uniform in the w of ``_density.Clock``. Without a reference it is
c = infinity, that is eps_ref = 0, and times are uniform in the log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._bars import bar as _progress
from ._density import Clock
from ._log_prob import _check_scale, mean, mean_error, root_sum
from ._tensor import check_data, check_positive_int, expand, like
from .errors import ConfigError
from .model import ScoreModel, check_same_kind, count_evaluations, inference
from .noise import Noise, check_ids, check_seed
from .reference import GaussianReference
from .reference_solver import model_reference
from .report import Report, Term, fingerprint, settings_of
from .sampling import _bind, _check_model, default_batch_size
from .sde import SDE, Level
from .transform import Transform

NOISE, TIMES, LAST = (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3  # streams


@dataclass(frozen=True)
class Elbo:
    """A variational bound: in bits per dimension of integer levels an upper one, in nats of floats a lower one on log p.

    Attributes:
        mean: over samples, in ``unit``.
        std_error: of the mean over samples, of the draws of time and noise too.
        per_sample: (B,) float64.
        prior, diffusion, reconstruction: means of the three parts of the bound on -log p, in nats a sample.
        draw_std_error: standard error of the mean over the draws of time and noise alone.
        unit: "bits/dim" or "nats".
        nfe: network calls, counted, over all batches.
        settings: what it was computed with.
    """

    mean: float
    std_error: float
    per_sample: Tensor
    prior: float
    diffusion: float
    reconstruction: float
    draw_std_error: float
    unit: str
    nfe: int
    settings: dict[str, Any]

    def report(self) -> Report:
        """The bound with its parts and standard errors: a table to print, ``to_json`` to keep."""
        terms = (
            Term("data", self.std_error, "standard error over the samples (of time and noise too)"),
            Term("draws", self.draw_std_error, f"standard error over {self.settings['draws']} times and noises a sample"),
            Term("prior part", self.prior, "KL at t_max, nats a sample"),
            Term("diffusion part", self.diffusion, "nats a sample"),
            Term("reconstruction part", self.reconstruction, f"at t_min ({self.settings['reconstruction']}), nats a sample"),
        )
        return Report(self.mean, self.std_error, self.unit, terms, self.settings, tuple(self.per_sample.tolist()))

    def __str__(self) -> str:
        return f"bound {self.mean:.4f} +- {self.std_error:.4f} {self.unit} ({len(self.per_sample)} samples)"


class _Ends(NamedTuple):
    """What is computed once."""

    first: Level
    last: Level
    reference: GaussianReference | None
    prior: GaussianReference | None


def elbo(
    model: ScoreModel,
    data: Tensor,
    transform: Transform | None = None,
    *,
    draws: int = 16,
    prior: str | None = None,
    reconstruction: str | None = None,
    t_min: float | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    check_scale: bool = True,
    progress: bool = False,
    **cond: Any,
) -> Elbo:
    """The variational bound of integer levels (bits per dimension, with their ``transform``) or of floats (nats).

    Takes draws + 1 network calls a batch, no derivatives.

    Args:
        model: a ScoreModel.
        data: integers (B, *event_shape) in 0..K-1, for "density" dequantized once, by the uniform noise of ``bits_per_dim`` of the same
            seed; or model-space floats.
        transform: the data's ``Transform``, for integers.
        draws: times and noises for each sample, one time in each of as many equal parts.
        prior: None for N(0, prior_std^2 I) at t_max; "reference" for the moments of the model's reference there.
        reconstruction: "density" is N(x; D, s^2 I) at the dequantized x; "levels" the probability that N(D, s^2 I) gives to the bin of
            each level, with x in its middle: a bound on discrete data without dequantization, for an s of about a third of a bin or
            less. None is what the model was trained for: "levels" for integers and a ``dequantization`` of "normal" of the model's
            transform (of the one given, for a model without), else "density"; ``settings`` tell which.
        t_min: where the process ends; None: the SDE's t_min.
        seed, ids: the draws of sample i are a function of (seed, ids[i]); ids None is 0..B-1.
        batch_size, check_scale, progress, **cond: as for ``log_prob``.

    Raises:
        ConfigError: integers without a transform, a wrong argument.
        DTypeError, ShapeError, NonFiniteError, DeviceError, ScaleError: wrong data.
    """
    _check_model(model)
    sde = model.sde
    if transform is None and isinstance(data, Tensor) and not data.is_floating_point():
        raise ConfigError("integer levels need their transform, scoresde.Transform(levels=256) for 8-bit images; floats have none")
    id_array = check_ids(ids, len(data))
    check_seed(seed)
    check_positive_int(draws, "draws")
    if reconstruction is None:
        trained = getattr(getattr(model, "transform", None) or transform, "dequantization", "uniform")
        reconstruction = "levels" if trained == "normal" and transform is not None else "density"
    if reconstruction not in ("density", "levels") or (reconstruction == "levels" and transform is None):
        raise ConfigError(f"reconstruction = {reconstruction!r}, expected None, 'density', or 'levels' for integers with their transform")
    if prior not in (None, "reference"):
        raise ConfigError(f"prior = {prior!r}, expected None or 'reference'")
    if transform is None:
        x = data
    elif reconstruction == "levels":
        x = transform.center(data, model.dtype).to(model.device)
    else:
        x = transform.dequantize(data, seed, id_array, 0, model.dtype, model.device)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    if check_scale:
        _check_scale(x, getattr(model, "transform", None))
    first, last = sde.levels([sde.t_min if t_min is None else t_min, sde.t_max])
    if not sde.t_min <= first < last:
        raise ConfigError(f"t_min = {t_min}, expected from {sde.t_min:g} to below {sde.t_max:g}")
    ends = _Ends(first, last, model.reference, model_reference(model) if prior == "reference" else None)
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    n, D = len(x), x[0].numel()
    parts: list[Tensor] = []
    with inference(model), count_evaluations(model) as calls, _progress(progress, -(-n // size), "bound") as advance:
        for start in range(0, n, size):
            rows = np.arange(start, min(start + size, n))
            noise = Noise(seed, id_array[rows], model.event_shape, x.dtype, x.device)
            bound = _bind(model, cond, rows, n, x.device)
            part = x[start : start + size]
            diffusion, error = _diffusion(bound, part, ends, noise, draws)
            inside = None if reconstruction == "density" or transform is None else transform
            parts.append(torch.stack([_prior_part(part, ends), diffusion, _last(bound, part, ends, noise, inside), error]))
            advance()
    prior_part, diffusion, last_part, error = torch.cat(parts, 1).cpu()
    nats = prior_part + diffusion + last_part
    discrete = reconstruction == "levels"
    bits = 1 / (D * math.log(2))
    offset = 0.0 if transform is None or discrete else transform.bits_offset
    per_sample = -nats if transform is None else bits * nats + offset
    settings = settings_of(model, x) | {
        "bound": "variational",
        "draws": draws,
        "prior": "standard" if prior is None else prior,
        "reconstruction": reconstruction,
        "t_min": float(first),
        "t_max": sde.t_max,
        "seed": seed,
        "nfe": calls.forward,
    }
    if transform is not None:
        settings |= {"dequantization": "none" if discrete else "uniform", "levels": transform.levels, "data": fingerprint([data])}
    return Elbo(
        mean(per_sample),
        mean_error(per_sample),
        per_sample,
        mean(prior_part),
        mean(diffusion),
        mean(last_part),
        (1 if transform is None else bits) * root_sum(error),
        "nats" if transform is None else "bits/dim",
        calls.forward,
        settings,
    )


def _prior_part(x: Tensor, ends: _Ends) -> Tensor:
    """KL of N(alpha x, sigma^2 I) at t_max from the prior, in nats."""
    t = ends.last
    if ends.prior is None:
        return 0.5 * (t.alpha / t.sigma * x.double()).square().flatten(1).sum(1)
    here = ends.prior.to(x.double())
    ratio = 1 + (t.alpha / t.sigma) ** 2 * here.variance
    r = t.alpha / t.sigma * here.analyse(x.double() - here.mean)
    return 0.5 * (ratio.log() + (1 + r.square()) / ratio - 1).expand(r.shape).flatten(1).sum(1)


def _diffusion(model: ScoreModel, x: Tensor, ends: _Ends, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
    """1/2 the integral of E|eps - eps_hat|^2 over the log-SNR, and the standard error of this estimate, (B,), in nats."""
    found = []
    uniform = replace(noise, event_shape=(1,), dtype=torch.float64).uniform
    u = torch.stack([(j + uniform(TIMES, j)[:, 0]) / draws for j in range(draws)])
    for j, (t, slope) in enumerate(zip(*_times(model.sde, u, ends), strict=True)):
        eps = noise.normal(NOISE, j)
        level: Any = model.sde.level(t, x)
        x_t = like(level.alpha, x) * x + like(level.sigma, x) * eps
        # the rounding of x_t is noise that nobody drew: 1e-7/sigma of it, in float32
        drawn = (x_t.double() - level.alpha * x.double()) / level.sigma
        error = (drawn - model.predict(x_t, t)[1].double()).square().flatten(1).sum(1)
        found.append(0.5 * slope * (error - _reference_error(x, drawn, (level.sigma / level.alpha).flatten(), ends.reference)))
    estimates = torch.stack(found, 1)
    spread = estimates.std(1) / math.sqrt(draws) if draws > 1 else torch.full_like(estimates[:, 0], math.nan)
    return _reference_integral(x, ends) + estimates.mean(1), spread


def _times(sde: SDE, u: Tensor, ends: _Ends) -> tuple[Tensor, Tensor]:
    """Times of u in [0, 1), and the log-SNR that a unit of u is there, in the shape of u."""
    low, high = (2 * math.log(t.alpha / t.sigma) for t in (ends.last, ends.first))
    if ends.reference is None:
        snr, slope = low + (high - low) * u, torch.full_like(u, high - low)
    else:
        clock = Clock.of(ends.reference)
        log_s = clock.log_s(u, ends.first, ends.last)
        snr = -2 * log_s
        slope = 2 * (clock.time(ends.last) - clock.time(ends.first)) / clock.rate(log_s)
    return sde.time_of_log_snr(snr).clamp(float(ends.first), float(ends.last)), slope


def _reference_error(x: Tensor, eps: Tensor, s: Any, reference: GaussianReference | None) -> Tensor:
    """|eps - eps_ref|^2 with U^T (eps - eps_ref) = (c U^T eps - s r)/(c + s^2); |eps|^2 without a reference. (B,)"""
    if reference is None:
        return eps.double().square().flatten(1).sum(1)
    here = reference.to(x.double())
    r, e = here.analyse(x.double() - here.mean), here.analyse(eps.double())
    s = expand(s, r) if isinstance(s, Tensor) else s
    return ((here.variance * e - s * r) / (here.variance + s**2)).square().flatten(1).sum(1)


def _reference_integral(x: Tensor, ends: _Ends) -> Tensor:
    """The diffusion part of the reference itself, in closed form, (B,)."""
    u, v = ((t.sigma / t.alpha) ** 2 for t in (ends.first, ends.last))
    if ends.reference is None:
        return torch.full((len(x),), 0.5 * x[0].numel() * math.log(v / u), dtype=torch.float64, device=x.device)
    here = ends.reference.to(x.double())
    c, r2 = here.variance, here.analyse(x.double() - here.mean).square()
    whole = (v / (c + v)).log() - (u / (c + u)).log() + (c - r2) * (1 / (c + v) - 1 / (c + u))
    return 0.5 * whole.flatten(1).sum(1)


def _last(model: ScoreModel, x: Tensor, ends: _Ends, noise: Noise, transform: Transform | None) -> Tensor:
    """-log of the density of x, or of the probability of its level, given a draw of x_t at t_min: (B,), in nats."""
    t, D = ends.first, x[0].numel()
    s = t.sigma / t.alpha
    eps = noise.normal(LAST)
    x_t = t.alpha * x + t.sigma * eps
    drawn = (x_t.double() - t.alpha * x.double()) / t.sigma
    x0, guess = model.predict(x_t, t)
    if transform is None:
        error = (drawn - guess.double()).square().flatten(1).sum(1) - _reference_error(x, drawn, s, ends.reference)
        return 0.5 * D * math.log(2 * math.pi * s**2) + 0.5 * (error + _expected_error(x, s, ends.reference))
    k, half = transform.quantize(x), transform.bin_width / 2
    away = x.double() - x0.double()  # the middle of the bin from the middle of the normal
    inside = torch.where(k == 0, -math.inf, (away - half) / s), torch.where(k == transform.levels - 1, math.inf, (away + half) / s)
    # in the tail on whose side both ends are: no cancellation
    flip = inside[0] > 0
    low, high = torch.where(flip, -inside[1], inside[0]), torch.where(flip, -inside[0], inside[1])
    a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -(b + torch.log1p(-(a - b).exp())).flatten(1).sum(1)


def _expected_error(x: Tensor, s: float, reference: GaussianReference | None) -> Tensor:
    """The mean of ``_reference_error`` over eps, (B,)."""
    if reference is None:
        return torch.full((len(x),), float(x[0].numel()), dtype=torch.float64, device=x.device)
    here = reference.to(x.double())
    r2, c = here.analyse(x.double() - here.mean).square(), here.variance
    return ((c.square() + s**2 * r2) / (c + s**2).square()).flatten(1).sum(1)

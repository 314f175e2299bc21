"""Is an SDE what it says? ``check_sde`` verifies everything that the rest of the library relies on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.core.checks import check_integer
from scoresde.core.doors import checked
from scoresde.errors import ConfigError
from scoresde.sdes.base import check_range

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE


@checked
def check_sde(sde: SDE, n: int = 1000) -> list[str]:
    """Checks that an SDE is what it says; returns one sentence a finding, an empty list when all is well.

    On n log-spaced times of [t_min, t_max]: values are finite and in range, alpha' = f alpha and
    (sigma^2)' = 2 f sigma^2 + g^2 (to 1e-6 of their largest term), log-SNR = 2 log(alpha/sigma) falls, time_of_log_snr inverts
    it, float32 agrees with float64 to 1e-6 relative, and the prior is N(0, sigma(t_max)^2 I) with little of the data left.
    """
    check_integer(n, "n", 2, 10_000_000)
    try:
        check_range(sde)
    except ConfigError as error:
        return [str(error)]
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), n, dtype=torch.float64, device="cpu")
    t = t.clamp(sde.t_min, sde.t_max)
    names = ("alpha", "sigma", "drift_coefficient", "diffusion", "log_snr")
    values, findings = {}, []
    for name in names:
        try:
            values[name] = v = getattr(sde, name)(t)
        except Exception as error:
            findings.append(f"{name}(t) raises {type(error).__name__} for t of shape {tuple(t.shape)}: {error}.")
            break
        if v.shape != t.shape:
            findings.append(f"{name}(t) has shape {tuple(v.shape)} for t of shape {tuple(t.shape)}: it must be elementwise.")
        elif not v.isfinite().all():
            findings.append(f"{name}(t) is not finite at t = {float(t[~v.isfinite()][0]):.4g}.")
    if findings:
        return findings
    alpha, sigma, _, g, log_snr = values.values()

    def report(error: Tensor, tolerance: float, sentence: str) -> None:
        worst = int(error.argmax())
        if not error[worst] <= tolerance:
            findings.append(sentence + f": off by {float(error[worst]):.2g} relative at t = {float(t[worst]):.4g}.")

    if (alpha <= 0).any() or (sigma <= 0).any():
        findings.append("alpha and sigma must be positive on [t_min, t_max].")
        return findings
    if (g < 0).any():
        findings.append("diffusion(t) is negative somewhere: g must be at least 0.")

    # derivatives by differences of the SDE's own alpha and sigma (five-point stencil, inside the time range)
    h = 2e-3 * torch.minimum(t, torch.tensor(sde.t_max, dtype=t.dtype, device="cpu"))
    c = t.clamp(sde.t_min + 2 * h, sde.t_max - 2 * h)

    def slope(function: Callable[[Tensor], Tensor]) -> Tensor:
        return (8 * (function(c + h) - function(c - h)) - (function(c + 2 * h) - function(c - 2 * h))) / (12 * h)

    f_c, g_c, alpha_c, sigma_c = sde.drift_coefficient(c), sde.diffusion(c), sde.alpha(c), sde.sigma(c)
    # what a difference can resolve where alpha hardly moves: rounding of alpha over h
    rounding = 1e-15 / h
    alpha_dot = slope(sde.alpha)
    scale = torch.maximum(alpha_dot.abs(), (f_c * alpha_c).abs()) + 1e6 * rounding * alpha_c + 1e-300
    report((alpha_dot - f_c * alpha_c).abs() / scale, 1e-6, "alpha' = f alpha does not hold")
    variance_dot = slope(lambda s: sde.sigma(s).square())
    expected = 2 * f_c * sigma_c**2 + g_c**2
    scale = torch.maximum(variance_dot.abs(), (2 * f_c * sigma_c**2).abs() + g_c**2) + 1e6 * rounding * sigma_c**2
    report((variance_dot - expected).abs() / scale, 1e-6, "(sigma^2)' = 2 f sigma^2 + g^2 does not hold")

    closed = 2 * (alpha.log() - sigma.log())
    report((log_snr - closed).abs() / closed.abs().clamp_min(1), 1e-6, "log_snr = 2 log(alpha/sigma) does not hold")
    rises = (log_snr.diff() >= 0).nonzero()
    if len(rises):
        findings.append(f"log_snr does not fall between t = {float(t[rises[0]]):.4g} and the next of {n} times.")
    else:
        back = sde.log_snr(sde.time_of_log_snr(closed).clamp(sde.t_min, sde.t_max))
        report((back - closed).abs() / closed.abs().clamp_min(1), 1e-6, "time_of_log_snr does not invert log_snr")

    t32 = t.float().clamp_min(sde.t_min)
    for name in ("alpha", "sigma", "diffusion"):
        function = getattr(sde, name)
        low, high = function(t32), function(t32.double())
        if low.dtype != torch.float32:
            findings.append(f"{name}(t) answers {low.dtype} for t in torch.float32: it must keep the dtype.")
        gap = (low.double() - high).abs() / high.abs().clamp_min(1e-30)
        report(gap, 1e-6, f"{name}(t) in float32 differs from float64 (1 - exp where expm1 is due?)")

    sigma_T = float(sde.sigma(float(sde.t_max)))
    if abs(sde.prior_std - sigma_T) > 1e-6 * sigma_T:
        findings.append(f"prior_std = {sde.prior_std:.6g}, but sigma(t_max) = {sigma_T:.6g}.")
    x = torch.linspace(-2, 2, 6, dtype=torch.float64, device="cpu").view(2, 3) * sigma_T
    normal = torch.distributions.Normal(x.new_zeros(()), x.new_tensor(sigma_T)).log_prob(x).sum(1)
    report((sde.prior_log_prob(x) - normal).abs(), 1e-6, "prior_log_prob is not log N(0, sigma(t_max)^2 I)")
    if float(log_snr[-1]) > -4:
        findings.append(
            f"alpha/sigma = {math.exp(float(log_snr[-1]) / 2):.3g} at t_max: the data still show, and a sample that starts "
            "from N(0, prior_std^2 I) is biased; let sigma grow or alpha fall further."
        )
    return findings

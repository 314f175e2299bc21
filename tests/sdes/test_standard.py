"""The diffusions of the literature against closed forms typed independently (tests/problems.py)."""

from __future__ import annotations

import torch
from problems import CLOSED
from sdes.cases import by_name, relative, times


@by_name
def test_alpha_and_sigma(sde):
    t = times(sde)
    alpha, sigma, _, _ = CLOSED[type(sde).__name__]
    assert relative(sde.alpha(t), alpha(t)) < 1e-12
    assert relative(sde.sigma(t), sigma(t)) < 1e-12
    assert relative(sde.log_snr(t), 2 * (alpha(t) / sigma(t)).log()) < 1e-9


@by_name
def test_float32_is_within_1e_6(sde):
    t = times(sde, dtype=torch.float32).clamp_min(sde.t_min)
    alpha, sigma, _, g2 = CLOSED[type(sde).__name__]
    for name, exact in (("alpha", alpha), ("sigma", sigma), ("diffusion", lambda s: g2(s).sqrt())):
        value = getattr(sde, name)(t)
        assert value.dtype == torch.float32
        assert relative(value, exact(t.double())) < 1e-6, name


@by_name
def test_log_snr_and_its_inverse(sde):
    t = times(sde)
    log_snr = sde.log_snr(t)
    assert bool((log_snr.diff() < 0).all())
    assert relative(sde.time_of_log_snr(log_snr), t) < 1e-9
    # closed forms by hand, where they are not trivial
    inner = torch.linspace(-8, 15, 47, dtype=torch.float64)
    if type(sde).__name__ == "VPSDE":
        assert torch.allclose(sde.integral(sde.time_of_log_snr(inner)), torch.log1p((-inner).exp()), rtol=1e-12)
    if type(sde).__name__ == "SubVPSDE":
        assert torch.allclose(sde.integral(sde.time_of_log_snr(inner)), 2 * torch.asinh((-inner / 2).exp() / 2), rtol=1e-12)

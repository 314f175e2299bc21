"""What a network predicts: every parameterization of an exact model is the exact model."""

from __future__ import annotations

import math

import pytest
import torch
from models.cases import NAMES, Exact, by_name, states, target, times
from torch import nn

import scoresde as sd
from scoresde import parameterization as P


@by_name
@pytest.mark.parametrize("name", NAMES)
def test_every_parameterization_of_an_exact_model_is_the_exact_model(sde, name):
    """x0 to 1e-12 of its scale, eps to 1e-12 of it, given what the network returns to float64's last digits.

    What rounding costs by itself is allowed: x0 = (x - sigma eps)/alpha loses a factor sigma/alpha, eps = (x - alpha x0)/sigma
    one of 1/sigma, of which (1 - alpha c_skip)/sigma cannot know better.
    """
    exact = sd.ExactModel(target(), sde)
    model = sd.NetworkModel(Exact(target(), name, sde), sde, (3,), name)
    for t in times(sde):
        x = states(sde, t)
        level = sde.levels([t])[0]
        s = level.sigma / level.alpha
        (x0, eps), (x0_exact, eps_exact) = model.predict(x, t), exact.predict(x, t)
        tolerance = 1e-12 + 1e-14 * s
        assert float((x0 - x0_exact).abs().max()) <= tolerance * max(1.0, float(x0_exact.abs().max()))
        tolerance = 1e-12 + 1e-15 / level.sigma
        assert float((eps - eps_exact).abs().max()) <= tolerance * max(1.0, float(eps_exact.abs().max()))


@by_name
def test_parameterizations_agree_with_one_another(sde):
    """At moderate noise, where none of them is ill-conditioned, all five are one model to 1e-12, score and velocity too."""
    models = [sd.NetworkModel(Exact(target(), name, sde), sde, (3,), name) for name in NAMES]
    t = float(sde.time_of_log_snr(0.5))
    x = states(sde, t)
    for quantity in ("denoise", "eps", "score", "velocity"):
        values = [getattr(model, quantity)(x, t) for model in models]
        for value in values[1:]:
            assert torch.allclose(value, values[0], rtol=1e-12, atol=1e-12 * float(values[0].abs().max())), quantity


def test_coefficients_of_the_papers():
    alpha, sigma = 0.6, 0.8
    assert P.v(alpha, sigma) == (pytest.approx(0.6), pytest.approx(-0.8))
    assert P.eps(alpha, sigma) == (pytest.approx(1 / 0.6), pytest.approx(-0.8 / 0.6))
    assert P.score(alpha, sigma) == (pytest.approx(1 / 0.6), pytest.approx(0.64 / 0.6))
    assert P.x0(alpha, sigma) == (0.0, 1.0)
    s = 2.5  # EDM's own: alpha = 1
    assert P.edm(1.0, s) == (pytest.approx(0.25 / (s**2 + 0.25)), pytest.approx(s * 0.5 / math.sqrt(s**2 + 0.25)))
    assert P.input_scale(P.edm, 1.0, s) == pytest.approx(1 / math.sqrt(s**2 + 0.25))
    assert P.input_scale(P.v, alpha, sigma) == pytest.approx(1.0)
    for f in (P.x0, P.v, P.edm):  # finite at alpha = 0
        assert all(math.isfinite(c) for c in f(0.0, 1.0))
    for name in NAMES:  # tensors and floats alike
        f = getattr(P, name)
        pairs = zip(f(alpha, sigma), f(*torch.tensor([alpha, sigma], dtype=torch.float64)), strict=True)
        assert all(float(b) == pytest.approx(a, rel=1e-14) for a, b in pairs)


def test_a_function_is_a_parameterization():
    def doubled(alpha, sigma):
        return 0 * alpha, 0 * alpha + 2

    class Half(nn.Module):
        def forward(self, x, c_noise):
            return torch.ones_like(x)

    model = sd.NetworkModel(Half(), sd.VPSDE(), (2,), doubled)
    assert torch.equal(model.denoise(torch.randn(3, 2), 0.5), torch.full((3, 2), 2.0))

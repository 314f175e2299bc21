"""The pair that an SDE does not give: by derivative and by quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from problems import CLOSED
from sdes.cases import by_name, relative, times

import scoresde as sd


@by_name
def test_f_and_g_by_differentiation(sde):
    t = times(sde)
    _, _, f, g2 = CLOSED[type(sde).__name__]
    assert float((sde.drift_coefficient(t) - f(t)).abs().max() / f(t).abs().max().clamp_min(1)) < 1e-12
    assert relative(sde.drift_coefficient(t) + 1e-9, f(t) + 1e-9) < 1e-6
    assert relative(sde.diffusion(t) ** 2, g2(t)) < 1e-6


def coefficients_only(name, **settings):
    """The SDE of this name, given by f and g alone."""
    _, _, f, g2 = CLOSED[name]

    @dataclass(frozen=True)
    class ByCoefficients(sd.SDE):
        t_min: float = 1e-5
        t_max: float = 1.0

        def drift_coefficient(self, t):
            return f(t)

        def diffusion(self, t):
            return g2(t).sqrt()

    for key, value in settings.items():
        setattr(ByCoefficients, key, value)
    defaults = {"EDMSDE": (0.002, 80.0), "CosineSDE": (1e-5, 0.999), "RectifiedFlow": (1e-5, 0.999)}
    return ByCoefficients(*defaults.get(name, (1e-5, 1.0)))


@pytest.mark.parametrize("name", list(CLOSED))
def test_alpha_and_sigma_by_quadrature(name):
    sde = coefficients_only(name, sigma_0=0.01 if name == "VESDE" else 0.0)
    t = times(sde, 100)
    alpha, sigma, _, g2 = CLOSED[name]
    assert relative(sde.alpha(t), alpha(t)) < 1e-6
    assert relative(sde.sigma(t), sigma(t)) < 1e-6
    assert relative(sde.diffusion(t) ** 2, g2(t)) < 1e-12
    assert sd.check_sde(sde, n=200) == []
    # the derivatives that solvers use, and the inverse by bisection
    levels = sde.levels(t[::9])
    assert max(abs(level.f - float(f)) / (1 + abs(float(f))) for level, f in zip(levels, CLOSED[name][2](t[::9]), strict=True)) < 1e-6
    assert relative(torch.tensor([level.g2 for level in levels]).double(), g2(t[::9])) < 1e-6
    back = sde.time_of_log_snr(sde.log_snr(t))
    assert relative(back, t) < 1e-6


def test_quadrature_copes_with_what_users_write():
    """Constants instead of tensors, a g that vanishes at 0, and coefficients with a kink."""

    @dataclass(frozen=True)
    class OrnsteinUhlenbeck(sd.SDE):
        t_max: float = 5.0

        def drift_coefficient(self, t):
            return -1.0

        def diffusion(self, t):
            return math.sqrt(2)

    sde = OrnsteinUhlenbeck()
    t = times(sde)
    assert relative(sde.alpha(t), (-t).exp()) < 1e-12
    assert relative(sde.sigma(t), (1 - (-2 * t).exp()).sqrt()) < 1e-9
    assert sd.check_sde(sde) == []
    assert float(sde.drift_coefficient(0.5)) == -1.0

    @dataclass(frozen=True)
    class Linear(sd.SDE):
        def drift_coefficient(self, t):
            return -5 * t

        def diffusion(self, t):
            return (10 * t).sqrt()

    assert relative(Linear().sigma(times(Linear())), (-torch.expm1(-5 * times(Linear()) ** 2)).sqrt()) < 1e-6

    @dataclass(frozen=True)
    class Singular(sd.SDE):
        """f = -1/sqrt(t), which is infinite at 0 and has an integral: alpha = exp(-2 sqrt(t)); g^2 = -2 f, variance preserving."""

        t_max: float = 9.0

        def drift_coefficient(self, t):
            return -(t**-0.5)

        def diffusion(self, t):
            return (2 * t**-0.5).sqrt()

    t = times(Singular())
    assert relative(Singular().alpha(t), (-2 * t.sqrt()).exp()) < 1e-5
    assert relative(Singular().sigma(t), (-torch.expm1(-4 * t.sqrt())).sqrt()) < 1e-3

    @dataclass(frozen=True)
    class Kink(sd.SDE):
        t_max: float = 4.0

        def drift_coefficient(self, t):
            return -(1 + (t - 1.234).clamp_min(0))

        def diffusion(self, t):
            return (2 * (1 + (t - 1.234).clamp_min(0))).sqrt()

    t = times(Kink())
    alpha = (-(t + 0.5 * (t - 1.234).clamp_min(0) ** 2)).exp()
    assert relative(Kink().alpha(t), alpha) < 1e-4
    assert relative(Kink().sigma(t), (1 - alpha**2).sqrt()) < 1e-4


def test_quadrature_keeps_nothing_that_may_change():
    """What is kept between calls belongs to the values of the fields; an SDE that can change is computed afresh."""

    @dataclass(frozen=True)
    class Frozen(sd.SDE):
        a: float = 1.0

        def drift_coefficient(self, t):
            return -self.a * torch.ones_like(t)

        def diffusion(self, t):
            return math.sqrt(2 * self.a) * torch.ones_like(t)

    @dataclass(frozen=True)
    class Learnable(sd.SDE):
        a: torch.Tensor

        def drift_coefficient(self, t):
            return -self.a * torch.ones_like(t)

        def diffusion(self, t):
            return (2 * self.a).sqrt() * torch.ones_like(t)

    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for a in (1.0, 3.0):
        assert torch.allclose(Frozen(a).alpha(t), (-a * t).exp(), rtol=1e-12)
        with torch.inference_mode():
            assert torch.allclose(Frozen(a + 1).alpha(t), (-(a + 1) * t).exp(), rtol=1e-12)
        s = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(Frozen(a + 1).sigma(s).square().sum(), s)
        assert torch.allclose(slope, 2 * (a + 1) * (-2 * (a + 1) * t).exp(), rtol=1e-9)
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    sde = Learnable(a)
    for value in (1.0, 3.0):
        with torch.no_grad():
            a.fill_(value)
        (slope,) = torch.autograd.grad(sde.alpha(t).sum(), a)
        assert float(slope) == pytest.approx(float((-t * (-value * t).exp()).sum()), rel=1e-9)


@by_name
def test_derivatives_that_solvers_use(sde):
    """alpha', sigma', f and g^2 of Levels, against the closed forms; and the batch's own, which are tensors."""
    t = times(sde, 40)
    alpha, sigma, f, g2 = CLOSED[type(sde).__name__]
    levels = sde.levels(t)
    assert [float(level) for level in levels] == t.tolist()
    for level, s in zip(levels, t, strict=True):
        assert level.alpha == pytest.approx(float(alpha(s)), rel=1e-12)
        assert level.sigma == pytest.approx(float(sigma(s)), rel=1e-12)
        assert level.alpha_dot == pytest.approx(float(f(s) * alpha(s)), rel=1e-9, abs=1e-12)
        assert level.sigma_dot == pytest.approx(float(f(s) * sigma(s) + g2(s) / (2 * sigma(s))), rel=1e-9)
        assert level.f == pytest.approx(float(f(s)), rel=1e-9, abs=1e-12)
        assert level.g2 == pytest.approx(float(g2(s)), rel=1e-6)
    x = torch.zeros(len(t), 2, 3, dtype=torch.float64)
    batch = sde.level(t, x)
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
        values = getattr(batch, name)
        assert values.shape == (len(t), 1, 1)
        assert values.flatten().tolist() == pytest.approx([getattr(level, name) for level in levels], rel=1e-12)


def test_constant_beta_has_an_inverse():
    for sde in (sd.VPSDE(beta_min=10.0, beta_max=10.0), sd.SubVPSDE(beta_min=10.0, beta_max=10.0)):
        assert sd.check_sde(sde) == []
        t = times(sde)
        assert relative(sde.time_of_log_snr(sde.log_snr(t)), t) < 1e-9

"""The SDEs: closed forms typed independently here, the derived pair both ways, and a checker that catches what it should."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

import pytest
import torch
from problems import CLOSED, SMAX, SMIN

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import STEP
from scoresde.errors import ConfigError, NonFiniteError, ScoreSDEError, ShapeError, TimeRangeError

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]
by_name = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)

def times(sde, n=400, dtype=torch.float64):
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), n, dtype=torch.float64).clamp(sde.t_min, sde.t_max)
    late = torch.linspace(sde.t_min, sde.t_max, n, dtype=torch.float64)
    t = torch.cat([t, late]).sort().values
    return t[t.diff(prepend=t.new_zeros(1)) > 1e-9 * t].to(dtype)


def relative(a, b):
    return float(((a.double() - b.double()).abs() / b.double().abs().clamp_min(1e-300)).max())


# ---- closed forms and the derived pair


@by_name
def test_the_checker_passes_the_built_in_ones(sde):
    assert sd.check_sde(sde) == []


@by_name
def test_alpha_and_sigma(sde):
    t = times(sde)
    alpha, sigma, _, _ = CLOSED[type(sde).__name__]
    assert relative(sde.alpha(t), alpha(t)) < 1e-12
    assert relative(sde.sigma(t), sigma(t)) < 1e-12
    assert relative(sde.log_snr(t), 2 * (alpha(t) / sigma(t)).log()) < 1e-9


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


# ---- float32, the inverse, the ends


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


def test_constant_beta_has_an_inverse():
    for sde in (sd.VPSDE(beta_min=10.0, beta_max=10.0), sd.SubVPSDE(beta_min=10.0, beta_max=10.0)):
        assert sd.check_sde(sde) == []
        t = times(sde)
        assert relative(sde.time_of_log_snr(sde.log_snr(t)), t) < 1e-9


def test_ends():
    assert float(sd.VESDE().sigma(0.0)) == 0.01
    assert sd.VESDE().prior_std == pytest.approx(50.0, rel=1e-15)
    assert float(sd.VPSDE().alpha(1.0)) == pytest.approx(math.exp(-5.025), rel=1e-12)
    assert sd.EDMSDE().t_min == 0.002
    assert sd.EDMSDE(sigma_max=10.0).t_max == 10.0
    # the integral of g^2/sigma^2, which is the fall of log-SNR: figures of numerics.md, by quadrature there
    for sde, expected in ((sd.VPSDE(), 23.864), (sd.SubVPSDE(), 37.679)):
        assert float(sde.log_snr(1e-5) - sde.log_snr(1.0)) == pytest.approx(expected, abs=2e-3)
    for sde, expected in ((sd.VPSDE(), 19.165), (sd.SubVPSDE(), 28.281)):
        assert float(sde.log_snr(1e-3) - sde.log_snr(1.0)) == pytest.approx(expected, abs=2e-3)
    table = {"VPSDE": 1e-3, "SubVPSDE": 1e-3, "VESDE": None, "CosineSDE": 1e-3, "EDMSDE": None, "RectifiedFlow": 1e-3}
    assert {type(s).__name__: s.t_end for s in SDES} == table


@by_name
def test_floats_and_integers_are_times_too(sde):
    t = 0.5
    for name in ("alpha", "sigma", "drift_coefficient", "diffusion", "log_snr"):
        function = getattr(sde, name)
        assert function(t).dtype == torch.float64
        assert function(t).shape == ()
        assert float(function(t)) == float(function(torch.tensor(t, dtype=torch.float64)))
        assert function(torch.full((2, 3), t)).shape == (2, 3)
    assert float(sde.time_of_log_snr(float(sde.log_snr(t)))) == pytest.approx(t, rel=1e-9)


# ---- the forward process


def euler_maruyama_moments(sde, t, n, mean, variance):
    """Mean and variance of the Euler-Maruyama scheme for dx = f x dt + g dw from t_min to t, exactly: x is Gaussian throughout."""
    s = torch.linspace(sde.t_min, t, n + 1, dtype=torch.float64)
    h = (t - sde.t_min) / n
    f = CLOSED[type(sde).__name__][2](s[:-1]).tolist()
    g2 = CLOSED[type(sde).__name__][3](s[:-1]).tolist()
    for f_i, g2_i in zip(f, g2, strict=True):
        mean, variance = (1 + f_i * h) * mean, (1 + f_i * h) ** 2 * variance + g2_i * h
    return mean, variance


@by_name
def test_marginals_without_monte_carlo(sde):
    """What marginal() says is where dx = f x dt + g dw goes: the scheme's error falls in proportion to its step.

    The scheme starts at t_min from data of mean 1.3 and std 0.4 that have been blurred already: for VE this carries -sigma_min^2.
    """
    t = 0.7 * sde.t_max if type(sde).__name__ != "EDMSDE" else 2.0
    x0 = torch.tensor([[1.3]], dtype=torch.float64)
    start, blur = sde.marginal(x0, sde.t_min)
    a0 = float(start / 1.3)
    end, std = sde.marginal(x0, t)
    a1 = float(end / 1.3)
    exact = (float(end), (a1 * 0.4) ** 2 + float(std) ** 2)
    steps = (1000, 2000, 4000)
    found = [euler_maruyama_moments(sde, t, n, float(start), (a0 * 0.4) ** 2 + float(blur) ** 2) for n in steps]
    for which in (0, 1):
        errors = [abs(m[which] - exact[which]) for m in found]
        if max(errors) < 1e-12:  # alpha = 1: the mean is exact
            continue
        slope = math.log2(errors[1] / errors[2])
        assert slope == pytest.approx(1, abs=0.05), (which, errors)
        richardson = 2 * found[2][which] - found[1][which]
        assert richardson == pytest.approx(exact[which], rel=1e-4)


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE()], ids=lambda s: type(s).__name__)
def test_perturb_has_the_marginal_law(sde):
    """N = 50,000 at 4 times: a mean off by 0.025 std, or a std off by 1.8 %, gives z = 5.6 on average."""
    n = 50_000
    x0 = torch.full((n, 2), 0.8, dtype=torch.float64)
    for i, t in enumerate((sde.t_min, 0.05, 0.4, sde.t_max)):
        eps = Noise(3, check_ids(None, n), (2,), torch.float64).normal(STEP, i)
        x = sde.perturb(x0, t, eps)
        mean, std = float(sde.alpha(t)) * 0.8, float(sde.sigma(t))
        z_mean = (x.mean(0) - mean) / (std / math.sqrt(n))
        z_var = (x.var(0) / std**2 - 1) / math.sqrt(2 / n)
        assert float(torch.cat([z_mean, z_var]).abs().max()) < 5.5


@by_name
@pytest.mark.parametrize("event", [(2,), (7,), (3, 5), (1, 4, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_event_shape_and_one_or_many_times(sde, event, dtype):
    n = 4
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn((n, *event), generator=generator, dtype=dtype)
    eps = torch.randn((n, *event), generator=generator, dtype=dtype)
    t = torch.tensor([sde.t_min, 0.1, 0.5, sde.t_max], dtype=torch.float64)
    mean, std = sde.marginal(x0, t)
    assert mean.shape == x0.shape
    assert std.shape == (n,)
    drift, x_t = sde.drift(x0, t), sde.perturb(x0, t, eps)
    for value in (mean, std, drift, x_t):
        assert value.dtype == dtype
    for i in range(n):
        one = float(t[i])
        m, s = sde.marginal(x0[i : i + 1], one)
        assert torch.equal(m[0], mean[i])
        assert s.shape == ()
        assert s == std[i]
        assert torch.equal(sde.drift(x0[i : i + 1], one)[0], drift[i])
        assert torch.equal(sde.perturb(x0[i : i + 1], one, eps[i : i + 1])[0], x_t[i])
        assert torch.allclose(x_t[i], float(sde.alpha(one)) * x0[i] + float(sde.sigma(one)) * eps[i], rtol=1e-5)
        assert torch.allclose(drift[i], float(sde.drift_coefficient(one)) * x0[i], rtol=1e-5)


@by_name
def test_prior_log_prob(sde):
    x = 1.7 * sde.prior_std * torch.randn((3, 2, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = float(sde.sigma(sde.t_max))
    expected = (-0.5 * (x / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))).sum((1, 2))
    assert torch.allclose(sde.prior_log_prob(x), expected, rtol=1e-12)
    assert sde.prior_log_prob(x.float()).dtype == torch.float64
    assert sde.prior_log_prob(x.float()).shape == (3,)


# ---- the checker catches what it should


@dataclass(frozen=True)
class DoubleDrift(sd.VPSDE):
    def drift_coefficient(self, t):
        return -(self.beta_min + (self.beta_max - self.beta_min) * t)  # not halved


@dataclass(frozen=True)
class MissingSquareRoot(sd.VPSDE):
    def sigma(self, t):
        return -torch.expm1(-self.integral(t))

    def diffusion(self, t):
        return (self.beta_min + (self.beta_max - self.beta_min) * t).sqrt()  # VP's g with sub-VP's sigma


@dataclass(frozen=True)
class MissingSquareRootOfLog(sd.VESDE):
    def diffusion(self, t):
        return self.sigma(t) * 2 * math.log(self.sigma_max / self.sigma_min)  # deepinv's fault


@dataclass(frozen=True)
class WrongSign(sd.VPSDE):
    def drift_coefficient(self, t):
        return 0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t)

    def diffusion(self, t):
        return (self.beta_min + (self.beta_max - self.beta_min) * t).sqrt()


@dataclass(frozen=True)
class OneMinusExp(sd.VPSDE):
    def sigma(self, t):
        return (1 - torch.exp(-self.integral(t))).sqrt()


@dataclass(frozen=True)
class OneMinusExpSub(sd.SubVPSDE):
    def sigma(self, t):
        return 1 - torch.exp(-self.integral(t))


@dataclass(frozen=True)
class SquaredDiffusion(sd.VPSDE):
    def diffusion(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t  # g^2 for g


@dataclass(frozen=True)
class RisingLogSNR(sd.SDE):
    t_min: float = 0.01
    t_max: float = 0.99

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t  # time the wrong way round


@dataclass(frozen=True)
class BumpyLogSNR(sd.SDE):
    """Falls over all, but not everywhere."""

    def alpha(self, t):
        return torch.exp(-5 * t)

    def sigma(self, t):
        return 0.3 + t + 0.2 * torch.sin(40 * t)

    def diffusion(self, t):
        sigma, slope = self.sigma(t), 1 + 8 * torch.cos(40 * t)
        return (2 * sigma * (slope + 5 * sigma)).clamp_min(0).sqrt()


@dataclass(frozen=True)
class WrongInverse(sd.VESDE):
    def time_of_log_snr(self, log_snr):
        return -(log_snr + math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class WrongPriorStd(sd.VESDE):
    @property
    def prior_std(self):
        return 1.0


@dataclass(frozen=True)
class WrongPriorLogProb(sd.VESDE):
    def prior_log_prob(self, x):
        return -0.5 * (x.double().flatten(1) / self.prior_std).square().sum(1)  # no normalizer


@dataclass(frozen=True)
class DataStillShow(sd.VPSDE):
    beta_max: float = 2.0


@dataclass(frozen=True)
class SigmaZeroForgotten(sd.SDE):
    """VE by its coefficients: without sigma_0 it starts from clean data, while its log-SNR says otherwise."""

    def drift_coefficient(self, t):
        return torch.zeros_like(t)

    def diffusion(self, t):
        return SMIN * (SMAX / SMIN) ** t * math.sqrt(2 * math.log(SMAX / SMIN))

    def log_snr(self, t):
        return -2 * (math.log(SMIN) + t * math.log(SMAX / SMIN))


@dataclass(frozen=True)
class NotElementwise(sd.VPSDE):
    def sigma(self, t):
        return (-torch.expm1(-self.integral(t))).mean().sqrt()


@dataclass(frozen=True)
class NotElementwiseInDisguise(sd.VPSDE):
    """The right shape, but each value depends on the batch."""

    def sigma(self, t):
        return super().sigma(t) * (1 + 1e-3 * t.mean())


@dataclass(frozen=True)
class LosesItsDtype(sd.VPSDE):
    def alpha(self, t):
        return torch.exp(-0.5 * self.integral(t)).double()


@dataclass(frozen=True)
class NegativeDiffusion(sd.EDMSDE):
    def diffusion(self, t):
        return -(2 * t).sqrt()


@dataclass(frozen=True)
class NotFinite(sd.SDE):
    def alpha(self, t):
        return torch.log(t - 0.5)

    def sigma(self, t):
        return t


@dataclass(frozen=True)
class VanishingAlpha(sd.SDE):
    def alpha(self, t):
        return (1 - 2 * t).clamp_min(0)

    def sigma(self, t):
        return t


@dataclass(frozen=True)
class SlightlyWrongDrift(sd.VPSDE):
    """Off by 10^-5: what a typo in a constant looks like."""

    def drift_coefficient(self, t):
        return -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t) * (1 + 1e-5)


BROKEN = {
    DoubleDrift: r"alpha' = f alpha",
    MissingSquareRoot: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    MissingSquareRootOfLog: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    WrongSign: r"alpha' = f alpha",
    OneMinusExp: "sigma.*float32.*expm1",
    OneMinusExpSub: "sigma.*float32.*expm1",
    SquaredDiffusion: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    RisingLogSNR: "log_snr does not fall|not finite",
    BumpyLogSNR: "log_snr does not fall",
    WrongInverse: "time_of_log_snr does not invert",
    WrongPriorStd: r"prior_std = 1, but sigma\(t_max\) = 50",
    WrongPriorLogProb: "prior_log_prob",
    DataStillShow: "data still show",
    SigmaZeroForgotten: r"log_snr = 2 log\(alpha/sigma\)|time_of_log_snr",
    NotElementwise: "elementwise",
    NotElementwiseInDisguise: "elementwise|does not hold",
    LosesItsDtype: "dtype",
    NegativeDiffusion: "negative",
    NotFinite: "not finite",
    VanishingAlpha: "positive|not finite",
    SlightlyWrongDrift: r"alpha' = f alpha",
}


@pytest.mark.parametrize("broken", list(BROKEN), ids=lambda c: c.__name__)
def test_the_checker_catches(broken):
    findings = sd.check_sde(broken())
    assert findings
    assert any(re.search(BROKEN[broken], finding) for finding in findings), findings
    for finding in findings:  # each is a sentence
        assert finding.endswith(".")
        assert len(finding.split()) >= 5


def test_the_checker_never_raises_on_a_broken_sde():
    @dataclass(frozen=True)
    class Raises(sd.SDE):
        def alpha(self, t):
            raise ZeroDivisionError("division by zero")

        def sigma(self, t):
            return t

    @dataclass(frozen=True)
    class BadRange(sd.SDE):
        t_min: float = 0.0

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

    @dataclass(frozen=True)
    class WrongShape(sd.SDE):
        def alpha(self, t):
            return torch.ones(3)

        def sigma(self, t):
            return t

    assert "ZeroDivisionError" in " ".join(sd.check_sde(Raises()))
    assert "t_min > 0" in " ".join(sd.check_sde(BadRange()))
    assert "elementwise" in " ".join(sd.check_sde(WrongShape()))


# ---- errors


def test_an_sde_that_gives_neither_pair():
    with pytest.raises(ConfigError, match=r"Half defines \['alpha', 'diffusion'\].*alpha\(t\) and sigma\(t\), or drift_coefficient"):

        class Half(sd.SDE):
            def alpha(self, t):
                return 1 - t

            def diffusion(self, t):
                return t

    with pytest.raises(ConfigError, match="none"):

        class Empty(sd.SDE):
            pass


@by_name
def test_time_range(sde):
    x = torch.zeros(2, 3)
    for t in (sde.t_min * 0.99, sde.t_max * 1.01, 0.0, -1.0, math.inf, -math.inf):
        with pytest.raises(TimeRangeError, match=r"t = .*\[t_min, t_max\]"):
            sde.drift(x, t)
        with pytest.raises(TimeRangeError, match=r"t = .*\[t_min, t_max\]"):
            sde.marginal(x, torch.tensor([sde.t_min, t], dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="t holds NaN"):
        sde.perturb(x, math.nan, x)
    with pytest.raises(NonFiniteError, match="t holds NaN"):
        sde.level(torch.tensor([0.5, math.nan]), x)
    # the ends themselves are inside, as floats and as what float32 makes of them
    for t in (sde.t_min, sde.t_max):
        sde.drift(x, t)
        sde.drift(x, torch.tensor([t, t], dtype=torch.float32))


@pytest.mark.parametrize("shape", [(2, 1), (3,), (1,), (1, 1)], ids=str)
def test_time_shapes(shape):
    x = torch.zeros(2, 3)
    for function in (sd.VPSDE().drift, sd.VPSDE().marginal, sd.VPSDE().level.__func__.__get__(sd.VPSDE())):
        arguments = (x, torch.full(shape, 0.5)) if function.__name__ != "level" else (torch.full(shape, 0.5), x)
        with pytest.raises(ShapeError, match=r"t has shape .* x has shape \(2, 3\)"):
            function(*arguments)


def test_times_that_are_none():
    for t in (None, "a", [0.1]):
        with pytest.raises((ScoreSDEError, TypeError, ValueError)):
            sd.VPSDE().drift(torch.zeros(2, 3), t)


def test_configuration_is_a_value():
    for sde in SDES:
        fields = {f.name: getattr(sde, f.name) for f in dataclasses.fields(sde)}
        assert type(sde)(**fields) == sde
        assert eval(repr(sde), vars(sd)) == sde
        assert hash(sde) == hash(type(sde)(**fields))
        with pytest.raises(dataclasses.FrozenInstanceError):
            sde.t_min = 0.5

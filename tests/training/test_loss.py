"""The loss against closed forms; every time sampling against its density; every weighting under every sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import scoresde as sd
from scoresde import loss
from scoresde.core.noise import Noise, check_ids
from scoresde.errors import ConfigError, NonFiniteError

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]
TIMES = ["uniform", "importance", "lognormal"]
VARIANCE = 0.7


@dataclass(frozen=True)
class Trigonometric(sd.SDE):
    """A user's SDE by alpha and sigma: log-SNR has no closed inverse here."""

    t_max: float = 1.5

    def alpha(self, t):
        return torch.cos(t)

    def sigma(self, t):
        return torch.sin(t)


@dataclass(frozen=True)
class Coefficients(sd.SDE):
    """A user's SDE by f and g: VP once more."""

    def drift_coefficient(self, t):
        return -0.5 * (0.1 + 19.9 * t)

    def diffusion(self, t):
        return (0.1 + 19.9 * t).sqrt()


def midpoints(n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def name(sde):
    return type(sde).__name__


def gaussian_model(sde, dimensions=3):
    """The exact model of N(0, VARIANCE I), whose noise estimate misses by alpha^2 c/(alpha^2 c + sigma^2) on average."""
    target = sd.GaussianMixture(torch.zeros(1, dimensions, dtype=torch.float64), torch.tensor([VARIANCE**0.5]).double())
    return sd.ExactModel(target, sde)


def exact_error(sde, t):
    snr = sde.log_snr(t).exp() * VARIANCE
    return snr / (snr + 1)


# ---- times


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("sde", [*SDES, Trigonometric()], ids=name)
def test_density_is_that_of_the_times(sde, times):
    """t(u) rises or falls through the whole range, and |dt/du| = 1/density."""
    u = midpoints(4000)
    h = 1e-6
    low, high, (t, density) = (loss.sample_times(times, sde, v) for v in (u - h, u + h, u))
    slope = (high[0] - low[0]).abs() / (2 * h)
    assert t.dtype == density.dtype == torch.float64
    assert ((t >= sde.t_min) & (t <= sde.t_max)).all()
    torch.testing.assert_close(slope, 1 / density, rtol=2e-4, atol=1e-9 * sde.t_max)  # a difference, in the tails too
    steps = t.diff()
    assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.EDMSDE()], ids=name)
def test_ends_of_the_range_are_reached_and_not_passed(sde, times):
    u = torch.tensor([0.0, 1 - 2**-24], dtype=torch.float64)
    t, density = loss.sample_times(times, sde, u)
    near = 0.5 if times == "lognormal" else 1e-3  # a tail
    assert float(t.min()) < sde.t_min * (1 + near)
    assert float(t.max()) > sde.t_max * (1 - near)
    assert (t >= sde.t_min).all()
    assert (t <= sde.t_max).all()
    assert density.isfinite().all()


def test_importance_for_f_and_g_is_that_of_the_closed_form():
    u = midpoints(50)
    mine, density = loss.sample_times("importance", Coefficients(), u)
    closed, expected = loss.sample_times("importance", sd.VPSDE(), u)
    torch.testing.assert_close(mine, closed, rtol=1e-6, atol=0)
    torch.testing.assert_close(density, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("sde", "Z"), [(sd.VPSDE(), 23.864), (sd.SubVPSDE(), 37.679)], ids=["VP", "subVP"])
def test_normalizers(sde, Z):
    """Figures of the integral of g^2/sigma^2 that were found by quadrature."""
    assert 2 * loss.total_weight(loss.likelihood, sde) == pytest.approx(Z, abs=1e-3)
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), 200_001, dtype=torch.float64).clamp(sde.t_min, sde.t_max)
    by_quadrature = torch.trapezoid(2 * loss.likelihood(sde, t), t)
    assert float(by_quadrature) == pytest.approx(Z, abs=1e-3)


def test_stratified_draws_have_one_in_each_part():
    u = Noise(3, check_ids(None, 64), (1,), torch.float64).uniform(9)[:, 0]
    assert torch.equal((loss.stratify(u) * 64).floor().long(), torch.arange(64))
    part = loss.stratify(u[16:32], torch.arange(16, 32), 64)
    assert torch.equal(part, loss.stratify(u)[16:32])
    t, density = loss.sample_times("stratified", sd.VPSDE(), u)
    expected = loss.sample_times("uniform", sd.VPSDE(), loss.stratify(u))
    assert torch.equal(t, expected[0])
    assert torch.equal(density, expected[1])


# ---- weightings


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weightings(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    snr = (sde.alpha(t) / sde.sigma(t)).square()
    assert torch.equal(loss.simple(sde, t), torch.ones_like(t))
    torch.testing.assert_close(loss.min_snr(sde, t), torch.clamp(snr, max=5) / snr, rtol=1e-8, atol=0)
    torch.testing.assert_close(loss.min_snr(sde, t, 1.0), torch.clamp(snr, max=1) / snr, rtol=1e-8, atol=0)
    torch.testing.assert_close(loss.likelihood(sde, t), 0.5 * (sde.diffusion(t) / sde.sigma(t)) ** 2)


def test_edm_weighting_under_lognormal_times_is_edms_loss():
    """lambda(sigma) |D - y|^2 with lambda = (sigma^2 + sigma_data^2)/(sigma sigma_data)^2, and |D - y| = sigma |eps - eps_hat|."""
    sde = sd.EDMSDE()
    t, density = loss.sample_times("lognormal", sde, midpoints(20))
    edm = (t**2 + 0.25) / (t * 0.5) ** 2 * t**2
    torch.testing.assert_close(loss.edm(sde, t) / density, edm)
    assert float((t.log() < -1.2).double().mean()) == 0.5  # P_mean


@pytest.mark.parametrize("weighting", ["simple", "likelihood", "min-snr", "edm"])
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE(), sd.CosineSDE()], ids=name)
def test_total_weight(sde, weighting):
    w = loss.resolve_weighting(weighting)
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    t = sde.time_of_log_snr(torch.linspace(*ends, 20_001, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    assert loss.total_weight(w, sde) == pytest.approx(float(torch.trapezoid(w(sde, t), t)), rel=1e-5)


# ---- the loss itself


@pytest.mark.parametrize("sde", [*SDES, Trigonometric()], ids=name)
def test_likelihood_loss_in_closed_form(sde):
    """For N(0, c I) it is ln((1 + c SNR_max)/(1 + c SNR_min))/2: d SNR = -SNR g^2/sigma^2 dt."""
    t, density = loss.sample_times("importance", sde, midpoints(4000))
    value = (loss.likelihood(sde, t) / density * exact_error(sde, t)).mean()
    first, last = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).exp() * VARIANCE
    assert float(value) == pytest.approx(0.5 * float(first.log1p() - last.log1p()), rel=1e-5)


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.SubVPSDE(), sd.RectifiedFlow(), sd.EDMSDE()], ids=name)
def test_squared_error_of_the_exact_model(sde):
    """20,000 samples at 8 times: the mean is that of the closed form within 4.5 standard errors, which are 1 % or less."""
    n, times = 20_000, midpoints(8)
    model, ids = gaussian_model(sde), check_ids(None, n)
    for k, t in enumerate(loss.sample_times("importance", sde, times)[0]):
        draws = Noise(1, ids, (2, 3), torch.float64).normal(7, k)
        x0, eps = draws[:, 0] * VARIANCE**0.5, draws[:, 1]
        error = loss.squared_error(model, x0, t.expand(n), eps)
        expected = exact_error(sde, t)
        assert float(error.std() / n**0.5 / expected) < 0.01
        assert abs(float((error.mean() - expected) / error.std()) * n**0.5) < 4.5


def test_likelihood_loss_is_the_same_under_all_time_samplings():
    """Of a wrong model, by Monte Carlo: the means agree within 4.5 standard errors, and 10 % between them would be seen.

    Importance sampling has the smallest variance, and strata take most of what is left of it.
    """
    sde, n = sd.VPSDE(t_min=1e-2), 100_000
    target = sd.GaussianMixture(torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([1.0]).double())
    model = sd.ExactModel(target, sde)  # the data are N(0, 0.7 I)
    draws = Noise(5, check_ids(None, n), (4,), torch.float64)
    x0, eps = draws.normal(1)[:, :2] * VARIANCE**0.5, draws.normal(1)[:, 2:]
    u = draws.uniform(2)[:, 0]
    values = {}
    for times in ("uniform", "stratified", "importance"):
        t, density = loss.sample_times(times, sde, u)
        values[times] = loss.denoising_loss(model, x0, t, eps, loss.likelihood(sde, t) / density)
    mean = {key: float(v.mean()) for key, v in values.items()}
    error = {key: float(v.std()) / n**0.5 for key, v in values.items()}
    for times in ("uniform", "stratified"):
        both = math.hypot(error[times], error["importance"])
        assert both < 0.1 * mean["importance"] / 4.5
        assert abs(mean[times] - mean["importance"]) < 4.5 * both
    assert error["importance"] < 0.6 * error["uniform"]
    blocks = {}
    for key, v in {"plain": u, "strata": torch.cat([loss.stratify(part) for part in u.split(100)])}.items():
        t, density = loss.sample_times("importance", sde, v)
        value = loss.denoising_loss(model, x0, t, eps, loss.likelihood(sde, t) / density)
        blocks[key] = float(value.view(-1, 100).mean(1).std())
    assert blocks["strata"] < 0.9 * blocks["plain"]


def test_weight_and_conditions_reach_the_loss():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, c_noise, shift=None):
            return self.w * x + shift

    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,), "eps")
    x0, eps, t = torch.randn(5, 2), torch.randn(5, 2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    weight = torch.arange(5, dtype=torch.float64)
    error = loss.squared_error(model, x0, t, eps, shift=1.0)
    assert error.shape == (5,)
    assert error.dtype == torch.float32
    x_t = sd.VPSDE().perturb(x0, t, eps)
    torch.testing.assert_close(error, (eps - (x_t + 1)).square().mean(1))
    torch.testing.assert_close(loss.denoising_loss(model, x0, t, eps, weight, shift=1.0), weight.float() * error)
    with sd.count_evaluations(model) as calls:
        loss.denoising_loss(model, x0, t, eps, weight, shift=1.0)
    assert calls.forward == 1


def test_unknown_names_and_senseless_functions():
    with pytest.raises(ConfigError, match=r"times = 'importence'.*did you mean 'importance'"):
        loss.sample_times("importence", sd.VPSDE(), midpoints(3))
    with pytest.raises(ConfigError, match=r"weighting = 'snr'.*min-snr.*function \(sde, t\)"):
        loss.resolve_weighting("snr")
    with pytest.raises(ConfigError, match="integral"):
        loss.total_weight(lambda sde, t: -torch.ones_like(t), sd.VPSDE())
    with pytest.raises(ConfigError, match=r"lognormal.*outside"):
        loss.lognormal(sd.VESDE(sigma_min=1.0, sigma_max=2.0), midpoints(3), mean=-20.0)


# ---- fitted times


FITTED = loss.FittedTimes((0.1, 0.4, 0.25, 0.25))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_fitted_times_have_the_density_they_say(sde):
    """Shares of log-SNR, from t_min on; |dt/du| = 1/density within each part."""
    u = midpoints(4000)
    t, density = FITTED(sde, u)
    high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    part = ((high - sde.log_snr(t)) / (high - low) * 4).long().clamp(0, 3)
    assert (torch.bincount(part, minlength=4) - torch.tensor([400, 1600, 1000, 1000])).abs().max() <= 1
    h = 1e-7
    slope = (FITTED(sde, u + h)[0] - FITTED(sde, u - h)[0]).abs() / (2 * h)
    torch.testing.assert_close(slope, 1 / density, rtol=2e-3, atol=1e-8 * sde.t_max)
    ends = FITTED(sde, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))[0]
    torch.testing.assert_close(ends, torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.EDMSDE()], ids=name)
def test_fitted_times_leave_the_loss_and_lower_its_variance(sde):
    """On the exact model: the same mean within four standard errors, less variance than uniform in log-SNR, as little as the optimum."""
    model = gaussian_model(sde, 64)
    n = 200_000

    def draw(times, seed):
        u = Noise(seed, range(n), (1,), torch.float64).uniform(0)[:, 0]
        t, density = times(sde, u)
        x0 = VARIANCE**0.5 * Noise(seed, range(n), (64,), torch.float64).normal(1)
        eps = Noise(seed, range(n), (64,), torch.float64).normal(2)
        return loss.denoising_loss(model, x0, t, eps, loss.likelihood(sde, t) / density), u

    flat, u = draw(loss.importance, 1)
    fitted = loss.FittedTimes.of((32 * u).long(), flat, 32, floor=0.0)
    best, _ = draw(fitted, 2)
    error = ((flat.var() + best.var()) / n).sqrt()
    assert abs(float(flat.mean() - best.mean())) < 4 * float(error)
    rms = torch.tensor([float(flat[(32 * u).long() == i].square().mean().sqrt()) for i in range(32)])
    least = float(rms.mean().square() - flat.mean() ** 2)  # (integral of the root mean square)^2 - mean^2
    assert float(best.var()) < 0.5 * float(flat.var())
    assert float(best.var()) < 1.1 * least


def test_fitted_shares():
    part = torch.arange(8).repeat(100)
    assert loss.FittedTimes.of(part, torch.ones(800), 8).shares == pytest.approx([1 / 8] * 8)
    peaked = loss.FittedTimes.of(part, (part == 4).double(), 8, floor=0.2).shares
    assert peaked == pytest.approx([0.025, 0.025, 0.025, 0.225, 0.425, 0.225, 0.025, 0.025])
    unseen = loss.FittedTimes.of(torch.zeros(5, dtype=torch.long), torch.ones(5), 2).shares
    assert unseen == pytest.approx([0.5, 0.5])
    assert loss.FittedTimes.of(part, torch.zeros(800), 8).shares == pytest.approx([1 / 8] * 8)
    with pytest.raises(NonFiniteError, match="1 of 800"):
        loss.FittedTimes.of(part, torch.cat([torch.ones(799), torch.tensor([math.nan])]), 8)
    for shares in ((), (0.5, 0.6), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ConfigError, match="shares"):
            loss.FittedTimes(shares)

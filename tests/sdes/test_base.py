"""SDEs: moments of the process that they describe, time ranges, shapes and dtypes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from problems import CLOSED
from sdes.cases import SDES, by_name

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import STEP
from scoresde.errors import ConfigError, NonFiniteError, ScoreSDEError, ShapeError, TimeRangeError


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


# ---- the ends of the time range


class Zero(sd.SDE):
    """Zero terminal SNR but for rounding: alpha(1) = 6e-17."""

    def alpha(self, t):
        return torch.cos(torch.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(torch.pi / 2 * t)


@pytest.mark.parametrize("sde", [Zero(), sd.CosineSDE(t_max=1 - 1e-16), sd.RectifiedFlow(t_max=1 - 1e-12)], ids=lambda s: type(s).__name__)
def test_zero_terminal_snr_is_refused(sde):
    """By the model, before anything is divided by alpha; with what to do."""
    mixture = sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(ConfigError, match=r"alpha/sigma = .* at t_max = 1 of .*, which is zero terminal SNR but for rounding.*Give a t_max where"):
        sd.ExactModel(mixture, sde)


def test_a_signal_that_can_be_divided_by_is_enough():
    mixture = sd.GaussianMixture(torch.tensor([[0.5, -0.5]]).double(), torch.tensor([0.7]).double())
    model = sd.ExactModel(mixture, sd.RectifiedFlow(t_max=1 - 1e-7))
    x = sd.sample(model, 512, solver=sd.Heun(), times=sd.grid.log_snr(model.sde, 60))
    assert float((x.mean(0) - mixture.means[0]).abs().max()) < 4 * 0.7 / 512**0.5
    found = sd.log_prob(model, x[:8])
    assert torch.allclose(found.log_prob, model.log_prob(x[:8], model.sde.t_min), atol=1e-4)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_float32_times_are_times(sde):
    """float32(1e-5) < 1e-5 and float32(0.999) > 0.999: a grid made in torch's default dtype runs all the way."""
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2).double(), torch.ones(1).double()), sde)
    exact, rounded = (torch.linspace(sde.t_max, sde.t_min, 11, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for times in (rounded, rounded.tolist(), iter(rounded.tolist()), map(float, rounded), (float(t) for t in rounded)):
        x = sd.sample(model, 3, solver=sd.Euler(), times=times)
        assert torch.allclose(x, sd.sample(model, 3, solver=sd.Euler(), times=exact), atol=1e-3)
    end = float(torch.tensor(sde.t_min))
    assert torch.allclose(sd.sample(model, 3, steps=5, t_end=end), sd.sample(model, 3, steps=5, t_end=sde.t_min), atol=1e-6)
    for t in (float(rounded[0]), float(rounded[-1])):
        assert torch.isfinite(model.velocity(torch.ones(2, 2), t)).all()
    with pytest.raises(TimeRangeError):
        sd.sample(model, 3, times=[sde.t_max * 1.001, sde.t_min])


def test_times_that_are_hardly_apart_are_refused():
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
    with pytest.raises(ConfigError, match=r"times 1.0 and 0.999999999 are so close that what a step changes is lost by rounding"):
        sd.sample(model, 3, times=[1.0, 1.0 - 1e-9, 0.5])

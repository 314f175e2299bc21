"""Stochastic solvers: laws and orders by exact moment recursion, their deterministic limits, few calls, Brownian paths."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from problems import (
    SDES,
    LinearLangevin,
    Unit,
    correlated_mixture,
    gaussian,
    gaussian_path,
    law,
    law_error,
    marginal_sample,
    name,
    slope,
    two_modes,
)

import scoresde as sd
from scoresde.core.noise import Noise
from scoresde.core.streams import PRIOR, STEP
from scoresde.errors import ConfigError
from scoresde.solvers.loop import draws_for, solve
from scoresde.solvers.planning import bind_solver

# ---- laws on Gaussian data (see law in problems.py)


def test_no_two_draws_of_a_restart_share_a_stream():
    """Not with a corrector's, nor with those of a restart within a restart, at the same step or inside each other's."""
    corrected = sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(steps=3))
    nested = sd.Restart(sd.Restart(corrected, 0.05, 0.3, 2, 2), 0.06, 3.0, 3, 4)
    for solver in (sd.Restart(corrected, rounds=3), nested, sd.Restart(sd.PredictorCorrector(nested, sd.Langevin(steps=0)), 0.02, 0.5)):
        asked = []

        class Recorded(Unit):
            def at(self, step):
                return lambda stream=STEP: (asked.append((step, stream)), torch.ones(2, 2, dtype=torch.float64))[1]  # noqa: B023

        model = sd.ExactModel(two_modes(), sd.VPSDE())
        for times in ([1.0, 0.5, 0.001], sd.grid.log_snr(model.sde, 12)):
            asked.clear()
            with torch.no_grad():
                list(solve(model, solver, torch.ones(2, 2, dtype=torch.float64), model.sde.levels(times), Recorded(2)))
            assert len(asked) > 20
            assert len(set(asked)) == len(asked), solver
            assert max(stream for _, stream in asked) < 1 << 63


def test_a_corrector_within_a_restart_has_noise_of_its_own():
    """The law is that of fresh noise at every draw; noise that collides with the corrector's is off by 0.004 in variance."""
    sde = sd.VPSDE()
    solver = sd.Restart(sd.PredictorCorrector(sd.Ancestral(), LinearLangevin(0.1)), 0.1, 0.5, 2, 4)
    times = sd.grid.log_snr(sde, 12)
    found, expected = (law(solver, sde, times, 0.4, 0.3, 6, fresh) for fresh in (False, True))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_gaussian_data_of_the_reference_std_are_exact(sde):
    """StochasticExponential has the exact law for N(0, data_std^2) in any number of steps, from 1 up."""
    for n in (1, 2, 5):
        for order in (1, 2, 3):
            for eta in (0.0, 0.6, 1.0, 2.0):
                assert law_error(sd.StochasticExponential(order, eta, 0.3**0.5), sde, n, mean=0.0, c=0.3) < 1e-10


# ---- deterministic limits


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_sa_solver_without_noise_of_order_one_is_ddim(sde):
    model = sd.ExactModel(two_modes(), sde)
    times = sd.grid.default(sde, 10)
    a, b = (sd.sample(model, 32, solver=solver, times=times, seed=1) for solver in (sd.SASolver(1, 0, 0.0), sd.DDIM()))
    assert float((a - b).abs().max() / b.abs().max()) < 1e-12


def test_exponential_in_data_prediction_is_the_sa_solver():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    for order, eta in ((2, 0.0), (2, 1.0), (3, 0.7)):
        a = sd.sample(model, 32, solver=sd.StochasticExponential(order, eta, 0.0), times=sd.grid.log_snr(model.sde, 9))
        b = sd.sample(model, 32, solver=sd.SASolver(order, order, eta), times=sd.grid.log_snr(model.sde, 9))
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_edm_without_churn_is_heun_in_s():
    """s = t under the EDM SDE, so it is ``Heun`` there; and the same samples over alpha under any other, at the same s."""
    edm = sd.ExactModel(two_modes(), sd.EDMSDE())
    a, b = (sd.sample(edm, 32, solver=solver, steps=10) for solver in (sd.EDMStochastic(0.0), sd.Heun()))
    assert float((a - b).abs().max()) < 1e-12
    for churn in (0.0, 5.0):
        times = sd.grid.karras(edm.sde, 10, 20.0, 0.01)
        log_snr = edm.sde.log_snr(times)
        x = marginal_sample(edm.target, edm.sde, 20.0, 32)
        expected = sd.sample(edm, x_init=x, solver=sd.EDMStochastic(churn), times=times)
        for sde in (sd.VPSDE(), sd.SubVPSDE(), sd.RectifiedFlow()):
            here = sde.time_of_log_snr(log_snr)
            y = sd.sample(
                sd.ExactModel(edm.target, sde), x_init=x * sde.alpha(here[0]), solver=sd.EDMStochastic(churn), times=here
            )
            assert torch.allclose(y / sde.alpha(here[-1]), expected, rtol=1e-8, atol=1e-8)


def test_a_step_of_churn_is_the_algorithm():
    """2206.00364, algorithm 2, by hand: x0 = (x + s^2 m/c)/(1 + s^2/c) for data of N(m, c I) under the EDM SDE."""
    m, c, churn, scale = 0.5, 0.09, 1.2, 1.1
    target = sd.GaussianMixture(torch.full((1, 2), m, dtype=torch.float64), torch.tensor([c**0.5], dtype=torch.float64))
    model, times = sd.ExactModel(target, sd.EDMSDE()), [3.0, 1.0, 0.4, 0.1]
    x = torch.tensor([[1.0, -2.0], [0.3, 0.0]], dtype=torch.float64)
    found = sd.sample(model, x_init=x, solver=sd.EDMStochastic(churn, 0.4, 2.0, scale), times=times)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        hat = t * (1 + min(churn / 3, math.sqrt(2) - 1)) if 0.4 <= t <= 2.0 else t
        x = x + math.sqrt(hat**2 - t**2) * scale * Noise(0, np.arange(2), (2,), torch.float64).normal(STEP, i)
        slope_at = lambda y, u: (y - (y + u**2 * m / c) / (1 + u**2 / c)) / u
        d = slope_at(x, hat)
        x = x + (s - hat) * (d + slope_at(x + (s - hat) * d, s)) / 2
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("base", [sd.Heun(), sd.EulerMaruyama(), sd.SASolver()], ids=repr)
def test_restart_without_rounds_is_the_solver(base):
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    expected = sd.sample(model, 16, solver=base, steps=12)
    assert torch.equal(sd.sample(model, 16, solver=sd.Restart(base, rounds=0), steps=12), expected)
    # nor does a grid that ends above the range meet it
    times = sd.grid.karras(model.sde, 6, end=0.5)
    assert torch.equal(
        sd.sample(model, 16, solver=sd.Restart(base, low=0.01), times=times), sd.sample(model, 16, solver=base, times=times)
    )


def test_calls():
    model = sd.ExactModel(two_modes(), sd.CosineSDE())
    for solver, calls in [
        (sd.SASolver(), 9),
        (sd.StochasticExponential(3), 9),
        (sd.EDMStochastic(), 18),
        (sd.Restart(sd.Heun(), 0.1, 0.5, 3, 4), 2 * (9 + 3 * 4)),
        (sd.Restart(sd.SASolver(), 0.1, 0.5, 3, 4), 9 + 3 * 4),
        (sd.Restart(sd.Restart(sd.SASolver(), 0.05, 0.3, 1, 4), 1.0, 3.0, 2, 5), 9 + 4 + 2 * 5),
    ]:
        with sd.count_evaluations(model) as counted:
            sd.sample(model, 2, solver=solver, steps=9)
        assert counted.forward == calls, solver


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_finite_from_one_step_up(sde):
    model = sd.ExactModel(correlated_mixture(3), sde)
    for n in (1, 2, 3, 4):
        for solver in (sd.SASolver(4, 4, 1.0), sd.SASolver(), sd.StochasticExponential(3), sd.EDMStochastic(), sd.Restart(sd.SASolver())):
            assert sd.sample(model, 8, solver=solver, steps=n).isfinite().all()


def test_noise_is_noise():
    """The same x_T, other noise: other samples, by about the spread of the data."""
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = Noise(0, np.arange(256), (2,), torch.float64).normal(PRIOR)
    for solver in (sd.SASolver(), sd.StochasticExponential(), sd.EDMStochastic(), sd.Restart()):
        a, b = (sd.sample(model, x_init=x, solver=solver, steps=20, seed=seed) for seed in (1, 2))
        assert float((a - b).square().mean().sqrt()) > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.SASolver(0),
        lambda: sd.SASolver(3, 5),
        lambda: sd.SASolver(2, 2, -0.1),
        lambda: sd.SASolver(True),
        lambda: sd.StochasticExponential(4),
        lambda: sd.StochasticExponential(2, math.nan),
        lambda: sd.StochasticExponential(2, 1.0, -1.0),
        lambda: sd.EDMStochastic(-1.0),
        lambda: sd.EDMStochastic(1.0, 2.0, 1.0),
        lambda: sd.Restart(sd.Heun),
        lambda: sd.Restart(low=0.5, high=0.5),
        lambda: sd.Restart(rounds=-1),
        lambda: sd.Restart(steps=0),
        lambda: sd.Restart(sd.AdaptiveSDE()),
        lambda: sd.StochasticExponential(center=0.0),
        lambda: sd.SASolver(center=-1.0),
        lambda: sd.DDIM(scale=0.0),
        lambda: sd.Ancestral(scale=math.inf),
        lambda: sd.sample(sd.ExactModel(two_modes(), sd.VPSDE()), 2, solver=sd.SASolver(tau=lambda lam: -1.0), steps=3),
        lambda: sd.sample(sd.ExactModel(two_modes(), sd.VPSDE()), 2, noise="brownian"),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ConfigError):
        make()


# ---- few calls


def eight_modes(scale: float = 1.0) -> sd.GaussianMixture:
    """A 16-D mixture of eight narrow modes (stds of 0.12 to 0.29, spread 1), times scale."""
    generator = torch.Generator().manual_seed(16)
    means = torch.randn(8, 16, dtype=torch.float64, generator=generator)
    stds = 0.12 + 0.17 * torch.rand(8, dtype=torch.float64, generator=generator)
    return sd.GaussianMixture(scale * means, scale * stds, 1 + torch.rand(8, dtype=torch.float64, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("solver", [sd.StochasticExponential(), sd.SASolver()], ids=repr)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_twenty_calls_reach_the_noise_floor(sde, solver):
    """Sliced Wasserstein within three stds of the noise floor and a mean log p within 0.2 nats, at 5,000 samples.

    The mean of log p has a standard error of 0.04 (a std of sqrt(16/2) within modes).
    """
    n, target = 5_000, eight_modes()
    model, end = sd.ExactModel(target, sde), sd.grid.default_end(sde)
    exact = marginal_sample(target, sde, end, 5 * n)
    floor = sd.metrics.noise_floor(exact[n:], n, splits=5, reference=exact[:n])
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, n, solver=solver, steps=20, batch_size=n)
    assert calls.forward == 20
    assert sd.metrics.sliced_wasserstein(x, exact[:n]) < floor.mean + 3 * max(floor.std, 0.004)
    assert abs(float(model.log_prob(x, end).mean() - model.log_prob(exact, end).mean())) < 0.2 + 0.1  # 2.5 standard errors


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.DDIM(0.5), sd.Ancestral()], ids=repr)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_ten_steps_keep_the_standard_deviations(sde, solver):
    """Within 20 % of the data's in every coordinate. 4,000 samples: a standard error of 0.011, so 0.22 fails for 23 %."""
    n = 4000
    targets = {"two modes": two_modes(), "gaussian": gaussian(), "8-D": correlated_mixture(8), "16-D": eight_modes()}
    for title, target in targets.items():
        x = sd.sample(sd.ExactModel(target, sde), n, solver=solver, steps=10, batch_size=n)
        exact = marginal_sample(target, sde, sd.grid.default_end(sde), 40_000)
        ratio = x.std(0) / exact.std(0) - 1
        assert float(ratio.abs().max()) < 0.2 + 0.02, (title, ratio)


@pytest.mark.parametrize("by", [0.05, 20.0])
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()], ids=name)
def test_scales_of_data(sde, by):
    """Data of other scales: ten steps keep the stds within 20 %. 2,000 samples: a standard error of 0.016.

    Measured: DDIM 0.07 to 0.10, Ancestral 0.08 to 0.12, the exponential one 0.03 to 0.11 and 0.27 (rectified flow, 20), SA 0.04 to
    0.19. Without a reference: DDIM up to 0.57, Ancestral up to 0.93, the exponential one 172 and more at 0.05.
    """
    n, target = 2000, eight_modes(by)
    model, end = sd.ExactModel(target, sde), sde.levels([sd.grid.default_end(sde)])[0]
    x = marginal_sample(target, sde, sde.t_max, n, seed=3)
    exact = marginal_sample(target, sde, end, 20_000)
    for solver, most in ((sd.DDIM(), 0.2), (sd.Ancestral(), 0.2), (sd.DDIM(0.5), 0.2), (sd.StochasticExponential(), 0.3), (sd.SASolver(), 0.2)):
        y = sd.sample(model, x_init=x, solver=solver, steps=10, batch_size=n)
        assert float((y.std(0) / exact.std(0) - 1).abs().max()) < most + 0.02, solver


def test_scales_are_the_models_unless_given():
    model = sd.ExactModel(eight_modes(3.0), sd.VPSDE())
    scale = model.reference.scale
    assert scale == pytest.approx(3.0186, abs=1e-3)
    bind = lambda solver: bind_solver(solver, model, 10)[0]  # noqa: E731
    assert bind(sd.StochasticExponential()) == sd.StochasticExponential(data_std=0.25 * scale, center=0.4 * scale)
    assert bind(sd.StochasticExponential(data_std=0.1)) == sd.StochasticExponential(data_std=0.1, center=0.4 * scale)
    assert bind(sd.SASolver(center=1.0)) == sd.SASolver(center=1.0)
    assert bind(sd.DDIM()) == sd.DDIM(scale=scale)
    assert bind(sd.Ancestral(2.0)) == sd.Ancestral(2.0)
    assert bind(sd.Restart(sd.DDIM(1.0))).solver == bind(sd.DDIM(1.0))
    assert bind(sd.PredictorCorrector(sd.Ancestral())).predictor == bind(sd.Ancestral())
    assert bind(sd.Picard(sd.Ancestral())).solver == bind(sd.Ancestral())
    times = bind(sd.PredictorCorrector(sd.Ancestral())).grid(model.sde, 10)
    assert torch.equal(times, bind(sd.Ancestral()).grid(model.sde, 10))
    model.reference = None
    for solver in (sd.StochasticExponential(), sd.SASolver(), sd.DDIM(), sd.Ancestral()):
        assert bind(solver) is solver
        unit = {"center": 0.4} if isinstance(solver, (sd.SASolver, sd.StochasticExponential)) else {"scale": 1.0}
        assert torch.equal(solver.grid(model.sde, 10), replace(solver, **unit).grid(model.sde, 10))
    assert repr(sd.DDIM()) == "DDIM(eta=0.0)"
    assert repr(sd.Ancestral(0.5)) == "Ancestral(scale=0.5)"


def test_a_restart_of_the_reference_solver_is_exact_on_gaussian_data():
    """It starts anew inside the range, where no node of its first step is free: exact all the same, on Gaussian data."""
    model = sd.ExactModel(gaussian(), sd.VPSDE())
    x = marginal_sample(model.target, model.sde, 1.0, 4000)
    y = sd.sample(model, x_init=x, solver=sd.Restart(sd.ReferenceSolver()), steps=8, batch_size=4000)
    covariance = model.target.covariance if hasattr(model.target, "covariance") else model.target.moments()[1]
    assert float((y.T.cov() - covariance.view(2, 2)).abs().max()) < 0.05
    with sd.count_evaluations(model) as calls:
        sd.sample(model, 2, solver=sd.Restart(sd.ReferenceSolver()), steps=8)
    assert calls.forward == 8 + 2 * 2
    assert bind_solver(sd.ReferenceSolver(), model, 8)[0].free
    assert not bind_solver(sd.Restart(sd.ReferenceSolver()), model, 8)[0].solver.free
    with pytest.raises(ConfigError, match="own state"):
        sd.sample(model, 2, solver=sd.PredictorCorrector(sd.ReferenceSolver()), steps=8)
    with pytest.raises(ConfigError, match="in parallel"):
        sd.sample(model, 2, solver=sd.Picard(sd.ReferenceSolver()), steps=8)


STOCHASTIC = [sd.EulerMaruyama(), sd.DDIM(0.3), sd.Ancestral(), sd.ReverseDiffusion(), sd.SASolver(), sd.StochasticExponential(), sd.EDMStochastic()]
STOCHASTIC += [sd.Restart(), sd.SASolver(tau=lambda lam: 1.0), sd.PredictorCorrector(), sd.DPMSolverPP(2, eta=1.0)]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: type(solver).__name__)
def test_from_data_to_noise_is_refused(solver):
    model = sd.ExactModel(gaussian(), sd.VPSDE())
    x, levels = torch.zeros(2, 2, dtype=torch.float64), model.sde.levels([0.1, 0.3, 0.7])
    with pytest.raises(ConfigError, match="from noise to data"):
        list(solve(model, solver, x, levels, Noise(0, np.arange(2), (2,), torch.float64)))


@pytest.mark.parametrize(
    "solver", [sd.EulerMaruyama(0.0), sd.DDIM(), sd.SASolver(tau=0.0), sd.StochasticExponential(eta=0.0), sd.EDMStochastic(0.0)], ids=repr
)
def test_without_noise_both_ways_are_open(solver):
    model = sd.ExactModel(gaussian(), sd.VPSDE())
    x, noise = torch.ones(2, 2, dtype=torch.float64), Noise(0, np.arange(2), (2,), torch.float64)
    times = torch.linspace(0.1, 0.7, 201, dtype=torch.float64)
    for way in (times, times.flip(0)):
        with torch.no_grad():
            *_, (_, _, y) = solve(model, solver, x, model.sde.levels(way), noise)
        assert float((y - gaussian_path(model.target, model.sde, x, float(way[0]), float(way[-1]))).abs().max()) < 0.02


def test_numbers_of_other_libraries():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    sample = lambda solver: sd.sample(model, 4, solver=solver, steps=6)  # noqa: E731
    expected = sample(sd.SASolver(2, 2, lambda lam: 0.5))
    for value in (torch.tensor(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5, dtype=torch.float64), Fraction(1, 2)):
        assert torch.equal(sample(sd.SASolver(np.int64(2), np.int8(2), lambda lam, v=value: v)), expected)
        assert torch.equal(sample(sd.SASolver(2, 2, value)), sample(sd.SASolver(2, 2, 0.5)))
    assert sd.StochasticExponential(np.int32(2), np.float32(1.0)) == sd.StochasticExponential(2, 1.0)
    assert repr(sd.Restart(rounds=np.int64(2), steps=np.int64(3))) == repr(sd.Restart(rounds=2, steps=3))
    for bad in (np.float64(2.0), 2.0, np.bool_(True), "2", None):
        with pytest.raises(ConfigError, match="predictor_order"):
            sd.SASolver(bad)
    for bad in (torch.zeros(2), np.bool_(True), "0.5", None, torch.tensor(math.nan), torch.tensor(-1.0)):
        with pytest.raises(ConfigError, match=r"tau\("):
            sample(sd.SASolver(2, 2, lambda lam, v=bad: v))


# ---- one Brownian path for any number of steps

STRONG = {
    "Euler-Maruyama": sd.EulerMaruyama(),
    "ancestral": sd.Ancestral(),
    "SA": sd.SASolver(2, 2, 1.0),
    "exponential": sd.StochasticExponential(2, 1.0, 0.4),
    "EDM": sd.EDMStochastic(4.0, 0.0, math.inf),
}


class Drawn:
    """Noise that was drawn before, step by step: several solvers on one path cost its draws once."""

    def __init__(self, noise, n):
        self.ids, self.z = noise.ids, [noise.at(i)(STEP) for i in range(n)]

    def at(self, step):
        return lambda stream: self.z[step]


def rms(x):
    return float(x.square().sum(1).mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE()], ids=name)
def test_strong_order_on_a_common_path(sde):
    """Solutions at n, 2 n and 4 n steps: differences halve (order 1 within 0.15). All discretize one SDE: they meet."""
    model, low, high = sd.ExactModel(gaussian(), sde), *{"VESDE": (0.5, 1.0), "EDMSDE": (0.5, 5.0)}.get(name(sde), (0.05, 0.9))
    start = Noise(3, np.arange(512), (2,), torch.float64)
    x = start.normal(PRIOR) * sde.sigma(high)
    ends = {title: [] for title in STRONG}
    steps = [32, 64, 128]
    for n in steps:
        times = sd.grid.log_snr(sde, n, high, low)
        levels = sde.levels(times)
        noise = Drawn(draws_for("path", start, sde, levels), n)
        with torch.no_grad():
            for title, solver in STRONG.items():
                *_, (_, _, y) = solve(model, solver, x, levels, noise)
                ends[title].append(y)
    sampled = sd.sample(model, x_init=x, solver=sd.EulerMaruyama(), times=times, noise="path", seed=3, batch_size=512)
    assert torch.equal(sampled, ends["Euler-Maruyama"][-1])
    for title, y in ends.items():
        order = slope(steps[:2], [rms(y[0] - y[1]), rms(y[1] - y[2])])
        if title == "SA":
            assert order >= 0.85, title  # 0.98 to 1.22: the second order of its drift still shows
        else:
            assert order == pytest.approx(1, abs=0.15), title
    for title in ("ancestral", "SA", "exponential"):  # the reverse SDE, whatever the method; churn is another SDE
        gaps = [rms(a - b) for a, b in zip(ends[title], ends["Euler-Maruyama"], strict=True)]
        assert slope(steps[1:], gaps[1:]) == pytest.approx(1, abs=0.15), title
    # independent noise is another path at each number of steps: nothing to converge to
    a, b = (sd.sample(model, x_init=x, solver=sd.EulerMaruyama(), times=sd.grid.log_snr(sde, n, high, low), batch_size=512) for n in (64, 128))
    assert rms(a - b) > 10 * rms(ends["Euler-Maruyama"][1] - ends["Euler-Maruyama"][2])

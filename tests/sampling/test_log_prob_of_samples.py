"""log p of samples, found while they are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, correlated_mixture, marginal_sample
from sampling.cases import SOLVERS, by_sde, mixture

import scoresde as sd

BY_REFERENCE = [(sde, "auto", steps, limit) for sde in SDES for steps, limit in ((20, 4e-3), (40, 3e-5))]

OTHERS = [(sd.UniPC(), 40, 2e-2), (sd.DEIS(4), 40, 5e-2), (sd.RK4(), 20, 2e-2), (sd.AdaptiveODE(1e-5, 1e-5), None, 1e-3)]


@pytest.mark.parametrize(("sde", "solver", "steps", "limit"), BY_REFERENCE + [(sde, *row) for sde in SDES[::4] for row in OTHERS], ids=repr)
def test_log_prob_of_samples_is_the_exact_one(sde, solver, steps, limit):
    """Samples from the exact density at t_max, so that the prior adds no error; root mean square error in nats, at t_end and t_min."""
    target = correlated_mixture(4)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_max, 16)
    known = model.log_prob(x, sde.t_max) - sde.prior_log_prob(x)
    how = {"x_init": x, "solver": solver, "steps": steps}
    for end in (2 * sde.t_min, sde.t_min):
        with sd.count_evaluations(model) as calls:
            y, log_p = sd.sample(model, t_end=end, return_log_prob=True, **how)
        assert (log_p.shape, log_p.dtype) == ((16,), torch.float64)
        assert float((log_p + known - model.log_prob(y, end)).square().mean().sqrt()) < limit
        plain = sd.sample(model, t_end=end, **how)
        assert torch.allclose(y, plain, rtol=0, atol=1e-11 if steps else 1e-4)
        if solver in ("auto", sd.UniPC()):
            assert (calls.forward, calls.vjp) == (steps + 1, 4 * (steps + 1))
    assert torch.allclose(log_p, sd.log_prob(model, y, steps=60, divergence="exact").log_prob, rtol=0, atol=2 * limit)


@pytest.mark.slow
def test_log_prob_of_sample_i_is_that_of_sample_i():
    """Of a network with labels, in float32, with random traces, by every kind of solver."""
    net = sd.nets.MLP(3, width=16, depth=1, classes=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    model = sd.NetworkModel(net, sd.VPSDE(), (3,))
    label = torch.arange(7) % 3
    for reference in (None, sd.GaussianReference(torch.zeros(3), torch.ones(3))):
        model.reference = reference
        for solver in ("auto", sd.Heun(), sd.AdaptiveODE(1e-3, 1e-3))[: 3 if reference is None else 1]:
            how = {"solver": solver, "return_log_prob": True, "divergence": "hutchinson", "probes": 2, "seed": 3}
            how["steps"] = None if hasattr(solver, "rtol") else 8
            x, log_p = sd.sample(model, 7, label=label, **how)
            plain = {**how, "return_log_prob": False}
            assert torch.allclose(x, sd.sample(model, 7, label=label, **plain), rtol=0, atol=2e-2 if hasattr(solver, "rtol") else 1e-5)
            for size in (3,):
                for found, whole in zip(sd.sample(model, 7, label=label, batch_size=size, **how), (x, log_p), strict=True):
                    assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4)
            for found, whole in zip(sd.sample(model, ids=[5, 2], n=2, label=label[[5, 2]], **how), (x, log_p), strict=True):
                assert torch.allclose(found, whole[[5, 2]], rtol=1e-4, atol=1e-4)
            exact = sd.sample(model, 7, label=label, **{**how, "divergence": "exact"})[1]
            assert 1e-4 < float((exact - log_p).abs().max()) < 5


@pytest.mark.parametrize("kind", ["hutchinson", "gaussian", "hutch++"])
def test_log_prob_of_samples_has_the_probes_of_log_prob(kind):
    """Back along the same path with the same probes the estimate is the same, with the same correction, by either kind of solver."""
    model = sd.ExactModel(correlated_mixture(6), sd.SubVPSDE())
    how = {"divergence": kind, "probes": 3, "seed": 5, "ids": [7, 1, 4, 9]}
    for solver, steps in (("auto", 60), (sd.AdaptiveODE(1e-4, 1e-4), None)):
        x, log_p = sd.sample(model, 4, solver=solver, steps=steps, t_end=model.sde.t_min, return_log_prob=True, **how)
        assert torch.allclose(log_p, sd.log_prob(model, x, steps=60, **how).log_prob, rtol=0, atol=2e-3)
        assert (log_p - sd.log_prob(model, x, steps=40, divergence="exact").log_prob).abs().max() > 1e-2


@by_sde
def test_log_prob_of_samples_that_start_in_the_middle(sde):
    """From N(0, sigma^2 I) there: of Gaussian data all is known, the path is a change of scale."""
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)), sde)
    times = sd.grid.log_snr(sde, 40)[18:]
    start, end = sde.levels(times[[0, -1]])
    x, log_p = sd.sample(model, 5, solver=sd.ReferenceSolver(), times=times, return_log_prob=True)
    grow = math.sqrt((0.25 * end.alpha**2 + end.sigma**2) / (0.25 * start.alpha**2 + start.sigma**2))
    normal = torch.distributions.Normal(0.0, torch.tensor(start.sigma * grow, dtype=torch.float64))
    assert torch.allclose(log_p, normal.log_prob(x).sum(1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [*SOLVERS, sd.AdaptiveSDE(), sd.EDMStochastic(), sd.SASolver(), sd.Restart(sd.Heun())], ids=repr)
def test_log_prob_of_samples_is_refused_where_noise_is_added(solver):
    if repr(solver).split("(")[0] in ("Euler", "Heun", "RK4", "TorchDiffEq") or getattr(solver, "eta", None) == 0.0:
        return
    model = sd.ExactModel(mixture(), sd.VPSDE())
    steps = 1 if hasattr(solver, "rtol") else 3
    with sd.count_evaluations(model) as calls, pytest.raises(sd.errors.ConfigError, match="return_log_prob=True needs"):
        sd.sample(model, 4, solver=solver, steps=steps, return_log_prob=True)
    assert calls.forward <= 6  # it is known at the first noise


def test_wrong_arguments_of_log_prob_of_samples():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="denoise=True"):
        sd.sample(model, 2, return_log_prob=True, denoise=True)
    with pytest.raises(sd.errors.ConfigError, match="divergence"):
        sd.sample(model, 2, return_log_prob=True, divergence="trace")
    with pytest.raises(sd.errors.ConfigError, match="probes"):
        sd.sample(model, 2, return_log_prob=True, probes=0)
    x, log_p = sd.sample(model, 0, return_log_prob=True)
    assert (x.shape, log_p.shape) == ((0, 3), (0,))


# ---- what a solver says that it asks for


class TakesVelocity(sd.Solver):
    """Euler's method."""

    def step(self, model, x, t, s, state, noise):
        return x + (s - t) * model.velocity(x, t), state


class TakesX0(sd.Solver):
    """DDIM, of x0 and eps."""

    asks = "x0"

    def step(self, model, x, t, s, state, noise):
        x0, eps = model.predict(x, t)
        return s.alpha * x0 + s.sigma * eps, state


def test_a_solver_of_ones_own_says_what_it_asks_for():
    """Either kind gives the density of what it makes; one that says the other is told so, before a sample is returned."""
    model = sd.ExactModel(correlated_mixture(2), sd.VPSDE())
    for solver, twin in ((TakesVelocity(), sd.Euler()), (TakesX0(), sd.DDIM())):
        times = sd.grid.log_snr(model.sde, 30)
        for found, expected in zip(*(sd.sample(model, 3, solver=s, times=times, return_log_prob=True) for s in (solver, twin)), strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)

    class SaysX0(TakesVelocity):
        asks = "x0"

    class SaysEps(TakesVelocity):
        asks = "eps"

    class SaysVelocity(TakesX0):
        asks = "velocity"

    for solver in (SaysX0(), SaysEps()):
        with sd.count_evaluations(model) as calls, pytest.raises(sd.errors.ConfigError, match=r"asks the model for its velocity.*asks = 'velocity'"):
            sd.sample(model, 3, solver=solver, steps=4, return_log_prob=True)
        assert calls.forward == 0
    with sd.count_evaluations(model) as calls, pytest.raises(sd.errors.ConfigError, match="asks the model for x0, eps or the score"):
        sd.sample(model, 3, solver=SaysVelocity(), steps=4, return_log_prob=True)
    assert calls.forward == 0
    for solver in (SaysX0(), SaysVelocity()):  # without the density it does not matter
        assert sd.sample(model, 3, solver=solver, steps=4).isfinite().all()


def test_a_solver_of_x0_that_goes_back_in_time_is_told_so():
    """The rate of log p is integrated over the calls, which must be at decreasing times."""

    class Back(TakesX0):
        def step(self, model, x, t, s, state, noise):
            model.denoise(x, s)
            return super().step(model, x, t, s, state, noise)

    model = sd.ExactModel(correlated_mixture(2), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="calls at decreasing times"):
        sd.sample(model, 3, solver=Back(), steps=4, return_log_prob=True)

"""The law of what solvers draw: moments with a stated power, on Gaussians and mixtures."""

from __future__ import annotations

import math

import pytest
import torch
from problems import CLOSED, SDES, name, two_modes, z_limit
from sampling.cases import SOLVERS, by_sde

import scoresde as sd

GAUSSIAN = torch.tensor([[0.8, -0.3]]), torch.tensor([[0.5, 0.2]])  # mean and std of the two coordinates


def step_of(solver, sde, t, s, mean, variance):
    """(a, c, b2) with x_s = a x + c + sqrt(b2) z, from closed forms: score = -(x - alpha m)/(alpha^2 v + sigma^2)."""
    alpha, sigma, f, g2 = CLOSED[name(sde)]
    at, as_, st, ss = alpha(t), alpha(s), sigma(t), sigma(s)
    p = at**2 * variance + st**2
    if isinstance(solver, (sd.EulerMaruyama, sd.TorchSDE)):
        h, k = s - t, (1 + solver.eta**2) / 2 * g2(t)
        return 1 + h * (f(t) + k / p), -h * k * at * mean / p, solver.eta**2 * g2(t) * (t - s)
    r = at / as_
    b2 = st**2 - r**2 * ss**2
    if isinstance(solver, sd.ReverseDiffusion):
        return 2 - r - b2 / p, b2 * at * mean / p, b2
    if isinstance(solver, sd.DDIM):
        v = solver.eta**2 * ss**2 * b2 / st**2
        # x0 = gain x + shift, eps = (x - alpha x0)/sigma
        gain, shift = at * variance / p, st**2 * mean / p
        k = (ss**2 - v).clamp_min(0).sqrt() / st
        return as_ * gain + k * (1 - at * gain), as_ * shift - k * at * shift, v
    gain, shift = at * variance / p, st**2 * mean / p
    return r * ss**2 / st**2 + as_ * b2 / st**2 * gain, as_ * b2 / st**2 * shift, ss**2 * b2 / st**2

LAW_SOLVERS = [
    sd.EulerMaruyama(),
    sd.EulerMaruyama(eta=0.5),
    sd.Ancestral(),
    sd.ReverseDiffusion(),
    sd.DDIM(eta=0.5),
    sd.DDIM(eta=1.0),
    sd.TorchSDE("euler"),
    sd.TorchSDE("euler", eta=0.7),
]

LAW_STEPS, LAW_N = 12, 20_000

LAW_TESTS = len(LAW_SOLVERS) * len(SDES) * 4 * 2 * 2  # solvers, SDEs, times, coordinates, mean and variance


def law_scores(solver, sde, model=None, n=LAW_N):
    """z-scores of mean and variance at four of the times, against the recursion."""
    m, std = (v.double() for v in GAUSSIAN)
    model = model or sd.ExactModel(sd.GaussianMixture(m, std), sde)
    times = sd.grid.karras(sde, LAW_STEPS) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.log_snr(sde, LAW_STEPS)
    if isinstance(solver, (sd.EulerMaruyama, sd.TorchSDE)) and not isinstance(sde, (sd.EDMSDE, sd.VESDE)):
        times = sd.grid.quadratic(sde, LAW_STEPS)  # explicit: log-SNR steps at the end of VP would be unstable
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.full((2,), float(sde.sigma(float(times[0]))) ** 2).double()
    scores = []
    for step, t, x, _ in sd.trajectory(model, n, solver=solver, times=times, seed=11):
        if step:
            a, c, b2 = step_of(solver, sde, times[step - 1], times[step], m[0], std[0] ** 2)
            mean, variance = a * mean + c, a**2 * variance + b2
        if step in (3, 6, 9, LAW_STEPS):
            assert t == float(times[step])
            scores.append((x.mean(0) - mean) / (variance / n).sqrt())
            scores.append((x.var(0) / variance - 1) / math.sqrt(2 / n))
    return torch.cat(scores)


@by_sde
@pytest.mark.parametrize("solver", LAW_SOLVERS, ids=repr)
def test_reverse_sde_marginals(solver, sde):
    """M11. With N = 20,000 and |z| < 6.1, a scale error of 5 % gives z = 9.8 and a shift of 5 % of a std z = 7.0 on average."""
    scores = law_scores(solver, sde)
    assert scores.numel() == 16
    assert float(scores.abs().max()) < z_limit(LAW_TESTS)


def test_the_marginal_test_has_its_power():
    """A model whose data are 5 % wider, or whose mean is shifted by 10 % of a std, is found at N = 20,000."""
    m, std = (v.double() for v in GAUSSIAN)
    for wrong in (sd.GaussianMixture(m, 1.05 * std), sd.GaussianMixture(m + 0.1 * std, std)):
        scores = law_scores(sd.Ancestral(), sd.VPSDE(), sd.ExactModel(wrong, sd.VPSDE()))
        assert float(scores.abs().max()) > z_limit(LAW_TESTS)


@by_sde
def test_the_discretised_laws_are_close_to_the_data(sde):
    """What the recursion converges to is the data's law: mean and std within 5 % at 200 steps, for all of these solvers."""
    m, std = (v.double()[0] for v in GAUSSIAN)
    for solver in LAW_SOLVERS:
        times = sd.grid.karras(sde, 400) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.quadratic(sde, 400)
        mean, variance = 0 * m, torch.full((2,), float(sde.sigma(float(times[0]))) ** 2).double()
        for t, s in zip(times[:-1], times[1:], strict=True):
            a, c, b2 = step_of(solver, sde, t, s, m, std**2)
            mean, variance = a * mean + c, a**2 * variance + b2
        assert torch.allclose(variance.sqrt(), std, rtol=0.05), solver
        assert float(((mean - m) / std).abs().max()) < 0.05, solver


@by_sde
def test_every_solver_is_finite_from_one_step_up(sde):
    model = sd.ExactModel(two_modes(), sde)
    for solver in SOLVERS:
        for steps in (1, 2, 5, 10):
            x = sd.sample(model, 4, solver=solver, steps=steps, batch_size=4)
            assert bool(x.isfinite().all()), (solver, steps)


@by_sde
def test_ancestral_has_the_spread_of_the_data_at_ten_steps(sde):
    """Within 20 %, on the default grid, where discrete tables give NaN (their beta exceeds 1 below 20 steps)."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=torch.float64)
    target = sd.GaussianMixture(means, torch.tensor([0.3, 0.4], dtype=torch.float64))
    x = sd.sample(sd.ExactModel(target, sde), 4_000, solver=sd.Ancestral(), steps=10, batch_size=4_000)
    assert float(x.var(0).sum().sqrt()) == pytest.approx(math.sqrt(1.5**2 + 0.25**2 + 2 * 0.125), rel=0.2)


@pytest.mark.parametrize("solver", [sd.Heun(), sd.RK4(), sd.DDIM(), sd.TorchDiffEq("dopri5")], ids=repr)
@by_sde
def test_ode_samples_have_the_law_of_the_data(sde, solver):
    """Two modes with weights 0.4 and 0.6, N = 2,000: the fraction within 5 sigma = 5.5 % and the spread within 6 %."""
    model = sd.ExactModel(two_modes(), sde)
    steps = {"Heun": 40, "RK4": 20, "DDIM": 150}.get(name(solver))
    x = sd.sample(model, 2_000, solver=solver, times=steps and sd.grid.log_snr(sde, steps), batch_size=2_000)
    assert float((x[:, 0] < 0).double().mean()) == pytest.approx(0.4, abs=0.055)
    assert torch.allclose(x.std(0), two_modes().sample(50_000).std(0), rtol=0.06)

"""Orders of convergence, measured on exact models; exactness where a solver is exact; adapters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, gaussian_path, marginal_sample, name, reference_path, slope, two_modes

import scoresde as sd

PATHS = 64


def errors_at(model, solver, x, exact, grid, steps, **kwargs):
    """Median pathwise errors at some numbers of steps."""
    found = []
    for n in steps:
        y = sd.sample(model, x_init=x, times=grid(model.sde, n), solver=solver, batch_size=len(x), **kwargs)
        found.append(float((y - exact).norm(dim=1).median()))
    return found


def order_grid(sde):
    return sd.grid.karras if isinstance(sde, sd.EDMSDE) else sd.grid.uniform


ODE_SOLVERS = [(sd.Euler(), 1), (sd.DDIM(), 1), (sd.Heun(), 2), (sd.RK4(), 4)]


@pytest.mark.parametrize("target", [gaussian(), two_modes()], ids=["gaussian", "two_modes"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_order_of_the_ode_solvers(sde, target):
    """Slopes 1, 1, 2, 4 within 0.1, from the median pathwise error on the last doubling."""
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_max, PATHS)
    times = order_grid(sde)(sde, 2)
    if len(target.means) == 1:
        exact = gaussian_path(target, sde, x, float(times[0]), float(times[-1]))  # in closed form
    else:
        exact = reference_path(model, x, times)
    for solver, order in ODE_SOLVERS:
        # sigma of VE grows by a factor of 5000: its Euler method is asymptotic late
        steps = [2560, 5120] if isinstance(sde, sd.VESDE) and order == 1 else [320, 640]
        found = errors_at(model, solver, x, exact, order_grid(sde), steps)
        assert slope(steps, found) == pytest.approx(order, abs=0.1), f"{solver} {found}"


def linear_moments(sde, c, solver_coefficients, times):
    """Variance of a linear scheme x_s = a x + b z on centred Gaussian data of variance c, started at the exact variance."""
    t0 = float(times[0])
    variance = float(sde.alpha(t0) ** 2 * c + sde.sigma(t0) ** 2)
    levels = sde.levels(times)
    for t, s in pairwise(levels):
        a, b2 = solver_coefficients(t, s, c)
        variance = a**2 * variance + b2
    return variance


def euler_maruyama_coefficients(t, s, c):
    """dx = [f x - g^2 score] dt + g dw with the score -x/(alpha^2 c + sigma^2): written from the SDE, not from our solver."""
    h = s - t
    return 1 + h * (t.f + t.g2 / (t.alpha**2 * c + t.sigma**2)), t.g2 * abs(h)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weak_order_of_euler_maruyama(sde):
    """Variance error by exact moment recursion: slope at least 0.9, 1 within 0.1 where no symmetry helps."""
    c, steps, found = 0.3, [640, 1280], []
    for n in steps:
        times = order_grid(sde)(sde, n)
        end = float(times[-1])
        exact = float(sde.alpha(end) ** 2 * c + sde.sigma(end) ** 2)
        found.append(abs(linear_moments(sde, c, euler_maruyama_coefficients, times) - exact))
    order = slope(steps, found)
    assert order >= 0.9
    if not isinstance(sde, (sd.VESDE, sd.RectifiedFlow)):  # those superconverge on a centred Gaussian
        assert order == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_euler_maruyama_is_the_scheme_of_the_recursion(sde):
    """One step of the solver is a x + b z with the a and b of the recursion, so its weak order is the one measured."""
    c = 0.3
    target = sd.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([math.sqrt(c)], dtype=torch.float64))
    model = sd.ExactModel(target, sde)
    times = order_grid(sde)(sde, 20)[10:12]
    x = torch.tensor([[0.7, -1.2], [0.0, 0.0]], dtype=torch.float64)
    y = sd.sample(model, x_init=x, times=times, solver=sd.EulerMaruyama(), seed=3)
    t, s = sde.levels(times)
    a, b2 = euler_maruyama_coefficients(t, s, c)
    z = sd.noise.Noise(3, sd.noise.check_ids(None, 2), (2,), torch.float64).normal(sd.noise.STEP, 0)
    assert torch.allclose(y, a * x + math.sqrt(b2) * z, rtol=1e-10, atol=1e-12)


def coupled_euler_maruyama(model, x, times, z):
    """Euler-Maruyama steps of the solver under test, driven by given increments."""
    levels = model.sde.levels(times)
    for i, (t, s) in enumerate(pairwise(levels)):
        x, _ = sd.EulerMaruyama().step(model, x, t, s, None, lambda stream, i=i: z[i])
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_strong_order_of_euler_maruyama(sde):
    """Additive noise: strong order 1 within 0.15, one Brownian path for all.

    The reference is 64 times finer than the finest: its own error moves the slope by 0.01 (0.05 at 16 times).
    """
    target = gaussian()
    model = sd.ExactModel(target, sde)
    # away from the ends, where g changes by orders of magnitude in a step
    low, high = {"VESDE": (0.5, 1.0), "EDMSDE": (0.5, 5.0)}.get(name(sde), (0.05, 0.9))
    steps, fine = [64, 128], 64 * 128
    generator = torch.Generator().manual_seed(0)
    x = marginal_sample(target, sde, high, PATHS)
    dw = torch.randn(fine, *x.shape, dtype=x.dtype, generator=generator) / math.sqrt(fine)
    with torch.no_grad():
        reference = coupled_euler_maruyama(model, x, sd.grid.uniform(sde, fine, high, low), dw * math.sqrt(fine))
        found = []
        for n in steps:
            z = dw.view(n, fine // n, *x.shape).sum(1) * math.sqrt(n)
            y = coupled_euler_maruyama(model, x, sd.grid.uniform(sde, n, high, low), z)
            found.append(float((y - reference).square().sum(1).mean().sqrt()))
    assert slope(steps, found) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_torchsde_srk_is_more_accurate_than_euler(sde):
    """Weak error of the variance on a Gaussian, the same noise for both and common to the exact law's sample (paired)."""
    target = sd.GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_max, 256)
    times = sd.grid.log_snr(sde, 40, end=max(sde.t_min, 1e-2))
    a = {m: sd.sample(model, x_init=x, times=times, solver=sd.TorchSDE(m), batch_size=256) for m in ("euler", "srk", "heun")}
    b = sd.sample(model, x_init=x, times=times, solver=sd.EulerMaruyama(), batch_size=256)
    assert torch.allclose(a["euler"], b, rtol=1e-9, atol=1e-9)  # the same scheme, the same noise
    exact = math.sqrt(float(sde.alpha(float(times[-1])) ** 2 * 0.25 + sde.sigma(float(times[-1])) ** 2))
    gap = {m: abs(float(y.std()) / exact - 1) for m, y in a.items()}
    sampling = 4.5 / math.sqrt(2 * a["srk"].numel())
    assert gap["srk"] < 0.02 + sampling
    assert gap["heun"] < 0.02 + sampling


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"])
def test_torchdiffeq_keeps_its_tolerance(method):
    target, sde = two_modes(), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_max, PATHS)
    exact = reference_path(model, x, sd.grid.uniform(sde, 1))
    errors = []
    for tolerance in (1e-3, 1e-5):
        with sd.count_evaluations(model) as calls:
            y = sd.sample(model, x_init=x, solver=sd.TorchDiffEq(method, rtol=tolerance, atol=tolerance), batch_size=PATHS)
        errors.append(float((y - exact).norm(dim=1).median()))  # of a path near a mode boundary nothing can be promised
        if method != "fehlberg2":  # of order 2 and controlled by a difference of orders 1 and 2: 0.3 at 1e-3
            assert errors[-1] < 100 * tolerance
        assert calls.forward > 0
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(("method", "ours"), [("euler", sd.Euler()), ("rk4", None), ("heun2", sd.Heun()), ("midpoint", None)])
def test_torchdiffeq_fixed_methods_step_on_the_grid(method, ours):
    target, sde = two_modes(), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    with sd.count_evaluations(model) as calls:
        y = sd.sample(model, 8, solver=sd.TorchDiffEq(method), steps=10)
    assert calls.forward == 10 * {"euler": 1, "rk4": 4, "heun2": 2, "midpoint": 2}[method]
    if ours is not None:
        assert torch.allclose(y, sd.sample(model, 8, solver=ours, steps=10), rtol=1e-9, atol=1e-9)


def test_torchdiffeq_error_norm_is_the_worst_sample():
    """A hard sample is solved as well among many easy ones as alone (torchdiffeq's own norm averages over the batch)."""
    target, sde = two_modes(), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    hard = marginal_sample(target, sde, sde.t_max, 1, seed=5)
    easy = torch.zeros(255, 2, dtype=torch.float64) + 50.0  # so far out that the score is all but linear
    solver = sd.TorchDiffEq(rtol=1e-4, atol=1e-4)
    exact = reference_path(model, hard, sd.grid.uniform(sde, 1))
    alone = sd.sample(model, x_init=hard, solver=solver, batch_size=1)
    among = sd.sample(model, x_init=torch.cat([hard, easy]), solver=solver, batch_size=256)[:1]
    assert float((among - exact).norm()) < 5 * max(float((alone - exact).norm()), 1e-4)


def test_predictor_corrector_orders_and_calls():
    model = sd.ExactModel(correlated_mixture(16), sd.SubVPSDE())
    first = sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(snr=0.1, steps=2))
    second = sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(snr=0.1, steps=2), order="corrector-predictor")
    for solver in (first, second):
        with sd.count_evaluations(model) as calls:
            x = sd.sample(model, 4, solver=solver, steps=7)
        assert calls.forward == 7 * 3
        assert x.isfinite().all()
    assert not torch.equal(sd.sample(model, 4, solver=first, steps=7), sd.sample(model, 4, solver=second, steps=7))


def test_langevin_step_is_the_formula():
    model, t = sd.ExactModel(correlated_mixture(16), sd.VPSDE()), 0.4
    level = model.sde.levels([t])[0]
    x = marginal_sample(model.target, model.sde, t, 8)
    z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    y = sd.Langevin(snr=0.1).correct(model, x, level, lambda stream: z)
    score = model.score(x, t)
    h = 2 * (0.1 * z.norm(dim=1) / score.norm(dim=1)) ** 2
    assert (h < level.sigma**2).all()  # the cap plays no part here
    assert torch.allclose(y, x + h[:, None] * score + (2 * h)[:, None].sqrt() * z, rtol=1e-12)

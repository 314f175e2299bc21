"""Exponential and multistep solvers: weights, orders of convergence on exact models, equalities, calls, all grids from one step up."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import (
    HIGH,
    LOW,
    SDES,
    correlated_mixture,
    gaussian,
    gaussian_path,
    graded,
    image_mixture,
    marginal_sample,
    name,
    reference_path,
    slope,
    two_modes,
    z_limit,
)

import scoresde as sd
from scoresde.core.exponential import exponential_weights, halved_weights, moments
from scoresde.solvers.multistep import LONG

PATHS = 16
S2, S3 = sd.DPMSolverPP(2, singlestep=True), sd.DPMSolverPP(3, singlestep=True)
ALL = [
    *(sd.DPMSolverPP(k) for k in (1, 2, 3)), S2, S3, sd.DPMSolverPP(1, eta=1.0), sd.DPMSolverPP(2, eta=0.5), sd.DPMSolverPP(3, eta=1.0),
    *(sd.UniPC(k) for k in (1, 2, 3)), sd.UniPC(2, variant="bh1"), sd.UniPC(3, corrector=False), *(sd.DEIS(k) for k in (1, 2, 3, 4)),
    *(sd.AdamsBashforth(k, of) for of in ("x0", "eps", "v", "velocity") for k in (1, 2, 3, 4)),
]  # fmt: skip


HIGHEST = [
    sd.DPMSolverPP(3), S3, sd.DPMSolverPP(3, eta=1.0), sd.UniPC(2, variant="bh1"), sd.UniPC(3), sd.UniPC(3, lower_order_final=False), sd.DEIS(4),
    *(sd.AdamsBashforth(4, of) for of in ("x0", "eps", "v", "velocity")),
]  # fmt: skip


# ---- weights


def quadrature(function, n=80):
    """The integral over [0, 1], by a rule that shares nothing with the closed forms."""
    x, w = np.polynomial.legendre.leggauss(n)
    return float(w @ function((1 + x) / 2)) / 2


@pytest.mark.parametrize("z", [s * v for s in (1, -1) for v in (0.0, 1e-12, 1e-3, 0.5, 0.999, 1.0, 1.001, 3.0, 12.0, 40.0)])
def test_moments_are_the_integrals(z):
    for k, found in enumerate(moments(z, 5)):
        assert found == pytest.approx(quadrature(lambda u, k=k: np.exp(-z * (1 - u)) * u**k), rel=5e-14)


@pytest.mark.parametrize("c", [1.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("h", [1e-9, 1e-3, 0.3, 4.0, -0.7])
def test_weights_integrate_polynomials_and_nothing_is_lost_at_short_steps(h, c):
    """sum_j w_j q(tau_j) = the integral of e^(-c (h - tau)) q(tau), for cubics q, past nodes and one at the end."""
    for nodes in ([0.0, -h, -2.5 * h, -3 * h], [h, 0.0, -0.2 * h, -4 * h]):
        w = exponential_weights(nodes, h, c)
        for k in range(4):
            expected = h * quadrature(lambda u, k=k: np.exp(-c * h * (1 - u)) * (u - 0.3) ** k)
            assert sum(a * (tau / h - 0.3) ** k for a, tau in zip(w, nodes, strict=True)) == pytest.approx(expected, rel=1e-12)


def test_adams_bashforth_weights_of_the_textbook():
    assert np.allclose(exponential_weights([0, -1, -2, -3], 1.0), np.array([55, -59, 37, -9]) / 24, rtol=1e-14)
    assert np.allclose(exponential_weights([1, 0, -1], 1.0), np.array([5, 8, -1]) / 12, rtol=1e-14)  # Adams and Moulton
    assert np.allclose(halved_weights([0.0, -0.5], 1.0, 1.0), -math.expm1(-1.0) * np.array([2.0, -1.0]))  # D of 2M, r = 1/2
    assert np.allclose(halved_weights([0.0, -0.5], 1.0, 1.0, "bh1"), [-math.expm1(-1.0) + 1.0, -1.0])


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_deis_weights_sum_to_the_integral(sde):
    """The Lagrange basis sums to 1, so the weights sum to alpha_s (rho_s - rho_t): checks the quadrature, full range in 3 steps."""
    for grid in (sd.grid.log_snr, sd.grid.uniform):
        times = sde.levels(grid(sde, 3))
        state = sd.DEIS(3).init(sd.ExactModel(two_modes(), sde), torch.zeros(1, 2), times)
        for s, step in zip(times[1:], state.plan, strict=True):
            assert sum(step.calls[0].weights) == pytest.approx(s.sigma, rel=1e-12)
        # and with eps linear in t, the second step is exact
        t, s, r = times[1], times[2], times[0]
        x, w = np.polynomial.legendre.leggauss(400)
        u = torch.tensor(float(t) + (float(s) - float(t)) * (1 + x) / 2)
        rho_dot = np.array([(q.sigma_dot - q.sigma * q.f) / q.alpha for q in sde.levels(u)])
        expected = s.alpha * float(w @ (rho_dot * (u.numpy() - float(t)))) * (s - t) / 2
        assert state.plan[1].calls[0].weights[1] * (r - t) == pytest.approx(expected, rel=1e-9)


# ---- orders






def test_order_from_noise_on_the_solvers_own_grid():
    """The whole way down with nothing done about the start, as it is used: UniPC of order 3 still converges at order 4."""
    target, sde = two_modes(), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, 1.0, PATHS)
    exact = reference_path(model, x, sd.grid.uniform(sde, 1))
    for solver, order, steps in [(sd.DPMSolverPP(2), 2, [160, 320]), (S2, 2, [160, 320]), (sd.UniPC(2), 3, [160, 320]), (sd.UniPC(3), 4, [100, 200])]:
        found = [float((sd.sample(model, x_init=x, solver=solver, steps=n, batch_size=PATHS) - exact).norm(dim=1).median()) for n in steps]
        assert slope(steps, found) == pytest.approx(order, abs=0.2), f"{solver} {found}"


@pytest.mark.parametrize("solver", [sd.DPMSolverPP(3), S3, sd.UniPC(3), sd.DEIS(3), sd.AdamsBashforth(3, "v"), sd.AdamsBashforth(3, "velocity")], ids=repr)
def test_from_data_to_noise_and_back(solver):
    """Deterministic solvers run with increasing times as well, to the order of their forward way."""
    target, sde = gaussian(), sd.SubVPSDE()
    model = sd.ExactModel(target, sde)
    errors = []
    for n in (60, 120):
        times = graded(sde, n, LOW, HIGH)
        levels = sde.levels(times)
        assert levels[0] < levels[-1]
        x = marginal_sample(target, sde, float(times[0]), PATHS)
        y, state = x, solver.init(model, x, levels)
        for t, s in pairwise(levels):
            y, state = solver.step(model, y, t, s, state, None)
        errors.append(float((y - gaussian_path(target, sde, x, float(times[0]), float(times[-1]))).norm(dim=1).median()))
    assert errors[1] < errors[0] / 2**2.7
    assert errors[1] < 1e-6


def test_velocity_form_integrates_the_likelihood():
    model = sd.ExactModel(gaussian(), sd.VPSDE())
    x = gaussian().sample(8)
    exact = model.log_prob(x, 1e-5)

    def prior(x):
        return model.log_prob(x, 1.0)

    r = sd.log_prob(model, x, solver=sd.AdamsBashforth(4, "velocity"), steps=400, divergence="exact", prior=prior)
    assert float((r.log_prob - exact).abs().max()) < 1e-3
    with pytest.raises(sd.ScoreSDEError):
        sd.log_prob(model, x, solver=sd.UniPC())


# ---- the stochastic variants


def responses(model, solver, times, rows):
    """What a linear solve does to each of its inputs: row 0 the start x = 1, row m the noise of step m - 1; the last row neither."""
    levels = model.sde.levels(times)
    x = torch.zeros(len(levels) + 1, rows, dtype=torch.float64)
    x[0] = 1
    state = solver.init(model, x, levels)
    for i, (t, s) in enumerate(pairwise(levels)):
        z = torch.zeros_like(x)
        z[i + 1] = 1
        x, state = solver.step(model, x, t, s, state, lambda stream, z=z: z)
    return x


def moments_of(model, solver, times, start_variance):
    """Mean and variance, exactly, of what the solver makes of N(0, start_variance)."""
    out = responses(model, solver, times, 1)[:, 0]
    shift = out[-1]
    gains = out[:-1] - shift
    return float(shift), float(gains[0] ** 2 * start_variance + gains[1:].square().sum())


def one_gaussian(mean, c, dim=1):
    return sd.GaussianMixture(torch.full((1, dim), mean, dtype=torch.float64), torch.tensor([math.sqrt(c)], dtype=torch.float64))




@pytest.mark.parametrize(("solver", "spread"), [(sd.DPMSolverPP(2, eta=1.0), 0.04), (sd.DPMSolverPP(3, eta=1.0), 0.025)], ids=["2M", "3M"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_moments_of_the_sde_variants(sde, solver, spread):
    """40 steps on N(0.7, 0.3), 32,768 values: what is drawn has the mean and variance that the steps imply, and these are close to the
    truth: the mean exact, the variance 4 and 2.5 % (up to 20 % at 20 steps, 3M under sub-VP). The z-tests see shifts
    of 0.04 standard deviations, and variances 5.5 % off, with a power of 0.9."""
    c, n, dim = 0.3, 8192, 4
    model = sd.ExactModel(one_gaussian(0.7, c, dim), sde)
    times = solver.grid(sde, 40)
    t, s = sde.levels(times[[0, -1]])
    x = marginal_sample(model.target, sde, float(t), n)
    y = sd.sample(model, x_init=x, times=times, solver=solver, batch_size=n)
    line = sd.ExactModel(one_gaussian(0.7, c), sde)
    shift, variance = moments_of(line, solver, times, t.alpha**2 * c + t.sigma**2)
    gain = float(responses(line, solver, times, 1)[0, 0]) - shift
    expected = shift + gain * 0.7 * t.alpha
    z = z_limit(4 * len(SDES))
    assert abs(float(y.mean()) - expected) < z * math.sqrt(variance / y.numel())
    assert abs(float(y.var()) / variance - 1) < z * math.sqrt(2 / y.numel())
    exact = s.alpha**2 * c + s.sigma**2
    assert abs(expected - 0.7 * s.alpha) < 1e-12
    assert abs(variance / exact - 1) < spread


def test_noise_is_drawn_by_the_stochastic_variants_only():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = marginal_sample(model.target, model.sde, 1.0, 4)

    def run(solver, seed):
        return sd.sample(model, x_init=x, solver=solver, steps=8, seed=seed)

    for solver in ALL:
        assert torch.equal(run(solver, 0), run(solver, 1)) == (getattr(solver, "eta", 0.0) == 0)
    # the ODE is the limit of small eta
    gap = (run(sd.DPMSolverPP(2, eta=1e-6), 0) - run(sd.DPMSolverPP(2), 0)).abs().max()
    assert 0 < float(gap) < 1e-4


# ---- equalities


def same(a, b, sde=None, target=None, steps=7, tolerance=1e-12):
    for one in SDES if sde is None else (sde,):
        model = sd.ExactModel(target or two_modes(), one)
        for grid in (sd.grid.log_snr, sd.grid.default):
            x, y = (sd.sample(model, 8, times=grid(one, steps), solver=solver, seed=3) for solver in (a, b))
            assert torch.allclose(x, y, rtol=tolerance, atol=tolerance), f"{one}: {a} and {b} differ by {float((x - y).abs().max())}"


@pytest.mark.parametrize("solver", [sd.DPMSolverPP(1), sd.DPMSolverPP(1, singlestep=True), sd.UniPC(1, corrector=False), sd.DEIS(1), sd.AdamsBashforth(1, "x0"), sd.AdamsBashforth(1, "eps")], ids=repr)
def test_order_one_is_ddim(solver):
    same(solver, sd.DDIM())
    same(solver, sd.DDIM(), target=image_mixture())


def test_other_equalities():
    same(sd.DPMSolverPP(1, eta=1.0), sd.Ancestral())
    same(sd.AdamsBashforth(1, "velocity"), sd.Euler())
    same(sd.DPMSolverPP(2), sd.UniPC(2, corrector=False))
    same(sd.DPMSolverPP(3), sd.UniPC(3, corrector=False))
    same(sd.DEIS(4), sd.AdamsBashforth(4, "velocity"), sde=sd.EDMSDE(), tolerance=1e-9)  # alpha = 1, t = sigma: velocity is eps
    same(sd.DEIS(4), sd.AdamsBashforth(4, "eps"), sde=sd.VESDE(), tolerance=1e-9)  # t is linear in lam


def test_unipc_is_predictor_then_corrector():
    """The merged sums against the algorithm written out: predict, evaluate, correct from the previous corrected state."""
    sde = sd.SubVPSDE()
    model = sd.ExactModel(two_modes(), sde)
    levels = sde.levels(sd.grid.log_snr(sde, 30))
    lam = [math.log(q.alpha / q.sigma) for q in levels]
    x = corrected = marginal_sample(model.target, sde, 1.0, 4)
    answers = []
    for i, (t, s) in enumerate(pairwise(levels)):
        answers.insert(0, model.denoise(x, t))
        if i:  # x was predicted from `before`
            nodes = [lam[i - j] - lam[i - 1] for j in range(min(i, 3) + 1)]
            h = lam[i] - lam[i - 1]
            w = exponential_weights(nodes, h, 1.0) if i > 1 else halved_weights(nodes[::-1], h, 1.0)[::-1]
            corrected = t.sigma / levels[i - 1].sigma * corrected + t.alpha * sum(a * d for a, d in zip(w, answers, strict=False))
        w = halved_weights([lam[i - j] - lam[i] for j in range(min(i + 1, 3))], lam[i + 1] - lam[i], 1.0)
        x = s.sigma / t.sigma * corrected + s.alpha * sum(a * d for a, d in zip(w, answers, strict=False))
    found = sd.sample(model, x_init=marginal_sample(model.target, sde, 1.0, 4), solver=sd.UniPC(3, lower_order_final=False), steps=30)
    assert torch.allclose(x, found, rtol=1e-11, atol=1e-12)


def test_a_corrector_of_langevin_is_not_undone():
    """UniPC corrects by an increment: what another corrector did to x in between stays."""
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = marginal_sample(model.target, model.sde, 1.0, 4)
    times = model.sde.levels(sd.grid.log_snr(model.sde, 3))
    solver = sd.UniPC(2)
    ends = []
    for push in (0.0, 1e-6):
        y, state = x, solver.init(model, x, times)
        y, state = solver.step(model, y, times[0], times[1], state, None)
        y, state = solver.step(model, y + push, times[1], times[2], state, None)
        ends.append(y)
    a = times[2].sigma / times[1].sigma  # the linear part of the push arrives, and x0's response to it
    assert float((ends[1] - ends[0]).abs().min()) > 0.5e-6 * a


# ---- calls, state, grids


def test_calls_are_counted():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    for solver in ALL:
        for steps in (1, 5):
            with sd.count_evaluations(model) as calls:
                sd.sample(model, 2, solver=solver, steps=steps)
            assert calls.forward == steps * (solver.order if getattr(solver, "singlestep", False) else 1), solver


@pytest.mark.parametrize("solver", [sd.DPMSolverPP(3, eta=1.0), S3, sd.UniPC(3), sd.DEIS(4), sd.AdamsBashforth(4, "v")], ids=repr)
def test_two_solves_with_one_solver_do_not_meet(solver):
    """States are explicit: interleaved solves, on different grids and models, end where they end alone."""
    models = [sd.ExactModel(two_modes(), sd.VPSDE()), sd.ExactModel(correlated_mixture(3), sd.EDMSDE())]
    grids = [sd.grid.log_snr(models[0].sde, 9), sd.grid.karras(models[1].sde, 9)]
    alone = [sd.sample(m, 4, times=g, solver=solver) for m, g in zip(models, grids, strict=True)]
    runs = [sd.trajectory(m, 4, times=g, solver=solver) for m, g in zip(models, grids, strict=True)]
    last = [None, None]
    for pair in zip(*runs, strict=True):
        last = [stage[2] for stage in pair]
    for a, b in zip(alone, last, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    # and a step leaves the state that it was given as it was
    levels = models[0].sde.levels(grids[0])
    x = marginal_sample(models[0].target, models[0].sde, 1.0, 4)
    _, state = solver.step(models[0], x, levels[0], levels[1], solver.init(models[0], x, levels), torch.ones_like(x).mul)
    a, b = (solver.step(models[0], x, levels[1], levels[2], state, torch.ones_like(x).mul)[0] for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_finite_from_one_step_up(sde):
    """Every solver and grid, in float32, at the counts where its steps differ in kind, and on to the longest ones (7 steps)."""
    model = sd.ExactModel(two_modes().float(), sde)
    for grid in (sd.grid.log_snr, sd.grid.karras, sd.grid.uniform, sd.grid.quadratic):  # the default grid is one of them
        for steps in (1, 2, 3, 4, 7):
            times = grid(sde, steps)
            for solver in HIGHEST:
                x = sd.sample(model, 2, times=times, solver=solver, batch_size=2)
                assert x.dtype == torch.float32
                assert bool(x.isfinite().all()), f"{solver} {grid.__name__} {steps}"
    for solver in ALL:
        for steps in (1, 5):
            assert bool(sd.sample(model, 2, solver=solver, steps=steps, batch_size=2).isfinite().all()), f"{solver} {steps}"


def test_the_solvers_space_their_steps_by_log_snr():
    for sde in SDES:
        for solver in (sd.DPMSolverPP(), sd.UniPC(), sd.DEIS(), sd.AdamsBashforth(2, "x0"), sd.AdamsBashforth(2, "eps"), sd.AdamsBashforth(2, "v")):
            assert torch.equal(solver.grid(sde, 7), sd.grid.log_snr(sde, 7))
            assert torch.equal(solver.grid(sde, 3, start=0.9, end=0.1), sd.grid.log_snr(sde, 3, start=0.9, end=0.1))
        assert torch.equal(sd.AdamsBashforth(2, "velocity").grid(sde, 7), sd.grid.default(sde, 7))


def test_lower_order_final_is_a_matter_of_the_last_step():
    """Off by itself on fine grids; on coarse ones it is worth a factor: 3 and more in uniform time."""
    sde, target = sd.VPSDE(), two_modes()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, 1.0, 64)
    exact = reference_path(model, x, sd.grid.uniform(sde, 1))
    for solver in (sd.DPMSolverPP(3), sd.UniPC(3)):
        plain = replace(solver, lower_order_final=False)
        fine = sd.grid.log_snr(sde, 40)
        assert float(sde.log_snr(fine[-1]) - sde.log_snr(fine[-2])) < 2 * LONG
        assert torch.equal(*(sd.sample(model, x_init=x, times=fine, solver=s) for s in (solver, plain)))
        coarse = sd.grid.uniform(sde, 20)
        a, b = (float((sd.sample(model, x_init=x, times=coarse, solver=s) - exact).norm(dim=1).median()) for s in (solver, plain))
        assert a < b / 3


@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 5)])
def test_any_event_shape_and_gradients(shape):
    target = sd.GaussianMixture(0.3 * torch.ones(1, *shape, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    model = sd.ExactModel(target, sd.CosineSDE())
    levels = model.sde.levels(sd.grid.log_snr(model.sde, 6))
    for solver in (sd.DPMSolverPP(3), S3, sd.UniPC(3), sd.DEIS(4), sd.AdamsBashforth(3, "v")):
        x = torch.zeros(2, *shape, dtype=torch.float64, requires_grad=True)
        y, state = x, solver.init(model, x, levels)
        for t, s in pairwise(levels):
            y, state = solver.step(model, y, t, s, state, None)
        y.sum().backward()
        assert bool((x.grad > 0).all())
        assert bool((x.detach() == 0).all())  # the start is not written to


# ---- bad inputs


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.DPMSolverPP(0), lambda: sd.DPMSolverPP(4), lambda: sd.DPMSolverPP(2.5), lambda: sd.DPMSolverPP(True), lambda: sd.DPMSolverPP("2"),
        lambda: sd.DPMSolverPP(eta=-0.1), lambda: sd.DPMSolverPP(eta=math.nan), lambda: sd.DPMSolverPP(eta=math.inf), lambda: sd.DPMSolverPP(singlestep=1),
        lambda: sd.DPMSolverPP(singlestep=True, eta=1.0), lambda: sd.DPMSolverPP(lower_order_final="no"), lambda: sd.UniPC(4), lambda: sd.UniPC(2, variant="bh3"),
        lambda: sd.UniPC(2, corrector=None), lambda: sd.DEIS(5), lambda: sd.DEIS(None), lambda: sd.AdamsBashforth(5), lambda: sd.AdamsBashforth(2, "score"),
        lambda: sd.AdamsBashforth(2, None), lambda: sd.AdamsBashforth(torch.tensor([1, 2])),
    ],
)  # fmt: skip
def test_bad_arguments(make):
    with pytest.raises(sd.errors.ConfigError, match="expected"):
        make()


def test_the_reverse_sde_has_a_direction():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="from noise to data"):
        sd.DPMSolverPP(eta=1.0).init(model, torch.zeros(1, 2), model.sde.levels([0.1, 0.2]))


def test_times_that_share_their_log_snr():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    level = model.sde.levels([0.5])[0]
    for solver in (sd.UniPC(), sd.DPMSolverPP(), sd.AdamsBashforth()):
        with pytest.raises(sd.errors.ConfigError, match="same log-SNR"):
            solver.init(model, torch.zeros(1, 2), [level, level])

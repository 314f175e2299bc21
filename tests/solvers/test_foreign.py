"""Solvers of other libraries behind our interface: their steps are on our grid, with our noise, to their tolerance."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, marginal_sample, name, reference_path, two_modes

import scoresde as sd

PATHS = 64


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

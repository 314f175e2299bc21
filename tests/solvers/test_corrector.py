"""Langevin corrections, alone and after a predictor."""

from __future__ import annotations

import math

import pytest
import torch
from problems import correlated_mixture, marginal_sample
from sampling.cases import by_sde, mixture

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import CORRECTOR, PRIOR, STEP


def test_langevin_has_the_stationary_law_of_its_step():
    """Unadjusted Langevin with h = 2 (snr |z|/|score|)^2 on N(0, V) in D dimensions is biased, by a known amount.

    With score = -x/V, |x|^2 is a chain of its own, and E|x'|^2 = E|x|^2 at stationarity says, exactly,

        E[V/|x|^2] = 1/((1 + snr^2)(D + 2)),

    where V itself would have 1/(D - 2). N = 4,000 chains in 64-D: z < 5 allows 1.6 %, the bias of snr = 0.3 is 14 %, and that of
    a step common to the batch (Song's code) 3 %. A start from the exact law and 60 steps forget 99.9 % of it.
    """
    D, n, snr, steps = 64, 4_000, 0.3, 60
    sde = sd.EDMSDE()
    target = sd.GaussianMixture(torch.zeros(1, D, dtype=torch.float64), torch.full((1,), 0.5).double())
    model = sd.ExactModel(target, sde)
    t = 2.0
    V = 0.5**2 + t**2
    x = math.sqrt(V) * Noise(1, check_ids(None, n), (D,), torch.float64).normal(PRIOR)
    x = sd.sample(model, x_init=x, times=[3.0, t], solver=sd.Langevin(snr=snr, steps=steps), batch_size=n)
    ratio = V / x.square().sum(1)
    expected = 1 / ((1 + snr**2) * (D + 2))
    z = float((ratio.mean() - expected) / (ratio.std() / math.sqrt(n)))
    assert abs(z) < 5
    assert abs(float((ratio.mean() - 1 / (D - 2)) / (ratio.std() / math.sqrt(n)))) > 20  # it is not V's own
    assert abs(float(x.mean())) < 5 * math.sqrt(float(x.var()) / x.numel())


def test_langevin_is_stable_where_the_score_vanishes():
    """In one dimension the score is close to 0 now and then: the step is bounded, and the chain stays near its law."""
    target = sd.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 0.5).double())
    model = sd.ExactModel(target, sd.EDMSDE())
    x = sd.sample(model, 500, times=[0.5, 0.4], solver=sd.Langevin(snr=0.16, steps=200), batch_size=500)
    assert float(x.abs().max()) < 6 * math.sqrt(0.25 + 0.16) * 1.5
    zero = sd.sample(model, x_init=torch.zeros(3, 1, dtype=torch.float64), times=[0.5, 0.4], solver=sd.Langevin())
    assert bool(zero.isfinite().all())


@by_sde
def test_predictor_corrector_in_64_dimensions(sde):
    """50 steps of each on a Gaussian: the std of samples is within 10 % of the corrector's own, see above."""
    D, n, snr = 64, 100, 0.16
    target = sd.GaussianMixture(torch.full((1, D), 0.5, dtype=torch.float64), torch.full((1,), 0.3).double())
    model = sd.ExactModel(target, sde)
    for predictor in (sd.ReverseDiffusion(), sd.EulerMaruyama()):
        solver = sd.PredictorCorrector(predictor, sd.Langevin(snr=snr, steps=4))
        times = sd.grid.karras(sde, 50) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.quadratic(sde, 50)
        x = sd.sample(model, n, solver=solver, times=times)
        std = math.sqrt(0.3**2 * (1 + snr**2) * (1 + 2 / D))
        assert float(x.std(0).mean()) == pytest.approx(std, rel=0.1), solver
        assert float(x.mean()) == pytest.approx(0.5, abs=0.02), solver


def test_predictor_corrector_is_its_parts():
    """By hand: the predictor with the step's noise, the corrector with its own streams, at the right time, in both orders."""
    sde = sd.SubVPSDE()
    model = sd.ExactModel(mixture(), sde)
    times = [0.9, 0.6, 0.3]
    levels = sde.levels(times)
    corrector, predictor = sd.Langevin(snr=0.2, steps=2), sd.Ancestral()
    noise = Noise(4, check_ids(None, 6), (3,), torch.float64)
    for order in ("predictor-corrector", "corrector-predictor"):
        x = noise.normal(PRIOR) * levels[0].sigma
        for i, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            def correct(x, at, i=i):
                for k in range(2):
                    z, score = noise.normal(CORRECTOR + k, i), model.score(x, at)
                    h = 2 * (0.2 * z.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)) ** 2
                    h = h.clamp_max(float(sde.sigma(float(at))) ** 2)
                    x = x + h * score + (2 * h).sqrt() * z
                return x

            if order == "corrector-predictor":
                x = correct(x, t)
            x, _ = predictor.step(model, x, t, s, None, lambda stream=STEP, i=i: noise.normal(stream, i))
            if order == "predictor-corrector":
                x = correct(x, s)
        solver = sd.PredictorCorrector(predictor, corrector, order)
        found = sd.sample(model, 6, solver=solver, times=times, seed=4, batch_size=6)
        assert torch.allclose(found, x, rtol=1e-11)


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

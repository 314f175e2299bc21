"""Network calls are counted."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from models.cases import target
from torch import nn

import scoresde as sd
from scoresde.models.views import Conditioned


def test_counts():
    model = sd.ExactModel(target(), sd.VPSDE())
    x = torch.randn(4, 3, dtype=torch.float64)
    with sd.count_evaluations(model) as outer:
        model.score(x, 0.5)
        with sd.count_evaluations(model) as inner:
            model.predict(x, 0.5)
            model.velocity(x, 0.5)
        model.denoise(x, torch.full((4,), 0.5))
    model.eps(x, 0.5)
    assert (outer.forward, inner.forward, outer.vjp) == (4, 2, 0)
    with pytest.raises(ZeroDivisionError), sd.count_evaluations(model) as calls:
        model.eps(x, 0.5)
        raise ZeroDivisionError
    model.eps(x, 0.5)
    assert calls.forward == 1
    gone = weakref.ref(calls)
    del calls
    gc.collect()
    assert gone() is None  # nobody is counted for after the block
    # two at once that look alike are told apart
    with sd.count_evaluations(model) as a, sd.count_evaluations(model) as b:
        assert a == b
    with sd.count_evaluations(model) as c:
        model.eps(x, 0.5)
    assert (a.forward, b.forward, c.forward) == (0, 0, 1)


def test_counts_are_of_the_network():
    """One network call for each derived quantity, counted at the network itself."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x, c_noise):
            Counting.calls += 1
            return x

    for make in (lambda: sd.NetworkModel(Counting(), sd.VPSDE(), (2,)),):
        model = make()
        x = torch.randn(3, 2)
        for quantity in ("denoise", "predict", "eps", "score", "velocity"):
            Counting.calls = 0
            with sd.count_evaluations(model) as calls:
                getattr(model, quantity)(x, 0.5)
            assert calls.forward == Counting.calls == 1
        Counting.calls = 0
        with sd.count_evaluations(model) as calls:
            r = sd.log_prob(model, x, solver=sd.Heun(), steps=3, probes=2)
            sd.sample(model, 3, solver=sd.PredictorCorrector(), steps=3, denoise=True)
        assert calls.forward == Counting.calls
        assert (r.nfe, r.vjp) == (6, 12)
        assert calls.forward == 6 + 7
        Counting.calls = 0
        bound = Conditioned(model, {})
        with sd.count_evaluations(model) as calls, sd.count_evaluations(bound) as also:
            bound.score(x, 0.5)
        assert calls.forward == also.forward == Counting.calls == 1


def test_seconds_are_those_inside_the_network():
    """``timed``: what the network took and no more; without it, nothing is measured. A network that sleeps for 10 ms a call."""

    class Sleeps(nn.Module):
        def forward(self, x, c_noise):
            time.sleep(0.01)
            return x

    model = sd.NetworkModel(Sleeps(), sd.VPSDE(), (2,))
    begun = time.perf_counter()
    with sd.count_evaluations(model, timed=True) as timed, sd.count_evaluations(model) as plain:
        sd.sample(model, 3, solver=sd.Heun(), steps=5)
        time.sleep(0.05)
    whole = time.perf_counter() - begun
    assert 10 * 0.01 <= timed.seconds <= whole - 0.05
    assert (plain.seconds, plain.forward, timed.forward) == (0.0, 10, 10)


def test_free_calls_reach_no_network():
    """``free``: what a solver would ask is counted, of rows too; the network is not called, and answers x0 = 0 in its place."""

    class Never(nn.Module):
        def forward(self, x, c_noise):
            raise AssertionError("called")

    model = sd.NetworkModel(Never(), sd.VPSDE(), (2,))
    for solver, calls_due in ((sd.RK4(), 20), (sd.UniPC(), 5), (sd.PredictorCorrector(), 10)):
        with sd.count_evaluations(model, free=True) as calls:
            sd.sample(model, 7, solver=solver, steps=5, batch_size=4)
        assert (calls.forward, calls.rows) == (2 * calls_due, 8 * calls_due)
    with sd.count_evaluations(model, free=True):
        x0, eps = model.predict(torch.ones(2, 2), 0.5)
    assert x0.tolist() == [[0.0, 0.0]] * 2
    assert torch.allclose(eps, 1 / model.sde.sigma(torch.tensor(0.5)).float().expand(2, 2))  # (x - alpha 0)/sigma
    with pytest.raises(AssertionError, match="called"):
        model.predict(torch.ones(2, 2), 0.5)

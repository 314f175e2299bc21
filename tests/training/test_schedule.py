"""Learning rates by step, and that they are those of the optimizer."""

from __future__ import annotations

import math

import pytest
from training.runs import MOONS, QUICK, make, weights

import scoresde as sd
from scoresde.training.schedule import Schedule


def test_learning_rates():
    s = Schedule(lr=2.0, steps=100, warmup=10, hold=10, kind="cosine")
    assert [s(k) for k in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert s(55) == pytest.approx(1.0)
    assert 0 < s(99) < 1e-3
    assert s(32) == pytest.approx(1 + math.cos(math.pi * 22 / 90))
    timed = Schedule(lr=2.0, steps=None, warmup=10, hold=50, kind="cosine")
    resolved = Schedule(lr=2.0, steps=1000, warmup=10, hold=50, kind="cosine")
    assert [timed(k) for k in range(50)] == [resolved(k) for k in range(50)]
    assert resolved(525) == pytest.approx(1.0)
    constant = Schedule(lr=2.0, steps=100, warmup=4, hold=4, kind="constant")
    assert [constant(k) for k in (0, 3, 99)] == [0.5, 2.0, 2.0]
    assert Schedule(1.0, 5, 0, 0, "cosine")(0) == 1.0


def test_learning_rates_reach_the_optimizer():
    h = sd.fit(make(), MOONS, steps=20, lr=0.01, warmup=5, **{**QUICK, "log_every": 1})
    expected = Schedule(0.01, 20, 5, 5, "cosine")
    assert h.lr == [expected(k) for k in range(20)]
    model, other = make(), make()
    sd.fit(model, MOONS, steps=1, lr=0.01, warmup=0, ema=0.0, **QUICK)
    step = (weights(model) - weights(other)).abs()
    assert float(step.max()) == pytest.approx(0.01, rel=1e-3)  # Adam's first step is lr sign(gradient)

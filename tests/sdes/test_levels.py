"""Levels: floats that know alpha, sigma and what follows from them, and the same for a batch of times."""

from __future__ import annotations

import copy
import math
import pickle

import torch
from problems import CLOSED, SDES, name
from sdes.cases import by_name

import scoresde as sd

QUANTITIES = ("alpha", "sigma", "s", "lam", "alpha_dot", "sigma_dot")


@by_name
def test_what_a_level_knows(sde):
    """s = sigma/alpha, lam = log(alpha/sigma), f and g^2, against the closed forms; lam is half of the log-SNR and grows towards data."""
    alpha, sigma, f, g2 = CLOSED[name(sde)]
    times = torch.linspace(0.2, 0.7, 5, dtype=torch.float64)
    levels = sde.levels(times)
    for t, level in zip(times, levels, strict=True):
        assert level == float(t)
        assert math.isclose(level.s, float(sigma(t) / alpha(t)), rel_tol=1e-12)
        assert math.isclose(level.lam, float((alpha(t) / sigma(t)).log()), rel_tol=1e-12, abs_tol=1e-14)
        assert math.isclose(level.lam, float(sde.log_snr(t)) / 2, rel_tol=1e-12, abs_tol=1e-14)
        assert math.isclose(level.f, float(f(t)), rel_tol=1e-10, abs_tol=1e-14)
        assert math.isclose(level.g2, float(g2(t)), rel_tol=1e-10)
    assert all(a.lam > b.lam for a, b in zip(levels[:-1], levels[1:], strict=True))


def test_levels_of_a_batch_are_the_same_numbers():
    t = torch.linspace(0.2, 0.7, 4, dtype=torch.float64)
    for sde in SDES:
        batch = sde.level(t, torch.zeros(4, 2, 3, dtype=torch.float64))
        for quantity in QUANTITIES:
            values = getattr(batch, quantity)
            assert values.shape == (4, 1, 1)
            alone = torch.tensor([getattr(level, quantity) for level in sde.levels(t)], dtype=torch.float64)
            assert torch.allclose(values.flatten(), alone, rtol=1e-12, atol=1e-14), (sde, quantity)


def test_a_level_is_a_float_and_survives_copies():
    level = sd.VPSDE().levels([0.4])[0]
    assert type(level - 0.1) is float
    for other in (copy.deepcopy(level), pickle.loads(pickle.dumps(level))):
        assert other == level
        assert [getattr(other, q) for q in QUANTITIES] == [getattr(level, q) for q in QUANTITIES]

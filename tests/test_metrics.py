"""Distances against closed forms, and the noise floor against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import two_modes

from scoresde.errors import ConfigError, ShapeError
from scoresde.metrics import noise_floor, sliced_wasserstein


def test_a_shift_is_its_mean_square_over_directions():
    """Every projection is shifted by theta . d: the distance is |d|/sqrt(D) on the mean over directions, for any shape."""
    x = two_modes(8).sample(200)
    d = torch.linspace(-1, 1, 8, dtype=torch.float64)
    distance = sliced_wasserstein(x.view(-1, 2, 4), (x + d).view(-1, 2, 4), projections=20_000)
    assert distance == pytest.approx(float(d.norm()) / math.sqrt(8), rel=0.02)
    assert sliced_wasserstein(x, x[torch.arange(199, -1, -1)]) == 0


def test_one_dimension_is_the_distance_of_sorted_samples():
    x, y = two_modes().sample(50)[:, :1], two_modes().sample(50, seed=1)[:, :1]
    exact = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(exact, rel=1e-12)


def test_sets_of_different_sizes():
    """A set repeated is the same distribution, so the distance to a set of another size is that to the common multiple."""
    x, y = two_modes().sample(40), two_modes().sample(60, seed=1)
    equal = sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(equal, rel=1e-10)
    assert sliced_wasserstein(y, x) == pytest.approx(equal, rel=1e-10)


def test_noise_floor_is_its_definition():
    pool, reference = two_modes().sample(90), two_modes().sample(70, seed=1)
    orders = [np.random.Generator(np.random.Philox(key=[3, split])).permutation(90) for split in range(4)]
    for given in (None, reference):
        values = [sliced_wasserstein(pool[o[:30]], pool[o[30:]] if given is None else given, 16, 3) for o in orders]
        floor = noise_floor(pool, 30, splits=4, projections=16, seed=3, reference=given)
        assert (floor.mean, floor.std) == pytest.approx((np.mean(values), np.std(values)), rel=1e-12)


def test_bad_arguments():
    x = two_modes().sample(10)
    with pytest.raises(ShapeError, match="2 dimensions and y has 1"):
        sliced_wasserstein(x, x[:, :1])
    with pytest.raises(ConfigError, match="projections"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(ConfigError, match="more samples in the pool"):
        noise_floor(x, 10)
    with pytest.raises(ConfigError, match="splits"):
        noise_floor(x, 5, splits=0)

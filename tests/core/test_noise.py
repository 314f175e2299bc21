"""Noise as a value: sample i is sample i, nothing collides, and the numbers have the laws they claim.

Monte Carlo rows use fixed seeds, so they pass or fail for good. A z-score below 5 has probability 1 - 6e-7 under the null; with
N = 10^6 draws a mean off by 0.6 %, a variance off by 0.9 % or a correlation of 0.6 % is found with probability 0.8.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.streams import CORRECTOR, PRIOR, PROBE, STEP
from scoresde.errors import ConfigError, ScoreSDEError

KINDS = ("normal", "uniform", "rademacher")


def noise(ids, shape=(4,), seed=0, **kwargs):
    ids = np.arange(ids, dtype=np.int64) if isinstance(ids, int) else np.asarray(ids, dtype=np.int64)
    return Noise(seed, ids, shape, **kwargs)


# ---- sample i is sample i


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (8,), (9,), (1, 8, 8), (2, 3, 5)])
def test_draws_do_not_depend_on_chunks(kind, shape):
    n = 37
    whole = getattr(noise(n, shape), kind)(STEP, 3)
    assert whole.shape == (n, *shape)
    for size in (1, 3, 16, 17, n):
        parts = [getattr(noise(range(a, min(a + size, n)), shape), kind)(STEP, 3) for a in range(0, n, size)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_order_or_repeats(kind):
    whole = getattr(noise(50, (3,)), kind)(PRIOR)
    generator = np.random.default_rng(0)
    for ids in ([7], [49, 0, 13, 13, 14, 15, 2], generator.permutation(50), np.arange(50)[::-1], np.arange(0, 50, 7)):
        assert torch.equal(getattr(noise(ids, (3,)), kind)(PRIOR), whole[torch.tensor(np.array(ids))])


def test_a_shorter_event_is_no_prefix_in_disguise():
    # ids are laid out by event size: nothing is promised across event shapes but that draws of one shape are distinct
    flat, image = noise(5, (64,)).normal(STEP), noise(5, (1, 8, 8)).normal(STEP)
    assert torch.equal(flat, image.flatten(1))  # the shape itself does not matter, its size does


def test_every_part_of_the_key_matters():
    base = noise(8).normal(STEP, 0)
    others = [
        noise(8, seed=1).normal(STEP, 0),
        noise(8, seed=1 << 32).normal(STEP, 0),  # torch's own CPU generator drops these bits
        noise(8, seed=(1 << 64) - 1).normal(STEP, 0),
        noise(8).normal(PRIOR, 0),
        noise(8).normal(CORRECTOR, 0),
        noise(8).normal(CORRECTOR + 1, 0),
        noise(8).normal(STEP, 1),
        noise(8).normal(STEP, 1 << 40),
        noise(range(8, 16)).normal(STEP, 0),
        noise(range(1 << 39, (1 << 39) + 8)).normal(STEP, 0),
    ]
    values = torch.stack([base, *others]).flatten(1)
    assert len(torch.unique(values, dim=0)) == len(values)
    assert len(torch.unique(values)) == values.numel()


def test_a_million_samples_and_no_two_equal_draws():
    """With 128 random bits a sample two equal draws have probability 1.5e-27; hashing ids to 32-bit seeds gave 121."""
    x = noise(1_000_000, (4,)).normal(STEP).numpy()
    rows = np.ascontiguousarray(x).view([("", np.float32)] * 4)
    assert len(np.unique(rows)) == 1_000_000


def test_draws_are_the_same_for_every_dtype():
    for kind in KINDS:
        single = getattr(noise(16), kind)(STEP)
        assert single.dtype == torch.float32
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            other = getattr(noise(16, dtype=dtype), kind)(STEP)
            assert other.dtype == dtype
            assert torch.equal(other, single.to(dtype))


def test_a_step_is_bound():
    draws = noise(6).at(9)
    assert torch.equal(draws(CORRECTOR), noise(6).normal(CORRECTOR, 9))
    assert torch.equal(draws(), noise(6).normal(STEP, 9))
    assert draws.ids.tolist() == list(range(6))


def test_no_samples():
    for kind in KINDS:
        assert getattr(noise(0), kind)(STEP).shape == (0, 4)


def test_global_generators_are_untouched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for kind in KINDS:
        getattr(noise(16), kind)(STEP)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# ---- the laws


def moments_z(x: torch.Tensor) -> list[float]:
    """z-scores of mean, variance, skewness and kurtosis of draws that should be standard normal."""
    n, x = x.numel(), x.double().flatten()
    raw = [float((x**k).mean()) for k in (1, 2, 3, 4)]
    exact, std = (0.0, 1.0, 0.0, 3.0), (1.0, math.sqrt(2), math.sqrt(15), math.sqrt(96))
    return [(m - e) / (s / math.sqrt(n)) for m, e, s in zip(raw, exact, std, strict=True)]


def kolmogorov_smirnov(x: torch.Tensor, cdf) -> float:
    """sqrt(n) times the largest distance between the empirical distribution function and cdf; 3.1 has p = 1e-8."""
    x = x.double().flatten().sort().values
    n, F = len(x), cdf(x)
    upper = (torch.arange(1, n + 1, dtype=torch.float64) / n - F).max()
    lower = (F - torch.arange(n, dtype=torch.float64) / n).max()
    return float(torch.maximum(upper, lower)) * math.sqrt(n)


@pytest.mark.parametrize("view", ["ids", "steps", "seeds", "positions"])
def test_normal_law(view):
    """Along each axis on its own: a generator can be normal over ids and constant over steps.

    At N = 200,000 a scale error of 1 % or a shift of 0.0125 gives a z-score of 5.6 on average.
    """
    draws = {
        "ids": lambda: noise(200_000, (1,)).normal(STEP),
        "positions": lambda: noise(1, (200_000,)).normal(STEP),
        "steps": lambda: torch.stack([noise(4, (8,)).normal(STEP, k) for k in range(6_250)]),
        "seeds": lambda: torch.stack([noise(4, (8,), seed=k).normal(STEP) for k in range(6_250)]),
    }[view]()
    assert draws.numel() == 200_000
    assert max(abs(z) for z in moments_z(draws)) < 5
    assert kolmogorov_smirnov(draws, torch.special.ndtr) < 3.1


def test_normal_tails():
    """Beyond 4.5 sigma 6.8 of 10^6 are due, and float32 without the care taken would stop at 5.8 or give infinity."""
    x = noise(500_000, (8,)).normal(PRIOR)
    assert bool(x.isfinite().all())
    expected = 4e6 * 2 * float(torch.special.ndtr(torch.tensor(-4.5, dtype=torch.float64)))
    assert abs(int((x.abs() > 4.5).sum()) - expected) < 5 * math.sqrt(expected)
    assert 4.9 < float(x.abs().max()) < 6.7


def test_the_extremes_of_the_bits_are_finite():
    """Bits that come once in 2^32 draws: no test by sampling would ever meet them."""

    class Extremes(Noise):
        def _bits(self, stream, step):
            words = torch.tensor([0, -1, 1, -2, 2**31 - 1, -(2**31)], dtype=torch.int32)
            return torch.cartesian_prod(words, words).T.reshape(1, 2, 36)

    extremes = Extremes(0, np.arange(1), (72,))
    x, u = extremes.normal(STEP), extremes.uniform(STEP)
    assert bool(x.isfinite().all())
    assert 6.6 < float(x.abs().max()) < 6.7  # sqrt(2 log 2^32) = 6.66
    assert 0 <= float(u.min()) < float(u.max()) < 1
    assert set(extremes.rademacher(STEP).flatten().tolist()) == {-1.0, 1.0}


def test_uniform_law():
    u = noise(1_000_000, (1,)).uniform(STEP)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert kolmogorov_smirnov(u, lambda x: x) < 3.1
    # multiples of 2^-24, down to the last bit
    assert bool((u.double() * 2**24 == (u.double() * 2**24).round()).all())
    assert abs(int(((u.double() * 2**24).long() & 1).sum()) - 500_000) < 5 * 500
    buckets = torch.bincount((u.flatten() * 256).long(), minlength=256).double()
    chi2 = float(((buckets - 1e6 / 256) ** 2 / (1e6 / 256)).sum())
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


def test_rademacher_law():
    r = noise(250_000, (4,)).rademacher(PROBE)
    assert set(torch.unique(r).tolist()) == {-1.0, 1.0}
    assert abs(float(r.sum())) < 5 * 1000
    products = r[:, 0] * r[:, 1] * r[:, 2] * r[:, 3]
    assert abs(float(products.sum())) < 5 * 500


def test_independence():
    """Correlations, of values and of squares, between ids, positions, steps, streams and seeds: below 5/sqrt(N), N = 2 10^5."""
    n = 200_000

    def x(ids=n, **kw):
        key = {"stream": STEP, "step": 0, **kw}
        return noise(ids, (2,), seed=key.get("seed", 0)).normal(key["stream"], key["step"]).double()

    base = x()
    pairs = {
        "position": (base[:, 0], base[:, 1]),
        "id": (base[:-1, 0], base[1:, 0]),
        "id and position": (base[:-1, 1], base[1:, 0]),
        "step": (base, x(step=1)),
        "stream": (base, x(stream=PRIOR)),
        "corrector": (x(stream=CORRECTOR), x(stream=CORRECTOR + 1)),
        "seed": (base, x(seed=1)),
        "seed and stream": (x(seed=1, stream=2), x(seed=2, stream=1)),
        "step and id": (base[1:], x(step=1)[:-1]),
    }
    for name, (a, b) in pairs.items():
        a, b = a.flatten(), b.flatten()
        for f in (lambda v: v, lambda v: (v**2 - 1) / math.sqrt(2)):
            z = float((f(a) * f(b)).mean()) * math.sqrt(len(a))
            assert abs(z) < 5, f"{name}: z = {z:.1f}"


def test_cosine_and_sine_halves_are_independent():
    """Box and Muller's pairs share a radius: their squares must be uncorrelated all the same."""
    x = noise(100_000, (16,)).normal(STEP).double()
    c = (x**2 - 1) / math.sqrt(2)
    z = (c.T @ c) / math.sqrt(len(x))
    z = z - torch.diag(torch.diag(z))
    assert float(z.abs().max()) < 5.5  # 120 pairs
    z = (x.T @ x) / math.sqrt(len(x))
    assert float((z - torch.diag(torch.diag(z))).abs().max()) < 5.5


# ---- bad arguments


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.0, None, True, "0", math.nan])
def test_bad_seeds(seed):
    with pytest.raises(ConfigError, match="seed"):
        check_seed(seed)


def test_good_seeds():
    assert check_seed(np.int64(5)) == 5
    assert check_seed((1 << 64) - 1) == (1 << 64) - 1


@pytest.mark.parametrize(
    ("ids", "n", "message"),
    [
        ([0, 1], 3, "2 ids for n = 3"),
        ([0.5, 1.0], 2, "integers"),
        ([[0, 1]], 1, "list of integers"),
        ([-1, 0], 2, "2\\^40"),
        ([0, 1 << 40], 2, "2\\^40"),
        ([0, 1 << 70], 2, "integers"),
        ([True, False], 2, "integers"),
        (["a"], 1, "integers"),
        (5, 1, "integers"),
        (torch.tensor([0.0, 1.0]), 2, "integers"),
        ([[0], [1, 2]], 2, "integers"),
    ],
)
def test_bad_ids(ids, n, message):
    with pytest.raises(ScoreSDEError, match=message):
        check_ids(ids, n)


def test_good_ids():
    for ids in ([3, 1], (3, 1), np.array([3, 1], dtype=np.uint8), torch.tensor([3, 1]), iter([3, 1])):
        assert check_ids(ids, 2).tolist() == [3, 1]
        assert check_ids(ids if not hasattr(ids, "__next__") else [3, 1], 2).dtype == np.int64
    assert check_ids(None, 3).tolist() == [0, 1, 2]
    assert check_ids([], 0).tolist() == []
    assert check_ids([(1 << 40) - 1], 1).tolist() == [(1 << 40) - 1]


def test_negative_control():
    """The tests above can fail: a stream that repeats every second step is caught by the same correlation."""
    a, b = noise(200_000, (2,)).normal(STEP, 0), noise(200_000, (2,)).normal(STEP, 0 % 2)
    assert float((a * b).mean()) * math.sqrt(a.numel()) > 100
    assert abs(moments_z(1.0125 * noise(200_000, (1,)).normal(STEP))[1]) > 5






def test_noise_made_ahead_for_a_gpu_is_the_same_noise():
    """What a GPU gets, several steps at a time, is what a CPU gets step by step; asked here of the CPU as device."""
    noise = Noise(5, np.arange(3, 9), (4,), torch.float64)
    for stream in (1, 2):
        for step in (0, 1, 2, 15, 16, 17, 18, 33, 34, 40, 3, 4):
            assert torch.equal(noise.ahead(stream, step), noise.normal(stream, step))


def test_only_streams_that_steps_reuse_are_made_ahead():
    """A stream asked at one step takes one draw, and none of its memory stays; 40 steps of three streams take few more than 120."""
    made = []

    class Counted(Noise):
        def normal(self, stream, step=0):
            made.append((stream, step))
            return super().normal(stream, step)

    noise = Counted(5, np.arange(3), (4,))
    for step in range(40):
        for stream in (STEP, CORRECTOR, CORRECTOR + 1):
            noise.ahead(stream, step)
        if step == 20:
            for stream in range(1000, 1100):
                noise.ahead(stream, step)
    assert sum(1000 <= stream < 1100 for stream, _ in made) == 100
    assert len(set(made)) == len(made) <= 100 + 3 * 49
    kept = noise._moved
    assert sum(draws is not None for *_, draws in kept.values()) == 3
    assert len(kept) < 10
    noise.ahead(STEP, 60)  # a jump: its old block goes
    assert sum(draws is not None for *_, draws in kept.values()) == 2

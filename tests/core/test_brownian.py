"""One Brownian path a sample: its law, and that it is a function of seed, id and stream however it is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import two_modes, z_limit

import scoresde as sd
from scoresde.core.brownian import BrownianPath
from scoresde.core.noise import Noise, philox
from scoresde.core.streams import CORRECTOR, STEP
from scoresde.errors import ConfigError


def path(ids=8, clock=(0.0, 1.0, 2.0), seed=0, shape=(1,), length=4.0):
    ids = np.arange(ids) if isinstance(ids, int) else np.asarray(ids)
    return BrownianPath(Noise(seed, ids.astype(np.int64), shape, torch.float64), list(clock), length)


def test_increments_are_independent_normals():
    """20,000 samples: a mean off by 0.05, a variance off by 7 % or a correlation of 0.05 is found with probability 0.97."""
    clock = [0.0, 0.013, 0.4, 1.0, 1.001, 2.7, 3.99, 4.0]
    n, p = 20_000, path(20_000, clock)
    z = torch.stack([p.at(i)(STEP)[:, 0] for i in range(len(clock) - 1)])
    limit = z_limit(7 + 7 + 21)
    assert float(z.mean(1).abs().max()) * math.sqrt(n) < limit
    assert float((z.var(1) - 1).abs().max()) * math.sqrt(n / 2) < limit
    correlation = torch.corrcoef(z) - torch.eye(7, dtype=torch.float64)
    assert float(correlation.abs().max()) * math.sqrt(n) < limit
    w = [p.increment(i)[:, 0].var() for i in range(7)]
    lengths = torch.tensor(clock, dtype=torch.float64).diff()
    assert torch.allclose(torch.stack(w), lengths, rtol=0.07, atol=2e-5)


def test_parts_of_a_path_sum_to_the_whole():
    fine = sorted({0.3, 3.7, *np.linspace(0.3, 3.7, 97).tolist()})
    whole, parts = path(16, [0.3, 3.7], shape=(3,)).increment(0), path(16, fine, shape=(3,))
    total = sum(parts.increment(i) for i in range(96))
    assert float((whole - total).abs().max()) < 1e-12
    # in whatever order it is asked
    again = path(16, fine, shape=(3,))
    backwards = [again.increment(i) for i in reversed(range(96))][::-1]
    assert all(torch.equal(a, parts.increment(i)) for i, a in enumerate(backwards))


def test_a_path_belongs_to_its_sample():
    whole = path(50)
    for ids in ([7], [49, 0, 13, 14, 2], np.arange(50)[::-1]):
        some = path(ids)
        assert torch.equal(some.at(1)(), whole.at(1)()[torch.tensor(np.array(ids))])
    values = [path(50, seed=0).at(0)(), path(50, seed=1).at(0)(), path(50).at(0)(STEP + 1), path(50).at(1)()]
    assert len(torch.unique(torch.cat(values))) == 200  # other seeds, streams and steps: other numbers


def test_samples_on_a_path_do_not_depend_on_their_batch():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    kwargs = {"solver": sd.StochasticExponential(), "steps": 7, "noise": "path", "seed": 5}
    whole = sd.sample(model, 11, batch_size=4, **kwargs)
    assert torch.equal(sd.sample(model, 3, batch_size=4, ids=[10, 0, 5], **kwargs), whole[[10, 0, 5]])
    assert torch.allclose(sd.sample(model, 11, batch_size=11, **kwargs), whole, rtol=1e-10, atol=1e-12)
    *_, (_, _, x, _) = sd.trajectory(model, 11, **kwargs)
    assert torch.allclose(x, whole, rtol=1e-10, atol=1e-12)
    # x_T is the one of independent noise
    first = next(iter(sd.trajectory(model, 11, **kwargs)))[2]
    assert torch.equal(first, next(iter(sd.trajectory(model, 11, seed=5)))[2])


def test_corrector_draws_are_not_on_the_path():
    p, plain = path(8), Noise(0, np.arange(8), (1,), torch.float64)
    assert torch.equal(p.at(1)(CORRECTOR + 3), plain.normal(CORRECTOR + 3, 1))
    assert not torch.equal(p.at(1)(STEP), plain.normal(STEP, 1))


def test_a_path_refuses_what_it_cannot_resolve():
    with pytest.raises(ConfigError, match="step 1 is shorter"):
        path(2, [0.0, 1.0, 1.0 + 1e-7, 2.0])
    with pytest.raises(ConfigError, match="within"):
        path(2, [0.0, 5.0])


def test_philox_known_answers():
    """Salmon et al., the test vectors of Random123 for philox4x32-10."""
    ones = (1 << 32) - 1
    answers = {0: "6627e8d5 e169c58d bc57ac4c 9b00dbd8", ones: "408f276d 41c83b0e a20bc7c6 6d5451fd"}
    for word, answer in answers.items():
        found = philox([torch.tensor([word])] * 4, (word, word))
        assert " ".join(f"{int(w):08x}" for w in found) == answer
    counter = [torch.tensor([w]) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    found = philox(counter, (0xA4093822, 0x299F31D0))
    assert " ".join(f"{int(w):08x}" for w in found) == "d16cfe09 94fdcceb 5001e420 24126ea1"


def test_the_path_is_brownian():
    """Increments between points of any alignment: variance h, no correlation, 16,384 numbers: an error of 7 % is seen with power 0.99."""
    ends = [0, 3, 1 << 10, (1 << 25) + 12345, 1 << 26, (1 << 27) - 1, (1 << 27) + 7, (1 << 28) - (1 << 20), 1 << 28]
    noise = Noise(5, sd.noise.check_ids(None, 4096), (2, 2), torch.float64)
    w = [noise.brownian(torch.full((4096,), k)) for k in ends]
    assert (w[0] == 0).all()
    z = torch.stack([(b - a) / math.sqrt((j - i) / (1 << 28)) for a, b, i, j in zip(w, w[1:], ends, ends[1:], strict=False)])
    z = z.flatten(1)
    n = z.shape[1]
    limit = z_limit(64)
    assert (z.mean(1).abs() * math.sqrt(n)).max() < limit
    assert ((z.square().mean(1) - 1).abs() * math.sqrt(n / 2)).max() < limit
    assert ((z.pow(4).mean(1) - 3).abs() * math.sqrt(n / 96)).max() < limit
    cross = (z @ z.T / n).fill_diagonal_(0)
    assert (cross.abs() * math.sqrt(n)).max() < limit
    inside = w[4].flatten(1)  # numbers of one sample, and of neighbours, are independent
    assert (inside.T.corrcoef().fill_diagonal_(0).abs() * math.sqrt(4096)).max() < limit
    assert abs(float((inside[1:] * inside[:-1]).mean() / inside.var())) * math.sqrt(n) < limit


def test_the_path_is_a_function_of_seed_id_and_stream():
    k = torch.tensor([0, 123456789, 1 << 27, 1 << 28, 77])
    noise = Noise(5, sd.noise.check_ids([3, 8, 1, (1 << 40) - 1, 4], 5), (3,), torch.float64)
    w = noise.brownian(k)
    for row in range(5):
        one = Noise(5, noise.ids[row : row + 1], (3,), torch.float64).brownian(k[row : row + 1])
        assert (one[0] - w[row]).abs().max() < 1e-14
    others = [Noise(6, noise.ids, (3,)).brownian(k), noise.brownian(k, 2), Noise(5 + (1 << 32), noise.ids, (3,)).brownian(k)]
    for other in (*others, Noise(5, noise.ids ^ (1 << 35), (3,)).brownian(k)):
        assert ((other - w)[1:].abs() > 1e-9).all()

"""Augmentations: what they do to samples, that nothing moved has the label 0, and that likelihood does not pay for them."""

from __future__ import annotations

import math

import pytest
import torch

import scoresde as sd
from scoresde import augment, data, nets
from scoresde.core.noise import Noise
from scoresde.errors import ConfigError, ShapeError

X = torch.arange(12).view(1, 1, 3, 4)


def test_flip():
    x, a = augment.Flip()(X.repeat(2, 1, 1, 1), torch.tensor([[0.4], [0.6]]))
    assert torch.equal(x, torch.cat([X.flip(-1), X]))
    assert a.tolist() == [[1.0], [0.0]]
    points, _ = augment.Flip()(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))
    assert points.tolist() == [[2.0, 1.0]]


def test_shift():
    u = torch.tensor([[0.9, 0.0, 0.0], [0.1, 0.0, 0.5], [0.1, 0.5, 0.99], [0.1, 0.99, 0.0]])
    x, a = augment.Shift(most=1)(X.repeat(4, 1, 1, 1), u)
    assert a.tolist() == [[0, 0], [-1, 0], [0, 1], [1, -1]]
    assert torch.equal(x[0], X[0])
    assert x[1, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]  # up
    assert x[2, 0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]  # right
    assert x[3, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]  # down and left
    colours = torch.stack([X[0, 0], 100 + X[0, 0]])[None]
    moved, _ = augment.Shift()(colours, u[1:2])
    assert torch.equal(moved[0, 1], 100 + moved[0, 0])
    with pytest.raises(ShapeError, match="images"):
        augment.Shift()(torch.zeros(2, 3), torch.zeros(2, 3))


def test_each_way_is_as_likely_as_the_others():
    n = 20_000
    u = Noise(0, range(n), (3,), torch.float64).uniform(0)
    _, a = augment.Shift(most=2, probability=0.6)(torch.zeros(n, 1, 5, 5), u)
    for axis in (0, 1):
        counts = torch.stack([(a[:, axis] == way).sum() for way in (-1, -0.5, 0.5, 1)]).double()
        assert (counts - 0.12 * n).abs().max() < 4 * math.sqrt(0.12 * 0.88 * n)


def test_chain_takes_the_numbers_of_each_and_gives_all_labels():
    chain = augment.named("flip,shift")
    assert (chain.draws, chain.labels) == (4, 3)
    x, a = chain(X, torch.tensor([[0.1, 0.1, 0.5, 0.99]]))
    assert a.tolist() == [[1, 0, 1]]
    assert torch.equal(x, augment.Shift()(X.flip(-1), torch.tensor([[0.1, 0.5, 0.99]]))[0])
    assert augment.named("flip") == augment.Flip()


def test_senseless_ones():
    with pytest.raises(ConfigError, match="'flop' is unknown"):
        augment.named("flop")
    for p in (0, 1, 1.5, True):
        with pytest.raises(ConfigError, match="probability"):
            augment.Flip(p)
    with pytest.raises(ConfigError, match="most"):
        augment.Shift(0)


class Told(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x, c_noise, augment=None):
        return self.layer(torch.cat([x, torch.zeros(len(x), 1) if augment is None else augment], 1))


def test_the_network_must_be_told(tmp_path):
    moons = data.toy("moons", 100)
    make = lambda n: sd.NetworkModel(nets.MLP(2, 16, 1, augmentations=n), sd.VPSDE(), (2,))
    with pytest.raises(ConfigError, match="augmentations=0: make it with augmentations=1"):
        sd.fit(make(0), moons, steps=1, progress=False, augment=augment.Flip())
    own = sd.NetworkModel(Told(), sd.VPSDE(), (2,))  # without a config: it must know itself
    sd.fit(own, moons, steps=2, progress=False, augment=augment.Flip())
    model = make(1)
    sd.fit(model, moons, steps=2, progress=False, augment=augment.Flip(), out=tmp_path)
    assert sd.load(tmp_path).net.config["augmentations"] == 1
    x = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match="augment has shape"):
        model.denoise(x, 0.5, augment=torch.zeros(3, 2))
    assert torch.equal(model.denoise(x, 0.5), model.denoise(x, 0.5, augment=torch.zeros(3, 1)))


@pytest.mark.slow
def test_likelihood_does_not_pay_for_augmentation():
    """Data that no mirror keeps: told of it, a network loses nothing on them, and knows their mirror images by the label 1."""
    mean = torch.tensor([[1.5, -0.5]])
    target = sd.GaussianMixture(mean, torch.tensor([0.4]))
    train, test = target.sample(4000), target.sample(500, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sd.NetworkModel(nets.MLP(2, 64, 2, augmentations=1), sd.VPSDE(), (2,))
    sd.fit(model, train, steps=800, batch_size=256, augment=augment.Flip(), progress=False)
    how = {"steps": 24, "divergence": "exact"}
    known = sd.log_prob(model, test, **how).log_prob
    assert float((target.log_prob(test) - known).mean()) < 0.06  # one that is not told: log 2 = 0.69
    mirrored = sd.log_prob(model, test.flip(-1), augment=torch.ones(500, 1), **how).log_prob
    assert float((known - mirrored).mean().abs()) < 0.06
    lost = sd.log_prob(model, test.flip(-1), **how).log_prob
    assert float((known - lost).mean()) > 3
    assert torch.allclose(model.reference.mean.float(), train.mean(0), atol=1e-5)  # of the data as they are


def test_validation_is_of_the_data_as_they_are():
    seen = []

    class Spy(nets.MLP):
        def forward(self, x, c_noise, augment=None, **cond):
            seen.append((self.training, None if augment is None else augment.clone()))
            return super().forward(x, c_noise, augment=augment, **cond)

    model = sd.NetworkModel(Spy(2, 8, 1, augmentations=1), sd.VPSDE(), (2,))
    sd.fit(model, data.toy("moons", 100), steps=20, progress=False, augment=augment.Flip(0.25), times="fitted", batch_size=64)
    told = torch.cat([a for training, a in seen if training])
    assert all(a is None for training, a in seen if not training)
    assert abs(float(told.mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1280)

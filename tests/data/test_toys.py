"""Data sets in two dimensions."""

from __future__ import annotations

import pytest
import torch

from scoresde import data
from scoresde.errors import ConfigError


@pytest.mark.parametrize("name", data.TOYS)
def test_toys_are_functions_of_name_seed_and_index(name):
    state = torch.get_rng_state()
    d = data.toy(name, 200, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert (d.train.dtype, d.train.shape, d.test.shape) == (torch.float32, (200, 2), (200, 2))
    assert d.transform is None
    more = data.toy(name, 1000, seed=3)
    assert torch.equal(more.train[:200], d.train)
    assert torch.equal(more.test[:200], d.test)
    other = data.toy(name, 200, seed=4)
    points = torch.cat([more.train, more.test, other.train, other.test])
    assert len(points.unique(dim=0)) == len(points)
    assert 0.3 < float(more.train.std(0).min()) <= float(more.train.std(0).max()) < 2
    assert float(more.train.mean(0).abs().max()) < 0.15
    assert data.load(name).name == name


def test_toy_shapes():
    x, y = data.toy("checkerboard", 4000).train.unbind(1)
    assert float(x.abs().max()) <= 2
    assert float(y.abs().max()) <= 2
    assert bool(((x.floor() + y.floor()) % 2 == 0).all())
    cells = torch.bincount(((x.floor() + 2) * 4 + y.floor() + 2).long(), minlength=16)
    assert int((cells > 0).sum()) == 8
    assert int(cells.max()) < 600  # 500 expected; a cell of 600 is 4.8 standard deviations off
    radius = data.toy("rings", 4000).train.norm(dim=1)
    ring = (2 * radius).round().clamp(1, 4)
    assert float((radius - ring / 2).abs().max()) < 0.25
    share = torch.bincount(ring.long(), minlength=5)[1:] / 4000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.04, rtol=0)
    arms = data.toy("pinwheel", 4000).train
    angle = torch.atan2(arms[:, 1], arms[:, 0]) - 0.25 * arms.norm(dim=1).exp()
    # without the bend the arms point in five directions, so five times the angle points in one
    assert float(torch.polar(torch.ones(4000), 5 * angle).mean().abs()) > 0.8
    spirals = data.toy("spirals", 4000).train
    r = spirals.norm(dim=1)
    phase = torch.atan2(spirals[:, 1], -spirals[:, 0]) - 5 * r
    far = r > 0.5
    assert float(torch.polar(torch.ones(4000), 2 * phase)[far].mean().abs()) > 0.8


def test_two_moons_is_an_exact_density():
    d = data.toy("moons", 20_000)
    target = d.target
    # integrates to one, on a grid (whose error is far below, the density being smooth on the scale of 0.1)
    grid = torch.linspace(-2.5, 2.5, 251, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    p = target.log_prob(points).exp()
    assert float(p.sum()) * 0.02**2 == pytest.approx(1, abs=1e-5)
    # and is what the samples come from: mean and second moment agree with the density's
    mean, second = p @ points * 0.02**2, (p[:, None] * points).T @ points * 0.02**2
    assert mean.abs().max() < 1e-5
    torch.testing.assert_close(d.train.double().mean(0), mean, atol=5 * 0.9 / 20_000**0.5, rtol=0)
    torch.testing.assert_close((d.train.T @ d.train).double() / 20_000, second, atol=0.03, rtol=0)
    # no ripple: along the top of an arc, 20 components long, the density is that of ten times as many components
    angle = torch.linspace(0.6, 2.5, 400, dtype=torch.float64)
    for radius in (0.9, 1.0, 1.1):
        top = torch.stack([radius * angle.cos() - 0.5, radius * angle.sin() - 0.25], dim=1)
        torch.testing.assert_close(
            target.log_prob(top), data.two_moons(components=640).log_prob(top), atol=1e-4, rtol=0
        )


def test_two_moons_refuses_beads():
    with pytest.raises(ConfigError, match=r"even number of 42 or more for std = 0\.1"):
        data.two_moons(components=20)
    with pytest.raises(ConfigError, match="components"):
        data.two_moons(components=65)
    with pytest.raises(ConfigError, match="std"):
        data.two_moons(std=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moon",), "did you mean 'moons'"),
        (("moons", 0), "n = 0"),
        (("rings", 10, -1), "seed"),
        (("rings", 10, 2.5), "seed"),
        (("moons", 10, 1 << 63), "seed"),
    ],
)
def test_toy_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        data.toy(*arguments)

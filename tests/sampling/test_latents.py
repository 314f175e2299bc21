"""Encoding and decoding against closed forms and each other; interpolation on the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, gaussian_path, name, two_modes

import scoresde as sd
from scoresde.sampling.latents import slerp

ConfigError = sd.errors.ConfigError
SOLVERS = [None, sd.AdaptiveODE(rtol=1e-6, atol=1e-6), sd.TorchDiffEq(rtol=1e-6, atol=1e-6)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_latents_of_gaussian_data_are_known(sde, solver):
    target = gaussian(3)
    model = sd.ExactModel(target, sde)
    x = target.sample(6)
    expected = gaussian_path(target, sde, x, sde.t_min, sde.t_max)
    z = sd.encode(model, x, solver=solver)
    assert torch.allclose(z, expected, rtol=0, atol=1e-4 * sde.sigma(sde.t_max))
    assert torch.allclose(sd.decode(model, expected, solver=solver), x, rtol=0, atol=1e-4)


def test_encoding_is_that_of_log_prob_without_derivatives():
    model = sd.ExactModel(correlated_mixture(5), sd.VPSDE())
    x = model.target.sample(7)
    with sd.count_evaluations(model) as calls:
        z = sd.encode(model, x, steps=24)
    assert (calls.forward, calls.vjp) == (24, 0)
    assert not z.requires_grad
    assert torch.allclose(z, sd.log_prob(model, x, steps=24).latent, rtol=0, atol=1e-12)
    fine = sd.encode(model, x, solver=sd.TorchDiffEq(rtol=1e-9, atol=1e-9))
    assert (z - fine).abs().max() < 1e-2
    assert (sd.encode(model, x, steps=160) - fine).abs().max() < 1e-5


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_round_trips_close_and_closer_with_more_steps(sde):
    model = sd.ExactModel(two_modes(), sde)
    x = model.target.sample(64)
    errors = [float(sd.round_trip_error(model, x, steps=n).median()) for n in (10, 20, 40)]
    assert errors[1] < 1e-3
    assert errors[2] < 0.3 * errors[1]
    assert errors[1] < 0.3 * errors[0]


def test_a_round_trip_without_a_reference_and_with_conditions():
    class Shifted(sd.ScoreModel):
        def __init__(self, inner):
            super().__init__(inner.sde, inner.event_shape)
            self.inner = inner

        def denoise(self, x, t, shift=None):
            alpha = self.sde.level(t, x).alpha
            return self.inner.denoise(x - alpha * shift, t) + shift

    inner = sd.ExactModel(two_modes(), sd.VPSDE())
    x, shift = inner.target.sample(5), torch.arange(10.0, dtype=torch.float64).view(5, 2)
    error = sd.round_trip_error(Shifted(inner), x + shift, shift=shift, batch_size=3)
    assert error.shape == (5,)
    assert error.max() < 1e-3


def test_interpolation_starts_at_a_and_ends_at_b():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = model.target.sample(6)
    a, b = x[:3], x[3:]
    way = sd.interpolate(model, a, b, n=5, steps=80)
    assert way.shape == (5, 3, 2)
    assert (way[0] - a).abs().max() < 1e-3
    assert (way[-1] - b).abs().max() < 1e-3
    middle = sd.encode(model, way[2], steps=80)
    z_a, z_b = (sd.encode(model, x, steps=80) for x in (a, b))
    assert torch.allclose(middle, slerp(z_a, z_b, 0.5), rtol=0, atol=2e-2)


def test_slerp_is_on_the_great_circle():
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [2.0, 2.0]])
    assert torch.allclose(slerp(a, b, 0.5)[0], torch.full((2,), 3 / math.sqrt(2)))
    assert torch.allclose(slerp(a, b, 1 / 3)[0], 3 * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.allclose(slerp(a, b, 0.25)[1], torch.full((2,), 1.25))  # parallel: the straight line
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 3, 16, 16, generator=generator)
    norms = slerp(z[0], z[1], 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(norms / 768**0.5, torch.ones(4), atol=0.1)
    assert torch.allclose(slerp(z[0], z[1], 0.0), z[0])
    assert torch.allclose(slerp(z[0], z[1], 1.0), z[1])


def test_wrong_arguments():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = model.target.sample(2)
    with pytest.raises(ConfigError, match="n = 1, expected an integer of at least 2"):
        sd.interpolate(model, x, x, n=1)
    with pytest.raises(sd.errors.ShapeError, match=r"a has shape \(2, 2\) and b \(1, 2\)"):
        sd.interpolate(model, x, x[:1])
    with pytest.raises(sd.errors.ShapeError):
        sd.encode(model, x[:, :1])
    with pytest.raises(ConfigError, match="steps = 0"):
        sd.encode(model, x, steps=0)

"""A step: what it draws, that it is plain Adam on the loss, dropout, and validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.runs import MOONS, QUICK, make, trainer_for, weights

import scoresde as sd
from scoresde.errors import TrainingDiverged
from scoresde.training.trainer import dropout_seed


def test_a_step_against_plain_torch():
    """One step by hand: the same draws, the plain Adam, the norm clipped by hand."""
    model, mine = make(dtype=torch.float64), make(dtype=torch.float64)
    x = MOONS.train.double()
    trainer = trainer_for(model, x, clip=0.01)
    optimizer = torch.optim.Adam(mine.parameters(), lr=1.0)
    sde = mine.sde
    for k in range(3):
        index = trainer.source.order(k * 8 + np.arange(8), 0)
        x0, t, eps, weight, cond = trainer.batch(k, np.arange(8))
        assert torch.equal(x0, x[index])
        assert cond == {}
        u = ((sde.log_snr(t) - sde.log_snr(1e-5)) / (sde.log_snr(1.0) - sde.log_snr(1e-5)) * 8).floor()
        assert u.tolist() == list(range(8))  # one time a stratum of log-SNR
        assert weight.tolist() == pytest.approx([1.0] * 8)
        trainer.advance()
        optimizer.param_groups[0]["lr"] = trainer.descent.schedule(k)
        optimizer.zero_grad()
        x_t = sde.perturb(x0, t, eps)
        (mine.eps(x_t, t) - eps).square().mean().backward()
        norm = torch.stack([p.grad.norm() for p in mine.parameters()]).norm()
        assert float(trainer.descent.norm) == pytest.approx(float(norm))
        for p in mine.parameters():
            p.grad *= min(1, 0.01 / float(norm))
        optimizer.step()
        torch.testing.assert_close(weights(model), weights(mine), rtol=0, atol=1e-6)


def test_draws_of_steps_differ_and_are_standard():
    trainer = trainer_for(make(), batch_size=64)
    draws = [trainer.batch(k, np.arange(64)) for k in (0, 1, 63, 64, 200)]
    for i in (0, 1, 2):
        values = [d[i] for d in draws]
        assert all(not torch.equal(a, b) for n, a in enumerate(values) for b in values[:n])
    again = trainer.batch(1, np.arange(64))
    assert all(torch.equal(a, b) for a, b in zip(again[:4], draws[1][:4], strict=True))
    part = trainer.batch(1, np.arange(16, 48))
    assert all(torch.equal(a, b[16:48]) for a, b in zip(part[:4], draws[1][:4], strict=True))
    eps = torch.cat([trainer.batch(k, np.arange(64))[2] for k in range(100)]).flatten()
    assert abs(float(eps.mean())) < 4.5 / len(eps) ** 0.5
    assert abs(float(eps.var()) - 1) < 4.5 * (2 / len(eps)) ** 0.5


def test_validation_is_at_fixed_noise_and_with_the_average():
    trainer = trainer_for(make())
    first = trainer.validate()
    for _ in range(3):
        trainer.advance()
    second = trainer.validate()
    assert trainer.validate() == second != first
    assert trainer.model.training == make().training
    by_raw = trainer_for(trainer.model)
    assert by_raw.validate() != second
    trainer.average.take()
    assert trainer_for(by_raw.model).validate() == second


class Dice(torch.nn.Module):
    """A network that draws from torch's generator, as dropout does, and keeps what it drew in training."""

    def __init__(self):
        super().__init__()
        self.w, self.drawn = torch.nn.Parameter(torch.zeros(2)), []

    def forward(self, x, c_noise):
        if self.training:
            self.drawn.append(torch.rand(4))
        return x * self.w


def test_what_torch_draws_differs_between_steps_passes_and_seeds_and_is_repeated():
    drawn = {}
    for run, seed in ((0, 0), (1, 0), (2, 1)):
        torch.rand(1)  # the global generator is no part of it
        net = Dice()
        sd.fit(sd.NetworkModel(net, sd.VPSDE(), (2,)), MOONS, steps=5, accumulate=2, seed=seed, **QUICK)
        drawn[run] = torch.stack(net.drawn)
    assert drawn[0].shape == (10, 4)
    assert torch.equal(drawn[0], drawn[1])
    assert len(torch.cat([drawn[0], drawn[2]]).flatten().unique()) == 80


def test_processes_draw_their_own():
    assert len({dropout_seed(s, k, r) for s in (0, 1) for k in range(100) for r in range(3)}) == 600


def test_a_device_that_is_looked_at_now_and_then_tells_where():
    """As on a GPU, where the loss of each step stays on the device."""
    trainer = trainer_for(make(), steps=40)
    trainer.descent.every = 16
    for _ in range(20):
        trainer.advance()
    with torch.no_grad():
        trainer.model.net.output.bias[0] = torch.nan
    trainer.advance()
    trainer.advance()
    with pytest.raises(TrainingDiverged, match=r"one of the steps 17\.\.22: loss nan, .* worst samples at t = "):
        trainer.descent.check_finite()

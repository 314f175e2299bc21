"""An SDE with parameters of its own is learned with the network: the gradient is that of the true loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training.runs import trainer_for

import scoresde as sd


class Warp(sd.SDE, nn.Module):
    """Variance preserving with log-SNR = 6 - 12 w, w = t + k t (1 - t): the ends stay where they are, what is learned is between."""

    t_min, t_max = 1e-3, 1.0

    def __init__(self, k: float = 0.3) -> None:
        nn.Module.__init__(self)
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def half(self, t):
        return 6 - 12 * (t + self.k * t * (1 - t))

    def alpha(self, t):
        return torch.sigmoid(self.half(t)).sqrt()

    def sigma(self, t):
        return torch.sigmoid(-self.half(t)).sqrt()


def model(k: float = 0.3) -> sd.NetworkModel:
    torch.manual_seed(0)
    net = sd.nets.MLP(2, width=16).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return sd.NetworkModel(net, Warp(k), (2,))


DATA = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
def test_the_gradient_is_that_of_the_loss(weighting):
    trainer = trainer_for(model(), DATA, weighting=weighting, times="uniform")  # whose density does not depend on the SDE
    trainer.gradient(3)
    k, found = trainer.model.sde.k, trainer.model.sde.k.grad.item()

    def loss_at(value: float) -> float:
        with torch.no_grad():
            k.fill_(value)
            x0, t, eps, weight, _ = trainer.batch(3, np.arange(8))
            return sd.loss.denoising_loss(trainer.model, x0, t, eps, weight).mean().item()

    ends = [loss_at(0.3 + step) for step in (1e-5, -1e-5)]
    assert abs(found) > 1e-2
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("times", ["importance", "fitted"])
def test_it_is_trained_averaged_saved_and_gone_on_with(times, tmp_path):
    whole = model()
    sd.fit(whole, DATA, steps=150, batch_size=16, times=times, progress=False, out=tmp_path / "run")
    learned = whole.sde.k.item()
    assert abs(learned - 0.3) > 1e-3
    assert not whole.sde.k.isnan()
    loaded = sd.load(tmp_path / "run", sde=Warp(0.0))
    assert loaded.sde.k.item() == learned
    assert torch.equal(sd.sample(loaded, 4, steps=5), sd.sample(whole, 4, steps=5))


def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path):
    whole, parts = model(), model()
    settings = {"batch_size": 16, "progress": False, "checkpoint_every": 70}
    sd.fit(whole, DATA, steps=150, **settings)

    def stop(step, line):
        if step >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sd.fit(parts, DATA, steps=150, out=tmp_path / "run", callback=stop, **settings)
    again = model()
    sd.fit(again, DATA, steps=150, out=tmp_path / "run", resume=True, **settings)
    assert again.sde.k.item() == whole.sde.k.item()
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)

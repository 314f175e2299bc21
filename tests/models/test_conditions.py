"""Conditions reach the network, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import scoresde as sd
from scoresde.errors import ShapeError
from scoresde.models.conditions import slice_cond


class Labelled(nn.Module):
    """Answers with its conditions, and remembers them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, c_noise, label=None, scale=1.0):
        self.seen.append((label, scale))
        return torch.zeros_like(x) if label is None else scale * label.to(x.dtype).view(-1, *[1] * (x.ndim - 1)).expand_as(x)


def test_conditions_reach_the_network():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    x, label = torch.zeros(3, 2), torch.tensor([1, 2, 3])
    expected = label[:, None].expand(3, 2).float()
    for function in (model.denoise, model.forward, model, lambda *a, **k: model.predict(*a, **k)[0]):
        assert torch.equal(function(x, 0.5, label=label), expected)
    for t in (0.5, torch.full((3,), 0.5)):
        alpha, sigma = float(model.sde.alpha(0.5)), float(model.sde.sigma(0.5))
        assert torch.allclose(model.eps(x, t, label=label, scale=2.0), -2 * alpha / sigma * expected)
        assert torch.allclose(model.score(x, t, label=label), alpha / sigma**2 * expected)
        model.velocity(x, t, label=label, scale=7.0)
        assert model.net.seen[-1] == (label, 7.0)


def test_conditions_reach_the_network_from_sample_and_log_prob():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    label = torch.arange(5)
    for solver in (sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchDiffEq(), sd.TorchSDE()):
        # data that are the label itself: the sample must find its own, in batches, padded, and whatever the order
        x = sd.sample(model, 5, solver=solver, steps=4, batch_size=2, denoise=True, label=label)
        assert torch.equal(x, label[:, None].expand(5, 2).float())
        x = sd.sample(model, 2, solver=solver, steps=4, denoise=True, ids=[1, 0], label=label[:2], scale=2.0)
        assert torch.equal(x, 2.0 * label[:2, None].expand(2, 2))
    for *_, x0 in sd.trajectory(model, 5, steps=2, label=label):
        assert torch.equal(x0, label[:, None].expand(5, 2).float())
    # log_prob: three samples in batches of two, one of them alone with its own label
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1, classes=5), sd.VPSDE(), (2,))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    whole = sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact", batch_size=2, label=label).log_prob
    for i in range(3):
        one = sd.log_prob(model, x[i : i + 1], solver=sd.Heun(), steps=8, divergence="exact", label=label[i : i + 1]).log_prob
        assert float(one) == pytest.approx(float(whole[i]), abs=1e-4)
    assert float((whole - sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact").log_prob).abs().min()) > 1e-3


def test_conditions_of_the_wrong_length():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    with pytest.raises(ShapeError, match=r"'label' has shape \(4,\) for 5 samples"):
        sd.sample(model, 5, steps=2, label=torch.arange(4))


def test_slice_cond():
    cond = {"label": torch.arange(4), "shared": torch.tensor(3.0), "one": torch.zeros(1, 2), "text": "a"}
    cut = slice_cond(cond, lambda v: v[:2], 4)
    assert cut["label"].tolist() == [0, 1]
    assert cut["shared"] is cond["shared"]
    assert cut["one"] is cond["one"]
    assert cut["text"] == "a"

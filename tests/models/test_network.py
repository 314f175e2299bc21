"""A network as a score model: what it is given, and what is said of one that fails."""

from __future__ import annotations

import math

import pytest
import torch
from models.cases import NAMES, Linear, Net, by_name
from torch import nn

import scoresde as sd
from scoresde.errors import ConfigError, ScoreSDEError, ShapeError


@by_name
@pytest.mark.parametrize("name", NAMES)
def test_the_network_sees_unit_variance_and_quarter_log_noise(sde, name):
    seen = {}

    class Probe(nn.Module):
        def forward(self, x, c_noise):
            seen.update(x=x, c_noise=c_noise)
            return torch.zeros_like(x)

    model = sd.NetworkModel(Probe(), sde, (3,), name)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = 0.5 if name == "edm" else 1.0
    t = torch.tensor([sde.t_min, 0.05, 0.5, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for time, rows in ((t, slice(None)), (0.5, 2)):
        model.denoise(x, time)
        a, s = alpha[rows], sigma[rows]
        scale = (a**2 * data**2 + s**2).rsqrt()
        assert torch.allclose(seen["x"], x * (scale[:, None] if scale.ndim else scale), rtol=1e-12)
        assert seen["c_noise"].shape == (4,)
        assert torch.allclose(seen["c_noise"], ((s / a).log() / 4).expand(4), rtol=1e-12)


@pytest.mark.parametrize("fails", [False, True])
def test_the_mode_is_given_back(fails):
    net = Net()
    model = sd.NetworkModel(net, sd.VPSDE(), (2,))
    before = {name: module.training for name, module in model.named_modules()}
    assert not before["net.frozen"]
    stats = net.inner[1].running_mean.clone()
    x = torch.randn(4, 2)
    if fails:
        net.inner[1].register_forward_hook(lambda *_: torch.full((4, 2), math.nan))
    for call in (
        lambda: sd.sample(model, 4, steps=3),
        lambda: list(sd.trajectory(model, 4, steps=3)),
        lambda: sd.log_prob(model, x, solver=sd.Heun(), steps=3),
    ):
        if fails:
            with pytest.raises(ScoreSDEError):
                call()
        else:
            call()
        assert {name: module.training for name, module in model.named_modules()} == before
        assert torch.equal(net.inner[1].running_mean, stats)
        assert torch.is_grad_enabled()
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_evaluation_mode_is_used():
    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,))
    model.train()
    a, b = sd.sample(model, 4, steps=5), sd.sample(model, 4, steps=5)
    assert torch.equal(a, b)
    assert not a.requires_grad
    modes = [[m.training for m in model.modules()] for _, _, _, _ in sd.trajectory(model, 2, steps=2)]
    assert all(mode == modes[0] and mode[0] for mode in modes)  # while the user has the stage, it is as it was


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x[:, :1], r"\(3, 1\).*\(3, 2\)"),
        (lambda x: x[0], r"\(2,\).*\(3, 2\)"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.numpy(), "ndarray"),
    ],
)
@pytest.mark.parametrize("quantity", ["denoise", "predict", "score", "velocity"])
def test_networks_that_answer_something_else(answer, message, quantity):
    model = sd.NetworkModel(Answers(answer), sd.VPSDE(), (2,))
    with pytest.raises(ShapeError, match=message):
        getattr(model, quantity)(torch.zeros(3, 2), 0.5)

    class Foreign(sd.ScoreModel):
        def denoise(self, x, t, **cond):
            return answer(x)

    with pytest.raises(ShapeError, match=message):
        getattr(Foreign(sd.VPSDE(), (2,)), quantity)(torch.zeros(3, 2), 0.5)


def test_errors_of_the_network_itself_pass_through():
    model = sd.NetworkModel(Answers(lambda x: x @ torch.zeros(3, 3)), sd.VPSDE(), (2,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.score(torch.zeros(3, 2), 0.5)
    with pytest.raises(ConfigError, match="'label' is no option of this function, and the model takes no condition"):
        net = Linear()
        sd.NetworkModel(net, sd.VPSDE(), (2,)).score(torch.zeros(3, 2), 0.5, label=torch.arange(3))


def test_lazy_parameters_are_refused():
    net = torch.nn.Sequential(torch.nn.LazyLinear(2))
    with pytest.raises(ConfigError, match="lazy parameters, whose shapes are not known: call it once"):
        sd.NetworkModel(net, sd.VPSDE(), event_shape=(2,))
    net(torch.zeros(1, 3))
    sd.NetworkModel(net, sd.VPSDE(), event_shape=(2,))

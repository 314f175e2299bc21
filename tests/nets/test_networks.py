"""What all networks have in common."""

from __future__ import annotations

import json
import math

import pytest
import torch
from nets.cases import awake, inputs
from torch import Tensor

from scoresde import nets
from scoresde.errors import ConfigError

SMALL = [
    pytest.param(lambda **kw: nets.MLP(3, width=16, depth=2, **kw), (3,), id="mlp"),
    pytest.param(lambda **kw: nets.MLP((2, 3), width=16, depth=1, embedding="sinusoidal", **kw), (2, 3), id="mlp-event"),
    pytest.param(lambda **kw: nets.UNet(1, 8, blocks=1, **kw), (1, 8, 8), id="unet"),
    pytest.param(
        lambda **kw: nets.UNet(2, 6, (1, 2, 1), 1, (0, -1), groups=3, heads=2, embedding="sinusoidal", **kw),
        (2, 7, 5),
        id="unet-odd",
    ),
    pytest.param(lambda **kw: nets.MLP((2, 3), width=16, depth=1, frequencies=[0.5, 1.5], **kw), (2, 3), id="mlp-waves"),
    pytest.param(lambda **kw: nets.UNet(2, 8, blocks=1, frequencies=(0.25, 2), **kw), (2, 5, 6), id="unet-waves"),
]


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_zero_at_first_and_pointwise_over_the_batch(make, event):
    net = make()
    x, c = inputs(5, *event)
    assert torch.equal(net(x.float(), c.float()), torch.zeros(5, *event))
    awake(net)
    y = net(x, c)
    assert y.shape == x.shape
    assert float(y.detach().std()) > 0.05
    order = torch.tensor([3, 1, 4])
    torch.testing.assert_close(net(x[order], c[order]), y[order], atol=1e-12, rtol=1e-12)
    # nothing of a mate arrives, not even its NaN
    spoilt = x.clone()
    spoilt[0] = math.nan
    torch.testing.assert_close(net(spoilt, c)[1:], y[1:], atol=1e-12, rtol=1e-12)
    # and within a sample everything depends on everything, and on the noise level
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c[:1]), x[:1]).view(x[0].numel(), -1)
    assert bool((jacobian != 0).all())
    assert float((net(x, c + 0.3) - y).flatten(1).norm(dim=1).min().detach()) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_samples_of_other_scales_do_not_matter(scale):
    net = awake(nets.UNet(1, 8, blocks=1))
    x, c = inputs(2, 1, 8, 8)
    mate = torch.cat([x[:1], scale * x[1:]])
    torch.testing.assert_close(net(mate, c)[0], net(x, c)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_derivatives_in_every_mode(make, event):
    net = awake(make(classes=4))
    x, c = inputs(3, *event)
    x.requires_grad_()
    label = torch.tensor([0, 3, 1])
    y = net(x, c, label=label)
    v = torch.randn(4, *y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (batched,) = torch.autograd.grad(y, x, v, is_grads_batched=True, retain_graph=True)
    looped = torch.stack([torch.autograd.grad(y, x, vi, retain_graph=True)[0] for vi in v])
    torch.testing.assert_close(batched, looped, atol=1e-11, rtol=1e-11)
    # against central differences: the derivative is of this function
    h = 1e-5
    with torch.no_grad():
        slope = (net(x + h * v[0], c, label=label) - net(x - h * v[0], c, label=label)) / (2 * h)
    for vi in v:
        (pulled,) = torch.autograd.grad(y, x, vi, retain_graph=True)
        torch.testing.assert_close((pulled * v[0]).sum(), (slope * vi).sum(), atol=1e-6, rtol=1e-6)
    # vmap of a vjp in torch.func's form, and forward mode, which exact traces may use
    one = lambda x: net(x[None], c[:1], label=label[:1])[0]  # noqa: E731
    reverse, forward = torch.func.jacrev(one)(x[0].detach()), torch.func.jacfwd(one)(x[0].detach())
    torch.testing.assert_close(forward, reverse, atol=1e-10, rtol=1e-10)
    # the second derivative, that of a divergence for instance, against differences of the first

    def gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(net(z, c, label=label), z, v[0], create_graph=True)[0]

    (first,) = torch.autograd.grad(net(x, c, label=label), x, v[0], create_graph=True)
    (second,) = torch.autograd.grad((first * v[1]).sum(), x)
    slope = (gradient(x + h * v[2]) - gradient(x - h * v[2])) / (2 * h)
    torch.testing.assert_close((second * v[2]).sum(), (slope * v[1]).sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_config_rebuilds_the_network(make, event):
    net = make(classes=3, dropout=0.25, label_dropout=0.1)
    again = type(net)(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    awake(net)
    again.double().eval().load_state_dict(net.state_dict())
    x, c = inputs(4, *event)
    label = torch.tensor([0, 1, 2, -1])
    assert torch.equal(again(x, c, label=label), net(x, c, label=label))
    # everything in the state is trained: nothing random or derived has to be kept
    assert {k for k, _ in net.named_parameters()} == set(net.state_dict())


def test_default_sizes():
    count = sum(p.numel() for p in nets.UNet(channels=1, width=32).parameters())
    assert 600_000 < count < 800_000
    assert all(p.dtype == torch.float32 for p in nets.UNet().parameters())


@pytest.mark.parametrize("embedding", ["fourier", "sinusoidal"])
def test_noise_levels_are_told_apart_and_enter_smoothly(embedding):
    net = nets.MLP(2, 64, embedding=embedding).double()
    c = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    angles = c[:, None] * net.embedding.frequencies.double()
    f = torch.cat([angles.cos(), angles.sin()], 1)
    step = (f[1:] - f[:-1]).norm(dim=1) / f[0].norm()
    # neighbours in a fine grid differ a little, but by no jump: a solver steps over levels of 0.02
    assert float(step.min()) > 1e-4
    assert float(step.max()) < 0.1
    # levels 0.02 apart are never the same to the network, wherever they are
    coarse = f[::20]
    distance = torch.cdist(coarse, coarse) / f[0].norm() + torch.eye(len(coarse))
    assert float(distance.min()) > 1e-2


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_labels_matter_after_a_training_step(make, event):
    torch.manual_seed(0)
    net = make(classes=5)
    x, c = (z.float() for z in inputs(6, *event))
    label = torch.tensor([0, 1, 2, 3, 4, -1])
    assert torch.equal(net(x, c, label=label), net(x, c))  # both zero
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, c, label=label) - label.view(-1, *[1] * len(event))).square().mean().backward()
        optimizer.step()
    net.eval()
    y = net(x, c, label=label)
    assert float((net(x, c, label=(label + 2) % 5) - y).detach().flatten(1).norm(dim=1).min()) > 1e-4
    # None is -1 for all, and -1 for one leaves the others as they are
    torch.testing.assert_close(net(x, c), net(x, c, label=torch.full((6,), -1)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(x, c)[5], y[5], atol=1e-6, rtol=1e-5)
    assert torch.equal(net(x, c, label=label.int()), y)


def test_label_dropout_hides_labels_in_training_only():
    net = awake(nets.MLP(2, 8, 1, classes=3, label_dropout=0.5))
    x, c = (z[:1].expand(2000, *z.shape[1:]) for z in inputs(1, 2))
    label = torch.full((2000,), 2)
    net.requires_grad_(False)
    given, none = net(x, c, label=label), net(x, c)
    assert float((given - none).abs().min()) > 1e-4
    net.train()
    torch.manual_seed(0)
    mixed = net(x, c, label=label)
    is_given = (mixed - given).abs().amax(1) < 1e-12
    assert bool((is_given | ((mixed - none).abs().amax(1) < 1e-12)).all())
    assert 900 < int(is_given.sum()) < 1100  # 1000 expected; 100 is 4.5 standard deviations


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_dropout_in_training_only(make, event):
    net = awake(make(dropout=0.5))
    x, c = inputs(2, *event)
    assert torch.equal(net(x, c), net(x, c))
    net.train()
    assert not torch.equal(net(x, c), net(x, c))


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_every_parameter_learns(make, event):
    net = awake(make(classes=2)).train()
    x, c = inputs(3, *event)
    net(x, c, label=torch.tensor([0, 1, -1])).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not still


@pytest.mark.parametrize(("make", "event"), SMALL)
def test_autocast_keeps_the_ends_in_full_precision(make, event):
    net = awake(make()).float()
    x, c = (z.float() for z in inputs(4, *event))
    exact = net(x, c)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, c)
    assert y.dtype == torch.float32
    assert not torch.equal(y, y.bfloat16().float())
    error = float((y - exact).detach().norm() / exact.detach().norm())
    assert 1e-5 < error < 0.05  # bfloat16 was used inside, and nothing worse
    # an input that differs by less than bfloat16 can tell is not the same input
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(net(x * (1 + 2.0**-12), c), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nets.MLP(0), "features = 0"),
        (lambda: nets.MLP(()), r"features = \(\)"),
        (lambda: nets.MLP(2.0), r"features = 2\.0"),
        (lambda: nets.MLP((2, -1)), r"features\[1\] = -1"),
        (lambda: nets.MLP(2, width=0), "width = 0"),
        (lambda: nets.MLP(2, depth=True), "depth = True"),
        (lambda: nets.MLP(2, embedding="rotary"), "'rotary', expected one of 'fourier', 'sinusoidal'"),
        (lambda: nets.MLP(2, classes=0), "classes = 0"),
        (lambda: nets.MLP(2, dropout=1.0), r"dropout = 1\.0, expected a probability in \[0, 1\)"),
        (lambda: nets.MLP(2, dropout=math.nan), "dropout = nan"),
        (lambda: nets.MLP(2, label_dropout=0.1), "label_dropout = 0.1 without classes"),
        (lambda: nets.UNet(0), "channels = 0"),
        (lambda: nets.UNet(width=2.5), r"width = 2\.5"),
        (lambda: nets.UNet(multipliers=()), r"multipliers = \(\)"),
        (lambda: nets.UNet(multipliers=2), "multipliers = 2, expected a non-empty sequence"),
        (lambda: nets.UNet(multipliers=(1, 0)), r"multipliers\[1\] = 0"),
        (lambda: nets.UNet(blocks=0), "blocks = 0"),
        (lambda: nets.UNet(attention=(2,)), r"attention = \(2,\), expected a sequence of levels in -2\.\.1"),
        (lambda: nets.UNet(attention=1), "attention = 1"),
        (lambda: nets.UNet(groups=0), "groups = 0"),
        (lambda: nets.UNet(heads=5), "heads = 5 does not divide the 64 channels of level 1"),
        (lambda: nets.UNet(dropout="0.1"), "dropout = '0.1'"),
    ],
)
def test_bad_configuration(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

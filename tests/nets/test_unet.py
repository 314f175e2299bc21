"""The U-Net."""

from __future__ import annotations

import math

import pytest
import torch
from nets.cases import X1, C, L, awake, inputs
from torch import nn

from scoresde import nets
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.nets import attention as nets_attention


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 7), (9, 13), (1, 1), (5, 2)])
def test_unet_takes_any_size(size):
    net = awake(nets.UNet(3, 4, (1, 1, 2), 1, groups=2))
    x, c = inputs(2, 3, *size)
    y = net(x, c)
    assert y.shape == x.shape
    # every output pixel depends on the opposite corner
    x.requires_grad_()
    for row, column in ((0, 0), (-1, -1)):
        (g,) = torch.autograd.grad(net(x, c)[0, 0, row, column], x)
        assert bool((g[0, :, -1 - row, -1 - column] != 0).all())
        assert bool((g[1] == 0).all())


def test_unet_levels_shrink_rounding_up():
    net = nets.UNet(1, 4, (1, 1, 1, 1), 1, ())
    sizes = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.register_forward_hook(lambda m, i, y: sizes.append(tuple(y.shape[2:])))
    net(torch.zeros(1, 1, 28, 15), torch.zeros(1))
    assert sizes == [(14, 8), (7, 4), (4, 2)]


def test_attention_sits_where_it_is_asked_for():
    def levels(attention):
        seen = []
        net = nets.UNet(1, 4, (1, 1, 1), 1, attention, groups=1)
        for module in net.modules():
            if isinstance(module, nets_attention.Attention):
                module.register_forward_hook(lambda m, i, y: seen.append(y.shape[-1]))
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
        return seen

    assert set(levels(())) == {2}  # the middle's own
    assert set(levels((0,))) == {8, 2}
    assert set(levels((-2,))) == {4, 2}
    assert len(levels((2,))) == len(levels((-1,))) > len(levels(()))


def test_unet_learns_to_denoise():
    """Stripes with a random phase under noise: the best linear estimate of a pixel alone leaves 1/3, the network far less."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    net = nets.UNet(1, 16, blocks=1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        phase = torch.rand(32, 1, 1, 1, generator=g) * 2 * math.pi
        clean = torch.sin(phase + torch.arange(8) * math.pi / 4).expand(32, 1, 8, 8)
        noisy = clean + torch.randn(clean.shape, generator=g)
        loss = (net(noisy, torch.zeros(32)) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.5, abs=0.05)  # zero at first
    assert sum(losses[-10:]) / 10 < 0.15


@pytest.mark.parametrize(
    ("x", "c_noise", "cond", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), C, {}, ShapeError, r"\(2, 3, 8, 8\).*\(B, 1, H, W\)"),
        (torch.zeros(2, 8, 8), C, {}, ShapeError, r"\(2, 8, 8\)"),
        (torch.zeros(1, 8), C, {}, ShapeError, r"\(1, 8\)"),
        (X1, torch.zeros(3), {}, ShapeError, r"c_noise has shape \(3,\)"),
        (X1, torch.zeros(2, 1), {}, ShapeError, r"c_noise has shape \(2, 1\)"),
        (X1, torch.tensor(0.0), {}, ShapeError, r"c_noise has shape \(\)"),
        (X1, L, {}, DTypeError, "c_noise has dtype torch.int64"),
        (X1.double(), C, {}, DTypeError, "float64.*float32"),
        (X1.long(), C, {}, DTypeError, "int64.*float32"),
        (X1, C, {"label": L.float()}, DTypeError, "label is of torch.float32"),
        (X1, C, {"label": 1}, DTypeError, "label is of int"),
        (X1, C, {"label": L[:1]}, ShapeError, r"label has shape \(1,\)"),
        (X1, C, {"label": torch.tensor([0, 4])}, ConfigError, r"from 0 to 4, expected 0\.\.3"),
        (X1, C, {"label": torch.tensor([-2, 1])}, ConfigError, r"from -2 to 1"),
    ],
)
def test_bad_input(x, c_noise, cond, error, message):
    with pytest.raises(error, match=message):
        nets.UNet(1, 8, blocks=1, classes=4)(x, c_noise, **cond)

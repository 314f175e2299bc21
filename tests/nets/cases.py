"""Small networks of every kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network in double precision whose zero-initialised layers are no longer zero, so that every path carries values."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim == 1 else 0.7 / p[0].numel() ** 0.5))
    return net.double().eval()


def inputs(b: int, *event: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, *event, generator=g, dtype=torch.float64)
    return x, torch.rand(b, generator=g, dtype=torch.float64) * 4 - 2

X1, X3, C, L = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2).long()

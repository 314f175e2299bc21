"""Attention over positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.nets.arguments import zeroed


class Attention(nn.Module):
    """Self-attention over the pixels, residual: softmax(q k^T / sqrt d) v."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = h.view(b, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Written out on purpose: F.scaled_dot_product_attention has no second derivative for its fused kernels and no
        # batching rule for their backward, and exact divergences and likelihood gradients need both.
        weights = torch.softmax(q @ k.transpose(2, 3) * (c // self.heads) ** -0.5, dim=3)
        h = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, height * width, c)
        return (x + self.output(h).transpose(1, 2).reshape(x.shape)) * 0.5**0.5

"""A U-Net for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.core.tensors import full_precision
from scoresde.errors import ConfigError, ShapeError
from scoresde.nets.arguments import (
    check_count,
    check_event_shape,
    check_input,
    check_levels,
    check_probability,
    check_size,
    check_weights,
    zeroed,
)
from scoresde.nets.attention import Attention
from scoresde.nets.embedding import Embedding
from scoresde.nets.waves import wave_frequencies, with_waves


class UNet(nn.Module):
    """U-Net for images (B, C, H, W) of any size, after DDPM++ and EDM (arXiv 2011.13456, app. H; 2206.00364).

    Level i works on images of 1/2^i of the size (rounded up: 28, 14, 7, 4) with width * multipliers[i] channels, and has
    ``blocks`` residual blocks on the way down and as many on the way up. Each of the latter starts from the sum of what
    it is given and the result of its partner on the way down. (DDPM++ concatenates them, and has one block more: a
    training step then takes 1.5 times as long, with nothing gained that was seen on 8x8 images.) A residual block is

        h <- (h + conv silu((1 + a) norm(conv silu norm h) + b)) / sqrt 2

    with group norms, and a and b linear in an embedding of the noise level.

    Args:
        channels: image channels C, in and out.
        width: channels of the first level.
        multipliers: one per level.
        blocks: residual blocks per level and way.
        attention: levels whose blocks are followed by self-attention; 0 is the full resolution, -1 the lowest. The
            middle of the network has it in any case.
        classes: number of classes; None is an unconditional network.
        dropout: probability of dropout inside the blocks.
        embedding: features of the noise level c: "fourier", cos and sin of 2 pi f c with f the quantiles of a
            half-normal distribution (arXiv 2006.10739, without its random draw), or "sinusoidal", geometric frequencies
            as in transformers (arXiv 2006.11239).
        groups: groups of the group norms; a norm of n channels uses gcd(groups, n).
        heads: attention heads; they divide the channels of the levels with attention.
        label_dropout: probability that training replaces a label by "no label", as classifier-free guidance needs
            (arXiv 2207.12598).
        frequencies: f of Fourier features of x, cos and sin of 2 pi f x as further input channels, which fade where the noise hides
            them (``with_waves``). A network cannot see single levels of finely quantized data without them: K/2 levels a unit of
            x make f = K/2 a wave a level, for integer levels on [-1, 1] (2107.00630, app. C, has f = 64 and 128 for 256 levels).
            (x is what the network is given: where there is little noise the sample itself, but twice that under "edm".)
        augmentations: length of the vector that says how a sample was augmented, see ``scoresde.augment``; 0: it takes none.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        classes: int | None = None,
        dropout: float = 0.0,
        embedding: str = "fourier",
        groups: int = 8,
        heads: int = 1,
        label_dropout: float = 0.0,
        frequencies: Sequence[float] = (),
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        multipliers = check_event_shape(multipliers, "multipliers", sequence=True)
        levels = len(multipliers)
        self.config: dict[str, Any] = {
            "channels": check_size(channels, "channels"),
            "width": check_size(width, "width"),
            "multipliers": list(multipliers),
            "blocks": check_size(blocks, "blocks"),
            "attention": check_levels(attention, levels),
            "classes": None if classes is None else check_size(classes, "classes"),
            "dropout": check_probability(dropout, "dropout"),
            "embedding": embedding,
            "groups": check_size(groups, "groups"),
            "heads": check_size(heads, "heads"),
            "label_dropout": check_probability(label_dropout, "label_dropout"),
        }
        self.frequencies = wave_frequencies(frequencies, self.config)
        channels, width, blocks, groups, heads = (self.config[name] for name in ("channels", "width", "blocks", "groups", "heads"))
        per_block = sum((float(width) * m) ** 2 for m in multipliers)  # two convolutions of 3 x 3, on the way down and up
        check_weights(36 * blocks * per_block, f"UNet(width={width}, multipliers={multipliers}, blocks={blocks})")
        attending = {level % levels for level in self.config["attention"]}
        widths = [width * m for m in multipliers]
        for level in attending | {levels - 1}:
            if widths[level] % heads:
                raise ConfigError(
                    f"heads = {heads} does not divide the {widths[level]} channels of level {level}: "
                    "change heads, width or multipliers"
                )
        size = 4 * width

        def stage(level: int) -> list[nn.Module]:
            h = heads if level in attending else 0
            return [_ImageBlock(widths[level], size, groups, dropout, h) for _ in range(blocks)]

        self.embedding = Embedding(width, size, embedding, self.config["classes"], label_dropout, check_count(augmentations, self.config))
        self.input = nn.Conv2d(channels * (1 + 2 * len(self.frequencies)), widths[0], 3, padding=1)
        down, up = stage(0), stage(0)
        for level in range(1, levels):
            outer, inner = widths[level - 1], widths[level]
            # a strided convolution halves the size, rounding up; on the way up the channels shrink before the size grows
            down += [nn.Conv2d(outer, inner, 3, stride=2, padding=1), *stage(level)]
            up = [*stage(level), *([nn.Conv2d(inner, outer, 1)] if inner != outer else []), *up]
        n = widths[-1]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = nn.ModuleList(_ImageBlock(n, size, groups, dropout, h) for h in (heads, 0))
        self.norm = nn.GroupNorm(math.gcd(groups, widths[0]), widths[0])
        self.output = zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c_noise (B,), label (B,) of class numbers or None, augment (B, n) or None for 0 -> (B, C, H, W).

        A label of -1 is "no label" for one sample, None for all of them.

        Raises:
            ShapeError: x is not (B, channels, H, W); c_noise or label is not (B,).
            DTypeError: x is not of the dtype of the weights; c_noise is not floating point; label is not of integers.
            ConfigError: a label without ``classes``, or outside 0..classes-1 (seen on the CPU only).
        """
        if x.ndim != 4 or x.shape[1] != self.config["channels"]:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, but this UNet was made for (B, {self.config['channels']}, H, W): "
                "images with the channels first"
            )
        check_input(x, c_noise, self.input.weight)
        emb = self.embedding(c_noise, label, augment, x)
        with full_precision(x):
            h = self.input(with_waves(x, c_noise, self.frequencies))
        skips = []
        for layer in self.down:
            if isinstance(layer, _ImageBlock):
                h = layer(h, emb)
                skips.append(h)
            else:
                h = layer(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            if isinstance(layer, _ImageBlock):
                skip = skips.pop()
                h = layer((_upsample(h, skip) + skip) * 0.5**0.5, emb)
            else:
                h = layer(h)
        h = F.silu(self.norm(h))
        with full_precision(x):
            return self.output(h.to(x.dtype))


class _ImageBlock(nn.Module):
    """Residual block, with attention after it if heads > 0."""

    def __init__(self, channels: int, size: int, groups: int, dropout: float, heads: int) -> None:
        super().__init__()
        groups = math.gcd(groups, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(size, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels, affine=False)  # the modulation has its own scale and shift
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.attention = Attention(channels, groups, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.conv2(self.dropout(h))
        return self.attention((x + h) * 0.5**0.5)  # keeps the variance


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    """Doubles x by repetition and crops it to the size of ``like`` if their sizes differ."""
    if x.shape[2:] == like.shape[2:]:
        return x
    b, c, h, w = x.shape
    x = x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    return x[:, :, : like.shape[2], : like.shape[3]]

"""A network for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.core.tensors import full_precision
from scoresde.errors import ShapeError
from scoresde.nets.arguments import (
    check_count,
    check_event_shape,
    check_input,
    check_probability,
    check_size,
    check_weights,
    zeroed,
)
from scoresde.nets.embedding import Embedding
from scoresde.nets.waves import wave_frequencies, with_waves


class MLP(nn.Module):
    """Residual network for vectors, or for small events of any shape, which it flattens.

    Each block is h <- h + W2 silu(W1 silu((1 + a) norm(h) + b)), with a, b linear in an embedding of the noise level.

    Args:
        features: number of features D, or the event shape. x has shape (B, D) or (B, *features).
        width: hidden features.
        depth: number of residual blocks (two linear layers each).
        embedding: features of the noise level: "fourier" or "sinusoidal", see ``UNet``.
        classes: number of classes; None is an unconditional network.
        dropout: probability of dropout inside the blocks.
        label_dropout: probability that training replaces a label by "no label", as classifier-free guidance needs
            (arXiv 2207.12598).
        frequencies: of Fourier features of x, see ``UNet``.
        augmentations: length of the vector that says how a sample was augmented, see ``scoresde.augment``; 0: it takes none.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        width: int = 128,
        depth: int = 4,
        embedding: str = "fourier",
        classes: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        frequencies: Sequence[float] = (),
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = check_event_shape(features, "features")
        self.config: dict[str, Any] = {
            "features": list(self.event_shape) if isinstance(features, (list, tuple)) else self.event_shape[0],
            "width": check_size(width, "width"),
            "depth": check_size(depth, "depth"),
            "embedding": embedding,
            "classes": None if classes is None else check_size(classes, "classes"),
            "dropout": check_probability(dropout, "dropout"),
            "label_dropout": check_probability(label_dropout, "label_dropout"),
        }
        self.frequencies = wave_frequencies(frequencies, self.config)
        width, depth, size = self.config["width"], self.config["depth"], math.prod(self.event_shape)
        check_weights(float(width) * (4 * width * depth + 2 * size), f"MLP(features={features}, width={width}, depth={depth})")
        self.embedding = Embedding(width, width, embedding, self.config["classes"], label_dropout, check_count(augmentations, self.config))
        self.input = nn.Linear(size * (1 + 2 * len(self.frequencies)), width)
        self.blocks = nn.ModuleList(_VectorBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = zeroed(nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x (B, *event), c_noise (B,), label (B,) of class numbers or None, augment (B, n) or None for 0 -> (B, *event).

        Raises:
            ShapeError, DTypeError, ConfigError: see ``UNet.forward``.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            event = ", ".join(map(str, self.event_shape))
            raise ShapeError(f"x has shape {tuple(x.shape)}, but this MLP was made for (B, {event})")
        check_input(x, c_noise, self.input.weight)
        emb = self.embedding(c_noise, label, augment, x)
        with full_precision(x):
            h = self.input(with_waves(x, c_noise, self.frequencies).flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        h = F.silu(self.norm(h))
        with full_precision(x):
            return self.output(h.to(x.dtype)).view(x.shape)


class _VectorBlock(nn.Module):
    def __init__(self, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the modulation has its own scale and shift
        self.modulation = nn.Linear(size, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.output = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, 1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.output(self.dropout(F.silu(self.hidden(F.silu(h)))))

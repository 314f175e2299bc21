"""What a network is told beside x: noise level, class and augmentation, as one vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.nets.arguments import check_size

_EMBEDDINGS = ("fourier", "sinusoidal")


class Embedding(nn.Module):
    """(c_noise (B,), label (B,) or None) -> (B, size), ready for the linear layers of the blocks."""

    frequencies: Tensor

    def __init__(self, width: int, size: int, kind: str, classes: int | None, label_dropout: float, augmentations: int) -> None:
        super().__init__()
        if not isinstance(kind, str) or kind not in _EMBEDDINGS:
            raise ConfigError(f"embedding = {kind!r}, expected one of {', '.join(map(repr, _EMBEDDINGS))}")
        if label_dropout and classes is None:
            raise ConfigError(f"label_dropout = {label_dropout} without classes: give classes, or leave both out")
        n = max(width // 2, 1)
        grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        fourier, sinusoidal = 2 * math.pi * torch.special.ndtri((1 + grid) / 2), 100 * 10_000**-grid
        frequencies = (fourier if kind == "fourier" else sinusoidal).float()
        self.register_buffer("frequencies", frequencies, persistent=False)  # made from the arguments: nothing to save
        self.layers = nn.Sequential(nn.Linear(2 * n, size), nn.SiLU(), nn.Linear(size, size))
        self.augment = nn.Linear(augmentations, size, bias=False) if augmentations else None  # 0 for what was left as it is
        self.label_dropout = label_dropout
        # row 0 stands for "no label"
        self.label = None if classes is None else nn.Embedding(check_size(classes, "classes") + 1, size)

    def forward(self, c_noise: Tensor, label: Tensor | None, augment: Tensor | None, x: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        emb = self.layers(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        if augment is not None:
            if self.augment is None or augment.shape != (len(x), self.augment.in_features):
                n = 0 if self.augment is None else self.augment.in_features
                raise ShapeError(f"augment has shape {tuple(augment.shape)}, but this network was made with augmentations={n}")
            emb = emb + self.augment(augment.to(x.dtype))
        if self.label is None:
            if label is not None:
                raise ConfigError("a label was given, but this network was made without classes: give classes=...")
            return F.silu(emb)
        if label is None:
            return F.silu(emb + self.label.weight[0])
        if not isinstance(label, Tensor) or label.dtype not in (torch.int64, torch.int32, torch.uint8):
            got = label.dtype if isinstance(label, Tensor) else type(label).__name__
            raise DTypeError(f"label is of {got}, expected integers: a LongTensor of class numbers")
        if label.shape != x.shape[:1]:
            raise ShapeError(f"label has shape {tuple(label.shape)} for x of shape {tuple(x.shape)}, expected (B,)")
        row = label.long() + 1
        if self.training and self.label_dropout:
            row = row * (torch.rand(row.shape, device=row.device) >= self.label_dropout)
        try:
            return F.silu(emb + self.label(row))
        except IndexError:  # raised by the look-up itself, on the CPU: no synchronisation for a check
            raise ConfigError(
                f"labels run from {int(label.min())} to {int(label.max())}, expected 0..{len(self.label.weight) - 2} "
                "(or -1 for no label)"
            ) from None

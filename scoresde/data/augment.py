"""Augmentation with honest accounting: training samples are moved about, and the network is told how (2206.00364, app. F.1).

The network takes a vector a as its condition ``augment``, and a = 0 means untouched. Measured and sampled with a = 0, the model is one of
the data themselves: its bits per dimension owe nothing to samples that are not data. (A network that is not told learns the moved samples
too, and pays for them: mirror images, where data have none, cost up to 1/D bits per dimension.)

An augmentation is any frozen dataclass with ``draws`` and ``labels``, and a call (x, u) -> (x, a), see ``Augmentation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.core.checks import as_number, check_integer, shown
from scoresde.core.doors import checked
from scoresde.core.tensors import expand
from scoresde.errors import ConfigError, ShapeError


@runtime_checkable
class Augmentation(Protocol):
    """What ``fit(augment=...)`` takes."""

    @property
    def draws(self) -> int:
        """Uniform numbers a sample."""

    @property
    def labels(self) -> int:
        """Length of a."""

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *event), levels or floats, moved by the random numbers u (B, draws), and a (B, labels), 0 where it was not."""


@checked
@dataclass(frozen=True)
class Flip:
    """Mirrors the last dimension (left and right of images) with a probability; a is 1 for mirror images.

    Raises:
        ConfigError: a probability outside (0, 1).
    """

    probability: float = 0.5
    draws = labels = 1

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        moved = u[:, 0] < self.probability
        return torch.where(expand(moved, x), x.flip(-1), x), moved[:, None].to(u)


@checked
@dataclass(frozen=True)
class Shift:
    """Moves images by up to ``most`` pixels up or down, and left or right, with a probability; what comes in repeats the edge.

    a is the way in units of ``most``, (B, 2).

    Raises:
        ConfigError: most < 1, or a probability outside (0, 1).
        ShapeError: (when called) events that are no images (C, H, W).
    """

    most: int = 1
    probability: float = 0.5
    draws = 3
    labels = 2

    def __post_init__(self) -> None:
        check_integer(self.most, "most", 1, 100_000)
        _check_probability(self.probability)

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 4:
            raise ShapeError(f"Shift got x of shape {tuple(x.shape)}, expected images (B, C, H, W)")
        moved = (u[:, :1] < self.probability).to(u)
        way = ((u[:, 1:] * (2 * self.most + 1)).floor() - self.most) * moved  # (B, 2), whole pixels down and right
        rows, columns = (
            (torch.arange(size, device=x.device) - way[:, axis, None].to(x.device).long()).clamp(0, size - 1)
            for axis, size in enumerate(x.shape[2:])
        )
        b = torch.arange(len(x), device=x.device)[:, None, None]
        return x.movedim(1, -1)[b, rows[:, :, None], columns[:, None, :]].movedim(-1, 1), way / self.most


@checked
@dataclass(frozen=True)
class Chain:
    """Several augmentations, one after the other; a has the labels of all."""

    parts: tuple[Augmentation, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("parts of Chain are empty, expected augmentations, Flip() and Shift() for instance")
        for i, part in enumerate(self.parts):
            check_augmentation(part, f"parts[{i}]")

    @property
    def draws(self) -> int:
        return sum(part.draws for part in self.parts)

    @property
    def labels(self) -> int:
        return sum(part.labels for part in self.parts)

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        labels = []
        for part, draws in zip(self.parts, u.split([part.draws for part in self.parts], dim=1), strict=True):
            x, a = part(x, draws)
            labels.append(a)
        return x, torch.cat(labels, dim=1)


def check_augmentation(value: Any, name: str = "augment") -> None:
    """Raises ConfigError for what is no ``Augmentation``."""
    if isinstance(value, type) or not isinstance(value, Augmentation):
        raise ConfigError(
            f"{name} = {shown(value)}, expected an augmentation: scoresde.augment.Flip(), Shift(), or an object of yours with draws, "
            "labels and a call (x, u) -> (x, a)"
        )


def named(text: str) -> Augmentation:
    """"flip", "shift", or both with a comma between. Raises ConfigError."""
    known: dict[str, Augmentation] = {"flip": Flip(), "shift": Shift()}
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"augmentation {name!r} is unknown, expected {', '.join(known)}, or both with a comma between")
    return known[names[0]] if len(names) == 1 else Chain(tuple(known[name] for name in names))


def _check_probability(p: float) -> None:
    found = as_number(p)
    if found is None or not 0 < found < 1:
        raise ConfigError(f"probability = {p!r}, expected a number in (0, 1): some samples must stay as they are")

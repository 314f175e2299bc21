"""A data set: levels or floats, with labels and a transform, split into training and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.core.checks import check_data
from scoresde.core.digest import sha256_of
from scoresde.core.doors import checked
from scoresde.errors import DataError, DTypeError, ShapeError

if TYPE_CHECKING:
    from scoresde.data.transform import Transform
    from scoresde.models.mixture import GaussianMixture

_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in memory.

    Args:
        train: (N, *event), integer levels with a transform, or floats without.
        test: (M, *event), the same kind; M = 0 if there is none.
        transform: how integer levels become floats; None for floats.
        labels: (N,) class numbers (int64) of the training samples, or None.
        test_labels: (M,) those of the test samples, or None.
        name: what error messages and logs call it.
        target: the exact density that the samples come from, where there is one.

    Raises:
        ShapeError: an empty training set, event shapes that differ, labels that are not one a sample, images of levels whose
            channels are last, (N, H, W, 1 | 3 | 4).
        DTypeError: integers without a transform, floats with one, labels that are not integers.
        NonFiniteError: NaN or infinity, with their count and first index.
        DataError: levels outside 0..levels-1, negative labels.
    """

    train: Tensor
    test: Tensor
    transform: Transform | None = None
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    name: str = "data"
    target: GaussianMixture | None = None

    def __post_init__(self) -> None:
        _check_samples(self.train, self.transform, "train")
        if self.test.dtype != self.train.dtype:
            raise DTypeError(f"train has dtype {self.train.dtype} but test has {self.test.dtype}: give both the same")
        if self.test.shape[1:] != self.train.shape[1:]:
            raise ShapeError(
                f"train has shape {tuple(self.train.shape)} but test has {tuple(self.test.shape)}: "
                "their samples must have the same shape"
            )
        if len(self.test):
            _check_samples(self.test, self.transform, "test")
        _check_labels(self.labels, len(self.train), "labels")
        _check_labels(self.test_labels, len(self.test), "test_labels")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes, the largest label + 1, or None without labels: what ``nets.UNet(classes=...)`` takes."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def hash(self) -> str:
        """sha256, in hexadecimal, of what training sees: the training samples, their labels and the transform."""
        seen = [x for x in (self.train, self.labels) if x is not None]
        return sha256_of(*(part for x in seen for part in (f"{x.dtype} {tuple(x.shape)};", x)), repr(self.transform))

    def __repr__(self) -> str:
        values = "floats" if self.transform is None else f"{self.transform.levels} levels"
        classes = "" if self.classes is None else f", {self.classes} classes"
        return (
            f"Data({self.name}: {len(self.train)} train, {len(self.test)} test, shape {self.event_shape}, "
            f"{values}{classes})"
        )


def _check_samples(x: Tensor, transform: Transform | None, name: str) -> None:
    if transform is None:
        check_data(x, name=name)
        return
    if not isinstance(x, Tensor) or x.dtype not in _INTEGERS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DTypeError(f"{name} is of {got}, but a transform is for integer levels: give floats no transform")
    if x.ndim < 2 or not len(x):
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected a non-empty batch (N, *event)")
    moved = channels_last(tuple(x.shape[1:]))
    if moved:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, but channels come first: {moved}")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= transform.levels:
        bad = ((x < 0) | (x >= transform.levels)).nonzero()
        raise DataError(
            f"{name} holds levels from {low} to {high}, expected 0..{transform.levels - 1}: {len(bad)} are outside, "
            f"the first at index {tuple(bad[0].tolist())}; give the right number of levels"
        )


def channels_last(shape: tuple[int, ...]) -> str:
    """The call that brings channels to the front where samples of a shape are images or volumes with channels last, else "".

    They are taken for such if the last of three or four axes is 1, 3 or 4 long and the others at least 8.
    """
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4) or min(shape[:-1]) < 8:
        return ""
    return f"x.permute({', '.join(map(str, (0, len(shape), *range(1, len(shape)))))})"


def _check_labels(labels: Tensor | None, n: int, name: str) -> None:
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise DTypeError(f"{name} has dtype {labels.dtype}, expected torch.int64: class numbers")
    if labels.shape != (n,):
        raise ShapeError(f"{name} has shape {tuple(labels.shape)}, expected ({n},): one a sample")
    if n and int(labels.min()) < 0:
        raise DataError(f"{name} holds {int(labels.min())}, expected class numbers from 0")

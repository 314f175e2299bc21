"""What samples of a shape are drawn as, and which shapes are refused: the one place that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data
from scoresde.data.dataset import channels_last
from scoresde.data.transform import Transform
from scoresde.errors import ShapeError

PLANE, VECTORS, IMAGES, SIGNALS, SETS, VOLUMES = "points of the plane", "vectors", "images", "signals", "sets of points", "volumes"

MOST = {PLANE: 100_000, VECTORS: 1000, IMAGES: 400, SIGNALS: 64, SETS: 64, VOLUMES: 16}  # samples in one picture


def kind_of(shape: Sequence[int], got: str = "") -> str:
    """What samples of an event shape are drawn as.

    (2,): points of the plane; (D,): vectors; (C, L) with C <= L: signals of C channels; (P, 2) and (P, 3) with P > 3: sets of points;
    (H, W), both at least 4 and neither more than four times the other: gray images; (1 or 3, H, W): images; (1 or 3, D, H, W): volumes.

    Args:
        shape: of one sample.
        got: how an error message begins, "x has shape (4, 2, 8, 8)" for instance.

    Raises:
        ShapeError: any other shape. Of channels that are last it names the transpose.
    """
    shape = tuple(shape)
    got = got or f"samples of shape {shape}"
    moved = channels_last(shape)
    if moved:
        raise ShapeError(f"{got}: channels come first, {moved}")
    if len(shape) == 1 and shape[0] > 0:
        return PLANE if shape == (2,) else VECTORS
    if len(shape) == 2 and min(shape) > 0:
        a, b = shape
        if b in (2, 3) and a > 3:
            return SETS
        if min(shape) >= 4 and max(shape) <= 4 * min(shape):
            return IMAGES
        if a <= b:
            return SIGNALS
        raise ShapeError(f"{got}: signals are (N, C, L), C <= L, sets of points (N, P, 2 or 3); if channels are last, x.transpose(1, 2)")
    if len(shape) in (3, 4) and min(shape) > 0:
        if shape[0] in (1, 3):
            return IMAGES if len(shape) == 3 else VOLUMES
        name = "images" if len(shape) == 3 else "volumes"
        raise ShapeError(f"{got}, expected {name} with C = 1 or 3: draw channels one by one, x[:, :1]")
    raise ShapeError(f"{got}, expected vectors (N, D), signals (N, C, L), images (N, C, H, W) or volumes (N, C, D, H, W), N >= 1")


def kind_of_batch(x: Any) -> str:
    """``kind_of`` the samples of a batch. Raises ShapeError: no batch, or no sample in it."""
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"x is of {got}, expected samples (N, *shape of one), N >= 1")
    return kind_of(x.shape[1:], f"x has shape {tuple(x.shape)}")


def most_drawn(shape: Sequence[int]) -> int:
    """How many samples of an event shape one picture holds. Raises ShapeError: they cannot be drawn."""
    return MOST[kind_of(shape)]


def values_of(x: Tensor, transform: Transform | None) -> np.ndarray:
    """What is drawn where there is an axis of values: levels if there is a transform, floats as they are without."""
    if transform is not None and x.is_floating_point():
        x = transform.quantize(check_data(x.detach()))
    return check_data(x.detach().cpu().float()).numpy()


def labels_of(labels: Any, sets: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The labels of every set as texts, {} if there are none. Raises ShapeError: not one a sample."""
    if labels is None:
        return {}
    given = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(sets, labels)
    found = {}
    for name, x in sets.items():
        values = given.get(name)
        if values is None:
            found[name] = [""] * len(x)
            continue
        texts = [str(v) for v in (values.tolist() if isinstance(values, (Tensor, np.ndarray)) else values)]
        if len(texts) != len(x):
            raise ShapeError(f"labels: {len(texts)} of them, expected {len(x)}: one a sample")
        found[name] = texts
    return found


def by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """The samples of each label, in order; labels as numbers where they are numbers."""

    def rank(label: str) -> tuple[bool, float, str]:
        number = label.lstrip("-").isdigit()
        return not number, float(label) if number else 0.0, label

    found: dict[str, list[int]] = {label: [] for label in sorted(set(labels), key=rank)}
    for i, label in enumerate(labels):
        found[label].append(i)
    return found


def slices_of(x: Tensor, most: int = 8) -> Tensor:
    """Slices (N, n, C, H, W) of volumes (N, C, D, H, W), at most ``most`` of them, evenly spaced over D, the first and last among them."""
    depth = x.shape[2]
    pick = torch.linspace(0, depth - 1, min(most, depth), device="cpu").round().long().to(x.device)
    return x.index_select(2, pick).movedim(2, 1)

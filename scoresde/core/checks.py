"""Arguments that are what they should be: numbers, tensors, names. Every error says what was got and what was expected."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """; did you mean 'Heun'? -- or nothing, where no name is alike."""
    lower = {n.lower(): n for n in names}
    close = get_close_matches(name.lower(), lower, 1, cutoff)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def letters_apart(a: str, b: str) -> int:
    """How many letters must be changed, added, left out or swapped with the next to make b of a (Damerau and Levenshtein)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]


def check_data(x: Any, event_shape: tuple[int, ...] | None = None, name: str = "x") -> Tensor:
    """Checks a batch of data points: floats of shape (B, *event), B >= 1, all finite. Returns x.

    Raises:
        DTypeError: not a floating-point tensor.
        ShapeError: fewer than two dimensions, an empty batch or another event shape.
        NonFiniteError: NaN or infinity, with their count and the index of the first.
    """
    check_floating(x, name)
    check_shape(x, event_shape, name)
    finite = torch.isfinite(x)
    try:
        fine = bool(finite.all())
    except RuntimeError:  # under torch.func.vmap nobody can look at numbers
        return x
    if not fine:
        bad = (~finite).nonzero()
        kind = "NaN" if bool(torch.isnan(x).any()) else "inf"
        raise NonFiniteError(
            f"{name} holds {kind}: {len(bad)} non-finite values, the first at index {tuple(bad[0].tolist())}; "
            "remove or repair these samples first"
        )
    return x


def check_floating(x: Any, name: str = "x") -> None:
    """Checks that x is a floating-point tensor. Raises DTypeError."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor: use torch.as_tensor({name})")
    if not x.is_floating_point():
        raise DTypeError(
            f"{name} has dtype {x.dtype}, expected floating point: for integer levels give a `Transform` "
            "(scoresde.Transform(levels=K)) and use bits_per_dim, or transform.dequantize(levels)"
        )


def check_shape(x: Tensor, event_shape: tuple[int, ...] | None = None, name: str = "x") -> None:
    """Checks that x is a non-empty batch (B, *event). Raises ShapeError."""
    if x.ndim < 2:
        hint = f"{name}[:, None] for {len(x)} samples of one number each, {name}[None] for one sample" if x.ndim else "one number is none"
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected (B, ...), a batch of samples: {hint}")
    if x.shape[0] == 0:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}: an empty batch; give at least one sample")
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, but the model's samples have shape {tuple(event_shape)}: "
            f"expected (B, {', '.join(map(str, event_shape))})"
        )


def check_positive_int(value: Any, name: str) -> int:
    """Checks an integer of at least 1 (True and 2.0 are not). Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} = {value!r}, expected a positive integer")
    return value


def check_positive(value: Any, name: str) -> float:
    """Checks a finite number above 0. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} = {value!r}, expected a positive finite number: {name} > 0")
    return float(value)


def check_flag(value: Any, name: str) -> bool:
    """Checks True or False. Raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}, expected True or False")
    return value


def check_order(value: Any, least: int, name: str) -> int:
    found = _integer(value)
    if found is None or not least <= found <= 4:
        raise ConfigError(f"{name} = {value!r}, expected an integer from {least} to 4")
    return found


def check_count(value: Any, least: int, name: str) -> int:
    found = _integer(value)
    if found is None or found < least:
        raise ConfigError(f"{name} = {value!r}, expected an integer of at least {least}")
    return found


def _integer(value: Any) -> int | None:
    """An int, or anything that is an index (NumPy's integers); None for all else, and for True and False."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_least(value: Any, least: float, name: str) -> float:
    """A number: Python's, NumPy's, or a tensor of one."""
    number = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not least <= float(number) < math.inf:
        raise ConfigError(f"{name} = {value!r}, expected a finite number of at least {least:g}")
    return float(number)

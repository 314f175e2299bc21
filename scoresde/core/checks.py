"""Arguments that are what they should be: numbers, tensors, names. Every error says what was got and what was expected."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ScoreSDEError, ShapeError

MOST_CALLS = 10**7  # network calls, or steps, one after another


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
    if x.layout is not torch.strided or x.is_meta:
        kind = "on the meta device, it holds no numbers" if x.is_meta else "sparse, expected a dense one: x.to_dense()"
        raise DTypeError(f"{name} is {kind}")
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


def check_integer(value: Any, name: str, least: int = 1, most: int | None = None) -> int:
    """An integer in a range: Python's, NumPy's or a tensor of one (True and 2.0 are none). Raises ConfigError."""
    found = as_integer(value)
    if found is None or found < least or (most is not None and found > most):
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        if most is not None and most < 100:
            wanted = f"an integer from {least} to {most}"
        elif most is not None and found is not None and found > most:
            wanted = f"an integer of at most {most}"
        raise ConfigError(f"{name} = {shown(value)}, expected {wanted}")
    return found


def check_positive_int(value: Any, name: str) -> int:
    """Checks an integer of at least 1 (True and 2.0 are not). Raises ConfigError."""
    return check_integer(value, name)


def check_positive(value: Any, name: str) -> float:
    """Checks a finite number above 0. Raises ConfigError."""
    found = as_number(value)
    if found is None or not 0 < found < math.inf:
        raise ConfigError(f"{name} = {shown(value)}, expected a positive finite number: {name} > 0")
    return found


def check_least(value: Any, least: float, name: str) -> float:
    """A finite number of at least this: Python's, NumPy's, or a tensor of one. Raises ConfigError."""
    found = as_number(value)
    if found is None or not least <= found < math.inf:
        raise ConfigError(f"{name} = {shown(value)}, expected a finite number of at least {least:g}")
    return found


def check_share(value: Any, name: str, closed: bool = False) -> float:
    """A number in (0, 1), or for ``closed`` in [0, 1). Raises ConfigError."""
    found = as_number(value)
    if found is None or not (0 <= found < 1) or (found == 0 and not closed):
        raise ConfigError(f"{name} = {shown(value)}, expected a number {'in [0, 1)' if closed else 'between 0 and 1'}")
    return found


def shown(value: Any) -> str:
    """The repr of a value, at most a line of it."""
    try:
        text = repr(value)
    except Exception:  # of a user's class, or an integer of more digits than Python prints
        text = f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) < 100 else f"{text[:80]}... ({len(text)} characters)"


def check_memory(n_bytes: float, what: str) -> None:
    """Raises ConfigError, before anything is done, if this is more memory than the machine has."""
    most = _machine()
    if n_bytes > most:
        size, there = (f"{n / 2**30:.3g} GiB" for n in (n_bytes, most))
        raise ConfigError(f"{what} would take {size} of memory, expected at most the {there} that this machine has")


def check_calls(calls: int, what: str) -> int:
    """A number of network calls or steps. Raises ConfigError, before any of them, for more than anybody waits for."""
    if calls > MOST_CALLS:
        raise ConfigError(f"{what} = {calls:.3g}, one after another: expected at most {MOST_CALLS:.0e}, an hour of the smallest network")
    return calls


@contextmanager
def theirs(what: str, more: str = "") -> Iterator[None]:
    """Names a user's own function in what it raises: ConfigError from it, with ``more`` at the end. What is scoresde's own error
    already stays what it is."""
    try:
        yield
    except ScoreSDEError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} raised {type(error).__name__}: {error}{more}") from error


def _machine() -> float:
    """Bytes of memory of this machine; where the system does not say, 1 TiB."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float(1 << 40)


def scalar_of(value: Any) -> Any:
    """The number in a tensor or an array of one."""
    if isinstance(value, Tensor):
        return value.item() if value.ndim == 0 and value.layout is torch.strided and not value.is_meta else None
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value


def as_integer(value: Any) -> int | None:
    """An int, or anything that is an index; None for all else, for True and False, and beyond 64 bits."""
    number = scalar_of(value)
    try:
        found = None if isinstance(number, (bool, np.ndarray)) else operator.index(number)
    except TypeError:
        return None
    return found if found is None or abs(found) < 1 << 64 else None


def as_number(value: Any) -> float | None:
    """A float; None for what is no real number, for True and False, NaN, and integers beyond all floats."""
    number = scalar_of(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        return None
    try:
        found = float(number)
    except (OverflowError, ValueError, TypeError):
        return None
    return None if math.isnan(found) else found

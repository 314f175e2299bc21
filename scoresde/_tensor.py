"""The only place that knows how ``t`` meets ``x``: broadcasting, per-sample reductions and the checks of public edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, DTypeError, NonFiniteError, ShapeError


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Views a time-like tensor of shape () or (B,) so that it broadcasts against x of shape (B, *event).

    Raises:
        ShapeError: t is neither () nor (B,). ((B, 1) against (B, D) would silently broadcast to (B, B, D).)
    """
    if t.ndim == 0:
        return t
    if t.ndim != 1 or t.shape[0] != x.shape[0]:
        raise ShapeError(
            f"t has shape {tuple(t.shape)} but x has shape {tuple(x.shape)}: t must have shape () or ({x.shape[0]},)"
        )
    return t.view(-1, *[1] * (x.ndim - 1))


def per_sample_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: (B, *event) -> (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def per_sample_rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: (B, *event) -> (B,)."""
    return per_sample_norm(x) / x[0].numel() ** 0.5


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
    if not bool(finite.all()):
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
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected (B, ...): a batch of samples, as in x[None]")
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


def affine(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """a x + b y, for coefficients that are floats or float64 tensors of one value a sample (already expanded)."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return like(a, x) * x + like(b, y) * y
    return (a * x).add_(y, alpha=b)  # one kernel and one tensor less than a * x + b * y


def like(c: Any, x: Tensor) -> Any:
    """A float64 coefficient in the dtype of x, so that it does not promote x; Python floats never do."""
    return c.to(x.dtype) if isinstance(c, Tensor) else c

"""The only place that knows how ``t`` meets ``x``: broadcasting, per-sample reductions and the checks of public edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.errors import ShapeError


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


def full_precision(x: Tensor) -> torch.autocast:
    """No autocast on the device of x: for matrix products that are not a network's, whose rounding nobody asked for."""
    return torch.autocast(x.device.type, enabled=False)


def transformed(x: Tensor) -> bool:
    """Whether x is inside a transform of torch.func (grad, jvp, vmap, ...), where its numbers cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def per_sample_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: (B, *event) -> (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def per_sample_rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: (B, *event) -> (B,)."""
    return per_sample_norm(x) / x[0].numel() ** 0.5


def affine(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """a x + b y, for coefficients that are floats or float64 tensors of one value a sample (already expanded)."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return like(a, x) * x + like(b, y) * y
    return (a * x).add_(y, alpha=b)  # one kernel and one tensor less than a * x + b * y


def like(c: Any, x: Tensor) -> Any:
    """A float64 coefficient in the dtype of x, so that it does not promote x; Python floats never do."""
    return c.to(x.dtype) if isinstance(c, Tensor) else c

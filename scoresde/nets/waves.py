"""Sines and cosines of x beside x, for the detail that convolutions are slow to see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.core.checks import as_number, check_floating, shown
from scoresde.errors import ConfigError, ShapeError


def with_waves(x: Tensor, c_noise: Tensor, frequencies: Sequence[float]) -> Tensor:
    r"""x (B, C, ...) with Fourier features after it, exp(-(2 pi f s)^2/2) times cos(2 pi f x) and sin(2 pi f x): (B, (1 + 2 n) C, ...).

    s = exp(4 c_noise) = sigma/alpha, and the factor is what noise of that size leaves of a wave on average. Without it a wave is noise
    wherever s is not far below 1/f, and the network a rough function of x all along the path, whose ODE no solver follows.
    """
    if not isinstance(frequencies, (list, tuple)) or not all(as_number(f) is not None for f in frequencies):
        raise ConfigError(f"frequencies = {shown(frequencies)}, expected a sequence of numbers")
    if not frequencies:
        return x
    check_floating(x)
    check_floating(c_noise, "c_noise")
    if x.ndim < 2 or c_noise.shape != x.shape[:1]:
        raise ShapeError(f"x has shape {tuple(x.shape)} and c_noise {tuple(c_noise.shape)}, expected (B, C, ...) and (B,)")
    square = (8 * c_noise.clamp(max=4)).exp().to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    waves = [x]
    for f in frequencies:
        w = 2 * math.pi * f
        fade = (-0.5 * w * w * square).exp()
        waves += [fade * (w * x).cos(), fade * (w * x).sin()]
    return torch.cat(waves, 1)


def wave_frequencies(values: Any, config: dict[str, Any]) -> tuple[float, ...]:
    """Checks frequencies, and puts them into the config if there are any (older checkpoints know none)."""
    values = (values,) if as_number(values) is not None else values
    found = [as_number(f) for f in values] if isinstance(values, (list, tuple)) else [None]
    good = tuple(f for f in found if f is not None and 0 < f < math.inf)
    if len(good) < len(found):
        raise ConfigError(f"frequencies = {values!r}, expected positive numbers, [64, 128] for 256 levels on [-1, 1]; () for none")
    if values:
        config["frequencies"] = list(good)
    return good

"""Randomness as a value: a draw is a function of (seed, sample id, stream, step) and of nothing else.

Sample i is sample i: its noise does not depend on the batch it is computed in, on the order of the ids, on how many samples
are asked for, or on the number of processes. The bits come from Philox4x64-10 (Salmon et al. 2011), a counter-based
generator, that is a keyed bijection: key = (seed, stream), counter = (sample id and position, 0, step, 0). No two draws share
a counter, so there is nothing to collide. Values are made in float32 on the CPU and cast, so they are the same on every
device and for every dtype.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError

# Streams: what a draw is for. A solver may use any other integer below 2^63 for its own.
PRIOR, STEP, PROBE, DEQUANTIZE, TARGET, TRAIN, PROJECTION = range(7)
CORRECTOR = 1 << 32  # + i for the i-th corrector step at one time
AHEAD = 16  # steps whose noise is moved to a GPU at once


def check_seed(seed: int) -> int:
    """Returns the seed as an int in [0, 2^64). Raises ConfigError."""
    try:
        value = operator.index(seed)
    except TypeError:
        raise ConfigError(f"seed = {seed!r}, expected an integer in [0, 2^64)") from None
    if isinstance(seed, bool) or not 0 <= value < 1 << 64:
        raise ConfigError(f"seed = {seed!r}, expected an integer in [0, 2^64)")
    return value


def check_ids(ids: Iterable[int] | Tensor | None, n: int | None) -> np.ndarray:
    """Sample ids as an int64 array; None is 0..n-1. Raises ConfigError unless there are n of them, all in [0, 2^40)."""
    if ids is None:
        return np.arange(n or 0, dtype=np.int64)
    try:
        array = np.asarray(ids.cpu() if isinstance(ids, Tensor) else list(ids))
    except (TypeError, ValueError):  # a number, or lists of different lengths
        raise ConfigError(f"ids = {ids!r}, expected a list of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(f"ids have shape {array.shape} and dtype {array.dtype}, expected a list of integers")
    if n is not None and len(array) != n:
        raise ConfigError(f"{len(array)} ids for n = {n} samples: give one id a sample")
    if array.size and (array.min() < 0 or array.max() >= 1 << 40):
        raise ConfigError(f"ids run from {array.min()} to {array.max()}, expected integers in [0, 2^40)")
    return array.astype(np.int64)


@dataclass(frozen=True)
class Noise:
    """Draws for some samples: ``Noise(seed, ids, event_shape).normal(stream, step)`` has shape (len(ids), *event_shape).

    Args:
        seed: an integer in [0, 2^64).
        ids: sample ids, an int64 array (see ``check_ids``).
        event_shape: shape of one sample.
        dtype, device: what the draws are cast and moved to.
    """

    seed: int
    ids: np.ndarray
    event_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    _runs: list[tuple[int, int]] = field(init=False, repr=False, compare=False)
    _generators: dict[int, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    _moved: dict[int, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        # consecutive ids are consecutive counters: one call of the generator serves a whole run of them
        cuts = np.flatnonzero(np.diff(self.ids) != 1) + 1
        starts = np.concatenate([[0], cuts]) if len(self.ids) else cuts
        stops = np.concatenate([cuts, [len(self.ids)]]) if len(self.ids) else cuts
        runs = [(int(self.ids[a]), int(b - a)) for a, b in zip(starts, stops, strict=True)]
        object.__setattr__(self, "_runs", runs)

    def _bits(self, stream: int, step: int) -> Tensor:
        """Random int32s of shape (B, 2, W) with 2 W at least the number of values of a sample."""
        numbers = math.prod(self.event_shape)
        counters = -(-numbers // 8)  # one counter of Philox gives four 64-bit words, that is eight 32-bit ones
        if stream not in self._generators:  # made once: to make one costs as much as a thousand numbers
            generator = np.random.Philox(key=np.array([self.seed, stream], dtype=np.uint64))
            self._generators[stream] = generator, generator.state
        generator, state = self._generators[stream]
        parts = []
        for first, count in self._runs:
            state["state"]["counter"][:] = (first * counters, 0, step, 0)
            generator.state = state
            parts.append(generator.random_raw(count * counters * 4))
        words = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint64)])
        return torch.from_numpy(words.view(np.int32)).view(len(self.ids), 2, 4 * counters)

    def _finish(self, values: Tensor) -> Tensor:
        numbers = math.prod(self.event_shape)
        values = values if values.shape[1] == numbers else values[:, :numbers]
        return values.reshape(-1, *self.event_shape).to(device=self.device, dtype=self.dtype)

    def normal(self, stream: int, step: int = 0) -> Tensor:
        """Standard normal draws by Box and Muller: sqrt(-2 log u) (cos, sin)(2 pi v)."""
        bits = self._bits(stream, step)
        u = bits[:, 0].to(torch.float32).add_(0.5).abs_().mul_(2.0**-31)  # in [2^-32, 1]; exact where small: right tails
        angle = bits[:, 1].to(torch.float32).mul_(math.pi * 2.0**-31)
        radius = u.log_().mul_(-2.0).sqrt_()
        return self._finish(torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1))

    def uniform(self, stream: int, step: int = 0) -> Tensor:
        """Uniform draws in [0, 1), multiples of 2^-24 (all of them floats)."""
        bits = self._bits(stream, step).flatten(1)
        return self._finish((bits >> 8).add_(1 << 23).to(torch.float32).mul_(2.0**-24))

    def rademacher(self, stream: int, step: int = 0) -> Tensor:
        """Draws of -1 or +1 with equal probability."""
        bits = self._bits(stream, step).flatten(1)
        return self._finish((bits < 0).to(torch.float32).mul_(2.0).sub_(1.0))

    def ahead(self, stream: int, step: int) -> Tensor:
        """``normal(stream, step)``, for steps asked in order on a GPU: made and moved for several steps at a time."""
        numbers = len(self.ids) * math.prod(self.event_shape)
        count = max(1, min(AHEAD, (1 << 22) // max(numbers, 1)))
        block, row = divmod(step, count)
        if self._moved.get(stream, (None,))[0] != block:
            here = replace(self, device="cpu")
            draws = torch.stack([here.normal(stream, block * count + i) for i in range(count)])
            self._moved[stream] = block, draws.to(self.device)
        return self._moved[stream][1][row]

    def at(self, step: int) -> StepNoise:
        """The draws of one step: a function of the stream alone, as solvers take it."""
        return StepNoise(self, step)


@dataclass(frozen=True)
class StepNoise:
    """``noise(stream)``: a standard normal tensor like x, bound to seed, ids and step."""

    noise: Noise
    step: int

    @property
    def ids(self) -> np.ndarray:
        """The sample ids of the rows."""
        return self.noise.ids

    def __call__(self, stream: int = STEP) -> Tensor:
        on_cpu = torch.device(self.noise.device).type == "cpu"
        return (self.noise.normal if on_cpu else self.noise.ahead)(stream, self.step)


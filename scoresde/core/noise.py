"""Randomness as a value: a draw is a function of (seed, sample id, stream, step) and of nothing else.

Sample i is sample i: its noise does not depend on the batch it is computed in, on the order of the ids, on how many samples
are asked for, or on the number of processes. The bits come from Philox4x64-10 (Salmon et al. 2011), a counter-based
generator, that is a keyed bijection: key = (seed, stream), counter = (sample id and position, 0, step, 0). No two draws share
a counter, so there is nothing to collide. Values are made in float32 on the CPU and cast, so they are the same on every
device and for every dtype.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.streams import CORRECTOR as CORRECTOR  # the names that a solver of your own may need: scoresde.noise.CORRECTOR
from scoresde.core.streams import PRIOR as PRIOR
from scoresde.core.streams import STEP as STEP
from scoresde.errors import ConfigError

AHEAD = 16  # steps whose noise is moved to a GPU at once

BROWNIAN_LEVELS = 28  # of the tree of ``Noise.brownian``: it knows W at multiples of 2^-28

BROWNIAN_ENDS = 20  # the steps of a solve start and end at multiples of 2^-20 of the whole: 20 levels of the tree are enough


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
        """``normal(stream, step)`` on a GPU: for a stream that the step before asked for too, made and moved for several steps.

        Streams that are asked once, as within a restart, are drawn alone. Blocks that are used up are let go.
        """
        last, first, draws = self._moved.pop(stream, (-2, 0, None))
        if draws is None or not first <= step < first + len(draws):
            draws = None  # the old block is let go before the new one is made
            count = min(AHEAD, (1 << 22) // max(len(self.ids) * math.prod(self.event_shape), 1))
            if last == step - 1 and count > 1:
                for other in [key for key, (asked, *_) in self._moved.items() if asked < step - 1]:
                    del self._moved[other]
                here = replace(self, device="cpu")
                first, draws = step, torch.stack([here.normal(stream, step + i) for i in range(count)]).to(self.device)
        self._moved[stream] = step, first, draws
        return self.normal(stream, step) if draws is None else draws[step - first]

    def brownian(self, k: Tensor, stream: int = STEP) -> Tensor:
        """W(k/2^L) of each sample's Brownian path on [0, 1], float64: k (B,) integers in [0, 2^L], L = BROWNIAN_LEVELS.

        Levy's construction: W(s) = s z + sum over levels l < L of 2^(-l/2)/2 tent_l(s) z_(l, node), tent_l the tent of height 1 on
        the interval of length 2^-l that s is in, its node. A path for each ``stream``; every z is addressed by seed, id, stream and
        node, so the path is the same in whatever order and at however many points it is looked up, by sample, on any device (to the
        rounding of its float32 logarithm and cosine). k may be on a GPU: it is not looked at by the host.
        """
        k = k.to(self.device)
        L, numbers = BROWNIAN_LEVELS, len(self.ids) * math.prod(self.event_shape)
        # k = odd 2^j is an end of intervals from level L - j on: their tents are 0 there
        depth = max((L + 1 - int(n & -n).bit_length() for n in set(k.tolist()) if n), default=0) if k.device.type == "cpu" else L
        column = k.view(-1, *[1] * len(self.event_shape))
        w = (column.double() * 2.0**-L) * tree_normals(self, torch.zeros_like(k)[None], stream)[0]
        size = max(1, (1 << 20) // max(numbers, 1))
        for first in range(0, depth, size):
            level = torch.arange(first, min(first + size, depth), device=k.device)
            node = (1 << level[:, None]) + (k >> (L - level)[:, None])
            inside = ((k << level[:, None]) & ((1 << L) - 1)).double() * 2.0**-L
            height = (0.5 * (1 - (2 * inside - 1).abs())) * torch.exp2(-0.5 * level.double())[:, None]
            w += torch.einsum("lb,lb...->b...", height, tree_normals(self, node, stream).double())
        return w

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

    def brownian(self, k: Tensor, stream: int = STEP) -> Tensor:
        """``Noise.brownian``: the path that all steps share."""
        return self.noise.brownian(k, stream)


def philox(counter: list[Any], key: tuple[int, int]) -> list[Any]:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32 bits each, on any device, or on NumPy's arrays of uint64."""
    a, b, c, d = counter
    mask = (1 << 32) - 1
    for i in range(10):
        k0, k1 = (key[0] + i * 0x9E3779B9) & mask, (key[1] + i * 0xBB67AE85) & mask
        low, high = a * 0xD2511F53, c * 0xCD9E8D57  # the lower 64 bits, whatever the sign
        a, b, c, d = (high >> 32) & mask ^ b ^ k0, high & mask, (low >> 32) & mask ^ d ^ k1, low & mask
    return [a, b, c, d]


def tree_normals(noise: Noise, node: Tensor, stream: int) -> Tensor:
    """Standard normal draws (N, B, *event), float32, for nodes (N, B) below 2^32 of each sample's tree; stream < 2^24."""
    numbers, device = math.prod(noise.event_shape), node.device
    ids = torch.from_numpy(noise.ids).to(device)
    position = torch.arange(-(-numbers // 4), device=device)
    counter = [position, node[..., None], (ids & 0xFFFFFFFF)[:, None], ((ids >> 32) | stream << 8)[:, None]]
    key = noise.seed & 0xFFFFFFFF, noise.seed >> 32
    if device.type == "cpu":  # NumPy starts these many small operations several times faster
        words = [torch.from_numpy(word.view(np.int64)) for word in philox([c.numpy().view(np.uint64) for c in counter], key)]
    else:
        words = philox(counter, key)
    u = torch.stack(words[:2], -1).float().add_(0.5).mul_(2.0**-32)
    angle = torch.stack(words[2:], -1).float().mul_(math.pi * 2.0**-31)
    radius = u.log_().mul_(-2.0).clamp_min_(0.0).sqrt_()
    values = torch.stack([angle.cos() * radius, angle.sin() * radius], -1).flatten(2)
    return values[..., :numbers].reshape(*node.shape, *noise.event_shape)


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, stream: int, step: int = 0) -> np.ndarray:
    """A permutation of 0..n-1, a function of its arguments alone."""
    draws = Noise(seed, np.zeros(1, np.int64), (n,)).uniform(stream, step)[0]
    return draws.argsort(stable=True).numpy()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's own generators seeded, for what knows no other (initial weights, dropout), and given back as they were: the CPU's, and
    that of ``device`` if it is a CUDA one."""
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs, too
        if cuda:
            torch.cuda.manual_seed(seed)
        yield

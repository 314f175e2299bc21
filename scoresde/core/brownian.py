"""One Brownian path a sample: the increments of a solve are those of a path that does not depend on its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.noise import BROWNIAN_ENDS, BROWNIAN_LEVELS, StepNoise, tree_normals
from scoresde.core.streams import OFF_PATH, STEP
from scoresde.errors import ConfigError

if TYPE_CHECKING:
    from scoresde.core.noise import Noise


def on_path(c: float, length: float) -> int:
    """The k of ``Noise.brownian`` for the clock time c in [0, length], where a step starts or ends."""
    return round(c / length * (1 << BROWNIAN_ENDS)) << (BROWNIAN_LEVELS - BROWNIAN_ENDS)


@dataclass(frozen=True)
class BrownianPath:
    """Noise for the steps of a solve along one Brownian path a sample, the same path for any times: common random numbers.

    W runs over a clock, from W(0) = 0 to W(length), with independent increments N(0, s - t) for every number of a sample. The draw
    of a step from t to s is z = (W(s) - W(t))/sqrt(s - t), a standard normal. W is a function of (seed, sample id, stream) alone:
    ``Noise.brownian``, stretched to the length, so that solvers which look it up there, ``AdaptiveSDE``, follow the same path. Here
    it is found by bisection: W halfway between two known values a and b, a distance h apart, is (a + b)/2 + sqrt(h)/2 z, with z
    addressed by the node of the tree. The clock is rounded to multiples of 2^-20 of the length. Streams from 2^24 on (correctors,
    restarts) are no increments of a path: they are independent draws, as from ``noise``.

    A draw costs about as much as 50 independent ones, less in short steps, which share the upper part of their trees.

    Args:
        noise: seed, ids, event shape, dtype and device of the draws.
        clock: where in [0, length] the steps of the solve start and end, one more than there are steps.
        length: of the whole clock.

    Raises:
        ConfigError: two times of the clock that are next to each other are closer than the resolution, or outside [0, length].
    """

    noise: Noise
    clock: list[float]
    length: float
    _at: list[int] = field(init=False, repr=False, compare=False)
    _trees: dict[int, list[Any]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        at = [on_path(c, self.length) for c in self.clock]
        if min(at) < 0 or max(at) > 1 << BROWNIAN_LEVELS:
            raise ConfigError(f"a clock from {self.clock[0]:.6g} to {self.clock[-1]:.6g}, expected within [0, {self.length:.6g}]")
        for i, (a, b) in enumerate(pairwise(at)):
            if a == b:
                raise ConfigError(
                    f"step {i} is shorter than 2^-{BROWNIAN_ENDS} of the Brownian path (log(alpha/sigma) over all of the SDE): "
                    "take fewer steps, or independent noise"
                )
        object.__setattr__(self, "_at", at)

    @property
    def ids(self) -> np.ndarray:
        """The sample ids of the rows."""
        return self.noise.ids

    def normal(self, stream: int, step: int = 0) -> Tensor:
        """Draws that are no part of the path, the start x_T for instance: those of ``noise``."""
        return self.noise.normal(stream, step)

    def increment(self, i: int, stream: int = STEP) -> Tensor:
        """W at the end of step i less W at its start, (B, *event), float64 on the CPU. Steps asked in order cost least."""
        return self._w(self._at[i + 1], stream) - self._w(self._at[i], stream)

    def draw(self, i: int, stream: int = STEP) -> Tensor:
        """The increment of step i over its standard deviation, in the dtype and on the device of ``noise``."""
        h = abs(self._at[i + 1] - self._at[i]) * self.length / (1 << BROWNIAN_LEVELS)
        return (self.increment(i, stream) / math.sqrt(h)).to(device=self.noise.device, dtype=self.noise.dtype)

    def at(self, step: int) -> PathNoise:
        """The draws of one step: a function of the stream alone, as solvers take it."""
        return PathNoise(self.noise, step, self)

    def _w(self, k: int, stream: int) -> Tensor:
        """W at the clock time k 2^-BROWNIAN_LEVELS length, by bisection from the smallest known interval around it."""
        if stream not in self._trees:
            end = math.sqrt(self.length) * self._normal(0, stream)
            self._trees[stream] = [(0, 1 << BROWNIAN_LEVELS, torch.zeros_like(end), end, 1)]
        tree = self._trees[stream]
        while len(tree) > 1 and not tree[-1][0] <= k <= tree[-1][1]:
            tree.pop()
        low, high, a, b, node = tree[-1]
        while low < k < high:
            middle = (low + high) // 2
            std = 0.5 * math.sqrt((high - low) * self.length / (1 << BROWNIAN_LEVELS))
            w = torch.add(a, b).mul_(0.5).add_(self._normal(node, stream), alpha=std)
            low, high, a, b, node = (low, middle, a, w, 2 * node) if k <= middle else (middle, high, w, b, 2 * node + 1)
            tree.append((low, high, a, b, node))
        return a if k == low else b

    def _normal(self, node: int, stream: int) -> Tensor:
        return tree_normals(self.noise, torch.full((1, len(self.ids)), node, device="cpu"), stream)[0].double()


@dataclass(frozen=True)
class PathNoise(StepNoise):
    """``noise(stream)`` of a step along a ``BrownianPath``."""

    path: BrownianPath

    def __call__(self, stream: int = STEP) -> Tensor:
        return self.path.draw(self.step, stream) if stream < OFF_PATH else StepNoise.__call__(self, stream)

"""Intervals by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_memory, check_positive_int, theirs
from scoresde.core.doors import checked
from scoresde.core.noise import check_seed
from scoresde.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """A figure with an interval of the level asked for, and its standard error."""

    value: float
    low: float
    high: float
    std_error: float

METHODS = ("percentile", "basic", "centred")


@checked
def bootstrap(
    statistic: Callable[[Tensor], Any],
    x: Tensor,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
) -> Interval:
    """A bootstrap interval for a statistic of samples (Efron and Tibshirani 1993): x is drawn from anew, with replacement.

    Methods, with quantiles q of the resampled values: "percentile" [q_low, q_high]; "basic" [2 value - q_high, 2 value - q_low], for
    the population's value; "centred", the percentile interval moved so that its mean is the value, for what the statistic reads on
    the mean over sets of this size. Distances between sets want the last: with repeated points they read too much.

    Args:
        statistic: (N, *event) -> a number.
        x: samples (N, *event), or one number a path (N,).
        resamples: draws of N samples.
        level: share of intervals that hold the true value.
        method: see above.
        seed: of the draws, which are the same for all statistics.

    Raises:
        ConfigError: an unknown method, a level outside (0, 1), no samples.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
        raise ConfigError(f"x = {x!r}, expected samples, at least one")

    def value(some: Tensor) -> float:
        with theirs("your statistic"):
            return float(statistic(some))

    return interval(value(x), [value(x[row]) for row in resampled_rows(len(x), resamples, seed)], level, method)


def resampled_rows(n: int, resamples: int, seed: int) -> Tensor:
    """Indices of n draws from n samples with replacement, (resamples, n), a function of the seed."""
    key = np.array([check_seed(seed), 0xB0075], dtype=np.uint64)
    shape = (check_positive_int(resamples, "resamples"), n)
    check_memory(8.0 * resamples * n, f"resamples = {resamples} of {n} samples")
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).integers(0, n, shape))


def interval(value: float, values: Sequence[float] | Tensor, level: float = 0.95, method: str = "percentile") -> Interval:
    """The interval from resampled values, as ``bootstrap`` explains; NaN where there is none. Raises ConfigError."""
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ConfigError(f"level = {level!r}, expected a number between 0 and 1")
    if method not in METHODS:
        raise ConfigError(f"method = {method!r}, expected one of {', '.join(METHODS)}")
    drawn = np.asarray(values, dtype=np.float64)
    if not math.isfinite(value) or not np.isfinite(drawn).all() or not drawn.size:
        return Interval(value, math.nan, math.nan, math.nan)
    low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    if method == "basic":
        low, high = 2 * value - high, 2 * value - low
    if method == "centred":
        low, high = low + value - float(drawn.mean()), high + value - float(drawn.mean())
    return Interval(value, low, high, float(drawn.std()))

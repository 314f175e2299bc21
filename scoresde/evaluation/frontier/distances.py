"""Distances between samples and a reference set, prepared once for many sets of samples and resamples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.evaluation import bootstrap, metrics
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier.rows import finite

PAIRS = 4096

NEIGHBOURS = 3  # of precision and recall

LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Weights:
    """How often each of n samples is in each resample: rows (R, n) and counts (R, n)."""

    rows: Tensor
    counts: Tensor

    @classmethod
    def make(cls, n: int, resamples: int, seed: int) -> Weights:
        rows = bootstrap.resampled_rows(n, resamples, seed)
        counts = torch.zeros_like(rows, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        return cls(rows, counts)

    def means(self, values: Tensor) -> Tensor:
        """The mean of values (n, ...) over each resample, (R, ...)."""
        return self.counts @ values / len(values)

    def moved(self, value: float, influence: Tensor) -> Tensor:
        """A statistic over each resample to first order: value + the mean of its influence there, above that in the sample, (R,)."""
        return value + self.means(influence) - influence.mean()


def distance_interval(value: float, values: Tensor, method: str = "percentile") -> Interval:
    return finite(bootstrap.interval(value, values, LEVEL, method))


def _of_square(square: float, influence: Callable[[], Tensor], weights: Weights | None) -> Interval:
    """The interval of the root of a square with this influence.

    Distances are resampled to first order. The next order, which a resample with its repeated points adds, is as small as the bias
    that it would bring; near the floor, where it is not, the intervals come out a little too wide, not too narrow.
    """
    value = math.sqrt(max(square, 0.0))
    if weights is None:
        return Interval(value, math.nan, math.nan, math.nan)
    return distance_interval(value, weights.moved(square, influence()).clamp(min=0).sqrt(), "centred")


def _potentials(px: Tensor, py: Tensor) -> Tensor:
    """Kantorovich potentials of the squared distance of columns (N, L) and sorted (M, L), at px: (N,), the mean over columns.

    In one dimension the potential's slope is 2 (x - T(x)), T the monotone map: the first-order effect of a sample's weight.
    """
    ordered, order = px.sort(0)
    n, m = len(px), len(py)
    slope = 2 * (ordered - py[(2 * torch.arange(n, device="cpu") + 1) * m // (2 * n)])
    potential = torch.zeros_like(ordered)
    potential[1:] = ((slope[1:] + slope[:-1]) / 2 * ordered.diff(dim=0)).cumsum(0)
    return torch.empty_like(potential).scatter_(0, order, potential).mean(1)


class Projected:
    """A set to take sliced Wasserstein distances to."""

    def __init__(self, y: Tensor, directions: Tensor) -> None:
        self.directions = directions
        self.sorted = (y @ directions.T).sort(0).values

    def distance(self, x: Tensor, weights: Weights | None = None) -> Interval:
        """Of flat x (N, D), with an interval by resampling x."""
        px = x @ self.directions.T
        square = float(metrics.quantile_distance2(px.sort(0).values, self.sorted).mean())
        return _of_square(square, lambda: _potentials(px, self.sorted), weights)


def coupled(x: Tensor, y: Tensor, directions: Tensor, weights: Weights) -> Interval:
    """Sliced Wasserstein distance of two sets that share their noise, (N, *event) each, by resampling pairs."""
    px, py = (v.flatten(1) @ directions.T for v in (x, y))
    sx, sy = px.sort(0).values, py.sort(0).values
    square = float((sx - sy).square().mean())
    return _of_square(square, lambda: _potentials(px, sy) + _potentials(py, sx), weights)


class Pairs:
    """A set to take energy distances and mean discrepancies to."""

    def __init__(self, y: Tensor) -> None:
        self.y = y[:PAIRS]
        self.energy_own = float(metrics.row_means(self.y, self.y, metrics.distances).mean())

    def energy(self, x: Tensor, weights: Weights | None) -> Interval:
        """Energy distance."""
        x = x[:PAIRS]
        cross, own = (metrics.row_means(x, y, metrics.distances) for y in (self.y, x))
        square = float(2 * cross.mean() - own.mean()) - self.energy_own
        return _of_square(square, lambda: 2 * (cross - own), weights)

    def mmd(self, x: Tensor, weights: Weights | None, kernel: metrics.Kernel, own_y: float) -> Interval:
        """Squared mean discrepancy, unbiased."""
        x = x[:PAIRS]
        cross, own = metrics.row_means(x, self.y, kernel), metrics.row_means(x, x, kernel, skip_diagonal=True)
        value = float(own.mean() + own_y - 2 * cross.mean())
        if weights is None:
            return Interval(value, math.nan, math.nan, math.nan)
        return distance_interval(value, weights.moved(value, 2 * (own - cross)), "centred")


class Seen:
    """The reference in features: Frechet distance, precision and recall."""

    def __init__(self, y: Tensor) -> None:
        self.mean, self.root = metrics.gaussian_root(y)
        self.trace = float(self.root.square().sum())
        self.y = y[:PAIRS]
        self.radius = metrics.neighbour_radius(self.y, NEIGHBOURS)

    def frechet(self, x: Tensor, weights: Weights | None) -> Interval:
        """The distance. Its derivative by the covariance is I - T, T = R_y^T V S^-1 V^T R_y the optimal map, U S V^T = R_x R_y^T."""
        mean, root = metrics.gaussian_root(x)
        _, s, v = torch.linalg.svd(root @ self.root.mT, full_matrices=False)
        value = max(float((mean - self.mean).square().sum() + root.square().sum() - 2 * s.sum()) + self.trace, 0.0)
        if weights is None:
            return Interval(value, math.nan, math.nan, math.nan)
        d = x - mean
        mapped = (d @ self.root.mT @ v.mT).square() / s.clamp_min(1e-6 * float(s[0]))
        influence = 2 * d @ (mean - self.mean) + d.square().sum(1) - mapped.sum(1)
        return distance_interval(value, weights.moved(value, influence), "centred")

    def precision_recall(self, x: Tensor, weights: Weights | None) -> tuple[Interval, Interval]:
        x = x[:PAIRS]
        precise = metrics.within(x, self.y, self.radius)
        recalled = metrics.within(self.y, x, metrics.neighbour_radius(x, NEIGHBOURS))
        if weights is None:
            return tuple(Interval(float(v.mean()), math.nan, math.nan, math.nan) for v in (precise, recalled))  # type: ignore
        p = distance_interval(float(precise.mean()), weights.means(precise))
        share = float(recalled.mean())
        # of the recall, the reference is what is drawn anew: a share of its samples
        half = 1.96 * math.sqrt(share * (1 - share) / len(recalled))
        return p, Interval(share, max(share - half, 0.0), min(share + half, 1.0), half / 1.96)

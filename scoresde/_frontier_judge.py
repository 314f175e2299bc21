"""How the frontier judges samples: a reference prepared once, figures with intervals, floors, and the parts of the error.

Intervals are over the samples drawn, the reference as given: they say how far a reading would move with other samples of the same
solver. Pairs and neighbours are taken among the first ``PAIRS`` samples of each set, all else among all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import metrics
from ._frontier_rows import finite
from ._frontier_run import Setting
from .adapters import TorchDiffEq
from .errors import ShapeError
from .exact import GaussianMixture
from .metrics import Interval, NoiseFloor
from .sampling import sample

PAIRS = 4096
NEIGHBOURS = 3  # of precision and recall
LEVEL = 0.95  # of all intervals

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weights:
    """How often each of n samples is in each resample: rows (R, n) and counts (R, n)."""

    rows: Tensor
    counts: Tensor

    @classmethod
    def make(cls, n: int, resamples: int, seed: int) -> Weights:
        rows = metrics.resampled_rows(n, resamples, seed)
        counts = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape, dtype=torch.float64))
        return cls(rows, counts)

    def means(self, values: Tensor) -> Tensor:
        """The mean of values (n, ...) over each resample, (R, ...)."""
        return self.counts @ values / len(values)

    def moved(self, value: float, influence: Tensor) -> Tensor:
        """A statistic over each resample to first order: value + the mean of its influence there, above that in the sample, (R,)."""
        return value + self.means(influence) - influence.mean()


def _interval(value: float, values: Tensor, method: str = "percentile") -> Interval:
    return finite(metrics.interval(value, values, LEVEL, method))


def _of_square(square: float, influence: Callable[[], Tensor], weights: Weights | None) -> Interval:
    """The interval of the root of a square with this influence.

    Distances are resampled to first order. The next order, which a resample with its repeated points adds, is as small as the bias
    that it would bring; near the floor, where it is not, the intervals come out a little too wide, not too narrow.
    """
    value = math.sqrt(max(square, 0.0))
    if weights is None:
        return Interval(value, math.nan, math.nan, math.nan)
    return _interval(value, weights.moved(square, influence()).clamp(min=0).sqrt(), "centred")


def _potentials(px: Tensor, py: Tensor) -> Tensor:
    """Kantorovich potentials of the squared distance of columns (N, L) and sorted (M, L), at px: (N,), the mean over columns.

    In one dimension the potential's slope is 2 (x - T(x)), T the monotone map: the first-order effect of a sample's weight.
    """
    ordered, order = px.sort(0)
    n, m = len(px), len(py)
    slope = 2 * (ordered - py[(2 * torch.arange(n) + 1) * m // (2 * n)])
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
        return _interval(value, weights.moved(value, 2 * (own - cross)), "centred")


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
        return _interval(value, weights.moved(value, influence), "centred")

    def precision_recall(self, x: Tensor, weights: Weights | None) -> tuple[Interval, Interval]:
        x = x[:PAIRS]
        precise = metrics.within(x, self.y, self.radius)
        recalled = metrics.within(self.y, x, metrics.neighbour_radius(x, NEIGHBOURS))
        if weights is None:
            return tuple(Interval(float(v.mean()), math.nan, math.nan, math.nan) for v in (precise, recalled))  # type: ignore
        p = _interval(float(precise.mean()), weights.means(precise))
        share = float(recalled.mean())
        # of the recall, the reference is what is drawn anew: a share of its samples
        half = 1.96 * math.sqrt(share * (1 - share) / len(recalled))
        return p, Interval(share, max(share - half, 0.0), min(share + half, 1.0), half / 1.96)


class Judge:
    """Everything that can be said of samples by themselves, without paths.

    Args:
        setting: of the solves.
        reference: real samples, or exact ones, (M, *event), float64.
        projections: directions of sliced Wasserstein distances.
        resamples: of intervals.
        features: (B, *event) in the model's dtype -> (B, F), or None.
        target: of an exact model.
    """

    def __init__(
        self, setting: Setting, reference: Tensor, projections: int, resamples: int, features: Features | None, target: Any
    ) -> None:
        self.setting, self.features, self.target = setting, features, target
        flat = reference.flatten(1)
        self.projected = Projected(flat, metrics.unit_directions(flat.shape[1], projections, setting.seed))
        self.pairs = Pairs(flat)
        self.weights = Weights.make(setting.n, resamples, setting.seed)
        self.pair_weights = Weights.make(min(setting.n, PAIRS), resamples, setting.seed)
        self.seen: Seen | None = None
        if target is None:
            seen = flat if features is None else self._see(reference)
            self.kernel_pairs = self.pairs if features is None else Pairs(seen)
            self.kernel = metrics.make_kernel("rbf", self.kernel_pairs.y)
            self.kernel_own = float(metrics.row_means(self.kernel_pairs.y, self.kernel_pairs.y, self.kernel, True).mean())
            if features is not None:
                self.seen = Seen(seen)
        else:
            self.level = setting.sde.levels([setting.t_end])[0]
            self.mean_log_prob = 0.0

    def figures(self, x: Tensor, intervals: bool = True) -> dict[str, Interval]:
        """All metrics of samples (N, *event); intervals for N samples only."""
        flat = x.double().flatten(1)
        w, p = (self.weights, self.pair_weights) if intervals else (None, None)
        found = {"sliced_wasserstein": self.projected.distance(flat, w), "energy": self.pairs.energy(flat, p)}
        if self.target is not None:
            found |= self._exact(x.double(), w)
        else:
            seen = flat if self.features is None else self._see(x)
            if not bool(seen.isfinite().all()):
                return found  # of samples that are far outside
            found["mmd"] = self.kernel_pairs.mmd(seen, p, self.kernel, self.kernel_own)
            if self.seen is not None:
                found["frechet"] = self.seen.frechet(seen, w)
                found["precision"], found["recall"] = self.seen.precision_recall(seen, p)
        return found

    def floors(self, sets: Iterable[Tensor]) -> dict[str, NoiseFloor]:
        """What sets of real samples get, as mean and standard deviation over the sets."""
        sets = list(sets)
        if self.target is not None:
            self.mean_log_prob = float(self._log_prob(torch.cat(sets)).mean())
        drawn = [self.figures(x, intervals=False) for x in sets]
        columns = {name: [abs(row[name].value) if name == "log_prob_error" else row[name].value for row in drawn] for name in drawn[0]}
        return {name: NoiseFloor(float(np.mean(v)), float(np.std(v))) for name, v in columns.items()}

    def _exact(self, x: Tensor, weights: Weights | None) -> dict[str, Interval]:
        log_p = self._log_prob(x)
        error = float(log_p.mean()) - self.mean_log_prob
        none = Interval(error, math.nan, math.nan, math.nan)
        found = {"log_prob_error": _interval(error, weights.means(log_p) - self.mean_log_prob) if weights else none}
        if isinstance(self.target, GaussianMixture):
            r = metrics.responsibilities(x.to(self.target.means.device), self.target, self.level.alpha, self.level.sigma).cpu()
            true = self.target.log_weights.double().exp().cpu()

            def distance(shares: Tensor) -> Tensor:
                return 0.5 * (shares - true).abs().sum(-1)

            value = float(distance(r.mean(0)))
            none = Interval(value, math.nan, math.nan, math.nan)
            found["occupancy"] = _interval(value, distance(weights.means(r)), "centred") if weights else none
        return found

    def _log_prob(self, x: Tensor) -> Tensor:
        """log p at t_end, (N,), float64."""
        x = x.to(self.setting.model.device)
        return self.target.log_prob_at(x, self.level.alpha, self.level.sigma).double().cpu()

    def _see(self, x: Tensor) -> Tensor:
        """Features of samples, (N, F), float64 on the CPU. Raises ShapeError."""
        parts = []
        with torch.no_grad():
            for part in x.split(self.setting.batch_size):
                out = self.features(part.to(self.setting.model.device, self.setting.model.dtype))  # type: ignore[misc]
                if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(part):
                    got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
                    raise ShapeError(f"features gave {got} for {len(part)} samples, expected ({len(part)}, F)")
                parts.append(out.detach().double().cpu())
        return torch.cat(parts)


# ---- paths and the parts of the error


class Paths:
    """The converged solution of the model's own probability-flow ODE, from the start noise of every row, and from p_T.

    Args:
        setting: of the solves.
        count: number of paths, the first samples of each row.
        data: x_0 for the start from p_T, x_T = alpha_T x_0 + sigma_T eps with the same eps, (count, *event).
        solver: that converges.
        exact: solve in float64.
        weights: to resample paths by.
        directions: of sliced Wasserstein distances.
    """

    def __init__(self, setting: Setting, count: int, data: Tensor, solver: Any, exact: bool, resamples: int, directions: Tensor) -> None:
        self.setting, self.count, self.directions = setting, count, directions
        self.weights = Weights.make(count, resamples, setting.seed)
        self.solver = solver
        self.model = copy.deepcopy(setting.model).double() if exact else setting.model
        top = setting.sde.levels([setting.sde.t_max])[0]
        start = setting.start(count, self.model.dtype)
        self.x = self._solve(start)
        self.from_p_T = self._solve(start + top.alpha * data.to(start))

    def _solve(self, x: Tensor) -> Tensor:
        s = self.setting
        size = max(s.batch_size, 64)
        return sample(
            self.model, solver=self.solver, x_init=x, t_end=s.t_end, seed=s.seed, batch_size=size, **s.some(self.count)
        ).double().cpu()

    def own_error(self, looser: float = 10.0) -> float:
        """How far a tolerance ten times looser moves the paths (rms over a few): what the reference itself is good for."""
        if not isinstance(self.solver, TorchDiffEq):
            return math.nan
        few = min(16, self.count)
        loose = TorchDiffEq(self.solver.method, looser * self.solver.rtol, looser * self.solver.atol, self.solver.max_nfe)
        start = self.setting.start(few, self.model.dtype)
        x = sample(self.model, solver=loose, x_init=start, t_end=self.setting.t_end, batch_size=few, **self.setting.some(few))
        return float((x.double().cpu() - self.x[:few]).flatten(1).norm(dim=1).square().mean().sqrt())

    def figures(self, x: Tensor) -> dict[str, Interval]:
        """Distances of the samples of a deterministic solver to the converged ones, sample by sample and as sets."""
        x = x[: self.count].double()
        e = (x - self.x).flatten(1).norm(dim=1)
        drawn = e[self.weights.rows]
        return {
            "median": _interval(float(e.median()), drawn.median(1).values),
            "rms": _interval(float(e.square().mean().sqrt()), drawn.square().mean(1).sqrt()),
            "discretization": coupled(x, self.x, self.directions, self.weights),
        }


def excess(reading: Interval, floor: NoiseFloor) -> Interval:
    """What a distance reads above its noise floor: the root of the difference of squares, 0 within it."""

    def above(value: float, base: float) -> float:
        return math.sqrt(max(value**2 - base**2, 0.0))

    low, high = above(reading.low, floor.mean + 2 * floor.std), above(reading.high, max(floor.mean - 2 * floor.std, 0.0))
    return Interval(above(reading.value, floor.mean), low, high, (high - low) / 4)


"""How the frontier judges samples: a reference prepared once, figures with intervals, floors, and the parts of the error.

Intervals are over the samples drawn, the reference as given: they say how far a reading would move with other samples of the same
solver. Pairs and neighbours are taken among the first ``PAIRS`` samples of each set, all else among all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ShapeError
from scoresde.evaluation import metrics
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier.distances import PAIRS, Pairs, Projected, Seen, Weights, distance_interval
from scoresde.evaluation.metrics import NoiseFloor
from scoresde.models import mixture
from scoresde.models.mixture import GaussianMixture

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.solve import Setting

Features = Callable[[Tensor], Tensor]


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
        found = {"log_prob_error": distance_interval(error, weights.means(log_p) - self.mean_log_prob) if weights else none}
        if isinstance(self.target, GaussianMixture):
            r = mixture.responsibilities(x.to(self.target.means.device), self.target, self.level.alpha, self.level.sigma).cpu()
            true = self.target.log_weights.double().exp().cpu()

            def distance(shares: Tensor) -> Tensor:
                return 0.5 * (shares - true).abs().sum(-1)

            value = float(distance(r.mean(0)))
            none = Interval(value, math.nan, math.nan, math.nan)
            found["occupancy"] = distance_interval(value, distance(weights.means(r)), "centred") if weights else none
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

"""How far each sample is from the end of its own converged path."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier.distances import Weights, coupled, distance_interval
from scoresde.sampling.sampler import sample
from scoresde.solvers.foreign import TorchDiffEq

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.solve import Setting
    from scoresde.evaluation.metrics import NoiseFloor


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
            "median": distance_interval(float(e.median()), drawn.median(1).values),
            "rms": distance_interval(float(e.square().mean().sqrt()), drawn.square().mean(1).sqrt()),
            "discretization": coupled(x, self.x, self.directions, self.weights),
        }


def excess(reading: Interval, floor: NoiseFloor) -> Interval:
    """What a distance reads above its noise floor: the root of the difference of squares, 0 within it."""

    def above(value: float, base: float) -> float:
        return math.sqrt(max(value**2 - base**2, 0.0))

    low, high = above(reading.low, floor.mean + 2 * floor.std), above(reading.high, max(floor.mean - 2 * floor.std, 0.0))
    return Interval(above(reading.value, floor.mean), low, high, (high - low) / 4)

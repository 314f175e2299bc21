"""Pilot paths: a model's own probability-flow ODE, solved accurately and kept at all noise levels, in reference coordinates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import TUNE
from scoresde.errors import SolverError
from scoresde.models.batches import bind_conditions, default_batch_size
from scoresde.models.reference import GaussianReference
from scoresde.sampling.sampler import sample
from scoresde.sdes import grid
from scoresde.solvers.multistep import UniPC
from scoresde.solvers.reference import CENTER, ReferenceSolver
from scoresde.solvers.untuned import width_of

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel


@dataclasses.dataclass(frozen=True)
class Pilots:
    """Paths of the model's ODE: x at the start, and z and its slope in w at fine nodes of w, for the coordinates of ``reference``.

    Attributes:
        rows: the model with the conditions of some paths, by their index.
        x: (P, *event) at t_max.
        lam, w: nodes, (M + 1,) float64, and z, slope: (M + 1, P, ...) there.
        end: x at t_end, (P, *event), in float64.
        error: estimate of the median error of ``end``.
    """

    model: ScoreModel
    rows: Callable[[Tensor], Any]
    reference: GaussianReference
    own: bool
    x: Tensor
    start: float
    finish: float
    center: float
    width: float
    w: Tensor
    z: Tensor
    slope: Tensor
    end: Tensor
    error: float

    @classmethod
    def make(cls, model: ScoreModel, paths: int, start: float, end: float, seed: int, cond: dict[str, Any]) -> Pilots:
        noise = Noise(seed, check_ids(None, paths), model.event_shape, model.dtype, model.device)
        x = noise.normal(TUNE) * model.sde.levels([start])[0].sigma

        def rows(index: Tensor) -> Any:
            return bind_conditions(model, cond, index.numpy(), paths, model.device)

        reference, own = model.reference, model.reference is not None
        if reference is None:
            rough = sample(model, x_init=x, solver=UniPC(2), times=grid.log_snr(model.sde, 50, start, end), **cond)
            reference = GaussianReference.fit(rough.double() / model.sde.levels([end])[0].alpha, "diagonal", width=2.0)
        steps, coarse = 64, None
        while True:
            found = cls._solve(model, rows, reference, own, x, start, end, steps)
            if coarse is not None:
                error = float((found.end - coarse).flatten(1).norm(dim=1).median()) / 8  # third order at least
                floor = 20 * torch.finfo(x.dtype).eps * float(found.end.flatten(1).norm(dim=1).median())
                if error < max(1e-4 * reference.scale * math.sqrt(x[0].numel()), floor) or steps >= 512:
                    return dataclasses.replace(found, error=error)
            steps, coarse = 2 * steps, found.end

    @classmethod
    def _solve(
        cls,
        model: ScoreModel,
        rows_of: Callable[[Tensor], Any],
        reference: GaussianReference,
        own: bool,
        x: Tensor,
        start: float,
        end: float,
        steps: int,
    ) -> Pilots:
        center, width = CENTER * reference.scale, max(width_of(model, reference, steps), 1.5)
        times = grid.logistic(model.sde, steps, start, end, center, width)
        levels = model.sde.levels(times)
        solver = ReferenceSolver(order=3, reference=reference, width=width, free=False)
        size = max(default_batch_size(model.event_shape), 64)
        z, slope, ends = [], [], []
        for first in range(0, len(x), size):
            rows = torch.arange(first, min(first + size, len(x)), device="cpu")
            part, y = rows_of(rows), x[rows]
            state, zs, slopes = solver.init(part, y, levels), [], []
            for t in levels[:-1]:
                i = state.i
                y, state = solver.step(part, y, t, levels[i + 1], state, None)  # type: ignore[arg-type]
                zs.append(state.base)  # corrected, at level i
                slopes.append(state.history[0])
            zs.append(state.z)
            slopes.append(slopes[-1])
            z.append(torch.stack(zs))
            slope.append(torch.stack(slopes))
            ends.append(y)
        finish = torch.cat(ends).double()
        if not bool(finish.isfinite().all()):
            raise SolverError("the pilot paths are not finite: check the model between t_max and t_end, sample(model, 64, steps=100)")
        w = torch.tensor([grid.clock(t.s, center, width) for t in levels], dtype=torch.float64, device="cpu")
        return cls(model, rows_of, reference, own, x, start, end, center, width, w, torch.cat(z, 1), torch.cat(slope, 1), finish, math.nan)

    @property
    def fit(self) -> slice:
        """The paths to fit to; the others judge."""
        return slice(0, len(self.x) // 2)

    @property
    def judge(self) -> slice:
        """The paths to judge by."""
        return slice(len(self.x) // 2, None)

    def at(self, lam: float, rows: slice) -> Tensor:
        """z of the paths at lam: cubic Hermite interpolation in w between nodes."""
        w = grid.clock(math.exp(-lam), self.center, self.width)
        k = int((self.w > w).sum().clamp(1, len(self.w) - 1)) - 1
        h = float(self.w[k + 1] - self.w[k])
        u = min(max((w - float(self.w[k])) / h, 0.0), 1.0)
        a, b, da, db = self.z[k, rows], self.z[k + 1, rows], self.slope[k, rows], self.slope[k + 1, rows]
        if k + 2 == len(self.w):  # no call was made at the end: a parabola
            return a + u * h * da + u**2 * (b - a - h * da)
        return (
            (1 + 2 * u) * (1 - u) ** 2 * a + u**2 * (3 - 2 * u) * b + h * u * (1 - u) ** 2 * da - h * u**2 * (1 - u) * db
        )

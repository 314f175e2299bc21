"""The work of a frontier: real samples for references and floors, rows, and the parts of the error."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import BLUR
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier.distances import Projected, coupled
from scoresde.evaluation.frontier.judge import Judge
from scoresde.evaluation.frontier.paths import Paths, excess
from scoresde.evaluation.frontier.rows import Row, finite
from scoresde.evaluation.frontier.solve import run
from scoresde.evaluation.frontier.store import floors_to_json, read_intervals
from scoresde.evaluation.metrics import NoiseFloor, split_order

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.jobs import Job
    from scoresde.evaluation.frontier.solve import Setting
    from scoresde.evaluation.frontier.store import Store

BLURRED, COPIES = 2000, 16  # samples, and noises for each, of the truncation error


class Samples:
    """Real samples: of the reference, for floors, and as starts; at 0 and at t_end; all (., *event), float64, on the CPU."""

    def __init__(self, setting: Setting, real: Tensor | None, pool: Tensor | None, target: Any, splits: int) -> None:
        self.setting, self.pool, self.target, self.splits, self.given = setting, pool, target, splits, real is not None
        self.level = setting.sde.levels([setting.t_end])[0]
        self.clean = self.exact(setting.n, 0) if real is None else real
        self.blurred = self.blur(self.clean, 0)

    @property
    def reference(self) -> Tensor:
        """What samples are judged by: real ones as given, exact ones at t_end."""
        return self.clean if self.given else self.blurred

    def exact(self, n: int, draw: int) -> Tensor:
        """Exact samples at 0, a set of its own for each draw."""
        return self.target.sample(n, (self.setting.seed + draw) % (1 << 64)).double().cpu()

    def blur(self, x: Tensor, draw: int) -> Tensor:
        """alpha x + sigma eps at t_end."""
        seed = (self.setting.seed + draw) % (1 << 64)
        noise = Noise(seed, check_ids(None, len(x)), tuple(x.shape[1:]), torch.float64)
        return self.level.alpha * x + self.level.sigma * noise.normal(BLUR)

    def floor_sets(self, n: int, blurred: bool) -> list[Tensor]:
        """Sets of n real samples, of what the reference is of (or all at t_end); none if there is no pool of them."""
        if self.pool is not None:
            sets = [self.pool[split_order(len(self.pool), self.setting.seed, i)[:n]] for i in range(self.splits)]
        elif self.target is not None:
            sets = [self.exact(n, 1 + i) for i in range(self.splits)]
        else:
            return []
        return [self.blur(x, 1 + i) for i, x in enumerate(sets)] if blurred or not self.given else sets

    def starts(self, n: int) -> Tensor:
        """x_0 of the starts from p_T: exact, of the pool, or of the reference; repeated where there are too few."""
        if self.target is not None:
            return self.exact(n, 1 + self.splits)
        x = self.clean if self.pool is None else self.pool
        return x[split_order(len(x), self.setting.seed, 1 << 20)][torch.arange(n, device="cpu") % len(x)]


class Work:
    """What rows need, made when the first of them does: a resumed frontier whose rows are all there makes nothing."""

    def __init__(
        self,
        setting: Setting,
        data: Samples,
        target: Any,
        features: Any,
        projections: int,
        resamples: int,
        count: int,
        converged: Any,
        store: Store,
    ) -> None:
        self.setting, self.data, self.count, self.converged, self.store = setting, data, count, converged, store
        self.exact, self.resamples = target is not None, resamples
        self._make_judge = lambda: Judge(setting, data.reference, projections, resamples, features, target)
        self._judge: Judge | None = None
        self._paths: Paths | None = None

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = self._make_judge()
            floors = self._judge.floors(sets) if (sets := self.data.floor_sets(self.setting.n, blurred=False)) else {}
            if self.store.floors is None:
                self.store.floors = floors
                self.store.add(floors=floors_to_json(floors))
        return self._judge

    @property
    def paths(self) -> Paths:
        if self._paths is None:
            x_0 = self.data.starts(self.count)
            self._paths = Paths(self.setting, self.count, x_0, self.converged, self.exact, self.resamples, self.judge.projected.directions)
        return self._paths

    def row(self, job: Job) -> Row:
        judge = self.judge
        found = run(self.setting, job)
        figures: dict[str, Interval] = {}
        if found.x is not None:
            if self.count and found.deterministic:
                figures |= self.paths.figures(found.x)
            figures |= judge.figures(found.x)
            if self.count and not found.deterministic:
                # not the same paths: what it reads against the reference above what the converged ODE does
                own = judge.projected.distance(self.paths.x.flatten(1)).value
                reading = judge.projected.distance(found.x[: self.count].double().flatten(1), self.paths.weights)
                figures["discretization"] = excess(reading, NoiseFloor(own, 0.0))
        return Row(
            sde=repr(self.setting.sde),
            solver=found.solver,
            label=job.label,
            grid=job.grid_name,
            steps=found.steps,
            budget=job.budget,
            nfe=found.nfe,
            calls=found.calls,
            seconds=found.seconds,
            seconds_per_call=found.seconds_per_call,
            overhead=found.overhead,
            deterministic=found.deterministic,
            metrics={name: finite(value) for name, value in figures.items()},
            message=found.message,
        )

    def summary(self) -> tuple[dict[str, NoiseFloor], dict[str, Interval], float]:
        """Floors, parts of the error, and the error of the converged paths; from the file if they are there."""
        if self.store.floors is None:
            self.judge  # noqa: B018 (makes them)
        if self.store.parts is None:
            parts = {"decomposition": self._decompose() if self.count else {}}
            made = {name: dataclasses.asdict(finite(v)) for name, v in parts["decomposition"].items()}
            self.store.parts = {"decomposition": made, "converged_error": self.paths.own_error() if self.count else math.nan}
            self.store.add(parts=self.store.parts)
        error = self.store.parts["converged_error"]
        return self.store.floors or {}, read_intervals(self.store.parts["decomposition"]), math.nan if error is None else error

    def _decompose(self) -> dict[str, Interval]:
        data, paths = self.data, self.paths
        directions = paths.directions
        score = Interval(0.0, 0.0, 0.0, 0.0)
        if not self.exact:
            real = Projected(data.blurred.flatten(1), directions)
            reading = real.distance(paths.from_p_T.flatten(1), paths.weights)
            readings = [real.distance(x.flatten(1)).value for x in data.floor_sets(self.count, blurred=True)]
            base = torch.tensor(readings or [0.0], dtype=torch.float64, device="cpu")
            score = excess(reading, NoiseFloor(float(base.mean()), float(base.std(correction=0))))
        # many noises for each sample: what one alone adds to a distance of sets is larger than the truncation error itself
        clean = data.clean[:BLURRED]
        blurred = torch.cat([data.blur(clean, -1 - k) for k in range(COPIES)])
        truncation = Projected(clean.flatten(1), directions).distance(blurred.flatten(1))
        return {"score": score, "prior": coupled(paths.x, paths.from_p_T, directions, paths.weights), "truncation": truncation}

"""One row of the frontier: which steps a budget allows, and a solve that is counted and timed."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.digest import plain_repr
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import PRIOR
from scoresde.errors import ConfigError, ScoreSDEError, SolverError
from scoresde.models.conditions import slice_cond
from scoresde.models.counting import Calls, count_evaluations
from scoresde.sampling.sampler import sample
from scoresde.solvers.planning import bind_solver
from scoresde.solvers.recipe import Recipe

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.jobs import Job
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.base import SDE

PROBE = 4  # samples of the two small solves that tell whether a solver is deterministic


@dataclass(frozen=True)
class Setting:
    """What all solves of a frontier have in common."""

    model: ScoreModel
    n: int
    seed: int
    t_end: float
    batch_size: int
    cond: dict[str, Any]
    noise: str = "independent"
    costs: dict[tuple[str, int], int] = field(default_factory=dict, compare=False, repr=False)  # evaluations, once counted

    @property
    def sde(self) -> SDE:
        return self.model.sde

    def start(self, n: int, dtype: torch.dtype) -> Tensor:
        """The states at t_max that ``sample`` starts from, (n, *event)."""
        noise = Noise(self.seed, check_ids(None, n), self.model.event_shape, dtype, self.model.device)
        return noise.normal(PRIOR) * self.sde.levels([self.sde.t_max])[0].sigma

    def some(self, rows: int) -> dict[str, Any]:
        """The conditions of the first samples."""
        return slice_cond(self.cond, lambda v: v[:rows], self.n)


def plan(setting: Setting, job: Job, steps: int) -> dict[str, Any]:
    """Arguments of ``sample`` that say where the steps are. Raises ConfigError."""
    if job.grid is None:
        return {"steps": steps, "t_end": setting.t_end}
    times = job.grid(setting.sde, steps, end=setting.t_end)
    if not isinstance(times, Tensor) or times.shape != (steps + 1,):
        got = f"shape {tuple(times.shape)}" if isinstance(times, Tensor) else type(times).__name__
        raise ConfigError(f"the grid {job.grid_name!r} gave {got} for {steps} steps, expected a tensor of {steps + 1} times")
    if abs(float(times[-1]) - setting.t_end) > 1e-9 * max(1.0, abs(setting.t_end)):
        raise ConfigError(f"the grid {job.grid_name!r} ends at t = {float(times[-1]):.6g}, expected t_end = {setting.t_end:.6g}")
    return {"times": times}


def steps_of(setting: Setting, job: Job) -> tuple[int | None, str]:
    """The most steps that a budget allows, found by counting, and why there are none."""
    if job.budget is None:
        return None, ""
    if isinstance(job.solver, Recipe):
        return job.solver.nfe, ""

    def cost(steps: int) -> int:
        key = (job.key, steps)
        if key not in setting.costs:
            with count_evaluations(setting.model, free=True) as calls, contextlib.suppress(SolverError):  # to overflow costs too
                arguments = plan(setting, job, steps)
                sample(setting.model, 1, solver=job.solver, seed=setting.seed, batch_size=1, **arguments, **setting.some(1))
            setting.costs[key] = max(calls.rows, 1)
        return setting.costs[key]

    first = cost(1)
    if job.budget < first:
        return 0, f"one step takes {first} network calls, more than {job.budget}"
    steps = min(1 + (job.budget - first) // max(cost(2) - first, 1), job.budget)
    while cost(steps) > job.budget:  # a solver need not cost the same in every step
        steps -= 1
    while steps < job.budget and cost(steps + 1) <= job.budget:
        steps += 1
    return steps, ""


@dataclass(frozen=True)
class Run:
    """A solve: samples on the CPU (None: it failed), what it took, and whether it was deterministic."""

    x: Tensor | None
    steps: int | None
    nfe: float
    calls: float
    seconds: float
    seconds_per_call: float
    overhead: float
    deterministic: bool
    message: str
    solver: str  # its repr; of "auto", that of what it was


def run(setting: Setting, job: Job) -> Run:
    """Draws the samples of one row. Whatever goes wrong in it is its message: other rows go on."""
    model, n, x, steps, deterministic = setting.model, setting.n, None, None, False
    used = job.solver
    begun, message, calls = time.perf_counter(), "", Calls()
    try:
        steps, message = steps_of(setting, job)
        if not message:
            where = {"t_end": setting.t_end} if steps is None else plan(setting, job, steps)
            used = resolved(setting, job, where)
            deterministic = _is_deterministic(setting, job, where)
            how = {"seed": setting.seed, "batch_size": setting.batch_size, **where, **setting.cond}
            with count_evaluations(model, timed=True) as calls:
                begun = time.perf_counter()
                x = sample(model, n, solver=job.solver, noise="independent" if deterministic else setting.noise, **how)
                x = x.cpu()
    except Exception as error:  # a result too: this solver cannot do it
        message = str(error) if isinstance(error, ScoreSDEError) else f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    batches = -(-n // setting.batch_size)
    timed = calls.forward if model.device.type == "cpu" else 0  # elsewhere a call returns before it is done
    return Run(
        x=None if message else x,
        steps=steps,
        nfe=calls.rows / (batches * setting.batch_size),
        calls=calls.forward / batches,
        seconds=seconds,
        seconds_per_call=seconds / calls.forward if calls.forward else math.nan,
        overhead=(seconds - calls.seconds) / timed if timed else math.nan,
        deterministic=deterministic,
        message=message,
        solver=plain_repr(used),
    )


def resolved(setting: Setting, job: Job, where: dict[str, Any]) -> Any:
    """The solver of a job; of "auto", what it is here."""
    if not isinstance(job.solver, str):
        return job.solver
    steps, times, t_end = (where.get(name) for name in ("steps", "times", "t_end"))
    return bind_solver(job.solver, setting.model, steps, times, t_end, list(setting.cond))[0]


def _is_deterministic(setting: Setting, job: Job, where: dict[str, Any]) -> bool:
    """Whether two solves of a few samples from the same start with different seeds agree to the bit. Warms up, too."""
    rows = min(PROBE, setting.n)
    start = setting.start(rows, setting.model.dtype)
    if "times" in where:
        levels = setting.sde.levels([setting.sde.t_max, float(where["times"][0])])
        start = start * (levels[1].sigma / levels[0].sigma)
    one, two = (
        sample(setting.model, solver=job.solver, x_init=start, seed=seed, batch_size=rows, **where, **setting.some(rows))
        for seed in (setting.seed, (setting.seed + 1) % (1 << 64))
    )
    return torch.equal(one, two)

"""One row of the frontier: which steps a budget allows, and a solve that is counted and timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._frontier_rows import chooses_steps, digest, label_of
from .errors import ConfigError, ScoreSDEError, SolverError
from .model import ScoreModel, slice_cond
from .noise import PRIOR, Noise, check_ids
from .recipe import Recipe
from .sampling import sample
from .sde import SDE
from .solvers import check_solver

Grid = Callable[..., Tensor]  # (sde, n, start=None, end=None) -> n + 1 decreasing times
PROBE = 4  # samples of the two small solves that tell whether a solver is deterministic


@dataclass(frozen=True)
class Job:
    """A solver on a grid (None: its own, or the SDE's) at a budget (None: it chooses its own steps)."""

    solver: Any
    label: str
    grid_name: str
    grid: Grid | None
    budget: int | None


@dataclass(frozen=True)
class Setting:
    """What all solves of a frontier have in common."""

    model: ScoreModel
    n: int
    seed: int
    t_end: float
    batch_size: int
    cond: dict[str, Any]
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


def make_jobs(sde: SDE, solvers: Any, grids: Any, budgets: list[int]) -> list[Job]:
    """Every solver on every grid at every budget. Raises ConfigError."""
    if isinstance(solvers, dict):
        given = [(str(label), solver) for label, solver in solvers.items()]
    else:
        given = [("", solver) for solver in ([solvers] if isinstance(solvers, str) else solvers)]
    chosen: list[tuple[str, Grid | None]] = [("", None)]
    if grids is not None:
        named = grids.items() if isinstance(grids, dict) else [(_grid_name(g), g) for g in grids]
        chosen = [(str(name), _check_grid(g)) for name, g in named]
    if not given or not budgets or not chosen:
        raise ConfigError(f"{len(given)} solvers, {len(budgets)} budgets and {len(chosen)} grids: give at least one of each")
    jobs = []
    for label, solver in given:
        pairs = chosen
        if isinstance(solver, tuple):
            if len(solver) != 2:
                raise ConfigError(f"solvers hold a tuple of {len(solver)}, expected (solver, grid)")
            solver, grid = solver
            pairs = [(_grid_name(grid), _check_grid(grid))]
        if not (isinstance(solver, str) and solver == "auto"):
            check_solver(solver)
        label = label or label_of(solver)
        if chooses_steps(solver):
            jobs.append(Job(solver, label, "adaptive", None, None))
            continue
        if isinstance(solver, Recipe):  # it is for one budget, on times of its own
            jobs.append(Job(solver, label, "own", None, solver.nfe))
            continue
        own = "own" if isinstance(solver, str) or hasattr(solver, "grid") else sde.default_grid
        jobs += [Job(solver, label, name if grid else own, grid, budget) for name, grid in pairs for budget in budgets]
    keys = [(job.label, job.grid_name, job.budget, digest(job.solver)) for job in jobs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{twice[0]} on the grid {twice[1]!r} is given twice")
    return jobs


def _grid_name(grid: Any) -> str:
    return str(getattr(grid, "__name__", None) or getattr(getattr(grid, "func", None), "__name__", None) or type(grid).__name__)


def _check_grid(grid: Any) -> Grid | None:
    if grid is not None and not callable(grid):
        raise ConfigError(f"a grid is {grid!r}, expected a function such as scoresde.grid.log_snr, or None for the solver's own")
    return grid


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


@dataclass
class Meter:
    """What a solve asked of the network: calls, samples evaluated, and seconds inside it."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def metered(model: ScoreModel, free: bool = False) -> Iterator[Meter]:
    """Counts and times the model's own evaluations; with ``free`` they are not made: x0 = 0, to learn what a solver would ask.

    On the instance, for the time being: a wrapper would hide from a solver what else the model knows.
    """
    meter = Meter()
    name = "_own_predict" if getattr(model, "_own_predict", None) else "_own_denoise"
    own, before = getattr(model, name), vars(model).get(name)

    def evaluate(x: Tensor, t: Any, **cond: Any) -> Any:
        begun = time.perf_counter()
        if free:
            zero = torch.zeros_like(x)
            result = (zero, (x / model.sde.level(t, x).sigma).to(x.dtype)) if name == "_own_predict" else zero
        else:
            result = own(x, t, **cond)
        meter.seconds += time.perf_counter() - begun
        meter.calls += 1
        meter.rows += len(x)
        return result

    object.__setattr__(model, name, evaluate)
    try:
        yield meter
    finally:
        object.__delattr__(model, name)
        if before is not None:
            object.__setattr__(model, name, before)


def steps_of(setting: Setting, job: Job) -> tuple[int | None, str]:
    """The most steps that a budget allows, found by counting, and why there are none."""
    if job.budget is None:
        return None, ""
    if isinstance(job.solver, Recipe):
        return job.solver.nfe, ""

    def cost(steps: int) -> int:
        key = (digest(job.label, job.solver, job.grid_name, job.grid), steps)
        if key not in setting.costs:
            with metered(setting.model, free=True) as meter, contextlib.suppress(SolverError):  # one that overflows costs calls too
                arguments = plan(setting, job, steps)
                sample(setting.model, 1, solver=job.solver, seed=setting.seed, batch_size=1, **arguments, **setting.some(1))
            setting.costs[key] = max(meter.rows, 1)
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


def run(setting: Setting, job: Job) -> Run:
    """Draws the samples of one row. Whatever goes wrong in it is its message: other rows go on."""
    model, n, x, steps, deterministic = setting.model, setting.n, None, None, False
    begun, message, meter = time.perf_counter(), "", Meter()
    try:
        steps, message = steps_of(setting, job)
        if not message:
            where = {"t_end": setting.t_end} if steps is None else plan(setting, job, steps)
            deterministic = _is_deterministic(setting, job, where)
            with metered(model) as meter:
                begun = time.perf_counter()
                x = sample(model, n, solver=job.solver, seed=setting.seed, batch_size=setting.batch_size, **where, **setting.cond)
                x = x.cpu()
    except Exception as error:  # a result too: this solver cannot do it
        message = str(error) if isinstance(error, ScoreSDEError) else f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    batches = -(-n // setting.batch_size)
    timed = meter.calls if model.device.type == "cpu" else 0  # elsewhere a call returns before it is done
    return Run(
        x=None if message else x,
        steps=steps,
        nfe=meter.rows / (batches * setting.batch_size),
        calls=meter.calls / batches,
        seconds=seconds,
        seconds_per_call=seconds / meter.calls if meter.calls else math.nan,
        overhead=(seconds - meter.seconds) / timed if timed else math.nan,
        deterministic=deterministic,
        message=message,
    )


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

"""One row of the frontier: which steps a budget allows, and a solve that is counted and timed."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._digest import digest, plain_repr, solver_digest
from ._frontier_rows import chooses_steps, label_of
from .errors import ConfigError, ScoreSDEError, SolverError
from .model import ScoreModel, slice_cond
from .noise import PRIOR, Noise, check_ids
from .recipe import Recipe
from .sampling import bind_solver, sample
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
    key: str = ""  # tells solvers and grids apart, in this process and in another


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


def make_jobs(sde: SDE, solvers: Any, grids: Any, budgets: list[int], t_end: float | None = None) -> list[Job]:
    """Every solver on every grid at every budget. Raises ConfigError."""
    alone = isinstance(solvers, str) or hasattr(solvers, "step")
    given = _named([solvers] if alone else solvers, "solvers", "instances or pairs (solver, grid), or a dict of them by label")
    chosen: list[tuple[str, Grid | None]] = [("", None)]
    if grids is not None:
        chosen = [(name, _check_grid(g)) for name, g in _named([grids] if callable(grids) else grids, "grids", "functions, or a dict")]
    if not given or not budgets or not chosen:
        raise ConfigError(f"{len(given)} solvers, {len(budgets)} budgets and {len(chosen)} grids: give at least one of each")
    jobs = []
    labels: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for label, solver in given:
        pairs = chosen
        if isinstance(solver, tuple):
            if len(solver) != 2:
                raise ConfigError(f"solvers hold a tuple of {len(solver)}, expected (solver, grid)")
            solver, grid = solver
            pairs = [("", _check_grid(grid))]
            if grid is not None and isinstance(solver, Recipe):
                raise ConfigError(f"a recipe was given with the grid {grid_name(grid)!r}, but has times of its own: give it alone")
        if not (isinstance(solver, str) and solver == "auto"):
            check_solver(solver)
        key, label = solver_digest(solver), label or label_of(solver)
        if chooses_steps(solver):  # with other tolerances it is another point of one line
            jobs.append(Job(solver, label, "adaptive", None, None, key))
            continue
        label = _numbered(label, key, labels)
        if isinstance(solver, Recipe):  # it is for one budget, on times of its own
            jobs.append(Job(solver, label, "own", None, solver.nfe, key))
            continue
        own = "own" if isinstance(solver, str) or hasattr(solver, "grid") else sde.default_grid
        for name, grid in pairs:
            if grid is None:
                jobs += [Job(solver, label, own, None, budget, key) for budget in budgets]
                continue
            spaced = _grid_digest(grid, sde, t_end)
            name = _numbered(name or grid_name(grid), spaced, names)
            jobs += [Job(solver, label, name, grid, budget, digest(key, spaced)) for budget in budgets]
    keys = [(job.label, job.grid_name, job.budget, job.key) for job in jobs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{twice[0]} on the grid {twice[1]!r} is given twice")
    return jobs


def _named(values: Any, what: str, expected: str) -> list[tuple[str, Any]]:
    """Pairs of a name ("": none was given) and a value. Raises ConfigError."""
    if isinstance(values, Mapping):
        return [(str(name), value) for name, value in values.items()]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{what} = {values!r}, expected {expected}")
    return [("", value) for value in values]


def _numbered(name: str, key: str, keys: dict[str, list[str]]) -> str:
    """The name, with a number from the second of those on that share it though they differ."""
    same = keys.setdefault(name, [])
    if key not in same:
        same.append(key)
    return f"{name} {same.index(key) + 1}" if same.index(key) else name


def _grid_digest(grid: Grid, sde: SDE, t_end: float | None) -> str:
    """Of a grid's code, and of the times that it gives."""
    found: list[Any] = [grid]
    for n in (1, 2, 5, 10):
        try:
            found.append(grid(sde, n, end=t_end))
        except Exception as error:  # the row will say so
            found.append(type(error).__name__)
    return digest(*found)


def grid_name(grid: Any) -> str:
    """karras; karras(rho=3) of a ``functools.partial``."""
    if isinstance(grid, functools.partial):
        given = [*map(str, grid.args), *(f"{name}={value}" for name, value in grid.keywords.items())]
        return f"{grid_name(grid.func)}({', '.join(given)})"
    return str(getattr(grid, "__name__", None) or type(grid).__name__)


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
        key = (job.key, steps)
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
    solver: str  # its repr; of "auto", that of what it was


def run(setting: Setting, job: Job) -> Run:
    """Draws the samples of one row. Whatever goes wrong in it is its message: other rows go on."""
    model, n, x, steps, deterministic = setting.model, setting.n, None, None, False
    used = job.solver
    begun, message, meter = time.perf_counter(), "", Meter()
    try:
        steps, message = steps_of(setting, job)
        if not message:
            where = {"t_end": setting.t_end} if steps is None else plan(setting, job, steps)
            used = resolved(setting, job, where)
            deterministic = _is_deterministic(setting, job, where)
            how = {"seed": setting.seed, "batch_size": setting.batch_size, **where, **setting.cond}
            with metered(model) as meter:
                begun = time.perf_counter()
                x = sample(model, n, solver=job.solver, noise="independent" if deterministic else setting.noise, **how)
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

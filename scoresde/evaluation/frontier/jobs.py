"""The table of what is to be solved: solvers, grids and numbers of network calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoresde.core.digest import digest, solver_digest
from scoresde.errors import ConfigError
from scoresde.evaluation.frontier.rows import chooses_steps, label_of
from scoresde.solvers.base import Solver, check_solver
from scoresde.solvers.recipe import Recipe

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE

Grid = Callable[..., Tensor]  # (sde, n, start=None, end=None) -> n + 1 decreasing times


@dataclass(frozen=True)
class Job:
    """A solver on a grid (None: its own, or the SDE's) at a budget (None: it chooses its own steps)."""

    solver: Any
    label: str
    grid_name: str
    grid: Grid | None
    budget: int | None
    key: str = ""  # tells solvers and grids apart, in this process and in another


def make_jobs(sde: SDE, solvers: Any, grids: Any, budgets: list[int], t_end: float | None = None) -> list[Job]:
    """Every solver on every grid at every budget. Raises ConfigError."""
    alone = isinstance(solvers, (str, type, Solver))
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
        own = "own" if isinstance(solver, str) or solver.own_grid else sde.default_grid
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

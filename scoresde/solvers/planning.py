"""Before the loop: which solver "auto" is, the solver for a model, and the times."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_positive_int
from scoresde.errors import ConfigError, NonFiniteError, TimeRangeError
from scoresde.sdes import grid
from scoresde.sdes.levels import SLACK
from scoresde.solvers.base import Solver, check_solver
from scoresde.solvers.reference import ReferenceSolver
from scoresde.solvers.untuned import assumed

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.base import SDE

CLOSEST = 2e-9  # relative distance of two times

LEAST_STEP = 1e-4  # of a step, beside the longer of its neighbours, in log-SNR

AUTO_STEPS = 20  # network calls of solver="auto" when not told how many


def auto(model: ScoreModel, steps: int, t_end: float | None, cond: Collection[str], own_times: bool) -> Solver:
    """The best deterministic solver for ``steps`` network calls that is known for this model, without trying any."""
    recipe = None if own_times else model.recipes.get(steps)
    if recipe is not None and not recipe.mismatch(model) and sorted(cond) == recipe.model.get("cond", sorted(cond)):
        end = grid.default_end(model.sde) if t_end is None else t_end
        if math.isclose(recipe.times[-1], end, rel_tol=1e-9):
            return recipe
    return ReferenceSolver(reference=assumed(model) if model.reference is None else None)


def bind_solver(
    solver: Any,
    model: ScoreModel,
    steps: int | None = None,
    times: Any = None,
    t_end: float | None = None,
    cond: Collection[str] = (),
) -> tuple[Any, int | None]:
    """A solver ready for a model, and its steps: one that needs to know the model has ``bind(model, steps)``.

    "auto" is chosen here, by the names of the conditions too. steps are None, for ``bind`` too, where a user gave times.
    """
    if steps is not None:
        check_positive_int(steps, "steps")
    if isinstance(solver, str) and solver == "auto":
        if times is None:
            steps = AUTO_STEPS if steps is None else steps
        calls = steps or max(len(times) - 1 if isinstance(times, Sized) else AUTO_STEPS, 1)
        solver = auto(model, calls, t_end, cond, times is not None)
    check_solver(solver)
    if times is None and steps is None:
        steps = solver.default_steps
    return solver.bind(model, steps if times is None else None), steps


def listed(times: Any) -> Any:
    """Times that can be counted: a generator as a list, all else as it is."""
    return list(times) if isinstance(times, Iterator) else times


def make_times(
    sde: SDE,
    solver: Solver,
    steps: int | None = None,
    times: Tensor | Iterable[float] | None = None,
    t_end: float | None = None,
) -> Tensor:
    """The decreasing times of a solve, from steps or times. Raises ConfigError, NonFiniteError, TimeRangeError."""
    if times is None:
        steps = solver.default_steps if steps is None else steps
        return solver.grid(sde, check_positive_int(steps, "steps"), end=t_end)
    if steps is not None:
        raise ConfigError(f"both steps = {steps} and times were given: give one of them")
    if t_end is not None:
        raise ConfigError(f"both t_end = {t_end} and times were given: the last of times is where to stop")
    try:
        plan = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"times = {times!r}, expected a tensor or list of decreasing floats") from None
    if plan.ndim != 1 or len(plan) < 2:
        raise ConfigError(f"times have shape {tuple(plan.shape)}, expected at least two decreasing times, (n + 1,)")
    if not bool(plan.isfinite().all()):
        raise NonFiniteError("times hold NaN or inf")
    if not bool((plan.diff() < 0).all()):
        raise ConfigError("times are not decreasing: they run from noise (t_max) to data (t_end), each below the one before")
    if bool((plan.diff() > -CLOSEST * plan[:-1]).any()):
        i = int((plan.diff() / plan[:-1]).argmax())
        raise ConfigError(
            f"times {float(plan[i])!r} and {float(plan[i + 1])!r} are so close that what a step changes is lost by rounding: expected "
            f"{CLOSEST:g} of the time between them, or more"
        )
    if float(plan[0]) > sde.t_max * (1 + SLACK) or float(plan[-1]) < sde.t_min * (1 - SLACK):
        raise TimeRangeError(
            f"times run from {float(plan[0]):.8g} to {float(plan[-1]):.8g}, "
            f"expected within [t_min, t_max] = [{sde.t_min:.8g}, {sde.t_max:.8g}]"
        )
    plan = plan.clamp(sde.t_min, sde.t_max)
    _check_evenness(sde, plan)
    return plan


def _check_evenness(sde: SDE, plan: Tensor) -> None:
    """Checks that no step is nothing beside its neighbours: multistep solvers divide differences of the steps before by its length,
    and UniPC made samples of size 1000 of two times that were meant to be one. Raises ConfigError."""
    steps = sde.log_snr(plan).diff()
    padded = torch.nn.functional.pad(steps, (1, 1))
    ratio = steps / torch.maximum(padded[:-2], padded[2:])
    i = int(ratio.nan_to_num(math.inf, math.inf).argmin())
    if len(steps) > 1 and float(ratio[i]) < LEAST_STEP:
        raise ConfigError(
            f"times {float(plan[i])!r} and {float(plan[i + 1])!r} are as good as one: the step between them is {float(ratio[i]):.1g} of "
            f"the one beside it in log-SNR, expected at least {LEAST_STEP:g}; leave one of them out"
        )

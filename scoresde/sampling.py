"""Sampling: from noise at t_max to data at t_end, with any solver, on any grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from . import grid
from ._augmented import AsksVelocity, Augmented, Silent, Watched
from ._bars import bar as _progress
from ._tensor import check_data, check_positive_int
from ._traces import Traces, check_kind
from .errors import ConfigError, NonFiniteError, ShapeError, SolverError, TimeRangeError
from .model import Conditioned, ScoreModel, check_same_kind, inference, slice_cond
from .multistep import UniPC
from .noise import PRIOR, BrownianPath, Noise, check_ids, check_seed
from .reference_solver import ReferenceSolver
from .sde import SDE, Level
from .solvers import Solver, check_solver

AUTO_STEPS = 20  # network calls of solver="auto" when not told how many
CHECK_EVERY = 16  # steps between two looks for non-finite states: each look waits for the device


@overload
def sample(
    model: ScoreModel,
    n: int | None = None,
    *,
    solver: Solver | str = "auto",
    steps: int | None = None,
    times: Tensor | Iterable[float] | None = None,
    t_end: float | None = None,
    x_init: Tensor | None = None,
    ids: Iterable[int] | Tensor | None = None,
    seed: int = 0,
    noise: str = "independent",
    denoise: bool = False,
    batch_size: int | None = None,
    return_log_prob: Literal[False] = False,
    progress: bool = False,
    **cond: Any,
) -> Tensor: ...


@overload
def sample(
    model: ScoreModel, n: int | None = None, *, return_log_prob: Literal[True], **arguments: Any
) -> tuple[Tensor, Tensor]: ...


def sample(
    model: ScoreModel,
    n: int | None = None,
    *,
    solver: Solver | str = "auto",
    steps: int | None = None,
    times: Tensor | Iterable[float] | None = None,
    t_end: float | None = None,
    x_init: Tensor | None = None,
    ids: Iterable[int] | Tensor | None = None,
    seed: int = 0,
    noise: str = "independent",
    denoise: bool = False,
    batch_size: int | None = None,
    return_log_prob: bool = False,
    divergence: str = "exact",
    probes: int = 1,
    progress: bool = False,
    **cond: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draws n samples, (n, *event_shape), in model space.

    Sample i is a function of (seed, ids[i]): its noise is the same to the bit for any n, order of ids and batch size, and with a
    solver of fixed steps so is the sample, at the same ``batch_size`` (the last batch is padded).

    Args:
        model: a ScoreModel.
        n: number of samples; None: as many as x_init has.
        solver: ``Heun()``, ``EulerMaruyama()``, ``TorchDiffEq("dopri5")``, ...; "auto": the best deterministic solver for ``steps``
            network calls that is known for this model: its recipe (see ``tune``) if it has one for this number, else
            ``ReferenceSolver()`` for a model with a Gaussian reference, else ``UniPC``.
        steps: number of steps, on the solver's grid or the SDE's default one. Neither steps nor times: the solver's own number, 50
            for most, 20 for "auto".
        times: decreasing times, the first where x_init (or noise) is, the last where to stop; instead of steps.
        t_end: where to stop; None: the SDE's t_end.
        x_init: states at times[0] (B, *event_shape); None: N(0, sigma(times[0])^2 I).
        ids: sample ids, 0..n-1 by default.
        seed: integer in [0, 2^64).
        noise: "independent" draws, addressed by the number of the step; or "path": the increments of one Brownian path a sample
            over log(alpha/sigma), the same path for any steps, times and t_end, so that results at several step counts differ by
            their discretization alone (see ``scoresde.noise.BrownianPath``).
        denoise: at the end, replace x by E[x_0 | x] (Tweedie's formula, one more call).
        batch_size: samples computed at once; None: a function of the event shape, good on a CPU (more is faster on a GPU).
        return_log_prob: also return log p of the samples at the last time, (n,) float64 in nats: of the density that the
            probability-flow ODE makes of N(0, sigma^2 I) at the first time. For deterministic solvers. With those that ask for x0
            or eps (``ReferenceSolver``, ``UniPC``, ...) the rate of log p is integrated over their nodes and the end, one more call;
            with those that ask for the velocity (``Heun``, ``AdaptiveODE``, ...) log p is a part of the state, so that an adaptive
            one chooses other steps, and gives another sample within its tolerance. log p converges later than samples do: at
            their usual numbers of steps low-order solvers err by nats (of mixtures in four dimensions at 40 steps: ``Heun`` under
            VP by 2.6, ``DPMSolverPP`` under rectified flow by 2.8; ``ReferenceSolver`` by 0.0002 to 0.003 in the median). Look at
            what twice the steps give.
        divergence, probes: the estimator of the trace for it, as for ``log_prob``; "exact" takes D products a call.
        progress: show a progress bar.
        **cond: for the network; a tensor with first dimension n is per sample.

    Returns:
        The samples, of the dtype and device of x_init, else of the model; with ``return_log_prob`` the pair (samples, log p).

    Raises:
        ConfigError, ShapeError, DTypeError, DeviceError, NonFiniteError, TimeRangeError: bad arguments; ``return_log_prob`` with a
            solver that adds noise, or with ``denoise``.
        SolverError: non-finite states, with step range, time range and sample ids.
    """
    _check_model(model)
    if return_log_prob:
        check_kind(divergence, probes, model.reference)
        if denoise:
            raise ConfigError("return_log_prob=True with denoise=True: denoised samples have no density that is known; give one")
    n, x_init = _check_start(model, n, x_init)
    method, steps = bind_solver(solver, model, steps, times, t_end, cond)
    plan = make_times(model.sde, method, steps, times, t_end)
    check_seed(seed)
    _check_noise(noise)
    id_array = check_ids(ids, n)
    dtype, device = (model.dtype, model.device) if x_init is None else (x_init.dtype, x_init.device)
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    with inference(model):
        out = torch.empty((n, *model.event_shape), dtype=dtype, device=device)
        log_p = torch.empty(n, dtype=torch.float64, device=device)
        levels = model.sde.levels(plan)
        with _progress(progress, -(-n // size) * (len(levels) - 1), "sampling") as advance:
            for start in range(0, n, size):
                stop = min(start + size, n)
                # the last batch is filled up with copies of its last sample: networks are not bit-stable across batch sizes
                rows = np.minimum(np.arange(start, start + size), stop - 1)
                own = Noise(seed, id_array[rows], model.event_shape, dtype, device)
                draws = _draws(noise, own, model.sde, levels)
                bound = _bind(model, cond, rows, n, device)
                x = None if x_init is None else x_init[torch.from_numpy(rows).to(device)]
                if return_log_prob:
                    x = draws.normal(PRIOR) * levels[0].sigma if x is None else x
                    traces = Traces.draw(divergence, probes, own, model.reference)
                    state, value = _solve_with_density(bound, method, x, levels, traces, id_array[rows], advance)
                    log_p[start:stop] = value[: stop - start]
                else:
                    state = torch.empty(0)
                    for _, _, state in solve(bound, method, x, levels, draws):  # noqa: B007
                        advance()
                if denoise:
                    state = bound.denoise(state, levels[-1])
                out[start:stop] = state[: stop - start]
    return (out, log_p) if return_log_prob else out


def _solve_with_density(
    model: ScoreModel, solver: Solver, x: Tensor, levels: list[Level], traces: Traces, ids: np.ndarray, advance: Any
) -> tuple[Tensor, Tensor]:
    """The end of the path from x, and log p there for x from N(0, sigma^2 I)."""
    seen: Watched | Augmented = Watched(model, x, traces)
    state = x
    try:
        for _, _, state in solve(seen, solver, x, levels, Silent(ids)):  # noqa: B007
            advance()
    except AsksVelocity:
        seen = Augmented(model, x, traces)
        for _, _, state in solve(seen, solver, seen.begin(x), levels, Silent(ids)):  # noqa: B007
            advance()
    state, change = seen.end(state, levels)
    change = change + traces.control(model.reference, levels[-1], levels[0])
    u, sigma = x.double().flatten(1) / levels[0].sigma, levels[0].sigma
    prior = -0.5 * u.square().sum(1) - u.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return state, prior + change.mean(1)


def trajectory(
    model: ScoreModel,
    n: int | None = None,
    *,
    solver: Solver | str = "auto",
    steps: int | None = None,
    times: Tensor | Iterable[float] | None = None,
    t_end: float | None = None,
    x_init: Tensor | None = None,
    ids: Iterable[int] | Tensor | None = None,
    seed: int = 0,
    noise: str = "independent",
    **cond: Any,
) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    """Yields (step, t, x, x0) from the start (step 0) to the end: the state at t and its denoised estimate E[x_0 | x_t].

    Arguments and errors as for ``sample``; all n samples form one batch. x0 takes one call a step beyond those of the solver.
    """
    _check_model(model)
    n, x_init = _check_start(model, n, x_init)
    method, steps = bind_solver(solver, model, steps, times, t_end, cond)
    plan = make_times(model.sde, method, steps, times, t_end)
    dtype, device = (model.dtype, model.device) if x_init is None else (x_init.dtype, x_init.device)
    _check_noise(noise)
    levels = model.sde.levels(plan)
    draws = _draws(noise, Noise(check_seed(seed), check_ids(ids, n), model.event_shape, dtype, device), model.sde, levels)
    bound = _bind(model, cond, np.arange(n), n, device)
    x = draws.normal(PRIOR) * levels[0].sigma if x_init is None else x_init.clone()  # a stage that is yielded is the user's

    def run() -> Iterator[tuple[int, float, Tensor, Tensor]]:
        steps_done = solve(bound, method, x, levels, draws)
        state, step, t = x, 0, levels[0]
        while True:
            with inference(model):
                x0 = bound.denoise(state, t)
            yield step, float(t), state, x0
            with inference(model):
                found = next(steps_done, None)
            if found is None:
                return
            step, t, state = found[0] + 1, found[1], found[2]

    return run()


def solve(
    model: Any, solver: Solver, x: Tensor | None, levels: list[Level], noise: Any, keep_failed: bool = False
) -> Iterator[tuple[int, Level, Tensor]]:
    """The loop, written once: yields (step, time reached, state) after every step. x None starts from noise.

    ``keep_failed``: samples that a per-sample solver had to give up stay in the batch as NaN, with a warning at the end.
    """
    if x is None:
        x = noise.normal(PRIOR) * levels[0].sigma
    state = solver.init(model, x, levels) if hasattr(solver, "init") else None
    last = len(levels) - 2
    checked = 0
    keep_failed = keep_failed and getattr(solver, "per_sample", False)
    for i in range(last + 1):
        x, state = solver.step(model, x, levels[i], levels[i + 1], state, noise.at(i))
        if i == last or ((i + 1) % CHECK_EVERY == 0 and not keep_failed):
            finite = torch.isfinite(x)
            if not bool(finite.all()):
                bad = (~finite.flatten(1).all(1)).nonzero().flatten().tolist()
                ids = list(dict.fromkeys(int(noise.ids[row]) for row in bad))
                failures = getattr(state, "failures", {})
                if failures:
                    reasons = list(dict.fromkeys(f"id {noise.ids[row]}: {why}" for row, why in failures.items()))
                    message = (
                        f"{solver!r} failed for sample ids {ids[:8]}{'...' if len(ids) > 8 else ''} ({'; '.join(reasons[:4])}): "
                        "loosen rtol and atol, raise max_nfe, or check the model at these times"
                    )
                    if not keep_failed:
                        raise SolverError(message)
                    warnings.warn(message + "; their results are NaN", stacklevel=2)
                    yield i, levels[i + 1], x
                    continue
                raise SolverError(
                    f"{solver!r}: states are not finite in steps {checked} to {i}, t from {levels[checked]:.6g} to "
                    f"{levels[i + 1]:.6g}, for sample ids {ids[:8]}{'...' if len(ids) > 8 else ''}: "
                    "take more steps, another grid, or check the model at these times"
                )
            checked = i + 1
        yield i, levels[i + 1], x


def auto(model: ScoreModel, steps: int, t_end: float | None, cond: Collection[str], own_times: bool) -> Solver:
    """The best deterministic solver for ``steps`` network calls that is known for this model, without trying any."""
    recipe = None if own_times else model.recipes.get(steps)
    if recipe is not None and not recipe.mismatch(model) and sorted(cond) == recipe.model.get("cond", sorted(cond)):
        end = grid.default_end(model.sde) if t_end is None else t_end
        if math.isclose(recipe.times[-1], end, rel_tol=1e-9):
            return recipe
    return UniPC(2 if steps < 10 else 3) if model.reference is None else ReferenceSolver()


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
        calls = steps or max(len(times) - 1 if hasattr(times, "__len__") else AUTO_STEPS, 1)
        solver = auto(model, calls, t_end, cond, times is not None)
    check_solver(solver)
    if not hasattr(solver, "bind"):
        return solver, steps
    if times is None and steps is None:
        steps = getattr(solver, "default_steps", Solver.default_steps)
    return solver.bind(model, steps if times is None else None), steps


def make_times(
    sde: SDE,
    solver: Solver,
    steps: int | None = None,
    times: Tensor | Iterable[float] | None = None,
    t_end: float | None = None,
) -> Tensor:
    """The decreasing times of a solve, from steps or times. Raises ConfigError, NonFiniteError, TimeRangeError."""
    if times is None:
        steps = getattr(solver, "default_steps", Solver.default_steps) if steps is None else steps
        spaced = getattr(solver, "grid", grid.default)  # a solver may know better than the SDE how to space its steps
        return spaced(sde, check_positive_int(steps, "steps"), end=t_end)
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
    if float(plan[0]) > sde.t_max * (1 + 1e-12) or float(plan[-1]) < sde.t_min * (1 - 1e-12):
        raise TimeRangeError(
            f"times run from {float(plan[0]):.6g} to {float(plan[-1]):.6g}, "
            f"expected within [t_min, t_max] = [{sde.t_min:.6g}, {sde.t_max:.6g}]"
        )
    return plan


def default_batch_size(event_shape: tuple[int, ...]) -> int:
    """About 4096 numbers, between 16 and 1024 samples: little padding for few samples, fast enough on a CPU for many."""
    numbers = int(np.prod(event_shape))
    return int(min(max(1 << round(np.log2(max(4096 / numbers, 1))), 16), 1024))


def _check_model(model: Any) -> None:
    if not isinstance(model, ScoreModel):
        raise ConfigError(
            f"model is a {type(model).__name__}, expected a ScoreModel: scoresde.NetworkModel(net, sde, event_shape) for a network"
        )


def _check_start(model: ScoreModel, n: int | None, x_init: Tensor | None) -> tuple[int, Tensor | None]:
    if x_init is not None:
        check_data(x_init, model.event_shape, "x_init")
        check_same_kind(model, x_init, "x_init")
        if n is not None and n != len(x_init):
            raise ConfigError(f"n = {n}, but x_init has {len(x_init)} samples: leave n out")
        return len(x_init), x_init.detach()
    if n is None:
        raise ConfigError("neither n nor x_init was given: how many samples?")
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ConfigError(f"n = {n!r}, expected an integer of at least 0")
    return n, None


def _bind(model: ScoreModel, cond: dict[str, Any], rows: np.ndarray, n: int, device: torch.device) -> ScoreModel:
    """The model with the conditions of these rows, checked for their length."""
    if not cond:
        return model
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] not in (1, n):
            raise ShapeError(f"condition {name!r} has shape {tuple(value.shape)} for {n} samples: expected ({n}, ...)")
    index = torch.from_numpy(rows)
    return Conditioned(model, slice_cond(cond, lambda v: v[index.to(v.device)].to(device), n))


def _check_noise(noise: Any) -> None:
    if noise not in ("independent", "path"):
        raise ConfigError(f"noise = {noise!r}, expected 'independent' or 'path'")


def _draws(kind: str, noise: Noise, sde: SDE, levels: list[Level]) -> Noise | BrownianPath:
    """The noise of a solve: as it is, or along a Brownian path over lam = log(alpha/sigma), from t_max on."""
    if kind == "independent":
        return noise
    first, last, *lam = (math.log(t.alpha / t.sigma) for t in [*sde.levels([sde.t_max, sde.t_min]), *levels])
    return BrownianPath(noise, [min(max(v - first, 0.0), last - first) for v in lam], last - first)

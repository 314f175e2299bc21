"""Sampling: from noise at t_max to data at t_end, with any solver, on any grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer, check_memory
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.progress import bar
from scoresde.core.streams import PRIOR
from scoresde.errors import ConfigError
from scoresde.likelihood.augmented import Augmented, Silent, Watched
from scoresde.likelihood.traces import Traces, check_kind
from scoresde.models.base import check_model, check_same_kind, has_dtype, inference
from scoresde.models.batches import batch_size_of, bind_conditions, in_batches
from scoresde.models.conditions import check_conditions
from scoresde.models.views import InDtype
from scoresde.solvers.loop import check_noise, draws_for, solve
from scoresde.solvers.planning import bind_solver, listed, make_times

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Solver


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
    dtype: torch.dtype | None = None,
    return_log_prob: Literal[False] = False,
    progress: bool = False,
    **cond: Any,
) -> Tensor: ...


@overload
def sample(
    model: ScoreModel, n: int | None = None, *, return_log_prob: Literal[True], **arguments: Any
) -> tuple[Tensor, Tensor]: ...


@checked
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
    dtype: torch.dtype | None = None,
    return_log_prob: bool = False,
    divergence: str = "exact",
    probes: int = 1,
    progress: bool = False,
    **cond: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draws n samples, (n, *event_shape), in model space.

    Sample i is a function of (seed, ids[i]): its noise is the same to the bit for any n, order of ids and batch size, and with a
    solver of fixed steps so is the sample, up to the rounding in which networks differ from one size of a batch to another. With a
    ``batch_size`` that is given the last batch is filled up, and samples are the same to the bit for any n.

    Args:
        model: a ScoreModel.
        n: number of samples; None: as many as x_init has.
        solver: ``Heun()``, ``EulerMaruyama()``, ``TorchDiffEq("dopri5")``, ...; "auto": the best deterministic solver for ``steps``
            network calls that is known for this model: its recipe (see ``tune``) if it has one for this number, else
            ``ReferenceSolver()``, with order and grid by the number of calls and the model's Gaussian reference; for a model without one
            unit variance is assumed (see ``fit_reference``).
        steps: number of steps, on the solver's grid or the SDE's default one. Neither steps nor times: the solver's own number, 50
            for most, 20 for "auto".
        times: decreasing times, the first where x_init (or noise) is, the last where to stop; instead of steps.
        t_end: where to stop; None: the SDE's t_end.
        x_init: states at times[0] (B, *event_shape), cast to ``dtype``; None: N(0, sigma(times[0])^2 I).
        ids: sample ids, 0..n-1 by default.
        seed: integer in [0, 2^64).
        noise: "independent" draws, addressed by the number of the step; or "path": the increments of one Brownian path a sample
            over log(alpha/sigma), the same path for any steps, times and t_end, so that results at several step counts differ by
            their discretization alone (see ``scoresde.core.brownian.BrownianPath``).
        denoise: at the end, replace x by E[x_0 | x] (Tweedie's formula, one more call).
        batch_size: samples computed at once; None: at most a number that depends on the event shape alone, good on a CPU (more is faster
            on a GPU), and no sample that was not asked for.
        dtype: of the states and the samples; None: that of the model, but float32 for a network of 16 bits, and that of x_init for a
            model without parameters and buffers. The network is asked in its own. (A digits UNet in bfloat16, 20 calls: samples are off
            by 2 % of the std of the data with states of bfloat16, by 0.5 % with states of float32.)
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
        The samples, in ``dtype``, on the device of the model (or of x_init, for a model that has none); with ``return_log_prob`` the
        pair (samples, log p).

    Raises:
        ConfigError, ShapeError, DTypeError, DeviceError, NonFiniteError, TimeRangeError: bad arguments; ``return_log_prob`` with a
            solver that adds noise, or with ``denoise``.
        SolverError: non-finite states, with step range, time range and sample ids.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, sample, dtype=model.dtype)
    if return_log_prob or divergence != "reference":  # of which only log p needs a reference
        check_kind(divergence, probes, model.reference)
    if return_log_prob and denoise:
        raise ConfigError("return_log_prob=True with denoise=True: denoised samples have no density that is known; give one")
    n, x_init, dtype, device = _check_start(model, n, x_init, dtype)
    times = listed(times)
    method, steps = bind_solver(solver, model, steps, times, t_end, cond)
    plan = make_times(model.sde, method, steps, times, t_end)
    check_seed(seed)
    check_noise(noise)
    id_array = check_ids(ids, n)
    size = batch_size_of(model, batch_size)
    with inference(model):
        out = torch.empty((n, *model.event_shape), dtype=dtype, device=device)
        log_p = torch.empty(n if return_log_prob else 0, dtype=torch.float64, device=device if return_log_prob else "cpu")  # not on mps
        levels = model.sde.levels(plan)
        with bar(progress, -(-n // size) * (len(levels) - 1), "sampling") as advance:
            for batch in in_batches(model, cond, n, size, device, padded=batch_size is not None):
                rows, bound, place = batch.rows, _in_dtype(batch.model, model, dtype), batch.place
                own = Noise(seed, id_array[rows], model.event_shape, dtype, device)
                draws = draws_for(noise, own, model.sde, levels)
                x = None if x_init is None else x_init[torch.from_numpy(rows).to(device)]
                if return_log_prob:
                    x = draws.normal(PRIOR) * levels[0].sigma if x is None else x
                    traces = Traces.draw(divergence, probes, own, model.reference)
                    state, value = _solve_with_density(bound, method, x, levels, traces, id_array[rows], advance)
                    log_p[place] = value[: place.stop - place.start]
                else:
                    state = torch.empty(0, device="cpu")
                    for _, _, state in solve(bound, method, x, levels, draws):  # noqa: B007
                        advance()
                if denoise:
                    state = bound.denoise(state, levels[-1])
                out[place] = state[: place.stop - place.start]
    return (out, log_p) if return_log_prob else out


def _solve_with_density(
    model: ScoreModel, solver: Solver, x: Tensor, levels: list[Level], traces: Traces, ids: np.ndarray, advance: Any
) -> tuple[Tensor, Tensor]:
    """The end of the path from x, and log p there for x from N(0, sigma^2 I)."""
    seen = (Augmented if solver.asks == "velocity" else Watched)(model, x, traces)
    start = seen.begin(x)
    for _, _, state in solve(seen, solver, start, levels, Silent(ids)):  # noqa: B007
        advance()
    state, change = seen.end(state, levels)
    change = change + traces.control(model.reference, levels[-1], levels[0])
    u, sigma = x.double().flatten(1) / levels[0].sigma, levels[0].sigma
    prior = -0.5 * u.square().sum(1) - u.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return state, prior + change.mean(1)


@checked
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
    dtype: torch.dtype | None = None,
    **cond: Any,
) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    """Yields (step, t, x, x0) from the start (step 0) to the end: the state at t and its denoised estimate E[x_0 | x_t].

    Arguments and errors as for ``sample``; all n samples form one batch. x0 takes one call a step beyond those of the solver.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, trajectory, dtype=model.dtype)
    n, x_init, dtype, device = _check_start(model, n, x_init, dtype)
    times = listed(times)
    method, steps = bind_solver(solver, model, steps, times, t_end, cond)
    plan = make_times(model.sde, method, steps, times, t_end)
    check_noise(noise)
    levels = model.sde.levels(plan)
    draws = draws_for(noise, Noise(check_seed(seed), check_ids(ids, n), model.event_shape, dtype, device), model.sde, levels)
    bound = _in_dtype(bind_conditions(model, cond, np.arange(n), n, device), model, dtype)
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


def _in_dtype(bound: Any, model: ScoreModel, dtype: torch.dtype) -> Any:
    """A model with bound conditions for states in this dtype."""
    return bound if dtype == model.dtype or not has_dtype(model) else InDtype(bound, model.dtype)


def _check_start(
    model: ScoreModel, n: int | None, x_init: Tensor | None, dtype: torch.dtype | None
) -> tuple[int, Tensor | None, torch.dtype, torch.device]:
    if dtype is not None and (not isinstance(dtype, torch.dtype) or not dtype.is_floating_point):
        raise ConfigError(f"dtype = {dtype!r}, expected torch.float32 or another dtype of floating-point numbers, or None")
    if dtype is None:
        dtype = model.dtype if x_init is None or has_dtype(model) else x_init.dtype
        dtype = torch.promote_types(dtype, torch.float32) if has_dtype(model) else dtype
    if x_init is not None:
        check_data(x_init, model.event_shape, "x_init")
        check_same_kind(model, x_init.to(model.dtype), "x_init")
        if n is not None and n != len(x_init):
            raise ConfigError(f"n = {n}, but x_init has {len(x_init)} samples: leave n out")
        return len(x_init), x_init.detach().to(dtype), dtype, x_init.device
    if n is None:
        raise ConfigError("neither n nor x_init was given: how many samples?")
    check_memory(8 * check_integer(n, "n", 0) * math.prod(model.event_shape), f"n = {n} samples of shape {model.event_shape}")
    return n, None, dtype, model.device

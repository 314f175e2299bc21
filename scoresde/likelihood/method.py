"""How log p is computed, once its arguments are checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer, theirs
from scoresde.core.digest import digest
from scoresde.core.noise import Noise, check_seed
from scoresde.core.tensors import expand
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ScaleError, ShapeError, SolverError
from scoresde.likelihood import budget, flow
from scoresde.likelihood.augmented import Augmented
from scoresde.likelihood.report import settings_of
from scoresde.likelihood.traces import Traces, check_kind
from scoresde.models.base import ScoreModel, check_model, check_same_kind
from scoresde.models.batches import batch_size_of
from scoresde.models.exact import ExactModel
from scoresde.solvers.adaptive import AdaptiveODE
from scoresde.solvers.base import check_solver
from scoresde.solvers.foreign import TorchDiffEq
from scoresde.solvers.loop import solve
from scoresde.solvers.planning import make_times
from scoresde.solvers.reference import ReferenceSolver, model_reference

if TYPE_CHECKING:
    from scoresde.data.transform import Transform
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Solver

EXACT_UP_TO, EXACT_MODEL_UP_TO = 16, 64  # dimensions, up to which the exact trace is the default

Run = Callable[[ScoreModel, Tensor, Noise, Traces], tuple[Tensor, Tensor]]  # -> latent, delta by column


class Method(NamedTuple):
    """How log p is computed: what is made of the arguments of ``log_prob``, once they are checked."""

    solver: Solver
    size: int
    run: Run
    judges: tuple[tuple[Run, bool], ...]  # that tell its errors, see ``budget.judges``; and whether it is the judge that errs
    log_prior: Callable[[Tensor], Tensor]
    prior: Any
    divergence: str
    probes: int
    seed: int
    settings: dict[str, Any]  # for a report


def method(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    divergence: str | None = None,
    probes: int = 1,
    prior: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    check: int = 0,
    check_steps: int | None = None,
) -> Method:
    """Checks the arguments of ``log_prob``, and raises as it does."""
    check_model(model)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    solver = default_solver(model, steps is None and check_steps is None) if solver is None else solver
    divergence = default_divergence(model, divergence, probes)
    check_solver(solver)
    if steps is not None and solver.loosened(10.0) is not None:
        raise ConfigError(
            f"steps = {steps!r} with {solver!r}, which chooses its own steps: leave steps out, and give its tolerances; or take a solver "
            "with steps, ReferenceSolver() (for a model with a reference) or Heun() for instance"
        )
    check_kind(divergence, probes, model.reference)
    size = batch_size_of(model, batch_size)
    check_seed(seed)
    log_prior = check_prior(prior, model, solver, model.sde.levels([model.sde.t_max])[0])
    check_integer(check, "check", 0)
    run = _run(model, solver, steps)
    others: list[budget.Judge] = []
    if check_steps is not None:
        others = [budget.finer(solver, steps, check_steps, check)]
    elif check:
        others = budget.judges(model, solver, steps)
    judges = tuple((_run(model, other.solver, other.steps), other.looser) for other in others)
    settings = settings_of(model, x) | {
        "solver": repr(solver),
        "steps": flow.STEPS if steps is None and isinstance(solver, ReferenceSolver) else steps,
        "divergence": divergence,
        "probes": 0 if divergence == "exact" else probes,
        "prior": "standard" if prior is None else prior if isinstance(prior, str) else "custom",
        "t_min": model.sde.t_min,
        "t_max": model.sde.t_max,
        "seed": seed,
    }
    if others:
        settings["judges"] = [other.what for other in others]
    if check_steps is not None:
        settings["check_steps"] = check_steps
    return Method(solver, size, run, judges, log_prior, prior, divergence, probes, seed, settings)


def identity(model: ScoreModel, how: Method, ids: np.ndarray, check: int, cond: dict[str, Any]) -> dict[str, Any]:
    """All that the numbers of a sample depend on, in JSON: settings, and digests of what these do not tell apart.

    The model counts by its weights, its classes and its public attributes, ``parameterization`` among them; the package by version.
    """
    settings = {key: value for key, value in how.settings.items() if key != "versions"}
    more = {"scoresde": how.settings["versions"]["scoresde"], "class": type(model).__qualname__, "model": digest(model)}
    more |= {"check": check, "batch_size": how.size, "ids": digest(ids), "conditions": digest(cond) if cond else None}
    more |= {"reference": None if model.reference is None else digest(model.reference), "solver_fields": digest(how.solver)}
    return settings | more | {"prior_function": digest(how.prior) if callable(how.prior) else None}


def _run(model: ScoreModel, solver: Solver, steps: int | None) -> Run:
    return _in_reference(model, solver, steps) if isinstance(solver, ReferenceSolver) else _by_velocity(model, solver, steps)


def _in_reference(model: ScoreModel, solver: ReferenceSolver, steps: int | None) -> Run:
    """By the predictor-corrector method in reference coordinates."""
    plan = flow.plan(model, solver, steps)

    def run(bound: ScoreModel, x: Tensor, noise: Noise, traces: Traces) -> tuple[Tensor, Tensor]:
        z, integral = flow.integrate(bound, x, plan, traces)
        bad = ~(z.flatten(1).isfinite().all(1) & integral.isfinite().all(1))
        if bool(bad.any()):
            ids = [int(noise.ids[row]) for row in bad.nonzero().flatten().tolist()]
            message = (
                f"{solver!r}: log p of {len(ids)} samples is not finite, ids {ids[:8]}{'...' if len(ids) > 8 else ''}: take more "
                "steps, or check the model at these points"
            )
            if bool(bad.all()):
                raise SolverError(message)
            warnings.warn(message + "; their results are NaN", stacklevel=3)
        latent = flow.latent(plan, z).to(x.dtype)
        return latent.masked_fill(expand(bad, latent), math.nan), integral + flow.volume(plan)

    return run


def _by_velocity(model: ScoreModel, solver: Solver, steps: int | None) -> Run:
    """By a solver of the probability-flow ODE."""
    levels = model.sde.levels(make_times(model.sde, solver, steps, None, model.sde.t_min).flip(0))

    def run(bound: ScoreModel, x: Tensor, noise: Noise, traces: Traces) -> tuple[Tensor, Tensor]:
        y = torch.cat([x.flatten(1).double(), x.new_zeros((len(x), traces.columns), dtype=torch.float64)], dim=1)
        *_, (_, _, end) = solve(Augmented(bound, x, traces), solver, y, levels, noise, keep_failed=True)
        deltas = end[:, x[0].numel() :]
        latent = end[:, : x[0].numel()].to(x.dtype).view(x.shape)
        return latent, deltas

    return run


def default_solver(model: ScoreModel, free: bool) -> Solver:
    """What suits a model, where a user is ``free`` of any number of steps.

    Exact models cost little a call and may be as sharp as they like: there it is one that adapts to each sample.
    """
    if model.reference is None:
        return TorchDiffEq()
    return AdaptiveODE(1e-5, 1e-5) if isinstance(model, ExactModel) and free else ReferenceSolver()


def default_divergence(model: ScoreModel, given: str | None, probes: int) -> str:
    """As given; None is the exact trace in few dimensions, more of them for exact models, unless a number of probes is asked for."""
    if given is not None:
        return given
    exact = math.prod(model.event_shape) <= (EXACT_MODEL_UP_TO if isinstance(model, ExactModel) else EXACT_UP_TO)
    return "exact" if exact and probes == 1 else "hutchinson"


def check_prior(prior: Any, model: ScoreModel, solver: Solver, end: Level) -> Callable[[Tensor], Tensor]:
    """log p at t_max."""
    if prior is None:
        return model.sde.prior_log_prob
    if isinstance(prior, str) and prior == "reference":
        reference = solver.reference or model_reference(model)
        return lambda x: reference.log_prob(x, end.alpha, end.sigma)
    if not callable(prior):
        raise ConfigError(f"prior = {prior!r}, expected None, 'reference' or a function x -> log p")
    return lambda x: _of_own_prior(prior, x)


def _of_own_prior(prior: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """log p of a user's own prior, checked."""
    expected = f"expected log p at t_max in nats, a float tensor of shape ({len(x)},), one number a sample"
    with theirs("the prior that was given", f"; it was called with states x {tuple(x.shape)}, {expected}"):
        log_p = prior(x)
    if not isinstance(log_p, Tensor) or log_p.shape != (len(x),):
        got = f"shape {tuple(log_p.shape)}" if isinstance(log_p, Tensor) else f"a {type(log_p).__name__}"
        raise ShapeError(f"the prior that was given answered {got}, {expected}")
    if not log_p.is_floating_point():
        raise DTypeError(f"the prior that was given answered {log_p.dtype}, {expected}")
    bad = log_p.isnan() | (log_p == math.inf)  # -inf is a density of 0
    if bool(bad.any()):
        kind = "NaN" if bool(log_p.isnan().any()) else "inf"
        raise NonFiniteError(f"the prior that was given answered {kind} for {int(bad.sum())} of {len(x)} states, {expected}")
    return log_p


def check_data_scale(x: Tensor, transform: Transform | None) -> None:
    if transform is None:
        return
    margin = 0.25 * (transform.high - transform.low)
    low, high = (float(v) for v in torch.aminmax(x))
    if low < transform.low - margin or high > transform.high + margin:
        raise ScaleError(
            f"x runs from {low:.4g} to {high:.4g}, but the model was trained on [{transform.low:g}, {transform.high:g}]: "
            "use transform.dequantize(levels) or rescale x; check_scale=False if you mean it"
        )

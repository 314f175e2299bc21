"""Latents: the end at t_max of each sample's path along the probability-flow ODE, and the way back.

The map is one to one (2011.13456, section 4.3): ``decode(model, encode(model, x))`` is x, up to the error of the time steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer
from scoresde.core.doors import checked
from scoresde.core.noise import Noise
from scoresde.core.progress import bar
from scoresde.core.tensors import expand, per_sample_rms
from scoresde.errors import ShapeError
from scoresde.likelihood import flow
from scoresde.models.base import check_model, check_same_kind, inference
from scoresde.models.batches import batch_size_of, in_batches
from scoresde.models.conditions import check_conditions
from scoresde.sampling.sampler import sample
from scoresde.solvers.adaptive import AdaptiveODE
from scoresde.solvers.base import check_solver
from scoresde.solvers.loop import solve
from scoresde.solvers.planning import make_times
from scoresde.solvers.reference import ReferenceSolver

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver

ACCURATE = AdaptiveODE(rtol=1e-5, atol=1e-5)  # of a model without a reference


@checked
def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """The latents of x: states at t_max, about N(0, prior_std^2 I), (B, *event_shape), in the dtype of x.

    Args:
        model: a ScoreModel.
        x: samples (B, *event_shape) at t_min, in model space.
        solver: None is ``ReferenceSolver()`` for a model with a Gaussian reference, else ``AdaptiveODE(1e-5, 1e-5)``; or one that
            ``log_prob`` takes.
        steps: network calls of ``ReferenceSolver`` (None: 40), steps of others.
        batch_size, progress, **cond: as for ``sample``.

    Raises:
        ConfigError, ShapeError, DTypeError, DeviceError, NonFiniteError: wrong arguments.
        SolverError: a failed solve.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, encode, dtype=model.dtype)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    solver = _solver(model, solver)
    n = len(x)
    size = batch_size_of(model, batch_size)
    plan: Any = None
    if isinstance(solver, ReferenceSolver):
        plan = flow.plan(model, solver, steps)
    else:
        levels = model.sde.levels(make_times(model.sde, solver, steps, None, model.sde.t_min).flip(0))
    with inference(model), bar(progress, -(-n // size), "encoding") as advance:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # in here: under inference_mode nothing made outside can be written to
        for batch in in_batches(model, cond, n, size, x.device):
            bound, part = batch.model, x[batch.place]
            part = part.clone() if part.is_inference() else part
            if plan is not None:
                z, _ = flow.integrate(bound, part, plan, None)
                out[batch.place] = flow.latent(plan, z).to(x.dtype)
            else:
                noise = Noise(0, batch.rows, model.event_shape, x.dtype, x.device)
                *_, (_, _, out[batch.place]) = solve(bound, solver, part, levels, noise)
            advance()
    return out


@checked
def decode(
    model: ScoreModel,
    z: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """The samples of latents z (B, *event_shape) at t_max: the inverse of ``encode``, with its arguments and errors.

    It ends at the SDE's t_min, where ``encode`` starts, and not at t_end as ``sample`` does.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, decode, dtype=model.dtype)
    solver = _solver(model, solver)
    steps = flow.STEPS if steps is None and isinstance(solver, ReferenceSolver) else steps
    return sample(
        model, x_init=z, solver=solver, steps=steps, t_end=model.sde.t_min, batch_size=batch_size, progress=progress, **cond
    )


@checked
def round_trip_error(model: ScoreModel, x: Tensor, **arguments: Any) -> Tensor:
    """The root mean square of decode(encode(x)) - x over each sample, (B,); arguments as for ``encode``."""
    return per_sample_rms(decode(model, encode(model, x, **arguments), **arguments) - x)


@checked
def interpolate(model: ScoreModel, a: Tensor, b: Tensor, n: int = 8, **arguments: Any) -> Tensor:
    """Samples on the way from a to b, (n, B, *event_shape): their latents on the great circle through those of a and b.

    At the angle omega between two latents, the one at s in [0, 1] is (sin((1 - s) omega) z_a + sin(s omega) z_b)/sin(omega): its norm
    is between theirs, as that of a latent should be, while that of the straight way falls by a factor of up to sqrt 2 (Shoemake 1985).
    The first and the last are a and b after a round trip.

    Args:
        model: a ScoreModel.
        a, b: samples (B, *event_shape).
        n: samples on each way, ends included; at least 2.
        **arguments: as for ``encode``; conditions are those of the B ways.

    Raises:
        As ``encode``; ShapeError if a and b differ in shape, ConfigError for n < 2.
    """
    check_integer(n, "n", 2, 100_000)
    if not isinstance(b, Tensor) or not isinstance(a, Tensor) or a.shape != b.shape:
        raise ShapeError(f"a has shape {_shape(a)} and b {_shape(b)}: expected the same")
    z_a, z_b = (encode(model, x, **arguments) for x in (a, b))
    ways = [slerp(z_a, z_b, i / (n - 1)) for i in range(n)]
    return torch.stack([decode(model, z, **arguments) for z in ways])


def slerp(a: Tensor, b: Tensor, s: float) -> Tensor:
    """The point at s in [0, 1] on the great circle from a to b, sample by sample; on the straight line where they are parallel."""
    u, v = a.double().flatten(1), b.double().flatten(1)
    cos = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    omega = cos.clamp(-1, 1).acos()
    sin = omega.sin()
    straight = sin < 1e-6
    safe = torch.where(straight, 1.0, sin)
    left = torch.where(straight, 1 - s, ((1 - s) * omega).sin() / safe)
    right = torch.where(straight, s, (s * omega).sin() / safe)
    return (expand(left, a) * a.double() + expand(right, b) * b.double()).to(a.dtype)


def _solver(model: ScoreModel, solver: Solver | None) -> Solver:
    if solver is None:
        return ACCURATE if model.reference is None else ReferenceSolver()
    check_solver(solver)
    return solver


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__

"""The parts of the error budget of log p: time steps, the cut at t_min, the prior; and means with their errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scoresde.core.checks import check_positive_int
from scoresde.errors import ConfigError
from scoresde.likelihood import flow
from scoresde.models.exact import ExactModel
from scoresde.solvers.adaptive import AdaptiveODE
from scoresde.solvers.base import Solver
from scoresde.solvers.foreign import TorchDiffEq
from scoresde.solvers.reference import ReferenceSolver, model_reference

if TYPE_CHECKING:
    from scoresde.likelihood.traces import Traces
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.levels import Level


LARGE, LARGE_PER_DIMENSION = 0.02, 0.0005  # nats a sample


def steps_of(solver: Solver, steps: int | None) -> int:
    """What ``steps`` means for a solver with fixed steps: None is its own number."""
    if steps is not None:
        return steps
    return flow.STEPS if isinstance(solver, ReferenceSolver) else solver.default_steps


class Judge(NamedTuple):
    """What another solve says of a solve: its solver and steps, in words, and how often the difference is more than the error.

    A solver that is ``looser`` than the one that is judged errs more, and the difference of the two is an error of its own: the sign
    is the other way round.
    """

    solver: Solver
    steps: int | None
    what: str
    looser: bool = False


def judges(model: ScoreModel, solver: Solver, steps: int | None) -> list[Judge]:
    """By whom the time steps of a solver are judged: by the first one, where that finds a large error by the second one, if any.

    Fixed steps are judged by twice as many, 40 at least. Far from sharp data no number of them will do: paths turn within a
    step, and as many as four times the steps are off by nearly as much. So where the first judge finds a large error, and for exact
    models everywhere, a solver decides that chooses the steps of each sample. Such a one is judged by itself with smaller tolerances.
    """
    double = model.dtype == torch.float64 or isinstance(model, ExactModel)  # exact ones answer in float64, whatever they are asked in
    if solver.loosened(10.0) is None:
        if isinstance(model, ExactModel):
            return [_adaptive(1e-7 if double else 1e-6)]
        more = max(2 * steps_of(solver, steps), flow.STEPS)
        return [Judge(solver, more, f"{more} steps"), _adaptive(1e-4)]
    if not isinstance(solver, (AdaptiveODE, TorchDiffEq)):
        tighter = solver.loosened(0.1)
        return [] if tighter is None else [Judge(tighter, None, "a tenth of the tolerances")]
    least, factor = (1e-12, 0.01) if double else (1e-6, 0.1)  # below, rounding is what is left
    factor = max(factor, least / min(solver.rtol, solver.atol))
    if factor > 0.5:
        return [Judge(replace(solver, rtol=10 * solver.rtol, atol=10 * solver.atol), None, "tolerances ten times as large", looser=True)]
    tight = replace(solver, rtol=factor * solver.rtol, atol=factor * solver.atol)
    return [Judge(tight, None, f"rtol = {tight.rtol:.2g}")]


def _adaptive(tolerance: float) -> Judge:
    return Judge(AdaptiveODE(tolerance, tolerance), None, f"AdaptiveODE({tolerance:g}, {tolerance:g})")


def is_large(error: Tensor, D: int) -> Tensor:
    """Whether a first judge's finding, in nats a sample, is for the second one."""
    return error.abs() > LARGE + LARGE_PER_DIMENSION * D


def finer(solver: Solver, steps: int | None, check_steps: Any, check: int) -> Judge:
    """The same solver with more steps: its own error is taken for 0. Raises ConfigError unless that makes sense."""
    if solver.loosened(10.0) is not None:
        raise ConfigError(f"check_steps = {check_steps!r} and {solver!r}, which chooses its own steps: leave check_steps out")
    steps, more = steps_of(solver, steps), check_positive_int(check_steps, "check_steps")
    if more <= steps or not check:
        raise ConfigError(f"check_steps = {more} with steps = {steps} and check = {check}: expected more steps, for a check of 1 or more")
    return Judge(solver, more, f"{more} steps")


def cut(model: ScoreModel, x: Tensor, first: Level, traces: Traces) -> Tensor:
    """log p_0 - log p at t_min, both at x, to first order: with y = x/alpha, s = sigma/alpha and the density q_s of y, the heat equation
    d log q_s/d(s^2) = (Laplacian of log q_s + |grad log q_s|^2)/2 gives -(alpha tr(dD/dx) - D + |eps|^2)/2; the rest is alpha < 1."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        x0, eps = model.predict(x, first)
    trace, products = traces(x0, x, 1 / first.alpha)
    model.count_vjp(products)
    D = x[0].numel()
    eps, flat = eps.detach().double().flatten(1), x.detach().double().flatten(1)
    shrunk = D * math.log(first.alpha) + (1 - first.alpha) / first.sigma * (eps * flat).sum(1)
    return -0.5 * (first.alpha * trace.mean(1) - D + eps.square().sum(1)) + shrunk


def mismatch(prior: Any, model: ScoreModel, solver: Solver, end: Level, latent: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """log of a prior with the moments of the data at t_max, less log of the prior, (B,); and what to make that of, or nothing.

    Where the moments are those of all latents u, in units of the prior's, it is NaN, and the second answer is (B, 2): sums over the
    dimensions of u and of u^2, for ``mismatch_of_all``.
    """
    unknown, none = torch.full_like(log_p, math.nan), log_p.new_empty((0, 2))
    if prior is None and model.reference is not None:
        return model.reference.log_prob(latent, end.alpha, end.sigma) - log_p, none
    if prior is not None and prior != "reference":
        return unknown, none
    u = latent.double().flatten(1) / end.sigma
    if prior == "reference":
        reference = (solver.reference or model_reference(model)).to(latent.double())
        v = end.alpha**2 * reference.variance + end.sigma**2
        u = (reference.analyse(latent.double() - end.alpha * reference.mean) / v.sqrt()).flatten(1)
    return unknown, torch.stack([u.sum(1), u.square().sum(1)], dim=1)


def mismatch_of_all(sums: Tensor, D: int) -> Tensor:
    """The mismatch (B,) from the sums (B, 2) of all samples: with the mean m and the variance v of all u it is, for each,
    sum(u^2 - (u - m)^2/v - log v)/2 = (sum u^2 - (sum u^2 - 2 m sum u + D m^2)/v - D log v)/2. Failed samples do not count."""
    known = sums[sums.isfinite().all(1)]
    n = len(known) * D
    if n < 2:
        return torch.full_like(sums[:, 0], math.nan)
    first, second = known.sum(0).tolist()
    m = first / n
    v = (second - n * m * m) / (n - 1)
    if not v > 0:
        return torch.full_like(sums[:, 0], math.nan)
    return 0.5 * (sums[:, 1] - (sums[:, 1] - 2 * m * sums[:, 0] + D * m * m) / v - D * math.log(v))


def mean(x: Tensor) -> float:
    """The mean; NaN of nothing."""
    return float(x.mean()) if x.numel() else math.nan


def known(x: Tensor) -> float:
    """The mean of what is not NaN."""
    return mean(x[~x.isnan()])


def mean_error(x: Tensor) -> float:
    """The standard error of the mean of x (B,); NaN of a single one."""
    return float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan


def corrected(value: Tensor, error: Tensor) -> tuple[float, float]:
    """The mean of values (B,) without their errors, known of m of them (NaN for the others), and its standard error.

    A two-level estimate, mean of all values less mean of the known errors: its variance is var(v)/B + var(e)/m - 2 cov(v, e)/B
    (Giles 2008, Multilevel Monte Carlo path simulation, Operations Research 56(3); there with other samples on the second level).
    """
    some = ~error.isnan()
    e, v = error[some], value[some]
    if len(e) < 2:
        return mean(value) - mean(e), math.nan
    covariance = float(((v - v.mean()) * (e - e.mean())).sum() / (len(e) - 1))
    variance = float(value.var()) / len(value) + float(e.var()) / len(e) - 2 * covariance / len(value)
    return mean(value) - mean(e), math.sqrt(max(variance, 0.0))


def root_sum(x: Tensor) -> float:
    """The standard error of a mean of independent numbers with standard errors x (B,)."""
    return float(x.square().sum().sqrt()) / len(x)

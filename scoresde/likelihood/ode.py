r"""log p in nats by the probability-flow ODE.

.. math:: \log p(x) = \log p_T(x_T) + \int_{t_\mathrm{min}}^{t_\mathrm{max}} \nabla \cdot v(x_t, t)\, dt

where v is the velocity and x_T the end of its ODE started at x (2011.13456, eq. 39). log p is the density at t_min, of data
blurred by sigma(t_min).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core import pieces
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids
from scoresde.core.progress import bar
from scoresde.core.tensors import expand
from scoresde.likelihood import budget
from scoresde.likelihood.method import check_data_scale, identity, method
from scoresde.likelihood.report import warn_of_time_steps
from scoresde.likelihood.results import LogProb
from scoresde.likelihood.traces import Traces
from scoresde.models.base import check_model, inference
from scoresde.models.batches import bind_conditions
from scoresde.models.conditions import check_conditions, check_lengths, slice_cond
from scoresde.models.counting import count_evaluations

if TYPE_CHECKING:
    from scoresde.likelihood.method import Method, Run
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver


@checked
def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    divergence: str | None = None,
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | str | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    check: int = 0,
    check_steps: int | None = None,
    check_scale: bool = True,
    progress: bool = False,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    share: bool = False,
    **cond: Any,
) -> LogProb:
    """log p(x) in nats under the model's probability-flow ODE.

    Value and vector-Jacobian products come from one network call each evaluation. The state is float64, the network runs in its
    own dtype. The probes are fixed along the path, a function of (seed, sample id).

    Args:
        model: a ScoreModel.
        x: model-space floats (B, *event_shape), of the dtype and device of the model.
        solver: ``ReferenceSolver()``, which takes ``steps`` network calls, each sample alone; ``TorchDiffEq``, ``AdaptiveODE``, or
            ``Euler``, ``Heun``, ``RK4`` with ``steps`` on the SDE's default grid. None is ``ReferenceSolver()`` for a model with a
            Gaussian reference, else ``TorchDiffEq()``; and ``AdaptiveODE(1e-5, 1e-5)`` for an ``ExactModel`` without ``steps``, since
            fixed steps are tens of nats off far from sharp modes.
        steps: of a solver with fixed steps; None is 40 network calls of ``ReferenceSolver``, the solver's own number for others.
        divergence: "hutchinson" (unbiased, one vjp a probe), "reference" (its vectors in the basis of the Gaussian reference),
            "gaussian", "hutch++" (probes are all vjps, at least 3), or "exact" (D vjps); see ``traces.py``. None is "exact" up to 16
            dimensions, and up to 64 for an ``ExactModel``, if no more than one probe is asked for; else "hutchinson".
        probes: random vectors of the trace estimate; two or more (six or more for "hutch++") give a standard error. A model with a
            reference has its Hutchinson estimates corrected by half of the error that they make for the reference.
        prior: None for N(0, prior_std^2 I); "reference" for N(alpha m, alpha^2 C + sigma^2 I) of the model's reference at t_max; or
            a function x -> log p (B,), log p at t_max of an exact model for instance.
        seed, ids: the probes of sample i are a function of (seed, ids[i]); ids None is 0..B-1.
        batch_size: samples solved at once; None: a function of the event shape. With ``TorchDiffEq`` a batch shares its step sizes,
            so log p depends on batch mates within the tolerance; with all others it does not.
        check: on how many samples, the first ones, to measure the errors of the time steps and of the cut at t_min. They are solved
            again with twice the steps, at least 40, and by ``AdaptiveODE`` where that finds more than 0.02 nats and 0.0005 a dimension,
            or for exact models; a solver that chooses its steps is compared with smaller tolerances (``budget.judges``). ``report()``
            of the result shows the whole budget; it warns where the time steps err by more than the standard error of the mean.
        check_steps: a number of steps, larger than ``steps``, to solve the checked samples with instead of all that.
        check_scale: refuse x far outside the range of the model's transform.
        progress: show a progress bar; with ``out`` or ``share`` also the mean so far.
        out: a file, or a folder for its ``rows.jsonl``, to which every finished batch is added; the same call goes on where it
            stopped, whatever stopped it. All processes must see it.
        overwrite: replace what ``out`` holds, be it of the same arguments: such a call starts anew every time, and goes on with nothing.
        share: under ``torchrun`` all processes call this with the same arguments; each batch is computed by one of them, and all
            return the whole.
        **cond: for the network; a tensor with first dimension B is per sample.

    Raises:
        DTypeError, ShapeError, NonFiniteError, DeviceError: a wrong x (integers above all: use ``bits_per_dim``), a wrong answer of
            a prior of your own.
        ScaleError: x far outside the range of the model's transform.
        ConfigError: a wrong argument, a prior of your own that raised; ``out`` holds work with other arguments.
        SolverError: a failed solve, here or in another process. ``ReferenceSolver`` and ``AdaptiveODE`` fail for single samples:
            log p is NaN for these, and a warning names them.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, log_prob, dtype=model.dtype)
    given: dict[str, Any] = {"solver": solver, "steps": steps, "divergence": divergence, "probes": probes, "prior": prior}
    how = method(model, x, seed=seed, batch_size=batch_size, check=check, check_steps=check_steps, **given)
    if check_scale:
        check_data_scale(x, model.transform)
    id_array = check_ids(ids, len(x))
    if out is None and not share:
        found = evaluate(model, x, how, id_array, check, cond, progress)
        warn_of_time_steps(found.report(), steps)
        return found
    n = len(x)
    check_lengths(cond, n)

    def piece(rows: np.ndarray) -> dict[str, Any]:
        some = slice_cond(cond, lambda v: v[torch.from_numpy(rows).to(v.device)], n)
        few = min(max(check - int(rows[0]), 0), len(rows))
        return evaluate(model, x[rows], how, id_array[rows], few, some).to_record(latents=True)

    decisive = identity(model, how, id_array, check, cond)
    keep: dict[str, Any] = {"out": out, "overwrite": overwrite, "share": share, "show": progress}
    records = pieces.run(piece, id_array, how.size, decisive, values=lambda r: LogProb.values(r, latents=True), **keep)
    found = LogProb.join(records, how.settings, x)
    warn_of_time_steps(found.report(), steps)
    return found


def evaluate(
    model: ScoreModel, x: Tensor, how: Method, ids: np.ndarray, check: int, cond: dict[str, Any], progress: bool = False
) -> LogProb:
    """``log_prob`` of x in this process, once its arguments are checked."""
    with inference(model):
        return _evaluate(model, x.clone() if x.is_inference() else x, how, ids, check, cond, progress)


def _evaluate(
    model: ScoreModel, x: Tensor, how: Method, ids: np.ndarray, check: int, cond: dict[str, Any], progress: bool
) -> LogProb:
    n = len(x)
    first, end = model.sde.levels([model.sde.t_min, model.sde.t_max])

    def draw(rows: np.ndarray) -> tuple[Noise, Traces]:
        noise = Noise(how.seed, ids[rows], model.event_shape, x.dtype, x.device)
        return noise, Traces.draw(how.divergence, how.probes, noise, model.reference)

    def integrate(run: Run, rows: np.ndarray, show: bool = False) -> tuple[Tensor, Tensor]:
        """Latents and delta, by column, of some samples."""
        parts: list[tuple[Tensor, Tensor]] = []
        with bar(show, -(-len(rows) // how.size), "log-likelihood") as advance:
            for start in range(0, len(rows), how.size):
                some = rows[start : start + how.size]
                noise, traces = draw(some)
                latent, deltas = run(bind_conditions(model, cond, some, n, x.device), x[some], noise, traces)
                parts.append((latent, deltas + traces.control(model.reference, first, end)))
                advance()
        latent, deltas = (torch.cat(column) for column in zip(*parts, strict=True))
        return latent, deltas

    def prior_of(latent: Tensor) -> Tensor:
        """log p at t_max, NaN where a per-sample solver failed; any other raises."""
        failed = ~latent.flatten(1).isfinite().all(1)
        # in the same batches as all else: a matrix product is not bit-stable across batch sizes
        parts = [how.log_prior(part).double() for part in latent.masked_fill(expand(failed, latent), 0.0).split(how.size)]
        return torch.cat(parts).masked_fill(failed, math.nan)

    def errors(run: Run, looser: bool, rows: np.ndarray) -> Tensor:
        """Of these samples, by another solve."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*their results are NaN")  # those of the judge, not ours
            other, other_deltas = integrate(run, rows)
        found = value[rows] - (prior_of(other) + other_deltas.mean(1))
        return -found if looser else found

    with count_evaluations(model) as calls:
        latent, deltas = integrate(how.run, np.arange(n), progress)
        log_p = prior_of(latent)
    columns, delta = deltas.shape[1], deltas.mean(1)
    value = log_p + delta
    std_error = torch.zeros_like(delta)
    if how.divergence != "exact":  # of one column: NaN
        std_error = deltas.std(1) / math.sqrt(columns) if columns > 1 else torch.full_like(delta, math.nan)
    discretization, cut = (torch.full_like(value, math.nan) for _ in range(2))
    few = np.arange(min(check, n))
    with count_evaluations(model) as more:
        for run, looser in how.judges if len(few) else ():
            worst = few if run is how.judges[0][0] else few[budget.is_large(discretization[few], x[0].numel()).cpu().numpy()]
            if len(worst):
                found = errors(run, looser, worst)
                discretization[worst] = torch.where(found.isnan(), discretization[worst], found)
        if len(few):
            cut[few] = budget.cut(bind_conditions(model, cond, few, n, x.device), x[few], first, draw(few)[1])
    parts = zip(latent.split(how.size), log_p.split(how.size), strict=True)
    pairs = [budget.mismatch(how.prior, model, how.solver, end, z, log_p_z) for z, log_p_z in parts]
    mismatch, sums = (torch.cat(column) for column in zip(*pairs, strict=True))
    if len(sums):
        mismatch = budget.mismatch_of_all(sums, x[0].numel())
    std_error = std_error.masked_fill(log_p.isnan(), math.nan)
    nfe, check_nfe = calls.a_sample(n), more.a_sample(len(few))
    vjp = nfe * calls.vjp / max(calls.forward, 1)
    settings = how.settings | {"nfe": nfe, "vjp": vjp}
    return LogProb(value, log_p, delta, latent, std_error, nfe, vjp, mismatch, discretization, cut, check_nfe, settings, sums)

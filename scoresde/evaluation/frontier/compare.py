r"""The frontier of quality against network calls: any solver, on any grid, at any budget, with the noise floor and what to fix.

``frontier`` draws the same number of samples with every solver, from the same noise, and judges them. Two kinds of figures:

- distances between sets of samples (sliced Wasserstein, energy, ...): to real or exact samples. They hold everything that is wrong,
  and none goes below its noise floor, what real samples get.
- pathwise errors, for deterministic solvers: the distance |x - x*| of each sample to where the model's own probability-flow ODE
  leads from the same noise, converged. They hold what the solver does wrong alone, and have no floor.

What is wrong with samples comes apart as score error + prior error + truncation error + discretization error; see
``Frontier.decomposition``. Only the last is the solver's.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_calls, check_data, check_integer, check_memory, check_positive_int
from scoresde.core.digest import digest, plain_repr, solver_digest
from scoresde.core.doors import checked
from scoresde.core.noise import check_seed
from scoresde.core.progress import bar
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.evaluation.features import FeatureExtractor, features_name
from scoresde.evaluation.frontier.distances import NEIGHBOURS
from scoresde.evaluation.frontier.jobs import make_jobs
from scoresde.evaluation.frontier.result import Frontier
from scoresde.evaluation.frontier.solve import Setting, plan, resolved
from scoresde.evaluation.frontier.store import Store
from scoresde.evaluation.frontier.work import Samples, Work
from scoresde.models.base import check_model
from scoresde.models.batches import batch_size_of
from scoresde.models.conditions import check_conditions
from scoresde.models.exact import Drawn, ExactModel
from scoresde.sdes.grid import default_end, uniform
from scoresde.solvers.base import check_solver
from scoresde.solvers.corrector import Langevin, PredictorCorrector
from scoresde.solvers.foreign import TorchDiffEq
from scoresde.solvers.loop import check_noise
from scoresde.solvers.multistep import DEIS, DPMSolverPP, UniPC
from scoresde.solvers.one_step import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.runge_kutta import Euler, Heun
from scoresde.solvers.stochastic_adams import SASolver, StochasticExponential

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.jobs import Job
    from scoresde.models.base import ScoreModel

NFE = (5, 8, 10, 15, 20, 35, 50, 100)

SOLVERS: tuple[Any, ...] = (  # the best that is known for the model, and well-known ones
    "auto",
    Euler(),
    DDIM(),
    Heun(),
    DPMSolverPP(2),
    DPMSolverPP(3),
    UniPC(),
    DEIS(),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    SASolver(),
    StochasticExponential(),
    TorchDiffEq(rtol=1e-1, atol=1e-1),
    TorchDiffEq(rtol=1e-2, atol=1e-2),
    TorchDiffEq(rtol=1e-3, atol=1e-3),
)


@checked
def frontier(
    model: ScoreModel,
    reference: Tensor | None = None,
    *,
    solvers: Any = None,
    nfe: int | Sequence[int] = NFE,
    samples: int | None = None,
    seed: int = 0,
    noise: str = "independent",
    grids: Callable[..., Tensor] | Iterable[Any] | Mapping[str, Any] | None = None,
    pool: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    transform: Transform | None = None,
    paths: int | None = None,
    converged: Any = None,
    t_end: float | None = None,
    projections: int = 128,
    resamples: int = 200,
    splits: int = 10,
    batch_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **cond: Any,
) -> Frontier:
    """Samples with every solver, on every grid, at every budget of network calls, and measures what comes out.

    A solver takes as many steps as its budget allows; what they cost is learned by counting. A solver that chooses its own steps (an
    adaptive one: its ``default_steps`` is 1) runs once, whatever the budgets: give several, with several tolerances. All rows start
    from the same noise, and each is a function of its own solver, grid and budget and of the settings: not of other rows. A row that
    fails holds the reason.

    Exact models (with a ``target``) are judged by fresh samples of p at t_end unless a reference is given: pathwise errors, sliced
    Wasserstein and energy distance, mean log p and occupancy of modes. Others by real samples: pathwise errors, sliced Wasserstein and
    energy distance, mean discrepancy, and Frechet distance, precision and recall in ``features``.

    Distances are taken in model space; integer levels are dequantized first (uniform noise within each bin, as in training), so
    that real samples and a perfect model's have the same distribution. A model may fall below the noise floor by chance, or by
    copying the reference, which therefore must not be in the training data.

    Args:
        model: a ScoreModel.
        reference: real samples, held out of training (M, *event_shape): levels (with ``transform``) or model-space floats.
        solvers: one, or several: instances, (solver, grid) pairs, "auto", or a dict of them by label. A ``Recipe`` runs once, at
            its own budget on its own times. "auto" is what ``sample`` makes of it for each budget; ``Row.solver`` says what that
            was. None: ``SOLVERS``, "auto" and fifteen well-known ones.
        nfe: budgets, network calls a sample; or one.
        samples: of each row; None: as many as the reference has, at most 1,000 and half of the pool; 2,000 without a reference.
        seed: of all noise and of resampling; the noise is the same for all.
        noise: of stochastic solvers, as for ``sample``: with "path" all budgets follow one Brownian path a sample, so that a line
            shows what more steps do and not other draws. A draw then costs 20 independent ones: nothing beside most networks, but
            five to ten times all else for an exact model of a few dimensions.
        grids: functions, or one, (sde, n, start=None, end=None) -> times to cross the solvers with, or a dict of them by name; None among
            them, or instead of them, is the solver's own grid, or the SDE's. What shares a name gets a number.
        pool: other real samples of the same kind, at least 2 ``samples``, for the noise floors; the training data will do.
        features: samples (B, *event) in model space -> (B, F); ``scoresde.features.fit_features`` trains one.
        transform: of integer levels; None: that of the model.
        paths: samples of each row that are compared with the converged ODE; None: at most 1,000; 0: no pathwise errors and no parts.
        converged: the solver of those; None: dopri8 at 1e-10 in float64 for an exact model, dopri5 at 1e-5 for others.
        t_end: where to stop; None: the SDE's t_end.
        projections: directions of the sliced Wasserstein distance.
        resamples: of bootstrap intervals.
        splits: sets of real samples for each noise floor.
        batch_size: as for ``sample``.
        out: file of JSON lines that finished rows are added to, and read from by a later call with the same settings. A row is
            found again by what its solver and grid are and do, not by their names: after ``tune`` or an edit it is made anew.
        progress: show a progress bar.
        **cond: for the network; a tensor with first dimension ``samples`` is per sample.

    Raises:
        ConfigError: arguments that make no sense, no reference for a model that is not exact, levels without a transform, a file of
            other settings.
        ShapeError, DTypeError, NonFiniteError: a wrong reference or pool, conditions of another number of samples.
        CheckpointWriteError: ``out`` cannot be written.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, frontier, dtype=model.dtype)
    check_seed(seed)
    check_noise(noise)
    target = model.target if isinstance(model, ExactModel) and isinstance(model.target, Drawn) else None
    if reference is None and target is None:
        raise ConfigError("no reference was given, and the model is not exact: give real samples that were held out of training")
    if transform is None and isinstance(reference, Tensor) and not reference.is_floating_point():
        transform = model.transform
    end = default_end(model.sde) if t_end is None else t_end
    end = float(uniform(model.sde, 1, end=end)[-1])  # checks it
    given = [nfe] if isinstance(nfe, (int, str)) or not isinstance(nfe, Iterable) else nfe
    budgets = [check_calls(check_positive_int(budget, "nfe"), "nfe") for budget in given]
    jobs = make_jobs(model.sde, SOLVERS if solvers is None else solvers, grids, budgets, end)
    real = None if reference is None else _model_space(reference, transform, model, seed, "reference")
    exact_pool = None if pool is None else _model_space(pool, transform, model, seed + 1, "pool")
    if samples is None:
        samples = 2000 if real is None else max(1, min(len(real), 1000, len(real) if pool is None else len(pool) // 2))
    n = check_positive_int(samples, "samples")
    check_memory(8.0 * n * math.prod(model.event_shape), f"samples = {n} of shape {model.event_shape}")
    for name, value, most in (("splits", splits, 100_000), ("projections", projections, 10_000_000), ("resamples", resamples, 1_000_000)):
        check_integer(value, name, 1, most)
    if exact_pool is not None and len(exact_pool) < 2 * n:
        raise ConfigError(f"samples = {n} and a pool of {len(exact_pool)}: expected a pool of at least twice that, to choose from")
    count = min(n, 1000) if paths is None else (0 if paths == 0 else min(check_positive_int(paths, "paths"), n))
    _check_features(features, n, real)
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] not in (1, n):
            raise ShapeError(f"condition {name!r} has shape {tuple(value.shape)} for samples = {n}: expected ({n}, ...)")
    size = batch_size_of(model, batch_size)
    setting = Setting(model, n, seed, end, size, cond, noise)
    data = Samples(setting, real, exact_pool, target, check_positive_int(splits, "splits"))
    if converged is not None:
        check_solver(converged, "converged")
    else:
        converged = TorchDiffEq("dopri8", 1e-10, 1e-10) if target is not None else TorchDiffEq("dopri5", 1e-5, 1e-5)
    settings = {
        "model": f"{type(model).__name__} {digest(model, _levels(model))}",
        "gaussian": repr(model.reference),
        "sde": plain_repr(model.sde),
        "event_shape": list(model.event_shape),
        "samples": n,
        "reference": len(data.reference),
        "reference_digest": digest(data.reference),
        "pool": None if exact_pool is None else f"{len(exact_pool)} {digest(exact_pool)}",
        "transform": None if transform is None else repr(transform),
        "features": _features_text(features),
        "seed": seed,
        "noise": noise,
        "t_end": setting.t_end,
        "paths": count,
        "converged": plain_repr(converged) if count else "none",
        "projections": check_positive_int(projections, "projections"),
        "resamples": check_positive_int(resamples, "resamples"),
        "splits": splits,
        "cond": {name: digest(value) for name, value in cond.items()},
        "batch_size": size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    store = Store(out, settings)
    work = Work(setting, data, target, features, projections, resamples, count, converged, store)
    rows = []
    with bar(progress, len(jobs), "frontier", "solve") as advance:
        for job in jobs:
            key = _key(setting, job)
            advance(0, f"{job.label} {job.grid_name} {job.budget or ''}")
            if key not in store.rows:
                row = work.row(job)
                store.add(key=key, row=row.to_json())
                store.rows[key] = row
            rows.append(dataclasses.replace(store.rows[key], label=job.label, grid=job.grid_name))  # names may be others today
            advance()
        floors, parts, own_error = work.summary()
    settings["converged_error"] = own_error
    return Frontier(tuple(rows), floors, parts, settings, tuple(jobs), model.sde)


def _key(setting: Setting, job: Job) -> str:
    """What a row is found by in a file. "auto" is another solver once the model has been tuned."""
    if not isinstance(job.solver, str):
        return digest(job.key, job.budget)
    try:
        used = resolved(setting, job, plan(setting, job, job.budget or 1))
    except Exception as error:  # the row will say so
        return digest(job.key, job.budget, type(error).__name__)
    return digest(job.key, job.budget, solver_digest(used))


def _levels(model: ScoreModel) -> list[tuple[float, float]]:
    """What the SDE is, whatever its code says: alpha and sigma at some times."""
    sde = model.sde
    return [(t.alpha, t.sigma) for t in sde.levels(torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64, device="cpu"))]


def _features_text(features: Any) -> str:
    name = features_name(features)
    return name if features is None or isinstance(features, FeatureExtractor) else f"{name}, {digest(features)}"


def _check_features(features: Any, n: int, real: Tensor | None) -> None:
    if features is None:
        return
    if not callable(features):
        raise ConfigError(f"features = {features!r}, expected a function (B, *event) -> (B, F), as scoresde.features.fit_features trains")
    if real is not None and min(n, len(real)) <= NEIGHBOURS:
        raise ConfigError(
            f"samples = {n} and a reference of {len(real)}: precision and recall in features need more than {NEIGHBOURS} of each"
        )


def _model_space(x: Tensor, transform: Transform | None, model: ScoreModel, seed: int, name: str) -> Tensor:
    """Real samples as float64 in model space, on the CPU; levels are dequantized."""
    if transform is None:
        return check_data(x, model.event_shape, name).detach().cpu().double()
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor: use torch.as_tensor({name})")
    if not isinstance(transform, Transform):
        raise ConfigError(f"transform = {transform!r}, expected a scoresde.Transform(levels=...), or None")
    return check_data(transform.dequantize(x.cpu(), seed % (1 << 64), dtype=torch.float64), model.event_shape, name)

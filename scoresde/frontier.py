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

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._frontier_report import Frontier, Recommendation
from ._frontier_rows import Row, digest, format_table, label_of, without_nan
from ._frontier_run import Setting, make_jobs
from ._frontier_store import Store
from ._frontier_work import Samples, Work
from ._tensor import check_data, check_positive_int
from .adapters import TorchDiffEq
from .errors import ConfigError
from .features import features_name
from .grid import default_end, uniform
from .model import ScoreModel
from .multistep import DPMSolverPP, UniPC
from .noise import check_seed
from .sampling import _check_model, default_batch_size
from .solvers import DDIM, Ancestral, Euler, EulerMaruyama, Heun, Langevin, PredictorCorrector, ReverseDiffusion, Solver
from .transform import Transform

__all__ = ["NFE", "SOLVERS", "Frontier", "Recommendation", "Row", "format_table", "frontier", "label_of", "without_nan"]

NFE = (5, 8, 10, 15, 20, 35, 50, 100)
SOLVERS: tuple[Solver, ...] = (
    Euler(),
    DDIM(),
    Heun(),
    DPMSolverPP(),
    UniPC(),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    TorchDiffEq(rtol=1e-1, atol=1e-1),
    TorchDiffEq(rtol=1e-2, atol=1e-2),
    TorchDiffEq(rtol=1e-3, atol=1e-3),
)

def frontier(
    model: ScoreModel,
    reference: Tensor | None = None,
    *,
    solvers: Iterable[Any] | Mapping[str, Any] | None = None,
    nfe: Sequence[int] = NFE,
    samples: int | None = None,
    seed: int = 0,
    grids: Iterable[Any] | Mapping[str, Any] | None = None,
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
        solvers: instances, (solver, grid) pairs, "auto", or a dict of them by label; None: ``SOLVERS``, eleven well-known ones.
        nfe: budgets, network calls a sample.
        samples: of each row; None: as many as the reference has, at most 1,000 and half of the pool; 2,000 without a reference.
        seed: of all noise and of resampling; the noise is the same for all.
        grids: functions (sde, n, start=None, end=None) -> times to cross the solvers with, or a dict of them by name; None among
            them, or instead of them, is the solver's own grid, or the SDE's.
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
        out: file of JSON lines that finished rows are added to, and read from by a later call with the same settings.
        progress: show a progress bar.
        **cond: for the network; a tensor with first dimension ``samples`` is per sample.

    Raises:
        ConfigError: arguments that make no sense, no reference for a model that is not exact, levels without a transform, a file of
            other settings.
        ShapeError, DTypeError, NonFiniteError: a wrong reference or pool.
    """
    _check_model(model)
    check_seed(seed)
    target = getattr(model, "target", None)
    target = target if hasattr(target, "log_prob_at") and hasattr(target, "sample") else None
    if reference is None and target is None:
        raise ConfigError("no reference was given, and the model is not exact: give real samples that were held out of training")
    if transform is None and isinstance(reference, Tensor) and not reference.is_floating_point():
        transform = getattr(model, "transform", None)
    end = default_end(model.sde) if t_end is None else t_end
    budgets = [check_positive_int(budget, "nfe") for budget in nfe]
    jobs = make_jobs(model.sde, SOLVERS if solvers is None else solvers, grids, budgets)
    real = None if reference is None else _model_space(reference, transform, model, seed, "reference")
    exact_pool = None if pool is None else _model_space(pool, transform, model, seed + 1, "pool")
    if samples is None:
        samples = 2000 if real is None else max(1, min(len(real), 1000, len(real) if pool is None else len(pool) // 2))
    n = check_positive_int(samples, "samples")
    if exact_pool is not None and len(exact_pool) < 2 * n:
        raise ConfigError(f"samples = {n} and a pool of {len(exact_pool)}: expected a pool of at least twice that, to choose from")
    count = min(n, 1000) if paths is None else (0 if paths == 0 else min(check_positive_int(paths, "paths"), n))
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    setting = Setting(model, n, seed, float(end), size, cond)
    uniform(model.sde, 1, end=setting.t_end)  # checks it
    data = Samples(setting, real, exact_pool, target, check_positive_int(splits, "splits"))
    if converged is None and count:
        converged = TorchDiffEq("dopri8", 1e-10, 1e-10) if target is not None else TorchDiffEq("dopri5", 1e-5, 1e-5)
    settings = {
        "model": f"{type(model).__name__} {digest(model)}",
        "sde": repr(model.sde),
        "event_shape": list(model.event_shape),
        "samples": n,
        "reference": len(data.reference),
        "reference_digest": digest(data.reference),
        "pool": None if exact_pool is None else f"{len(exact_pool)} {digest(exact_pool)}",
        "transform": None if transform is None else repr(transform),
        "features": features_name(features),
        "seed": seed,
        "t_end": setting.t_end,
        "paths": count,
        "converged": repr(converged) if count else "none",
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
    with _bar(progress, len(jobs)) as bar:
        for job in jobs:
            key = digest(job.solver, job.label, job.grid_name, job.grid, job.budget)
            bar(f"{job.label} {job.grid_name} {job.budget or ''}")
            if key not in store.rows:
                row = work.row(job)
                store.add(key=key, row=row.to_json())
                store.rows[key] = row
            rows.append(store.rows[key])
        floors, parts, own_error = work.summary()
    settings["converged_error"] = own_error
    return Frontier(tuple(rows), floors, parts, settings, tuple(jobs), model.sde)


def _model_space(x: Tensor, transform: Transform | None, model: ScoreModel, seed: int, name: str) -> Tensor:
    """Real samples as float64 in model space, on the CPU; levels are dequantized."""
    if transform is None:
        return check_data(x, model.event_shape, name).detach().cpu().double()
    return check_data(transform.dequantize(x.cpu(), seed % (1 << 64), dtype=torch.float64), model.event_shape, name)


class _bar:
    """A tqdm bar over solves, as a context manager that gives a function to go on to the next."""

    def __init__(self, show: bool, total: int) -> None:
        self.bar: Any = None
        self.started = False
        if show:
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                desc="frontier",
                unit="solve",
                leave=False,
                dynamic_ncols=True,
                mininterval=0.3 if sys.stderr.isatty() else 15,  # in a log file every refresh is a line
            )

    def __enter__(self) -> Any:
        return self._next

    def _next(self, what: str) -> None:
        if self.bar is not None:
            self.bar.update(int(self.started))
            self.bar.set_postfix_str(what, refresh=False)
        self.started = True

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

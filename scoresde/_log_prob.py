r"""log p in nats by the probability-flow ODE.

.. math:: \log p(x) = \log p_T(x_T) + \int_{t_\mathrm{min}}^{t_\mathrm{max}} \nabla \cdot v(x_t, t)\, dt

where v is the velocity and x_T the end of its ODE started at x (2011.13456, eq. 39). log p is the density at t_min, of data
blurred by sigma(t_min).
"""

from __future__ import annotations

import base64
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _budget, _density, _shards
from ._augmented import Augmented
from ._bars import bar as _progress
from ._budget import known, mean, mean_error, root_sum
from ._digest import digest
from ._tensor import check_data, check_positive_int, expand
from ._traces import Traces, check_kind
from .adapters import TorchDiffEq
from .errors import ConfigError, ScaleError, SolverError
from .model import ScoreModel, check_same_kind, count_evaluations, inference, slice_cond
from .noise import Noise, check_ids, check_seed
from .reference_solver import ReferenceSolver, model_reference
from .report import Report, Term, settings_of
from .sampling import _bind, _check_model, default_batch_size, make_times, solve
from .sde import Level
from .solvers import Solver, check_solver
from .transform import Transform

Run = Callable[[ScoreModel, Tensor, Noise, Traces], tuple[Tensor, Tensor]]  # -> latent, delta by column


@dataclass(frozen=True)
class LogProb:
    """log p of samples, in nats, with its parts; tensors are float64 of shape (B,).

    Attributes:
        log_prob: prior + delta.
        prior: log density of the latent under the prior.
        delta: the integral of the divergence of the velocity from t_min to t_max.
        latent: the end of each path at t_max, (B, *event_shape), in the dtype of x.
        std_error: standard error of delta over the trace probes; 0 for the exact trace, NaN for a single probe (unknown).
        nfe: network calls, counted, over all batches.
        vjp: vector-Jacobian products, counted.
        mismatch: how much log p would change if the prior had the mean and covariance that the model's reference has at t_max; or,
            without one or for the prior "reference", the mean and variance of these latents (NaN for a prior of your own).
        discretization: estimate of the error of the time steps in log p of the first ``check`` samples, from a solve with half of
            them (a third of the difference for ``ReferenceSolver``, all of it for others) or with ``check_steps``; NaN for the rest.
        cut: estimate of log p of the data without the blur of sigma(t_min), less log p, to first order in sigma^2; of the same.
        check_nfe: network calls for these two.
        settings: what all this was computed with.
        sums: (B, 2), where the mismatch is that of the latents: what is needed of them, see ``_budget``.
    """

    log_prob: Tensor
    prior: Tensor
    delta: Tensor
    latent: Tensor
    std_error: Tensor
    nfe: int
    vjp: int
    mismatch: Tensor
    discretization: Tensor
    cut: Tensor
    check_nfe: int
    settings: dict[str, Any]
    sums: Tensor = field(default_factory=lambda: torch.empty((0, 2), dtype=torch.float64), repr=False)

    def report(self) -> Report:
        """The mean over samples, in nats, with its error budget."""
        return Report(mean(self.log_prob), mean_error(self.log_prob), "nats", self.terms(), self.settings, tuple(self.log_prob.tolist()))

    def terms(self, scale: float = 1.0) -> tuple[Term, ...]:
        """The error budget of the mean of scale times log p."""
        s = abs(scale)
        checked = self.discretization[~self.discretization.isnan()]
        some = f"estimated on {len(checked)} samples" if len(checked) else "not estimated, check = 0"
        by = f"measured with {self.settings['check_steps']} steps" if "check_steps" in self.settings else "by half the steps"
        return (
            Term("data", s * mean_error(self.log_prob), "standard error over the samples (of dequantization and probes too)"),
            Term("probes", s * root_sum(self.std_error), f"standard error of the trace: {self.settings['divergence']}"),
            Term("time steps", s * abs(mean(checked)), f"error of the solver {by}, {some}"),
            Term("  one sample", s * mean(checked.abs()), "the same, mean absolute error of a single sample"),
            Term("prior", scale * known(self.mismatch), "change of the mean if the prior had the moments of the data at t_max"),
            Term("cut", scale * known(self.cut), f"change of the mean without the blur of sigma(t_min), {some}"),
        )

    def to_record(self, latents: bool = False) -> dict[str, Any]:
        """Plain JSON of everything but the settings, and with or without the latents."""
        record: dict[str, Any] = {name: _shards.pack(getattr(self, name).tolist()) for name in COLUMNS}
        if latents:
            record["latent"] = base64.b64encode(self.latent.cpu().flatten().view(torch.uint8).numpy().tobytes()).decode()
        return record | {name: getattr(self, name) for name in COUNTS}

    @classmethod
    def join(cls, records: Sequence[dict[str, Any]], settings: dict[str, Any], like: Tensor) -> LogProb:
        """Of the records of all pieces, in order. ``like``: a tensor of the samples' event shape, dtype and device."""
        rows = {name: [v for r in records for v in _shards.unpack(r[name])] for name in COLUMNS}
        columns = {name: like.new_tensor(row, dtype=torch.float64) for name, row in rows.items()}
        columns["sums"] = columns["sums"].view(-1, 2)
        if len(columns["sums"]):
            columns["mismatch"] = _budget.mismatch_of_all(columns["sums"], like[0].numel())
        counts: dict[str, int] = {name: sum(r[name] for r in records) for name in COUNTS}
        numbers = b"".join(base64.b64decode(r.get("latent", "")) for r in records)
        flat = torch.frombuffer(bytearray(numbers), dtype=like.dtype) if numbers else torch.empty(0, dtype=like.dtype)
        latent = flat.to(like.device).view(-1, *like.shape[1:])
        settings = settings | {"nfe": counts["nfe"], "vjp": counts["vjp"]}
        return cls(latent=latent, settings=settings, **columns, **counts)  # type: ignore[arg-type]


COLUMNS = ("log_prob", "prior", "delta", "std_error", "mismatch", "discretization", "cut", "sums")
COUNTS = ("nfe", "vjp", "check_nfe")


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    divergence: str = "hutchinson",
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
            Gaussian reference, else ``TorchDiffEq()``.
        steps: of a solver with fixed steps; None is 40 network calls of ``ReferenceSolver``, the solver's own number for others.
        divergence: "hutchinson" (unbiased, one vjp a probe), "reference" (its vectors in the basis of the Gaussian reference),
            "gaussian", "hutch++" (probes are all vjps, at least 3), or "exact" (D vjps); see ``scoresde._traces``.
        probes: random vectors of the trace estimate; two or more (six or more for "hutch++") give a standard error. A model with a
            reference has its Hutchinson estimates corrected by half of the error that they make for the reference.
        prior: None for N(0, prior_std^2 I); "reference" for N(alpha m, alpha^2 C + sigma^2 I) of the model's reference at t_max; or
            a function x -> log p (B,), log p at t_max of an exact model for instance.
        seed, ids: the probes of sample i are a function of (seed, ids[i]); ids None is 0..B-1.
        batch_size: samples solved at once; None: a function of the event shape. With ``TorchDiffEq`` a batch shares its step sizes,
            so log p depends on batch mates within the tolerance; with all others it does not.
        check: on how many samples, the first ones, to estimate the errors of the time steps and of the cut at t_min, at half of
            their cost again. ``report()`` of the result shows the whole budget.
        check_steps: a number of steps, larger than ``steps``, to solve the checked samples with instead of half of ``steps``: the error
            of the time steps is then measured and not extrapolated.
        check_scale: refuse x far outside the range of the model's transform.
        progress: show a progress bar; with ``out`` or ``share`` also the mean so far.
        out: a file, or a folder for its ``rows.jsonl``, to which every finished batch is added; the same call goes on where it
            stopped, whatever stopped it. All processes must see it.
        overwrite: replace what ``out`` holds, be it of the same arguments: such a call starts anew every time, and goes on with nothing.
        share: under ``torchrun`` all processes call this with the same arguments; each batch is computed by one of them, and all
            return the whole.
        **cond: for the network; a tensor with first dimension B is per sample.

    Raises:
        DTypeError, ShapeError, NonFiniteError, DeviceError: a wrong x (integers above all: use ``bits_per_dim``).
        ScaleError: x far outside the range of the model's transform.
        ConfigError: a wrong argument; ``out`` holds work with other arguments.
        SolverError: a failed solve, here or in another process. ``ReferenceSolver`` and ``AdaptiveODE`` fail for single samples:
            log p is NaN for these, and a warning names them.
    """
    given: dict[str, Any] = {"solver": solver, "steps": steps, "divergence": divergence, "probes": probes, "prior": prior}
    how = method(model, x, seed=seed, batch_size=batch_size, check=check, check_steps=check_steps, **given)
    if check_scale:
        _check_scale(x, getattr(model, "transform", None))
    id_array = check_ids(ids, len(x))
    if out is None and not share:
        return evaluate(model, x, how, id_array, check, cond, progress)
    n = len(x)
    _bind(model, cond, np.arange(n), n, x.device)  # for its checks

    def piece(rows: np.ndarray) -> dict[str, Any]:
        some = slice_cond(cond, lambda v: v[torch.from_numpy(rows).to(v.device)], n)
        few = min(max(check - int(rows[0]), 0), len(rows))
        return evaluate(model, x[rows], how, id_array[rows], few, some).to_record(latents=True)

    decisive = identity(model, how, id_array, check, cond)
    keep: dict[str, Any] = {"out": out, "overwrite": overwrite, "share": share, "show": progress}
    records = _shards.run(piece, id_array, how.size, decisive, values=lambda r: _shards.unpack(r["log_prob"]), **keep)
    return LogProb.join(records, how.settings, x)


def evaluate(
    model: ScoreModel, x: Tensor, how: Method, ids: np.ndarray, check: int, cond: dict[str, Any], progress: bool = False
) -> LogProb:
    """``log_prob`` of x in this process, once its arguments are checked."""
    n = len(x)
    first, end = model.sde.levels([model.sde.t_min, model.sde.t_max])

    def draw(rows: np.ndarray) -> tuple[Noise, Traces]:
        noise = Noise(how.seed, ids[rows], model.event_shape, x.dtype, x.device)
        return noise, Traces.draw(how.divergence, how.probes, noise, model.reference)

    def integrate(run: Run, few: int, show: bool = False) -> tuple[Tensor, Tensor]:
        """Latents and delta, by column, of the first samples."""
        parts: list[tuple[Tensor, Tensor]] = []
        with _progress(show, -(-few // how.size), "log-likelihood") as advance:
            for start in range(0, few, how.size):
                rows = np.arange(start, min(start + how.size, few))
                noise, traces = draw(rows)
                latent, deltas = run(_bind(model, cond, rows, n, x.device), x[rows], noise, traces)
                parts.append((latent, deltas + traces.control(model.reference, first, end)))
                advance()
        latent, deltas = (torch.cat(column) for column in zip(*parts, strict=True))
        return latent, deltas

    def prior_of(latent: Tensor) -> Tensor:
        """log p at t_max, NaN where a per-sample solver failed; any other raises."""
        failed = ~latent.flatten(1).isfinite().all(1)
        log_p = how.log_prior(latent.masked_fill(expand(failed, latent), 0.0)).double()
        if log_p.shape != failed.shape:
            raise ConfigError(f"prior answered shape {tuple(log_p.shape)}, expected log p of shape {tuple(failed.shape)}")
        return log_p.masked_fill(failed, math.nan)

    with inference(model), count_evaluations(model) as calls:
        latent, deltas = integrate(how.run, n, progress)
        log_p = prior_of(latent)
    columns, delta = deltas.shape[1], deltas.mean(1)
    value = log_p + delta
    std_error = torch.zeros_like(delta)
    if how.divergence != "exact":  # of one column: NaN
        std_error = deltas.std(1) / math.sqrt(columns) if columns > 1 else torch.full_like(delta, math.nan)
    discretization, cut = (torch.full_like(value, math.nan) for _ in range(2))
    few = min(check, n)
    with inference(model), count_evaluations(model) as more:
        if few and how.coarse is not None:
            run, ratio = how.coarse
            coarse, coarse_deltas = integrate(run, few)
            discretization[:few] = (prior_of(coarse) + coarse_deltas.mean(1) - value[:few]) / ratio
        if few:
            rows = np.arange(few)
            cut[:few] = _budget.cut(_bind(model, cond, rows, n, x.device), x[:few], first, draw(rows)[1])
    mismatch, sums = _budget.mismatch(how.prior, model, how.solver, end, latent, log_p)
    if len(sums):
        mismatch = _budget.mismatch_of_all(sums, x[0].numel())
    std_error, settings = std_error.masked_fill(log_p.isnan(), math.nan), how.settings | {"nfe": calls.forward, "vjp": calls.vjp}
    return LogProb(
        value, log_p, delta, latent, std_error, calls.forward, calls.vjp, mismatch, discretization, cut, more.forward, settings, sums
    )


class Method(NamedTuple):
    """How log p is computed: what is made of the arguments of ``log_prob``, once they are checked."""

    solver: Solver
    size: int
    run: Run
    coarse: tuple[Run, float] | None  # at another resolution, and how many times larger its error is at least, less 1
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
    divergence: str = "hutchinson",
    probes: int = 1,
    prior: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    check: int = 0,
    check_steps: int | None = None,
) -> Method:
    """Checks the arguments of ``log_prob``, and raises as it does."""
    _check_model(model)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    if solver is None:
        solver = TorchDiffEq() if model.reference is None else ReferenceSolver()
    check_solver(solver)
    check_kind(divergence, probes, model.reference)
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    check_seed(seed)
    log_prior = _prior(prior, model, solver, model.sde.levels([model.sde.t_max])[0])
    if isinstance(check, bool) or not isinstance(check, int) or check < 0:
        raise ConfigError(f"check = {check!r}, expected a number of samples, 0 for none")
    run = _run(model, solver, steps)
    other: tuple[Solver, int | None, float] | None = None
    if check_steps is not None:
        other = _budget.finer(solver, steps, check_steps, check)
    elif check:
        other = _budget.coarser(solver, steps)
    coarse = None if other is None else (_run(model, *other[:2]), other[2])
    settings = settings_of(model, x) | {
        "solver": repr(solver),
        "steps": _density.STEPS if steps is None and isinstance(solver, ReferenceSolver) else steps,
        "divergence": divergence,
        "probes": 0 if divergence == "exact" else probes,
        "prior": "standard" if prior is None else prior if isinstance(prior, str) else "custom",
        "t_min": model.sde.t_min,
        "t_max": model.sde.t_max,
        "seed": seed,
    }
    if check_steps is not None:
        settings["check_steps"] = check_steps
    return Method(solver, size, run, coarse, log_prior, prior, divergence, probes, seed, settings)


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
    plan = _density.plan(model, solver, steps)

    def run(bound: ScoreModel, x: Tensor, noise: Noise, traces: Traces) -> tuple[Tensor, Tensor]:
        z, integral = _density.integrate(bound, x, plan, traces)
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
        latent = _density.latent(plan, z).to(x.dtype)
        return latent.masked_fill(expand(bad, latent), math.nan), integral + _density.volume(plan)

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


def _prior(prior: Any, model: ScoreModel, solver: Solver, end: Level) -> Callable[[Tensor], Tensor]:
    """log p at t_max."""
    if prior is None:
        return model.sde.prior_log_prob
    if prior == "reference":
        reference = getattr(solver, "reference", None) or model_reference(model)
        return lambda x: reference.log_prob(x, end.alpha, end.sigma)
    if not callable(prior):
        raise ConfigError(f"prior = {prior!r}, expected None, 'reference' or a function x -> log p")
    return prior


def _check_scale(x: Tensor, transform: Transform | None) -> None:
    if transform is None:
        return
    margin = 0.25 * (transform.high - transform.low)
    low, high = (float(v) for v in torch.aminmax(x))
    if low < transform.low - margin or high > transform.high + margin:
        raise ScaleError(
            f"x runs from {low:.4g} to {high:.4g}, but the model was trained on [{transform.low:g}, {transform.high:g}]: "
            "use transform.dequantize(levels) or rescale x; check_scale=False if you mean it"
        )

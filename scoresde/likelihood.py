r"""Likelihood by the probability-flow ODE: log p in nats, and bits per dimension of integer levels.

.. math:: \log p(x) = \log p_T(x_T) + \int_{t_\mathrm{min}}^{t_\mathrm{max}} \nabla \cdot v(x_t, t)\, dt

where v is the velocity and x_T the end of its ODE started at x (2011.13456, eq. 39). log p is the density at t_min, of data
blurred by sigma(t_min).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._tensor import check_data, check_positive_int, expand, per_sample_rms
from .adapters import TorchDiffEq
from .adaptive import angular_velocity
from .errors import ConfigError, ScaleError
from .model import ScoreModel, check_same_kind, count_evaluations, inference
from .noise import PROBE, Noise, check_ids, check_seed
from .sampling import _bind, _check_model, _progress, default_batch_size, make_times, solve
from .sde import Level
from .solvers import Solver, check_solver
from .transform import Transform


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
    """

    log_prob: Tensor
    prior: Tensor
    delta: Tensor
    latent: Tensor
    std_error: Tensor
    nfe: int
    vjp: int


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of integer levels.

    Attributes:
        mean: over samples and dequantization draws.
        std_error: of the mean over samples.
        per_sample: (B,) float64, the mean over dequantization draws for each.
        nfe: network calls, counted, over all batches and draws.
        dequantization_std: standard deviation of the mean over dequantization draws (NaN for one).
        probe_std_error: standard error of the mean over trace probes (0: exact trace, NaN: a single probe).
        settings: what the figure was computed with, for a report.
    """

    mean: float
    std_error: float
    per_sample: Tensor
    nfe: int
    dequantization_std: float
    probe_std_error: float
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.std_error:.4f} bits/dim ({len(self.per_sample)} samples, {self.settings})"


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver = TorchDiffEq(),  # noqa: B008 (frozen)
    steps: int | None = None,
    divergence: str = "hutchinson",
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    check_scale: bool = True,
    progress: bool = False,
    **cond: Any,
) -> LogProb:
    """log p(x) in nats under the model's probability-flow ODE.

    Value and vector-Jacobian products come from one network call each evaluation. The state is float64, the network runs in its
    own dtype. The probes are Rademacher, fixed along the path, a function of (seed, sample id).

    Args:
        model: a ScoreModel.
        x: model-space floats (B, *event_shape), of the dtype and device of the model.
        solver: ``TorchDiffEq``, ``AdaptiveODE``, or ``Euler``, ``Heun``, ``RK4`` with ``steps`` on the SDE's default grid.
        divergence: "hutchinson" (unbiased, one vjp a probe) or "exact" (D vjps).
        probes: probes of the Hutchinson estimate; two or more give a standard error.
        prior: None for N(0, prior_std^2 I), or a function x -> log p (B,), log p at t_max of an exact model for instance.
        seed, ids: the probes of sample i are a function of (seed, ids[i]); ids None is 0..B-1.
        batch_size: samples solved at once; None: a function of the event shape. With ``TorchDiffEq`` a batch shares its step sizes,
            so log p depends on batch mates within the tolerance; with ``AdaptiveODE`` it does not.
        check_scale: refuse x far outside the range of the model's transform.
        progress: show a progress bar.
        **cond: for the network; a tensor with first dimension B is per sample.

    Raises:
        DTypeError, ShapeError, NonFiniteError, DeviceError: a wrong x (integers above all: use ``bits_per_dim``).
        ScaleError: x far outside the range of the model's transform.
        ConfigError: a wrong argument.
        SolverError: a failed solve. ``AdaptiveODE`` fails for single samples: log p is NaN for these, and a warning names them.
    """
    _check_model(model)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    check_solver(solver)
    if check_scale:
        _check_scale(x, getattr(model, "transform", None))
    if divergence not in ("hutchinson", "exact"):
        raise ConfigError(f"divergence = {divergence!r}, expected 'hutchinson' or 'exact'")
    check_positive_int(probes, "probes")
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    id_array = check_ids(ids, len(x))
    check_seed(seed)
    times = make_times(model.sde, solver, steps, None, model.sde.t_min).flip(0)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    n = len(x)
    with inference(model), count_evaluations(model) as calls:
        levels = model.sde.levels(times)
        with _progress(progress, -(-n // size), "log-likelihood") as advance:
            for start in range(0, n, size):
                rows = np.arange(start, min(start + size, n))
                noise = Noise(seed, id_array[rows], model.event_shape, x.dtype, x.device)
                bound = _bind(model, cond, rows, n, x.device)
                parts.append(_log_prob_batch(bound, x[start : start + size], solver, levels, noise, divergence, probes))
                advance()
        latent, delta, std_error = (torch.cat(column) for column in zip(*parts, strict=True))
        failed = ~latent.flatten(1).isfinite().all(1)  # by a per-sample solver; any other raises
        known = latent.masked_fill(expand(failed, latent), 0.0)
        log_p = (model.sde.prior_log_prob(known) if prior is None else prior(known)).double()
    if log_p.shape != delta.shape:
        raise ConfigError(f"prior answered shape {tuple(log_p.shape)}, expected log p of shape {tuple(delta.shape)}")
    log_p, std_error = log_p.masked_fill(failed, math.nan), std_error.masked_fill(failed, math.nan)
    return LogProb(log_p + delta, log_p, delta, latent, std_error, calls.forward, calls.vjp)


def _log_prob_batch(
    model: ScoreModel, x: Tensor, solver: Solver, levels: list[Level], noise: Noise, divergence: str, probes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(latent, delta, std_error) of one batch."""
    draws = torch.stack([noise.rademacher(PROBE, i) for i in range(probes)]) if divergence == "hutchinson" else None
    flow = _Augmented(model, x, draws)
    traces = 1 if draws is None else probes
    y = torch.cat([x.flatten(1).double(), x.new_zeros((len(x), traces), dtype=torch.float64)], dim=1)
    *_, (_, _, end) = solve(flow, solver, y, levels, noise, keep_failed=True)
    latent, deltas = end[:, :-traces].to(x.dtype).view(x.shape), end[:, -traces:]
    if divergence == "exact":
        std_error = torch.zeros_like(deltas[:, 0])
    elif probes == 1:
        std_error = torch.full_like(deltas[:, 0], math.nan)
    else:
        std_error = deltas.std(1) / math.sqrt(probes)
    return latent, deltas.mean(1), std_error


class _Augmented:
    """What a solver sees: the velocity of the state (x, one log-density a probe), in float64, shape (B, D + probes)."""

    def __init__(self, model: ScoreModel, x: Tensor, probes: Tensor | None) -> None:
        self.model, self.sde, self.probes = model, model.sde, probes
        self.shape, self.dtype, self.dimensions = x.shape, x.dtype, x[0].numel()

    def velocity(self, y: Tensor, t: Level) -> Tensor:
        return self._flow(self.model.velocity, y, t)

    def angular(self, y: Tensor, t: Tensor) -> Tensor:
        """The same for x/c and dx/dtheta (see ``adaptive``), t (B,); ``rescale`` goes there and back."""
        return self._flow(partial(angular_velocity, self.model), y, t)

    def rescale(self, y: Tensor, c: float) -> Tensor:
        """(c x, log-densities + D log c)."""
        D = self.dimensions
        return torch.cat([c * y[:, :D], y[:, D:] + D * math.log(c)], dim=1)

    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        self.model.count_samples(ids, n)

    def _flow(self, velocity: Callable[..., Tensor], y: Tensor, t: Any) -> Tensor:
        with torch.enable_grad():
            x = y[:, : self.dimensions].to(self.dtype).view(self.shape).requires_grad_()
            v = velocity(x, t)
        if self.probes is None:
            traces = exact_divergence(v, x)[:, None]
            self.model.count_vjp(self.dimensions)
        else:
            columns = []
            for i, e in enumerate(self.probes):
                (product,) = torch.autograd.grad(v, x, e, retain_graph=i + 1 < len(self.probes))
                columns.append((product * e).flatten(1).sum(1, dtype=torch.float64))
            traces = torch.stack(columns, 1)
            self.model.count_vjp(len(self.probes))
        return torch.cat([v.detach().flatten(1).double(), traces.double()], dim=1)

    def error_norm(self, error: Tensor) -> Tensor:
        """The larger of the root mean squares over x and over the log-densities, for each sample."""
        return torch.maximum(per_sample_rms(error[:, : self.dimensions]), per_sample_rms(error[:, self.dimensions :]))

    def __getattr__(self, name: str) -> Any:
        raise ConfigError(
            f"this solver asks the model for {name!r}; log_prob needs one that integrates the velocity of the "
            "probability-flow ODE: AdaptiveODE, TorchDiffEq, Euler, Heun or RK4"
        )


def exact_divergence(v: Tensor, x: Tensor, numbers: int = 1 << 22) -> Tensor:
    """The trace of dv/dx for each sample, (B,), by D vector-Jacobian products, batched while they hold about ``numbers``.

    v must have been computed from x, sample by sample.
    """
    B, D = v.shape[0], v[0].numel()
    chunk = max(1, min(D, numbers // v.numel()))
    trace = torch.zeros(B, dtype=torch.float64, device=v.device)
    for start in range(0, D, chunk):
        index = torch.arange(start, min(start + chunk, D), device=v.device)
        basis = torch.zeros((len(index), B, D), dtype=v.dtype, device=v.device)
        basis[torch.arange(len(index), device=v.device), :, index] = 1
        (rows,) = torch.autograd.grad(v, x, basis.view(-1, *v.shape), retain_graph=True, is_grads_batched=True)
        trace += rows.reshape(len(index), B, D)[torch.arange(len(index), device=v.device), :, index].sum(0, dtype=torch.float64)
    return trace


def bits_per_dim(
    model: ScoreModel,
    levels: Tensor,
    transform: Transform | None = None,
    *,
    dequantizations: int = 1,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    solver: Solver = TorchDiffEq(),  # noqa: B008 (frozen)
    progress: bool = False,
    **arguments: Any,
) -> BitsPerDim:
    """Bits per dimension of integer levels: nll/(D ln 2) + log2 K - log2(high - low), nll in nats of the dequantized sample.

    An upper bound, in expectation over the uniform dequantization, on the bits per dimension of the discrete data (1511.01844).

    Args:
        model: a ScoreModel of the transform's model space.
        levels: integers (B, *event_shape) in 0..K-1.
        transform: the data's ``Transform``; it carries K and the range, so there is no offset to type.
        dequantizations: draws to average over, each a function of (seed, sample id, draw).
        seed, ids, solver, progress, **arguments: as for ``log_prob``.

    Raises:
        ConfigError: no transform, or levels outside 0..K-1.
        DTypeError: levels that are no integers.
        Otherwise as ``log_prob``.
    """
    _check_model(model)
    if not isinstance(transform, Transform):
        raise ConfigError(
            f"transform = {transform!r}: bits per dimension are of integer levels, so tell how many: "
            "transform=scoresde.Transform(levels=256) for 8-bit images; for model-space floats use log_prob (nats)"
        )
    transform.check_levels(levels)
    check_positive_int(dequantizations, "dequantizations")
    first = model.sde.levels([model.sde.t_min])[0]
    blur = first.sigma / first.alpha
    if blur > transform.bin_width / 2:
        warnings.warn(
            f"sigma(t_min) = {blur:.3g} exceeds half a bin ({transform.bin_width / 2:.3g}) of {transform.levels} levels: the data "
            "are blurred over neighbouring levels and bits per dimension are biased; lower sigma_min or t_min of the SDE",
            stacklevel=2,
        )
    id_array = check_ids(ids, len(levels))
    D = levels[0].numel()
    bits, probe_variance, nfe, vjp = [], [], 0, 0
    for draw in range(dequantizations):
        x = transform.dequantize(levels, seed, id_array, draw, model.dtype, model.device)
        r = log_prob(model, x, solver=solver, seed=seed, ids=id_array, progress=progress, **arguments)
        bits.append(-r.log_prob / (D * math.log(2)) + transform.bits_offset)
        probe_variance.append((r.std_error / (D * math.log(2))).square().sum() / len(levels) ** 2)
        nfe, vjp = nfe + r.nfe, vjp + r.vjp
    draws = torch.stack(bits).cpu()  # (draws, B)
    per_sample = draws.mean(0)
    # the same probes serve every draw, so their error does not average out over draws
    return BitsPerDim(
        mean=float(per_sample.mean()),
        std_error=float(per_sample.std() / math.sqrt(len(per_sample))) if len(per_sample) > 1 else math.nan,
        per_sample=per_sample,
        nfe=nfe,
        dequantization_std=float(draws.mean(1).std()) if dequantizations > 1 else math.nan,
        probe_std_error=float(torch.stack(probe_variance).mean().sqrt()),
        settings={
            "dequantization": "uniform",
            "draws": dequantizations,
            "levels": transform.levels,
            "solver": repr(solver),
            "divergence": arguments.get("divergence", "hutchinson"),
            "probes": arguments.get("probes", 1),
            "t_min": model.sde.t_min,
            "seed": seed,
        },
    )


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

"""Bits per dimension of integer levels, with their error budget; and log p, see ``_log_prob``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._log_prob import LogProb, log_prob, mean, mean_error, root_sum
from ._tensor import check_positive_int
from .errors import ConfigError
from .model import ScoreModel
from .noise import check_ids
from .report import Report, Term, compare, fingerprint
from .sampling import _check_model
from .transform import Transform

__all__ = ["BitsPerDim", "LogProb", "bits_per_dim", "compare", "log_prob"]
CHECK = 32  # samples on which the errors of the time steps and of the cut at t_min are estimated


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of integer levels.

    Attributes:
        mean: over samples and dequantization draws.
        std_error: of the mean over samples.
        per_sample: (B,) float64, the mean over dequantization draws for each (for "importance" the log of the mean).
        nfe: network calls, counted, over all batches and draws.
        dequantization_std: standard deviation of the mean over dequantization draws (NaN for one).
        probe_std_error: standard error of the mean over trace probes (0: exact trace, NaN: a single probe).
        settings: what the figure was computed with, for a report.
        terms: the error budget, see ``report``.
        check_nfe: network calls for those terms that need some.
    """

    mean: float
    std_error: float
    per_sample: Tensor
    nfe: int
    dequantization_std: float
    probe_std_error: float
    settings: dict[str, Any]
    terms: tuple[Term, ...] = ()
    check_nfe: int = 0

    def report(self) -> Report:
        """The mean with its error budget: a table to print, ``to_json`` to keep, ``compare`` to compare."""
        return Report(self.mean, self.std_error, "bits/dim", self.terms, self.settings, tuple(self.per_sample.tolist()))

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.std_error:.4f} bits/dim ({len(self.per_sample)} samples, {self.settings})"


def bits_per_dim(
    model: ScoreModel,
    levels: Tensor,
    transform: Transform | None = None,
    *,
    dequantizations: int = 1,
    dequantization: str = "uniform",
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    check: int = CHECK,
    **arguments: Any,
) -> BitsPerDim:
    """Bits per dimension of integer levels: nll/(D ln 2) + log2 K - log2(high - low), nll in nats of the dequantized sample.

    An upper bound, in expectation over the uniform dequantization, on the bits per dimension of the discrete data (1511.01844).

    Args:
        model: a ScoreModel of the transform's model space.
        levels: integers (B, *event_shape) in 0..K-1.
        transform: the data's ``Transform``; it carries K and the range, so there is no offset to type.
        dequantizations: draws for each sample, each a function of (seed, sample id, draw).
        dequantization: "uniform" is the mean of log p over the draws; "importance" the log of the mean of p, a tighter bound the more
            draws there are (1509.00519), for divergence="exact": random traces would bias it.
        seed, ids, solver, steps, progress, **arguments: as for ``log_prob``.
        check: samples for the estimates of some errors, see ``log_prob``; in the first draw.

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
    if dequantization not in ("uniform", "importance"):
        raise ConfigError(f"dequantization = {dequantization!r}, expected 'uniform' or 'importance'")
    if dequantization == "importance" and arguments.get("divergence") != "exact":
        raise ConfigError(
            "dequantization = 'importance' needs divergence = 'exact': the mean of p over draws is too large by the variance of "
            "random traces, and would no longer be a bound"
        )
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
    scale = -1 / (D * math.log(2))
    results: list[LogProb] = []
    for draw in range(dequantizations):
        x = transform.dequantize(levels, seed, id_array, draw, model.dtype, model.device)
        results.append(log_prob(model, x, seed=seed, ids=id_array, check=0 if draw else check, **arguments))
    log_p = torch.stack([r.log_prob for r in results]).cpu()  # (draws, B)
    draws = scale * log_p + transform.bits_offset
    K = dequantizations
    per_sample = draws.mean(0) if dequantization == "uniform" else scale * (log_p.logsumexp(0) - math.log(K)) + transform.bits_offset
    # the same probes serve every draw, so their error does not average out over draws
    probe_std_error = abs(scale) * math.sqrt(sum(root_sum(r.std_error) ** 2 for r in results) / K)
    within = root_sum(draws.std(0)) / math.sqrt(K) if K > 1 and dequantization == "uniform" else math.nan
    data, probes, *biases = results[0].terms(scale)
    nfe, vjp = sum(r.nfe for r in results), sum(r.vjp for r in results)
    settings = results[0].settings | {
        "dequantization": "uniform" if dequantization == "uniform" else f"importance-weighted, {K} draws",
        "draws": K,
        "levels": transform.levels,
        "data": fingerprint([levels]),
        "nfe": nfe,
        "vjp": vjp,
    }
    return BitsPerDim(
        mean=mean(per_sample),
        std_error=mean_error(per_sample),
        per_sample=per_sample,
        nfe=nfe,
        dequantization_std=float(draws.mean(1).std()) if K > 1 else math.nan,
        probe_std_error=probe_std_error,
        settings=settings,
        terms=(
            data._replace(value=mean_error(per_sample)),
            Term("dequantization", within, f"standard error over {K} draws for each sample"),
            probes._replace(value=probe_std_error),
            *biases,
        ),
        check_nfe=sum(r.check_nfe for r in results),
    )

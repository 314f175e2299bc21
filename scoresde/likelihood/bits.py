"""Bits per dimension of integer levels, with their error budget."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer
from scoresde.core.digest import digest, of_tensors
from scoresde.core.doors import checked
from scoresde.core.noise import check_ids, check_seed
from scoresde.core.pieces import pack, run, unpack
from scoresde.errors import ConfigError
from scoresde.likelihood.dequantize import as_levels, check_same_transform, resolve
from scoresde.likelihood.method import check_data_scale, default_divergence, identity, method
from scoresde.likelihood.ode import evaluate
from scoresde.likelihood.report import warn_of_time_steps
from scoresde.likelihood.results import BitsPerDim, LogProb, bits_of
from scoresde.models.base import check_model, check_same_kind
from scoresde.models.conditions import check_conditions, check_lengths, slice_cond

if TYPE_CHECKING:
    from scoresde.data.transform import Transform
    from scoresde.likelihood.dequantize import Dequantizer
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver

CHECK = 32  # samples on which the errors of the time steps and of the cut at t_min are estimated

@checked
def bits_per_dim(
    model: ScoreModel,
    levels: Tensor,
    transform: Transform | None = None,
    *,
    dequantizations: int = 1,
    dequantization: str | Dequantizer | None = None,
    importance_weighted: bool = False,
    solver: Solver | None = None,
    steps: int | None = None,
    divergence: str | None = None,
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | str | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    check: int = CHECK,
    check_steps: int | None = None,
    check_scale: bool = True,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    share: bool = False,
    progress: bool = False,
    **cond: Any,
) -> BitsPerDim:
    """Bits per dimension of integer levels: E[log q(x|k) - log p(x)]/(D ln 2) over draws x of a dequantizer q, see ``dequantize``.

    An upper bound, in expectation over the draws, on the bits per dimension of the discrete data (1511.01844). For uniform noise it
    is nll/(D ln 2) + log2 K - log2(high - low), nll in nats of the dequantized sample.

    Args:
        model: a ScoreModel of the transform's model space.
        levels: integers (B, *event_shape) in 0..K-1.
        transform: the data's ``Transform``; it carries K and the range, so there is no offset to type. None: that of a dequantizer, or
            else the model's own. It must have the levels and the range of the model's own (``check_scale=False`` if you mean it).
        dequantizations: draws for each sample, each a function of (seed, sample id, draw).
        dequantization: "uniform" noise over each bin; "normal", the diffusion's own noise at t_min around the middle of each bin;
            or a ``Dequantizer``. None is what the model was trained for: ``model.transform.dequantization``. ("importance" is
            "uniform", importance weighted.)
        importance_weighted: the log of the mean of p/q over the draws instead of the mean of the log, a tighter bound the more
            draws there are (1509.00519), for divergence="exact": random traces would bias it.
        solver, steps, divergence, probes, prior, seed, ids, batch_size, check_scale, **cond: as for ``log_prob``.
        check: samples on which some errors are measured, see ``log_prob``; in the first draw. It warns where the time steps err by
            more than the standard error of the mean.
        check_steps: see ``log_prob``; the result then has ``corrected``, the mean as these steps would give it: few steps on all
            samples and many on the first ``check``, which should be like the rest, as those of a shuffled test set are.
        out, overwrite: a file, or a folder for its ``rows.jsonl``, to which every finished batch is added, with all its draws; the
            same call goes on where it stopped, whatever stopped it, and one with other arguments is refused. With ``overwrite``
            a call starts anew every time, whatever is there, and goes on with nothing.
        share: under ``torchrun`` (or where torch.distributed is at work) all processes call this with the same arguments; each
            batch is computed by one of them, and all return the whole: one that calls alone waits for the others. False: this
            process alone.
        progress: show a progress bar, with the mean so far.

    Raises:
        ConfigError: no transform, levels outside 0..K-1, an unknown dequantization, a condition that is named x; ``out`` holds work
            with other arguments.
        DTypeError: levels that are no integers.
        Otherwise as ``log_prob``.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, bits_per_dim, dtype=model.dtype)
    if dequantization == "importance":
        dequantization, importance_weighted = "uniform", True
    dequantizer = resolve(dequantization, model, transform)
    transform = dequantizer.transform
    if check_scale:
        check_same_transform(model, transform)
    levels = as_levels(levels)
    transform.check_levels(levels)
    K = check_integer(dequantizations, "dequantizations", 1, 100_000)
    if importance_weighted and default_divergence(model, divergence, probes) != "exact":
        raise ConfigError(
            "importance-weighted dequantization needs divergence = 'exact': the mean of p over draws is too large by the variance "
            "of random traces, and would no longer be a bound"
        )
    dequantizer.check(model)
    id_array = check_ids(ids, len(levels))
    check_seed(seed)
    scale = -1 / (levels[0].numel() * math.log(2))
    n = len(levels)
    scale_range = model.transform if check_scale else None
    x, _ = dequantizer.draw(levels[:1], model, seed, id_array[:1], 0)
    given: dict[str, Any] = {"solver": solver, "steps": steps, "divergence": divergence, "probes": probes, "prior": prior}
    how = method(model, x, seed=seed, batch_size=batch_size, check=check, check_steps=check_steps, **given)
    check_lengths(cond, n)
    settings = how.settings | {
        "dequantization": dequantizer.name + (f", importance-weighted, {K} draws" if importance_weighted else ""),
        "draws": K,
        "levels": transform.levels,
        "data": of_tensors([levels]),
        "samples": n,
    }

    def piece(rows: np.ndarray) -> dict[str, Any]:
        records = []
        index = torch.from_numpy(rows)
        some = slice_cond(cond, lambda v: v[index.to(v.device)], n)
        for draw in range(K):
            x, log_q = dequantizer.draw(levels[index.to(levels.device)], model, seed, id_array[rows], draw)
            few = 0 if draw else min(max(check - int(rows[0]), 0), len(rows))
            check_same_kind(model, check_data(x, model.event_shape))
            check_data_scale(x, scale_range)
            r = evaluate(model, x, how, id_array[rows], few, some)
            records.append(r.to_record() | {"log_q": pack(log_q.tolist())})
        return {"draws": records}

    def so_far(record: dict[str, Any]) -> list[float]:
        draws = record["draws"]
        if len(draws) != K:
            raise ValueError(f"{len(draws)} draws, expected {K}")
        log_p = torch.tensor([LogProb.values(r) for r in draws], dtype=torch.float64, device="cpu")
        log_q = torch.tensor([unpack(r["log_q"]) for r in draws], dtype=torch.float64, device="cpu").view_as(log_p)
        return bits_of(log_p - log_q, scale, importance_weighted).tolist()

    decisive: dict[str, Any] = {}
    if out is not None or share:
        decisive = identity(model, how._replace(settings=settings), id_array, check, cond) | {"dequantizer": digest(dequantizer)}
    keep: dict[str, Any] = {"out": out, "overwrite": overwrite, "share": share, "show": progress}
    records = run(piece, id_array, how.size, decisive, values=so_far, **keep)
    results = [LogProb.join([r["draws"][draw] for r in records], settings, x) for draw in range(K)]
    log_q = [[v for r in records for v in unpack(r["draws"][draw]["log_q"])] for draw in range(K)]
    ratio = torch.stack([r.log_prob for r in results]).cpu() - torch.tensor(log_q, dtype=torch.float64, device="cpu")
    found = BitsPerDim.of(results, ratio, scale, settings, importance_weighted)
    warn_of_time_steps(found.report(), steps)
    return found if dequantizer.blur else found.without_cut()

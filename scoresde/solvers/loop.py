"""The loop, written once: from noise to data by any solver."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.brownian import BrownianPath
from scoresde.core.streams import PRIOR
from scoresde.errors import ConfigError, SolverError

if TYPE_CHECKING:
    from scoresde.core.noise import Noise
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Solver

CHECK_EVERY = 16  # steps between two looks for non-finite states: each look waits for the device


def solve(
    model: Answers, solver: Solver, x: Tensor | None, levels: list[Level], noise: Any, keep_failed: bool = False
) -> Iterator[tuple[int, Level, Tensor]]:
    """The loop, written once: yields (step, time reached, state) after every step. x None starts from noise.

    ``keep_failed``: samples that a per-sample solver had to give up stay in the batch as NaN, with a warning at the end.
    """
    if x is None:
        x = noise.normal(PRIOR) * levels[0].sigma
    state = solver.init(model, x, levels)
    last = len(levels) - 2
    checked = 0
    keep_failed = keep_failed and solver.per_sample
    for i in range(last + 1):
        x, state = solver.step(model, x, levels[i], levels[i + 1], state, noise.at(i))
        if i == last or ((i + 1) % CHECK_EVERY == 0 and not keep_failed):
            finite = torch.isfinite(x)
            if not bool(finite.all()):
                bad = (~finite.flatten(1).all(1)).nonzero().flatten().tolist()
                ids = list(dict.fromkeys(int(noise.ids[row]) for row in bad))
                failures = state.failures if solver.per_sample else {}
                if failures:
                    reasons = list(dict.fromkeys(f"id {noise.ids[row]}: {why}" for row, why in failures.items()))
                    message = (
                        f"{solver!r} failed for sample ids {ids[:8]}{'...' if len(ids) > 8 else ''} ({'; '.join(reasons[:4])}): "
                        "loosen rtol and atol, raise max_nfe, or check the model at these times"
                    )
                    if not keep_failed:
                        raise SolverError(message)
                    warnings.warn(message + "; their results are NaN", stacklevel=2)
                    yield i, levels[i + 1], x
                    continue
                raise SolverError(
                    f"{solver!r}: states are not finite in steps {checked} to {i}, t from {levels[checked]:.6g} to "
                    f"{levels[i + 1]:.6g}, for sample ids {ids[:8]}{'...' if len(ids) > 8 else ''}: "
                    "take more steps, another grid, or check the model at these times"
                )
            checked = i + 1
        yield i, levels[i + 1], x


def check_noise(noise: Any) -> None:
    if noise not in ("independent", "path"):
        raise ConfigError(f"noise = {noise!r}, expected 'independent' or 'path'")


def draws_for(kind: str, noise: Noise, sde: SDE, levels: list[Level]) -> Noise | BrownianPath:
    """The noise of a solve: as it is, or along a Brownian path over lam = log(alpha/sigma), from t_max on."""
    if kind == "independent":
        return noise
    first, last, *lam = (t.lam for t in [*sde.levels([sde.t_max, sde.t_min]), *levels])
    return BrownianPath(noise, [min(max(v - first, 0.0), last - first) for v in lam], last - first)

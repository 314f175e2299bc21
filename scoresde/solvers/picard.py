r"""Sampling in parallel over time: Picard iteration on a window of steps (ParaDiGMS, 2305.16317).

A solver's steps x_(j+1) = Phi_j(x_j) are one system of equations for all x_j at once, solved by fixed-point iteration: guess all
of them, evaluate the model at all guesses in one batch, and sum the increments up again. A few rounds do for many steps, where
a large batch takes little longer than a small one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_positive, check_positive_int
from scoresde.core.doors import checked
from scoresde.core.streams import STEP
from scoresde.core.tensors import affine, per_sample_rms
from scoresde.errors import ConfigError
from scoresde.models.views import View
from scoresde.solvers.base import Solver, Wrapper, check_solver
from scoresde.solvers.one_step import DDIM

if TYPE_CHECKING:
    from scoresde.core.noise import StepNoise
    from scoresde.models.answers import Answers
    from scoresde.sdes.levels import Level


class _Known(View):
    """A model that knows the answer already: (x0, eps) at one x and t. What a one-call solver's step is given."""

    def __init__(self, solver: Solver, inner: Any, x: Tensor, t: Level, x0: Tensor, eps: Tensor) -> None:
        super().__init__(inner)
        self.solver, self.x, self.t, self.answer = solver, x, t, (x0, eps)

    def seen(self, x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        if x is not self.x or t is not self.t:
            raise ConfigError(
                f"{self.solver!r} asks the model for more than the start of a step, so its steps cannot be taken in parallel: "
                "Picard needs a solver of one call a step, DDIM(), Euler(), Ancestral() or EulerMaruyama() for instance"
            )
        return self.answer


class _Draws:
    """The noise of one step, kept for all rounds that need it."""

    def __init__(self, noise: StepNoise) -> None:
        self.noise, self.ids = noise, noise.ids
        self._kept: dict[int, Tensor] = {}

    def __call__(self, stream: int = STEP) -> Tensor:
        if stream not in self._kept:
            self._kept[stream] = self.noise(stream)
        return self._kept[stream]


@dataclass(frozen=True)
class _Window:
    """Where a solve stands: at x_i, with guesses of x_j for some j > i; those up to ``settled`` are final."""

    levels: list[Level]
    times: Tensor
    scales: list[float]  # c of each time
    inner: Any  # the state of the inner solver
    i: int = 0
    settled: int = 0
    guesses: dict[int, Tensor] = field(default_factory=dict)
    draws: dict[int, _Draws] = field(default_factory=dict)
    repeated: tuple[int, Any] = (0, None)  # the model with its conditions repeated for so many states


@checked
@dataclass(frozen=True)
class Picard(Wrapper):
    r"""The steps of a one-call solver, many at a time (ParaDiGMS, 2305.16317, algorithm 1).

    Phi_j is the solver's step from t_j to t_(j+1), with its noise fixed in advance; i is the last state that is final. A round
    evaluates the model once, on the w states of the window as one batch of w B, and sums the increments,

    .. math:: z_{j+1} \leftarrow z_i + \sum_{m=i}^{j} \left(\Phi_m(x_m)/c_{m+1} - x_m/c_m\right), \qquad z_j = x_j/c_j

    with c = sqrt(alpha^2 + sigma^2), the size of x (1 for VP, where this is the paper's sum): in z the steps change little under
    every SDE. Then the window slides past all states that changed by no more than the tolerance in every sample, and past one
    at least, which is exact: a solve never takes more rounds than steps. The fixed point is the sequential solution; states that
    enter the window are guessed on the straight line of the last estimate, alpha x0 + sigma eps.

    Args:
        solver: of one call a step and without memory, deterministic or stochastic.
        window: steps taken at a time; None: all that are left. Memory and cost of a round grow with it.
        tolerance: largest change in the last round, root mean square over a sample, in z: of the data, or noise of size 1. The
            result is within a few tolerances of the sequential one, and depends on batch mates no more than that.

    ``count_evaluations`` counts a round as one call; ``per_sample`` is window states evaluated for a sample, the work done.

    Raises:
        ConfigError: a window or tolerance that makes no sense; in a solve, a solver with several calls a step or with memory.
    """

    solver: Solver = DDIM()  # noqa: RUF009 (frozen)
    window: int | None = None
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.solver.needs_path:
            raise ConfigError(f"{self.solver} needs a Brownian path to return to, and has none here: use it alone, not inside of another")
        check_positive(self.tolerance, "tolerance")
        if self.window is not None:
            check_positive_int(self.window, "window")

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _Window:
        inner = self.solver.init(model, x, times)
        on_device = torch.tensor([float(t) for t in times], dtype=torch.float64, device=x.device)
        return _Window(times, on_device, [math.hypot(t.alpha, t.sigma) for t in times], inner)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _Window, noise: Any) -> tuple[Tensor, _Window]:
        if state.settled == state.i:
            state = self._round(model, x, state, noise)
        i = state.i + 1
        guesses = {j: guess for j, guess in state.guesses.items() if j > i}
        return state.guesses[i], replace(state, i=i, guesses=guesses)

    def _round(self, model: Answers, x: Tensor, state: _Window, noise: Any) -> _Window:
        """Evaluates x_i, ..., x_(stop-1) in one batch, improves x_(i+1), ..., x_stop and settles at least the first of them."""
        B, c, i = len(x), state.scales, state.i
        stop = min(i + (self.window or len(c)), len(c) - 1)
        w = stop - i
        guesses = {j: state.guesses[j] if j in state.guesses else x * (c[j] / c[i]) for j in range(i + 1, stop + 1)}
        x_old = [x, *guesses.values()]
        repeated = state.repeated if state.repeated[0] == w else (w, model.repeated(w, B))
        x0, eps = repeated[1].predict(torch.cat(x_old[:-1]), state.times[i:stop].repeat_interleave(B))
        model.count_samples(noise.ids, torch.full((B,), w, device="cpu"))
        draws = {j: state.draws.get(j) or _Draws(replace(noise, step=j)) for j in range(i, stop)}
        z, changes = x / c[i], []
        for m, x0_m, eps_m in zip(range(i, stop), x0.split(B), eps.split(B), strict=True):
            x_m, x_next, t, s = x_old[m - i], x_old[m - i + 1], state.levels[m], state.levels[m + 1]
            answers = _Known(self.solver, model, x_m, t, x0_m, eps_m)
            phi, inner = self.solver.step(answers, x_m, t, s, state.inner, draws[m])
            if inner is not state.inner:
                raise ConfigError(
                    f"{self.solver!r} remembers earlier steps (its state changes, if only by a counter), so its steps cannot be taken "
                    "in parallel: Picard needs DDIM(), Euler(), Ancestral(), EulerMaruyama() or another solver without a changing state"
                )
            z = z + affine(1 / c[m + 1], phi, -1 / c[m], x_m) if m > i else phi / c[m + 1]
            guesses[m + 1] = z * c[m + 1]
            changes.append(per_sample_rms(guesses[m + 1] - x_next) / c[m + 1])
        moved = (torch.stack(changes[1:]) > self.tolerance).any(1).tolist() if w > 1 else []  # NaN does not hold up the others
        settled = i + 1 + next((n for n, has_moved in enumerate(moved) if has_moved), len(moved))
        ahead = range(stop + 1, min(settled + (self.window or 0), len(c) - 1) + 1)  # these enter the window
        guesses |= {j: affine(state.levels[j].alpha, x0_m, state.levels[j].sigma, eps_m) for j in ahead}
        return replace(state, settled=settled, guesses=guesses, draws=draws, repeated=repeated)


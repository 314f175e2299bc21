"""Restart sampling (2306.14878): back to more noise and down again."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_integer, check_positive
from scoresde.core.doors import checked
from scoresde.core.streams import RESTART, STEP
from scoresde.core.tensors import affine
from scoresde.errors import ConfigError
from scoresde.sdes import grid
from scoresde.solvers.base import Solver, Wrapper, check_decreasing, check_solver
from scoresde.solvers.runge_kutta import Heun
from scoresde.solvers.stochastic_adams import keep_fields

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


@checked
@dataclass(frozen=True)
class Restart(Wrapper):
    """Restart sampling: a solver that goes back to more noise and down again, several times (2306.14878, algorithm 1).

    Where the grid first comes to s = sigma/alpha <= low, ``rounds`` times: noise is added from there up to ``high``
    (y + sqrt(high^2 - s^2) z) and ``solver`` leads back in ``steps`` steps of a Karras grid. Errors made above are contracted
    by the noise. Calls: those of the solver on the grid, and rounds times its calls for ``steps`` steps. ``rounds=0`` is the solver.
    A grid that ends above ``low``, or starts below it, meets no restart. Several ranges: ``Restart(Restart(...), ...)``, which must not
    overlap. ``high`` is at most the s that the grid starts from.

    Args:
        solver: takes all steps. low, high: the range of s. rounds: restarts. steps: steps of each.

    Raises ConfigError unless 0 < low < high, rounds >= 0 and steps >= 1, and for ``AdaptiveSDE``, whose one Brownian path goes down once.
    """

    solver: Solver = Heun()  # noqa: RUF009 (frozen)
    low: float = 0.1
    high: float = 0.5
    rounds: int = 2
    steps: int = 2

    def __post_init__(self) -> None:
        check_solver(self.solver)
        check_positive(self.low, "low")
        check_positive(self.high, "high")
        if self.low >= self.high:
            raise ConfigError(f"low = {self.low} and high = {self.high}, expected low < high")
        keep_fields(self, rounds=check_integer(self.rounds, "rounds", 0), steps=check_integer(self.steps, "steps"))
        if self.solver.needs_path:
            raise ConfigError(
                f"{type(self.solver).__name__} has one Brownian path from noise to data, and none for a way back: "
                "restart a solver of fixed steps or AdaptiveODE()"
            )
        if self.blocks >= 1 << 22:
            raise ConfigError(f"{self.blocks} steps within restarts, expected fewer than 2^22: each takes noise of its own")

    @property
    def blocks(self) -> int:
        """Blocks of streams beyond the first one that a step of this solver may use: those of the inner solver, then its own.

        A restart has a block for the noise that is added, and each of its steps one more; with those of the solver within.
        """
        inner = self.solver.blocks
        return inner + self.rounds * (1 + self.steps) * (1 + inner)

    @property
    def accuracy(self) -> float | None:
        """That of the solver; with restarts, whose own steps are few however many there are on the grid, None."""
        return None if self.rounds else self.solver.accuracy

    @property
    def noise(self) -> str:
        return "weak" if self.rounds else self.solver.noise

    def bind(self, model: Answers, steps: int | None) -> Restart:
        """With the solver for this model, as on given times: it starts anew, at low noise too, so no first step may be special."""
        return self.around(self.solver.bind(model, None))

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> _Detour:
        meet = next((i for i, t in enumerate(times) if t.s <= self.low), 0)  # 0: never
        plan: list[Level] = []
        high = min(self.high, times[0].s)
        if meet and self.rounds and high > times[meet].s:
            log_snr = torch.tensor([-2 * math.log(high)], dtype=torch.float64, device="cpu")
            top = model.sde.time_of_log_snr(log_snr).clamp(max=float(times[0]))
            plan = model.sde.levels(grid.karras(model.sde, self.steps, float(top), float(times[meet])))
        if self.rounds:
            check_decreasing(self, times)
        return _Detour(self.solver.init(model, x, times), times, plan)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: _Detour, noise: Draw) -> tuple[Tensor, _Detour]:
        x, inner = self.solver.step(model, x, t, s, state.inner, noise)
        plan = state.plan
        if not plan or s != plan[-1]:
            return x, replace(state, inner=inner)
        top = plan[0]
        std = math.sqrt(max((top.s - s.s) * (top.s + s.s), 0.0))
        blocks = itertools.count(1)  # block 0 is that of the steps on the grid
        size = RESTART * (1 + self.solver.blocks)
        for _ in range(self.rounds):
            x = affine(top.alpha / s.alpha, x, top.alpha * std, noise(size * next(blocks)))
            within = self.solver.init(model, x, plan)
            for u, v in pairwise(plan):
                x, within = self.solver.step(model, x, u, v, within, _Within(noise, size * next(blocks)))
        rest = state.times[state.times.index(s) :]
        # what a multistep solver remembers belongs to the path before: it starts anew
        return x, replace(state, inner=self.solver.init(model, x, rest) if len(rest) > 1 else inner)


@dataclass(frozen=True)
class _Within:
    """The noise of a step within a restart: the streams of a block of its own."""

    noise: Any
    first: int

    @property
    def ids(self) -> Any:
        """The sample ids of the rows."""
        return self.noise.ids

    def __call__(self, stream: int = STEP) -> Tensor:
        return self.noise(self.first + stream)


@dataclass(frozen=True)
class _Detour:
    """The state of ``Restart``: the solver's state, the times of the solve, and those of a restart (none: no restart)."""

    inner: Any
    times: list[Level]
    plan: list[Level]

"""The shape that all exponential and multistep solvers share: steps that are weighted sums of the state and of the model's answers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from scoresde.core.streams import STEP
from scoresde.solvers.base import Solver

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


class Call(NamedTuple):
    """A call of the model at a level, then x = a x + sum of the weights times the answers, the newest first."""

    level: Level
    a: float
    weights: list[float]


class Step(NamedTuple):
    """The calls of one step, the standard deviation of the noise added at its end, and how many answers the next step needs."""

    calls: list[Call]
    std: float = 0.0
    keep: int = 0


@dataclass(frozen=True)
class State:
    plan: list[Step]
    step: int = 0
    answers: tuple[Tensor, ...] = ()  # newest first


class WeightedSums(Solver):
    """A solver whose steps are weighted sums of the state and of the model's answers."""

    @abstractmethod
    def plan_steps(self, sde: SDE, times: list[Level]) -> list[Step]:
        """The weights of all steps."""

    @abstractmethod
    def ask(self, model: Answers, x: Tensor, t: Level) -> tuple[Tensor | None, Tensor]:
        """One call: what ``a`` multiplies (None: the x of the step), and the answer that is remembered."""

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> State:
        return State(self.plan_steps(model.sde, times))

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: State, noise: Draw) -> tuple[Tensor, State]:
        calls, std, keep = state.plan[state.step]
        answers, y = state.answers, x
        for level, a, weights in calls:
            base, answer = self.ask(model, y, level)
            answers = (answer, *answers)
            y = (x if base is None else base) * a
            for weight, answer in zip(weights, answers, strict=False):
                y.add_(answer, alpha=weight)
        if std:
            y.add_(noise(STEP), alpha=std)
        return y, State(state.plan, state.step + 1, answers[:keep])


def from_ddim(w: list[float], t: Level, s: Level, order: int) -> Step:
    """alpha_s/alpha_t x + sum of w_j eps_j as DDIM and differences, alpha_s x_0 + sigma_s eps + sum of w_j (eps_j - eps): where
    alpha_t is small, the first form takes the difference of large numbers."""
    return weighted_sum(s.alpha, [s.sigma - sum(w[1:]), *w[1:]], t, order - 1)


def weighted_sum(a: float, weights: list[float], t: Level, keep: int, std: float = 0.0) -> Step:
    return Step([Call(t, a, weights)], std, keep)

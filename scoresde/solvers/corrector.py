"""Langevin corrections, and predictor with corrector (2011.13456)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_integer, check_positive
from scoresde.core.doors import checked
from scoresde.core.streams import CORRECTOR
from scoresde.core.tensors import expand, per_sample_norm
from scoresde.errors import ConfigError
from scoresde.solvers.base import Corrector, Solver, Wrapper, check_solver
from scoresde.solvers.one_step import ReverseDiffusion

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


@checked
@dataclass(frozen=True)
class Langevin(Solver, Corrector):
    """Langevin corrector: x + h score + sqrt(2 h) z with h = 2 (snr |z|/|score|)^2 (2011.13456, algorithm 4).

    Norms are per sample, so that samples do not depend on their batch. h is at most sigma_t^2, half the stability limit of the
    sharpest p_t there can be: in few dimensions the score is close to 0 now and then, and the step would be without bound. Take a
    small snr there, 0.01 in two dimensions: a step that depends on x is biased. Used inside ``PredictorCorrector``; as a solver
    of its own it corrects at each time without a predictor. ``steps`` calls a step.
    """

    snr: float = 0.16
    steps: int = 1
    asks: ClassVar[str] = "eps"
    noise: ClassVar[str] = "weak"

    def __post_init__(self) -> None:
        check_positive(self.snr, "snr")
        check_integer(self.steps, "steps", 0, 1000)

    def correct(self, model: Answers, x: Tensor, t: Level, noise: Draw) -> Tensor:
        """Moves x towards p_t, at t."""
        for i in range(self.steps):
            z = noise(CORRECTOR + i)
            score = model.score(x, t)
            tiny = torch.finfo(score.dtype).tiny
            ratio = per_sample_norm(z) / per_sample_norm(score).clamp_min(tiny)
            h = expand((2 * (self.snr * ratio) ** 2).clamp_max(t.sigma**2), x)
            x = torch.addcmul(x, h, score).addcmul_((2 * h).sqrt(), z)
        return x

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        return self.correct(model, x, s, noise), state


@checked
@dataclass(frozen=True)
class PredictorCorrector(Wrapper):
    """A predictor step from t to s, then a corrector at s (2011.13456, algorithm 1).

    order="corrector-predictor" corrects at t first, as the paper's code does. The grid is the predictor's, or the SDE's.

    Raises ConfigError: a corrector or order that is none; in a solve, a predictor in the coordinates of a reference
    (``ReferenceSolver``), which goes on from its own state and would not see the corrections.
    """

    predictor: Solver = ReverseDiffusion()  # noqa: RUF009 (frozen)
    corrector: Corrector = Langevin()
    order: str = "predictor-corrector"
    wraps: ClassVar[str] = "predictor"
    noise: ClassVar[str] = "weak"
    accuracy: ClassVar[None] = None  # Langevin's bias does not shrink with the steps of the predictor

    def __post_init__(self) -> None:
        if self.order not in ("predictor-corrector", "corrector-predictor"):
            raise ConfigError(f"order = {self.order!r}, expected 'predictor-corrector' or 'corrector-predictor'")
        check_solver(self.predictor, "predictor")
        if not isinstance(self.corrector, Corrector):
            raise ConfigError(
                f"corrector = {self.corrector!r}, expected a corrector: scoresde.Langevin() or a subclass of scoresde.Corrector"
            )

    def bind(self, model: Answers, steps: int | None) -> PredictorCorrector:
        """With the predictor for this model."""
        if self.predictor.needs_memory:
            raise ConfigError(
                f"{type(self.predictor).__name__} as a predictor goes on from its own state, which a corrector does not move: "
                "take DDIM(), Ancestral() or a solver of another kind"
            )
        return super().bind(model, steps)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        if self.order == "corrector-predictor":
            x = self.corrector.correct(model, x, t, noise)
        x, state = self.predictor.step(model, x, t, s, state, noise)
        if self.order == "predictor-corrector":
            x = self.corrector.correct(model, x, s, noise)
        return x, state

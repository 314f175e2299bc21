"""EDM's stochastic sampler (2206.00364, algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_least
from scoresde.core.doors import checked
from scoresde.core.streams import STEP
from scoresde.core.tensors import affine
from scoresde.errors import ConfigError
from scoresde.sdes import grid
from scoresde.solvers.base import Solver, check_decreasing
from scoresde.solvers.stochastic_adams import keep_fields

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


@checked
@dataclass(frozen=True)
class EDMStochastic(Solver):
    """Heun's method in s = sigma/alpha with churn: noise is added before each step (2206.00364, algorithm 2). Two calls a step.

    On a step from s to s' with n steps in all: s^ = (1 + min(s_churn/n, sqrt(2) - 1)) s if s_min <= s <= s_max, else s;
    y^ = y + sqrt(s^^2 - s^2) s_noise z; then Heun's method on dy/ds = (y - D)/s from s^ to s'. s^ is at most the SDE's largest s.
    The paper ends with an Euler step to s = 0. Here s is positive at the end, so that the last step is one of Heun's as well
    and the model is never called at s = 0; ``denoise=True`` of ``sample`` is the step to 0. s_churn = 0 is the ODE, of order 2.

    Args:
        s_churn: amount of noise, at least 0. s_min, s_max: where, in units of s. s_noise: its scale.

    Raises ConfigError for negative numbers, or s_min > s_max.
    """

    s_churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.0
    asks: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        for name in ("s_churn", "s_min", "s_noise"):
            keep_fields(self, **{name: check_least(getattr(self, name), 0.0, name)})
        if isinstance(self.s_max, bool) or not isinstance(self.s_max, (int, float)) or not self.s_max >= self.s_min:
            raise ConfigError(f"s_min = {self.s_min!r} and s_max = {self.s_max!r}, expected s_min <= s_max")

    @property
    def accuracy(self) -> float | None:
        """2 for the ODE, and for the law with churn, whose noise leads from one exact law to another.

        With churn and an ``s_noise`` that is not 1 there is a bias that stays: None.
        """
        return 2.0 if self.s_noise == 1 or not self.s_churn else None

    @property
    def noise(self) -> str:
        return "weak" if self.s_churn else "deterministic"

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """``grid.karras``, as in the paper."""
        return grid.karras(sde, n, start, end)

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> dict[float, Level]:
        """The level that noise is added up to, by the time a step starts from; steps without churn are left out."""
        if self.s_churn:
            check_decreasing(self, times)
        gamma = min(self.s_churn / (len(times) - 1), math.sqrt(2) - 1)
        largest = model.sde.levels([model.sde.t_max])[0].s
        wanted = {t: min((1 + gamma) * t.s, largest) for t in times[:-1] if self.s_min <= t.s <= self.s_max}
        wanted = {t: s for t, s in wanted.items() if s > t.s}
        if not wanted:
            return {}
        log_snr = torch.tensor([-2 * math.log(s) for s in wanted.values()], dtype=torch.float64, device="cpu")
        found = model.sde.levels(model.sde.time_of_log_snr(log_snr).clamp(max=model.sde.t_max))
        return {t: hat for t, hat in zip(wanted, found, strict=True) if hat.s > t.s}

    def step(
        self, model: Answers, x: Tensor, t: Level, s: Level, state: dict[float, Level], noise: Draw
    ) -> tuple[Tensor, dict[float, Level]]:
        hat = state.get(t, t)
        if hat is not t:
            std = self.s_noise * math.sqrt((hat.s - t.s) * (hat.s + t.s))
            x = affine(hat.alpha / t.alpha, x, hat.alpha * std, noise(STEP))
        # dy/ds = (y - D)/s = eps: in x, y' = y + h eps is x' = alpha'/alpha^ x + alpha' h eps
        h = s.s - hat.s
        d_hat = model.eps(x, hat)
        y = affine(s.alpha / hat.alpha, x, s.alpha * h, d_hat)
        d_s = model.eps(y, s)
        return y.add_(d_s, alpha=0.5 * s.alpha * h).add_(d_hat, alpha=-0.5 * s.alpha * h), state

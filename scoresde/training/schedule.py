"""Learning rates by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "constant", "inverse-sqrt")

ENDLESS = ("constant", "inverse-sqrt")  # in which no step depends on how many there will be


@dataclass(frozen=True)
class Schedule:
    """The learning rate of step k = 0, 1, ...: a linear rise over ``warmup`` steps, then constant, or from step ``hold`` on half
    a cosine that would be 0 at step ``steps``, or lr sqrt(h/k) from k = h = max(hold, 1) on (1706.03762, section 5.3)."""

    lr: float
    steps: int | None
    warmup: int = 0
    hold: int = 0
    kind: str = "cosine"

    def __call__(self, k: int) -> float:
        rise = min(1.0, (k + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "inverse-sqrt" and k > self.hold:
            return self.lr * rise * math.sqrt(max(self.hold, 1) / k)
        if self.kind != "cosine" or self.steps is None or k < self.hold:
            return self.lr * rise
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * (k - self.hold) / max(self.steps - self.hold, 1)))

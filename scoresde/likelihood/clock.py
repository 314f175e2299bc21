"""The time in which log p changes evenly: where likelihoods put their nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.solvers.reference import CENTER

if TYPE_CHECKING:
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level

DETAIL, DETAIL_WIDTH = 0.5, 0.7  # share of the nodes for where levels come apart, and how wide that is in log-SNR


@dataclass(frozen=True)
class Clock:
    r"""The time in which nodes of a likelihood are equally spaced, as a function of s = sigma/alpha.

    .. math:: w = \sum_i p_i \frac{u_i}{1 + u_i}, \qquad u_i = (s/s_i)^{1/b_i}, \qquad
              \frac{d\lambda}{dw} = -1 \Big/ \sum_i \frac{p_i}{b_i} \frac{u_i}{(1 + u_i)^2}

    One part, at the scale of the data, is the clock of ``ReferenceSolver``. Levels that were not dequantized come apart at another
    scale, their ``detail``, far below; there the rate of log p falls by 1 a dimension, and half of the nodes are for that.

    Args:
        parts: (p, center s_i, width b_i) of each, the p with sum 1.
    """

    parts: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, reference: GaussianReference, width: float | None = None) -> Clock:
        """The clock of a reference."""
        center, width = CENTER * reference.scale, width or reference.width or 1.0
        if reference.detail is None:
            return cls(((1.0, center, width),))
        return cls(((1 - DETAIL, center, width), (DETAIL, reference.detail, DETAIL_WIDTH)))

    def time(self, t: Level) -> float:
        """w of a level."""
        return float(self.w(_log_s(t)))

    def slope(self, t: Level) -> float:
        """dlam/dw at a level."""
        return -1 / float(self.rate(_log_s(t)))

    def w(self, log_s: Tensor) -> Tensor:
        """w at log s."""
        return sum((p * v for p, _, v in self._logistics(log_s)), torch.zeros_like(log_s))

    def rate(self, log_s: Tensor) -> Tensor:
        """dw/dlog s."""
        return sum((p / width * v * (1 - v) for p, width, v in self._logistics(log_s)), torch.zeros_like(log_s))

    def _logistics(self, log_s: Tensor) -> list[tuple[float, float, Tensor]]:
        """Share, width and u/(1 + u) of each part."""
        return [(p, width, torch.sigmoid((log_s - math.log(center)) / width)) for p, center, width in self.parts]

    def log_s(self, share: Tensor, first: Level, last: Level) -> Tensor:
        """log s where a share of w between two levels has gone by, float64; by bisection, since several parts have no closed form."""
        w = self.time(first) + (self.time(last) - self.time(first)) * share.double()
        a, b = (_log_s(t).to(w).expand(w.shape) for t in (first, last))
        for _ in range(56):  # to the last bit
            middle = (a + b) / 2
            above = self.w(middle) > w
            a, b = torch.where(above, a, middle), torch.where(above, middle, b)
        return (a + b) / 2

    def levels(self, sde: SDE, n: int) -> list[Level]:
        """n + 1 levels from t_min to t_max, equally spaced in w."""
        inner = self.log_s(torch.arange(1, n, dtype=torch.float64, device="cpu") / n, *sde.levels([sde.t_min, sde.t_max]))
        return sde.levels([sde.t_min, *sde.time_of_log_snr(-2 * inner).clamp(sde.t_min, sde.t_max).tolist(), sde.t_max])


def _log_s(t: Level) -> Tensor:
    return torch.tensor(-t.lam, dtype=torch.float64, device="cpu")

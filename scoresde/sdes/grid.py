"""Time grids: functions that return a decreasing float64 tensor of n + 1 times, from ``start`` to ``end``.

Any decreasing tensor that you build is as good: ``sample(model, times=...)``. All take an SDE and n, the number of steps;
``start`` defaults to the SDE's t_max and ``end`` to its t_end (or t_min), where ``sample`` stops.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.core.checks import check_calls, check_positive, check_positive_int
from scoresde.core.doors import checked
from scoresde.errors import ConfigError
from scoresde.sdes.levels import SLACK

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE


def default_end(sde: SDE) -> float:
    """Where ``sample`` stops if it is not told: at the SDE's t_end, or t_min."""
    return sde.t_min if sde.t_end is None else max(sde.t_end, sde.t_min)


def _ends(sde: SDE, start: float | None, end: float | None) -> tuple[float, float]:
    if end is None:
        end = default_end(sde)
    try:
        start, end = sde.t_max if start is None else float(start), float(end)
    except (TypeError, ValueError):
        raise ConfigError(f"a grid from t = {start!r} down to t_end = {end!r}: expected numbers") from None
    end = sde.t_min if sde.t_min * (1 - SLACK) <= end < sde.t_min else end
    start = sde.t_max if sde.t_max < start <= sde.t_max * (1 + SLACK) else start
    if not sde.t_min <= end < start <= sde.t_max:
        raise ConfigError(
            f"a grid from t = {start:.6g} down to t_end = {end:.6g}: expected "
            f"t_min = {sde.t_min:.6g} <= t_end < t_start <= t_max = {sde.t_max:.6g}"
        )
    return start, end


def _pin(times: Tensor, start: float, end: float) -> Tensor:
    times[0], times[-1] = start, end  # exactly, whatever the rounding of the formula
    return times


@checked
def uniform(sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Equal steps in t."""
    return _power(sde, n, start, end, 1.0)


@checked
def quadratic(sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Equal steps in sqrt(t): shorter ones near the data (2010.02502, section D.2)."""
    return _power(sde, n, start, end, 2.0)


def _power(sde: SDE, n: int, start: float | None, end: float | None, rho: float) -> Tensor:
    start, end = _ends(sde, start, end)
    u = torch.linspace(0, 1, check_calls(check_positive_int(n, "steps"), "steps") + 1, dtype=torch.float64, device="cpu")
    return _pin((start ** (1 / rho) * (1 - u) + end ** (1 / rho) * u) ** rho, start, end)


@checked
def karras(sde: SDE, n: int, start: float | None = None, end: float | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho) (2206.00364, eq. 5), in any SDE's own time."""
    start, end = _ends(sde, start, end)
    check_positive(rho, "rho")
    ratio = (-0.5 * sde.log_snr(torch.tensor([start, end], dtype=torch.float64, device="cpu"))).exp() ** (1 / rho)
    u = torch.linspace(0, 1, check_calls(check_positive_int(n, "steps"), "steps") + 1, dtype=torch.float64, device="cpu")
    return _pin(sde.time_of_log_snr(-2 * rho * (ratio[0] * (1 - u) + ratio[1] * u).log()), start, end)


@checked
def log_snr(sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Equal steps in log-SNR (2206.00927, section 3.2)."""
    start, end = _ends(sde, start, end)
    ends = sde.log_snr(torch.tensor([start, end], dtype=torch.float64, device="cpu"))
    u = torch.linspace(0, 1, check_calls(check_positive_int(n, "steps"), "steps") + 1, dtype=torch.float64, device="cpu")
    return _pin(sde.time_of_log_snr(ends[0] * (1 - u) + ends[1] * u), start, end)


@checked
def logistic(
    sde: SDE, n: int, start: float | None = None, end: float | None = None, center: float = 0.4, width: float = 1.5
) -> Tensor:
    """Equal steps in w = u/(1 + u), u = (s/center)^(1/width), s = sigma/alpha: a logistic function of the log-SNR.

    Steps are shortest in log s around ``center``, where samples settle for a mode, and grow towards both ends. A large width tends
    to ``log_snr``.
    """
    start, end = _ends(sde, start, end)
    check_positive(center, "center")
    check_positive(width, "width")
    logit = (-0.5 * sde.log_snr(torch.tensor([start, end], dtype=torch.float64, device="cpu")) - math.log(center)) / width
    w, one_less_w = logit.sigmoid(), (-logit).sigmoid()  # 1 - w without cancellation
    u = torch.linspace(0, 1, check_calls(check_positive_int(n, "steps"), "steps") + 1, dtype=torch.float64, device="cpu")
    logit = (w[0] * (1 - u) + w[1] * u).log() - (one_less_w[0] * (1 - u) + one_less_w[1] * u).log()
    return _pin(sde.time_of_log_snr(-2 * (width * logit + math.log(center))), start, end)


def clock(s: float, center: float, width: float) -> float:
    """The time w = u/(1 + u), u = (s/center)^(1/width), of s = sigma/alpha, in which ``logistic`` takes equal steps."""
    return 1 / (1 + (center / s) ** (1 / width))


def lam_of_clock(w: float, center: float, width: float) -> float:
    """lambda = -log s of a time w: the inverse of ``clock``."""
    return -math.log(center) - width * math.log(w / (1 - w))


@checked
def default(sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
    """The grid that the SDE names in ``default_grid``."""
    return getattr(sys.modules[__name__], sde.default_grid)(sde, n, start, end)

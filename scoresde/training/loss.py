r"""Denoising score matching: how far a model's noise estimate is from the noise, weighted over time.

.. math:: L = \int_{t_\min}^{t_\max} w(t)\, \frac{1}{D}\, E \lVert \varepsilon - \hat\varepsilon(x_t, t) \rVert^2\, dt,
          \qquad x_t = \alpha(t) x_0 + \sigma(t) \varepsilon

(Vincent 2011; Song et al., arXiv 2011.13456, eq. 7). A *weighting* is a function (sde, t) -> w(t); a *time sampling* is a
function (sde, u) -> (t, density of t) that maps uniform numbers to times. Any of them goes with any other: w / density times
the squared error is an unbiased estimate of L, the true loss, whatever the density. Yours may be any such function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from scoresde.core.checks import check_positive, did_you_mean, theirs
from scoresde.core.tensors import expand, like
from scoresde.errors import ConfigError, NonFiniteError, ShapeError
from scoresde.models.parameterization import SIGMA_DATA
from scoresde.sdes.base import SDE, device_of
from scoresde.sdes.levels import SLACK

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

Weighting: TypeAlias = Callable[[SDE, Tensor], Tensor]

Times: TypeAlias = Callable[[SDE, Tensor], tuple[Tensor, Tensor]]


def squared_error(model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **cond: Any) -> Tensor:
    """|eps - eps_hat(alpha x0 + sigma eps, t)|^2 / D of each sample, (B,), with one call of the model.

    Args:
        model: the model; its ``eps`` is what is judged.
        x0: clean samples (B, *event).
        t: times (B,), float64.
        eps: standard normal noise (B, *event).
        cond: goes to the model.
    """
    sde = model.sde
    alpha, sigma = expand(sde.alpha(t), x0), expand(sde.sigma(t), x0)
    x_t = like(alpha, x0) * x0 + like(sigma, x0) * eps
    return (eps - model.eps(x_t, t, **cond)).square().flatten(1).mean(1)


def denoising_loss(model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, **cond: Any) -> Tensor:
    """weight |eps - eps_hat|^2 / D of each sample, (B,); see ``squared_error``.

    With weight = w(t) / density(t) its mean is an unbiased estimate of the true loss, in nats per dimension for the
    ``likelihood`` weighting.
    """
    return like(weight, x0) * squared_error(model, x0, t, eps, **cond)


# ---- weightings: (sde, t) -> w(t), both of shape (B,)
def simple(sde: SDE, t: Tensor) -> Tensor:
    """w = 1: the noise at every time counts the same (2006.11239, eq. 14)."""
    return torch.ones_like(t)


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """w = g^2/(2 sigma^2): L is the bound on -log p in nats per dimension, up to terms without the model (2101.09258)."""
    return 0.5 * (sde.diffusion(t) / sde.sigma(t)).square()


def min_snr(sde: SDE, t: Tensor, gamma: float = 5.0) -> Tensor:
    """w = min(SNR, gamma)/SNR: less weight where there is little noise (2303.09556, section 3.4, for the noise)."""
    return (gamma * torch.exp(-sde.log_snr(t))).clamp(max=1.0)


def edm(sde: SDE, t: Tensor) -> Tensor:
    """EDM's loss: (1 + (sigma/alpha)^2/sigma_data^2) times its own density of times, ``lognormal`` (2206.00364, table 1)."""
    return (1 + torch.exp(-sde.log_snr(t)) / SIGMA_DATA**2) * _lognormal_density(sde, t, -1.2, 1.2)


# ---- time samplings: (sde, u (B,) in [0, 1)) -> (t (B,), density of t with respect to dt (B,)), float64
def uniform(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """t uniform in [t_min, t_max]."""
    t = sde.t_min + (sde.t_max - sde.t_min) * u
    return t, torch.full_like(t, 1 / (sde.t_max - sde.t_min))


def importance(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Density proportional to g^2/sigma^2 = -d log-SNR/dt: log-SNR is uniform, and the likelihood-weighted loss has no variance
    from its weight (2101.09258, section 4.1, here in closed form for every SDE).

    Its normalizer is log-SNR(t_min) - log-SNR(t_max).
    """
    high, low = _log_snr_range(sde)
    t = sde.time_of_log_snr(high - (high - low) * u.double()).clamp(sde.t_min, sde.t_max)
    return t, 2 * likelihood(sde, t) / (high - low)


def lognormal(sde: SDE, u: Tensor, mean: float = -1.2, std: float = 1.2) -> tuple[Tensor, Tensor]:
    """ln(sigma/alpha) normal, cut off at the ends of the SDE's range (2206.00364, table 1: P_mean, P_std)."""
    first, last = _normal_range(sde, mean, std)
    z = torch.special.ndtri(first + (last - first) * u.double())
    t = sde.time_of_log_snr(-2 * (mean + std * z)).clamp(sde.t_min, sde.t_max)
    return t, _lognormal_density(sde, t, mean, std)


@dataclass(frozen=True)
class FittedTimes:
    r"""Log-SNR with a density that is constant in each of n equal parts of its range, from t_min on: a fitted noise schedule.

    The variance of a loss estimated at one random time is smallest for a density proportional to the root mean square of what is
    estimated there; the loss itself does not depend on it. In continuous time a schedule is no more than that (2107.00630, section
    5.1 and app. I: the bound depends on its end points only, and the rest is chosen for the least variance).

    Args:
        shares: probability of each part, n positive numbers with sum 1.

    >>> import scoresde as sd
    >>> t, density = FittedTimes((0.5, 0.25, 0.25))(sd.VPSDE(), torch.tensor([0.1, 0.9]))
    """

    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < p <= 1 for p in self.shares) or abs(math.fsum(self.shares) - 1) > 1e-9:
            raise ConfigError(f"shares = {self.shares}, expected positive numbers with sum 1")

    @classmethod
    def of(cls, part: Tensor, value: Tensor, n: int = 32, floor: float = 0.2) -> FittedTimes:
        """The best shares for losses ``value`` (N,) seen in parts ``part`` (N,) of 0..n-1; a share ``floor`` stays uniform.

        Raises:
            NonFiniteError: losses that are not finite.
        """
        if not bool(value.isfinite().all()):
            raise NonFiniteError(f"{int((~value.isfinite()).sum())} of {len(value)} losses are not finite: no times can be fitted to them")
        if not bool(value.any()):
            return cls((1 / n,) * n)
        square, count = (torch.bincount(part, weights, n).double() for weights in (value.double().square(), None))
        rms = (square / count.clamp(min=1)).sqrt()
        rms = torch.where(count > 0, rms, rms.sum() / (count > 0).sum())  # where none was seen: as elsewhere
        padded = torch.cat([rms[:1], rms, rms[-1:]])
        smooth = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
        shares = (1 - floor) * smooth / smooth.sum() + floor / n
        return cls(tuple((shares / shares.sum()).tolist()))

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.tensor(self.shares, dtype=torch.float64, device=u.device)
        n, ends = len(shares), torch.cat([shares.new_zeros(1), shares.cumsum(0)])
        part = torch.searchsorted(ends, u.double(), right=True).sub(1).clamp(0, n - 1)
        t, density = importance(sde, (part + ((u.double() - ends[part]) / shares[part]).clamp(0, 1)) / n)
        return t, density * n * shares[part]


def stratify(u: Tensor, ids: Tensor | None = None, n: int | None = None) -> Tensor:
    """(i + u_i)/n: one draw in each of n equal parts of [0, 1), which takes most of the variance over time away.

    Args:
        u: uniform numbers in [0, 1), (B,).
        ids: which part each of them is for, (B,); 0..B-1 by default.
        n: number of parts; B by default.
    """
    ids = torch.arange(len(u), device=u.device) if ids is None else ids
    return (ids.to(u.device) + u.double()) / (len(u) if n is None else n)


def sample_times(times: str | Times, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times and their densities, both (B,) and float64, from uniform numbers u (B,) in [0, 1).

    Args:
        times: "uniform", "stratified" (uniform, u taken as one a stratum), "lognormal", "importance", or a function.
        sde: the diffusion.
        u: uniform numbers; ``stratify`` them first for less variance.

    Raises:
        ConfigError: an unknown name.
    """
    t, density = guarded(resolve_times(times), "times")(sde, stratify(u) if times == "stratified" else u.double())
    return t, density


_WEIGHTINGS: dict[str, Weighting] = {"simple": simple, "likelihood": likelihood, "min-snr": min_snr, "edm": edm}

_TIMES: dict[str, Times] = {
    "uniform": uniform,
    "stratified": uniform,
    "lognormal": lognormal,
    "importance": importance,
    "fitted": importance,  # until ``fit`` has seen losses to fit it to
}


def resolve_weighting(weighting: str | Weighting) -> Weighting:
    """The function behind "simple", "likelihood", "min-snr" or "edm"; a function is itself. Raises ConfigError."""
    return _resolve(weighting, _WEIGHTINGS, "weighting", "(sde, t) -> w(t)")


def resolve_times(times: str | Times) -> Times:
    """The function behind "uniform", "stratified", "lognormal", "importance" or "fitted". Raises ConfigError."""
    return _resolve(times, _TIMES, "times", "(sde, u) -> (t, density)")


def check_functions(weighting: Weighting, times: Times, sde: SDE) -> None:
    """Tries a weighting and a density of times, which may be a user's own, on a few numbers.

    Raises:
        ConfigError, ShapeError: one that raises, or answers something else than it should; says which and what.
    """
    u = (torch.arange(8, dtype=torch.float64, device=device_of(sde)) + 0.5) / 8
    with torch.no_grad():
        t, density = times(sde, u)
        low, high = sde.t_min * (1 - SLACK), sde.t_max * (1 + SLACK)
        if not (bool((t >= low).all()) and bool((t <= high).all()) and bool((density > 0).all()) and bool(density.isfinite().all())):
            raise ConfigError(
                f"your function times gave times from {float(t.min()):.4g} to {float(t.max()):.4g} with densities from "
                f"{float(density.min()):.4g}, expected times in [{sde.t_min:.4g}, {sde.t_max:.4g}] and finite densities > 0"
            )
        weight = weighting(sde, t)
        if not (bool((weight >= 0).all()) and bool(weight.isfinite().all())):
            raise ConfigError(f"your function weighting gave {float(weight.min()):.4g}, expected finite numbers of at least 0")


def total_weight(weighting: Weighting, sde: SDE, n: int = 4096) -> float:
    """The integral of w(t) over [t_min, t_max], by the midpoint rule in log-SNR.

    Dividing by it makes the loss a weighted average of squared errors, which start at about 1 for every SDE and weighting, so
    that one learning rate and one gradient clip suit them all.

    Raises:
        ConfigError: the integral is not positive and finite.
    """
    with torch.no_grad():
        t, density = importance(sde, (torch.arange(n, dtype=torch.float64, device=device_of(sde)) + 0.5) / n)
        return check_positive(float((weighting(sde, t) / density).mean()), "the integral of weighting(sde, t) over t")


def _resolve(value: Any, known: dict[str, Any], name: str, signature: str) -> Any:
    if callable(value):
        return value
    if not isinstance(value, str) or value not in known:
        names = ", ".join(known)
        raise ConfigError(f"{name} = {value!r}, expected one of {names} or a function {signature}{did_you_mean(str(value), known, 0.3)}")
    return known[value]


def guarded(function: Any, name: str) -> Any:
    """A user's function, which is named in what goes wrong with it: one tensor, or for times two, a value for each time it was given."""

    if function in (*_WEIGHTINGS.values(), *_TIMES.values()) or isinstance(function, FittedTimes):
        return function

    @functools.wraps(function, updated=())
    def call(sde: SDE, u: Tensor) -> Any:
        with theirs(f"your function {name}"):
            found = function(sde, u)
        parts = found if name == "times" and isinstance(found, (tuple, list)) else (found,)
        if len(parts) != (2 if name == "times" else 1) or not all(isinstance(v, Tensor) and v.shape == u.shape for v in parts):
            got = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in parts)
            wanted = "two tensors" if name == "times" else "a tensor"
            raise ShapeError(f"your function {name} gave ({got}), expected {wanted} of shape {tuple(u.shape)}")
        return found

    return call


def _log_snr_range(sde: SDE) -> tuple[float, float]:
    high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device=device_of(sde))).tolist()
    return high, low


def _normal_range(sde: SDE, mean: float, std: float) -> tuple[float, float]:
    """The standard normal distribution function at both ends of the range of ln(sigma/alpha)."""
    check_positive(std, "std")
    high, low = _log_snr_range(sde)
    ends = [0.5 * math.erfc((mean - end) / (std * math.sqrt(2))) for end in (-high / 2, -low / 2)]
    if not ends[1] - ends[0] > 1e-6:
        raise ConfigError(
            f"lognormal times with mean = {mean} and std = {std} are outside ln(sigma/alpha) = {-high / 2:.4g}..{-low / 2:.4g} "
            f"of {sde}: give a mean within"
        )
    return ends[0], ends[1]


def _lognormal_density(sde: SDE, t: Tensor, mean: float, std: float) -> Tensor:
    """Density in t of ln(sigma/alpha) ~ N(mean, std^2) within the SDE's range; d ln(sigma/alpha)/dt = g^2/(2 sigma^2)."""
    first, last = _normal_range(sde, mean, std)
    z = (-0.5 * sde.log_snr(t) - mean) / std
    return torch.exp(-0.5 * z.square()) / (math.sqrt(2 * math.pi) * std * (last - first)) * likelihood(sde, t)

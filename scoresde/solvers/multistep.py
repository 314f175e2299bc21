r"""Exponential and multistep solvers: the linear part of the ODE solved exactly, the network's answers extrapolated by polynomials.

With lam = log(alpha/sigma), h = lam_s - lam_t and tau the part of it that is passed, the probability-flow ODE is, exactly,

.. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_0^h e^{-(h-\tau)} x_0(\tau)\, d\tau
              = \frac{\alpha_s}{\alpha_t} x_t - \sigma_s \int_0^h e^{h-\tau} \varepsilon(\tau)\, d\tau

for any alpha and sigma. A solver puts a polynomial for x_0 or eps, through its values at this time and at some before (or, for
a corrector, after). So each is a weighted sum of x and of a few answers of the network; the weights are computed in ``init``.

All but the singlestep ones take one call a step and start with order 1, then 2, and so on. The first steps' errors of h^2 and
h^3 remain, of solvers of order 3 and 4. From noise they are small: on exact mixtures slopes fall to 2 or 3 at errors of 1e-8 to
1e-7 (velocity under VE: 1e-5). From the middle of a range they set the order, unless the first steps are short.

``lower_order_final``, of DPM-Solver++ and UniPC: where the last step is longer than LONG in lam, it is of order 1, and the one
before of order 2 at most. Over such a step, next to the data, a polynomial overshoots. A rule by length does not touch the
order. On exact mixtures, in uniform time, errors are mostly 2 to 20 times smaller for it (1.9 times larger at worst: 2M, 10
steps, 16-D). DEIS and Adams-Bashforth do not have it: of eps, v and velocity it mostly costs accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.doors import checked
from scoresde.core.exponential import exponential_weights, halved_weights, lagrange
from scoresde.core.quadrature import legendre
from scoresde.core.tensors import affine
from scoresde.errors import ConfigError
from scoresde.sdes import grid as grids
from scoresde.solvers.base import check_eta
from scoresde.solvers.weighted_sums import Call, Step, WeightedSums, from_ddim, weighted_sum

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level

LONG = 0.5  # in lam: a longer last step is taken at order 1


def _orders(steps: int, order: int, lower: bool = False) -> list[int]:
    """The order of each step: 1, 2, ... at the start, and ..., 2, 1 at the end where that is wanted."""
    return [min(order, i + 1, steps - i if lower else order) for i in range(steps)]


def _add(a: list[float], b: list[float]) -> list[float]:
    """Their sum, the shorter one filled up with zeros."""
    return [x + y for x, y in zip_longest(a, b, fillvalue=0.0)]


def _half_log_snr(times: Sequence[Level]) -> list[float]:
    """lam = log(alpha/sigma) of all times. Raises ConfigError if two neighbours share it."""
    lam = [t.lam for t in times]
    for (t, s), (a, b) in zip(pairwise(times), pairwise(lam), strict=True):
        if a == b:
            raise ConfigError(f"times {float(t)!r} and {float(s)!r} have the same log-SNR: leave one of them out")
    return lam


def _log_snr_grid(self: Any, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Equal steps in log-SNR."""
    return grids.log_snr(sde, n, start, end)


def _ask_x0(self: Any, model: Answers, x: Tensor, t: Level) -> tuple[Tensor | None, Tensor]:
    return None, model.denoise(x, t)


def _check_choice(value: Any, choices: Sequence[Any], name: str) -> None:
    if type(value) is not type(choices[0]) or value not in choices:  # neither True nor 2.0 is an order
        raise ConfigError(f"{name} = {value!r}, expected one of {', '.join(map(repr, choices))}")


# ---- the solvers
@checked
@dataclass(frozen=True)
class DPMSolverPP(WeightedSums):
    r"""DPM-Solver++ of order 1 to 3: multistep, singlestep and stochastic (2211.01095), on x_0 as a polynomial in lam.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta^2 h} x_t
              + \alpha_s (1 + \eta^2) \int_0^h e^{-(1+\eta^2)(h-\tau)} x_0(\tau)\, d\tau + \sigma_s \sqrt{1 - e^{-2 \eta^2 h}}\, z

    Multistep, one call a step: order 1 is DDIM (``Ancestral`` with eta = 1), order 2 is 2M with the paper's weights (algorithm 2),
    order 3 is 3M with the exact weights of the parabola through three values. (3M as it is found elsewhere takes half of the second
    difference, and is of order 2.) Singlestep, ``order`` calls a step: 2S (algorithm 1, r = 1/2) and 3S (r = 1/3, 2/3).

    Args:
        order: 1, 2 or 3.
        singlestep: intermediate calls within the step instead of past ones.
        eta: 0 is the ODE, 1 the reverse SDE, as in ``EulerMaruyama``; z is standard normal. With eta = 1 these are
            SDE-DPM-Solver++ (2M) and its third-order kin. Their weak order is ``order``, up to 2.
        lower_order_final: see the module; multistep only.

    Raises:
        ConfigError: other orders; eta < 0; eta > 0 with singlestep, or from data to noise.
    """

    order: int = 2
    singlestep: bool = False
    eta: float = 0.0
    lower_order_final: bool = True
    asks: ClassVar[str] = "x0"

    def __post_init__(self) -> None:
        _check_choice(self.order, (1, 2, 3), "order")
        check_eta(self.eta, math.inf)
        if self.singlestep and self.eta:
            raise ConfigError(f"eta = {self.eta} with singlestep=True, expected 0: the stochastic variants are multistep")

    @property
    def accuracy(self) -> float:
        return min(self.order, 2) if self.eta else self.order

    @property
    def noise(self) -> str:
        return "weak" if self.eta else "deterministic"

    grid = _log_snr_grid
    ask = _ask_x0

    def plan_steps(self, sde: SDE, times: list[Level]) -> list[Step]:
        lam = _half_log_snr(times)
        if self.singlestep:
            return self._plan_singlestep(sde, times, lam)
        lower = self.lower_order_final and lam[-1] - lam[-2] > LONG
        plan, c = [], 1 + self.eta**2
        for i, k in enumerate(_orders(len(times) - 1, self.order, lower)):
            t, s, h = times[i], times[i + 1], lam[i + 1] - lam[i]
            if self.eta and h < 0:
                raise ConfigError(f"{self} from t = {float(t):.6g} to {float(s):.6g}: the reverse SDE runs from noise to data")
            w = halved_weights([lam[i - j] - lam[i] for j in range(k)], h, c)
            std = s.sigma * math.sqrt(max(-math.expm1(-2 * (c - 1) * h), 0.0))
            a = s.sigma / t.sigma * math.exp(-(c - 1) * h)
            plan.append(weighted_sum(a, [s.alpha * c * w_j for w_j in w], t, self.order - 1, std))
        return plan

    def _plan_singlestep(self, sde: SDE, times: list[Level], lam: list[float]) -> list[Step]:
        inner = [j / self.order for j in range(1, self.order)]  # where in the step, by lam
        targets = [2 * (a + r * (b - a)) for a, b in pairwise(lam) for r in inner]
        middles = iter(sde.levels(sde.time_of_log_snr(torch.tensor(targets, dtype=torch.float64, device="cpu")))) if targets else iter(())
        plan = []
        for (t, s), l_t in zip(pairwise(times), lam, strict=False):
            levels = [t, *(next(middles) for _ in inner), s]
            h = [level.lam - l_t for level in levels]
            calls = [Call(t, levels[1].sigma / t.sigma, [-levels[1].alpha * math.expm1(-h[1])])]
            for j in range(1, self.order):  # from x_0 at the start and at the newest of the inner times
                to = levels[j + 1]
                w = (halved_weights if self.order == 2 else exponential_weights)([0.0, h[j]], h[j + 1], 1.0)
                weights = [to.alpha * w[1], *[0.0] * (j - 1), to.alpha * w[0]]
                calls.append(Call(levels[j], to.sigma / t.sigma, weights))
            plan.append(Step(calls))
        return plan


@checked
@dataclass(frozen=True)
class UniPC(WeightedSums):
    r"""UniPC of order 1 to 3 (2302.04867, algorithms 5 to 8, on x_0): a multistep predictor and a corrector, one call a step.

    Predictor: x_0 is the polynomial in lam through the values at t and at order - 1 earlier times. Once x_0 is known at s, at the
    start of the next step, the corrector adds what the polynomial through that value too would have given:

    .. math:: x_s \leftarrow x_s + \alpha_s \int_0^h e^{-(h-\tau)} [p_{k+1}(\tau) - p_k(\tau)]\, d\tau

    So a solve of order p converges at order p + 1, and N steps take N calls (the last point is not evaluated, nor corrected).
    All is linear: corrector and next predictor are one weighted sum.

    Args:
        order: 1, 2 or 3, of the predictor.
        corrector: False is UniP: order p, the same calls.
        variant: "bh2" or "bh1", B(h) = 1 - e^-h or h in the formulas with a single difference (predictor of order 2, corrector of
            order 1); for all others the weights do not depend on it. "bh2" is better for long steps.
        lower_order_final: see the module.

    Raises:
        ConfigError: other orders or variants.
    """

    order: int = 3
    corrector: bool = True
    variant: str = "bh2"
    lower_order_final: bool = True
    asks: ClassVar[str] = "x0"

    def __post_init__(self) -> None:
        _check_choice(self.order, (1, 2, 3), "order")
        _check_choice(self.variant, ("bh2", "bh1"), "variant")

    @property
    def accuracy(self) -> float:
        return self.order + self.corrector

    grid = _log_snr_grid
    ask = _ask_x0

    def plan_steps(self, sde: SDE, times: list[Level]) -> list[Step]:
        lam = _half_log_snr(times)
        lower = self.lower_order_final and lam[-1] - lam[-2] > LONG
        plan, change = [], [0.0]  # the change of x_t by the corrector, in the answers, the newest first
        for i, k in enumerate(_orders(len(times) - 1, self.order, lower)):
            t, s, h = times[i], times[i + 1], lam[i + 1] - lam[i]
            nodes = [lam[i - j] - lam[i] for j in range(k)]
            a = s.sigma / t.sigma
            predicted = [s.alpha * w for w in halved_weights(nodes, h, 1.0, self.variant)]
            plan.append(weighted_sum(a, _add(predicted, [a * w for w in change]), t, self.order))
            if self.corrector:
                new, *rest = self._corrector_weights(nodes, h)
                change = _add([s.alpha * w for w in [new, *rest]], [0.0, *(-w for w in predicted)])
        return plan

    def _corrector_weights(self, nodes: list[float], h: float) -> list[float]:
        """Weights of x_0 at s, then at the nodes."""
        if len(nodes) > 1:
            return exponential_weights([h, *nodes], h, 1.0)
        return halved_weights([0.0, h], h, 1.0, self.variant)[::-1]


@checked
@dataclass(frozen=True)
class DEIS(WeightedSums):
    r"""DEIS of order 1 to 4 (tAB-DEIS, 2204.13902, eq. 14): exponential Adams-Bashforth, with eps as a polynomial in t.

    .. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t + \alpha_s \int_t^s \rho'(u)\, \varepsilon(u)\, du, \qquad \rho = \sigma/\alpha

    t is the SDE's own time: sigma for ``EDMSDE``, log sigma for ``VESDE``. (For a polynomial in lam see ``AdamsBashforth``.) The
    integrals are by Gauss and Legendre with 32 nodes in float64. One call a step; order 1 is DDIM.

    Args:
        order: 1 to 4, the number of values that the polynomial goes through.

    Raises:
        ConfigError: other orders.
    """

    order: int = 3
    asks: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        _check_choice(self.order, (1, 2, 3, 4), "order")

    @property
    def accuracy(self) -> float:
        return self.order

    grid = _log_snr_grid

    def ask(self, model: Answers, x: Tensor, t: Level) -> tuple[Tensor | None, Tensor]:
        return model.predict(x, t)

    def plan_steps(self, sde: SDE, times: list[Level]) -> list[Step]:
        u, v, _ = legendre(32)
        t = torch.tensor([float(level) for level in times], dtype=torch.float64, device="cpu")
        at = (t[:-1, None] + t.diff()[:, None] * u).flatten()
        rho_dot = sde.diffusion(at).square() / (2 * sde.alpha(at) * sde.sigma(at))  # since lam' = -g^2/(2 sigma^2)
        measure = v * rho_dot.view(-1, len(u))  # of theta = (u - t)/(s - t) in [0, 1]
        powers = torch.stack([u**k for k in range(self.order)], 1)
        moments = (measure @ powers).tolist()
        plan = []
        for i, k in enumerate(_orders(len(times) - 1, self.order)):
            s, h = times[i + 1], times[i + 1] - times[i]
            theta = [(times[i - j] - times[i]) / h for j in range(k)]
            w = [s.alpha * h * sum(a * m for a, m in zip(lagrange(theta, j), moments[i], strict=False)) for j in range(k)]
            plan.append(from_ddim(w, times[i], s, self.order))
        return plan


@checked
@dataclass(frozen=True)
class AdamsBashforth(WeightedSums):
    r"""Adams-Bashforth of order 1 to 4 on steps of any length, on one of four forms of the probability-flow ODE. One call a step.

    ===========  ==================================================  ==========  =========================
    of           ODE                                                 variable    linear part
    ===========  ==================================================  ==========  =========================
    "x0"         d(x/sigma) = e^lam x_0 dlam                         lam         exact, order 1 is DDIM
    "eps"        d(x/alpha) = -e^-lam eps dlam                       lam         exact, order 1 is DDIM
    "v"          d(x/n) = (v/n) dphi, v = alpha eps - sigma x_0      phi         extrapolated with the rest
    "velocity"   dx = velocity dt                                    t           extrapolated with the rest
    ===========  ==================================================  ==========  =========================

    with tan(phi) = sigma/alpha and n^2 = alpha^2 + sigma^2, for any alpha and sigma (n = 1 under VP and cosine: v of 2202.00512).
    What the ODE integrates is extrapolated as a polynomial in the variable, through ``order`` values (2204.13902 for "eps").
    "velocity" asks the model for its velocity alone, and works in ``log_prob`` as well.

    Args:
        order: 1 to 4.
        of: "x0", "eps", "v" or "velocity".

    Raises:
        ConfigError: other orders, another ``of``.
    """

    order: int = 2
    of: str = "x0"

    def __post_init__(self) -> None:
        _check_choice(self.order, (1, 2, 3, 4), "order")
        _check_choice(self.of, ("x0", "eps", "v", "velocity"), "of")

    @property
    def asks(self) -> str:
        return "velocity" if self.of == "velocity" else "eps" if self.of == "eps" else "x0"

    @property
    def accuracy(self) -> float:
        return self.order

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """Equal steps in log-SNR; of velocity, which knows t alone, the SDE's default grid."""
        return (grids.default if self.of == "velocity" else grids.log_snr)(sde, n, start, end)

    def ask(self, model: Answers, x: Tensor, t: Level) -> tuple[Tensor | None, Tensor]:
        if self.of == "x0":
            return None, model.denoise(x, t)
        if self.of == "velocity":
            return None, model.velocity(x, t)
        x0, eps = model.predict(x, t)
        if self.of == "eps":
            return x0, eps
        n = math.hypot(t.alpha, t.sigma)
        return None, affine(t.alpha / n, eps, -t.sigma / n, x0)

    def plan_steps(self, sde: SDE, times: list[Level]) -> list[Step]:
        if self.of == "v":
            variable = [math.atan2(t.sigma, t.alpha) for t in times]
        else:
            variable = [float(t) for t in times] if self.of == "velocity" else _half_log_snr(times)
        c = {"x0": 1.0, "eps": -1.0}.get(self.of, 0.0)
        plan = []
        for i, k in enumerate(_orders(len(times) - 1, self.order)):
            t, s = times[i], times[i + 1]
            w = exponential_weights([variable[i - j] - variable[i] for j in range(k)], variable[i + 1] - variable[i], c)
            if self.of == "eps":
                plan.append(from_ddim([-s.sigma * w_j for w_j in w], t, s, self.order))
                continue
            if self.of == "x0":
                a, scale = s.sigma / t.sigma, s.alpha
            elif self.of == "v":
                n = math.hypot(s.alpha, s.sigma)
                a, scale = n / math.hypot(t.alpha, t.sigma), n
            else:
                a, scale = 1.0, 1.0
            plan.append(weighted_sum(a, [scale * w_j for w_j in w], t, self.order - 1))
        return plan

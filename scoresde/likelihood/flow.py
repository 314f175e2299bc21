r"""log p along the probability-flow ODE in the coordinates of a Gaussian reference: one network call a node.

With the symbols of ``GaussianReference``, v = c + s^2 and lam = log(alpha/sigma), the density p_z of z obeys

.. math:: \frac{dz}{d\lambda} = F, \qquad \frac{d \log p_z}{d\lambda} = -A, \qquad
          A = \alpha \, \mathrm{tr} \frac{dD}{dx} - \sum_i \frac{c_i}{v_i}

so that log p(x) = log p_z(z at t_max) - (integral of A over lam from t_max to t_min) - 1/2 sum log(alpha^2 v) at t_min. F and A are 0 for
Gaussian data, and both fade at both ends of the path. The path z is found by the predictor-corrector method of ``ReferenceSolver`` in
the time w, from data to noise; A is integrated at the end, by cubics through the four nearest nodes on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scoresde.core.checks import check_calls, check_positive_int
from scoresde.core.exponential import exponential_weights
from scoresde.likelihood.clock import Clock
from scoresde.likelihood.traces import share
from scoresde.solvers.reference import Coordinates, adams_weights
from scoresde.solvers.untuned import hides_data

if TYPE_CHECKING:
    from scoresde.likelihood.traces import Traces
    from scoresde.models.base import ScoreModel
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.levels import Level
    from scoresde.solvers.reference import ReferenceSolver

STEPS = 40  # network calls when not told how many

LOWER = 2 / 3  # share of the lower of two orders in their predictions

ROUGH_UP_TO = 50  # calls of a network, whose predictions are of order 3: those of order 4 run away where it is rough in the noise level

FREE_UP_TO = 20  # calls: with more, moments from data would err more at t_max than the steps do


class Plan(NamedTuple):
    """What is computed once: nodes from t_min to t_max, weights of z at each (newest first), and of A."""

    reference: GaussianReference
    levels: list[Level]
    slopes: list[float]
    correct: Sequence[Sequence[float]]
    predict: Sequence[Sequence[float]]
    quadrature: Sequence[float]
    free: bool
    keep: int


def plan(model: ScoreModel, solver: ReferenceSolver, steps: int | None) -> Plan:
    """The nodes and weights of ``steps`` network calls (None: ``STEPS``), in the coordinates of the solver's reference or the model's.

    Raises:
        ConfigError: neither has a reference, or steps < 1.
    """
    calls, sde = STEPS if steps is None else check_calls(check_positive_int(steps, "steps"), "steps"), model.sde
    solver = replace(solver.bind(model, None), free=solver.free, width=solver.width)
    reference = solver._reference()
    end = sde.levels([sde.t_max])[0]
    # where noise hides the data F = A = 0 is known, as far as the moments are: t_max is a node that needs no call
    free = solver.free
    if free is None:
        free = (reference.exact or calls <= FREE_UP_TO) and hides_data(reference, end)
    clock = Clock.of(reference, solver.width)
    levels = clock.levels(sde, calls if free or calls == 1 else calls - 1)
    w = [clock.time(t) for t in levels]
    smooth = reference.exact or len(clock.parts) > 1  # exact models; those of bare levels, whose predictions are cautious anyway
    k = solver.order or (3 if calls < (18 if smooth else ROUGH_UP_TO + 1) else 4)
    # one interval beyond the last node, never gone: it brings the last correction
    correct, predict = adams_weights([*w, 2 * w[-1] - w[-2]], k, 0 if solver.corrector is False else k + 1)
    slopes = [clock.slope(t) for t in levels]
    if len(clock.parts) > 1 and k > 2 and solver.corrector is not False:
        predict = _cautious(Clock(clock.parts[:1]), levels, slopes, k)
    return Plan(reference, levels, slopes, correct, predict, quadrature(w, 4), free, k + 1)


def _cautious(clock: Clock, levels: list[Level], slopes: list[float], k: int) -> list[list[float]]:
    """Weights of predictions for models of bare levels, whose F is rougher than k nodes of few calls resolve: a mean of the orders k and
    k - 1, whose errors are of opposite sign, with F a polynomial in the clock of one part, where it has no corner at the detail."""
    tau = [clock.time(t) for t in levels]
    tau.append(2 * tau[-1] - tau[-2])
    ratio = [clock.slope(t) / slope for t, slope in zip(levels, slopes, strict=True)]
    pairs = zip(*(adams_weights(tau, order, 0)[1] for order in (k, k - 1)), strict=True)
    return [
        [((1 - LOWER) * a + LOWER * b) * r for a, b, r in zip_longest(high, low, ratio[i::-1][: len(high)], fillvalue=0.0)]
        for i, (high, low) in enumerate(pairs)
    ]


def quadrature(w: Sequence[float], n: int) -> list[float]:
    """Weights of the integral over all of w: in each interval that of the polynomial through the n nodes nearest to it."""
    weights = [0.0] * len(w)
    for i, (here, there) in enumerate(pairwise(w)):
        first = min(max(i - (n - 1) // 2, 0), max(len(w) - n, 0))
        nodes = range(first, min(first + n, len(w)))
        for j, weight in zip(nodes, exponential_weights([w[j] - here for j in nodes], there - here), strict=True):
            weights[j] += weight
    return weights


class Rate:
    """A along paths, (B, columns) for each column of a trace, less what its probes err for the reference.

    That part is of one sign where A is smooth, and its integral is known: ``left_out``.
    """

    def __init__(self, reference: GaussianReference, x: Tensor, traces: Traces) -> None:
        self.known, self.traces, self.c = reference, traces, reference.to(x.double()).variance
        self.excess = traces.excess(reference)

    def __call__(self, model: Any, denoised: Tensor, x: Tensor, t: Level, graph: bool = False) -> Tensor:
        """A at x, of which ``denoised`` was computed."""
        trace, products = self.traces(denoised, x, share(self.known, t.s) / t.alpha, graph)
        model.count_vjp(products)
        ratio = self.c / (self.c + t.s**2)
        A = t.alpha * trace - ratio.expand(x.shape[1:] if self.known.basis is None else ratio.shape).sum()
        return A if self.excess is None else A - ((ratio - ratio.mean()) * self.excess).flatten(2).sum(2).mT

    def left_out(self, t: Level, s: Level) -> Tensor | float:
        """The integral of that part over lam from t to s."""
        if self.excess is None:
            return 0.0
        g = 0.5 * ((self.c / s.s**2).log1p() - (self.c / t.s**2).log1p())
        return ((g - g.mean()) * self.excess).flatten(2).sum(2).mT


def integrate(model: Any, x: Tensor, plan: Plan, traces: Traces | None, graph: bool = False) -> tuple[Tensor, Tensor]:
    """z at t_max, and the integral of A dlam from t_min to t_max by column, (B, columns); without traces z alone, and no columns.

    From x at t_min; z and the integral in float64, the network in the dtype of x. ``graph``: both as functions of x and of the
    parameters of the model, to be differentiated.
    """
    reference = plan.reference.to(x.double())
    pairs = zip(plan.levels, plan.slopes, strict=True)
    coordinates = [Coordinates.at(t, plan.reference, reference, slope) for t, slope in pairs]
    last = len(plan.levels) - 1
    z = base = coordinates[0].z(reference, x.double())
    history: list[Tensor] = []
    rate = None if traces is None else Rate(plan.reference, x, traces)
    integral = torch.zeros((len(x), 0 if traces is None else traces.columns), dtype=torch.float64, device=x.device)
    for i, (t, slope) in enumerate(zip(plan.levels, plan.slopes, strict=True)):
        if i == last and plan.free:
            f = torch.zeros_like(z)
        else:
            here = x if i == 0 else coordinates[i].x(reference, z).to(x.dtype)
            if not graph:
                here = here.clone() if here.is_inference() else here.detach()
            if rate is not None and not here.requires_grad:
                here = here.detach().requires_grad_()
            with torch.set_grad_enabled(rate is not None):
                denoised = model.denoise(here, t)
            answer = denoised if graph else denoised.detach()
            f = coordinates[i].f(reference, answer.double(), z)
            if rate is not None:
                integral.add_(rate(model, denoised, here, t, graph), alpha=slope * plan.quadrature[i])
        history = [f, *history[: plan.keep - 1]]
        for weight, g in zip(plan.correct[i], history, strict=False):
            base = torch.add(base, g, alpha=weight)
        z = base
        if i < last:
            for weight, g in zip(plan.predict[i], history, strict=False):
                z = torch.add(z, g, alpha=weight)
    if rate is not None:
        integral += rate.left_out(plan.levels[0], plan.levels[-1])
    return z, integral


def latent(plan: Plan, z: Tensor) -> Tensor:
    """x at t_max of z there, float64."""
    reference = plan.reference.to(z)
    return Coordinates.at(plan.levels[-1], plan.reference, reference).x(reference, z)


def log_volume(plan: Any, t: Level) -> float:
    """1/2 sum log(alpha^2 v) for the reference of a plan: log p(x) is log p_z(z) less this."""
    c = plan.reference.variance.double()
    return float(0.5 * (t.alpha**2 * (c + t.s**2)).log().sum()) * (plan.reference.mean.numel() // c.numel())


def volume(plan: Plan) -> float:
    """What the change of coordinates adds to log p: log |dz/dx| at t_min less the same at t_max."""
    return log_volume(plan, plan.levels[-1]) - log_volume(plan, plan.levels[0])


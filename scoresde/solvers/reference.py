r"""Multistep solvers in the coordinates of a Gaussian reference: exact for Gaussian data, fast for what is near.

In the coordinates z of ``GaussianReference`` the probability-flow ODE is dz/dlam = F, and F = 0 for Gaussian data. Its time is

.. math:: w = u/(1 + u), \qquad u = (s/s_c)^{1/width}, \qquad s = \sigma/\alpha

(``grid.logistic``), in which paths bend evenly, so that polynomials in w fit F dlam/dw. Every method here is a plan of weights for
the f_i = F(z_i, lam_i) dlam/dw, i = 0 .. N - 1: one network call a step, made once, used in all later steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde.core.checks import check_positive, check_positive_int
from scoresde.core.doors import checked
from scoresde.core.exponential import exponential_weights
from scoresde.errors import ConfigError
from scoresde.models.reference import GaussianReference
from scoresde.sdes import grid
from scoresde.solvers.base import Solver
from scoresde.solvers.untuned import choose, given_width

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw

CENTER = 0.6  # s_c in units of the reference's scale


class Moving(NamedTuple):
    """A level that is differentiated: alpha and s = sigma/alpha as tensors of one number."""

    alpha: Tensor
    s: Tensor


class Coordinates(NamedTuple):
    """What turns x at one level into z and back, in the dtype and on the device of x; numbers a coordinate, or floats.

    f = to_f U^T (D - m) - z_to_f z is F dlam/dw, x = shift + U (to_x z) with shift = alpha m. Where U is the identity the former is
    origin + to_f D - z_to_f z: fewer tensor operations a step.
    """

    to_f: Any
    z_to_f: Any
    to_x: Any
    shift: Tensor
    origin: Tensor | None

    @classmethod
    def at(cls, t: Level | Moving, reference: GaussianReference, like: GaussianReference, slope: float = 1.0) -> Coordinates:
        """At level t: ``reference`` in float64, ``like`` the same in the dtype of x, slope = dlam/dw (1: F itself)."""
        c = reference.variance
        v = c + t.s**2
        rows = (slope / v.sqrt(), slope * c / v, t.alpha * v.sqrt())
        to_f, z_to_f, to_x = (float(r) if r.ndim == 0 and not r.requires_grad else r.to(like.variance) for r in rows)
        plain = reference.kind in ("diagonal", "isotropic")
        return cls(to_f, z_to_f, to_x, t.alpha * like.mean, -to_f * like.mean if plain else None)

    def f(self, reference: GaussianReference, D: Tensor, z: Tensor) -> Tensor:
        """F dlam/dw from the denoised sample D and z."""
        f = reference.analyse(D - reference.mean) * self.to_f if self.origin is None else _plus(self.origin, D, self.to_f)
        return f.sub_(z, alpha=self.z_to_f) if isinstance(self.z_to_f, float) else f.addcmul_(z, self.z_to_f, value=-1)

    def z(self, reference: GaussianReference, x: Tensor) -> Tensor:
        """z from x."""
        return reference.analyse(x - self.shift) / self.to_x

    def x(self, reference: GaussianReference, z: Tensor) -> Tensor:
        """x from z."""
        if self.origin is None:
            return reference.synthesize(z * self.to_x) + self.shift
        return _plus(self.shift, z, self.to_x)


def _plus(a: Tensor, b: Tensor, c: Any) -> Tensor:
    """a + c b, for a number c or a tensor that broadcasts."""
    return torch.add(a, b, alpha=c) if isinstance(c, float) else torch.addcmul(a, b, c)


def _combined(a: Tensor, weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """a + sum of weights times tensors (as many as there are), which allocates once."""
    pairs = list(zip(weights, tensors, strict=False))
    if not pairs:
        return a
    total = torch.add(a, pairs[0][1], alpha=pairs[0][0])
    for weight, tensor in pairs[1:]:
        total.add_(tensor, alpha=weight)
    return total


class Path(NamedTuple):
    """The state of a solve: z of the predicted state, z of the last corrected one, and the f, newest first."""

    i: int
    z: Tensor
    base: Tensor
    history: tuple[Tensor, ...]
    plan: Plan


class Plan(NamedTuple):
    """What is computed once a solve. At node i: base += correct[i] . f, then z = base + predict[i] . f, both newest first.

    ``first``: a node 1 between the first two times; z there is that of the start, since F = 0 so far, and node 0 needs no call.
    """

    reference: GaussianReference
    coordinates: list[Coordinates]
    correct: Sequence[Sequence[float]]
    predict: Sequence[Sequence[float]]
    first: Level | None
    keep: int


def start(
    reference: GaussianReference, x: Tensor, nodes: Sequence[Level], slopes: Sequence[float], free: bool, **plan: Any
) -> Path:
    """The state before the first step, for these nodes, the second of which is none of the grid's times if ``free``."""
    here = reference.to(x)
    coordinates = [Coordinates.at(t, reference, here, slope) for t, slope in zip(nodes, slopes, strict=True)]
    z = coordinates[0].z(here, x)
    return Path(int(free), z, z, (), Plan(here, coordinates, first=nodes[1] if free else None, **plan))


def advance(model: Answers, x: Tensor, t: Level, path: Path) -> tuple[Tensor, Path]:
    """One step: a network call at the predicted state, the correction of that state, the prediction of the next one."""
    i, z, base, history, plan = path
    here, there, reference = plan.coordinates[i], plan.coordinates[i + 1], plan.reference
    if plan.first is not None and i == 1:
        t, x = plan.first, here.x(reference, z)
    history = (here.f(reference, model.denoise(x, t), z), *history[: plan.keep - 1])
    base = _combined(base, plan.correct[i], history)
    z = _combined(base, plan.predict[i], history)
    return there.x(reference, z), Path(i + 1, z, base, history, plan)


@checked
@dataclass(frozen=True)
class ReferenceSolver(Solver):
    """Predictor-corrector multistep method on dz/dw = F dlam/dw, in the coordinates of the model's Gaussian reference.

    The predictor is Adams-Bashforth of order k in w, the corrector Adams-Moulton of order k + 1 that uses the call at the predicted
    state again: one call a step, order k + 1 with the corrector, k without. Gaussian data take one step of any size, exactly.

    ``sample(model, n, solver=ReferenceSolver(), steps=N)`` makes N network calls. Far from the data F = 0 is known without a call, and
    with few calls these serve N + 1 intervals: the first step is twice as long as the others, and its call is in its middle (``free``).
    Where the reference says that the tails of the data are heavy, C is scaled to that of the typical sample.

    Args:
        order: k from 1 to 5 of the predictor; None: by the number of calls, 2 up to 16, 3 up to 29, 4 from 30, 5 from 45 (from 80 for
            data of a wide spectrum; never for a width that was given).
        corrector: whether to correct; None: from 9 calls on.
        reference: None is the model's own, ``model.reference``.
        width: of the grid; None is the reference's; if that has none, 2 for networks, for others found from the number of calls and the
            spectrum and tails of the reference (the formula and the reasons of all defaults: ``scoresde/solvers/untuned.py``).
        free: whether the first step has such a node in its middle (in w), which takes its call; None: up to 10 calls, where the
            reference is exact up to 16 (VP and rectified flow: 44), and never on times that a user gave.

    The state that ``trajectory`` shows is the predicted one. Times may be any, decreasing or increasing.

    Raises:
        ConfigError: an order outside 1..5, or a model without a reference.
    """

    order: int | None = None
    corrector: bool | None = None
    reference: GaussianReference | None = None
    width: float | None = None
    free: bool | None = None
    default_steps = 20
    asks: ClassVar[str] = "x0"
    needs_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.order is not None and not 1 <= check_positive_int(self.order, "order") <= 5:
            raise ConfigError(f"order = {self.order} of ReferenceSolver, expected 1 to 5")
        if self.width is not None:
            check_positive(self.width, "width")
        for name, value in (("corrector", self.corrector), ("free", self.free)):
            if value not in (None, True, False):
                raise ConfigError(f"{name} = {value!r} of ReferenceSolver, expected True, False or None")
        if self.reference is not None:
            check_reference(self.reference)

    @property
    def accuracy(self) -> float:
        """k + 1 with the corrector, k without; of k = 4 where it is not given, the least that many steps are taken with."""
        return (self.order or 4) + (self.corrector is not False)

    def bind(self, model: Answers, calls: int | None) -> ReferenceSolver:
        """This solver for a model and a number of network calls; None for times that a user gave."""
        reference = model_reference(model) if self.reference is None else self.reference
        if reference.mean.shape != model.event_shape:
            raise ConfigError(
                f"the reference is of samples of shape {tuple(reference.mean.shape)}, the model's are {model.event_shape}: "
                "fit one to the model's data, scoresde.GaussianReference.fit(data)"
            )
        width = given_width(model, reference, self.width)
        if calls is None:  # times of a user; what is left open is chosen when their number is known
            return dataclasses.replace(self, reference=reference, free=bool(self.free), width=width)
        choice = choose(reference, calls, model.sde.levels([model.sde.t_max])[0], width, self.order)
        own = {name: value for name, value in choice._asdict().items() if getattr(self, name) is None}
        return dataclasses.replace(self, reference=reference, **own)

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """Equal steps in w, n + 1 times; with a free node the first step is twice as long."""
        free, reference = bool(self.free), self._reference()
        center = CENTER * reference.of_typical_sample().scale
        times = grid.logistic(sde, n + free, start, end, center, choose(reference, n, None, self.width, self.order).width)
        return torch.cat([times[:1], times[1 + free :]])

    def _reference(self) -> GaussianReference:
        if self.reference is None:
            raise ConfigError("ReferenceSolver has no reference yet: use it in sample(model, ...), or give reference=...")
        return self.reference

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> Path:
        free, choice = bool(self.free), choose(self._reference(), len(times) - 1, None, self.width, self.order)
        reference = self._reference().of_typical_sample()
        width, center = choice.width, CENTER * reference.scale
        w, nodes = [grid.clock(t.s, center, width) for t in times], list(times)
        if free:
            w.insert(1, (w[0] + w[1]) / 2)
            nodes.insert(1, level_at(model.sde, grid.lam_of_clock(w[1], center, width)))
        k = self.order or choice.order
        corrector = choice.corrector if self.corrector is None else self.corrector
        correct, predict = adams_weights(w, k, k + 1 if corrector else 0)
        slopes = [-width / (v * (1 - v)) for v in w]
        return start(reference, x, nodes, slopes, free, correct=correct, predict=predict, keep=k + 1)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Path, noise: Draw) -> tuple[Tensor, Path]:
        return advance(model, x, t, state)


def level_at(sde: SDE, lam: float) -> Level:
    """The level with log(alpha/sigma) = lam."""
    return sde.levels([float(sde.time_of_log_snr(torch.tensor(2 * lam, dtype=torch.float64, device="cpu")))])[0]


def adams_weights(w: Sequence[float], k: int, corrector: int) -> tuple[list[list[float]], list[list[float]]]:
    """Weights of Adams methods in w at each step, for the f newest first: (correct, predict).

    predict[i] integrates the polynomial through the last k f from w_i to w_(i+1); correct[i] the one through the last ``corrector``
    f, that at w_i among them, from w_(i-1) to w_i (0: none). While there are fewer, and k > 2, correct[i] makes up for the lower order
    of the steps before: with it all f together are integrated from w_0 to w_i. (k = 2 does not need that for order 3, and the few long
    steps that it is for are better without.)
    """
    correct: list[list[float]] = []
    predict: list[list[float]] = []
    given: list[float] = []  # what the f, newest first, have been given of the way so far
    for i, (here, there) in enumerate(pairwise(w)):
        before = [v - here for v in w[max(i - max(k, corrector) + 1, 0) : i + 1][::-1]]
        if i == 0:
            correct.append([])
        elif i < corrector and k > 2:  # warm-up: all the way from the start again, by the polynomial through all f
            whole = exponential_weights([v - w[0] for v in w[i::-1]], here - w[0])
            correct.append([a - b for a, b in zip(whole, [0.0, *given], strict=True)])
            given = whole
        elif corrector:
            nodes = [v - w[i - 1] for v in w[max(i - corrector + 1, 0) : i + 1][::-1]]
            correct.append(exponential_weights(nodes, here - w[i - 1]))
        else:
            correct.append([0.0, *predict[-1]])  # without a corrector a prediction is final: it moves the base one step later
        predict.append(exponential_weights(before[:k], there - here))
        given = given or [0.0]
    return correct, predict


def check_reference(reference: Any) -> None:
    """Checks that this is a GaussianReference. Raises ConfigError."""
    if not isinstance(reference, GaussianReference):
        raise ConfigError(f"reference is a {type(reference).__name__}, expected a GaussianReference: scoresde.GaussianReference.fit(data)")


def model_reference(model: Answers) -> GaussianReference:
    """The Gaussian reference of a model. Raises ConfigError if it has none."""
    reference = model.reference
    if reference is not None:
        check_reference(reference)
    else:
        raise ConfigError(
            f"this {type(model).__name__} has no Gaussian reference: set model.reference = scoresde.GaussianReference.fit(data) "
            "(fit and load do so)"
        )
    return reference


@checked
@dataclass(frozen=True)
class ReferenceScheme(Solver):
    """An explicit scheme in reference coordinates with weights of its own, as ``tune`` makes them.

    z_(i+1) = z_0 + sum over j <= i of weights[i][j] F(z_j, lam_j): one call a step, each used in all later steps.

    Args:
        weights: row i has i + 1 numbers, in units of lam.
        reference: None is the model's own.
        first: lam of the first call, between the first two times, where z is that of the start; None: at the first time.

    Raises:
        ConfigError: rows that are not of length 1, 2, 3, ..., or times that are not one more than the rows.
    """

    weights: tuple[tuple[float, ...], ...]
    reference: GaussianReference | None = None
    first: float | None = None
    asks: ClassVar[str] = "x0"
    needs_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.weights]
        if not lengths or lengths != list(range(1, len(lengths) + 1)):
            raise ConfigError(f"weights of ReferenceScheme have rows of lengths {lengths}, expected 1, 2, 3, ...")
        if self.first is not None and not math.isfinite(self.first):
            raise ConfigError(f"first = {self.first} of ReferenceScheme, expected a finite lam, or None")

    def bind(self, model: Answers, calls: int | None) -> ReferenceScheme:
        """This scheme for a model."""
        return self if self.reference is not None else dataclasses.replace(self, reference=model_reference(model))

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> Path:
        n, free = len(self.weights), self.first is not None
        if len(times) != n + 1:
            raise ConfigError(f"{len(times)} times for {n} rows of weights: expected {n + 1}")
        nodes = list(times)
        if self.first is not None:
            nodes.insert(1, level_at(model.sde, self.first))
        none: list[list[float]] = [[] for _ in nodes]
        predict = [*none[: int(free)], *(list(row[::-1]) for row in self.weights)]
        reference = model_reference(model) if self.reference is None else self.reference
        return start(reference, x, nodes, [1.0] * len(nodes), free, correct=none, predict=predict, keep=n)

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Path, noise: Draw) -> tuple[Tensor, Path]:
        return advance(model, x, t, state)

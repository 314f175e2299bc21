r"""What ``ReferenceSolver`` does where it is not told: order, corrector, width of the grid and free node, from what is known at no call.

Known are the number of calls, the SDE, and of the data mean, covariance and tails (``GaussianReference``).

*Width.* A direction of standard deviation sqrt(c) settles where s is about sqrt(c), so that data with a wide spectrum settle over a
wide range of log s. With S the ``spread`` of the spectrum, T its ``tail`` and W the width of the order,

.. math:: \mathrm{width} = \sqrt{(W^2 + \tfrac74 \max(S^2 - 0.65^2, 0))/T}

S up to 0.65 is what mixtures of a few modes have, for which W alone is right; images and random fields have 1 and more. Under heavy tails
samples settle at scales of their own, as far apart as T is small. A polynomial of higher order wants its nodes less crowded: W is 1 for
the orders 2 to 4 and 1.4 for 5, with which errors of mixtures at 50 calls are 0.4 to 0.9 of those of order 4 on its own best grid.

*Order.* The k that errs least on mixtures, manifolds, random fields and heavy tails at this number of calls. With too few calls a high
order amplifies its own errors, the more the sharper the data are: k = 5 is for 45 calls and more, for wide spectra 80.

*Free node.* F = 0 where noise hides the data, as far as the moments are right: exact ones serve up to 44 calls where the noise is 100
times the data (VP), to 16 where it is 10 times (VE of far tails), estimates up to 10. Beyond, what is left of F is more than the steps err.

A width that was given, to the solver or to the reference, is kept, with orders up to 4. So is that of networks, 2: what real data have
far below their standard deviation does not show in C (digits at 20 calls: errors nine times smaller than with the formula's 1.1).

Where there is no reference, ``assumed`` makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scoresde.models.reference import GaussianReference

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.levels import Level

FAR = 10.0  # noise over data, from which on F = 0 is as good as a network call

WIDTH = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.4}  # W of an order

NARROW, WIDE = 0.65, 0.8  # spreads: up to which W alone is right; from which on order 5 waits for 80 calls

NETWORK_WIDTH = 2.0

ASSUMED_WIDTH, ASSUMED_WIDTH_OF_IMAGES = 1.5, 1.75


class Choice(NamedTuple):
    """Order of the predictor, whether to correct, width of the grid, whether the first step has a free node in its middle."""

    order: int
    corrector: bool
    width: float
    free: bool


def given_width(model: Answers, reference: GaussianReference, width: float | None) -> float | None:
    """The width that is not to be found by the formula: of the solver, the reference, or of all networks."""
    return width or reference.width or (NETWORK_WIDTH if model.learned else None)


def width_of(model: Answers, reference: GaussianReference, calls: int) -> float:
    """The width of the grid for a model and a number of calls."""
    return choose(reference, calls, None, given_width(model, reference, None)).width


def choose(
    reference: GaussianReference, calls: int, first: Level | None, width: float | None = None, order: int | None = None
) -> Choice:
    """What suits a reference and a number of calls.

    Args:
        first: the level of the first time; None for times that a user gave, which have no free node.
        width, order: as given; None: the reference's width, or by the rules above.
    """
    width = reference.width if width is None else width
    if order is None:
        order = 2 if calls <= 16 else 3 if calls < 30 else 4
        if width is None and calls >= (45 if reference.spread < WIDE else 80):
            order = 5
    if width is None:
        width = (WIDTH[order] ** 2 + 1.75 * max(reference.spread**2 - NARROW**2, 0.0)) ** 0.5 / reference.tail**0.5
    return Choice(order, calls > 8, width, first is not None and _has_free_node(reference, calls, first))


def _has_free_node(reference: GaussianReference, calls: int, first: Level) -> bool:
    if calls <= 10:
        return hides_data(reference, first)
    exact = reference.exact and reference.tail == 1
    return exact and hides_data(reference, first, 1.0 if calls <= 16 else 10.0) and calls < 45


def hides_data(reference: GaussianReference, t: Level, times: float = 1.0) -> bool:
    """Whether there is so much noise at t that F = 0 is as good as a network call; or some times as much."""
    return t.sigma > times * FAR * t.alpha * reference.scale


def assumed(model: ScoreModel) -> GaussianReference:
    """A reference for a model of which no data are known: N(0, C) with tr C/D = data_std^2.

    ``data_std`` is what the model's parameterization scales its input for: 1, or the 0.5 of ``edm``. C is isotropic for vectors, as in
    EDM's preconditioning; for images and signals it falls like (1 + |k|)^-2 with the frequency k of the cosine transform, as natural
    images do. It may be wrong by factors, and the clock is wide for that: coordinates of a wrong reference are exact all the same, F is
    only less flat. ``fit_reference`` measures a right one.
    """
    event = model.event_shape
    if len(event) < 2:
        c = torch.tensor(1.0, dtype=torch.float64, device="cpu")
        kind, width = "isotropic", ASSUMED_WIDTH
    else:
        k = torch.zeros(event, dtype=torch.float64, device="cpu")
        for axis in range(1, len(event)):
            shape = [-1 if i == axis else 1 for i in range(len(event))]
            k = k + torch.arange(event[axis], dtype=torch.float64, device="cpu").square().view(shape)
        c = (1 + k.sqrt()) ** -2
        kind, width = "dct", ASSUMED_WIDTH_OF_IMAGES
    return GaussianReference(torch.zeros(event, dtype=torch.float64, device="cpu"), c / c.mean() * model.data_std**2, kind, width=width)

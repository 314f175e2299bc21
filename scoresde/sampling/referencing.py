"""A Gaussian reference made from a model itself, for models that came without data."""

from __future__ import annotations

from typing import Any

from scoresde.core.checks import check_positive_int
from scoresde.errors import ConfigError, NonFiniteError
from scoresde.models.base import ScoreModel, check_model
from scoresde.models.reference import GaussianReference
from scoresde.sampling.sampler import sample
from scoresde.sdes.grid import default_end
from scoresde.solvers.reference import ReferenceSolver
from scoresde.solvers.untuned import assumed


def fit_reference(
    model: ScoreModel, n: int = 512, *, steps: int = 20, kind: str = "auto", seed: int = 0, batch_size: int | None = None, **cond: Any
) -> GaussianReference:
    """Mean, covariance and tails of a model's own samples, for a model whose data are not at hand.

    ``model.reference = fit_reference(model)`` makes the default solver of ``sample`` (``"auto"``) as good as one that knows the data,
    at the price of n steps network calls once; ``save`` keeps it with the model. The samples are those of the default solver without a
    reference (``scoresde/solvers/untuned.py``), whatever reference the model has: the same to the bit every time. The model is not
    changed.

    Args:
        model: a ScoreModel.
        n: number of samples, 2 or more; of a covariance in D dimensions all D (D + 1)/2 numbers are estimated from 2 D samples on
            (at most 1024 dimensions), else its diagonal, of images in the basis of the cosine transform.
        steps: network calls a sample. What the steps err, 0.1 to 1 % of the standard deviation at 20, a covariance does not notice.
        kind: of the covariance, see ``GaussianReference.fit``.
        seed: integer in [0, 2^64): other samples.
        batch_size: samples computed at once; None: a function of the event shape.
        **cond: for the network, as for ``sample``: draw labels as the data have them, or those that you will sample with.

    Returns:
        A GaussianReference with ``exact`` = False, in float64, of x/alpha at the end of the paths. Its width is left to the solver.

    Raises:
        ConfigError: n < 2, or another bad argument; the errors of ``sample``.

    >>> import scoresde as sd, torch
    >>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 3), torch.tensor([0.5])), sd.VPSDE())
    >>> sd.fit_reference(model).kind
    'full'
    """
    check_model(model)
    if check_positive_int(n, "n") < 2:
        raise ConfigError(f"n = {n} of fit_reference: a covariance takes two samples or more, hundreds to be worth its calls")
    plain = ReferenceSolver(reference=assumed(model))
    x = sample(model, n, solver=plain, steps=steps, seed=seed, batch_size=batch_size, **cond).double()
    if not bool(x.isfinite().all()):
        raise NonFiniteError("samples of the model hold NaN or infinity: no reference can be made of them")
    return GaussianReference.fit(x.cpu() / model.sde.levels([default_end(model.sde)])[0].alpha, kind)

"""Looks at data before they are trained on: what a diffusion under the usual SDEs cannot learn well as it is, is said aloud.

Model space is about [-3, 3]: parameterizations and networks are made for data of about unit size, and the prior N(0, sigma^2 I) at
t_max for data that are small beside that noise. Raw physical units are the commonest reason for a model that learns nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE

LARGEST, SMALLEST = 5.0, 0.1  # standard deviations, and the distance of a mean from 0, that are about unit size

SEEN = 0.5  # standard deviations of the noise at t_max that the data may amount to there

ROWS = 1 << 16  # of a large set, evenly spaced ones are looked at

REMEDY = "Standardize them, x = (x - x.mean(0))/x.std(0), and add log|std| back to log p, or give an SDE and a network for that scale"


def check_scale(x: Tensor, sde: SDE, name: str = "the data") -> None:
    """Warns of float data far from unit size, that do not vary, or that the noise at t_max does not hide; with the figures.

    Args:
        x: samples in model space (N, *event).
        sde: whose noise it is.
        name: what a warning calls them.
    """
    if len(x) < 2:
        warnings.warn(f"{name} are one sample: the model will give it back, and no density is learned", stacklevel=4)
        return
    x = x.detach().flatten(1).double()
    mean, std = x.mean(0), x.std(0)
    far, wide, scale = float(mean.abs().max()), float(std.max()), float(std.square().mean().sqrt())
    if scale == 0:
        warnings.warn(f"{name} do not vary: all samples are the same", stacklevel=4)
        return
    end = sde.levels([sde.t_max])[0]
    left = float((mean.square() + std.square()).sqrt().max()) * end.alpha / end.sigma
    size = f"means up to {far:.3g} and standard deviations up to {wide:.3g} ({scale:.3g} in all)"
    if far > LARGEST or wide > LARGEST or scale < SMALLEST:
        warnings.warn(
            f"{name} have {size}, and networks and parameterizations are made for about unit size, values in [-3, 3] or so: it will "
            f"hardly be learned. {REMEDY}",
            stacklevel=4,
        )
    elif left > SEEN:
        warnings.warn(
            f"{name} have {size}, and at t_max = {float(end):.4g} of {sde} {left:.2g} standard deviations of the noise are left of them: "
            f"samples, which start from noise alone, will be wrong. {REMEDY}",
            stacklevel=4,
        )


def check_batch(batch_size: int, n: int) -> None:
    """Warns of batches larger than the data, whose samples come more than once in each."""
    if batch_size > n:
        warnings.warn(f"batch_size = {batch_size} for {n} samples: each batch has some of them more than once", stacklevel=4)

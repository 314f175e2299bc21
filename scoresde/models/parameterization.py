r"""What a network predicts: one affine map from its output F to the denoised sample.

.. math:: \hat x_0 = c_\mathrm{skip}\, x + c_\mathrm{out}\, F(c_\mathrm{in}\, x, c_\mathrm{noise})

A parameterization is a function (alpha, sigma) -> (c_skip, c_out) of floats or tensors; yours may be any such function. The
noise estimate follows from x = alpha x0 + sigma eps. Inputs are scaled to unit variance (for data of std sigma_data) and the
noise level enters as c_noise = log(sigma/alpha)/4, both as in EDM (2206.00364, eq. 7 and table 1); under VP with data of unit
variance that is c_in = 1, as in DDPM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Number: TypeAlias = Any  # a float, or a Tensor of one value a sample

Parameterization: TypeAlias = Callable[[Number, Number], tuple[Number, Number]]

SIGMA_DATA = 0.5  # EDM's std of the data, for images in [-1, 1]


def x0(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """F is the denoised sample itself."""
    return 0 * alpha, 0 * alpha + 1


def eps(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """F is the noise: x0 = (x - sigma F)/alpha (2006.11239)."""
    return 1 / alpha, -sigma / alpha


def score(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """F is the score: x0 = (x + sigma^2 F)/alpha, Tweedie's formula (2011.13456)."""
    return 1 / alpha, sigma**2 / alpha


def v(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """F = alpha eps - sigma x0: x0 = (alpha x - sigma F)/(alpha^2 + sigma^2) (2202.00512, appendix D)."""
    return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)


def edm(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """EDM's preconditioning of x/alpha at noise level sigma/alpha (2206.00364, table 1), finite even where alpha = 0."""
    variance = alpha**2 * SIGMA_DATA**2 + sigma**2
    return alpha * SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance**0.5


NAMES: dict[str, Parameterization] = {"x0": x0, "eps": eps, "score": score, "v": v, "edm": edm}


def input_scale(parameterization: Parameterization, alpha: Number, sigma: Number) -> Number:
    """c_in = 1/sqrt(alpha^2 sigma_data^2 + sigma^2), with sigma_data = 0.5 for ``edm`` and 1 for all others."""
    return (alpha**2 * data_std(parameterization) ** 2 + sigma**2) ** -0.5


def data_std(parameterization: Parameterization) -> float:
    """sigma_data, the std of the data that a parameterization scales its input for: 0.5 for ``edm`` and 1 for all others."""
    return SIGMA_DATA if parameterization is edm else 1.0

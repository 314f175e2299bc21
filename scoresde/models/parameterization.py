r"""What a network predicts: one affine map from its output F to the denoised sample.

.. math:: \hat x_0 = c_\mathrm{skip}\, x + c_\mathrm{out}\, F(c_\mathrm{in}\, x, c_\mathrm{noise})

A parameterization is a function (alpha, sigma) -> (c_skip, c_out), or (c_skip, c_out, c_in), of floats or tensors; yours may be any
such function, and take (alpha, sigma, alpha_dot, sigma_dot) if it needs the derivatives in time. The noise estimate follows from
x = alpha x0 + sigma eps. Unless it says otherwise, inputs are scaled to unit variance for data of standard deviation sigma_data,

.. math:: c_\mathrm{in} = (\alpha^2 \sigma_\mathrm{data}^2 + \sigma^2)^{-1/2}

with sigma_data = 0.5 for ``edm`` and 1 for all others, and the noise level enters as c_noise = log(sigma/alpha)/4, both as in EDM
(2206.00364, eq. 7 and table 1); under VP with data of unit variance that is c_in = 1, as in DDPM. For data of another size give
``EDM(sigma_data=5.0)`` or ``Scaled("v", sigma_data=5.0)``.

Under rectified flow (alpha = 1 - t, sigma = t) the velocity that flow matching trains a network for is eps - x0, which is
``velocity``; ``v`` is alpha eps - sigma x0 under every SDE, and another thing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from scoresde.core.checks import check_positive, did_you_mean
from scoresde.errors import ConfigError

Number: TypeAlias = Any  # a float, or a Tensor of one value a sample

Parameterization: TypeAlias = Callable[..., tuple[Number, ...]]

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


def velocity(alpha: Number, sigma: Number, alpha_dot: Number, sigma_dot: Number) -> tuple[Number, Number]:
    """F = alpha' x0 + sigma' eps, the velocity dx/dt of the probability-flow ODE: x0 = (sigma' x - sigma F)/(alpha sigma' - alpha' sigma).

    Under rectified flow F = eps - x0 and x0 = x - t F (2209.03003, 2210.02747).
    """
    d = alpha * sigma_dot - alpha_dot * sigma
    return sigma_dot / d, -sigma / d


def edm(alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """EDM's preconditioning of x/alpha at noise level sigma/alpha (2206.00364, table 1), finite even where alpha = 0."""
    return _edm(alpha, sigma, SIGMA_DATA)


def _edm(alpha: Number, sigma: Number, sigma_data: float) -> tuple[Number, Number]:
    variance = alpha**2 * sigma_data**2 + sigma**2
    return alpha * sigma_data**2 / variance, sigma * sigma_data / variance**0.5


NAMES: dict[str, Parameterization] = {"x0": x0, "eps": eps, "score": score, "v": v, "velocity": velocity, "edm": edm}

ELSEWHERE = {"epsilon": "eps", "noise": "eps", "sample": "x0", "v_prediction": "v", "flow": "velocity", "flow_prediction": "velocity"}


def input_scale(sigma_data: float, alpha: Number, sigma: Number) -> Number:
    """c_in = 1/sqrt(alpha^2 sigma_data^2 + sigma^2)."""
    return (alpha**2 * sigma_data**2 + sigma**2) ** -0.5


@dataclass(frozen=True)
class EDM:
    """``edm`` for data of another standard deviation than 0.5 (2206.00364, table 1). Raises ConfigError unless sigma_data > 0."""

    sigma_data: float = SIGMA_DATA

    def __post_init__(self) -> None:
        check_positive(self.sigma_data, "sigma_data")

    def __call__(self, alpha: Number, sigma: Number) -> tuple[Number, Number, Number]:
        return *_edm(alpha, sigma, self.sigma_data), input_scale(self.sigma_data, alpha, sigma)


@dataclass(frozen=True)
class Scaled:
    """One of the named parameterizations for data of standard deviation ``sigma_data``, by which inputs are scaled.

    Raises:
        ConfigError: an unknown name; sigma_data that is not above 0.

    >>> import scoresde as sd
    >>> wide = sd.parameterization.Scaled("v", sigma_data=5.0)
    >>> wide(0.6, 0.8)[2]  # c_in = 1/sqrt(0.6^2 5^2 + 0.8^2)
    0.3220...
    """

    of: str = "v"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.sigma_data, "sigma_data")
        if self.of == "edm":
            raise ConfigError(f"Scaled('edm', {self.sigma_data}): its coefficients depend on sigma_data too, give EDM({self.sigma_data})")
        named(self.of)

    def __call__(self, alpha: Number, sigma: Number, *dots: Number) -> tuple[Number, Number, Number]:
        c_skip, c_out = NAMES[self.of](alpha, sigma, *dots)
        return c_skip, c_out, input_scale(self.sigma_data, alpha, sigma)


def named(name: Any) -> Parameterization:
    """The parameterization of this name. Raises ConfigError."""
    if isinstance(name, str) and name in NAMES:
        return NAMES[name]
    text = str(name)
    hint = f"; did you mean {ELSEWHERE[text]!r}, as it is called here?" if text in ELSEWHERE else did_you_mean(text, NAMES, 0.3)
    names = ", ".join(NAMES)
    raise ConfigError(f"parameterization = {name!r}, expected one of {names} or a function (alpha, sigma) -> (c_skip, c_out){hint}")


def needs_derivatives(parameterization: Parameterization) -> bool:
    """Whether it is a function of (alpha, sigma, alpha_dot, sigma_dot)."""
    if isinstance(parameterization, Scaled):
        parameterization = NAMES[parameterization.of]
    try:
        parameters = inspect.signature(parameterization).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters) == 4


def coefficients(parameterization: Parameterization, level: Any, dots: bool) -> tuple[Number, Number, Number]:
    """(c_skip, c_out, c_in) at a noise level; ``dots`` is what ``needs_derivatives`` says. Raises ConfigError."""
    alpha, sigma = level.alpha, level.sigma
    found = parameterization(alpha, sigma, level.alpha_dot, level.sigma_dot) if dots else parameterization(alpha, sigma)
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        raise ConfigError(f"the parameterization gave {found!r}, expected (c_skip, c_out) or (c_skip, c_out, c_in)")
    if len(found) == 3:
        return found[0], found[1], found[2]
    return found[0], found[1], input_scale(data_std(parameterization), alpha, sigma)


def data_std(parameterization: Parameterization) -> float:
    """sigma_data, the std of the data that a parameterization is for: what it was told, 0.5 for ``edm`` and 1 for all others."""
    if isinstance(parameterization, (EDM, Scaled)):
        return parameterization.sigma_data
    return SIGMA_DATA if parameterization is edm else 1.0

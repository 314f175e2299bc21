r"""Dequantizers: densities q(x|k) on the bin of each level k, that turn a density model into a bound on discrete data.

With the probability P(k) of the levels k that a density p of the state at t_min gives, the integral of p over their bins,

.. math:: -\log P(k) \le E_{x \sim q(x|k)} [\log q(x|k) - \log p(x)]

for every q that lives on the bins (1511.01844, section 3.1; 1902.00275, eq. 4), with equality where q is proportional to p. And
with the mean over draws taken inside the logarithm of p/q the bound falls to -log P(k) as they grow (1509.00519).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoresde.core.noise import Noise
from scoresde.core.streams import DEQUANTIZE
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.levels import Level

TAILS = 2.0  # standard deviations of the noise at t_min within half a bin, below which "normal" is costly

GOOD = 3.5  # a number of them that costs less than 0.001 bits per dimension


@dataclass(frozen=True)
class Dequantizer(ABC):
    """A density q(x|k) of states x at the model's t_min, for each sample of levels k. A subclass writes ``draw``.

    To write one: a frozen dataclass with the name that reports give it. Each q(.|k) must live on a bin of states of its own, which
    no other level's overlaps, or what is made of it is no bound. It is a bound on -log P(k) with P(k) the integral of p at t_min over
    that bin. ``Uniform`` has x itself within half a ``bin_width`` of ``transform.center(k)``, ``Normal`` has x/alpha(t_min) there.
    The states at t_min of data x in model space are about alpha(t_min) x: ``Uniform`` is (1 - alpha) x off from there. That is at
    most 1e-5 of x at the default t_min of all SDEs, 0.009 for a sub-VP SDE and 0.018 for a rectified flow that are adapted to 16
    levels, and a part of the report's "cut".

    Args:
        transform: of the levels.
    """

    transform: Transform
    name: ClassVar[str] = ""  # in reports; ``compare`` refuses to set figures of different ones against each other
    blur: ClassVar[bool] = False  # whether the noise at t_min blurs what is drawn, so that the cut at t_min has a cost to estimate

    @abstractmethod
    def draw(self, levels: Tensor, model: ScoreModel, seed: int, ids: np.ndarray, draw: int) -> tuple[Tensor, Tensor]:
        """One draw for each sample.

        Args:
            levels: integers (B, *event) in 0..K-1, checked; on any device.
            model: its ``sde`` tells alpha and sigma at t_min, and x is to be of its dtype and on its device.
            seed, ids, draw: row i is a function of (seed, ids[i], draw), whatever the other rows:
                ``Noise(seed, ids, event).uniform(DEQUANTIZE, draw)``, or a stream of your own.

        Returns:
            x, the state at t_min, (B, *event); and log q(x|k) in nats, the log density of x in model space, (B,) float64.
        """

    def check(self, model: ScoreModel) -> None:  # noqa: B027 (one that suits all models need not write it)
        """Warns or raises ConfigError where this dequantizer does not suit the model; called once, before any draw."""


@dataclass(frozen=True)
class Uniform(Dequantizer):
    """q uniform on each bin of model space: log q = -D log(bin_width). For models that were trained on such data."""

    name: ClassVar[str] = "uniform"
    blur: ClassVar[bool] = True

    def draw(self, levels: Tensor, model: ScoreModel, seed: int, ids: np.ndarray, draw: int) -> tuple[Tensor, Tensor]:
        x = self.transform.dequantize(levels, seed, ids, draw, model.dtype, model.device)
        log_q = -self.transform.log_det(levels[0].numel())
        return x, torch.full((len(levels),), log_q, dtype=torch.float64, device=x.device)

    def check(self, model: ScoreModel) -> None:
        t, bin_width = first_level(model), self.transform.bin_width
        if t.s > bin_width / 2:
            warnings.warn(
                f"sigma(t_min) = {t.s:.3g} exceeds half a bin ({bin_width / 2:.3g}) of {self.transform.levels} "
                "levels: the data are blurred over neighbouring levels and bits per dimension are biased; lower sigma_min or t_min "
                "of the SDE",
                stacklevel=3,
            )
        warn_of_bare_levels(model)


@dataclass(frozen=True)
class Normal(Dequantizer):
    r"""q the diffusion's own noise at t_min, cut off at the edges of the bin (2305.03935, section 4.1).

    .. math:: x = \alpha (\mathrm{center}(k) + s e), \quad e \sim N(0, 1) \text{ given } |e| \le \tau, \quad
              s = \sigma/\alpha, \quad \tau = \frac{\mathrm{bin\_width}}{2 s} \\
              \log q = -\sum [e^2/2 + \log\sqrt{2\pi} + \log \mathrm{erf}(\tau/\sqrt2) + \log(\alpha s)]

    For models that were trained on the middles of the bins: at t_min they are measured on what they were trained on, but for the
    tails beyond tau. These cost -log2 erf(tau/sqrt 2) bits per dimension: 0.067 for tau = 2, 0.004 for 3, 0.0007 for 3.5.

    Few time steps flatter such a model: near t_min its density is a spike at every level, and the error of the solver is often
    negative, bits per dimension below those of the model. Look at the "time steps" of the report, and take more until it is small.
    """

    name: ClassVar[str] = "normal"

    def draw(self, levels: Tensor, model: ScoreModel, seed: int, ids: np.ndarray, draw: int) -> tuple[Tensor, Tensor]:
        t = first_level(model)
        s = t.s
        tau = self.transform.tails(t)
        inside = math.erf(tau / math.sqrt(2))  # the share of a normal distribution within the bin
        u = Noise(seed, ids, tuple(levels.shape[1:]), torch.float64).uniform(DEQUANTIZE, draw).to(levels.device)
        # uniform draws are multiples of 2^-24: from the middles of these the inverse is finite, and symmetric
        e = (math.sqrt(2) * torch.erfinv((2 * u + (2.0**-24 - 1)) * inside)).clamp(-tau, tau)
        x = t.alpha * (self.transform.center(levels, torch.float64) + s * e)
        constant = levels[0].numel() * (0.5 * math.log(2 * math.pi) + math.log(inside) + math.log(t.sigma))
        log_q = -0.5 * e.square().flatten(1).sum(1) - constant
        return x.to(model.device, model.dtype), log_q.to(model.device)

    def check(self, model: ScoreModel) -> None:
        t, bin_width = first_level(model), self.transform.bin_width
        s, tau = t.s, self.transform.tails(t)
        if tau < TAILS:
            cost = -math.log2(math.erf(tau / math.sqrt(2)))
            warnings.warn(
                f"dequantization = 'normal': sigma/alpha = {s:.3g} at t_min reaches the edge of a bin of {self.transform.levels} "
                f"levels at {tau:.2g} standard deviations, expected at least {TAILS:g}: the bound is {cost:.2g} bits/dim too large "
                f"for it. Take a smaller t_min or sigma_min, where sigma/alpha is about {bin_width / (2 * GOOD):.3g}: "
                "transform.adapt(sde) has it",
                stacklevel=3,
            )


def dequantization_of(transform: Transform | None) -> str:
    """What data of a transform are dequantized with in training; "uniform" is that of data without one."""
    return "uniform" if transform is None else transform.dequantization


def warn_of_bare_levels(model: ScoreModel) -> None:
    """Warns where a model of the middles of the bins is given samples from all over them."""
    if dequantization_of(model.transform) == "normal":
        warnings.warn(
            "this model is of the middles of the bins and has hardly seen the rest of them: the bound on its bits per dimension is loose, "
            'by 0.9 for one of digits; leave dequantization out, or give "normal"',
            stacklevel=4,
        )


def first_level(model: ScoreModel) -> Level:
    """alpha and sigma at t_min."""
    return model.sde.levels([model.sde.t_min])[0]


UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # of which torch has hardly more than the name


def as_levels(levels: Tensor) -> Tensor:
    """Levels of a dtype with which one can count; anything but wide unsigned integers as it is."""
    return levels.long() if isinstance(levels, Tensor) and levels.dtype in UNSIGNED else levels


def check_same_transform(model: ScoreModel, transform: Transform) -> None:
    """Raises ConfigError unless levels and range are those of the model's own transform, if it has one."""
    if isinstance(model.transform, Transform) and model.transform != transform:
        raise ConfigError(
            f"transform = {transform}, but the model's own is {model.transform}: bits per dimension of other levels or another range are "
            "not those of the model's data; leave transform out, or give check_scale=False if you mean it"
        )


def resolve(dequantization: str | Dequantizer | None, model: ScoreModel, transform: Transform | None) -> Dequantizer:
    """The dequantizer that is meant; None is what the model was trained for, as its transform tells. Raises ConfigError."""
    if isinstance(dequantization, Dequantizer):
        if transform is not None and transform != dequantization.transform:
            raise ConfigError(f"transform = {transform}, but the dequantizer is of {dequantization.transform}: give one of them")
        return dequantization
    transform = model.transform if transform is None else transform
    if not isinstance(transform, Transform):
        raise ConfigError(
            f"transform = {transform!r}: bits per dimension are of integer levels, so tell how many: "
            "transform=scoresde.Transform(levels=256) for 8-bit images; for model-space floats use log_prob (nats)"
        )
    if dequantization is None:
        dequantization = dequantization_of(model.transform or transform)
    kinds = {kind.name: kind for kind in (Uniform, Normal)}
    if not isinstance(dequantization, str) or dequantization not in kinds:
        raise ConfigError(
            f"dequantization = {dequantization!r}, expected None, 'uniform', 'normal' or a Dequantizer; importance weighting of "
            "the draws of any of them is importance_weighted=True"
        )
    return kinds[dequantization](transform)

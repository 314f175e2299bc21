r"""Integer levels and model space: dequantization, its inverse, and the offset of bits per dimension.

Levels k in {0, ..., K-1} become x = low + (high - low) (k + u)/K with u uniform in [0, 1) (1511.01844, section 3.1). Or they
become the middles of their bins, u = 1/2, and it is the diffusion's own noise at t_min that dequantizes them (2305.03935, section
4.1): ``Transform.adapt`` chooses a t_min at which that noise stays within a bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.core.checks import check_positive, check_positive_int, check_shape
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.streams import DEQUANTIZE
from scoresde.errors import ConfigError, DTypeError

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level

DEQUANTIZATIONS = ("uniform", "normal")


@checked
@dataclass(frozen=True)
class Transform:
    """K integer levels on [low, high] of the model's space.

    >>> import scoresde as sd
    >>> sd.Transform(levels=256).bits_offset  # log2 256 - log2(1 - -1)
    7.0

    ``dequantization`` is what a model of these levels is trained on, and then measured with: "uniform" noise over each bin, or
    "normal", the middles of the bins, to which the diffusion adds normal noise (``adapt`` the SDE to the levels for it). It is no
    part of equality: the data are the same.

    Raises:
        ConfigError: levels < 2, low >= high, or an unknown dequantization.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0
    dequantization: str = field(default="uniform", compare=False)

    def __post_init__(self) -> None:
        if check_positive_int(self.levels, "levels") < 2:
            raise ConfigError(f"levels = {self.levels}, expected at least 2")
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"low = {self.low} and high = {self.high}: expected finite low < high")
        if self.dequantization not in DEQUANTIZATIONS:
            raise ConfigError(f"dequantization = {self.dequantization!r}, expected 'uniform' or 'normal'")

    def __repr__(self) -> str:
        # what is the default is left out: hashes of data and settings are made of it, and the data are the same
        more = "" if self.dequantization == "uniform" else f", dequantization={self.dequantization!r}"
        return f"Transform(levels={self.levels}, low={self.low}, high={self.high}{more})"

    @property
    def bin_width(self) -> float:
        """Width of one level in model space."""
        return (self.high - self.low) / self.levels

    @property
    def bits_offset(self) -> float:
        """log2 K - log2(high - low): bits per dimension of the levels minus those of the density in model space."""
        return math.log2(self.levels) - math.log2(self.high - self.low)

    def log_det(self, dimensions: int) -> float:
        """log |det dx/dk| of the map from k + u to x, in nats."""
        return dimensions * math.log(self.bin_width)

    def tails(self, t: Level) -> float:
        """Half a bin in standard deviations of the noise at a level, bin_width alpha/(2 sigma)."""
        return self.bin_width * t.alpha / (2 * t.sigma)

    def margin(self, dtype: torch.dtype) -> float:
        """What rounding to dtype can move a value, in bins: so far off the edges the level of a value is sure, up to 1/2."""
        rounding = torch.finfo(dtype).eps + 8 * torch.finfo(torch.float64).eps
        return min(0.5, rounding * max(abs(self.low), abs(self.high)) / self.bin_width)

    @checked
    def dequantize(
        self,
        levels: Tensor,
        seed: int = 0,
        ids: Iterable[int] | Tensor | None = None,
        draw: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Model-space floats: low + (high - low)(k + u)/K, u a function of (seed, sample id, draw). ids None is 0..B-1.

        ``quantize`` gives the levels back, whatever the rounding to dtype.

        Raises:
            DTypeError: levels are not integers.
            ConfigError: levels outside 0..K-1.
        """
        self.check_levels(levels)
        noise = Noise(check_seed(seed), check_ids(ids, len(levels)), tuple(levels.shape[1:]), torch.float64)
        margin = self.margin(dtype)
        u = noise.uniform(DEQUANTIZE, draw).to(levels.device).clamp(margin, 1 - margin)
        x = self.low + (levels.double() + u) * self.bin_width
        return x.to(device=device, dtype=dtype)

    def center(self, levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The middle of each level's bin in model space, for pictures and for comparing samples with data."""
        self.check_levels(levels)
        return (self.low + (levels.double() + 0.5) * self.bin_width).to(dtype)

    def training(
        self,
        levels: Tensor,
        seed: int = 0,
        ids: Iterable[int] | Tensor | None = None,
        draw: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """What a model of these levels is trained on: dequantized by uniform noise, or the middles of the bins for "normal"."""
        if self.dequantization == "normal":
            return self.center(levels, dtype).to(device)
        return self.dequantize(levels, seed, ids, draw, dtype, device)

    def adapt(self, sde: SDE, tails: float = 3.5) -> SDE:
        """The SDE with its t_min (or ``sigma_min``) where sigma/alpha = bin_width/(2 tails): the noise that is left stays within a bin.

        A share of 2 Phi(-tails) of a sample's dimensions leaves its bin, which costs -log2(1 - 2 Phi(-tails)) bits per dimension:
        0.004 for 3, 0.0007 for 3.5. With smaller noise the range of log-SNR to learn grows.

        >>> import scoresde as sd
        >>> sde = sd.Transform(levels=17).adapt(sd.VPSDE())
        >>> round(float(sde.t_min), 5)
        0.0023

        Raises:
            ConfigError: tails <= 0, or an SDE without a field t_min or sigma_min to set.
        """
        s = self.bin_width / (2 * check_positive(tails, "tails"))
        names: set[str] = {f.name for f in fields(sde)} if is_dataclass(sde) else set()
        if "sigma_min" in names:
            return replace(sde, sigma_min=s)  # type: ignore[type-var]
        if "t_min" not in names:
            raise ConfigError(f"{sde!r} has no field t_min or sigma_min: make it a dataclass with t_min, or set its t_min yourself")
        wide = replace(sde, t_min=1e-9 * sde.t_max)  # type: ignore[type-var]
        t = float(wide.time_of_log_snr(torch.tensor(-2 * math.log(s), dtype=torch.float64, device="cpu")))
        ends = {"t_end": t} if "t_end" in names and sde.t_end is not None and sde.t_end < t else {}
        return replace(sde, t_min=t, **ends)  # type: ignore[type-var]

    @checked
    def quantize(self, x: Tensor) -> Tensor:
        """The level of each value, int64; values outside [low, high] go to the nearest level."""
        return ((x.double() - self.low) / self.bin_width).floor().clamp(0, self.levels - 1).long()

    def check_levels(self, levels: Tensor) -> None:
        """Checks integers in 0..K-1. Raises DTypeError, ShapeError, ConfigError."""
        if not isinstance(levels, Tensor) or levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
            kind = levels.dtype if isinstance(levels, Tensor) else type(levels).__name__
            raise DTypeError(
                f"levels have dtype {kind}, expected integers 0..{self.levels - 1}; "
                "floats are in model space already: use log_prob"
            )
        check_shape(levels, name="levels")
        low, high = (int(v) for v in torch.aminmax(levels))
        if low < 0 or high >= self.levels:
            raise ConfigError(
                f"levels run from {low} to {high}, but Transform(levels={self.levels}) takes 0..{self.levels - 1}: "
                "give the right number, Transform(levels=...)"
            )

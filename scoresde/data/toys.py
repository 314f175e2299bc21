"""Data sets in two dimensions, made and not read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_integer, check_memory, check_positive, check_positive_int, did_you_mean
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_seed
from scoresde.core.streams import TOY
from scoresde.data.dataset import Data
from scoresde.errors import ConfigError

if TYPE_CHECKING:
    from scoresde.models.mixture import GaussianMixture


@checked
def two_moons(std: float = 0.1, components: int = 64) -> GaussianMixture:
    """Two interleaved half circles of radius 1, blurred: an exact density for two-dimensional experiments.

    A mixture of ``components`` equal isotropic Gaussians, half of them along each arc, at the middles of equal pieces:
    (cos a - 1/2, sin a - 1/4) and (1/2 - cos a, 1/4 - sin a) for a in (0, pi). Centred, about one unit in size.

    Args:
        std: of each component.
        components: an even number. At the default spacing, of one std, the ripple along the arcs is 2 exp(-2 pi^2) = 5e-9.

    Raises:
        ConfigError: components not even, or spaced by more than 1.5 std: the density would be beads, not arcs.
    """
    from scoresde.models.mixture import GaussianMixture

    check_positive(std, "std")
    half = check_integer(components, "components", 1, 10_000_000) // 2
    if components % 2 or math.pi / half > 1.5 * std:
        need = 2 * math.ceil(math.pi / (1.5 * std))
        raise ConfigError(
            f"components = {components}, expected an even number of {need} or more for std = {std}: "
            "the arcs would show the single components"
        )
    angle = (torch.arange(half, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / half)
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    means = torch.cat([arc, -arc]).float()
    ones = torch.ones(components, device="cpu")
    return GaussianMixture(means, float(std) * ones, ones / components)


@checked
def toy(name: str, n: int = 10_000, seed: int = 0) -> Data:
    """Points in the plane, float32 (n, 2), of about unit size: "moons", "pinwheel", "checkerboard", "spirals", "rings".

    Point i is a function of (name, seed, i), for training and for testing, whatever n is. The moons come from
    ``two_moons()``, which is then ``Data.target``.

    Args:
        name: of the shape.
        n: number of points to train, and as many to test.
        seed: an integer in [0, 2^63).

    Raises:
        ConfigError: an unknown name, n below 1, a seed out of range.
    """
    if name not in TOYS:
        raise ConfigError(f"toy {name!r} is unknown, expected one of {', '.join(TOYS)}{did_you_mean(name, TOYS)}")
    check_memory(64.0 * check_positive_int(n, "n"), f"n = {n} points")
    if check_seed(seed) >= 1 << 63:
        raise ConfigError(f"seed = {seed}, expected an integer in [0, 2^63)")
    if name == "moons":
        target = two_moons()
        return Data(target.sample(n, 2 * seed), target.sample(n, 2 * seed + 1), name=name, target=target)
    stream = TOY + TOYS.index(name)
    noise = Noise(seed, np.arange(n, dtype=np.int64), (4,))
    points = _SHAPES[name]
    train, test = (
        points(noise.uniform(stream, 2 * part).double(), noise.normal(stream, 2 * part + 1).double()).float()
        for part in (0, 1)
    )
    return Data(train, test, name=name)


def _pinwheel(u: Tensor, z: Tensor) -> Tensor:
    """Five arms that bend with the radius (arXiv 1603.06277)."""
    radius, across = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    angle = (5 * u[:, 0]).floor() * (2 * math.pi / 5) + 0.25 * radius.exp()
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([radius * cos - across * sin, radius * sin + across * cos], dim=1)


def _checkerboard(u: Tensor, z: Tensor) -> Tensor:
    """The eight black unit squares of [-2, 2]^2."""
    x = 4 * u[:, 0] - 2
    y = u[:, 1] - 2 * (2 * u[:, 2]).floor() + x.floor() % 2
    return torch.stack([x, y], dim=1)


def _spirals(u: Tensor, z: Tensor) -> Tensor:
    """Two arms of one and a half turns."""
    angle = 3 * math.pi * u[:, 0].sqrt()
    sign = torch.where(u[:, 1] < 0.5, 1.0, -1.0)
    arm = torch.stack([-angle.cos(), angle.sin()], dim=1) * (angle * sign / 5)[:, None]
    return arm + 0.05 * z[:, :2]


def _rings(u: Tensor, z: Tensor) -> Tensor:
    """Four circles of radius 1/2, 1, 3/2 and 2, the outer ones with more points."""
    radius = ((u[:, 0] * 10).floor()[:, None] >= torch.tensor([1, 3, 6], device="cpu")).sum(1).double().add(1) / 2
    radius, angle = radius + 0.05 * z[:, 0], 2 * math.pi * u[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)

_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "rings": _rings,
}

TOYS = ("moons", *_SHAPES)

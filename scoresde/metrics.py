"""Distances between two sets of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._tensor import check_data, check_positive_int
from .errors import ConfigError, ShapeError
from .noise import PROJECTION, Noise, check_seed


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, seed: int = 0) -> float:
    r"""Sliced Wasserstein-2 distance: the root mean square over random directions of the distance of the projections.

    .. math:: \mathrm{SW}_2^2 = \frac1L \sum_l \int_0^1 (F_{x\cdot\theta_l}^{-1} - F_{y\cdot\theta_l}^{-1})^2 du

    Exact for each direction, for sets of equal or of different sizes (1503.06389; Bonneel et al. 2015). In the units of x.

    Args:
        x, y: (N, *event) and (M, *event).
        projections: number L of directions.
        seed: of the directions.

    Raises:
        ShapeError, DTypeError, NonFiniteError, ConfigError.
    """
    x, y = check_data(x).flatten(1).double(), check_data(y, name="y").flatten(1).double()
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}: they must be alike")
    check_positive_int(projections, "projections")
    noise = Noise(check_seed(seed), np.arange(projections), (x.shape[1],), torch.float64, x.device)
    directions = torch.nn.functional.normalize(noise.normal(PROJECTION), dim=1)
    px, py = (x @ directions.T).sort(0).values, (y @ directions.T.to(y)).sort(0).values
    n, m = len(x), len(y)
    if n == m:
        return math.sqrt(float((px - py).square().mean()))
    # both quantile functions are steps: integrate over the union of their jumps i/n and j/m, in exact integers
    jumps = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    width = jumps.diff(prepend=jumps.new_zeros(1)).double().to(x.device) / (n * m)
    last = (jumps - 1).to(x.device)
    return math.sqrt(float(((px[last // m] - py[last // n]).square() * width[:, None]).sum(0).mean()))


@dataclass(frozen=True)
class NoiseFloor:
    """What a distance reads between two sets of the same distribution: mean and standard deviation over splits."""

    mean: float
    std: float


def noise_floor(
    pool: Tensor, n: int, splits: int = 10, projections: int = 128, seed: int = 0, reference: Tensor | None = None
) -> NoiseFloor:
    """The noise floor of ``sliced_wasserstein`` between n draws and a reference set, from a pool of exact samples.

    Each split takes n samples of the pool as the draws, and judges them by the reference, or by all others of the pool.

    Args:
        pool: exact samples (N, *event), N > n.
        n: size of the set to be judged.
        splits: random choices of n.
        projections, seed: as for ``sliced_wasserstein``; the seed is that of the choices too.
        reference: the set (M, *event) that the draws are compared with; None: the rest of the pool.

    Raises:
        ConfigError: n is not below N, or splits is no positive integer.
    """
    if not 0 < check_positive_int(n, "n") < len(pool):
        raise ConfigError(f"n = {n} and a pool of {len(pool)}: expected more samples in the pool than n")
    values = []
    for split in range(check_positive_int(splits, "splits")):
        order = torch.from_numpy(np.random.Generator(np.random.Philox(key=[seed, split])).permutation(len(pool))).to(pool.device)
        rest = pool[order[n:]] if reference is None else reference
        values.append(sliced_wasserstein(pool[order[:n]], rest, projections, seed))
    return NoiseFloor(float(np.mean(values)), float(np.std(values)))

"""Distances between two sets of samples, what they read on equal distributions, and intervals by resampling.

Sets have shape (N, *event) and (M, *event); everything is computed in float64, in pieces that need little memory. Every distance
of finite sets reads more than 0 between two sets of the same distribution: compare it with ``noise_floor``, or with what real
samples get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer, check_least, check_memory, check_positive, check_positive_int, theirs
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_seed
from scoresde.core.streams import PROJECTION
from scoresde.errors import ConfigError, ShapeError
from scoresde.evaluation.bootstrap import METHODS as METHODS  # a distance as a number with an interval: scoresde.metrics.bootstrap
from scoresde.evaluation.bootstrap import Interval as Interval
from scoresde.evaluation.bootstrap import bootstrap as bootstrap
from scoresde.evaluation.bootstrap import interval as interval
from scoresde.models.mixture import responsibilities

if TYPE_CHECKING:
    from scoresde.models.mixture import GaussianMixture

CHUNK = 1 << 22  # numbers of a pairwise matrix at a time: 32 MB

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths of the RBF mixture, in medians

Kernel = Callable[[Tensor, Tensor], Tensor]


@checked
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
    x, y = _pair(x, y)
    directions = unit_directions(x.shape[1], projections, seed).to(x.device)
    px, py = (x @ directions.T).sort(0).values, (y @ directions.T).sort(0).values
    return math.sqrt(float(quantile_distance2(px, py).mean()))


def unit_directions(dim: int, projections: int, seed: int) -> Tensor:
    """Random unit vectors (L, dim), float64; a function of the seed."""
    check_memory(8.0 * check_positive_int(projections, "projections") * dim, f"projections = {projections} of {dim} dimensions")
    noise = Noise(check_seed(seed), np.arange(projections), (dim,), torch.float64)
    return torch.nn.functional.normalize(noise.normal(PROJECTION), dim=1)


def quantile_distance2(px: Tensor, py: Tensor) -> Tensor:
    """Squared Wasserstein-2 distances of columns that are sorted, (N, L) and (M, L): (L,)."""
    n, m = len(px), len(py)
    if n == m:
        return (px - py).square().mean(0)
    # both quantile functions are steps: integrate over the union of their jumps i/n and j/m, in exact integers
    jumps = torch.unique(torch.cat([torch.arange(1, n + 1, device="cpu") * m, torch.arange(1, m + 1, device="cpu") * n]))
    width = jumps.diff(prepend=jumps.new_zeros(1)).double().to(px.device) / (n * m)
    last = (jumps - 1).to(px.device)
    return ((px[last // m] - py[last // n]).square() * width[:, None]).sum(0)


@dataclass(frozen=True)
class NoiseFloor:
    """What a distance reads between two sets of the same distribution: mean and standard deviation over splits."""

    mean: float
    std: float


@checked
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
    for split in range(check_integer(splits, "splits", 1, 100_000)):
        order = split_order(len(pool), seed, split).to(pool.device)
        rest = pool[order[n:]] if reference is None else reference
        values.append(sliced_wasserstein(pool[order[:n]], rest, projections, seed))
    return NoiseFloor(float(np.mean(values)), float(np.std(values)))


def split_order(n: int, seed: int, split: int) -> Tensor:
    """A random order of n samples, a function of (seed, split)."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=[seed, split])).permutation(n))


# ---- kernels and pairwise distances
@checked
def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance (Szekely and Rizzo 2013), zero for equal distributions only; in the square root of the units of x.

    .. math:: \sqrt{2 E|X - Y| - E|X - X'| - E|Y - Y'|}

    with means over all pairs of the two sets, each point with itself included (the distance of the empirical distributions, never
    imaginary): in one dimension it is ``scipy.stats.energy_distance``.

    Raises:
        ShapeError, DTypeError, NonFiniteError.
    """
    x, y = _pair(x, y)
    cross, own, other = (row_means(a, b, distances).mean() for a, b in ((x, y), (x, x), (y, y)))
    return math.sqrt(max(float(2 * cross - own - other), 0.0))


@checked
def mmd(x: Tensor, y: Tensor, kernel: str | Kernel = "rbf", bandwidth: float | None = None) -> float:
    r"""Squared maximum mean discrepancy, the unbiased estimate (Gretton et al. 2012, lemma 6): 0 on the mean for equal
    distributions, so it may be negative.

    .. math:: \mathrm{MMD}^2 = \overline{k(x_i, x_j)}_{i \ne j} + \overline{k(y_i, y_j)}_{i \ne j} - 2\,\overline{k(x_i, y_j)}

    Args:
        x, y: (N, *event) and (M, *event), N and M at least 2; samples, or features of samples.
        kernel: "rbf", the mean of exp(-|a - b|^2 / (2 (s h)^2)) over s = 1/4, 1/2, 1, 2, 4; "polynomial", (a.b/D + 1)^3, with
            which it is the kernel distance of 1801.01401 (KID if the features are Inception's); or a function (n, D), (m, D) ->
            (n, m).
        bandwidth: h of "rbf"; None: the median distance within y, so that every x is judged by the same kernel.

    Raises:
        ShapeError, DTypeError, NonFiniteError.
        ConfigError: an unknown kernel, a bandwidth that is not positive, fewer than two samples.
    """
    x, y = _pair(x, y)
    if min(len(x), len(y)) < 2:
        raise ConfigError(f"{len(x)} and {len(y)} samples: the unbiased estimate needs two of each at least")
    k = make_kernel(kernel, y, bandwidth)
    own, other = (row_means(a, a, k, skip_diagonal=True).mean() for a in (x, y))
    return float(own + other - 2 * row_means(x, y, k).mean())


def make_kernel(kernel: str | Kernel, y: Tensor, bandwidth: float | None = None) -> Kernel:
    """The kernel of ``mmd`` as a function of flat float64 sets (n, D), (m, D) -> (n, m). Raises ConfigError."""
    if callable(kernel):
        return _guarded(kernel)
    if not isinstance(kernel, str):
        raise ConfigError(f"kernel is a {type(kernel).__name__}, expected 'rbf', 'polynomial', or a function (n, D), (m, D) -> (n, m)")
    if kernel == "polynomial":
        return lambda a, b: (a @ b.mT / a.shape[1] + 1) ** 3
    if kernel != "rbf":
        raise ConfigError(f"kernel = {kernel!r}, expected 'rbf', 'polynomial', or a function (n, D), (m, D) -> (n, m)")
    h = median_distance(y) if bandwidth is None else check_positive(bandwidth, "bandwidth")

    def rbf(a: Tensor, b: Tensor) -> Tensor:
        square = distances(a, b).square_()
        out = torch.zeros_like(square)
        for scale in SCALES:
            out += (square * (-0.5 / (scale * h) ** 2)).exp_()
        return out.div_(len(SCALES))

    return rbf


def _guarded(kernel: Kernel) -> Kernel:
    """A user's kernel, which is named in what goes wrong with it."""

    def guarded(a: Tensor, b: Tensor) -> Tensor:
        with theirs("your kernel"):
            k = kernel(a, b)
        if not isinstance(k, Tensor) or k.shape != (len(a), len(b)):
            got = f"shape {tuple(k.shape)}" if isinstance(k, Tensor) else f"a {type(k).__name__}"
            raise ShapeError(f"your kernel gave {got}, expected a tensor ({len(a)}, {len(b)})")
        return k

    return guarded


def median_distance(y: Tensor) -> float:
    """The median distance between two of (at most a thousand of) flat y (M, D); 1 if they are all equal."""
    y = y[:: -(-len(y) // 1000)]
    upper = torch.triu_indices(len(y), len(y), 1)
    d = distances(y, y)[upper[0], upper[1]]
    return float(d.median()) if len(d) and float(d.median()) > 0 else 1.0


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m) of flat float64 sets."""
    # by matrix product for many dimensions: a coordinate's 1e-16 becomes 1e-8 of a distance that is close to 0
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist" if a.shape[1] <= 4 else "use_mm_for_euclid_dist")


def _chunks(a: Tensor, b: Tensor, k: Kernel) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a, and k of them with all of b."""
    size = max(1, CHUNK // max(len(b), 1))
    for start in range(0, len(a), size):
        rows = slice(start, min(start + size, len(a)))
        yield rows, k(a[rows], b)


def row_means(a: Tensor, b: Tensor, k: Kernel, skip_diagonal: bool = False) -> Tensor:
    """The means of k over b, one a row of a, (n,); without the pair of a row and itself where b is a."""
    out = a.new_empty(len(a))
    for rows, values in _chunks(a, b, k):
        total = values.sum(1)
        if skip_diagonal:
            total -= values[:, rows.start :].diagonal()
        out[rows] = total
    return out / (len(b) - int(skip_diagonal))


# ---- features
@checked
def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Frechet distance of the Gaussians with the means and covariances of two sets, squared as is usual (1706.08500, eq. 6).

    .. math:: |m_x - m_y|^2 + \mathrm{tr}\,(C_x + C_y) - 2\,\mathrm{tr}\,(C_x^{1/2} C_y C_x^{1/2})^{1/2}

    With R_x^T R_x = (N-1) C_x of a QR decomposition, the last trace is the sum of the singular values of R_x R_y^T: exact, without a
    matrix square root, and for fewer samples than dimensions too. Biased upwards by the noise of the covariances.
    It is FID only if x and y are Inception features.

    Raises:
        ShapeError, DTypeError, NonFiniteError.
        ConfigError: fewer than two samples.
    """
    x, y = _pair(x, y)
    if min(len(x), len(y)) < 2:
        raise ConfigError(f"{len(x)} and {len(y)} samples: a covariance needs two of each at least")
    (m_x, r_x), (m_y, r_y) = gaussian_root(x), gaussian_root(y)
    shared = torch.linalg.svdvals(r_x @ r_y.mT).sum()
    value = (m_x - m_y).square().sum() + r_x.square().sum() + r_y.square().sum() - 2 * shared
    return max(float(value), 0.0)


def gaussian_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) of flat x (N, D), and R (min(N, D), D) with R^T R its unbiased covariance."""
    mean = x.mean(0)
    return mean, torch.linalg.qr(x - mean, mode="r").R / math.sqrt(len(x) - 1)


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares: of samples that lie within the real set, and of real ones that lie within the samples."""

    precision: float
    recall: float


@checked
def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (1904.06991, eq. 1 and 2): fidelity and coverage, apart.

    A point lies within a set if it is at most as far from one of its points as that one's k-th nearest neighbour in the set.

    Args:
        x: samples, or their features, (N, *event).
        y: real ones (M, *event).
        k: neighbours.

    Raises:
        ShapeError, DTypeError, NonFiniteError.
        ConfigError: k is no positive integer below N and M.
    """
    x, y = _pair(x, y)
    if check_positive_int(k, "k") >= min(len(x), len(y)):
        raise ConfigError(f"k = {k} and {len(x)} and {len(y)} samples: expected more of each than k")
    return PrecisionRecall(float(within(x, y, neighbour_radius(y, k)).mean()), float(within(y, x, neighbour_radius(x, k)).mean()))


def neighbour_radius(y: Tensor, k: int) -> Tensor:
    """The distance of each of flat y (M, D) to its k-th nearest neighbour, (M,)."""
    out = y.new_empty(len(y))
    for rows, d in _chunks(y, y, distances):
        d[:, rows.start :].diagonal().fill_(0.0)  # exactly: the nearest of all is the point itself
        out[rows] = d.kthvalue(k + 1, dim=1).values
    return out


def within(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """1 for each of flat x (N, D) that lies in one of the balls around y (M, D), else 0: float64 (N,)."""
    out = x.new_empty(len(x))
    for rows, d in _chunks(x, y, distances):
        out[rows] = (d <= radius).any(1).double()
    return out


# ---- mixtures
@checked
def mode_occupancy_error(x: Tensor, target: GaussianMixture, alpha: float = 1.0, sigma: float = 0.0, hard: bool = False) -> float:
    """Total variation distance between the weights of a mixture's components and the shares of them in samples.

    Half the sum over k of |share_k - w_k|, from 0 to 1. share_k is the mean of the responsibility of component k: for exact samples
    its mean is w_k, however much the components overlap. ``hard`` counts each sample for its most responsible component, which
    for components that overlap differs from the weights even for exact samples.

    Args:
        x: samples of alpha x_0 + sigma eps, (N, *event).
        target: the mixture of x_0.
        alpha, sigma: level of the samples.
        hard: count the most responsible component.

    Raises:
        ShapeError, DTypeError, NonFiniteError.
    """
    check_least(alpha, 0.0, "alpha")
    check_least(sigma, 0.0, "sigma")
    r = responsibilities(x, target, alpha, sigma)
    if hard:
        r = torch.nn.functional.one_hot(r.argmax(1), r.shape[1]).double()
    return float(0.5 * (r.mean(0) - target.log_weights.double().exp()).abs().sum())


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets flat, float64, on the device of x."""
    x, y = check_data(x).flatten(1).double(), check_data(y, name="y").flatten(1).double()
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}: they must be alike")
    return x.detach(), y.detach().to(x.device)

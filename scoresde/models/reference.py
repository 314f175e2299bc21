r"""The Gaussian reference: mean m and covariance C of the data, for which the whole diffusion is known in closed form.

Under any SDE, with y = x/alpha, s = sigma/alpha and lam = log(alpha/sigma) = -log s, let C = U diag(c) U^T and

.. math:: z = U^T (y - m)/\sqrt{v}, \qquad v = c + s^2

If the data were N(m, C), the probability-flow ODE would be dz/dlam = 0: a path is one point in these coordinates. For any data,

.. math:: \frac{dz}{d\lambda} = F = \frac{U^T (D - m) - (c/v)\, U^T (y - m)}{\sqrt v}, \qquad D = E[x_0 | x_t]

is what the model knows beyond mean and covariance, so a solver of F spends its network calls on nothing else
(``scoresde.ReferenceSolver``). The covariance may be full, diagonal, isotropic, or diagonal in the basis of the discrete cosine
transform, where the pixels of natural images are nearly uncorrelated.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_positive
from scoresde.core.digest import sha256_of
from scoresde.core.doors import checked
from scoresde.core.tensors import full_precision
from scoresde.errors import ConfigError, ShapeError

KINDS = ("full", "diagonal", "dct", "isotropic")

FLOOR = 1e-12  # of the mean variance: the least of a direction

NEARLY_GAUSSIAN = 0.8  # ``typical`` from which on the tails are not heavy

MEASURED = 4096  # samples that tell of the tails

FULL_UP_TO = 1024  # dimensions: two products with a matrix of this size a network call are still cheap


@checked
@dataclass(frozen=True, eq=False)
class GaussianReference:
    """N(m, C), with C diagonal in some orthogonal basis.

    Make one with ``GaussianReference.fit(data)`` or ``GaussianReference.of_moments(mean, covariance)``.

    Attributes:
        mean: m, (*event), float64.
        variance: c, eigenvalues of C in the basis: (D,) for "full", (*event) for "diagonal" and "dct", () for "isotropic".
        kind: "full" (the eigenvectors of C), "diagonal", "dct" (the cosine transform of all but the first dimension) or "isotropic".
        basis: (D, D) eigenvectors as columns, for "full"; else None.
        exact: whether m and C are those of the model itself, and not estimates.
        width: the width, in log-SNR, of the grid that goes with it (see ``scoresde.grid.logistic``), 2 for networks trained on data
            whose finest details lie far below their standard deviation; None: ``ReferenceSolver`` takes 2 for networks, and for
            other models finds it from the number of calls, ``spread`` and ``typical``.
        detail: the noise s at which single levels of integer data come apart, for the grid of likelihoods (``likelihood/clock.py``);
            None for continuous data.
        typical: the median over samples of (x - m)^T C^-1 (x - m), over that of Gaussian data: 1 for these, 0.46 for Student's t of 3
            degrees of freedom in 8 dimensions, whose C is made by few samples far out. ``fit`` measures it.

    Raises:
        ConfigError, ShapeError: an unknown kind, shapes that do not fit, variances that are not positive.
    """

    mean: Tensor
    variance: Tensor
    kind: str = "diagonal"
    basis: Tensor | None = None
    exact: bool = False
    width: float | None = None
    detail: float | None = None
    typical: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.mean, Tensor) or not isinstance(self.variance, Tensor):
            raise ConfigError("mean and variance of GaussianReference: expected tensors, as GaussianReference.fit(data) makes them")
        if self.kind not in KINDS:
            raise ConfigError(f"kind = {self.kind!r} of GaussianReference, expected one of {', '.join(KINDS)}")
        check_positive(self.typical, "typical")
        for name, value in (("width", self.width), ("detail", self.detail)):
            if value is not None:
                check_positive(value, name)
        D = self.mean.numel()
        shape = {"full": (D,), "isotropic": ()}.get(self.kind, tuple(self.mean.shape))
        if tuple(self.variance.shape) != shape:
            raise ShapeError(f"variance has shape {tuple(self.variance.shape)}, expected {shape} for kind {self.kind!r}")
        if (self.basis is not None) != (self.kind == "full") or (self.basis is not None and self.basis.shape != (D, D)):
            raise ShapeError(f"kind {self.kind!r} and a basis of shape {None if self.basis is None else tuple(self.basis.shape)}")
        if not bool(self.mean.isfinite().all()):
            raise ConfigError("the mean of GaussianReference is not finite")
        if not bool((self.variance > 0).all()) or not bool(self.variance.isfinite().all()):
            raise ConfigError(f"variances go down to {float(self.variance.min()):.3g}, expected finite numbers > 0")

    @classmethod
    @checked
    def fit(cls, data: Any, kind: str = "auto", width: float | None = None) -> GaussianReference:
        """Mean and covariance of data.

        Args:
            data: samples in model space (N, *event), or a ``Data`` (levels are dequantized: each bin adds its own variance).
            kind: of the covariance; "auto" is "full" up to 1024 dimensions where there are two samples a dimension, else "dct" for
                images and "diagonal" for vectors.
            width: of the grid; None is 2 for integer levels, and left to the solver for floats.

        Raises:
            ShapeError, DTypeError, NonFiniteError: data that are no batch of at least two samples.
            ConfigError: an unknown kind.

        >>> import scoresde as sd
        >>> sd.GaussianReference.fit(sd.data.digits()).kind
        'full'
        """
        transform = getattr(data, "transform", None)
        x = getattr(data, "train", data)
        if transform is not None:
            x = transform.training(x, dtype=torch.float64)
        check_data(x, name="data")
        if len(x) < 2:
            raise ShapeError(f"data have shape {tuple(x.shape)}: expected two samples or more")
        x = x.detach().cpu()
        event, D = tuple(x.shape[1:]), x[0].numel()
        if kind == "auto":
            full = D <= FULL_UP_TO and len(x) >= 2 * D
            kind = "full" if full else "dct" if len(event) > 1 else "diagonal"
        width = 2.0 if width is None and transform is not None else width
        mean = x.mean(0, dtype=torch.float64)
        if kind == "full":
            r = x.flatten(1).double() - mean.flatten()
            return replace(cls.of_moments(mean, r.mT @ r / (len(x) - 1), width=width), detail=detail_of(transform)).measured(x)
        square, rows = torch.zeros(event, dtype=torch.float64, device="cpu"), max(1, (1 << 22) // D)
        for start in range(0, len(x), rows):  # a large set is never held in float64
            r = x[start : start + rows].double() - mean
            square += (_cosines(r) if kind == "dct" else r).square().sum(0)
        variance = _floored(square / (len(x) - 1))
        variance = variance.mean() if kind == "isotropic" else variance
        return cls(mean, variance, kind, width=width, detail=detail_of(transform)).measured(x)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor, exact: bool = False, width: float | None = None) -> GaussianReference:
        """From a mean (*event) and a covariance (D, D) with D the product of event, or variances (*event). Raises ConfigError."""
        mean = torch.as_tensor(mean, device="cpu").detach().double()
        covariance = torch.as_tensor(covariance, device="cpu").detach().double()
        D = mean.numel()
        if covariance.shape != (D, D):
            return cls(mean, covariance, "diagonal", exact=exact, width=width)
        if not torch.allclose(covariance, covariance.mT, rtol=1e-6, atol=1e-9 * float(covariance.abs().max())):
            raise ConfigError("the covariance of GaussianReference is not symmetric")
        variance, basis = torch.linalg.eigh((covariance + covariance.mT) / 2)
        if float(variance[0]) < -1e-6 * float(variance[-1]):
            raise ConfigError(f"the covariance of GaussianReference has an eigenvalue of {float(variance[0]):.3g}, expected none < 0")
        # laid out as a file gives it back: matrix products round differently otherwise
        return cls(mean, _floored(variance), "full", basis.contiguous(), exact, width)

    @property
    def scale(self) -> float:
        """The root mean square over dimensions of the standard deviations: the square root of tr C/D."""
        return math.sqrt(float(self.variance.mean()))

    @property
    def spread(self) -> float:
        """Standard deviation of log sqrt(c) over the eigenvalues c of C, each counted by its share of tr C: how far apart in log-SNR the
        scales are at which the data settle. 0 for isotropic C, 0.3 to 0.6 for mixtures of a few modes, 1 and more for images."""
        c = self.variance.flatten()
        p, log = c / c.sum(), 0.5 * c.log()
        return math.sqrt(max(float((p * (log - (p * log).sum()).square()).sum()), 0.0))

    @property
    def tail(self) -> float:
        """typical/0.8, at most 1: what C is scaled by to be that of the typical sample. Down to 0.8 the data count as Gaussian, which is
        more than the noise of the median, and other shapes than heavy tails (modes, manifolds), make of them."""
        return min(1.0, self.typical / NEARLY_GAUSSIAN)

    def of_typical_sample(self) -> GaussianReference:
        """The same with C times ``tail``, which is that of the typical sample where a few samples far out made C."""
        if self.tail == 1:
            return self
        return replace(self, variance=self.variance * self.tail, typical=1.0, exact=False)

    def measured(self, x: Tensor) -> GaussianReference:
        """The same with ``typical`` as measured on samples x (N, *event), of a large set on some evenly spaced ones."""
        x = x[:: -(-len(x) // MEASURED)].detach().cpu().double()
        c = self.variance.expand(x[0].numel() if self.basis is not None else x.shape[1:]).flatten()
        live = c > 2 * FLOOR * c.mean()  # elsewhere the data do not vary
        square = self.analyse(x - self.mean).flatten(1)[:, live].square() / c[live]
        gaussian = int(live.sum()) * (1 - 2 / (9 * int(live.sum()))) ** 3  # median of chi^2, by Wilson and Hilferty
        return replace(self, typical=max(float(square.sum(1).median()) / gaussian, 1e-6))

    def to(self, x: Tensor) -> GaussianReference:
        """The same in the dtype and on the device of x."""
        basis = None if self.basis is None else self.basis.to(x)
        return replace(self, mean=self.mean.to(x), variance=self.variance.to(x), basis=basis)

    def analyse(self, r: Tensor) -> Tensor:
        """U^T r for a batch r (B, *event): coordinates (B, D) for "full", (B, *event) otherwise. In full precision under autocast."""
        with full_precision(r):
            if self.basis is not None:
                return r.flatten(1) @ self.basis
            return _cosines(r) if self.kind == "dct" else r

    def synthesize(self, c: Tensor) -> Tensor:
        """U c, of shape (B, *event): the inverse of ``analyse``."""
        with full_precision(c):
            if self.basis is not None:
                return (c @ self.basis.mT).view(len(c), *self.mean.shape)
            return _cosines(c, inverse=True) if self.kind == "dct" else c

    def log_prob(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """log density, in nats, of N(alpha m, alpha^2 C + sigma^2 I) at x (B, *event): (B,), float64."""
        here = self.to(x.double())
        v = (alpha**2 * here.variance + sigma**2).expand(self.mean.numel() if self.basis is not None else self.mean.shape)
        square = (here.analyse(x.double() - alpha * here.mean).square() / v).flatten(1).sum(1)
        return -0.5 * (square + v.log().sum() + self.mean.numel() * math.log(2 * math.pi))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, as they are saved."""
        basis = {} if self.basis is None else {"basis": self.basis}
        return {"mean": self.mean, "variance": self.variance, **basis}

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell one reference from another."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        detail = "" if self.detail is None else f" {self.detail}"
        typical = "" if self.typical == 1 else f" typical {self.typical}"
        what = f"{self.kind} {self.width} {tuple(self.mean.shape)}{detail}{typical}"
        return sha256_of(what, *(tensor.double() for tensor in self.tensors().values()))[:16]

    def __repr__(self) -> str:
        shape = tuple(self.mean.shape)
        more = "" if self.width is None else f", width {self.width:g}"
        more += "" if self.tail == 1 else f", typical {self.typical:.2g}"
        return f"GaussianReference({self.kind}, shape {shape}, scale {self.scale:.4g}{more}, {self.fingerprint()})"


def detail_of(transform: Any) -> float | None:
    """Where levels come apart in noise: a quarter of a bin, for models of bare levels."""
    return transform.bin_width / 4 if getattr(transform, "dequantization", "") == "normal" else None


def _floored(variance: Tensor) -> Tensor:
    """Variances, none below 1e-12 of the mean: data that do not vary in some direction have a reference all the same."""
    return variance.clamp_min(max(FLOOR * float(variance.mean()), 1e-30))


def _cosines(r: Tensor, inverse: bool = False) -> Tensor:
    """The orthonormal cosine transform (DCT-II) over all but the first two dimensions of (B, C, ...); over the last of (B, D)."""
    for axis in range(min(2, r.ndim - 1), r.ndim):
        M = _dct(r.shape[axis], r.dtype, r.device)
        r = (r.movedim(axis, -1) @ (M if inverse else M.mT)).movedim(-1, axis)
    return r


@functools.cache
def _dct(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (n, n) of the orthonormal DCT-II, rows are frequencies."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    M = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    M[0] /= math.sqrt(2)
    return torch.from_numpy(M).to(device, dtype)

"""Gaussian mixtures, exact at all noise levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.core.checks import check_data, check_integer, check_memory, check_positive
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.streams import STEP, TARGET
from scoresde.errors import ConfigError, NonFiniteError, ShapeError

CHUNK = 1 << 20  # numbers in a (samples, components, dimensions) array


@checked
class GaussianMixture(nn.Module):
    """A mixture of Gaussians on samples of any shape.

    Args:
        means: (K, *event).
        covariances: standard deviations (K,), or (K, *event), or covariance matrices (K, D, D), D the product of event.
        weights: (K,), positive, normalised here; None is uniform.

    Raises:
        ShapeError: shapes that do not fit together.
        NonFiniteError: NaN or infinity.
        ConfigError: standard deviations or weights that are not positive, matrices that are not positive definite.

    >>> import scoresde as sd, torch
    >>> mixture = sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.2, 0.3]))
    >>> mixture.log_prob(torch.tensor([[1.0, 0.0]]))
    tensor([-0.1231])
    """

    means: Tensor
    log_weights: Tensor
    variances: Tensor  # (K, D), in the basis where the component is diagonal
    basis: Tensor | None  # (K, D, D), columns are eigenvectors; None: the coordinates themselves

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
        check_data(means, name="means")
        K, D = means.shape[0], means[0].numel()
        covariances = torch.as_tensor(covariances, dtype=means.dtype, device=means.device)
        if not bool(covariances.isfinite().all()):
            raise NonFiniteError("covariances hold NaN or inf")
        basis = None
        if covariances.shape in ((K,), means.shape):
            if bool((covariances <= 0).any()):
                raise ConfigError(f"standard deviations go down to {float(covariances.min())}, expected all > 0")
            variances = covariances.double().square().reshape(K, -1).expand(K, D)
        elif covariances.shape == (K, D, D):
            full = covariances.double()
            if not torch.allclose(full, full.mT, rtol=1e-5, atol=1e-8 * float(full.abs().max())):
                raise ConfigError("covariance matrices are not symmetric")
            variances, basis = torch.linalg.eigh((full + full.mT) / 2)
            if bool((variances <= 0).any()):
                raise ConfigError(f"covariance matrices have an eigenvalue of {float(variances.min()):.3g}, expected all > 0")
        else:
            raise ShapeError(
                f"covariances have shape {tuple(covariances.shape)} for means of shape {tuple(means.shape)}: expected stds of "
                f"shape ({K},) or {tuple(means.shape)}, or matrices of shape ({K}, {D}, {D})"
            )
        weights = torch.ones(K, device="cpu") if weights is None else torch.as_tensor(weights, device="cpu")
        if weights.shape != (K,):
            raise ShapeError(f"weights have shape {tuple(weights.shape)}, expected ({K},)")
        if not bool((weights > 0).all()) or not bool(weights.isfinite().all()):
            raise ConfigError("weights must be positive and finite")
        self._fill(means, variances, basis, (weights.double() / weights.double().sum()).log().to(means.device))

    def _fill(self, means: Tensor, variances: Tensor, basis: Tensor | None, log_weights: Tensor) -> None:
        self.register_buffer("means", means)
        self.register_buffer("log_weights", log_weights.to(means.dtype))
        self.register_buffer("variances", variances.to(means.dtype).contiguous())
        self.register_buffer("basis", None if basis is None else basis.to(means.dtype))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.means.shape[1:])

    @classmethod
    @checked
    def from_data(cls, x: Tensor, bandwidth: float) -> GaussianMixture:
        """A Gaussian kernel density estimate: one isotropic component of std ``bandwidth`` on each point of x (N, *event)."""
        check_positive(bandwidth, "bandwidth")
        return cls(check_data(x), torch.full((len(x),), bandwidth, dtype=x.dtype, device=x.device))

    def at(self, alpha: float, sigma: float) -> GaussianMixture:
        """The mixture of alpha x_0 + sigma eps: means alpha m, covariances alpha^2 C + sigma^2 I."""
        alpha, sigma = float(alpha), float(sigma)
        mixture = GaussianMixture.__new__(GaussianMixture)
        nn.Module.__init__(mixture)
        mixture._fill(alpha * self.means, alpha**2 * self.variances + sigma**2, self.basis, self.log_weights)
        return mixture

    @checked
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, *event) -> (B,), in the dtype of x."""
        check_data(x, self.event_shape)
        return self.log_prob_at(x, 1.0, 0.0).to(x.dtype)

    def log_prob_at(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """log density of alpha x_0 + sigma eps at x, float64. alpha, sigma: floats, or tensors that broadcast against x."""
        rotation, means = self._frame()
        chunks = self._chunks(x, *_flat(alpha, sigma))
        parts = ((self._log_joint(_coordinates(y, rotation), means, a, s)[0].logsumexp(-1),) for y, a, s in chunks)
        return _join(parts, len(x))[0]

    def posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and E[eps | x] for x = alpha x_0 + sigma eps, of the shape of x, float64.

        Given component k, they are m + alpha C V^-1 (x - alpha m) and sigma V^-1 (x - alpha m), V = alpha^2 C + sigma^2 I.
        """
        frame = self._frame()
        parts = (self._posterior(y, *frame, a, s) for y, a, s in self._chunks(x, *_flat(alpha, sigma)))
        x0, eps = _join(parts, len(x))
        return x0.view(x.shape), eps.view(x.shape)

    def _posterior(
        self, x: Tensor, rotation: Tensor | None, means: Tensor, alpha: Any, sigma: Any
    ) -> tuple[Tensor, Tensor]:
        """What ``posterior`` answers, for a chunk of flat x (B, D)."""
        y = _coordinates(x, rotation)
        log_joint, variance = self._log_joint(y, means, alpha, sigma)
        r = log_joint.softmax(-1)  # responsibilities (B, K)
        c = self.variances.double()
        if rotation is None:
            # sums over k of r (m sigma^2/v + (alpha c/v) x) and of r (sigma/v) (x - alpha m)
            precision = 1 / variance
            a = alpha if isinstance(alpha, float) else alpha[..., 0]
            s = sigma if isinstance(sigma, float) else sigma[..., 0]
            mp = _mix(r, means * precision)
            x0 = s**2 * mp + a * _mix(r, c * precision) * y
            eps = s * (_mix(r, precision) * y - a * mp)
        else:
            d = (y - alpha * means) / variance
            # the sums over k of U_k y_k, with r (B, K) and d (B, K, D)
            x0 = _mix(r, self.means.double().flatten(1)) + (r[..., None] * alpha * c * d).flatten(1) @ rotation.mT
            eps = (r[..., None] * sigma * d).flatten(1) @ rotation.mT
        return x0, eps

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (*event) and covariance (D, D), float64: m = sum w m_k, C = sum w (C_k + (m_k - m)(m_k - m)^T)."""
        w, means = self.log_weights.double().exp(), self.means.double().flatten(1)
        w = w / w.sum()
        m = w @ means
        r, c = means - m, self.variances.double()
        within = (w @ c).diag() if self.basis is None else ((B := self.basis.double()) * (w[:, None] * c)[:, None] @ B.mT).sum(0)
        return m.view(self.event_shape), r.mT @ (w[:, None] * r) + within

    @checked
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples (n, *event) in the dtype of the means; sample i is a function of (seed, i)."""
        check_memory(8.0 * check_integer(n, "n", 0) * math.prod(self.event_shape), f"n = {n} samples of shape {self.event_shape}")
        ids = check_ids(None, n)
        D = self.means[0].numel()
        pick = Noise(check_seed(seed), ids, (1,), torch.float64).uniform(TARGET)[:, 0]
        cumulative = self.log_weights.double().exp().cumsum(0).cpu()
        k = torch.searchsorted(cumulative, pick * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)
        k = k.to(self.means.device)
        z = Noise(seed, ids, (D,), torch.float64, self.means.device).normal(TARGET, STEP)
        z = z * self.variances.double().sqrt()[k]
        if self.basis is not None:
            rows = [self.basis[j].double() @ row for j, row in zip(k.tolist(), z, strict=True)]
            z = torch.stack(rows) if rows else z
        return (self.means.double()[k] + z.view(-1, *self.event_shape)).to(self.means.dtype)

    def _frame(self) -> tuple[Tensor | None, Tensor]:
        """The bases of all components side by side (D, K D), or None, and the means (K, D) in them; float64."""
        means = self.means.double().flatten(1)
        if self.basis is None:
            return None, means
        basis = self.basis.double()
        return basis.transpose(0, 1).flatten(1), (means[:, None] @ basis)[:, 0]

    def _chunks(self, x: Tensor, alpha: Any, sigma: Any) -> Iterator[tuple[Tensor, Any, Any]]:
        """Flat float64 rows of x with their alpha and sigma, so few at a time that what is formed of them stays small."""
        K, D = self.means.shape[0], self.means[0].numel()
        each = K if self.basis is None and isinstance(alpha, float) else K * D
        size = max(1, CHUNK // each)
        for rows in (slice(start, start + size) for start in range(0, max(len(x), 1), size)):
            a, s = (alpha, sigma) if isinstance(alpha, float) else (alpha[rows], sigma[rows])
            yield x[rows].double().flatten(1), a, s

    def _log_joint(self, y: Tensor, means: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """log w_k N(x; alpha m_k, V_k), (B, K), and the variances alpha^2 c + sigma^2, (K, D) or (B, K, D)."""
        v = alpha**2 * self.variances.double() + sigma**2
        if self.basis is None:
            # the square expanded, so that B x K x D numbers are never formed for one common time
            precision, a = 1 / v, alpha if isinstance(alpha, float) else alpha[..., 0]
            mp = means * precision
            square = _dot(precision, y.square()) - 2 * a * _dot(mp, y) + a**2 * (means * mp).sum(-1)
        else:
            square = ((y - alpha * means).square() / v).sum(-1)
        log_norm = v.log().sum(-1) + means.shape[1] * math.log(2 * math.pi)
        return self.log_weights.double() - 0.5 * (square + log_norm), v


def _flat(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """Floats as they are; per-sample tensors (B, 1, ...) as (B, 1, 1), ready for (B, K, D)."""
    if isinstance(alpha, Tensor) and alpha.ndim:
        return alpha.double().reshape(-1, 1, 1), sigma.double().reshape(-1, 1, 1)
    return float(alpha), float(sigma)


def _join(parts: Iterator[tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
    """Rows of chunks as n rows. Without gradients they are copied at once to where they belong: small tensors that live on
    between large ones that come and go keep malloc from reusing the memory of these (1 GB of it for 1,000 components)."""
    first = next(parts)
    if len(first[0]) == n:
        return first
    if first[0].requires_grad:
        return tuple(torch.cat(column) for column in zip(first, *parts, strict=True))
    whole = tuple(part.new_empty((n, *part.shape[1:])) for part in first)
    row = 0
    for chunk in chain([first], parts):
        for out, part in zip(whole, chunk, strict=True):
            out[row : row + len(part)] = part
        row += len(chunk[0])
    return whole


def _coordinates(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Flat x as it is, (B, D), or in every component's own basis, (B, K, D)."""
    return x if rotation is None else (x @ rotation).view(len(x), -1, x.shape[1])


def _dot(a: Tensor, y: Tensor) -> Tensor:
    """Inner products of a (K, D) or (B, K, D) with y (B, D): (B, K)."""
    return y @ a.mT if a.ndim == 2 else (a @ y[..., None])[..., 0]


def _mix(r: Tensor, a: Tensor) -> Tensor:
    """The sum over k of r_k a_k for r (B, K) and a (K, D) or (B, K, D): (B, D)."""
    return r @ a if a.ndim == 2 else (r[:, None] @ a)[:, 0]


def responsibilities(x: Tensor, target: GaussianMixture, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """p(component k | x) for x = alpha x_0 + sigma eps: (N, K), float64."""
    check_data(x, target.event_shape)
    rotation, means = target._frame()
    parts = [
        target._log_joint(_coordinates(y, rotation), means, a, s)[0].softmax(1)
        for y, a, s in target._chunks(x, float(alpha), float(sigma))
    ]
    return torch.cat(parts)

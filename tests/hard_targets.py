"""Targets that no default was tuned for, with exact scores: anisotropic, near a manifold, heavy-tailed, random fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import scoresde as sd
from scoresde.models.exact import Target

DOUBLE = torch.float64


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=DOUBLE, generator=generator))[0]


def anisotropic(dim: int = 10, low: float = 0.05, high: float = 5.0, modes: int = 4, seed: int = 1, apart: float = 0.8) -> sd.GaussianMixture:
    """Modes whose eigenvalues run from ``low`` to ``high``, each in axes of its own not far from the common ones."""
    g = _generator(seed)
    axes = _rotation(dim, g)
    c = torch.logspace(math.log10(low), math.log10(high), dim, dtype=DOUBLE)
    means = apart * (torch.randn(modes, dim, dtype=DOUBLE, generator=g) * c.sqrt()) @ axes.T
    covariances = []
    for _ in range(modes):
        turn = torch.randn(dim, dim, dtype=DOUBLE, generator=g) / dim**0.5
        own = axes @ torch.matrix_exp(0.5 * (turn - turn.T))
        covariances.append((own * (0.4 * c * (0.6 * torch.randn(dim, dtype=DOUBLE, generator=g)).exp())) @ own.T)
    return sd.GaussianMixture(means, torch.stack(covariances), torch.arange(1.0, modes + 1))


def near_manifold(dim: int = 12, pieces: int = 60, thickness: float = 0.03, seed: int = 2) -> sd.GaussianMixture:
    """A closed curve in a space of four dimensions, thickened in all twelve."""
    g = _generator(seed)
    frame = 1.6 * torch.randn(4, dim, dtype=DOUBLE, generator=g) / dim**0.5
    t = torch.arange(pieces, dtype=DOUBLE) * 2 * math.pi / pieces
    means = torch.stack([t.cos(), t.sin(), 0.6 * (2 * t).cos(), 0.4 * (3 * t).sin()], -1) @ frame
    along = torch.stack([-t.sin(), t.cos(), -1.2 * (2 * t).sin(), 1.2 * (3 * t).cos()], -1) @ frame * (math.pi / pieces)
    return sd.GaussianMixture(means, along[:, :, None] * along[:, None] + thickness**2 * torch.eye(dim, dtype=DOUBLE))


def scales_of_student(nodes: int, degrees: float = 3.0) -> Tensor:
    """Variances nu/chi^2 of the Gaussians whose mixture is Student's t, (nodes,), at evenly spaced probabilities; by bisection."""
    p = (torch.arange(nodes, dtype=DOUBLE) + 0.5) / nodes
    low, high = torch.full_like(p, -20.0), torch.full_like(p, 6.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(torch.tensor(degrees / 2, dtype=DOUBLE), middle.exp() / 2) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return degrees / low.exp()


def heavy_tails(dim: int = 8, scale: float = 0.6, nodes: int = 60, seed: int = 3) -> sd.GaussianMixture:
    """Student's t of 3 degrees of freedom, elliptical, as a mixture over its scales."""
    g = _generator(seed)
    axes, c = _rotation(dim, g), scale**2 * torch.logspace(-0.5, 0.5, dim, dtype=DOUBLE)
    mean = scale * torch.randn(dim, dtype=DOUBLE, generator=g)
    return sd.GaussianMixture(mean.expand(nodes, dim).clone(), scales_of_student(nodes)[:, None, None] * ((axes * c) @ axes.T))


class IndependentTails(torch.nn.Module):
    """Coordinates that are independent, each a Student's t of 3 degrees of freedom: m + scale t, as a mixture over scales."""

    def __init__(self, dim: int = 8, nodes: int = 100, seed: int = 13) -> None:
        super().__init__()
        self.mean = 0.3 * torch.randn(dim, dtype=DOUBLE, generator=_generator(seed))
        self.scale = 0.5 * torch.logspace(-0.3, 0.3, dim, dtype=DOUBLE)
        self.c = self.scale[:, None] ** 2 * scales_of_student(nodes)  # (D, nodes)
        self.event_shape = (dim,)

    def _parts(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Tensor]:
        v = alpha**2 * self.c + sigma**2
        r = x.double() - alpha * self.mean
        return r, v, -0.5 * (r[..., None] ** 2 / v + v.log() + math.log(2 * math.pi)) - math.log(self.c.shape[1])

    def posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        r, v, log = self._parts(x, alpha, sigma)
        p = log.softmax(-1)
        return self.mean + alpha * (p * self.c / v).sum(-1) * r, sigma * (p / v).sum(-1) * r

    def log_prob_at(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return self._parts(x, alpha, sigma)[2].logsumexp(-1).sum(-1)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.c.mean(1).diag()

    def sample(self, n: int, seed: int = 0) -> Tensor:
        g = _generator(seed)
        k = torch.randint(self.c.shape[1], (n, len(self.mean)), generator=g)
        c = self.c.expand(n, -1, -1).gather(2, k[..., None])[..., 0]
        return self.mean + c.sqrt() * torch.randn(n, len(self.mean), dtype=DOUBLE, generator=g)


def _waves(n: int) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine basis of (n, n) images, rows are waves (n^2, n^2), and the frequency of each."""
    k, i = torch.arange(n, dtype=DOUBLE)[:, None], torch.arange(n, dtype=DOUBLE)[None]
    rows = (2 / n) ** 0.5 * (math.pi * k * (2 * i + 1) / (2 * n)).cos()
    rows[0] /= 2**0.5
    return torch.kron(rows, rows), (k.square() + k.square().T).sqrt().flatten()


def random_fields(n: int = 16, power: float = 3.0, kinds: int = 3, seed: int = 4) -> sd.GaussianMixture:
    """Images (1, n, n): random fields with spectra (1 + |k|)^-power and a little steeper and flatter, of several amplitudes, about
    mean fields of their own."""
    g = _generator(seed)
    basis, k = _waves(n)
    means, covariances = [], []
    for i in range(kinds):
        c = (1 + k) ** -(power + 0.6 * (i - (kinds - 1) / 2))
        c = c / c.mean() * (0.5 + 0.5 * i)
        means.append((0.5 * torch.randn(n * n, dtype=DOUBLE, generator=g) * c.sqrt()) @ basis)
        covariances.append((basis.T * c) @ basis)
    return sd.GaussianMixture(torch.stack(means).view(kinds, 1, n, n), torch.stack(covariances))


def remembered_fields(n: int = 16, fields: int = 100, bandwidth: float = 0.1, seed: int = 14) -> sd.GaussianMixture:
    """A kernel density on a few random fields (1, n, n), as of a network that remembers its data: as sharp as targets get."""
    basis, k = _waves(n)
    c = (1 + k) ** -3.0
    x = torch.randn(fields, n * n, dtype=DOUBLE, generator=_generator(seed)) * (c / c.mean()).sqrt() @ basis
    return sd.GaussianMixture.from_data(x.view(fields, 1, n, n), bandwidth)


HARD: dict[str, Callable[[], Target]] = {
    "anisotropic 10-D": anisotropic,
    "anisotropic 20-D": lambda: anisotropic(20, 0.003, 3.0, 5, 11, 1.2),
    "near a manifold 12-D": near_manifold,
    "heavy tails 8-D": heavy_tails,
    "independent tails 8-D": IndependentTails,
    "random fields 16x16": random_fields,
    "flatter fields 16x16": lambda: random_fields(power=2.0, seed=9),
    "remembered fields 16x16": remembered_fields,
}

RIVALS = [sd.DPMSolverPP(2), sd.DPMSolverPP(3), sd.UniPC(2), sd.UniPC(3), sd.DEIS(2), sd.DEIS(3)]
RIVALS += [sd.AdamsBashforth(k, of) for of in ("x0", "v") for k in (2, 3)]
GRIDS = {"log_snr": sd.grid.log_snr, "uniform": sd.grid.uniform, "quadratic": sd.grid.quadratic, "karras": sd.grid.karras}


class Race:
    """A target under an SDE: paths from noise, their exact ends, and how far from these a solver ends (median distance)."""

    def __init__(self, target: Target, sde: sd.SDE, paths: int, seed: int = 5) -> None:
        self.model = sd.ExactModel(target, sde)
        noise = torch.randn(paths, *target.event_shape, dtype=DOUBLE, generator=_generator(seed))
        self.x = noise * sde.levels([sde.t_max])[0].sigma
        accurate = sd.TorchDiffEq("dopri8", rtol=1e-10, atol=1e-10)
        self.exact = sd.sample(self.model, x_init=self.x, solver=accurate, times=[sde.t_max, sd.grid.default_end(sde)], batch_size=paths)

    def error(self, **how: Any) -> float:
        y = sd.sample(self.model, x_init=self.x, batch_size=len(self.x), **how)
        return float((y - self.exact).flatten(1).norm(dim=1).median())

    def best_rival(self, calls: int) -> tuple[float, str]:
        """The least error of all rivals on all grids, and whose it is."""
        found = []
        for solver in RIVALS:
            for label, grid in GRIDS.items():
                try:
                    error = self.error(solver=solver, times=grid(self.model.sde, calls))
                except sd.ScoreSDEError:  # not finite: no rival
                    continue
                if math.isfinite(error):
                    found.append((error, f"{solver!r} {label}"))
        return min(found)

    def references(self, samples: int = 600) -> dict[str, sd.GaussianReference | None]:
        """What "auto" may know: exact moments, a full and a diagonal (of images: cosine) covariance of samples, nothing, its own samples."""
        target: Any = self.model.target
        x = target.sample(samples, seed=9)
        diagonal = "dct" if len(self.model.event_shape) > 1 else "diagonal"
        return {
            "exact": sd.ExactModel(target, self.model.sde).reference,
            "full": sd.GaussianReference.fit(x, "full"),
            "diagonal": sd.GaussianReference.fit(x, diagonal),
            "none": None,
            "made": sd.fit_reference(self.model),
        }

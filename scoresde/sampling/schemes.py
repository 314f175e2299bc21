r"""Explicit schemes in reference coordinates, fitted to pilot paths: z_(i+1) = z_0 + sum over j <= i of A_ij f_j.

Linear in the weights A: along the scheme's own states each row is a least-squares problem (``fit_weights``). Nodes and weights
together are polished by Adam through the solver (``polish``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.exponential import lagrange_at
from scoresde.core.quadrature import legendre
from scoresde.core.streams import TUNE
from scoresde.sdes.grid import clock
from scoresde.solvers.reference import CENTER, Coordinates, Moving, ReferenceScheme
from scoresde.solvers.untuned import hides_data, width_of

if TYPE_CHECKING:
    from scoresde.models.reference import GaussianReference
    from scoresde.sampling.pilots import Pilots
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Solver


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Nodes and weights in reference coordinates: w (n + 1,), A (n, n) lower triangular, for f = F dlam/dw."""

    center: float
    width: float
    w: Tensor
    A: Tensor
    free: bool

    def lam(self) -> Tensor:
        """log(alpha/sigma) at the nodes."""
        return -(math.log(self.center) + self.width * (self.w.log() - torch.log1p(-self.w)))

    def slopes(self) -> Tensor:
        """dlam/dw at the nodes."""
        return -self.width / (self.w * (1 - self.w))

    def solver(self, p: Pilots) -> tuple[Solver, Tensor]:
        """As a solver and its times."""
        lam, free = self.lam(), int(self.free)
        times = _times(p, lam)
        rows = (self.A * self.slopes()[:-1])[free:, free:]
        weights = tuple(tuple(rows[i, : i + 1].tolist()) for i in range(len(rows)))
        first = float(lam[1]) if free else None
        return ReferenceScheme(weights, p.reference, first), torch.cat([times[:1], times[1 + free :]])


def adams(w: Tensor, k: int, corrector: int) -> Tensor:
    """The matrix A of ``ReferenceSolver``'s method, (n, n), differentiable in the nodes w (n + 1,)."""
    n = len(w) - 1
    rows: list[Tensor] = []
    base = torch.zeros(n, dtype=w.dtype, device="cpu")
    for i in range(n):
        last = torch.arange(i, max(i - max(k, corrector), -1), -1, device="cpu")
        if i and corrector:
            base = base.index_add(0, last[:corrector], _integrals(w[last[:corrector]], w[i - 1], w[i]))
        elif i:
            base = rows[-1]
        rows.append(base.index_add(0, last[:k], _integrals(w[last[:k]], w[i], w[i + 1])))
    return torch.stack(rows)


def _integrals(nodes: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Integrals from a to b of the Lagrange basis of the nodes, by Gauss and Legendre."""
    points, weights, _ = legendre(8)
    return (b - a) * (lagrange_at(nodes, a + (b - a) * points) @ weights)


LR = 0.02  # of Adam, for nodes and for weights times their number


def _order(nfe: int) -> tuple[int, int]:
    return (2, 0) if nfe <= 8 else (2, 3) if nfe <= 16 else (3, 4)


def scheme_on(p: Pilots, nfe: int, center: float, width: float, free: bool) -> Scheme:
    """The untuned scheme on equal steps in w."""
    first, last = p.model.sde.levels([p.start, p.finish])
    n = nfe + free
    w = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu")
    a, b = (clock(t.s, center, width) for t in (first, last))
    w = a + (b - a) * w
    return Scheme(center, width, w, adams(w, *_order(nfe)), free)


def fit_weights(p: Pilots, scheme: Scheme, ridge: float = 1e-4, rounds: int = 3) -> tuple[Scheme, Tensor]:
    """The scheme with rows of weights fitted one after the other, and the errors at its end, (P/2,).

    Row i minimises the sum over pilot paths of u |z(lam_(i+1)) - z_0 - sum_j A_ij f_j|^2, with the f_j at the states of the scheme
    itself, in units of x at the end. u = 1/residual^2, by iteration, so that a few wild paths do not rule the others; rounds = 0 is
    plain least squares, for the rms. The ridge pulls towards the weights that are there.
    """
    rows, lam, slopes = p.fit, scheme.lam(), scheme.slopes()
    levels = p.model.sde.levels(_times(p, lam))
    part = p.rows(torch.arange(len(p.x), device="cpu")[rows])
    here = p.reference.to(p.x)
    last = levels[-1]
    scale = (last.alpha * (here.variance + last.s ** 2).sqrt()).double()
    z0 = p.at(float(lam[0]), rows)
    z, f, A = z0, [], scheme.A.clone()
    for i in range(len(A)):
        f.append(torch.zeros_like(z) if scheme.free and i == 0 else _F(part, p.reference, here, z, levels[i]).mul_(float(slopes[i])))
        J = list(range(int(scheme.free), i + 1))
        if J:
            columns = torch.stack([(f[j].double() * scale).flatten(1) for j in J], -1)  # (P, D, |J|)
            wanted = ((p.at(float(lam[i + 1]), rows) - z0).double() * scale).flatten(1)
            A[i, J] += robust_fit(columns, wanted - columns @ A[i, J].to(columns), ridge, rounds).cpu()
        z = z0 + sum(float(A[i, j]) * f[j] for j in J) if J else z0
    error = ((z - p.at(float(lam[-1]), rows)).double() * scale).flatten(1).norm(dim=1)
    return dataclasses.replace(scheme, A=A), error


def robust_fit(columns: Tensor, residual: Tensor, ridge: float, rounds: int) -> Tensor:
    """d that minimises the sum over samples of u |residual - columns d|^2 + ridge, u = 1/(size of the residual)^2."""
    d = torch.zeros(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    for _ in range(max(rounds, 1)):
        size = (residual - columns @ d).square().sum(1)
        u = 1 / (size + 1e-2 * size.median() + 1e-300) if rounds else torch.ones_like(size)
        weighted = columns * u[:, None, None]
        # the system is small, and on a GPU lstsq does not have this driver
        G = torch.einsum("pdi,pdj->ij", weighted, columns).cpu()
        G = G + (ridge * G.diag().clamp_min(1e-300)).diag()
        right = torch.einsum("pdi,pd->i", weighted, residual).cpu()[:, None]
        d = torch.linalg.lstsq(G, right, driver="gelsd").solution[:, 0].to(columns)
    return d


def _F(model: Any, reference: GaussianReference, here: GaussianReference, z: Tensor, t: Level) -> Tensor:
    """F = dz/dlam at a level."""
    at = Coordinates.at(t, reference, here)
    return at.f(here, model.denoise(at.x(here, z), t), z)


def _times(p: Pilots, lam: Tensor) -> Tensor:
    """The times with log(alpha/sigma) = lam, the first and the last exactly those of the paths."""
    times = p.model.sde.time_of_log_snr(2 * lam)
    times[0], times[-1] = p.start, p.finish
    return times


def untuned(p: Pilots, nfe: int) -> Scheme:
    """The scheme of ``ReferenceSolver``'s own grid."""
    first = p.model.sde.levels([p.start])[0]
    far = hides_data(p.reference, first)
    return scheme_on(p, nfe, CENTER * p.reference.scale, width_of(p.model, p.reference, nfe), far)


def search(p: Pilots, nfe: int) -> list[Scheme]:
    """The fitted schemes that do best on the fitting paths: a pattern search over centre and width, with and without free node.

    First the best by mean log error and the log of the rms together, then the best of each alone, those with the weights of plain
    least squares, and those of the untuned grid.
    """
    first = p.model.sde.levels([p.start])[0]
    far = hides_data(p.reference, first)
    tried: dict[tuple[float, float, bool], tuple[float, float, Scheme]] = {}

    def score(center: float, width: float, free: bool) -> float:
        key = (round(center, 6), round(width, 6), free)
        if key not in tried:
            scheme, error = fit_weights(p, scheme_on(p, nfe, center * p.reference.scale, width, free))
            log, rms = float((error + 1e-12).log().mean()), float(0.5 * (error.square().mean() + 1e-24).log())
            tried[key] = (log, rms, scheme) if math.isfinite(log + rms) else (math.inf, math.inf, scheme)
        return tried[key][0] + 0.5 * tried[key][1]

    at = min(
        ((c, width, free) for c in (0.35, 0.6) for width in (1.0, 1.6, 2.5) for free in ({far, False})),
        key=lambda key: score(*key),
    )
    step = 1.35
    while step > 1.05:
        c, width, free = at
        around = [at, (c * step, width, free), (c / step, width, free), (c, width * step, free), (c, width / step, free)]
        new = min(around, key=lambda key: score(*key))
        step = step if new != at else math.sqrt(step)
        at = new
    ranks: list[Callable[[Any], float]] = [lambda f: f[0] + 0.5 * f[1], lambda f: f[0], lambda f: f[1]]
    best = {id(found[2]): found[2] for found in (min(tried.values(), key=rank) for rank in ranks)}
    plain = [scheme_on(p, nfe, scheme.center, scheme.width, scheme.free) for scheme in best.values()]
    plain = [fit_weights(p, scheme, rounds=0)[0] for scheme in (*plain, untuned(p, nfe))]
    return [*best.values(), *plain, fit_weights(p, untuned(p, nfe))[0]]


def polish(p: Pilots, scheme: Scheme, iterations: int, memory: int, shown: Callable[[float], Any]) -> Scheme | None:
    """Nodes and weights by Adam on the mean log error and the log of the mean square, from the fitted scheme on."""
    rows = torch.arange(len(p.x), device="cpu")[p.fit]
    plan = affordable(p, scheme, memory, min(len(rows), 256 if math.prod(p.model.event_shape) <= 32 else 24))
    if plan is None:
        return None
    size, recompute = plan
    n, nfe = len(scheme.A), len(scheme.A) - scheme.free
    k, corrector = _order(nfe)
    span = float(scheme.w[-1] - scheme.w[0])
    u = ((scheme.w.diff() / span).log()).requires_grad_()
    extra = (scheme.A - adams(scheme.w, k, corrector)).div(abs(span)).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [u], "lr": LR}, {"params": [extra], "lr": LR / n}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [LR, LR / n], total_steps=iterations + 1, pct_start=0.1)
    here = p.reference.to(p.x)
    last = p.model.sde.levels([p.finish])[0]
    scale = (last.alpha * (here.variance + last.s ** 2).sqrt()).double()

    def build() -> Scheme:
        inner = u.softmax(0).cumsum(0)[:-1]
        w = scheme.w[0] + span * torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])
        w = torch.cat([scheme.w[:1], w[1:-1], scheme.w[-1:]])  # the ends exactly
        return dataclasses.replace(scheme, w=w, A=adams(w, k, corrector) + abs(span) * extra.tril())

    shuffled = np.random.Generator(np.random.Philox(key=[0, TUNE]))
    for _ in range(iterations):
        chosen = rows if size >= len(rows) else rows[torch.from_numpy(shuffled.permutation(len(rows))[:size])]
        with torch.enable_grad():
            current = build()
            z = unroll(p.rows(chosen), p.reference, current, p.at(float(scheme.lam()[0]), slice(None))[chosen], recompute)
            wanted = p.z[-1][chosen]
            error = ((z - wanted).double() * scale).flatten(1).norm(dim=1)
            loss = (error + 1e-12).log().mean() + 0.25 * (error.square().mean() + 1e-24).log()
            optimizer.zero_grad()
            loss.backward()
        if not bool(loss.isfinite()):
            return None
        torch.nn.utils.clip_grad_norm_([u, extra], 1.0)
        optimizer.step()
        schedule.step()
        shown(1 / iterations)
    with torch.no_grad():
        found = build()
    return dataclasses.replace(found, w=found.w.detach(), A=found.A.detach())


def unroll(model: Any, reference: GaussianReference, scheme: Scheme, z0: Tensor, recompute: bool) -> Tensor:
    """z at the end of the scheme, differentiable in its nodes and weights."""
    from torch.utils.checkpoint import checkpoint

    here, lam, slopes = reference.to(z0), scheme.lam(), scheme.slopes()
    z, f = z0, []
    for i in range(len(scheme.A)):
        if scheme.free and i == 0:
            f.append(torch.zeros_like(z0))
        else:
            call = _F_of_lam if not recompute else _recomputed(checkpoint)
            f.append(call(model, reference, here, z, lam[i]) * slopes[i].to(z0))
        row = scheme.A[i, : i + 1].to(z0)
        z = z0 + torch.tensordot(torch.stack(f, -1), row, 1)
    return z


def _recomputed(checkpoint: Any) -> Callable[..., Tensor]:
    return lambda *args: checkpoint(_F_of_lam, *args, use_reentrant=False, preserve_rng_state=False)


def _F_of_lam(model: Any, reference: GaussianReference, here: GaussianReference, z: Tensor, lam: Tensor) -> Tensor:
    """F = dz/dlam, differentiable in z and in lam (a number)."""
    sde = model.sde
    t0 = sde.time_of_log_snr(2 * lam.detach()).clamp(sde.t_min, sde.t_max)
    level = sde.levels([float(t0)])[0]
    rate = level.alpha_dot / level.alpha - level.sigma_dot / level.sigma  # dlam/dt: t(lam) to first order is what a gradient needs
    t = t0 + (lam - lam.detach()) / rate
    at = Coordinates.at(Moving(sde.alpha(t), (-lam).exp()), reference, here)
    return at.f(here, model.denoise(at.x(here, z), t.to(z.device).expand(len(z))), z)


def affordable(p: Pilots, scheme: Scheme, memory: int, size: int) -> tuple[int, bool] | None:
    """(batch size, whether to recompute calls) within the memory, or None. What a call keeps is measured on two paths."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    rows = torch.arange(2, device="cpu")
    here = p.reference.to(p.x)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z = p.z[0][rows].clone().requires_grad_()
        _F_of_lam(p.rows(rows), p.reference, here, z, scheme.lam()[1].clone().requires_grad_())
    each = kept / 2
    state = 8 * p.x[0].numel() * p.x.element_size() * len(scheme.A)  # z and f of all steps
    for batch in (size, size // 2, size // 4, 8):
        if batch and batch * (each * len(scheme.A) + state) <= memory:
            return batch, False
        if batch and batch * (each + state) <= memory:
            return batch, True
    return None

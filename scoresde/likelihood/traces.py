r"""Unbiased estimates of the trace of a Jacobian from vector-Jacobian products, with random vectors that are fixed along a path.

For M = dv/dx of each sample and a known number a, tr M = a D + tr(M - a I): only the second part is estimated. An estimate has columns,
independent given all that is shared between them, whose mean is the estimate and whose spread tells its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import check_integer
from scoresde.core.streams import PROBE
from scoresde.errors import ConfigError

if TYPE_CHECKING:
    from scoresde.core.noise import Noise
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.levels import Level

MOST_PROBES = 10_000  # at each network call, as many products with the Jacobian

KINDS = ("hutchinson", "gaussian", "reference", "hutch++", "exact")

NUMBERS = 1 << 14  # in the products that are computed at once: convolutions are no faster for more, and memory grows, 4 KiB a number

CONTROL = {"hutchinson": 0.5, "gaussian": 1.0}  # share of the reference's trace that is replaced by its exact value


@dataclass(frozen=True, eq=False)
class Traces:
    """How to estimate traces for a batch.

    Attributes:
        kind: "hutchinson": e^T M e with e of -1 and +1 (Hutchinson 1990); "reference": the same with e in the basis of the Gaussian
            reference; "gaussian": e standard normal; "hutch++": the trace on the range of M S exactly, that on its complement by
            Hutchinson (Meyer et al. 2021, 2010.09649); "exact": the sum of the D diagonal entries.
        probes: the e, (k, B, *event).
        sketch: the S of "hutch++", (m, B, *event).
        alone: why the products of this network cannot be batched, once that is known.
    """

    kind: str
    probes: Tensor
    sketch: Tensor
    alone: list[str] = field(default_factory=list)
    EXACT: ClassVar[str] = "exact"

    @classmethod
    def draw(cls, kind: str, probes: int, noise: Noise, reference: GaussianReference | None) -> Traces:
        """The random vectors of some samples: functions of seed, sample id and number."""
        none = torch.empty(0, device="cpu")
        if kind == "exact":
            return cls(kind, none, none)
        m = probes // 3 if kind == "hutch++" else 0  # normal ones for the sketch: signs may be linearly dependent
        vectors = [(noise.normal if kind == "gaussian" or i < m else noise.rademacher)(PROBE, i) for i in range(probes)]
        if kind == "reference" and reference is not None:
            here = reference.to(vectors[0])
            vectors = [here.synthesize(e.flatten(1) if here.basis is not None else e) for e in vectors]
        return cls(kind, torch.stack(vectors[2 * m :]), torch.stack(vectors[:m]) if m else none)

    @property
    def columns(self) -> int:
        """Columns of an estimate."""
        return 1 if self.kind == "exact" else len(self.probes)

    def __call__(self, v: Tensor, x: Tensor, a: Any = 0.0, graph: bool = False) -> tuple[Tensor, int]:
        """Estimates (B, columns) of the trace of dv/dx for each sample, float64, and how many products it took.

        v must have been computed from x, sample by sample. a is a float, or (B,). ``graph``: to be differentiated themselves.
        """
        if self.kind == "exact":
            return exact_divergence(v, x, graph=graph, alone=self.alone)[:, None], v[0].numel()
        a = a.double()[:, None] if isinstance(a, Tensor) else a
        D = v[0].numel()
        e = self.probes.flatten(2).double()
        if not len(self.sketch):
            products = _products(v, x, self.probes, graph=graph).double()
            square = e.square().sum(2).mT
            return (products * e).sum(2).mT + a * (D - square), len(e)
        S = self.sketch.flatten(2).double()
        A = a[None] if isinstance(a, Tensor) else a
        range_ = (_products(v, x, self.sketch, True, graph).double() - A * S).permute(1, 2, 0)  # (B, D, m)
        Q = torch.linalg.qr(range_)[0].permute(2, 0, 1)  # (m, B, D)
        inside = (_products(v, x, Q.to(v.dtype).view(-1, *v.shape), True, graph).double() * Q).sum((0, 2))
        g = e - torch.einsum("mbd,mbk->kbd", Q, torch.einsum("mbd,kbd->mbk", Q, e))
        rest = (_products(v, x, g.to(v.dtype).view(-1, *v.shape), graph=graph).double() * g).sum(2).mT
        return inside[:, None] + rest + a * (D - len(Q) - g.square().sum(2).mT), 2 * len(Q) + len(g)

    def control(self, reference: GaussianReference | None, first: Level, last: Level) -> Tensor | float:
        r"""What to add to estimates of log p for what the reference knows of the error of their probes: (B, columns).

        Along the path of a model whose Jacobian dD/dx is that of the reference, alpha dD/dx = U diag(c/v) U^T, a probe e makes the
        integral of alpha e^T (dD/dx) e over log(alpha/sigma) too large by sum_i ((U^T e)_i^2 - 1) (g_i - mean g), with
        g = (log(1 + c/s^2) at t_min - the same at t_max)/2, s = sigma/alpha, where the mean of c/v is taken as known (``share``).
        A part of it is a control variate: its mean is 0.
        """
        excess = self.excess(reference)
        if reference is None or excess is None:
            return 0.0
        c = reference.variance.to(excess)
        g: Any = sum(sign * 0.5 * (c * (t.alpha / t.sigma) ** 2).log1p() for sign, t in ((1, first), (-1, last)))
        return CONTROL[self.kind] * ((g - g.mean()) * excess).flatten(2).sum(2).mT

    def excess(self, reference: GaussianReference | None) -> Tensor | None:
        """(U^T e)^2 - 1 of each probe, (columns, B, D) or (columns, B, *event); None without a reference, or where it is no matter."""
        if reference is None or self.kind not in CONTROL:
            return None
        here = reference.to(self.probes.double())
        return torch.stack([here.analyse(e.double()).square() - 1 for e in self.probes])


def share(reference: GaussianReference | None, s: Any) -> Any:
    """The mean of c/(c + s^2): what alpha dD/dx is on the diagonal, at s = sigma/alpha, a float or (B,). 0 without a reference."""
    if reference is None:
        return 0.0
    c = reference.variance.double().flatten()
    if not isinstance(s, Tensor):
        return float((c / (c + s * s)).mean())
    c = c.to(s.device)
    return (c / (c + s[:, None].square())).mean(1)


def check_kind(kind: Any, probes: Any, reference: GaussianReference | None) -> None:
    """Checks the name of an estimator and its number of probes. Raises ConfigError."""
    if kind not in KINDS:
        raise ConfigError(f"divergence = {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    check_integer(probes, "probes", 1, MOST_PROBES)
    if kind == "hutch++" and probes < 3:
        raise ConfigError(f"probes = {probes} for divergence = 'hutch++', expected at least 3: a third of them find the range")
    if kind == "reference" and reference is None:
        raise ConfigError(
            "divergence = 'reference', but the model has no Gaussian reference: set model.reference = "
            "scoresde.GaussianReference.fit(data), or use 'hutchinson'"
        )


def _products(v: Tensor, x: Tensor, vectors: Tensor, keep: bool = False, graph: bool = False) -> Tensor:
    """e^T dv/dx for each e of vectors (k, B, *event): (k, B, D)."""
    last = len(vectors) - 1
    rows = [
        torch.autograd.grad(v, x, e, retain_graph=keep or graph or i < last, create_graph=graph)[0] for i, e in enumerate(vectors)
    ]
    return torch.stack(rows).flatten(2)


def exact_divergence(v: Tensor, x: Tensor, numbers: int = NUMBERS, graph: bool = False, alone: list[str] | None = None) -> Tensor:
    """The trace of dv/dx for each sample, (B,), by D vector-Jacobian products, batched while they hold about ``numbers``.

    v must have been computed from x, sample by sample. ``graph``: to be differentiated itself. Where a network has no batched products
    (custom functions, group norms of channels-last tensors or of which the second derivative is asked), one after the other, which is
    noted in ``alone``.
    """
    B, D = v.shape[0], v[0].numel()
    alone = [] if alone is None else alone
    trace = torch.zeros(B, dtype=torch.float64, device=v.device)
    start = 0
    while start < D:
        chunk = 1 if alone else max(1, min(D - start, numbers // v.numel()))
        index = torch.arange(start, start + chunk, device=v.device)
        basis = torch.zeros((chunk, B, D), dtype=v.dtype, device=v.device)
        basis[index - start, :, index] = 1
        vectors = basis.view(-1, *v.shape)
        if chunk == 1:
            rows = torch.autograd.grad(v, x, vectors[0], retain_graph=True, create_graph=graph)[0][None]
        else:
            try:
                (rows,) = torch.autograd.grad(v, x, vectors, retain_graph=True, create_graph=graph, is_grads_batched=True)
            except RuntimeError as error:  # of any kind: what is wrong with the network itself comes up again, without a batch
                alone.append(str(error))
                continue
        trace = trace + rows.reshape(chunk, B, D)[index - start, :, index].sum(0, dtype=torch.float64)
        start += chunk
    return trace

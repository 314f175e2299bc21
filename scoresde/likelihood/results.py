"""What likelihoods answer: values, their parts and their errors."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.core import pieces
from scoresde.likelihood import budget
from scoresde.likelihood.budget import corrected, known, mean, mean_error, root_sum
from scoresde.likelihood.report import TIME_STEPS, Report, Term


@dataclass(frozen=True)
class LogProb:
    """log p of samples, in nats, with its parts; tensors are float64 of shape (B,).

    Attributes:
        log_prob: prior + delta.
        prior: log density of the latent under the prior.
        delta: the integral of the divergence of the velocity from t_min to t_max.
        latent: the end of each path at t_max, (B, *event_shape), in the dtype of x.
        std_error: standard error of delta over the trace probes; 0 for the exact trace, NaN for a single probe (unknown).
        nfe: network calls a sample, counted.
        vjp: vector-Jacobian products a sample, counted.
        mismatch: how much log p would change if the prior had the mean and covariance that the model's reference has at t_max; or,
            without one or for the prior "reference", the mean and variance of these latents (NaN for a prior of your own).
        discretization: the error of the time steps in log p of the first ``check`` samples: log_prob less that of a better solve
            (``settings["judges"]`` say which); NaN for the rest.
        cut: estimate of log p of the data without the blur of sigma(t_min), less log p, to first order in sigma^2; of the same.
        check_nfe: network calls for these two, a sample of those that were checked.
        settings: what all this was computed with.
        sums: (B, 2), where the mismatch is that of the latents: what is needed of them, see ``budget.mismatch_of_all``.
    """

    log_prob: Tensor
    prior: Tensor
    delta: Tensor
    latent: Tensor
    std_error: Tensor
    nfe: float
    vjp: float
    mismatch: Tensor
    discretization: Tensor
    cut: Tensor
    check_nfe: float
    settings: dict[str, Any]
    sums: Tensor = field(default_factory=lambda: torch.empty((0, 2), dtype=torch.float64, device="cpu"), repr=False)

    def report(self) -> Report:
        """The mean over samples, in nats, with its error budget."""
        return Report(mean(self.log_prob), mean_error(self.log_prob), "nats", self.terms(), self.settings, tuple(self.log_prob.tolist()))

    def terms(self, scale: float = 1.0) -> tuple[Term, ...]:
        """The error budget of the mean of scale times log p."""
        s = abs(scale)
        checked = self.discretization[~self.discretization.isnan()]
        some = f"estimated on {len(checked)} samples" if len(checked) else "not estimated, check = 0"
        by = f"measured with {' and, where that finds much, '.join(self.settings.get('judges', ['another solver']))}"
        return (
            Term("data", s * mean_error(self.log_prob), "standard error over the samples (of dequantization and probes too)"),
            Term("probes", s * root_sum(self.std_error), f"standard error of the trace: {self.settings['divergence']}"),
            Term(TIME_STEPS, s * abs(mean(checked)), f"error of the solver, {by + ', ' if len(checked) else ''}{some}"),
            Term("  one sample", s * mean(checked.abs()), "the same, mean absolute error of a single sample"),
            Term("prior", scale * known(self.mismatch), "change of the mean if the prior had the moments of the data at t_max"),
            Term("cut", scale * known(self.cut), f"change of the mean without the blur of sigma(t_min), {some}"),
        )

    def to_record(self, latents: bool = False) -> dict[str, Any]:
        """Plain JSON of everything but the settings, and with or without the latents."""
        record: dict[str, Any] = {name: pieces.pack(getattr(self, name).tolist()) for name in COLUMNS}
        if latents:
            record["latent"] = base64.b64encode(self.latent.cpu().flatten().view(torch.uint8).numpy().tobytes()).decode()
        return record | {name: getattr(self, name) for name in COUNTS}

    @staticmethod
    def values(record: dict[str, Any], latents: bool = False) -> list[float]:
        """log p of the samples of a record. Raises KeyError, TypeError, ValueError: not what ``to_record`` made."""
        columns = {name: pieces.unpack(record[name]) for name in COLUMNS}
        sums = columns.pop("sums")
        n = len(columns["log_prob"])
        if any(len(column) != n for column in columns.values()) or (sums and [len(row) for row in sums] != [2] * n):
            raise ValueError(f"columns of other lengths than the {n} samples")
        if not all(type(record[name]) in (int, float) and 0 <= record[name] < math.inf for name in COUNTS):
            raise ValueError("counts that are no numbers of calls")
        if latents and (len(base64.b64decode(record["latent"], validate=True)) % n or not record["latent"]):
            raise ValueError("latents that are not those of the samples")
        return columns["log_prob"]

    @classmethod
    def join(cls, records: Sequence[dict[str, Any]], settings: dict[str, Any], like: Tensor) -> LogProb:
        """Of the records of all pieces, in order. ``like``: a tensor of the samples' event shape, dtype and device."""
        rows = {name: [v for r in records for v in pieces.unpack(r[name])] for name in COLUMNS}
        columns = {name: like.new_tensor(row, dtype=torch.float64) for name, row in rows.items()}
        columns["sums"] = columns["sums"].view(-1, 2)
        if len(columns["sums"]):
            columns["mismatch"] = budget.mismatch_of_all(columns["sums"], like[0].numel())
        samples = [len(r["log_prob"]) for r in records]
        checked = [sum(not math.isnan(v) for v in pieces.unpack(r["cut"])) for r in records]
        weights = {"nfe": samples, "vjp": samples, "check_nfe": checked}
        counts = {name: _mean_of([r[name] for r in records], weights[name]) for name in COUNTS}
        numbers = b"".join(base64.b64decode(r.get("latent", "")) for r in records)
        flat = torch.frombuffer(bytearray(numbers), dtype=like.dtype) if numbers else torch.empty(0, dtype=like.dtype, device="cpu")
        latent = flat.to(like.device).view(-1, *like.shape[1:])
        settings = settings | {"nfe": counts["nfe"], "vjp": counts["vjp"]}
        return cls(latent=latent, settings=settings, **columns, **counts)  # type: ignore[arg-type]


def _mean_of(counts: Sequence[float], samples: Sequence[int]) -> float:
    """Counts a sample of several pieces as one; whole numbers stay so."""
    found = sum(count * n for count, n in zip(counts, samples, strict=True)) / max(sum(samples), 1)
    return round(found) if abs(found - round(found)) < 1e-9 else found


COLUMNS = ("log_prob", "prior", "delta", "std_error", "mismatch", "discretization", "cut", "sums")

COUNTS = ("nfe", "vjp", "check_nfe")


@dataclass(frozen=True)
class Elbo:
    """A variational bound: in bits per dimension of integer levels an upper one, in nats of floats a lower one on log p.

    Attributes:
        mean: over samples, in ``unit``.
        std_error: of the mean over samples, of the draws of time and noise too.
        per_sample: (B,) float64.
        prior, diffusion, reconstruction: means of the three parts of the bound on -log p, in nats a sample.
        draw_std_error: standard error of the mean over the draws of time and noise alone.
        unit: "bits/dim" or "nats".
        nfe: network calls a sample, counted.
        settings: what it was computed with.
    """

    mean: float
    std_error: float
    per_sample: Tensor
    prior: float
    diffusion: float
    reconstruction: float
    draw_std_error: float
    unit: str
    nfe: float
    settings: dict[str, Any]

    def report(self) -> Report:
        """The bound with its parts and standard errors: a table to print, ``to_json`` to keep."""
        terms = (
            Term("data", self.std_error, "standard error over the samples (of time and noise too)"),
            Term("draws", self.draw_std_error, f"standard error over {self.settings['draws']} times and noises a sample"),
            Term("prior part", self.prior, "KL at t_max, nats a sample"),
            Term("diffusion part", self.diffusion, "nats a sample"),
            Term("reconstruction part", self.reconstruction, f"at t_min ({self.settings['reconstruction']}), nats a sample"),
        )
        return Report(self.mean, self.std_error, self.unit, terms, self.settings, tuple(self.per_sample.tolist()))

    def __str__(self) -> str:
        return f"bound {self.mean:.4f} +- {self.std_error:.4f} {self.unit} ({len(self.per_sample)} samples)"


NO_CUT = Term("cut", 0.0, "none: this is a bound on the discrete data")


def bits_of(ratio: Tensor, scale: float, importance_weighted: bool) -> Tensor:
    """Bits per dimension (B,) of log p/q (draws, B): of the mean of the logs, or importance weighted of the log of the mean."""
    return scale * (ratio.logsumexp(0) - math.log(len(ratio)) if importance_weighted else ratio.mean(0))


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of integer levels.

    Attributes:
        mean: over samples and dequantization draws.
        std_error: of the mean over samples.
        per_sample: (B,) float64, the mean over dequantization draws for each (importance weighted: the log of the mean).
        nfe: network calls a sample, counted, over all its draws.
        dequantization_std: standard deviation of the mean over dequantization draws (NaN for one).
        probe_std_error: standard error of the mean over trace probes (0: exact trace, NaN: a single probe).
        settings: what the figure was computed with, for a report.
        terms: the error budget, see ``report``.
        check_nfe: network calls for those terms that need some, a sample of those that were checked.
        corrected, corrected_std_error: with ``check_steps``, the mean less the error of the time steps that was measured on ``check``
            samples, and its standard error (NaN without).
    """

    mean: float
    std_error: float
    per_sample: Tensor
    nfe: float
    dequantization_std: float
    probe_std_error: float
    settings: dict[str, Any]
    terms: tuple[Term, ...] = ()
    check_nfe: float = 0
    corrected: float = math.nan
    corrected_std_error: float = math.nan

    @classmethod
    def of(
        cls, draws: Sequence[LogProb], ratio: Tensor, scale: float, settings: dict[str, Any], importance_weighted: bool = False
    ) -> BitsPerDim:
        """The figure of log p of each draw and the ratios log p/q, (draws, B); ``scale`` is -1/(D ln 2), of nats to bits per dimension."""
        K, per_sample = len(draws), bits_of(ratio, scale, importance_weighted)
        # the same probes serve every draw, so their error does not average out over draws
        probe_std_error = abs(scale) * math.sqrt(sum(root_sum(r.std_error) ** 2 for r in draws) / K)
        within = root_sum(scale * ratio.std(0)) / math.sqrt(K) if K > 1 and not importance_weighted else math.nan
        data, probes, *biases = draws[0].terms(scale)
        better = (math.nan, math.nan)
        if "check_steps" in settings and not importance_weighted:
            better = corrected(per_sample, scale * draws[0].discretization.cpu())
            note = f": {better[0]:.4f} +- {better[1]:.4f} without it"
            biases = [term._replace(what=term.what + note) if term.name == TIME_STEPS else term for term in biases]
        nfe, vjp = sum(r.nfe for r in draws), sum(r.vjp for r in draws)
        return cls(
            mean=mean(per_sample),
            std_error=mean_error(per_sample),
            per_sample=per_sample,
            nfe=nfe,
            dequantization_std=abs(scale) * float(ratio.mean(1).std()) if K > 1 else math.nan,
            probe_std_error=probe_std_error,
            settings=settings | {"nfe": nfe, "vjp": vjp},
            terms=(
                data._replace(value=mean_error(per_sample)),
                Term("dequantization", within, f"standard error over {K} draws for each sample"),
                probes._replace(value=probe_std_error),
                *biases,
            ),
            check_nfe=draws[0].check_nfe,
            corrected=better[0],
            corrected_std_error=better[1],
        )

    def without_cut(self) -> BitsPerDim:
        """The same of a dequantizer that draws at t_min itself: the bound on the discrete data is exact, nothing is cut off."""
        return replace(self, terms=tuple(NO_CUT if term.name == "cut" else term for term in self.terms))

    def report(self) -> Report:
        """The mean with its error budget: a table to print, ``to_json`` to keep, ``compare`` to compare."""
        return Report(self.mean, self.std_error, "bits/dim", self.terms, self.settings, tuple(self.per_sample.tolist()))

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.std_error:.4f} bits/dim ({len(self.per_sample)} samples, {self.settings})"

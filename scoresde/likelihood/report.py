"""What a likelihood was measured with and how sure it is: a table to quote, JSON with every setting, and honest comparisons."""

from __future__ import annotations

import functools
import math
import os
import platform
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoresde.core import encoding, files
from scoresde.core.digest import of_tensors
from scoresde.core.encoding import without_nan
from scoresde.errors import ConfigError

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

SAME = ("unit", "dequantization", "levels", "weights", "bound")  # what two figures must share to be compared

MOST = 1 << 28  # bytes of a file
FEW_PER_MILLE = 0.003  # of a mean: what time steps may err without a warning, however small its standard error

CONFIDENCE = 1.96  # standard errors on either side: 95 % of a normal distribution


TIME_STEPS = "time steps"  # the term of the error of the solver


class Term(NamedTuple):
    """One line of an error budget: value in the unit of the report (NaN: not known) and what it says."""

    name: str
    value: float
    what: str


@dataclass(frozen=True, repr=False)
class Report:
    """A mean with its error budget. ``print(report)`` is the table.

    Attributes:
        value: the mean over samples, in ``unit``.
        std_error: its standard error over the samples.
        unit: "bits/dim" or "nats".
        terms: the error budget.
        settings: everything that the value was computed with.
        per_sample: the value of each sample.
    """

    value: float
    std_error: float
    unit: str
    terms: tuple[Term, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    per_sample: tuple[float, ...] = ()

    def term(self, name: str) -> float:
        """The value of a term. Raises ConfigError if there is none of this name."""
        for term in self.terms:
            if term.name == name:
                return term.value
        raise ConfigError(f"no term {name!r} in this report, expected one of {', '.join(t.name for t in self.terms)}")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean over the distribution of the data, on either side wider by what the time steps err."""
        wide = CONFIDENCE * self.std_error + self.time_steps
        return self.value - wide, self.value + wide

    @property
    def time_steps(self) -> float:
        """What the time steps of the solver err in the mean; 0 where there are none, or where that was not measured."""
        found = [t.value for t in self.terms if t.name == TIME_STEPS and not math.isnan(t.value)]
        return found[0] if found else 0.0

    def __repr__(self) -> str:
        used = "; ".join(f"{k} {v}" for k, v in self.settings.items() if not isinstance(v, (dict, list)))
        return f"{self.table()}\n{used}"

    def table(self) -> str:
        """The mean and its error budget as text."""
        low, high = self.interval
        rows = [("mean", f"{self.value:.5f}", f"{self.settings.get('samples', len(self.per_sample))} samples, {self.unit}")]
        what = "1.96 standard errors over the samples" + (", and the error of the time steps" if self.time_steps else "")
        rows += [("95 % interval", f"{low:.4f} .. {high:.4f}", what + "; prior and cut are not in it")]
        rows += [(t.name, "-" if math.isnan(t.value) else f"{t.value:.2g}", t.what) for t in self.terms]
        widths = [max(len(row[j]) for row in rows) for j in range(2)]
        return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows)

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON of everything, NaN as null; written to a file if one is named."""
        content = {"value": self.value, "std_error": self.std_error, "interval": list(self.interval), "unit": self.unit}
        terms = [{"name": t.name, "value": t.value, "what": t.what} for t in self.terms]
        content |= {"terms": terms, "settings": self.settings, "per_sample": list(self.per_sample)}
        text = encoding.encode_document("report", without_nan(content)).decode()
        if path is not None:
            files.write_text(Path(path), text)
        return text

    @classmethod
    def from_json(cls, text: str | os.PathLike[str]) -> Report:
        """Of what ``to_json`` gave: its text, which begins with a brace, or the name of its file.

        Raises:
            CheckpointNotFound, CheckpointError, CheckpointCorrupt: no such file, no regular one, damaged.
            CheckpointMismatch: a file of another kind, or of a later version.
            ConfigError: something else.
        """
        given = isinstance(text, str) and text.lstrip()[:1] == "{"
        content = text if isinstance(text, str) and given else files.read_own(text, MOST, "what Report.to_json gave, or its text")
        found = encoding.decode_document("this report" if given else str(text), content, "report")
        try:
            number = lambda v: math.nan if v is None else float(v)
            terms = tuple(Term(t["name"], number(t["value"]), t["what"]) for t in found["terms"])
            per_sample = tuple(number(v) for v in found["per_sample"])
            if not isinstance(found["settings"], dict) or not all(isinstance(v, str) for v in (found["unit"], *(t.name for t in terms))):
                raise ValueError("settings that are no object, a unit or a name that is no text")
            return cls(number(found["value"]), number(found["std_error"]), found["unit"], terms, found["settings"], per_sample)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no report of scoresde ({error!r}): expected what Report.to_json() gave") from None


def warn_of_time_steps(report: Report, steps: int | None) -> None:
    """Warns where the error of the time steps is more than that of all the rest of a mean."""
    if report.time_steps > max(report.std_error, FEW_PER_MILLE * abs(report.value)):
        warnings.warn(
            f"the time steps err by {report.time_steps:.2g} {report.unit} in the mean of {report.value:.4g}, its standard error is "
            f"{report.std_error:.2g}: take more steps" + ("" if steps is None else f" than {steps}"),
            stacklevel=3,
        )


@dataclass(frozen=True)
class Comparison:
    """a - b: the difference of two means, with its standard error; paired where both are of the same samples."""

    difference: float
    std_error: float
    paired: bool
    unit: str

    def __str__(self) -> str:
        kind = "paired" if self.paired else "unpaired"
        if self.std_error:
            z = self.difference / self.std_error
        else:  # the same difference for every sample: none at all for a figure and itself
            z = math.copysign(math.inf, self.difference) if self.difference else 0.0
        return f"{self.difference:+.4f} +- {self.std_error:.4f} {self.unit} ({kind}, z = {z:.2f})"


def compare(a: Any, b: Any) -> Comparison:
    """The difference a - b of two likelihoods: results of ``bits_per_dim``, ``log_prob`` or ``elbo``, or their ``report()``.

    Of the same samples the difference is taken sample by sample, which has a much smaller standard error.

    Raises:
        ConfigError: figures that do not mean the same: another unit, dequantization or number of levels, a bound and a value, averaged
            weights and raw ones.
    """
    first, second = (_report_of(r, name) for r, name in ((a, "a"), (b, "b")))
    left, right = (r.settings | {"unit": r.unit} for r in (first, second))
    different = [f"{key}: {left.get(key)!r} against {right.get(key)!r}" for key in SAME if left.get(key) != right.get(key)]
    if different:
        raise ConfigError(f"these two figures do not mean the same ({'; '.join(different)}): measure both in the same way")
    difference = first.value - second.value
    data = left.get("data")
    if data is not None and data == right.get("data") and len(first.per_sample) == len(second.per_sample) > 1:
        both = torch.tensor([first.per_sample, second.per_sample], dtype=torch.float64, device="cpu")
        d = both[0] - both[1]
        return Comparison(difference, float(d.std()) / math.sqrt(len(d)), True, first.unit)
    return Comparison(difference, math.hypot(first.std_error, second.std_error), False, first.unit)


@runtime_checkable
class Reporting(Protocol):
    """A result that has a report."""

    def report(self) -> Report: ...


def _report_of(result: Any, name: str) -> Report:
    if isinstance(result, (str, os.PathLike)):
        return Report.from_json(result)
    if isinstance(result, type) or not isinstance(result, (Report, Reporting)):
        raise ConfigError(
            f"{name} is a {type(result).__name__}, expected a result of bits_per_dim, log_prob or elbo, its report(), or the file of one"
        )
    return result if isinstance(result, Report) else result.report()


def settings_of(model: ScoreModel, data: Tensor) -> dict[str, Any]:
    """What a report says of a model, of the data and of the machine."""
    reference = model.reference
    return {
        "samples": len(data),
        "dimensions": data[0].numel(),
        "data": of_tensors([data]),
        "model": of_tensors(model.state_dict().values()) if isinstance(model, nn.Module) else None,
        "weights": model.weights,
        "sde": repr(model.sde),
        "reference": None if reference is None else repr(reference),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": {name: _version(name) for name in ("scoresde", "torch", "numpy")} | {"python": platform.python_version()},
    }


@functools.cache
def _version(name: str) -> str:
    """The version of a package, looked up once."""
    from importlib.metadata import version

    return version(name)

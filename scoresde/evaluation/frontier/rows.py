"""What the frontier holds: rows, their metrics, the names of solvers, tables of text and JSON without NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde.core.encoding import without_nan
from scoresde.evaluation.bootstrap import Interval
from scoresde.solvers.base import Solver
from scoresde.solvers.recipe import Recipe

NAN = Interval(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: heading of its column, words for an axis, and whether larger is better."""

    heading: str
    words: str
    larger: bool = False

METRICS = {
    "median": Metric("median", "median distance of samples to the exact end of their ODE paths"),
    "rms": Metric("rms", "rms distance of samples to the exact end of their ODE paths"),
    "sliced_wasserstein": Metric("sliced W", "sliced Wasserstein distance to the reference"),
    "energy": Metric("energy", "energy distance to the reference"),
    "mmd": Metric("MMD^2", "squared maximum mean discrepancy (unbiased) from the reference"),
    "frechet": Metric("Frechet", "Frechet distance to the reference, in features"),
    "precision": Metric("precision", "precision, in features", larger=True),
    "recall": Metric("recall", "recall, in features", larger=True),
    "log_prob_error": Metric("log p err", "error of the mean log p, in nats"),
    "occupancy": Metric("occupancy", "total variation of the weights of modes"),
    "discretization": Metric("discret.", "discretization error (sliced Wasserstein distance to converged samples)"),
}


@dataclass(frozen=True)
class Row:
    """One solver on one grid at one budget.

    Attributes:
        sde, solver: their reprs, from which they can be made again; for "auto" that of the solver or recipe that it was.
        label: short name of the solver, without the tolerances of an adaptive one; or the name it was given.
        grid: name of the time grid; "own" is the solver's own, "adaptive" that of a solver that chooses its own steps.
        steps: number of steps; None for a solver that chooses its own.
        budget: network calls that were allowed for a sample; None for a solver that chooses its own steps.
        nfe: network evaluations a sample, counted.
        calls: network calls one after another a batch, counted; differs from nfe where a solver evaluates several times at once,
            or not all samples of a batch.
        seconds: wall time for all samples.
        seconds_per_call: wall time of one network call on one batch, with the solver's own work.
        overhead: that without the network: seconds a call that the solver and the loop take (NaN off the CPU).
        deterministic: the solver gives the same samples from the same start whatever the seed.
        metrics: figures with intervals, by name (see ``METRICS``).
        message: why it failed, or "".
    """

    sde: str
    solver: str
    label: str
    grid: str
    steps: int | None
    budget: int | None
    nfe: float
    calls: float
    seconds: float
    seconds_per_call: float
    overhead: float
    deterministic: bool
    metrics: dict[str, Interval] = field(default_factory=dict)
    message: str = ""

    def value(self, metric: str) -> float:
        """A metric's figure; NaN if it was not measured."""
        return self.metrics.get(metric, NAN).value

    def badness(self, metric: str) -> float:
        """The figure as something to make small: without its sign, or 1 - it where larger is better."""
        value = self.value(metric)
        return 1 - value if METRICS[metric].larger else abs(value)

    @property
    def name(self) -> str:
        """The label, with the tolerance of an adaptive solver, and with the grid where it is not the default."""
        if self.budget is None and "rtol=" in self.solver and self.label.endswith(")"):
            return f"{self.label[:-1]}, rtol={self.solver.partition('rtol=')[2].partition(',')[0].rstrip(')')})"
        return self.label

    @property
    def known_as(self) -> str:
        """The name, with the solver where the name does not say it: auto (ReferenceSolver)."""
        kind, _, arguments = self.solver.partition("(")
        if kind == "Recipe":
            kind = f"Recipe({arguments.partition('solver=')[2].partition('(')[0]})"
        return self.name if kind.partition("(")[0] in self.name or " + " in self.name else f"{self.name} ({kind})"

    def to_json(self) -> dict[str, Any]:
        return without_nan(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """Raises KeyError, TypeError: not a row."""
        values = dict(content)
        values["metrics"] = {name: read_interval(v) for name, v in values["metrics"].items()}
        for name in ("nfe", "calls", "seconds", "seconds_per_call", "overhead"):
            values[name] = number(values[name])
        return cls(**values)


def number(value: float | None) -> float:
    """What JSON holds for a float: null is NaN."""
    return math.nan if value is None else float(value)


def read_interval(content: Mapping[str, Any]) -> Interval:
    return Interval(**{name: number(v) for name, v in content.items()})


def finite(interval: Interval) -> Interval:
    """Infinities as NaN, as they come back from a file."""
    return Interval(*(v if math.isfinite(v) else math.nan for v in dataclasses.astuple(interval)))


# ---- names
def chooses_steps(solver: Any) -> bool:
    """Whether a solver chooses its own steps. A recipe of one call has a step all the same."""
    return isinstance(solver, Solver) and not isinstance(solver, Recipe) and solver.default_steps == 1


def label_of(solver: Any) -> str:
    """Class name and the arguments that are not the default; those that say how exact an adaptive solver is are left out.

    A solver made of two others is known by them: "ReverseDiffusion + Langevin"; one around another holds it: "Picard(DDIM)". Of
    arguments that are no numbers or words only the class is named, and lists are left out. A recipe is known by its budget.
    """
    if isinstance(solver, str):
        return solver
    if isinstance(solver, Recipe):
        return f"Recipe(nfe={solver.nfe})"
    if solver.label is not None:
        return solver.label
    if not dataclasses.is_dataclass(solver):
        return type(solver).__name__
    hidden = ("rtol", "atol", "max_nfe") if chooses_steps(solver) else ()
    parts, others = [], []
    for f in dataclasses.fields(solver):
        value = getattr(solver, f.name)
        if not f.init or f.name in hidden:
            continue
        if isinstance(value, Solver):
            others.append(label_of(value))
        elif f.name == "method":
            parts.append(str(value))
        elif isinstance(value, (int, float, str)):
            if value != f.default:
                parts.append(f"{f.name}={value}")
        elif value is not None and not isinstance(value, (Tensor, tuple, list, dict)):
            parts.append(f"{f.name}={getattr(value, '__name__', type(value).__name__)}")
    name = type(solver).__name__ if len(others) < 2 else " + ".join(others)
    parts = [*others, *parts] if len(others) == 1 else parts
    return f"{name}({', '.join(parts)})" if parts else name


# ---- text
def show(interval: Interval) -> str:
    """A figure and half the width of its interval, 0.0123 +-0.0004."""
    if not math.isfinite(interval.value):
        return "nan"
    half = (interval.high - interval.low) / 2
    return f"{interval.value:.3g}" + (f" +-{half:.1g}" if math.isfinite(half) else "")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first two flush left, the others flush right; "nan" is shown as a dash."""
    cells = [list(header), *([("-" if c == "nan" else c) for c in row] for row in rows)]
    widths = [max(len(row[j]) for row in cells) for j in range(len(header))]
    cells.insert(1, ["-" * w for w in widths])
    aligned = ([c.ljust(w) if j < 2 else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)

"""What a frontier says: tables, pictures, files, the parts of the error, and which solver to use."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.core import encoding, files
from scoresde.core.encoding import without_nan
from scoresde.errors import ConfigError
from scoresde.evaluation.frontier.rows import METRICS, NAN, Row, format_table, show
from scoresde.evaluation.frontier.store import floors_to_json, read_floors, read_intervals
from scoresde.plot import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scoresde.evaluation.bootstrap import Interval
    from scoresde.evaluation.frontier.jobs import Grid, Job
    from scoresde.evaluation.metrics import NoiseFloor

MOST = 1 << 28  # bytes of a file

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Recommendation:
    """The solver to use, with its figures: print it, or ``sample(model, n, **recommendation.arguments)``.

    Attributes:
        row: what was measured of it.
        metric: what it was chosen by.
        others: the best of each other solver and grid within the same limits, best first.
        solver, grid: the objects themselves (a grid of None is the solver's own); None if the frontier was read from a file.
    """

    row: Row
    metric: str
    others: tuple[Row, ...] = ()
    solver: Any = None
    grid: Grid | None = None
    sde: Any = None
    t_end: float | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``sample``. Raises ConfigError: read from a file, which holds no solver."""
        if self.solver is None:
            raise ConfigError(f"this frontier was read from a file: make the solver, {self.row.solver}, and give it to sample yourself")
        if self.grid is not None:
            return {"solver": self.solver, "times": self.grid(self.sde, self.row.steps, end=self.t_end)}
        return {"solver": self.solver, "steps": self.row.steps, "t_end": self.t_end}

    def __str__(self) -> str:
        r = self.row
        how = "its own steps" if r.steps is None else f"{r.steps} steps on the grid {r.grid!r}"
        m = r.metrics[self.metric]
        text = f"{r.known_as}, {how}: {r.nfe:.4g} network calls, {self.metric} {m.value:.4g} [{m.low:.4g}, {m.high:.4g}]"
        for other in self.others[:3]:
            text += f"\n  instead of {other.known_as} ({other.grid}): {other.nfe:.4g} calls, {self.metric} {other.value(self.metric):.4g}"
        return text


@dataclass(frozen=True)
class Frontier:
    """What ``frontier`` measured.

    Attributes:
        rows: one a solver, grid and budget.
        floors: what real samples get, for each distance between sets.
        decomposition: the parts of the error as sliced Wasserstein distances: "score" (converged samples from p_T against real ones,
            above the floor; 0 for an exact model), "prior" (converged from N(0, sigma^2) against converged from p_T), "truncation" (real
            samples blurred to t_end against real ones); the discretization error is each row's metric of that name. The first two
            are of finite sets, so that a part that is far below the noise floor may be smaller still. Empty without paths.
        settings: all that decides the figures.
    """

    rows: tuple[Row, ...]
    floors: dict[str, NoiseFloor]
    decomposition: dict[str, Interval]
    settings: dict[str, Any]
    _jobs: tuple[Job, ...] = field(default=(), repr=False, compare=False)
    _sde: Any = field(default=None, repr=False, compare=False)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that some row has."""
        return [name for name in METRICS if any(name in row.metrics for row in self.rows)]

    @property
    def metric(self) -> str:
        """What solvers are ranked by if nothing is said: the median pathwise error, or without paths the sliced Wasserstein distance."""
        return "median" if "median" in self.metrics else "sliced_wasserstein"

    def table(self, metrics: Sequence[str] | None = None) -> str:
        """The rows as text, with half widths of 95 % intervals, then the parts of the error."""
        names = self.metrics if metrics is None else [self._check_metric(name) for name in metrics]
        header = ["solver", "grid", "steps", "NFE", "seconds", "ms/call", "loop us", *(METRICS[name].heading for name in names)]
        body = []
        for r in self.rows:
            figures = (f"{r.nfe:.4g}", f"{r.seconds:.2f}", f"{1e3 * r.seconds_per_call:.2f}", f"{1e6 * r.overhead:.0f}")
            steps = "-" if r.steps is None else str(r.steps)
            body.append([r.name, r.grid, steps, *figures, *(show(r.metrics.get(name, NAN)) for name in names)])
        if self.floors:
            floors = (self.floors.get(name) for name in names)
            body.append(["real samples", "", *[""] * 5, *("nan" if f is None else f"{f.mean:.3g} +-{2 * f.std:.1g}" for f in floors)])
        lines = [format_table(header, body), "", self.explain()]
        lines += [f"{r.name}, {r.grid}, budget {r.budget}: {r.message}" for r in self.rows if r.message]
        return "\n".join(lines)

    def explain(self) -> str:
        """What the figures are, and the parts of the error, in sentences."""
        s = self.settings
        lines = [f"{s['samples']} samples under {s['sde']}, {s['reference']} of the reference; +- half of a 95 % interval"]
        floor = self.floors.get("sliced_wasserstein")
        if floor is None:
            lines.append("no pool of real samples was given, so the noise floor is not known")
        else:
            reads = f"{floor.mean:.4f} +- {floor.std:.4f}"
            lines.append(f"noise floor: {s['samples']} real samples get a sliced Wasserstein distance of {reads}")
        if "median" in self.metrics:
            own = f"{s['converged']} (ten times its tolerance moves it by {s['converged_error']:.1g})"
            lines.append(f"median, rms: |x - x*| over {s['paths']} paths, x* by {own}")
        if "frechet" in self.metrics or s["features"] != "none":
            lines.append(f"features: {s['features']}")
        if self.decomposition:
            parts = ", ".join(f"{name} {show(part)}" for name, part in self.decomposition.items())
            lines.append(f"error by its parts (sliced Wasserstein): {parts}; discretization: the column")
            lines.append(self.advice())
        return "\n".join(lines)

    def advice(self) -> str:
        """Which part of the error to fix. "" without paths."""
        if not self.decomposition:
            return ""
        name, part = max(self.decomposition.items(), key=lambda item: item[1].value)
        floor = self.floors.get("sliced_wasserstein")
        # what a part adds to the floor's square must stand out of the floor's spread
        told = 0.0 if floor is None else math.sqrt((floor.mean + 2 * floor.std) ** 2 - floor.mean**2)
        if part.value <= told:
            return f"to fix: only the discretization, by more steps or a better solver; all else is below {told:.2g}, what can be told"
        enough = [r for r in self.rows if r.value("discretization") <= part.value]
        what = {"score": "train a better model", "prior": "a larger t_max", "truncation": "a smaller t_end"}[name]
        if not enough:
            return f"to fix: the discretization, by more steps or a better solver; then the {name} error: {what}"
        r = min(enough, key=lambda r: r.nfe)
        return f"to fix: the {name} error ({what}), from {r.nfe:.4g} network calls on, where {r.name} has no larger discretization error"

    def recommend(self, nfe: float | None = None, error: float | None = None, metric: str | None = None) -> Recommendation:
        """The solver to use: the best one within ``nfe`` network calls, or the cheapest with at most this ``error``, or both.

        Args:
            nfe: network calls a sample, at most.
            error: of the metric, at most (at least, for precision and recall).
            metric: what counts; None: ``Frontier.metric``. The median pathwise error ranks deterministic solvers only.

        Raises:
            ConfigError: neither is given, no numbers, an unknown metric, or no row is good enough: the message has the closest.
        """
        metric = self.metric if metric is None else self._check_metric(metric)
        if nfe is None and error is None:
            raise ConfigError("neither nfe nor error was given: recommend(nfe=10), or recommend(error=0.01)")
        for name, value in (("nfe", nfe), ("error", error)):
            if value is not None:
                _check_number(value, name)
        rows = [r for r in self.rows if not r.message and math.isfinite(r.value(metric))]
        if not rows:
            raise ConfigError(f"no row has the metric {metric!r}: expected one of {', '.join(self.metrics)}")
        limit = math.inf if error is None else (1 - error if METRICS[metric].larger else error)
        within = [r for r in rows if nfe is None or r.nfe <= nfe + 1e-9]
        if not within:
            r = min(rows, key=lambda r: (r.nfe, r.badness(metric)))
            raise ConfigError(f"no solver ran within {nfe:g} network calls: the closest is {r.name} ({r.grid}) with {r.nfe:.4g}")
        good = [r for r in within if r.badness(metric) <= limit]
        if not good:
            r = min(within, key=lambda r: r.badness(metric))
            raise ConfigError(
                f"no solver has {metric} of {error:g}{'' if nfe is None else f' within {nfe:g} network calls'}: "
                f"the closest is {r.name} ({r.grid}) with {r.value(metric):.4g} at {r.nfe:.4g} calls"
            )

        def rank(r: Row) -> tuple[float, float]:
            return (r.badness(metric), r.nfe) if error is None else (r.nfe, r.badness(metric))

        best, *rest = sorted(good, key=rank)
        others: dict[tuple[str, str], Row] = {}
        for r in rest:
            if (r.label, r.grid) != (best.label, best.grid):
                others.setdefault((r.label, r.grid), r)
        job = dict(zip(map(id, self.rows), self._jobs, strict=False)).get(id(best))
        solver, grid = (None, None) if job is None else (job.solver, job.grid)
        return Recommendation(best, metric, tuple(others.values()), solver, grid, self._sde, self.settings["t_end"])

    def plot(self, path: PathLike | None = None, metric: str | None = None, *, data: str = "") -> Figure:
        """A metric against network calls: one line a solver and grid with a band of its interval, the Pareto front, the noise floor,
        and for sliced Wasserstein distances the parts of the error; see ``scoresde.plot.frontier``. None: ``Frontier.metric``.
        The title begins with ``data``, the name of the data."""
        metric = self.metric if metric is None else self._check_metric(metric)
        grids = {(r.label, r.grid) for r in self.rows}
        several = {label for label, _ in grids if len([g for name, g in grids if name == label]) > 1}
        lines: dict[str, list[tuple[float, ...]]] = {}
        for r in self.rows:
            m = r.metrics.get(metric, NAN)
            name = f"{r.label}, {r.grid}" if r.label in several else r.label
            band = (m.low, m.high) if m.value >= 0 else (-m.high, -m.low)
            lines.setdefault(name, []).append((r.nfe, abs(m.value), *band))
        floor = self.floors.get(metric)
        parts = {f"{name} error": v.value for name, v in self.decomposition.items()} if metric == "sliced_wasserstein" else {}
        s = self.settings
        return curves.frontier(
            lines,
            None if floor is None else (floor.mean, floor.std),
            path,
            title=f"{data + ', ' if data else ''}{s['sde'].split('(')[0]}, {s['samples']} samples",
            ylabel=METRICS[metric].words,
            levels=parts,
            share=METRICS[metric].larger,
        )

    def to_csv(self, path: PathLike) -> None:
        """Writes the rows, under comment lines (# key = value) with settings, floors and parts: ``pandas.read_csv(path, comment="#")``.
        Raises CheckpointWriteError."""
        text = io.StringIO()
        notes = {**self.settings, **{f"floor_{k}": f"{v.mean!r} std {v.std!r}" for k, v in self.floors.items()}}
        for key, value in {**notes, **{f"error_{k}": repr(v.value) for k, v in self.decomposition.items()}}.items():
            text.write(f"# {key} = {value}\n")
        writer = csv.writer(text, lineterminator="\n")
        plain = [f.name for f in dataclasses.fields(Row) if f.name != "metrics"]
        names = self.metrics
        writer.writerow([*plain, *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
        for r in self.rows:
            values = [getattr(r, name) for name in plain]
            for name in names:
                m = r.metrics.get(name, NAN)
                values += [m.value, m.low, m.high]
            writer.writerow(["" if v is None else v for v in values])
        files.write_text(Path(path), text.getvalue())

    def to_json(self, path: PathLike) -> None:
        """Writes rows, floors, parts and settings; what is not a number is null. Raises CheckpointWriteError."""
        content = {
            "settings": self.settings,
            "floors": floors_to_json(self.floors),
            "decomposition": {name: dataclasses.asdict(v) for name, v in self.decomposition.items()},
            "rows": [row.to_json() for row in self.rows],
        }
        files.write_bytes(Path(path), encoding.encode_document("frontier", without_nan(content)))

    @classmethod
    def from_json(cls, path: PathLike) -> Frontier:
        """Reads what ``to_json`` wrote.

        Raises:
            CheckpointNotFound, CheckpointError, CheckpointCorrupt: no such file, no regular one, a damaged one.
            CheckpointMismatch: of another kind, or of a later version.
            ConfigError: something else.
        """
        content = encoding.decode_document(str(path), files.read_own(path, MOST, "what Frontier.to_json wrote"), "frontier")
        try:
            settings = dict(content["settings"])
            settings["converged_error"] = NAN.value if settings["converged_error"] is None else settings["converged_error"]
            rows = tuple(Row.from_json(row) for row in content["rows"])
            return cls(rows, read_floors(content["floors"]), read_intervals(content["decomposition"]), settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not what Frontier.to_json writes: {error!r}") from None

    def _check_metric(self, name: str) -> str:
        if name not in self.metrics:
            raise ConfigError(f"metric = {name!r}, expected one of {', '.join(self.metrics)}")
        return name


def _check_number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(f"{name} = {value!r}, expected a number")

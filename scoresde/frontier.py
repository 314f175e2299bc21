"""Quality against compute: any solvers at any budgets of network calls, judged against real samples.

``bench`` draws the same number of samples with every solver and budget, from the same noise, and measures their sliced
Wasserstein distance to a reference set. Next to it stands what real samples get: the noise floor, below which nothing can be told.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import grid, plot
from ._tensor import check_data, check_positive_int
from .adapters import TorchDiffEq
from .errors import ConfigError, ScoreSDEError, SolverError
from .metrics import NoiseFloor, noise_floor, sliced_wasserstein
from .model import ScoreModel, count_evaluations
from .noise import check_seed
from .sampling import _check_model, default_batch_size, sample
from .solvers import (
    DDIM,
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    check_solver,
)
from .transform import Transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NFE = (5, 10, 20, 50, 100)
SOLVERS: tuple[Solver, ...] = (
    Euler(),
    DDIM(),
    Heun(),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    TorchDiffEq(rtol=1e-1, atol=1e-1),
    TorchDiffEq(rtol=1e-2, atol=1e-2),
    TorchDiffEq(rtol=1e-3, atol=1e-3),
)


@dataclass(frozen=True)
class Row:
    """One solver at one budget.

    Attributes:
        sde, solver: their reprs, from which they can be made again.
        label: short name of the solver, without the tolerances of an adaptive one.
        grid: the time grid, or "adaptive".
        steps: number of steps; None for a solver that chooses its own.
        budget: network calls that were allowed for a sample; None for a solver that chooses its own steps.
        nfe: network calls a sample, counted.
        seconds: wall time for all samples.
        seconds_per_call: wall time of one network call on one batch, with the solver's own work.
        quality: sliced Wasserstein distance to the reference; NaN if the solve failed.
        message: why it failed, or "".
    """

    sde: str
    solver: str
    label: str
    grid: str
    steps: int | None
    budget: int | None
    nfe: float
    seconds: float
    seconds_per_call: float
    quality: float
    message: str = ""


@dataclass(frozen=True)
class Bench:
    """What ``bench`` measured.

    Attributes:
        rows: one a solver and budget.
        floor: the distance of real samples to the reference; None if there was no pool to take them from.
        settings: all that decides the figures, for a report.
    """

    rows: tuple[Row, ...]
    floor: NoiseFloor | None
    settings: dict[str, Any]

    def table(self) -> str:
        """The rows as text, for a terminal."""
        header = ("SDE", "solver", "steps", "NFE", "seconds", "ms/call", "quality", "x floor")
        floor = math.nan if self.floor is None else self.floor.mean
        body = []
        for r in self.rows:
            steps = "adaptive" if r.steps is None else str(r.steps)
            figures = (f"{r.seconds:.2f}", f"{1e3 * r.seconds_per_call:.2f}", f"{r.quality:.4f}", f"{r.quality / floor:.2f}")
            body.append((r.sde.split("(")[0], name_of(r), steps, f"{r.nfe:.4g}", *figures))
        lines = [format_table(header, body), "", self.explain()]
        lines += [f"{name_of(r)}, budget {r.budget}: {r.message}" for r in self.rows if r.message]
        return "\n".join(lines)

    def explain(self) -> str:
        """One sentence: what quality means here, and its noise floor."""
        s = self.settings
        text = f"quality: sliced Wasserstein distance of {s['n']} samples to {s['reference']} reference samples, smaller is better"
        if self.floor is None:
            return text + "; no pool of real samples was given, so the noise floor is not known"
        return text + f"; {s['n']} real samples get {self.floor.mean:.4f} +- {self.floor.std:.4f} (the noise floor)"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the rows, under comment lines (# key = value) with the settings: ``pandas.read_csv(path, comment="#")``."""
        text = io.StringIO()
        floor = dataclasses.asdict(self.floor) if self.floor else {"mean": math.nan, "std": math.nan}
        for key, value in self.settings.items():
            text.write(f"# {key} = {value}\n")
        writer = csv.writer(text, lineterminator="\n")
        fixed = {"floor_mean": floor["mean"], "floor_std": floor["std"], "n": self.settings["n"], "seed": self.settings["seed"]}
        writer.writerow([*(f.name for f in dataclasses.fields(Row)), *fixed])
        for row in self.rows:
            values = ("" if v is None else v for v in dataclasses.astuple(row))
            writer.writerow([*values, *fixed.values()])
        _write(path, text.getvalue())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes rows, floor and settings; what is not a number is null."""
        content = {
            "settings": self.settings,
            "floor": dataclasses.asdict(self.floor) if self.floor else None,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        _write(path, json.dumps(without_nan(content), indent=2) + "\n")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Quality against network calls, one line a solver, with the noise floor; see ``scoresde.plot.frontier``."""
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            lines.setdefault(row.label, []).append((row.nfe, row.quality))
        floor = None if self.floor is None else (self.floor.mean, self.floor.std)
        s = self.settings
        title = f"{s['sde'].split('(')[0]}, {s['n']} samples against {s['reference']} of the reference"
        return plot.frontier(lines, floor, path, title=title, ylabel="sliced Wasserstein distance to the reference")


def bench(
    model: ScoreModel,
    reference: Tensor,
    *,
    pool: Tensor | None = None,
    solvers: Iterable[Solver] | None = None,
    nfe: Sequence[int] = NFE,
    n: int | None = None,
    seed: int = 0,
    transform: Transform | None = None,
    projections: int = 128,
    splits: int = 10,
    batch_size: int | None = None,
    progress: bool = True,
    **cond: Any,
) -> Bench:
    """Samples with every solver at every budget of network calls, and measures the distance to a reference set.

    A solver takes as many steps as its budget allows; what a step costs is learned by counting. A solver that chooses its own
    steps (an adaptive one: its ``default_steps`` is 1) runs once, whatever the budgets: give several, with several tolerances.

    Distances are taken in model space. Integer levels, which model samples are not, are dequantized first (uniform noise within
    each bin, as in training), reference and pool alike; so real samples and a perfect model's have the same distribution, and
    nothing of a sample is rounded away. The noise floor is the distance between the reference and n real samples of the pool, mean
    and standard deviation over random choices of n: exactly what n samples of a perfect model would get. A model may fall below it
    by chance, or by copying the reference, which therefore must not be in the training data.

    Args:
        model: a ScoreModel.
        reference: real samples, held out of training (M, *event_shape): levels (with ``transform``) or model-space floats.
        pool: other real samples for the noise floor, of the same kind, at least 2 n; the training data will do.
        solvers: instances; None: Euler, DDIM, Heun, EulerMaruyama, Ancestral, reverse diffusion with Langevin, dopri5.
        nfe: budgets, network calls a sample.
        n: samples of each; None: as many as the reference has, at most 1,000 and half of the pool.
        seed: of noise, dequantization and projections; the noise is the same for all.
        transform: of integer levels.
        projections: directions of the distance.
        splits: choices of n of the pool.
        batch_size: as for ``sample``.
        progress: show a progress bar.
        **cond: for the network; a tensor with first dimension n is per sample.

    Raises:
        ConfigError: arguments that make no sense, levels without a transform.
        ShapeError, DTypeError, NonFiniteError: a wrong reference or pool.
    """
    _check_model(model)
    solvers = list(SOLVERS if solvers is None else solvers)
    for solver in solvers:
        check_solver(solver)
    budgets = [check_positive_int(budget, "nfe") for budget in nfe]
    if not solvers or not budgets:
        raise ConfigError(f"{len(solvers)} solvers and {len(budgets)} budgets: give at least one of each")
    check_seed(seed)
    real = _model_space(reference, transform, model, seed, "reference")
    n = check_positive_int(_default_n(real, pool) if n is None else n, "n")
    floor = None
    if pool is not None:
        if len(pool) < 2 * n:
            raise ConfigError(f"n = {n} and a pool of {len(pool)}: expected a pool of at least 2 n, to choose n from many times")
        exact = _model_space(pool, transform, model, seed + 1, "pool")
        floor = noise_floor(exact, n, splits, projections, seed, reference=real)
    size = default_batch_size(model.event_shape) if batch_size is None else check_positive_int(batch_size, "batch_size")
    jobs: list[tuple[Solver, int | None]] = []
    for solver in solvers:
        jobs += [(solver, None)] if _chooses_steps(solver) else [(solver, budget) for budget in budgets]
    rows, costs = [], {}
    with _bar(progress, len(jobs)) as bar:
        for solver, budget in jobs:
            bar(label_of(solver))
            key = type(solver).__name__ if budget is None else repr(solver)
            if key not in costs:  # for an adaptive solver just to warm up: the first call imports and allocates
                costs[key] = _cost(model, solver, seed, cond)
            steps, message = _steps(budget, *costs[key])
            rows.append(_run(model, solver, budget, steps, message, real, n, seed, size, projections, cond))
    settings = {
        "model": type(model).__name__,
        "sde": repr(model.sde),
        "event_shape": list(model.event_shape),
        "n": n,
        "reference": len(real),
        "pool": None if pool is None else len(pool),
        "transform": None if transform is None else repr(transform),
        "distance": f"sliced Wasserstein-2, {projections} projections",
        "splits": splits,
        "seed": seed,
        "t_end": grid.default_end(model.sde),
        "batch_size": size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return Bench(tuple(rows), floor, settings)


def _run(
    model: ScoreModel,
    solver: Solver,
    budget: int | None,
    steps: int | None,
    message: str,
    real: Tensor,
    n: int,
    seed: int,
    size: int,
    projections: int,
    cond: dict[str, Any],
) -> Row:
    """One solver at one budget; a message means that it cannot run at all."""
    x, start = None, time.perf_counter()
    with count_evaluations(model) as calls:
        try:
            x = None if message else sample(model, n, solver=solver, steps=steps, seed=seed, batch_size=size, **cond)
        except ScoreSDEError as error:  # a result too: this solver cannot do it in so few steps
            message = str(error)
    seconds = time.perf_counter() - start
    return Row(
        sde=repr(model.sde),
        solver=repr(solver),
        label=label_of(solver),
        grid="adaptive" if budget is None else model.sde.default_grid,
        steps=steps,
        budget=budget,
        nfe=calls.forward / -(-n // size),
        seconds=seconds,
        seconds_per_call=seconds / calls.forward if calls.forward else math.nan,
        quality=math.nan if x is None else sliced_wasserstein(x.cpu(), real, projections, seed),
        message=message,
    )


def _steps(budget: int | None, first: int, more: int) -> tuple[int | None, str]:
    """The steps that a budget allows, and why there are none."""
    if budget is None:
        return None, ""
    if budget < first:
        return 0, f"one step takes {first} network calls, more than {budget}"
    return 1 + (budget - first) // more, ""


def _cost(model: ScoreModel, solver: Solver, seed: int, cond: dict[str, Any]) -> tuple[int, int]:
    """Network calls of the first step and of each step after it, counted on one sample."""
    one: dict[str, Any] = {name: v[:1] if isinstance(v, Tensor) and v.ndim else v for name, v in cond.items()}
    counts = []
    for steps in (1, 2):
        with count_evaluations(model) as calls, contextlib.suppress(SolverError):  # overflowing states cost calls all the same
            sample(model, 1, solver=solver, steps=steps, seed=seed, batch_size=1, **one)
        counts.append(max(calls.forward, 1))
    return counts[0], max(counts[1] - counts[0], 1)


def _chooses_steps(solver: Solver) -> bool:
    return getattr(solver, "default_steps", Solver.default_steps) == 1


def _default_n(real: Tensor, pool: Tensor | None) -> int:
    return max(1, min(len(real), 1000, len(real) if pool is None else len(pool) // 2))


def _model_space(x: Tensor, transform: Transform | None, model: ScoreModel, seed: int, name: str) -> Tensor:
    """Real samples as float64 in model space, on the CPU; levels are dequantized."""
    if transform is None:
        return check_data(x, model.event_shape, name).detach().cpu().double()
    return check_data(transform.dequantize(x.cpu(), seed % (1 << 64), dtype=torch.float64), model.event_shape, name)


def label_of(solver: Any) -> str:
    """Class name and the arguments that are not the default; those that say how exact an adaptive solver is are left out.

    A solver made of others alone is known by them: "ReverseDiffusion + Langevin".
    """
    if not dataclasses.is_dataclass(solver):
        return type(solver).__name__
    hidden = ("rtol", "atol", "max_nfe") if _chooses_steps(solver) else ()  # type: ignore[arg-type]
    parts, others = [], []
    for f in dataclasses.fields(solver):
        value = getattr(solver, f.name)
        if f.init and f.name not in hidden:
            if isinstance(value, Solver):
                others.append(label_of(value))
            elif value != f.default or (f.name == "method"):
                parts.append(str(value) if f.name == "method" else f"{f.name}={value}")
    name = " + ".join(others) or type(solver).__name__
    return f"{name}({', '.join(parts)})" if parts else name


def name_of(row: Row) -> str:
    """The label, with the tolerance of an adaptive solver."""
    if row.budget is None and "rtol=" in row.solver and row.label.endswith(")"):
        return f"{row.label[:-1]}, rtol={row.solver.partition('rtol=')[2].partition(',')[0].rstrip(')')})"
    return row.label


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first two flush left, the others flush right; "nan" is shown as a dash."""
    cells = [list(header), *([("-" if c == "nan" else c) for c in row] for row in rows)]
    widths = [max(len(row[j]) for row in cells) for j in range(len(header))]
    cells.insert(1, ["-" * w for w in widths])
    aligned = ([c.ljust(w) if j < 2 else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


class _bar:
    """A tqdm bar over solves, as a context manager that gives a function to go on to the next."""

    def __init__(self, show: bool, total: int) -> None:
        self.bar: Any = None
        self.started = False
        if show:
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                desc="bench",
                unit="solve",
                leave=False,
                dynamic_ncols=True,
                mininterval=0.3 if sys.stderr.isatty() else 15,  # in a log file every refresh is a line
            )

    def __enter__(self) -> Any:
        return self._next

    def _next(self, what: str) -> None:
        if self.bar is not None:
            self.bar.update(int(self.started))
            self.bar.set_postfix_str(what, refresh=False)
        self.started = True

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def without_nan(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: str | os.PathLike[str], text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

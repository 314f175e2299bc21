"""The tables of solvers in which_solver.md and in the README, made from what the solvers declare: `python docs/solver_table.py`.

It rewrites what stands between the two markers of each file; with `--check` it writes nothing, and fails if that would change.
Calls a step are counted on a small exact model, as the difference between 40 and 20 steps.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path

import torch

import scoresde as sd
from scoresde import solvers
from scoresde.core import faces

ROOT = Path(__file__).parents[1]
PAGES = {"docs/which_solver.md": "full", "README.md": "short"}
BEGIN, END = "<!-- solvers: made by `python docs/solver_table.py` -->", "<!-- solvers: end -->"
ORDERS = range(1, 5)  # what is tried of a solver that has an argument `order`


def made(cls: type, **arguments: object) -> sd.Solver | None:
    """An instance; None if it needs more, or does not take these."""
    try:
        return cls(**arguments)
    except (TypeError, sd.ScoreSDEError):
        return None


def calls_a_step(cls: type, model: sd.ScoreModel) -> str:
    solver = made(cls)
    if solver is None:
        return "1"  # a scheme or a recipe of `tune`
    if solver.default_steps == 1:
        return "its own steps"
    counted = []
    for steps in (20, 40):
        with sd.count_evaluations(model) as calls:
            sd.sample(model, 2, solver=solver, steps=steps)
        counted.append(calls.forward)
    rate = (counted[1] - counted[0]) / 20
    if rate < 1:
        return "many at once"
    more = counted[0] - 20 * rate
    return f"{rate:g}" + (f", and {more:g}" if more else "")


def order(cls: type) -> str:
    """Its accuracy, from the least to the largest if it has an argument `order`."""
    found = [made(cls)]
    if "order" in inspect.signature(cls).parameters:
        found += [made(cls, order=k) for k in ORDERS]
    values = sorted({solver.accuracy for solver in found if solver is not None and solver.accuracy is not None})
    if not values:
        return "-"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def noise(cls: type) -> str:
    """What its order is that of; of both if it has a share of noise, `eta`."""
    solver = made(cls)
    if solver is None:
        return "deterministic"
    kinds = {solver.noise: ""}
    if "eta" in inspect.signature(cls).parameters:
        for eta in (0.0, 1.0):
            other = made(cls, eta=eta)
            if other is not None and other.noise not in kinds:
                kinds[other.noise] = f" (eta = {eta:g})"
    return ", ".join(f"{kind}{how}" for kind, how in kinds.items())


@functools.cache
def rows() -> list[dict[str, str]]:
    """One a solver, in the order of the alphabet."""
    model = sd.ExactModel(sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.3, 0.4])), sd.VPSDE())
    found = []
    for name, cls in sorted(faces.own(solvers, sd.Solver).items(), key=lambda item: item[0].lower()):
        solver = made(cls)
        about = " ".join(inspect.getdoc(cls).split("\n\n")[0].split())
        grid = "own" if solver is None or solver.own_grid else "its own steps" if solver.default_steps == 1 else "SDE's"
        row = {"solver": f"`{name}`", "asks": "-" if solver is None else solver.asks, "order": order(cls), "noise": noise(cls)}
        row |= {"calls a step": calls_a_step(cls, model), "grid": grid, "what it is": about.replace("|", "\\|")}
        found.append(row)
    return found


def table(kind: str) -> str:
    columns = ("solver", "asks", "order", "noise", "calls a step", "grid", "what it is")
    if kind == "short":
        columns = ("solver", "order", "noise", "calls a step")
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def renewed(path: str, kind: str) -> str:
    """The text of a page with its table made anew."""
    text = (ROOT / path).read_text()
    pattern = f"({re.escape(BEGIN)}\n).*?({re.escape(END)})"
    new, count = re.subn(pattern, lambda found: f"{found[1]}{table(kind)}\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path}: expected one table between the markers {BEGIN} and {END}, found {count}")
    return new


def main() -> None:
    for path, kind in PAGES.items():
        new = renewed(path, kind)
        if new == (ROOT / path).read_text():
            continue
        if "--check" in sys.argv[1:]:
            raise SystemExit(f"{path}: the table is not what the solvers say: python docs/solver_table.py")
        (ROOT / path).write_text(new)
        print(f"{path} rewritten")


if __name__ == "__main__":
    main()

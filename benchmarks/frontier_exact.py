"""Pathwise error against network calls on exact mixtures: `python benchmarks/frontier_exact.py` (twenty minutes; `--no-tune`: two;
`--quick`: a few numbers, in one, to see whether a change of the code changed any).

Two mixtures (2-D, 16-D) for which the errors of five public libraries are in ``published/exact_mixtures.json``, with the same start
noise and the same definition of the error, and four that nobody tuned anything for (8-D and 32-D, full covariances; exact moments,
and moments fitted from 500 samples, tuned with the latter), where our classic solvers stand for the others. Ours are untuned
(``solver="auto"``) and tuned (``tune``). VP, t = 1 to 1e-3, 1,000 paths, float64; distances to the converged ODE at t = 1e-3.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from _common import table, write
from problems import correlated_mixture

import scoresde as sd

NFE = (5, 8, 10, 15, 20, 35, 50, 100)
TUNED = (5, 8, 10, 15, 20)
PUBLISHED = Path(__file__).parent / "published" / "exact_mixtures.json"
CLASSICS = [sd.DPMSolverPP(2), sd.DPMSolverPP(3), sd.DPMSolverPP(3, singlestep=True), sd.UniPC(2), sd.UniPC(3), sd.DEIS(3)]
CLASSICS += [sd.AdamsBashforth(3, "x0"), sd.AdamsBashforth(3, "v"), sd.Heun(), sd.DDIM()]
GRIDS = {"log_snr": sd.grid.log_snr, "uniform": sd.grid.uniform, "quadratic": sd.grid.quadratic, "karras": sd.grid.karras}


def targets() -> dict[str, tuple[sd.GaussianMixture, dict[str, Any] | None, sd.GaussianReference | None]]:
    """Mixture, published errors (or None) and the reference of ours (None: exact moments), by name."""
    found: dict[str, Any] = {}
    for name, entry in json.loads(PUBLISHED.read_text())["targets"].items():
        m = {key: torch.tensor(value, dtype=torch.float64) for key, value in entry["mixture"].items()}
        found[name] = sd.GaussianMixture(m["means"], m["stds"], m["weights"]), entry, None
    for dim, components, seed in ((8, 6, 21), (32, 5, 22)):
        mixture = correlated_mixture(dim, components, seed)
        found[f"new {dim}-D"] = mixture, None, None
        fitted = sd.GaussianReference.fit(mixture.sample(500, seed=9))
        found[f"new {dim}-D, 500 samples"] = mixture, None, fitted
    return found


def errors(x: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Median and root mean square of the distances."""
    d = (x - exact).norm(dim=1)
    return float(d.median()), float(d.square().mean().sqrt())


def run(model: sd.ScoreModel, solver: Any, n: int, x: torch.Tensor, grid: Any = None) -> tuple[torch.Tensor, int]:
    """Samples and counted calls: n calls, in as many steps as they allow."""
    each = {"Heun": 2}.get(type(solver).__name__, solver.order if getattr(solver, "singlestep", False) else 1)
    how = {"steps": n} if grid is None else {"times": grid(model.sde, max(n // each, 1))}
    with sd.count_evaluations(model) as calls:
        y = sd.sample(model, x_init=x, solver=solver, batch_size=len(x), **how)
    return y, calls.forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tune", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three targets, 5, 10 and 20 calls, nothing tuned")
    parser.add_argument("--only", default="", help="part of a target's name")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (mixture, published, reference) in targets().items():
        if a.only not in name or (a.quick and "32" in name):
            continue
        model = sd.ExactModel(mixture, sd.VPSDE())
        model.reference = reference or model.reference
        dim = mixture.event_shape[0]
        x = torch.randn(1000, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        accurate = sd.TorchDiffEq("dopri8", rtol=1e-11, atol=1e-11)
        exact = sd.sample(model, x_init=x, times=[1.0, 1e-3], solver=accurate, batch_size=250)
        for n in (5, 10, 20) if a.quick else NFE:
            found = []
            for solver in CLASSICS:
                for label, grid in GRIDS.items():
                    try:
                        y, calls = run(model, solver, n, x, grid)
                    except sd.ScoreSDEError:  # not finite: no rival
                        continue
                    if calls <= n:
                        found.append((*errors(y, exact), f"{solver!r} {label}"))
            classic, classic_rms = min(found), min(f[1] for f in found)
            rival, rival_rms = classic[0], classic_rms
            if published is not None:
                rival, rival_rms = (published[f"best_{kind}"][str(n)]["error"] for kind in ("median", "rms"))
            y, calls = run(model, "auto", n, x)
            median, rms = errors(y, exact)
            row = {"target": name, "nfe": calls, "best_rival": rival, "our_classic": classic[0], "which": classic[2]}
            row |= {"auto": median, "auto_ratio": median / rival, "auto_rms_ratio": rms / rival_rms}
            row |= {"tuned": float("nan"), "tuned_ratio": float("nan"), "tuned_rms_ratio": float("nan"), "tune_seconds": float("nan")}
            if n in TUNED and not (a.no_tune or a.quick) and (published is not None or reference is not None):
                start = time.perf_counter()
                recipe = sd.tune(model, n, progress=False)
                model.recipes.clear()  # auto stays untuned
                row["tune_seconds"] = time.perf_counter() - start
                y, calls = run(model, recipe, n, x)
                if calls != n:
                    raise SystemExit(f"{calls} calls counted for a recipe of {n}")
                median, rms = errors(y, exact)
                row |= {"tuned": median, "tuned_ratio": median / rival, "tuned_rms_ratio": rms / rival_rms}
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
        if not a.only and not a.no_tune:
            write("frontier_exact_quick" if a.quick else "frontier_exact", rows, published=PUBLISHED.name)
    print(table(rows))


if __name__ == "__main__":
    main()

"""log p in 12 to 40 network calls: `python benchmarks/likelihood_fast.py [--run RUN]` (four minutes on one thread; more with a run).

Exact part: correlated mixtures in 2, 16, 24 and 64 dimensions, six SDEs, exact trace, reference prior: error of log p at t_min
against the exact one, in bits per dimension, mean absolute error a point and signed mean.

Trained part (--run: a run of `scoresde train --data digits`, or --data fashion-mnist): --images test images, one fixed Hutchinson probe
each, against the same by dopri5 at 1e-6 (kept in --cache); network calls and seconds of `ReferenceSolver` and of dopri5 in one run.

Variances: the standard deviation over seeds of log p of one point, in bits per dimension, by trace estimator and number of
vector-Jacobian products an evaluation; with and without the reference's control variate.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import table, write
from problems import SDES, correlated_mixture, marginal_sample, name

import scoresde as sd
from scoresde.likelihood import traces
from scoresde.likelihood.dequantize import resolve

CALLS = (8, 12, 16, 20, 24, 40)
POINTS = {2: 256, 16: 96, 24: 48, 64: 16}


def exact_rows() -> list[dict[str, Any]]:
    rows = []
    for D, points in POINTS.items():
        target = correlated_mixture(D)
        for sde in SDES:
            model = sd.ExactModel(target, sde)
            x = marginal_sample(target, sde, sde.t_min, points)
            exact = model.log_prob(x, sde.t_min)
            for calls in CALLS:
                r = sd.log_prob(model, x, steps=calls, divergence="exact", prior="reference", batch_size=points)
                e = (r.log_prob - exact) / (D * math.log(2))
                row = {"target": f"{D}-D", "sde": name(sde), "calls": r.nfe, "mean_abs_error": float(e.abs().mean())}
                rows.append(row | {"mean_error": float(e.mean())})
        print(table(rows[-len(CALLS) * len(SDES) :]), flush=True)
    return rows


def trained_rows(run: str, name: str, cache: str, images: int, repeats: int) -> list[dict[str, Any]]:
    data, model = sd.data.load(name), sd.load(run)
    if model.reference is None:
        model.reference = sd.GaussianReference.fit(data)
    x, log_q = resolve(None, model, data.transform).draw(data.test[:images], model, 0, np.arange(images), 0)
    how: dict[str, Any] = {"batch_size": min(images, 64), "prior": "reference"}
    bits = lambda r: (log_q - r.log_prob).cpu() / (x[0].numel() * math.log(2))
    if not Path(cache).exists():
        torch.save(bits(sd.log_prob(model, x, solver=sd.TorchDiffEq(rtol=1e-6, atol=1e-6), **how)), cache)
    converged = torch.load(cache, weights_only=True)
    print(f"converged: {float(converged.mean()):.5f} bits/dim")
    rows = []
    methods: list[tuple[str, dict[str, Any]]] = [(f"ReferenceSolver {n}", {"steps": n}) for n in CALLS]
    methods += [(f"dopri5 {tol:g}", {"solver": sd.TorchDiffEq(rtol=tol, atol=tol)}) for tol in (1e-3, 1e-4, 1e-5)]
    for label, arguments in methods:
        seconds = []
        for _ in range(1 if "solver" in arguments else repeats):
            start = time.perf_counter()
            r = sd.log_prob(model, x, **how, **arguments)
            seconds.append(time.perf_counter() - start)
        e = bits(r) - converged
        row = {"method": label, "calls": r.nfe, "seconds": min(seconds), "mean_abs_error": float(e.abs().mean())}
        rows.append(row | {"mean_error": float(e.mean()), "bits_per_dim": float(bits(r).mean())})
    print(table(rows), flush=True)
    return rows


def spread(model: sd.ScoreModel, x: torch.Tensor, seeds: int, **how: Any) -> float:
    """Root mean square over the points of the standard deviation over seeds."""
    runs = torch.stack([sd.log_prob(model, x, seed=seed, batch_size=len(x), **how).log_prob for seed in range(seeds)])
    return float(runs.var(0).mean().sqrt()) / (x[0].numel() * math.log(2))


def variance_rows(run: str | None) -> list[dict[str, Any]]:
    cases: dict[str, tuple[sd.ScoreModel, torch.Tensor, dict[str, Any], int]] = {}
    for D in (16, 24, 64):
        target = correlated_mixture(D)
        model: sd.ScoreModel = sd.ExactModel(target, sd.VPSDE())
        cases[f"{D}-D"] = model, target.sample(32), {"steps": 12}, 12
    if run:
        digits, model = sd.data.digits(), sd.load(run)
        model.reference = model.reference or sd.GaussianReference.fit(digits)
        cases["digits"] = model, digits.transform.dequantize(digits.test[:32], dtype=model.dtype, device=model.device), {"steps": 12}, 6
    rows = []
    for label, (model, x, how, seeds) in cases.items():
        for kind, probes in (("hutchinson", 1), ("reference", 1), ("gaussian", 1), ("hutchinson", 6), ("reference", 6), ("hutch++", 6)):
            std = spread(model, x, seeds, divergence=kind, probes=probes, **how)
            row: dict[str, Any] = {"target": label, "divergence": kind, "vjps": probes, "std": std}
            if probes == 1 and kind == "hutchinson":
                share, traces.CONTROL["hutchinson"] = traces.CONTROL["hutchinson"], 0.0
                row["std_without_control"] = spread(model, x, seeds, divergence=kind, **how)
                traces.CONTROL["hutchinson"] = share
            rows.append(row)
        print(table([{**row, "std_without_control": row.get("std_without_control", "")} for row in rows[-6:]]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="of `scoresde train --data DATA`")
    parser.add_argument("--data", default="digits", help="of the run")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--cache", default="converged.pt", help="file for the converged values")
    parser.add_argument("--only-trained", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = [] if a.only_trained else exact_rows()
    variances = [] if a.only_trained else variance_rows(a.run)
    if a.run:
        rows += trained_rows(a.run, a.data, a.cache, a.images, a.repeats)
    if not a.only_trained:
        worst = {n: max(r["mean_abs_error"] for r in rows if r.get("target") and r["calls"] == n) for n in CALLS}
        print("largest mean absolute error, bits/dim, by calls:", {n: round(e, 5) for n, e in worst.items()})
    trained = ("_trained" if a.data == "digits" else f"_{a.data}") if a.only_trained else ""
    write(f"likelihood_fast{trained}", rows, points=POINTS, variances=variances, images=a.images)


if __name__ == "__main__":
    main()

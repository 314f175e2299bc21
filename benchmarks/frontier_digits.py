"""The trained digits model: `python benchmarks/frontier_digits.py --run runs/digits` (an hour with training, half of it without).

1. Pathwise: 128 unseen paths, the distance at t_end = 1e-3 to the model's own converged ODE (dopri5 at 1e-6). The classic solvers
   (DPM-Solver++ 2M and 3M, UniPC 2 and 3) on log-SNR, uniform, quadratic and Karras grids; ``solver="auto"``, untuned; ``tune``.
2. Quality: the frontier of 1,000 samples against the 297 test images, with features of a small classifier trained here. Writes the
   table, the rows and the README's picture.

The run is trained if it is not there: ``scoresde train --data digits --steps 2500 --threads 1``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _common import RESULTS, table, write

import scoresde as sd
from scoresde.cli import main as scoresde

NFE = (5, 8, 10, 15, 20)
CLASSICS = (sd.DPMSolverPP(2), sd.DPMSolverPP(3), sd.UniPC(2), sd.UniPC(3))
GRIDS = {"log_snr": sd.grid.log_snr, "uniform": sd.grid.uniform, "quadratic": sd.grid.quadratic, "karras": sd.grid.karras}


def pathwise(model: sd.ScoreModel, paths: int) -> list[dict]:
    """Median and rms distances to the converged ODE."""
    x = torch.randn(paths, *model.event_shape, generator=torch.Generator().manual_seed(1)) * model.sde.prior_std
    exact = sd.sample(model, x_init=x, solver=sd.TorchDiffEq("dopri5", rtol=1e-6, atol=1e-6), batch_size=paths)

    def error(solver, n, grid=None):
        how = {"steps": n} if grid is None else {"times": grid(model.sde, n)}
        with sd.count_evaluations(model) as calls:
            y = sd.sample(model, x_init=x, solver=solver, batch_size=paths, **how)
        if calls.forward != n:
            raise SystemExit(f"{calls.forward} calls for {n}")
        d = (y - exact).flatten(1).norm(dim=1)
        return float(d.median()), float(d.square().mean().sqrt())

    rows = []
    for n in NFE:
        found = {(type(s).__name__, s.order, name): error(s, n, grid) for s in CLASSICS for name, grid in GRIDS.items()}
        best = min(found, key=lambda key: found[key][0])
        common, rival = found["DPMSolverPP", 2, "log_snr"][0], found[best][0]
        auto = error(sd.ReferenceSolver(), n)
        start = time.perf_counter()
        recipe = sd.tune(model, n, progress=False)
        seconds = time.perf_counter() - start
        tuned = error(recipe, n)
        row = {"nfe": n, "best_classic": rival, "which": " ".join(map(str, best)), "dpmpp_2m_log_snr": common}
        row |= {"auto": auto[0], "auto_ratio": auto[0] / rival, "tuned": tuned[0], "tuned_ratio": tuned[0] / rival}
        row |= {"tuned_over_2m": tuned[0] / common, "best_classic_rms": min(e[1] for e in found.values())}
        row |= {"auto_rms": auto[1], "tuned_rms": tuned[1], "tune_seconds": seconds}
        rows.append(row)
        print(table([row]), flush=True)
    return rows


def quality(model: sd.ScoreModel, digits: sd.data.Data, samples: int) -> None:
    """The frontier, its table and picture. ``auto`` is tuned here, for it has the recipes of ``pathwise``."""
    features = sd.features.fit_features(digits, seed=0, progress=False)
    solvers = {
        "auto, tuned": "auto",
        "ReferenceSolver (auto, untuned)": sd.ReferenceSolver(),
        "UniPC 3, log-SNR": sd.UniPC(3),
        "DPM-Solver++ 2M, log-SNR": sd.DPMSolverPP(2),
        "DDIM": sd.DDIM(),
        "Heun, Karras": (sd.Heun(), sd.grid.karras),
        "StochasticExponential": sd.StochasticExponential(),
        "Euler-Maruyama": sd.EulerMaruyama(),
    }
    result = sd.frontier(
        model,
        digits.test,
        solvers=solvers,
        nfe=(5, 8, 10, 15, 20, 35, 50),
        samples=samples,
        paths=128,
        pool=digits.train,
        features=features,
        seed=3,
        progress=True,
    )
    folder = RESULTS / "frontier_digits"
    folder.mkdir(exist_ok=True)
    result.to_json(folder / "frontier.json")
    result.to_csv(folder / "frontier.csv")
    (folder / "frontier.txt").write_text(result.table() + "\n")
    result.plot(folder / "frontier.png")
    print(result.table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/digits")
    parser.add_argument("--paths", type=int, default=128)
    parser.add_argument("--samples", type=int, default=700)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if not Path(a.run).exists():
        code = scoresde(["train", "--data", "digits", "--steps", "2500", "--threads", "1", "--out", a.run])
        if code:
            raise SystemExit(code)
    model, digits = sd.load(a.run), sd.data.digits()
    model.recipes.clear()
    if model.reference is None:  # a run from before references were saved with it
        model.reference = sd.GaussianReference.fit(digits)
    rows = pathwise(model, a.paths)
    print(table(rows))
    write("frontier_digits", rows, run=a.run, paths=a.paths)
    quality(model, digits, a.samples)


if __name__ == "__main__":
    main()

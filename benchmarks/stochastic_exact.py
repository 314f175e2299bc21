"""Stochastic solvers on the exact 16-D mixture: `python benchmarks/stochastic_exact.py` (ten minutes, one thread).

Sliced Wasserstein-2 distance (128 projections) of 20,000 samples to exact ones, and the error of the mean log p in nats, at t = 1e-3
under VP, beside what another exact set gets (mean and standard deviation over eight sets). The mixture is that of
``published/exact_mixtures.json``.
"""

from __future__ import annotations

import json

import torch
from _common import table, write
from frontier_exact import PUBLISHED

import scoresde as sd

NFE = (10, 20, 35, 50)
N = 20_000
SOLVERS = [sd.StochasticExponential(), sd.SASolver(), sd.DPMSolverPP(2, eta=1.0), sd.DPMSolverPP(3, eta=1.0), sd.EulerMaruyama()]
SOLVERS += [sd.Ancestral(), sd.EDMStochastic()]


def row_of(solver: str, nfe: int, found: torch.Tensor) -> dict:
    """Mean and standard deviation over seeds of (sliced Wasserstein, log p error), (seeds, 2)."""
    (w, log_p), (w_std, log_p_std) = found.mean(0).tolist(), found.std(0).tolist()
    row = {"solver": solver, "nfe": nfe, "sliced_wasserstein": w, "log_p_error": log_p}
    return {**row, "sliced_wasserstein_std": w_std, "log_p_error_std": log_p_std}


def main() -> None:
    torch.set_num_threads(1)
    m = json.loads(PUBLISHED.read_text())["targets"]["mixture16"]["mixture"]
    means, stds, weights = (torch.tensor(m[key], dtype=torch.float64) for key in ("means", "stds", "weights"))
    target = sd.GaussianMixture(means, stds, weights)
    model = sd.ExactModel(target, sd.VPSDE())
    end = 1e-3
    level = model.sde.levels([end])[0]

    def exact(seed: int) -> torch.Tensor:
        eps = torch.randn(N, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return level.alpha * target.sample(N, seed=seed) + level.sigma * eps

    reference = exact(1)
    mean_log_p = float(torch.stack([model.log_prob(exact(seed), end).mean() for seed in range(2, 10)]).mean())

    def figures(x: torch.Tensor) -> tuple[float, float]:
        return sd.metrics.sliced_wasserstein(x, reference, 128, seed=0), float(model.log_prob(x, end).mean()) - mean_log_p

    floor = torch.tensor([figures(exact(seed)) for seed in range(2, 10)])
    rows = [row_of("exact samples", 0, floor)]
    for solver in SOLVERS:
        for n in NFE:
            found = []
            for seed in (0, 1):
                with sd.count_evaluations(model) as calls:
                    steps = n // 2 if isinstance(solver, sd.EDMStochastic) else n
                    x = sd.sample(model, N, solver=solver, steps=steps, seed=seed, batch_size=N)
                found.append(figures(x))
            rows.append(row_of(repr(solver), calls.forward, torch.tensor(found)))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    write("stochastic_exact", rows, samples=N, projections=128, published=PUBLISHED.name)


if __name__ == "__main__":
    main()

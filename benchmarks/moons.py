"""Two moons with an MLP: `python benchmarks/moons.py` (about three minutes on one thread).

Trains on 10,000 points of a density that is known exactly; reports the mean log-likelihood of 10,000 test points under the model
and under the exact density, and the sliced Wasserstein distance of 10,000 samples to the test points beside its noise floor.
"""

from __future__ import annotations

import time

import torch
from _common import table, write

import scoresde as sd

N = 10_000


def main() -> None:
    torch.set_num_threads(1)
    data = sd.data.toy("moons", N)
    model = sd.NetworkModel(sd.nets.MLP(2, width=128, depth=4), sd.VPSDE(), (2,), parameterization="v")
    start = time.perf_counter()
    sd.fit(model, data, steps=3000, batch_size=1024, lr=1e-3, seed=0, progress=False)
    seconds = time.perf_counter() - start
    solver = sd.TorchDiffEq(rtol=1e-5, atol=1e-5)
    r = sd.log_prob(model, data.test, divergence="exact", solver=solver, batch_size=1000)
    exact = data.target.log_prob(data.test).double()
    gap = exact - r.log_prob
    # the floor: distances between exact samples of the same sizes
    floors = [sd.metrics.sliced_wasserstein(data.target.sample(N, seed=100 + i), data.test) for i in range(10)]
    floor = sum(floors) / len(floors)
    rows = []
    for solver, steps in ((sd.Heun(), 50), (sd.DDIM(), 100), (sd.EulerMaruyama(), 500), (sd.TorchDiffEq(), None)):
        with sd.count_evaluations(model) as calls:
            x = sd.sample(model, N, solver=solver, steps=steps, batch_size=N)
        distance = sd.metrics.sliced_wasserstein(x, data.test)
        rows.append({"solver": repr(solver), "nfe": calls.forward, "sliced_wasserstein": distance, "over_floor": distance / floor})
    print(table(rows))
    summary = {
        "train_seconds": seconds,
        "mean_log_prob_model": float(r.log_prob.mean()),
        "mean_log_prob_exact": float(exact.mean()),
        "gap_nats": float(gap.mean()),
        "gap_std_error": float(gap.std() / N**0.5),
        "noise_floor": floor,
        "noise_floor_max": max(floors),
    }
    print(summary)
    write("moons", rows, **summary)


if __name__ == "__main__":
    main()

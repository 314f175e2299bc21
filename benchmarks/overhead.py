"""Time of the sampling loop per model call: `python benchmarks/overhead.py` (half a minute, one thread).

A batch of 16 x 1 x 28 x 28 and a network that is one multiplication. The best of several repeats, in microseconds on this machine,
next to one torch.randn of that shape in the same run: read them as ratios.
"""

from __future__ import annotations

import time

import torch
from _common import table, write

import scoresde as sd

REPEATS = 9


class Trivial(torch.nn.Module):
    """One multiplication: what is left is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return x * self.w


def best(function, calls: int) -> float:
    """Microseconds per call, the best of some repeats."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        found.append((time.perf_counter() - start) / calls * 1e6)
    return min(found)


def main() -> None:
    torch.set_num_threads(1)
    net = Trivial()
    model = sd.NetworkModel(net, sd.VPSDE(), (1, 28, 28), "eps")
    x, c = torch.randn(16, 1, 28, 28), torch.zeros(16)

    def alone() -> None:
        with torch.no_grad():
            for _ in range(1000):
                net(x, c)

    def randn() -> None:
        for _ in range(1000):
            torch.randn(16, 1, 28, 28)

    network, normal = best(alone, 1000), best(randn, 1000)
    solvers = [
        (sd.Euler(), 500),
        (sd.Heun(), 250),
        (sd.RK4(), 125),
        (sd.DDIM(), 500),
        (sd.EulerMaruyama(), 500),
        (sd.Ancestral(), 500),
        (sd.ReverseDiffusion(), 500),
        (sd.DDIM(eta=1.0), 500),
        (sd.PredictorCorrector(), 250),
        (sd.DPMSolverPP(2), 500),
        (sd.DPMSolverPP(3), 500),
        (sd.UniPC(3), 500),
        (sd.DEIS(3), 500),
        (sd.AdamsBashforth(3), 500),
        (sd.ReferenceSolver(order=3), 500),
        (sd.StochasticExponential(), 500),
        (sd.SASolver(), 500),
        (sd.DPMSolverPP(2, eta=1.0), 500),
    ]
    rows = []
    # a diagonal reference, as for images of more pixels than there are samples
    model.reference = sd.GaussianReference.fit(torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)), "diagonal")
    for solver, steps in solvers:
        with sd.count_evaluations(model) as calls:
            sd.sample(model, 16, solver=solver, steps=steps)
        us = best(lambda s=solver, n=steps: sd.sample(model, 16, solver=s, steps=n), calls.forward)
        rows.append({"solver": repr(solver), "calls": calls.forward, "us_per_call": us, "over_randn": us / normal})
    print(f"the network alone {network:.1f} us, one randn {normal:.1f} us")
    print(table(rows))
    write("overhead", rows, network_us=network, randn_us=normal, batch=[16, 1, 28, 28])


if __name__ == "__main__":
    main()

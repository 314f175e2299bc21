"""log p against exact densities: `python benchmarks/likelihood_exact.py` (about five minutes on one thread; --only-far: three).

Correlated mixtures in 2, 16 and 64 dimensions and one on images, six SDEs, exact trace, dopri5 at 1e-8: the largest error over the
points, in nats per dimension, with the exact log p at t_max as prior, and the mismatch that N(0, prior_std^2 I) adds.

Far from the data (likelihood_far.json): two moons on a grid over [-3, 3]^2, and ten modes in eight dimensions, of std 0.3 at points
ten units away and of std 0.03 on the data: the largest and the mean error of log p in nats, by the default and by given steps; the
largest ratio of an error above 0.001 to what the budget says it is (`check`, of every point), and network calls.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from _common import table, write
from problems import SDES, correlated_mixture, image_mixture, marginal_sample, name

import scoresde as sd

POINTS = 32


def eight(std: float) -> sd.GaussianMixture:
    """Ten modes in eight dimensions."""
    means = torch.randn(10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sd.GaussianMixture(means, torch.full((10,), std, dtype=torch.float64))


def far() -> None:
    side, u = torch.linspace(-3, 3, 31).double(), torch.randn(64, 8, generator=torch.Generator().manual_seed(2)).double()
    cases = {
        "moons, grid": (copy.deepcopy(sd.data.toy("moons", 20).target).double(), torch.cartesian_prod(side, side)),
        "8-D, std 0.3, 10 away": (eight(0.3), 10 * u / u.norm(dim=1, keepdim=True)),
        "8-D, std 0.03, on the data": (eight(0.03), eight(0.03).sample(64)),
    }
    methods: dict[str, dict[str, Any]] = {"default": {}, "40 steps": {"steps": 40}, "160 steps": {"steps": 160}}
    methods |= {"Heun, 40 steps": {"solver": sd.Heun(), "steps": 40}, "dopri5 1e-5": {"solver": sd.TorchDiffEq()}}
    rows = []
    for label, (target, x) in cases.items():
        for sde in SDES:
            model = sd.ExactModel(target, sde)
            exact = model.log_prob(x, sde.t_min)
            for method, how in methods.items():
                r = sd.log_prob(model, x, prior=lambda z, m=model: m.log_prob(z, m.sde.t_max), check=len(x), **how)
                error, found = (r.log_prob - exact).abs(), r.discretization.abs()
                large = error > 1e-3
                ratio = float((error / found)[large].max()) if bool(large.any()) else 0.0
                row = {"target": label, "sde": name(sde), "method": method, "calls": r.nfe, "check_calls": r.check_nfe}
                row |= {"max_error": float(error.max()), "mean_error": float(error.mean()), "median_error": float(error.median())}
                rows.append(row | {"largest_error_over_reported": ratio})
        print(table(rows[-len(SDES) * len(methods) :]), flush=True)
    print(f"default: {max(r['max_error'] for r in rows if r['method'] == 'default'):.2g} nats at most")
    print(f"an error is at most {max(r['largest_error_over_reported'] for r in rows):.2f} times what is reported")
    write("likelihood_far", rows, points={label: len(x) for label, (_, x) in cases.items()})


def main() -> None:
    torch.set_num_threads(1)
    far()
    if "--only-far" in sys.argv:
        return
    solver = sd.TorchDiffEq(rtol=1e-8, atol=1e-8)
    rows = []
    targets = {f"{d}-D": correlated_mixture(d) for d in (2, 16, 64)} | {"2x3x3 image": image_mixture()}
    for target_name, target in targets.items():
        for sde in SDES:
            model = sd.ExactModel(target, sde)
            x = marginal_sample(target, sde, sde.t_min, POINTS)
            D = x[0].numel()
            r = sd.log_prob(model, x, solver=solver, divergence="exact", prior=lambda z, m=model: m.log_prob(z, m.sde.t_max))
            error = (r.log_prob - model.log_prob(x, sde.t_min)).abs() / D
            mismatch = (sde.prior_log_prob(r.latent) - r.prior).abs() / D
            rows.append(
                {
                    "target": target_name,
                    "sde": name(sde),
                    "max_error_nats_per_dim": float(error.max()),
                    "mean_prior_mismatch_nats_per_dim": float(mismatch.mean()),
                    "nfe": r.nfe,
                    "vjp": r.vjp,
                }
            )
    print(table(rows))
    print(f"largest error: {max(row['max_error_nats_per_dim'] for row in rows):.2g} nats per dimension")
    write("likelihood_exact", rows, points=POINTS, solver=repr(solver))


if __name__ == "__main__":
    main()

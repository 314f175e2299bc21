"""log p against exact densities: `python benchmarks/likelihood_exact.py` (about two minutes on one thread).

Correlated mixtures in 2, 16 and 64 dimensions and one on images, six SDEs, exact trace, dopri5 at 1e-8: the largest error over the
points, in nats per dimension, with the exact log p at t_max as prior, and the mismatch that N(0, prior_std^2 I) adds.
"""

from __future__ import annotations

import torch
from _common import table, write
from problems import SDES, correlated_mixture, image_mixture, marginal_sample, name

import scoresde as sd

POINTS = 32


def main() -> None:
    torch.set_num_threads(1)
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

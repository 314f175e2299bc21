"""Measured orders of convergence on exact models: `python benchmarks/orders.py` (about three minutes on one thread).

Median pathwise error of 64 paths against the exact path (one Gaussian) or an eighth-order method at 1e-12 (two modes), float64,
on uniform t (EDM: Karras), for 160, 320 and 640 steps; VE's first-order methods up to 5120. The slope is that of the last doubling.
"""

from __future__ import annotations

import torch
from _common import table, write
from problems import SDES, gaussian, gaussian_path, marginal_sample, name, reference_path, slope, two_modes

import scoresde as sd

PATHS = 64


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for target_name, target in (("gaussian", gaussian()), ("two_modes", two_modes())):
        for sde in SDES:
            model = sd.ExactModel(target, sde)
            grid = sd.grid.karras if isinstance(sde, sd.EDMSDE) else sd.grid.uniform
            x = marginal_sample(target, sde, sde.t_max, PATHS)
            times = grid(sde, 1)
            one = target_name == "gaussian"
            exact = gaussian_path(target, sde, x, *times.tolist()) if one else reference_path(model, x, times)
            for solver, order in ((sd.Euler(), 1), (sd.DDIM(), 1), (sd.Heun(), 2), (sd.RK4(), 4)):
                steps = [160, 320, 640]
                if isinstance(sde, sd.VESDE) and order == 1:
                    steps = [1280, 2560, 5120]
                errors = []
                for n in steps:
                    y = sd.sample(model, x_init=x, times=grid(sde, n), solver=solver, batch_size=PATHS)
                    errors.append(float((y - exact).norm(dim=1).median()))
                rows.append(
                    {
                        "target": target_name,
                        "sde": name(sde),
                        "solver": type(solver).__name__,
                        "order": order,
                        "slope": slope(steps, errors),
                        "steps": steps,
                        "errors": errors,
                    }
                )
    print(table([{k: v for k, v in row.items() if k not in ("steps", "errors")} for row in rows]))
    worst = max(abs(row["slope"] - row["order"]) for row in rows)
    print(f"largest deviation from the order: {worst:.3f}")
    write("orders", rows, paths=PATHS, largest_deviation=worst)


if __name__ == "__main__":
    main()

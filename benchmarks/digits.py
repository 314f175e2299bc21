"""Bits per dimension of the digits: `python benchmarks/digits.py --runs runs` (an hour and a half; runs that exist are used).

For VP with seeds 0, 1, 2 and for sub-VP and VE with seed 0: `scoresde train --data digits --minutes 10` and then the 297 test images,
five dequantizations, one Hutchinson probe, by the probability-flow ODE. Uniform levels cost log2 17 = 4.087 bits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from _common import table, write

import scoresde as sd
from scoresde.cli import main as scoresde

RUNS = (("VPSDE", 0), ("VPSDE", 1), ("VPSDE", 2), ("SubVPSDE", 0), ("VESDE", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs", help="folder for the runs")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rtol", type=float, default=1e-4, help="of dopri5")
    parser.add_argument("--train", default="", help="more arguments for `scoresde train`, as one string")
    parser.add_argument("--only", default="", help="SDE-seed to train, without measuring")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows = []
    digits = sd.data.digits()
    for name, seed in RUNS:
        run = Path(a.runs) / f"digits-{name}-{seed}"
        if a.only and a.only != f"{name}-{seed}":
            continue
        if not run.exists():
            arguments = ["train", "--data", "digits", "--minutes", str(a.minutes), "--sde", name, "--seed", str(seed)]
            code = scoresde([*arguments, "--out", str(run), *a.train.split()])
            if code:
                raise SystemExit(code)
        if a.only:
            continue
        model = sd.load(run)
        solver = sd.TorchDiffEq(rtol=a.rtol, atol=a.rtol)
        b = sd.bits_per_dim(
            model, digits.test, digits.transform, dequantizations=5, solver=solver, batch_size=297, seed=seed, progress=True
        )
        last = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        rows.append(
            {
                "sde": name,
                "seed": seed,
                "bits_per_dim": b.mean,
                "std_error_over_data": b.std_error,
                "std_over_dequantizations": b.dequantization_std,
                "steps": last[-1]["step"],
                "train_seconds": last[-1]["seconds"],
                "nfe_per_dequantization": b.nfe / 5,  # draws
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
        print(table(rows), flush=True)
    if rows:
        vp = [row["bits_per_dim"] for row in rows if row["sde"] == "VPSDE"]
        print(f"VP, mean of {len(vp)} seeds: {sum(vp) / len(vp):.4f} bits/dim")
        write("digits", rows, vp_mean=sum(vp) / len(vp), train=a.train, rtol=a.rtol, minutes=a.minutes)


if __name__ == "__main__":
    main()

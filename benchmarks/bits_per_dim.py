"""Bits per dimension of trained models, the best recipe and what each part of it is worth.

    python benchmarks/bits_per_dim.py --data digits --runs runs           # three seeds of the best, and the ablation
    python benchmarks/bits_per_dim.py --data fashion-mnist --runs runs    # the best, and plain eps-prediction

trains each recipe (a run that exists is used; --list prints the commands, to run some of them at once elsewhere) and measures it on test
images: by the probability-flow ODE (``bits_per_dim`` with its error budget; what the time steps err is measured) and by the variational
bound (``elbo``), side by side. Models of uniformly dequantized digits are also measured with a dequantizer that is fitted to the model on
training images, and one of them with importance-weighted draws on 16 images.
Learning curves, the validation losses of the runs, are in the results too.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from _common import table, write

import scoresde as sd
from scoresde.cli import main as scoresde

Options = dict[str, str]
# what the recipes of a data set share, the best one, and by name what else is trained
COMMON = {
    "digits": "--data digits",
    "fashion-mnist": "--data fashion-mnist --batch_size 64 --net.multipliers [1,2,4] --net.blocks 1 --net.frequencies [64,128]",
}
NORMAL = {"--times": "fitted", "--dequantization": "normal"}
WAVES = {"--net.frequencies": "[8.5]"}  # a wave a level of 17; fashion-mnist has its own in all recipes
BEST: dict[str, Options] = {"digits": {**NORMAL, **WAVES}, "fashion-mnist": NORMAL}
PLAIN = {"--parameterization": "eps", "--weighting": "simple", "--times": "uniform"}
OTHERS: dict[str, dict[str, Options]] = {
    "digits": {
        "log-SNR uniform": {**BEST["digits"], "--times": "importance"},
        "t uniform": {**BEST["digits"], "--times": "uniform"},
        "simple weighting": {**BEST["digits"], "--weighting": "simple", "--times": "uniform"},
        "uniform dequantization": {"--times": "fitted", **WAVES},
        "no Fourier features": NORMAL,
        "neither": {"--times": "fitted"},
        "shifted by a pixel": {**BEST["digits"], "--augment": "shift"},
        "plain": PLAIN,
    },
    "fashion-mnist": {"plain": PLAIN},
}
STEPS = {"digits": (1500, 300), "fashion-mnist": (5500, 5500)}  # of the best recipe, and of the comparison
SEEDS = {"digits": (0, 1, 2), "fashion-mnist": (0,)}


def recipes(data: str) -> dict[str, tuple[int, str]]:
    """By name: the seed, and the arguments of `scoresde train`."""
    long, short = STEPS[data]
    found = {f"best, seed {seed}": (seed, long, BEST[data]) for seed in SEEDS[data]}
    if short != long:
        found["the recipe, shorter"] = (0, short, BEST[data])
    found |= {name: (0, short, options) for name, options in OTHERS[data].items()}
    return {
        name: (seed, f"{COMMON[data]} {' '.join(f'{k} {v}' for k, v in options.items())} --steps {steps} --seed {seed}")
        for name, (seed, steps, options) in found.items()
    }


def folder(runs: str, data: str, name: str) -> Path:
    return Path(runs) / f"{data}-{name.replace(',', '').replace(' ', '-')}"


def measure(name: str, run: Path, data: sd.data.Data, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """One row: the ODE with its budget, the bound, and where they make sense other dequantizations."""
    model = sd.load(run)
    x = data.test[: a.images]
    normal = model.transform.dequantization == "normal"
    how: dict[str, Any] = {"prior": "reference", "seed": seed, "steps": a.steps}
    start = time.perf_counter()
    check = {"check": a.check, "check_steps": a.check_steps}
    b = sd.bits_per_dim(model, x, data.transform, dequantizations=a.draws, progress=True, **check, **how)
    seconds = time.perf_counter() - start
    e = sd.elbo(
        model,
        x,
        data.transform,
        draws=a.times,
        prior="reference",
        reconstruction="levels" if normal else "density",
        seed=seed,
        progress=True,
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    row = {
        "recipe": name,
        "seed": seed,
        "ode": b.mean,
        "bound": e.mean,
        "std_error": b.std_error,
        "gap": e.mean - b.mean,
        "gap_std_error": spread(e.per_sample - b.per_sample),
        "time_steps": b.report().term("time steps"),
        "corrected": b.corrected,
        "corrected_std_error": b.corrected_std_error,
        "budget": {term.name.strip(): term.value for term in b.terms},
        "bound_std_error": e.std_error,
        "dequantization": b.settings["dequantization"],
        "images": len(x),
        "nfe_per_image": how["steps"] * a.draws,
        "seconds": seconds,
        "train_steps": log[-1]["step"],
        "train_seconds": log[-1]["seconds"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": [(line["step"], line["validation"]) for line in log if "validation" in line],
    }
    if not normal and name != "plain":
        q = sd.fit_dequantizer(model, data, steps=a.fit_steps, batch_size=64, lr=5e-3, seed=seed)
        f = sd.bits_per_dim(model, x, dequantization=q, dequantizations=a.draws, progress=True, **how)
        gain = f.per_sample - b.per_sample
        row |= {"fitted": f.mean, "fitted_std_error": f.std_error, "fitted_gain": float(gain.mean()), "fitted_gain_std_error": spread(gain)}
        if name == "neither":
            few: dict[str, Any] = {**how, "steps": 12, "divergence": "exact", "check": 0}
            one, many = (sd.bits_per_dim(model, x[:16], data.transform, dequantizations=k, importance_weighted=True, **few) for k in (1, 4))
            gain = many.per_sample - one.per_sample
            row |= {"importance_gain_4_draws": float(gain.mean()), "importance_gain_std_error": spread(gain)}
    return row


def spread(x: torch.Tensor) -> float:
    """Standard error of a mean."""
    return float(x.std() / math.sqrt(len(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(COMMON), default="digits")
    parser.add_argument("--runs", default="runs", help="folder for the runs")
    parser.add_argument("--list", action="store_true", help="print the training commands and stop")
    parser.add_argument("--only", help="train one recipe and stop")
    parser.add_argument("--images", type=int, default=None, help="test images (all)")
    parser.add_argument("--steps", type=int, default=40, help="network calls of the ODE")
    parser.add_argument("--check", type=int, default=16, help="images on which the error of the time steps is measured")
    parser.add_argument("--check-steps", type=int, default=120, help="network calls to measure it with")
    parser.add_argument("--fit-steps", type=int, default=300, help="of the fitted dequantizer")
    parser.add_argument("--draws", type=int, default=1, help="dequantizations")
    parser.add_argument("--times", type=int, default=64, help="times and noises an image of the bound")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rows = []
    data = None if a.list else sd.data.load(a.data)
    for name, (seed, options) in recipes(a.data).items():
        run = folder(a.runs, a.data, name)
        command = f"train {options} --out {run} --threads {a.threads} --checkpoint_every 500 --validate_every 100"
        if a.list:
            print(f"scoresde {command}")
            continue
        if a.only and a.only != name:
            continue
        if not run.exists() and scoresde(shlex.split(command)):
            raise SystemExit(f"{name}: training failed")
        if not a.only:
            rows.append(measure(name, run, data, seed, a))
            print(table([dict(list(row.items())[:8]) for row in rows]), flush=True)
    if rows:
        write(f"bits_per_dim_{a.data}", rows, recipes={name: options for name, (_, options) in recipes(a.data).items()})


if __name__ == "__main__":
    main()

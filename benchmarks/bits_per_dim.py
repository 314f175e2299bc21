"""Bits per dimension of trained models, the best recipe and what each part of it is worth.

    python benchmarks/bits_per_dim.py --data digits --runs runs           # three seeds of the best, and the ablation
    python benchmarks/bits_per_dim.py --data fashion-mnist --runs runs    # the best, and plain eps-prediction

trains each recipe (a run that exists is used; --list prints the commands, to run some of them at once elsewhere) and measures it on test
images: by the probability-flow ODE (``bits_per_dim`` with its error budget) and by the variational bound (``elbo``), side by side.
Models trained with uniform dequantization are also measured with importance-weighted and with fitted dequantization (``--dequantize``).
Learning curves are the validation losses of the runs, in the results too.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

import torch
from _common import table, write

import scoresde as sd
from scoresde.cli import main as scoresde

# what the recipes of a data set share, the best one, and the changes to it by name
COMMON = {
    "digits": "--data digits --net.width 32",
    "fashion-mnist": "--data fashion-mnist --batch_size 64 --net.width 32 --net.multipliers [1,2,4] --net.blocks 1 --net.frequencies [64,128]",
}
BEST = {
    "digits": {
        "--dequantization": "normal",
        "--times": "fitted",
        "--net.frequencies": "[8.5]",
    },
    "fashion-mnist": {"--dequantization": "normal", "--times": "fitted"},
}
PLAIN = {"--parameterization": "eps", "--weighting": "simple", "--times": "uniform", "--dequantization": None}
CHANGES: dict[str, dict[str, dict[str, str | None]]] = {
    "digits": {
        "log-SNR uniform": {"--times": "importance"},
        "t uniform": {"--times": "uniform"},
        "simple weighting": {"--weighting": "simple", "--times": "uniform"},
        "uniform dequantization": {"--dequantization": None},
        "no Fourier features": {"--net.frequencies": None},
        "shifted by a pixel": {"--augment": "shift"},
        "dropout": {"--net.dropout": "0.1"},
        "plain": {**PLAIN, "--net.frequencies": None},
    },
    "fashion-mnist": {"plain": PLAIN},
}
STEPS = {"digits": (2500, 1000), "fashion-mnist": (2500, 2500)}  # of the best recipe, and of the comparison
SEEDS = {"digits": (0, 1, 2), "fashion-mnist": (0,)}


def recipes(data: str) -> dict[str, tuple[int, str]]:
    """By name: the seed, and the arguments of `scoresde train`."""
    long, short = STEPS[data]
    found = {f"best-{seed}": (seed, long, BEST[data]) for seed in SEEDS[data]}
    if short != long:
        found["the recipe"] = (0, short, BEST[data])
    for name, change in CHANGES[data].items():
        found[name] = (0, short, {k: v for k, v in {**BEST[data], **change}.items() if v is not None})
    return {
        name: (seed, f"{COMMON[data]} {' '.join(f'{k} {v}' for k, v in options.items())} --steps {steps} --seed {seed}")
        for name, (seed, steps, options) in found.items()
    }


def folder(runs: str, data: str, name: str) -> Path:
    return Path(runs) / f"{data}-{name.replace(' ', '-')}"


def measure(name: str, run: Path, data: sd.data.Data, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    model = sd.load(run)
    x = data.test[: a.images]
    b = sd.bits_per_dim(model, x, data.transform, steps=a.steps, prior="reference", seed=seed, dequantizations=a.draws, progress=True)
    bound_of = "levels" if model.transform.dequantization == "normal" else "density"
    e = sd.elbo(model, x, data.transform, draws=a.times, prior="reference", reconstruction=bound_of, seed=seed, progress=True)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    paired = (b.per_sample - e.per_sample).std() / math.sqrt(len(x))
    return {
        "recipe": name,
        "seed": seed,
        "ode_bits_per_dim": b.mean,
        "bound_bits_per_dim": e.mean,
        "std_error_over_images": b.std_error,
        "gap": e.mean - b.mean,
        "gap_std_error": float(paired),
        "budget": {term.name.strip(): term.value for term in b.terms},
        "dequantization": b.settings["dequantization"],
        "images": len(x),
        "nfe": b.nfe,
        "steps": log[-1]["step"],
        "train_seconds": log[-1]["seconds"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": [(line["step"], line["validation"]) for line in log if "validation" in line],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(COMMON), default="digits")
    parser.add_argument("--runs", default="runs", help="folder for the runs")
    parser.add_argument("--list", action="store_true", help="print the training commands and stop")
    parser.add_argument("--only", help="train one recipe and stop")
    parser.add_argument("--images", type=int, default=None, help="test images (all)")
    parser.add_argument("--steps", type=int, default=20, help="network calls of the ODE")
    parser.add_argument("--draws", type=int, default=1, help="dequantizations")
    parser.add_argument("--times", type=int, default=32, help="times and noises an image of the bound")
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
            print(table([{k: v for k, v in row.items() if k not in ("budget", "curve")} for row in rows]), flush=True)
    if rows:
        write(f"bits_per_dim_{a.data}", rows, recipes={name: options for name, (_, options) in recipes(a.data).items()})


if __name__ == "__main__":
    main()

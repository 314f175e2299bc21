"""The pictures of the README and of these pages: `python docs/pictures.py --run run`.

`samples.png` and `trajectory.png` are of a run, `scoresde train --data digits --steps 1000 --threads 1 --out run` for instance;
`steps_vs_quality.png` of `benchmarks/results/frontier_digits/frontier.json`, which `python benchmarks/frontier_digits.py` writes, and
`likelihood_curves.png` of the learning curves that `python benchmarks/bits_per_dim.py` writes. What is left out on the command line is not
drawn again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

import scoresde as sd
from scoresde.plot import figures

IMAGES = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def of_run(run: str) -> None:
    model, digits = sd.load(run), sd.data.digits()
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, 64, steps=20, seed=0)
    panels = {"real test images": digits.test[:64], f"samples, {calls.forward} network calls each": x}
    sd.plot.samples(panels, digits.transform, 8, IMAGES / "samples.png")
    steps = sd.trajectory(model, 3, steps=20, seed=4)
    sd.plot.trajectory(steps, IMAGES / "trajectory.png", transform=digits.transform, rows=3, columns=11)


def learning_curves() -> None:
    """The validation bound of the best recipes against the step: with normal dequantization the loss, nats/dim, is the bound."""
    figure, axes = figures.panels(1, 2, 3.2, 1.4)
    for ax, data, title in zip(axes[0], ("digits", "fashion-mnist"), ("digits", "Fashion-MNIST"), strict=True):
        rows = json.loads((RESULTS / f"bits_per_dim_{data}.json").read_text())["rows"]
        for k, row in enumerate(row for row in rows if row["recipe"].startswith("best")):
            steps, nats = zip(*((step, nats) for step, nats in row["curve"] if step), strict=True)
            style = {"color": sd.plot.COLORS[k], "marker": figures.MARKERS[k], "markersize": 3.5, "linewidth": 1.4}
            ax.plot(steps, [v / math.log(2) for v in nats], label=f"seed {row['seed']}, last {nats[-1] / math.log(2):.3f}", **style)
        ax.set_xscale("log")
        ax.set_xlabel("training step")
        ax.set_ylabel("validation bound (bits/dim)" if data == "digits" else "")
        ax.set_title(title, fontsize=11)
        ax.grid(True, which="both", color="#ececec", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        figures.plain_ticks(ax)
    figures.save(figure, IMAGES / "likelihood_curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a trained model of the digits")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.run is not None:
        of_run(a.run)
    sd.Frontier.from_json(RESULTS / "frontier_digits" / "frontier.json").plot(IMAGES / "steps_vs_quality.png", data="digits")
    learning_curves()


if __name__ == "__main__":
    main()

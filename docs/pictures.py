"""The pictures of the README and of these pages: `python docs/pictures.py --run run`.

`samples.png` and `trajectory.png` are of a run, `scoresde train --data digits --steps 1000 --threads 1 --out run` for instance;
`steps_vs_quality.png` of `benchmarks/results/frontier_digits/frontier.json`, which `python benchmarks/frontier_digits.py` writes. What is
left out on the command line is not drawn again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import scoresde as sd

IMAGES = Path(__file__).parent / "images"
FRONTIER = Path(__file__).parents[1] / "benchmarks" / "results" / "frontier_digits" / "frontier.json"


def of_run(run: str) -> None:
    model, digits = sd.load(run), sd.data.digits()
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, 64, steps=20, seed=0)
    panels = {"real test images": digits.test[:64], f"samples, {calls.forward} network calls each": x}
    sd.plot.samples(panels, digits.transform, 8, IMAGES / "samples.png")
    steps = sd.trajectory(model, 3, steps=20, seed=4)
    sd.plot.trajectory(steps, IMAGES / "trajectory.png", transform=digits.transform, rows=3, columns=11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a trained model of the digits")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.run is not None:
        of_run(a.run)
    sd.Frontier.from_json(FRONTIER).plot(IMAGES / "steps_vs_quality.png")


if __name__ == "__main__":
    main()

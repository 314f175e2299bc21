"""The default sampler on targets that nobody tuned for: `python benchmarks/untuned.py` (five minutes; `--quick`: one).

Exact scores: anisotropic, near a manifold, heavy tails, random fields (``tests/hard_targets.py``), under VP, VE and rectified flow.
"auto" knows of the data the exact moments, or a covariance of 600 samples (full; diagonal, of images in the cosine basis), or nothing
(none), or what ``fit_reference`` makes of its own samples (made). Its median distance to the converged ODE, over that of the best in
hindsight of DPM-Solver++, UniPC, DEIS and Adams-Bashforth of orders 2 and 3, each on four grids: 40 choices for each cell of the table.
100 paths from the noise of seed 5, float64.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from _common import write
from hard_targets import HARD, Race

import scoresde as sd

SDES = {"VP": sd.VPSDE(), "VE": sd.VESDE(), "RF": sd.RectifiedFlow()}
NFE = (5, 10, 20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no random fields, 5 to 50 calls, 50 paths; nothing is written")
    parser.add_argument("--only", default="", help="part of a target's name; nothing is written")
    a = parser.parse_args()
    torch.set_num_threads(1)
    nfe, paths = (NFE[:4], 50) if a.quick else (NFE, 100)
    rows: list[dict[str, Any]] = []
    for name, make in HARD.items():
        if a.only not in name or (a.quick and "fields" in name):
            continue
        for label, sde in SDES.items():
            start = time.perf_counter()
            race = Race(make(), sde, paths)
            rivals = {n: race.best_rival(n) for n in nfe}
            for kind, reference in race.references().items():
                race.model.reference = reference
                for n in nfe:
                    with sd.count_evaluations(race.model) as calls:
                        error = race.error(steps=n)
                    if calls.forward != n:
                        raise SystemExit(f"{calls.forward} calls counted for {n}")
                    best, which = rivals[n]
                    rows.append(
                        {"target": name, "sde": label, "reference": kind, "nfe": n, "auto": error}
                        | {"rival": best, "which": which, "ratio": error / best}
                    )
            print(f"{name}, {label}: {time.perf_counter() - start:.0f} s", flush=True)
    if not (a.quick or a.only):
        write("untuned", rows, paths=paths, t_end={label: sd.grid.default_end(sde) for label, sde in SDES.items()})
    report(rows, nfe)


def report(rows: list[dict[str, Any]], nfe: tuple[int, ...]) -> None:
    """The ratios by target, reference, SDE and calls, and what they are in all."""
    ratio = {(r["target"], r["reference"], r["sde"], r["nfe"]): r["ratio"] for r in rows}
    targets, kinds = dict.fromkeys(r["target"] for r in rows), dict.fromkeys(r["reference"] for r in rows)
    head = f"{'':24} {'reference':9}" + "".join(f" | {sde + ' ' + str(nfe[0]):>5}" + "".join(f" {n:5}" for n in nfe[1:]) for sde in SDES)
    print(head)
    for name in targets:
        for kind in kinds:
            cells = (" | " + " ".join(f"{ratio[name, kind, sde, n]:5.2f}" for n in nfe) for sde in SDES)
            print(f"{name:24} {kind:9}" + "".join(cells))
    for kind in kinds:
        for n in nfe:
            values = torch.tensor([r["ratio"] for r in rows if (r["reference"], r["nfe"]) == (kind, n)])
            above = int((values > 1).sum())
            print(f"{kind:9} {n:4} calls: median {values.median():.2f}, worst {values.max():.2f}, above 1: {above} of {len(values)}")


if __name__ == "__main__":
    main()

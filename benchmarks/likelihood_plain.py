"""Few calls on networks trained plainly: `python benchmarks/likelihood_plain.py [--cache FOLDER]` (half an hour on one thread, twenty
minutes of it training; a few with the networks in --cache).

Digits with uniform dequantization, SDEs with their own t_min, nothing adapted. Networks: our small UNet with "v" (VP, sub-VP) or "edm"
(VE); the same with "eps" and random Fourier features of log sigma of scale 16, or sinusoidal ones of 999 t, as score_sde has them
(2011.13456, its code): these are rough functions of the noise level, of which an adaptive solver needs over a thousand calls.

Of --images test images, one dequantization and one Hutchinson probe each: the error of bits per dimension at a few numbers of calls, in
the mean, of an image, and as the error budget has it (`check`), against --truth calls.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import table, write
from torch import Tensor, nn

import scoresde as sd
from scoresde.likelihood.dequantize import resolve

CALLS = (10, 20, 40, 80)
SDES = {"VP": sd.VPSDE(), "VE": sd.VESDE(), "sub-VP": sd.SubVPSDE()}
KINDS = [("VP", "ours"), ("VP", "fourier 16"), ("VP", "fourier 32"), ("VP", "999 t")]
KINDS += [("VE", "ours"), ("VE", "fourier 16"), ("sub-VP", "ours")]


class Foreign(nn.Module):
    """A UNet whose embedding of the noise level is that of score_sde."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = sd.nets.UNet(1, width=24, multipliers=(1, 2), blocks=1), kind
        n = len(self.net.embedding.frequencies)
        if kind == "999 t":
            frequencies = torch.exp(-math.log(10_000) * torch.arange(n) / (n - 1))
        else:
            scale = float(kind.split()[1])
            frequencies = torch.randn(n, generator=torch.Generator().manual_seed(0)) * scale * 2 * math.pi
        self.net.embedding.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        log_s = 4 * c_noise
        if self.kind != "999 t":
            return self.net(x, log_s)
        B = nn.functional.softplus(2 * log_s.double())  # the integral of beta of VP, of log(sigma/alpha)
        return self.net(x, (999 * ((0.01 + 2 * 19.9 * B).sqrt() - 0.1) / 19.9).to(x.dtype))


def network(which: str, kind: str, minutes: float, cache: Path) -> tuple[sd.NetworkModel, int]:
    """The model, and how many steps it was trained."""
    digits, sde = sd.data.digits(), SDES[which]
    torch.manual_seed(0)
    net = sd.nets.UNet(1, width=16, multipliers=(1, 2), blocks=1) if kind == "ours" else Foreign(kind)
    parameterization = "eps" if kind != "ours" else "edm" if which == "VE" else "v"
    model = sd.NetworkModel(net, sde, digits.event_shape, parameterization, transform=digits.transform)
    file = cache / f"{which}_{kind}.pt".replace(" ", "")
    if not file.exists():
        history = sd.fit(model, digits, minutes=minutes, batch_size=64, seed=0, progress=False)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({"net": net.state_dict(), "steps": history.steps[-1]}, file)
    found = torch.load(file, weights_only=True)
    net.load_state_dict(found["net"])
    model.reference = sd.GaussianReference.fit(digits)
    return model, found["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, each")
    parser.add_argument("--cache", default="plain_networks", help="folder for the trained networks")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--truth", type=int, default=1200)
    a = parser.parse_args()
    torch.set_num_threads(1)
    digits, rows, converged = sd.data.digits(), [], {}
    for which, kind in KINDS:
        model, steps = network(which, kind, a.minutes, Path(a.cache))
        x, log_q = resolve(None, model, digits.transform).draw(digits.test[: a.images], model, 0, np.arange(a.images), 0)
        unit = 1 / (x[0].numel() * math.log(2))
        bits = lambda r: (log_q - r.log_prob) * unit  # noqa: B023
        truth, half = (bits(sd.log_prob(model, x, steps=n)) for n in (a.truth, a.truth // 2))
        converged[f"{which} {kind}"] = {
            "bits_per_dim": float(truth.mean()),
            "change_by_half_the_calls": float((half - truth).abs().mean()),
            "training_steps": steps,
        }
        for calls in CALLS:
            start = time.perf_counter()
            bare = sd.log_prob(model, x, steps=calls)
            middle = time.perf_counter()
            r = sd.log_prob(model, x, steps=calls, check=a.images)
            error, found = bits(bare) - truth, -r.discretization * unit
            row: dict[str, Any] = {"network": f"{which} {kind}", "calls": calls, "mean_error": float(error.mean())}
            row |= {"reported_mean_error": float(found.mean()), "mean_abs_error": float(error.abs().mean())}
            row |= {"reported_mean_abs_error": float(found.abs().mean()), "check_calls": round(r.check_nfe, 1)}
            rows.append(row | {"seconds": middle - start, "seconds_with_check": time.perf_counter() - middle})
        print(table(rows[-len(CALLS) :]), flush=True)
    write("likelihood_plain", rows, images=a.images, truth=a.truth, converged=converged, dequantization="uniform", probes=1)


if __name__ == "__main__":
    main()

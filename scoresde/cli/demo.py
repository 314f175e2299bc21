"""``scoresde demo``: a model of small digits, from nothing to samples, likelihood and pictures in under five minutes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoresde.checkpoints import folders
from scoresde.core.checks import check_positive
from scoresde.core.noise import seeded
from scoresde.data import catalog
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError
from scoresde.evaluation.frontier.compare import frontier
from scoresde.evaluation.frontier.rows import format_table
from scoresde.likelihood.bits import bits_per_dim
from scoresde.models.batches import default_batch_size
from scoresde.models.network import NetworkModel
from scoresde.nets import unet
from scoresde.plot import curves, pictures
from scoresde.sampling.sampler import sample, trajectory
from scoresde.sdes.standard import VPSDE
from scoresde.solvers.corrector import Langevin, PredictorCorrector
from scoresde.solvers.foreign import TorchDiffEq
from scoresde.solvers.multistep import UniPC
from scoresde.solvers.one_step import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.runge_kutta import Heun
from scoresde.training.fitting import fit

if TYPE_CHECKING:
    from scoresde.evaluation.frontier.result import Frontier
    from scoresde.solvers.base import Solver

NFE = (5, 10, 20, 50, 100)

SOLVERS: tuple[Solver, ...] = (
    DDIM(),
    Heun(),
    UniPC(),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    *(TorchDiffEq(rtol=tolerance, atol=tolerance) for tolerance in (1e-1, 1e-2, 1e-3)),
)

BITS_SAMPLES = 100  # test images whose likelihood is measured

TOLERANCE = 1e-3  # of that: its error is far below the standard error over so few images


def demo(out: Path, *, minutes: float, seed: int, overwrite: bool, progress: bool) -> None:
    """Trains on the digits for half of the time, then samples, measures and draws; writes everything into ``out``.

    Args:
        out: folder.
        minutes: of everything together, about; the comparison of solvers takes as many samples as fit in.
        seed: of everything random.
        overwrite: replace an earlier demo in the same folder.
        progress: show progress bars.

    Raises:
        ConfigError: ``out`` holds a run, and not ``overwrite``.
    """
    begun = time.perf_counter()
    check_positive(minutes, "minutes")
    if folders.folders(out / "run") and not overwrite:
        raise ConfigError(f"{out} holds an earlier demo: --overwrite replaces it, or give another folder, --out FOLDER")
    digits, sde = catalog.digits(), VPSDE()
    transform = digits.transform or Transform(levels=17)
    with seeded(seed):
        net = unet.UNet(channels=1)
    model = NetworkModel(net, sde, digits.event_shape, "v", digits.transform)
    size = sum(p.numel() for p in net.parameters())

    _say(f"[1/4] training a UNet of {size:,} parameters on {len(digits.train)} images of 8 x 8, {minutes / 2:g} minutes")
    try:
        history = fit(
            model,
            digits,
            minutes=minutes / 2,
            seed=seed,
            out=out / "run",
            overwrite=overwrite,
            log_every=20,
            validate_every=100,
            progress=progress,
        )
    except KeyboardInterrupt:  # its advice is to resume, which a demo cannot
        raise KeyboardInterrupt("to start again: --overwrite") from None
    curves.loss(history, out / "loss.png")
    model.to("cpu")

    _say("[2/4] drawing samples")
    x = sample(model, 64, solver=Heun(), steps=18, seed=seed)
    panels = {"real test images": transform.center(digits.test[:64]), "samples (Heun, 18 steps, 36 network calls)": x}
    pictures.samples(panels, transform, 8, out / "samples.png")
    pictures.trajectory(trajectory(model, 4, solver=Heun(), steps=18, seed=seed), out / "trajectory.png", transform=transform)

    _say(f"[3/4] measuring bits per dimension of {BITS_SAMPLES} test images")
    start = time.perf_counter()
    solver = TorchDiffEq(rtol=TOLERANCE, atol=TOLERANCE)
    bits = bits_per_dim(model, digits.test[:BITS_SAMPLES], transform, solver=solver, seed=seed, progress=progress)
    bits_seconds = time.perf_counter() - start

    left = 60 * minutes - (time.perf_counter() - begun)
    nfe, n = plan(_seconds_per_call(model), left, 9 * minutes, default_batch_size(model.event_shape), len(digits.test))
    short = "" if nfe == NFE else f" (up to {nfe[-1]} network calls only: this machine is slow or busy)"
    _say(f"[4/4] comparing solvers by {n} samples each with {len(digits.test)} test images{short}")
    result = frontier(
        model,
        digits.test,
        pool=digits.train,
        solvers=SOLVERS,
        nfe=nfe,
        samples=n,
        seed=seed,
        transform=transform,
        paths=0,  # the converged ODE would take as long as all solvers together
        resamples=50,
        progress=progress,
    )
    write_bench(result, out)

    header = ("SDE", "solver", "steps", "NFE", "seconds", "quality", "bits/dim")
    rows = []
    for r in result.rows:
        steps = "adaptive" if r.steps is None else str(r.steps)
        quality = f"{r.value('sliced_wasserstein'):.4f}"
        rows.append((type(sde).__name__, r.name, steps, f"{r.nfe:.4g}", f"{r.seconds:.1f}", quality, "-"))
    calls = bits.nfe / math.ceil(BITS_SAMPLES / default_batch_size(model.event_shape))
    figure = f"{bits.mean:.3f} +- {bits.std_error:.3f}"
    name = f"log-likelihood by {solver.method}, rtol={solver.rtol:g}"
    rows.append((type(sde).__name__, name, "adaptive", f"{calls:.4g}", f"{bits_seconds:.1f}", "-", figure))
    table = "\n".join(
        [
            format_table(header, rows),
            "",
            "NFE: network calls a sample, counted",
            f"quality: sliced Wasserstein distance of {n} samples to {len(digits.test)} test images, smaller is better",
            result.explain(),
            f"bits/dim: mean and standard error over {BITS_SAMPLES} test images of {transform.levels} levels, smaller is better",
        ]
    )
    (out / "table.txt").write_text(table + "\n")
    _say("")
    print(table)
    print(f"\nIn {out}, after {time.perf_counter() - begun:.0f} s:")
    for name, what in (
        ("samples.png", "real images and samples"),
        ("trajectory.png", "from noise to samples, with the denoised estimates"),
        ("loss.png", "training and validation loss"),
        ("steps_vs_quality.png", "quality against network calls, one line a solver"),
        ("steps_vs_quality.csv, .json, table.txt", "the same as tables"),
        ("run", "the trained model"),
    ):
        print(f"  {name:<44} {what}")
    print(f"""
Try next:
  scoresde sample {out / 'run'} --solver DDIM --steps 50 --out more.png
  scoresde nll {out / 'run'} --data digits              all test images, at a finer tolerance
  scoresde train --data digits --minutes 10 --out run   a better model
  scoresde --help""")


def write_bench(result: Frontier, folder: Path) -> list[str]:
    """Writes a comparison as pictures and as tables; returns the names of the files."""
    result.to_csv(folder / "steps_vs_quality.csv")
    result.to_json(folder / "steps_vs_quality.json")
    names = [f"steps_vs_quality.{kind}" for kind in ("png", "csv", "json")]
    if any(not row.message for row in result.rows):
        result.plot(folder / names[0], "sliced_wasserstein")
    if "median" in result.metrics:
        result.plot(folder / "steps_vs_error.png", "median")
        names.insert(1, "steps_vs_error.png")
    return names


def recommendations(result: Frontier, budgets: Sequence[int]) -> str:
    """Which solver to use at each budget, by the metric that tells most."""
    lines = []
    for budget in budgets:
        try:
            best = result.recommend(nfe=budget)
        except ConfigError:
            continue
        lines.append(f"  up to {budget} network calls: {str(best).splitlines()[0]}")
    return "\n".join(["which solver to use:", *lines]) + "\n" if lines else ""


def _seconds_per_call(model: NetworkModel) -> float:
    """Time of one network call on one batch of samples."""
    size = default_batch_size(model.event_shape)
    sample(model, size, steps=1)  # warm
    start = time.perf_counter()
    sample(model, size, steps=3)  # of Heun, two calls each
    return (time.perf_counter() - start) / 6


def plan(per_call: float, left: float, late: float, size: int, most: int) -> tuple[tuple[int, ...], int]:
    """Budgets of network calls, and how many samples of each solver: as many batches as there is time for.

    Args:
        per_call: seconds of one network call on one batch.
        left: seconds for the whole comparison.
        late: seconds that it may take longer, before the largest budgets are left out.
        size: samples of a batch.
        most: samples at most.
    """

    def seconds(nfe: tuple[int, ...]) -> float:  # of one batch; an adaptive solve takes about 60 calls
        return per_call * sum(sum(nfe) if solver.default_steps > 1 else 60 for solver in SOLVERS)

    nfe: tuple[int, ...] = NFE
    while len(nfe) > 2 and seconds(nfe) > left + late:
        nfe = nfe[:-1]
    return nfe, min(most, size * max(1, int(0.9 * left / seconds(nfe))))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

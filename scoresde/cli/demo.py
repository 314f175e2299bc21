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
from scoresde.models.counting import count_evaluations
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
    from scoresde.data.dataset import Data
    from scoresde.evaluation.frontier.result import Frontier
    from scoresde.solvers.base import Solver

NFE = (5, 10, 20, 50, 100)

SOLVERS: tuple[Solver | str, ...] = (
    "auto",  # what `sample` takes unless it is told otherwise
    DDIM(),
    Heun(),
    UniPC(),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(ReverseDiffusion(), Langevin()),
    *(TorchDiffEq(rtol=tolerance, atol=tolerance) for tolerance in (1e-1, 1e-2, 1e-3)),
)

ADAPTIVE = 60  # network calls that an adaptive solve takes, about

LATE = 0.05  # of the time, by which the comparison may be late before its largest budgets are left out

BITS_SAMPLES = 100  # test images whose likelihood is measured


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
    with count_evaluations(model) as drawn:
        x = sample(model, default_batch_size(model.event_shape), seed=seed, progress=progress)
    panels = {"real test images": digits.test[: len(x)], f"samples, {drawn.forward} network calls each": x}
    pictures.samples(panels, transform, 8, out / "samples.png")
    pictures.trajectory(trajectory(model, 4, seed=seed), out / "trajectory.png", transform=transform)
    _say(f"  {out / 'samples.png'}, {out / 'trajectory.png'}")

    _say(f"[3/4] measuring bits per dimension of {BITS_SAMPLES} test images")
    start = time.perf_counter()
    bits = bits_per_dim(model, digits.test[:BITS_SAMPLES], transform, seed=seed, progress=progress)
    bits_seconds = time.perf_counter() - start
    _say(f"  {bits.mean:.3f} +- {bits.std_error:.3f} bits/dim; uniform levels would cost {math.log2(transform.levels):.3f}")

    end = begun + 60 * minutes
    n = plan(_seconds_per_call(model), end - time.perf_counter(), default_batch_size(model.event_shape), len(digits.test))
    _say(f"[4/4] comparing {len(SOLVERS)} solvers by {n} samples each with {len(digits.test)} test images")
    result = _compare(model, digits, n, end + 60 * minutes * LATE, out / "rows.jsonl", seed, progress)
    write_bench(result, out, digits.name)

    header = ("SDE", "solver", "steps", "NFE", "seconds", "quality", "bits/dim")
    rows = []
    for r in result.rows:
        steps = "adaptive" if r.steps is None else str(r.steps)
        quality = f"{r.value('sliced_wasserstein'):.4f}"
        rows.append((type(sde).__name__, r.name, steps, f"{r.nfe:.4g}", f"{r.seconds:.1f}", quality, "-"))
    figure, steps = f"{bits.mean:.3f} +- {bits.std_error:.3f}", str(bits.settings["steps"])
    rows.append((type(sde).__name__, "log-likelihood", steps, f"{bits.nfe:.4g}", f"{bits_seconds:.1f}", "-", figure))
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
  scoresde sample {out / 'run'} --n 100 --out more.png       as above, by the default solver
  scoresde nll {out / 'run'} --data digits              all test images, with an error budget
  scoresde train --data digits --minutes 10 --out run   a better model
  scoresde --help""")


def _compare(model: NetworkModel, digits: Data, n: int, latest: float, out: Path, seed: int, progress: bool) -> Frontier:
    """The frontier, one budget of network calls after the other, as long as the next one would be done by ``latest``."""
    done = 0
    out.unlink(missing_ok=True)  # of an earlier demo
    for count in range(2, len(NFE) + 1):
        begun = time.perf_counter()
        result = frontier(
            model,
            digits.test,
            pool=digits.train,
            solvers=SOLVERS,
            nfe=NFE[:count],  # rows of smaller budgets are read from the file
            samples=n,
            seed=seed,
            paths=0,  # the converged ODE would take as long as all solvers together
            resamples=50,
            out=out,
            progress=progress,
        )
        now, calls = time.perf_counter(), calls_of(NFE[:count])
        for budget in NFE[:count] if done == 0 else NFE[count - 1 : count]:
            _say(f"  {result.recommend(nfe=budget)}".splitlines()[0])
        pace, done = (now - begun) / (calls - done), calls
        if count < len(NFE) and now + pace * (calls_of(NFE[: count + 1]) - done) > latest:
            _say(f"  up to {NFE[count - 1]} network calls only: this machine is slow or busy")
            break
    return result


def calls_of(budgets: Sequence[int]) -> int:
    """Network calls that all solvers take for one batch at these budgets, about."""
    return sum(ADAPTIVE if isinstance(solver, TorchDiffEq) else sum(budgets) for solver in SOLVERS)


def write_bench(result: Frontier, folder: Path, data: str) -> list[str]:
    """Writes a comparison as pictures, whose titles name the data, and as tables; returns the names of the files."""
    result.to_csv(folder / "steps_vs_quality.csv")
    result.to_json(folder / "steps_vs_quality.json")
    names = [f"steps_vs_quality.{kind}" for kind in ("png", "csv", "json")]
    if any(not row.message for row in result.rows):
        result.plot(folder / names[0], "sliced_wasserstein", data=data)
    if "median" in result.metrics:
        result.plot(folder / "steps_vs_error.png", "median", data=data)
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
    """Time of one network call on one batch of samples, with the work of the solver."""
    size = default_batch_size(model.event_shape)
    sample(model, size, steps=1)  # warm
    with count_evaluations(model) as calls:
        start = time.perf_counter()
        sample(model, size, steps=5)
        seconds = time.perf_counter() - start
    return seconds / calls.forward


def plan(per_call: float, left: float, size: int, most: int) -> int:
    """How many samples of each solver: as many batches as there is time for, one at least.

    Args:
        per_call: seconds of one network call on one batch.
        left: seconds for the whole comparison; a fifth of them is for judging.
        size: samples of a batch.
        most: samples at most.
    """
    return min(most, size * max(1, int(0.8 * left / (per_call * calls_of(NFE)))))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

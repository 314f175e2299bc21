"""The options of the command line, and their help: names and defaults in it are those of the code, read from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scoresde.cli import classes
from scoresde.data.catalog import NAMES
from scoresde.data.transform import DEQUANTIZATIONS
from scoresde.evaluation.frontier.compare import SOLVERS
from scoresde.likelihood import flow, traces
from scoresde.likelihood.bits import bits_per_dim
from scoresde.likelihood.method import EXACT_UP_TO
from scoresde.models import parameterization
from scoresde.solvers.base import Solver
from scoresde.solvers.planning import AUTO_STEPS
from scoresde.training.fitting import fit

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

MINUTES = 10.0  # of training, when not told how long or how many steps

MOST_SAMPLES = 1000  # of each solver of a comparison, when not told how many


def default(function: Callable[..., Any], name: str) -> Any:
    """The default of a function's argument."""
    return inspect.signature(function).parameters[name].default


COMMANDS = {
    "demo": "see everything in under five minutes: train on small digits, sample, measure, draw",
    "train": "train a network on a data set",
    "sample": "draw samples from a trained model, with any solver",
    "nll": "measure likelihood: bits per dimension of images, with standard errors",
    "bench": "measure sample quality against network calls, for many solvers",
    "tune": "find the best solver, grid and weights for a number of network calls",
}

ABOUT = """Score-based diffusion models in continuous time: choose an SDE, train, sample with any solver,
compute likelihoods.

First steps:
  scoresde demo                                         everything at once, in under five minutes
  scoresde train --data digits --minutes 10 --out run   train; Ctrl-C saves, --resume goes on
  scoresde sample run --solver Heun --steps 18 --n 64 --out samples.png
  scoresde nll run --data digits                        bits per dimension of the test images
  scoresde bench run --data digits                      which solver is best for how many network calls
  scoresde tune run --nfe 10                            make one for ten calls: sample run --steps 10 then uses it

`scoresde COMMAND --help` lists all options of a command, with examples."""

EXAMPLES = {
    "demo": "  scoresde demo --out demo",
    "train": """  scoresde train --data digits --minutes 10 --out run
  scoresde train --data fashion-mnist --sde VESDE --sde.sigma_max 20 --net UNet --net.width 48 --steps 20000 --out run
  scoresde train --data moons --net MLP --net.width 256 --steps 5000 --out moons
  scoresde train --resume --out run --steps 30000          goes on with that run, to another end
  scoresde train --data digits --sde my_package.my_module:MySDE --sde.speed 2 --out run
  torchrun --nproc_per_node 2 -m scoresde.cli train --data digits --minutes 10 --out run""",
    "sample": """  scoresde sample run --solver Heun --steps 18 --n 64 --out samples.png
  scoresde sample run --solver TorchDiffEq --solver.rtol 1e-4 --n 1000 --out samples.npz
  scoresde sample run --solver PredictorCorrector --solver.corrector.snr 0.1 --steps 500 --out samples.png
  scoresde sample run --label 7 --out sevens.png           after train --conditional""",
    "nll": """  scoresde nll run --data digits
  scoresde nll run --data digits --dequantizations 5 --out result.json
  scoresde nll run --data digits --n 100 --steps 20        quick
  torchrun --nproc_per_node 2 -m scoresde.cli nll run --data digits --out result.json""",
    "bench": """  scoresde bench run --data digits
  scoresde bench run --data digits --solvers Heun,DDIM,RK4 --nfe 5,10,20 --out bench
  scoresde bench run --data digits --solvers DPMSolverPP,UniPC --grids log_snr,uniform,karras --samples 200""",
    "tune": """  scoresde tune run --nfe 10
  scoresde tune run --nfe 5,8,10,20
  scoresde sample run --steps 10 --n 64 --out samples.png    uses the recipe for ten calls""",
}

SHOWN = {"train": ("sde", "net"), "sample": ("solver",), "nll": ("solver",), "bench": ("solver",)}

_Option = tuple[str, dict[str, Any]]


def _option(name: str, about: str, metavar: str | None = None, **settings: Any) -> _Option:
    """An option; a default that is given is told in brackets, where the text does not say it itself."""
    if settings.get("default") is not None and "%(default)s" not in about:
        about += " (%(default)s)"
    return name, {"help": about, **({} if metavar is None else {"metavar": metavar}), **settings}


def _flag(name: str, about: str) -> _Option:
    return _option(name, about, action="store_true")


def _of(function: Callable[..., Any], name: str, about: str, metavar: str, **settings: Any) -> _Option:
    """An option that a function has as an argument, whose default is told and left to the function."""
    value = default(function, name)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _option(f"--{name}", f"{about} ({text})", metavar, **settings)


_RUN = _option("run", "folder of a trained model: what `scoresde train --out` was given")

_DATA = _option("--data", f"{', '.join(NAMES)}; or a folder with idx files (MNIST); or a .npz file", "DATA")

_SEED = _option("--seed", "of everything random", "N", type=int, default=0)

_BATCH = _option("--batch_size", "samples computed at once (chosen by their size)", "N", type=int)

_MODEL = (
    _option("--sde", "only if the run was trained with an SDE of your own: the same, package.module:Class", "CLASS"),
    _option("--net", "only if it was trained with a network of your own: the same, package.module:Class", "CLASS"),
    _flag("--raw", "the weights of the last training step, not their average"),
    _option("--device", "cpu, cuda, cuda:1, ... (%(default)s: a GPU if there is one)", "DEVICE", default="auto"),
)

_COMMON = (
    _option("--threads", "processor cores to use (all)", "N", type=int),
    _option("--progress", "progress bars, on stderr", choices=["auto", "off"], default="auto"),
    _flag("--debug", "show where in the code an error came from"),
)

_UNIFORM, _NORMAL = DEQUANTIZATIONS

OPTIONS: dict[str, tuple[_Option, ...]] = {
    "demo": (
        _option("--out", "where the pictures and tables go", "FOLDER", default="demo"),
        _option("--minutes", "time for all of it, about; half trains", "M", type=float, default=4.0),
        _flag("--overwrite", "replace an earlier demo in the same folder"),
        _SEED,
    ),
    "train": (
        _DATA,
        _option("--out", "where to save checkpoints, log.jsonl and loss.png", "FOLDER", required=True),
        _option("--minutes", f"how long to train ({MINUTES:g}, unless --steps is given)", "M", type=float),
        _option("--steps", "how many steps to train, instead", "N", type=int),
        _flag("--resume", "go on from the last checkpoint in FOLDER: alone with the options of the run; longer with --steps or --minutes"),
        _flag("--overwrite", "replace the run that FOLDER holds"),
        _option("--sde", "see below (%(default)s); its arguments as --sde.beta_max 15", "CLASS", default="VPSDE"),
        _option("--net", "see below (UNet for images, else MLP); its arguments as --net.width 48", "CLASS"),
        _option("--parameterization", f"what the network predicts: {', '.join(parameterization.NAMES)}", "P", default="v"),
        _flag("--conditional", "give the network the labels of the data"),
        _of(fit, "weighting", "of the loss over time: likelihood, simple, min-snr or edm", "W"),
        _option("--times", "drawn in training: importance, uniform, lognormal or fitted (what suits --weighting)", "T"),
        _option(
            "--dequantization",
            f"of integer data: {_UNIFORM} noise over each level (the default), or {_NORMAL}: the SDE's own at t_min, chosen for it",
            choices=[*DEQUANTIZATIONS],
        ),
        _option("--augment", "flip, shift or flip,shift: training samples, which the network is told of (none)", "A"),
        _of(fit, "batch_size", "samples a step, over all processes", "N", type=int),
        _of(fit, "accumulate", "passes that a step is split into, to save memory", "N", type=int),
        _of(fit, "lr", "learning rate of Adam, the largest", "R", type=float),
        _of(fit, "schedule", "of the learning rate after the warm-up: cosine, constant or inverse-sqrt", "S"),
        _option("--warmup", "steps over which the learning rate rises (by the number of steps)", "N", type=int),
        _of(fit, "clip", "largest norm of the gradient", "G", type=float),
        _of(fit, "ema", "decay of the average of the weights", "D", type=float),
        _of(fit, "checkpoint_every", "steps between checkpoints", "N", type=int),
        _of(fit, "validate_every", "0 for none, or steps between validations on the test data", "N", type=int),
        _flag("--bf16", "run the network in bfloat16 where that is safe"),
        _SEED,
    ),
    "sample": (
        _RUN,
        _option("--solver", "see below (%(default)s: what suits); its arguments as --solver.rtol 1e-4", "CLASS", default="auto"),
        _option(
            "--steps",
            f"of the solver ({AUTO_STEPS} for auto, {Solver.default_steps} for most others; an adaptive one needs none)",
            "N",
            type=int,
        ),
        _option("--n", "number of samples", "N", type=int, default=64),
        _option("--out", ".png, .pdf or .svg: a picture; .npz or .npy: arrays", "FILE", default="samples.png"),
        _option("--label", "class to draw, or several by turns: 0,1,2 (of a conditional run)", "K"),
        _option("--t_end", "where to stop (what the SDE says)", "T", type=float),
        _flag("--denoise", "remove the last noise: one more network call"),
        _SEED,
        _BATCH,
        *_MODEL,
    ),
    "nll": (
        _RUN,
        _DATA,
        _option("--split", "which samples", choices=["test", "train"], default="test"),
        _option("--n", "the first N of them (all)", "N", type=int),
        _option("--dequantizations", "noise draws for integer data, averaged", "N", type=int, default=1),
        _option("--dequantization", "kind of that noise (what the run was trained for)", choices=[*DEQUANTIZATIONS]),
        _flag("--importance_weighted", "log of the mean over draws: a tighter bound (needs exact divergence)"),
        _option(
            "--solver",
            "see below (%(default)s: ReferenceSolver if the run knows mean and covariance of its data, else TorchDiffEq)",
            "CLASS",
            default="auto",
        ),
        _option("--rtol", "relative tolerance, of TorchDiffEq unless --solver says another", "E", type=float),
        _option("--atol", "absolute tolerance (that of --rtol)", "E", type=float),
        _option("--steps", f"network calls of ReferenceSolver ({flow.STEPS}), or steps of a solver with fixed ones", "N", type=int),
        _option(
            "--divergence",
            f"of the velocity: estimated, or exact (exact up to {EXACT_UP_TO} dimensions, else hutchinson)",
            choices=[*traces.KINDS],
            default=default(bits_per_dim, "divergence"),
        ),
        _option("--prior", "at t_max: N(0, sigma^2 I), or the moments of the data", choices=["standard", "reference"], default="standard"),
        _option("--bound", "the variational bound too, by N times and noises a sample (none)", "N", type=int),
        _option(
            "--check", "samples on which to estimate the errors of steps and cut", "N", type=int, default=default(bits_per_dim, "check")
        ),
        _option("--check_steps", "N > steps to solve these with, to measure what steps err", "N", type=int),
        _option("--probes", "of the estimate; 2 or more give its standard error", "N", type=int, default=1),
        _option("--out", "a .json file for the result and all settings; beside it .rows.jsonl, to go on from", "FILE"),
        _flag("--overwrite", "start anew, every time, whatever is beside FILE: it does not go on"),
        _SEED,
        _BATCH,
        *_MODEL,
    ),
    "bench": (
        _RUN,
        _DATA,
        _option("--solvers", f"classes, commas between, or auto (auto and {len(SOLVERS) - 1} more)", "A,B"),
        _option("--nfe", "network calls a sample", "N,N", default="5,10,20,50,100"),
        _option("--grids", f"own, {', '.join(classes.grids())}: each solver on each (own)", "A,B"),
        _option("--samples", f"of each solver (as many as the test set has, at most {MOST_SAMPLES})", "N", type=int),
        _option("--n", "the same as --samples", "N", type=int),
        _option("--noise", "path: one Brownian path for all budgets", choices=["independent", "path"], default="independent"),
        _option("--paths", "samples compared with the converged ODE (by --samples; 0: none, quicker)", "N", type=int),
        _option(
            "--features",
            "train a classifier; compare in its features too (%(default)s: images with labels)",
            choices=["auto", "on", "off"],
            default="auto",
        ),
        _option("--out", "for figures, tables and finished rows (bench in the folder of the run)", "FOLDER"),
        _flag("--overwrite", "drop the finished rows of other settings in FOLDER"),
        _SEED,
        _BATCH,
        *_MODEL,
    ),
    "tune": (
        _RUN,
        _option("--nfe", "network calls a sample, or several with commas between", "N,N", default="10"),
        _option("--t_end", "where samples stop (what the SDE says)", "T", type=float),
        _option("--paths", "pilot paths, a half of them to judge by (by the number of dimensions)", "N", type=int),
        _option("--iterations", "of Adam, from each of two starts (what two minutes allow; 0: none)", "N", type=int),
        _option("--out", "where recipe-N.json goes (the folder of the run, where `scoresde sample` finds it)", "FOLDER"),
        _SEED,
        *_MODEL,
    ),
}


def make_parser() -> ArgumentParser:
    """The parser of the whole command line; it raises jsonargparse's ArgumentError."""
    import argparse
    from importlib.metadata import version

    from jsonargparse import ArgumentParser

    def parser(**more: Any) -> ArgumentParser:
        return ArgumentParser(
            exit_on_error=False, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, default_env=False, **more
        )

    top = parser(prog="scoresde", description=ABOUT, version=version("scoresde"))
    commands = top.add_subcommands(dest="command", required=True, metavar="COMMAND", title="commands")
    for command, about in COMMANDS.items():
        sub = parser(description=f"{about[0].upper()}{about[1:]}.", epilog=_epilog(command))
        for name, settings in (*OPTIONS[command], *_COMMON):
            sub.add_argument(name, **settings)
        commands.add_subcommand(command, sub, help=about)
    return top


def _epilog(command: str) -> str:
    """The classes that can be named, and examples."""
    parts = []
    for kind in SHOWN.get(command, ()):
        shown = classes.of_the_flow() if command == "nll" else classes.own(kind)
        lines = [f"  {classes.signature(cls)}" for cls in shown.values()]
        base = classes.KINDS[kind][0].__name__
        parts.append("\n".join([f"classes for --{kind}{'s' if command == 'bench' else ''}:", *lines]))
        parts[-1] += f"\n  package.module:Class, a subclass of {base} of your own"
    return "\n\n".join([*parts, f"examples:\n{EXAMPLES[command]}"])

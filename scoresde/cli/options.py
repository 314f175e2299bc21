"""The options of the command line, and their help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scoresde.cli import classes
from scoresde.data.catalog import NAMES

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = {
    "demo": "see everything in under five minutes: train on small digits, sample, measure, draw",
    "train": "train a network on a data set",
    "sample": "draw samples from a trained model, with any solver",
    "nll": "measure likelihood: bits per dimension of images, with standard errors",
    "bench": "measure sample quality against network calls, for many solvers",
    "tune": "find the best solver, grid and weights for a number of network calls",
}

_ABOUT = """Score-based diffusion models in continuous time: choose an SDE, train, sample with any solver,
compute likelihoods.

First steps:
  scoresde demo                                         everything at once, in under five minutes
  scoresde train --data digits --minutes 10 --out run   train; Ctrl-C saves, --resume goes on
  scoresde sample run --solver Heun --steps 18 --n 64 --out samples.png
  scoresde nll run --data digits                        bits per dimension of the test images
  scoresde bench run --data digits                      which solver is best for how many network calls
  scoresde tune run --nfe 10                            make one for ten calls: sample run --steps 10 then uses it

`scoresde COMMAND --help` lists all options of a command, with examples."""

_EXAMPLES = {
    "demo": "  scoresde demo --out demo",
    "train": """  scoresde train --data digits --minutes 10 --out run
  scoresde train --data fashion-mnist --sde VESDE --sde.sigma_max 20 --net UNet --net.width 48 --steps 20000 --out run
  scoresde train --data moons --net MLP --net.width 256 --steps 5000 --out moons
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

_SHOWN = {"train": ("sde", "net"), "sample": ("solver",), "nll": ("solver",), "bench": ("solver",)}

_Options = tuple[tuple[str, dict[str, Any]], ...]

_RUN: _Options = (("run", {"help": "folder of a trained model: what `scoresde train --out` was given"}),)

_DATA: _Options = (
    (
        "--data",
        {"required": True, "metavar": "DATA", "help": f"{', '.join(NAMES)}; or a folder with idx files (MNIST); or a .npz file"},
    ),
)

_SEED: _Options = (("--seed", {"type": int, "default": 0, "metavar": "N", "help": "of everything random (0)"}),)

_BATCH: _Options = (("--batch_size", {"type": int, "metavar": "N", "help": "samples computed at once (chosen by their size)"}),)

_MODEL: _Options = (
    ("--sde", {"metavar": "CLASS", "help": "only if the run was trained with an SDE of your own: the same, package.module:Class"}),
    ("--net", {"metavar": "CLASS", "help": "only if it was trained with a network of your own: the same, package.module:Class"}),
    ("--raw", {"action": "store_true", "help": "the weights of the last training step, not their average"}),
    ("--device", {"default": "auto", "metavar": "DEVICE", "help": "cpu, cuda, cuda:1, ... (auto: a GPU if there is one)"}),
)

_COMMON: _Options = (
    ("--threads", {"type": int, "metavar": "N", "help": "processor cores to use (all)"}),
    ("--progress", {"choices": ["auto", "off"], "default": "auto", "help": "progress bars, on stderr (auto)"}),
    ("--debug", {"action": "store_true", "help": "show where in the code an error came from"}),
)

OPTIONS: dict[str, _Options] = {
    "demo": (
        ("--out", {"default": "demo", "metavar": "FOLDER", "help": "where the pictures and tables go (demo)"}),
        ("--minutes", {"type": float, "default": 4.0, "metavar": "M", "help": "time for all of it, about; half trains (4)"}),
        ("--overwrite", {"action": "store_true", "help": "replace an earlier demo in the same folder"}),
        *_SEED,
    ),
    "train": (
        *_DATA,
        ("--out", {"required": True, "metavar": "FOLDER", "help": "where to save checkpoints, log.jsonl and loss.png"}),
        ("--minutes", {"type": float, "metavar": "M", "help": "how long to train (10, unless --steps is given)"}),
        ("--steps", {"type": int, "metavar": "N", "help": "how many steps to train, instead"}),
        ("--resume", {"action": "store_true", "help": "go on from the last checkpoint in FOLDER, with the same options"}),
        ("--overwrite", {"action": "store_true", "help": "replace the run that FOLDER holds"}),
        ("--sde", {"default": "VPSDE", "metavar": "CLASS", "help": "see below (VPSDE); its arguments as --sde.beta_max 15"}),
        ("--net", {"metavar": "CLASS", "help": "see below (UNet for images, else MLP); its arguments as --net.width 48"}),
        ("--parameterization", {"default": "v", "metavar": "P", "help": "what the network predicts: x0, eps, score, v or edm (v)"}),
        ("--conditional", {"action": "store_true", "help": "give the network the labels of the data"}),
        ("--weighting", {"metavar": "W", "help": "of the loss over time: likelihood, simple, min-snr or edm (likelihood)"}),
        ("--times", {"metavar": "T", "help": "drawn in training: importance, uniform, lognormal or fitted (what suits the weighting)"}),
        (
            "--dequantization",
            {
                "choices": ["uniform", "normal"],
                "help": "of integer data: uniform noise over each level (the default), or none but the SDE's own at t_min, chosen for it",
            },
        ),
        ("--augment", {"metavar": "A", "help": "flip, shift or flip,shift: training samples, which the network is told of (none)"}),
        ("--batch_size", {"type": int, "metavar": "N", "help": "samples a step, over all processes (128)"}),
        ("--accumulate", {"type": int, "metavar": "N", "help": "passes that a step is split into, to save memory (1)"}),
        ("--lr", {"type": float, "metavar": "R", "help": "learning rate of Adam, the largest (2e-3)"}),
        ("--warmup", {"type": int, "metavar": "N", "help": "steps over which the learning rate rises (100)"}),
        ("--clip", {"type": float, "metavar": "G", "help": "largest norm of the gradient (1)"}),
        ("--ema", {"type": float, "metavar": "D", "help": "decay of the average of the weights (0.999)"}),
        ("--checkpoint_every", {"type": int, "metavar": "N", "help": "steps between checkpoints (1000)"}),
        ("--validate_every", {"type": int, "metavar": "N", "help": "steps between validations on the test data (500)"}),
        ("--bf16", {"action": "store_true", "help": "run the network in bfloat16 where that is safe"}),
        *_SEED,
    ),
    "sample": (
        *_RUN,
        ("--solver", {"default": "auto", "metavar": "CLASS", "help": "see below (auto: what suits); its arguments as --solver.rtol 1e-4"}),
        ("--steps", {"type": int, "metavar": "N", "help": "of the solver (50; an adaptive one needs none)"}),
        ("--n", {"type": int, "default": 64, "metavar": "N", "help": "number of samples (64)"}),
        ("--out", {"default": "samples.png", "metavar": "FILE", "help": ".png, .pdf or .svg: a picture; .npz or .npy: arrays"}),
        ("--label", {"metavar": "K", "help": "class to draw, or several by turns: 0,1,2 (of a conditional run)"}),
        ("--t_end", {"type": float, "metavar": "T", "help": "where to stop (what the SDE says)"}),
        ("--denoise", {"action": "store_true", "help": "remove the last noise: one more network call"}),
        *_SEED,
        *_BATCH,
        *_MODEL,
    ),
    "nll": (
        *_RUN,
        *_DATA,
        ("--split", {"choices": ["test", "train"], "default": "test", "help": "which samples (test)"}),
        ("--n", {"type": int, "metavar": "N", "help": "the first N of them (all)"}),
        ("--dequantizations", {"type": int, "default": 1, "metavar": "N", "help": "noise draws for integer data, averaged (1)"}),
        ("--dequantization", {"choices": ["uniform", "normal"], "help": "kind of that noise (what the run was trained for)"}),
        ("--importance_weighted", {"action": "store_true", "help": "log of the mean over draws: a tighter bound (needs exact divergence)"}),
        (
            "--solver",
            {
                "default": "auto",
                "metavar": "CLASS",
                "help": "ReferenceSolver, AdaptiveODE, TorchDiffEq, Heun, RK4, Euler (the first if the run knows its data's moments)",
            },
        ),
        ("--rtol", {"type": float, "metavar": "E", "help": "relative tolerance, of TorchDiffEq unless --solver says another"}),
        ("--atol", {"type": float, "metavar": "E", "help": "absolute tolerance (that of --rtol)"}),
        ("--steps", {"type": int, "metavar": "N", "help": "network calls of ReferenceSolver (40), or steps of a solver with fixed ones"}),
        (
            "--divergence",
            {
                "choices": ["hutchinson", "gaussian", "reference", "hutch++", "exact"],
                "default": "hutchinson",
                "help": "of the velocity: estimated in one of four ways, or exact and slow",
            },
        ),
        ("--prior", {"choices": ["standard", "reference"], "default": "standard", "help": "N(0, sigma^2 I), or the moments of data"}),
        ("--bound", {"type": int, "metavar": "N", "help": "the variational bound too, by N times and noises a sample (none)"}),
        ("--check", {"type": int, "default": 32, "metavar": "N", "help": "samples on which to estimate the errors of steps and cut (32)"}),
        ("--check_steps", {"type": int, "metavar": "N", "help": "N > steps to solve these with, to measure what steps err"}),
        ("--probes", {"type": int, "default": 1, "metavar": "N", "help": "of the estimate; 2 or more give its standard error (1)"}),
        ("--out", {"metavar": "FILE", "help": "a .json file for the result and all settings; beside it .rows.jsonl, to go on from"}),
        ("--overwrite", {"action": "store_true", "help": "start anew, every time, whatever is beside FILE: it does not go on"}),
        *_SEED,
        *_BATCH,
        *_MODEL,
    ),
    "bench": (
        *_RUN,
        *_DATA,
        ("--solvers", {"metavar": "A,B", "help": "classes, commas between, or auto (auto and twelve more, dopri5 at three tolerances)"}),
        ("--nfe", {"default": "5,10,20,50,100", "metavar": "N,N", "help": "network calls a sample (5,10,20,50,100)"}),
        ("--grids", {"metavar": "A,B", "help": "own, uniform, quadratic, karras, log_snr: each solver on each (own)"}),
        ("--samples", {"type": int, "metavar": "N", "help": "of each solver (as many as the test set has, at most 1000)"}),
        ("--n", {"type": int, "metavar": "N", "help": "the same as --samples"}),
        ("--noise", {"choices": ["independent", "path"], "default": "independent", "help": "path: one Brownian path for all budgets"}),
        ("--paths", {"type": int, "metavar": "N", "help": "samples compared with the converged ODE (at most 1000; 0: none, quicker)"}),
        (
            "--features",
            {
                "choices": ["auto", "on", "off"],
                "default": "auto",
                "help": "train a classifier; compare in its features too (auto: images with labels)",
            },
        ),
        ("--out", {"metavar": "FOLDER", "help": "for figures, tables and finished rows (bench in the folder of the run)"}),
        ("--overwrite", {"action": "store_true", "help": "drop the finished rows of other settings in FOLDER"}),
        *_SEED,
        *_BATCH,
        *_MODEL,
    ),
    "tune": (
        *_RUN,
        ("--nfe", {"default": "10", "metavar": "N,N", "help": "network calls a sample, or several with commas between (10)"}),
        ("--t_end", {"type": float, "metavar": "T", "help": "where samples stop (what the SDE says)"}),
        ("--paths", {"type": int, "metavar": "N", "help": "pilot paths, a half of them to judge by (768 for few dimensions, else 128)"}),
        ("--iterations", {"type": int, "metavar": "N", "help": "of Adam, from each of two starts (what two minutes allow; 0: none)"}),
        ("--out", {"metavar": "FOLDER", "help": "where recipe-N.json goes (the folder of the run, where `scoresde sample` finds it)"}),
        *_SEED,
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

    top = parser(prog="scoresde", description=_ABOUT, version=version("scoresde"))
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
    for kind in _SHOWN.get(command, ()):
        lines = [f"  {classes.signature(cls)}" for cls in classes.own(kind).values()]
        base = classes.KINDS[kind][0].__name__
        parts.append("\n".join([f"classes for --{kind}{'s' if command == 'bench' else ''}:", *lines]))
        parts[-1] += f"\n  package.module:Class, a subclass of {base} of your own"
    return "\n\n".join([*parts, f"examples:\n{_EXAMPLES[command]}"])

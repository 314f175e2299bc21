"""Small runs of ``fit``, and what they leave behind, for the tests of training and of resuming."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

import scoresde as sd
from scoresde import data, nets
from scoresde.checkpoints import format
from scoresde.core.processes import Team
from scoresde.training.batches import Source
from scoresde.training.options import Options
from scoresde.training.trainer import Trainer

MOONS = data.toy("moons", 200)


LEVELS = data.Data(
    torch.arange(90, dtype=torch.uint8).view(45, 2) % 5,
    torch.arange(20, dtype=torch.uint8).view(10, 2) % 5,
    sd.Transform(levels=5),
    torch.arange(45) % 3,
    torch.arange(10) % 3,
)


QUICK = {"batch_size": 32, "progress": False, "log_every": 10}


def make(seed=0, dtype=torch.float32, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sd.NetworkModel(nets.MLP(2, 16, 2, **kwargs), sd.VPSDE(), (2,), "v").to(dtype)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def state_of(root):
    """Everything in the newest checkpoint."""
    found = format.read(root, training=True)
    return {f"{file}/{key}": t for file, tensors in found.tensors.items() for key, t in tensors.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(root):
    def refuse(text):
        raise AssertionError(f"{text} in the log")

    return [json.loads(line, parse_constant=refuse) for line in (Path(root) / "log.jsonl").read_text().splitlines()]


RUN = {"steps": 60, "warmup": 7, "checkpoint_every": 7, "validate_every": 25, "lr": 1e-2, **QUICK}


def run(root, model=None, **kwargs):
    model = model or make(dropout=0.2)
    history = sd.fit(model, LEVELS, out=root, **{**RUN, **kwargs})
    return model, history


def stop_at(k, signum):
    def callback(step, line):
        if step == k:
            os.kill(os.getpid(), signum)

    return callback


def options(**given):
    """Those of a call ``fit(model, data, **given)``."""
    parameters = inspect.signature(sd.fit).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return Options.complete(**{k: v for k, v in defaults.items() if k not in ("conditional", "callback", "progress")} | given)


def trainer_for(model, samples=MOONS, **given):
    """A trainer of short steps that ``fit`` would make: ten of eight samples."""
    short = {"steps": 10, "batch_size": 8, "lr": 1e-2, "warmup": 2, "ema": 0.5}
    return Trainer(model, Source.make(samples, model, None), options(**short | given), Team())


def run_script(text, folder, *arguments, processes=1):
    """Runs a script in one process, or in several under torchrun."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *torchrun, str(script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

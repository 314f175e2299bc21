"""What users get wrong: one table of bad inputs, each of which must raise its error, with a message that helps, and never hang.

The numbers are those of the table in tests.md. The whole table runs a second time under ``python -O``, where an ``assert`` would
not hold, and Hypothesis looks for configurations that end otherwise than in a finite result or one of our errors.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchdiffeq  # noqa: F401 (its import is not what is timed)
import torchsde  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import scoresde as sd
from scoresde.cli import main
from scoresde.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointUntrusted,
    CheckpointWriteError,
    ConfigError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    ScaleError,
    ScoreSDEError,
    ShapeError,
    SolverError,
    TimeRangeError,
    TrainingDiverged,
)

NAN, INF = math.nan, math.inf


# ---- what the cases are made of


def model(event=(1, 2, 2), **kwargs):
    return sd.NetworkModel(sd.nets.MLP(event, width=8, depth=1), sd.VPSDE(), event, **kwargs)


def exact(sde=None, dtype=torch.float32):
    return sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2, dtype=dtype), torch.full((1,), 0.3, dtype=dtype)), sde or sd.VPSDE())


def spoiled(value, shape=(1, 2, 2)):
    x = torch.zeros(5, *shape)
    x[3].flatten()[1] = value
    x[4].flatten()[0] = value
    return x


X = torch.zeros(3, 1, 2, 2)


class Foreign(sd.ScoreModel):
    """A model whose answer is a function of (x, t)."""

    def __init__(self, answer, sde=None):
        super().__init__(sde or sd.VPSDE(), (2,))
        self.answer = answer

    def denoise(self, x, t, **cond):
        return self.answer(x, t)


class BlowUp(sd.ScoreModel):
    """dx/dt = 4 sign x^2 for sample 2 of a batch, which from x = 1 is infinite after a time of 1/4; all others stay."""

    def __init__(self, sign):
        super().__init__(sd.VESDE(), (2,))
        self.sign = sign

    def predict(self, x, t, **cond):
        only = (torch.arange(len(x)) == 2)[:, None]
        return 0 * x, 4 * self.sign * x**2 * only / t.sigma_dot


def nan_below(t_bad, value=NAN):
    return Foreign(lambda x, t: torch.where(torch.arange(len(x))[:, None] == 1, value, 0.0).expand_as(x) if t < t_bad else 0 * x)


class Network(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(1)), answer

    def forward(self, x, c_noise, **cond):
        return self.answer(self, x)


def network(answer, event=(2,)):
    return sd.NetworkModel(Network(answer), sd.VPSDE(), event)


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


class Exited(Exception):
    """What a command line ended with: the exit code and what it said on stderr."""


def command(*arguments):
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = main([str(a) for a in arguments])
    text = err.getvalue()
    if code and ("Traceback" in text or len(text.strip().splitlines()) != 1):
        raise RuntimeError(f"not one line on stderr: {text}")
    raise Exited(f"{code}: {text.strip()}")


def limited(work):
    """Writes beyond 1,000 bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def stopped(signum, box):
    def callback(step, line):
        if step == 2:
            os.kill(os.getpid(), signum)

    sd.fit(model((2,)), torch.randn(8, 2), steps=5, batch_size=4, log_every=1, out=box.new, callback=callback, progress=False)


def diverging(box):
    net = network(lambda self, x: x * (self.weight + INF))
    try:
        sd.fit(net, torch.randn(8, 2), steps=5, batch_size=4, out=box.new, checkpoint_every=1, progress=False)
    finally:
        if list(Path(box.new).glob("checkpoint-*")):
            raise RuntimeError("weights after a non-finite loss were saved")


def pickled(box):
    torch.save(model((2,)).state_dict(), box.file("weights.pt"))
    return box.file("weights.pt")


LEVELS = torch.randint(0, 16, (3, 1, 2, 2))
T16 = sd.Transform(levels=16)

# (row, name, what is done with a box of files, error, what its message must hold)
CASES = [
    # data
    (1, "x_init", lambda b: sd.sample(model(), x_init=spoiled(NAN), steps=2), NonFiniteError, r"NaN.*2 non-finite.*index \(3, 0, 0, 1\)"),
    (1, "log_prob", lambda b: sd.log_prob(model(), spoiled(NAN)), NonFiniteError, r"NaN.*2 non-finite.*index \(3, 0, 0, 1\)"),
    (1, "fit", lambda b: sd.fit(model(), spoiled(NAN), steps=1, progress=False), NonFiniteError, r"NaN.*2 non-finite.*index \(3, 0"),
    (1, "mixture", lambda b: sd.GaussianMixture(spoiled(NAN), torch.ones(5)), NonFiniteError, "NaN"),
    (1, "kde", lambda b: sd.GaussianMixture.from_data(spoiled(NAN), 0.1), NonFiniteError, "NaN"),
    (1, "metric", lambda b: sd.metrics.sliced_wasserstein(spoiled(NAN), X), NonFiniteError, "NaN"),
    (2, "x_init", lambda b: sd.sample(model(), x_init=spoiled(INF), steps=2), NonFiniteError, r"inf.*index \(3, 0, 0, 1\)"),
    (2, "log_prob", lambda b: sd.log_prob(model(), spoiled(-INF)), NonFiniteError, r"inf.*index \(3, 0, 0, 1\)"),
    (2, "fit", lambda b: sd.fit(model(), spoiled(INF), steps=1, progress=False), NonFiniteError, r"inf.*index \(3, 0, 0, 1\)"),
    (3, "0-D", lambda b: sd.log_prob(model(), torch.tensor(1.0)), ShapeError, r"shape \(\), expected \(B, \.\.\.\)"),
    (3, "1-D", lambda b: sd.log_prob(model((2,)), torch.zeros(2)), ShapeError, r"shape \(2,\), expected \(B, \.\.\.\)"),
    (3, "1-D to score", lambda b: model((2,)).score(torch.zeros(2), 0.5), ShapeError, r"shape \(2,\), expected \(B"),
    (3, "1-D to sample", lambda b: sd.sample(model((2,)), x_init=torch.zeros(2), steps=1), ShapeError, r"shape \(2,\), expected \(B"),
    (3, "1-D to fit", lambda b: sd.fit(model((2,)), torch.zeros(2), steps=1, progress=False), ShapeError, r"shape \(2,\), expected \(B"),
    (4, "log_prob", lambda b: sd.log_prob(model(), X[:0]), ShapeError, "empty batch"),
    (4, "bits_per_dim", lambda b: sd.bits_per_dim(model(), LEVELS[:0], T16), ShapeError, "empty batch"),
    (4, "fit", lambda b: sd.fit(model(), X[:0], steps=1, progress=False), ShapeError, "empty batch"),
    (4, "x_init", lambda b: sd.sample(model(), x_init=X[:0], steps=1), ShapeError, "empty batch"),
    (5, "channels", lambda b: model().score(torch.zeros(3, 3, 2, 2), 0.5), ShapeError, r"\(3, 3, 2, 2\).*\(1, 2, 2\)"),
    (5, "features", lambda b: sd.log_prob(model((2,)), torch.zeros(3, 5)), ShapeError, r"\(3, 5\).*\(2,\)"),
    (5, "x_init", lambda b: sd.sample(model(), x_init=torch.zeros(3, 4), steps=1), ShapeError, r"\(3, 4\).*\(1, 2, 2\)"),
    (5, "fit", lambda b: sd.fit(model(), torch.zeros(3, 4), steps=1, progress=False), ShapeError, r"\(3, 4\).*\(1, 2, 2\)"),
    (6, "(B, 1)", lambda b: model((2,)).score(torch.zeros(5, 2), torch.full((5, 1), 0.5)), ShapeError, r"t has shape \(5, 1\).*\(5, 2\)"),
    (6, "another B", lambda b: model((2,)).score(torch.zeros(5, 2), torch.full((4,), 0.5)), ShapeError, r"t has shape \(4,\).*\(5, 2\)"),
    (6, "perturb", lambda b: sd.VPSDE().perturb(torch.zeros(5, 2), torch.full((5, 1), 0.5), torch.zeros(5, 2)), ShapeError, r"t has shape \(5, 1\)"),
    (6, "drift", lambda b: sd.VPSDE().drift(torch.zeros(5, 2), torch.full((5, 1), 0.5)), ShapeError, r"t has shape \(5, 1\)"),
    (7, "log_prob", lambda b: sd.log_prob(model(), LEVELS), DTypeError, r"torch\.int64.*give a `Transform`"),
    (7, "uint8", lambda b: sd.log_prob(model(), LEVELS.to(torch.uint8)), DTypeError, r"torch\.uint8.*give a `Transform`"),
    (7, "fit", lambda b: sd.fit(model(), LEVELS, steps=1, progress=False), DTypeError, r"torch\.int64.*give a `Transform`"),
    (7, "x_init", lambda b: sd.sample(model(), x_init=LEVELS, steps=1), DTypeError, r"torch\.int64.*give a `Transform`"),
    (7, "score", lambda b: exact().score(torch.zeros(3, 2, dtype=torch.int64), 0.5), DTypeError, r"torch\.int64.*give a `Transform`"),
    (8, "complex", lambda b: sd.log_prob(model(), X.to(torch.complex64)), DTypeError, r"torch\.complex64"),
    (8, "bool", lambda b: sd.log_prob(model(), X.bool()), DTypeError, r"torch\.bool"),
    (8, "list", lambda b: sd.log_prob(model((2,)), [[0.0, 0.0]]), DTypeError, "list"),
    (8, "array", lambda b: sd.log_prob(model((2,)), torch.zeros(1, 2).numpy()), DTypeError, "ndarray"),
    (8, "None", lambda b: sd.log_prob(model((2,)), None), DTypeError, "NoneType"),
    (8, "levels", lambda b: sd.bits_per_dim(model(), X, T16), DTypeError, r"float32.*integers 0\.\.15"),
    (9, "[0, 255]", lambda b: sd.log_prob(model(transform=sd.Transform(256)), X + 255), ScaleError, r"255.*\[-1, 1\].*check_scale=False"),
    (9, "[0, 17]", lambda b: sd.log_prob(model(transform=T16), X - 17), ScaleError, r"-17.*\[-1, 1\].*check_scale=False"),
    (10, "log_prob", lambda b: sd.log_prob(model((2,)), torch.zeros(3, 2).double()), DTypeError, r"float64.*float32"),
    (10, "score", lambda b: model((2,)).score(torch.zeros(3, 2).double(), 0.5), DTypeError, r"float64.*float32"),
    (10, "fit", lambda b: sd.fit(model((2,)), torch.zeros(3, 2).double(), steps=1, progress=False), DTypeError, r"float64.*float32"),
    (11, "x_init", lambda b: sd.sample(model((2,)).to("meta"), x_init=torch.zeros(3, 2), steps=1), DeviceError, "cpu.*meta"),
    (11, "log_prob", lambda b: sd.log_prob(model((2,)).to("meta"), torch.zeros(3, 2)), DeviceError, "cpu.*meta"),
    # times
    (12, "negative", lambda b: exact().score(torch.zeros(3, 2), -0.1), TimeRangeError, r"t = -0\.1.*\[1e-05, 1\]"),
    (12, "beyond", lambda b: exact().score(torch.zeros(3, 2), 1.1), TimeRangeError, r"t = 1\.1.*\[1e-05, 1\]"),
    (12, "tensor", lambda b: exact().score(torch.zeros(3, 2), torch.tensor([0.5, 2.0, 0.5])), TimeRangeError, r"t = 2.*\[1e-05, 1\]"),
    (12, "times", lambda b: sd.sample(exact(), 2, times=[1.5, 0.5]), TimeRangeError, r"1\.5.*\[1e-05, 1\]"),
    (12, "log_prob", lambda b: exact().log_prob(torch.zeros(3, 2), 1.1), TimeRangeError, r"t = 1\.1"),
    (12, "no number", lambda b: exact().score(torch.zeros(3, 2), None), ConfigError, "t = None"),
    (13, "score", lambda b: exact().score(torch.zeros(3, 2), 0.0), TimeRangeError, r"t = 0 .*\[t_min, t_max\] = \[1e-05"),
    (13, "times", lambda b: sd.sample(exact(), 2, times=[0.5, 0.0]), TimeRangeError, r"to 0, .*\[1e-05"),
    (13, "edm", lambda b: exact(sd.EDMSDE()).score(torch.zeros(3, 2), 1e-3), TimeRangeError, r"0\.001.*\[0\.002, 80\]"),
    (14, "float", lambda b: exact().score(torch.zeros(3, 2), NAN), NonFiniteError, "^t holds NaN"),
    (14, "tensor", lambda b: exact().score(torch.zeros(3, 2), torch.tensor([0.5, NAN, 0.5])), NonFiniteError, "^t holds NaN"),
    (14, "times", lambda b: sd.sample(exact(), 2, times=[0.5, NAN]), NonFiniteError, "times hold NaN"),
    # SDEs
    (15, "vp", lambda b: sd.VPSDE(beta_min=20.0, beta_max=0.1), ConfigError, r"beta_min = 20\.0 and beta_max = 0\.1"),
    (15, "subvp", lambda b: sd.SubVPSDE(beta_min=20.0, beta_max=0.1), ConfigError, r"beta_min = 20\.0 and beta_max = 0\.1"),
    (16, "0", lambda b: sd.VPSDE(beta_min=0.0), ConfigError, "beta_min > 0"),
    (16, "negative", lambda b: sd.SubVPSDE(beta_min=-5.0), ConfigError, "beta_min > 0"),
    (16, "NaN", lambda b: sd.VPSDE(beta_min=NAN), ConfigError, "beta_min > 0"),
    (16, "text", lambda b: sd.VPSDE(beta_max="20"), ConfigError, "beta_max = '20'"),
    (17, "equal", lambda b: sd.VESDE(sigma_min=1.0, sigma_max=1.0), ConfigError, r"sigma_min = 1\.0 and sigma_max = 1\.0"),
    (17, "swapped", lambda b: sd.EDMSDE(sigma_min=80.0, sigma_max=0.1), ConfigError, r"sigma_min = 80\.0 and sigma_max = 0\.1"),
    (17, "0", lambda b: sd.VESDE(sigma_min=0.0), ConfigError, "sigma_min > 0"),
    (17, "NaN", lambda b: sd.EDMSDE(sigma_max=NAN), ConfigError, "sigma_max > 0"),
    (17, "infinite", lambda b: sd.EDMSDE(sigma_max=INF), ConfigError, "sigma_max"),
    (18, "0", lambda b: sd.VPSDE(t_max=0.0), ConfigError, "t_max"),
    (18, "infinite", lambda b: sd.VESDE(t_max=INF), ConfigError, "t_max"),
    (18, "NaN", lambda b: sd.SubVPSDE(t_max=NAN), ConfigError, "t_max"),
    (18, "1", lambda b: sd.CosineSDE(t_max=1.0), ConfigError, r"t_max = 1\.0.*t_max < 1"),
    (18, "beyond 1", lambda b: sd.RectifiedFlow(t_max=1.5), ConfigError, r"t_max = 1\.5.*t_max < 1"),
    (18, "alpha underflows", lambda b: exact(sd.VPSDE(t_max=37.0)), ConfigError, r"alpha = 0 .* at t = 37 .*another t_min or t_max"),
    (18, "sigma overflows", lambda b: exact(sd.VESDE(t_max=90.0)), ConfigError, r"sigma = \S+ at t = 90 .*another t_min or t_max"),
    (19, "t_end of the SDE", lambda b: sd.VPSDE(t_end="1"), ConfigError, "t_end = '1'"),
    (19, "t_min 0", lambda b: sd.VPSDE(t_min=0.0), ConfigError, "t_min > 0"),
    (19, "t_min above", lambda b: sd.VPSDE(t_min=2.0), ConfigError, r"t_min = 2\.0 and t_max = 1\.0"),
    (19, "t_end above", lambda b: sd.VPSDE(t_end=2.0), ConfigError, r"t_end = 2\.0 and t_max = 1\.0"),
    (19, "t_end below", lambda b: sd.sample(exact(), 2, steps=2, t_end=1e-9), ConfigError, r"t_end = 1e-09.*t_min = 1e-05"),
    (19, "t_end past", lambda b: sd.sample(exact(), 2, steps=2, t_end=1.0), ConfigError, r"t_end = 1\b.*t_max = 1"),
    (19, "t_end NaN", lambda b: sd.sample(exact(), 2, steps=2, t_end=NAN), ConfigError, "t_end = nan"),
    (19, "t_end text", lambda b: sd.sample(exact(), 2, steps=2, t_end="soon"), ConfigError, "t_end = 'soon'"),
    # solvers and sampling
    *[
        (20, repr(steps), lambda b, steps=steps: sd.sample(exact(), 2, steps=steps), ConfigError, "steps = .*positive integer")
        for steps in (0, -1, 2.5, True, NAN, "3")
    ],
    (20, "log_prob", lambda b: sd.log_prob(exact(), torch.zeros(2, 2), solver=sd.Heun(), steps=0), ConfigError, "steps = 0.*positive"),
    (20, "grid", lambda b: sd.grid.uniform(sd.VPSDE(), 0), ConfigError, "steps = 0.*positive integer"),
    (20, "karras", lambda b: sd.grid.karras(sd.VPSDE(), 2.5), ConfigError, "steps = 2.5.*positive integer"),
    (20, "fit", lambda b: sd.fit(model((2,)), torch.zeros(3, 2), steps=0, progress=False), ConfigError, "steps = 0.*positive integer"),
    (20, "n", lambda b: sd.sample(exact(), -1, steps=2), ConfigError, "n = -1"),
    (20, "n 2.5", lambda b: sd.sample(exact(), 2.5, steps=2), ConfigError, r"n = 2\.5"),
    (20, "no n", lambda b: sd.sample(exact(), steps=2), ConfigError, "how many"),
    (20, "batch_size", lambda b: sd.sample(exact(), 2, steps=2, batch_size=0), ConfigError, "batch_size = 0.*positive integer"),
    (20, "probes", lambda b: sd.log_prob(exact(), torch.zeros(2, 2), probes=0), ConfigError, "probes = 0.*positive integer"),
    (20, "seed", lambda b: sd.sample(exact(), 2, steps=2, seed=-1), ConfigError, "seed = -1"),
    (20, "seed None", lambda b: sd.sample(exact(), 2, steps=2, seed=None), ConfigError, "seed = None"),
    (20, "ids", lambda b: sd.sample(exact(), 2, steps=2, ids=[1]), ConfigError, "1 ids for n = 2"),
    (21, "0", lambda b: sd.Langevin(snr=0.0), ConfigError, "snr > 0"),
    (21, "negative", lambda b: sd.Langevin(snr=-0.1), ConfigError, "snr > 0"),
    (21, "NaN", lambda b: sd.Langevin(snr=NAN), ConfigError, "snr > 0"),
    (22, "negative", lambda b: sd.Langevin(steps=-1), ConfigError, "steps = -1 of Langevin"),
    (22, "2.5", lambda b: sd.Langevin(steps=2.5), ConfigError, r"steps = 2\.5 of Langevin"),
    (22, "order", lambda b: sd.PredictorCorrector(order="both"), ConfigError, "order = 'both'"),
    (22, "no corrector", lambda b: sd.PredictorCorrector(corrector=sd.Heun()), ConfigError, "corrector = Heun"),
    (22, "corrector class", lambda b: sd.PredictorCorrector(corrector=sd.Langevin), ConfigError, r"corrector.*Langevin\(\)"),
    (22, "no predictor", lambda b: sd.PredictorCorrector(predictor="euler"), ConfigError, "predictor = 'euler'"),
    (23, "torchdiffeq", lambda b: sd.TorchDiffEq("eulr"), ConfigError, "dopri5.*did you mean 'euler'"),
    (23, "torchsde", lambda b: sd.TorchSDE("miln"), ConfigError, "euler, srk"),
    (23, "class", lambda b: sd.sample(exact(), 2, solver=sd.Heun, steps=2), ConfigError, r"class.*Heun\(\)"),
    (23, "text", lambda b: sd.sample(exact(), 2, solver="heun", steps=2), ConfigError, "solver = 'heun'"),
    (23, "parameterization", lambda b: model(parameterization="epsilon"), ConfigError, "did you mean 'eps'"),
    (23, "divergence", lambda b: sd.log_prob(exact(), torch.zeros(2, 2), divergence="exakt"), ConfigError, "'exact'"),
    (23, "command line", lambda b: command("sample", b.run, "--solver", "eulr", "--out", b.file("x.png")), Exited, r"^2: .*[dD]id you mean.*Euler"),
    (23, "command", lambda b: command("smaple", b.run), Exited, r"^2: .*sample"),
    (23, "option", lambda b: command("sample", b.run, "--stpes", "3"), Exited, r"^2: .*stpes.*steps"),
    (24, "both", lambda b: sd.sample(exact(), 2, steps=2, times=[1.0, 0.5]), ConfigError, "both steps = 2 and times"),
    (24, "t_end", lambda b: sd.sample(exact(), 2, t_end=0.5, times=[1.0, 0.5]), ConfigError, "t_end.*times"),
    (24, "rising", lambda b: sd.sample(exact(), 2, times=[0.5, 1.0]), ConfigError, "times are not decreasing"),
    (24, "one", lambda b: sd.sample(exact(), 2, times=[0.5]), ConfigError, "times have shape"),
    (24, "2-D", lambda b: sd.sample(exact(), 2, times=[[1.0, 0.5]]), ConfigError, "times have shape"),
    (24, "text", lambda b: sd.sample(exact(), 2, times="abc"), ConfigError, "times = 'abc'"),
    (24, "n and x_init", lambda b: sd.sample(exact(), 3, x_init=torch.zeros(2, 2), steps=1), ConfigError, "n = 3, but x_init has 2"),
    *[
        (25, f"{name} {value}", lambda b, kw={name: value}: sd.TorchDiffEq(**kw), ConfigError, f"{name} > 0")
        for name in ("rtol", "atol")
        for value in (0.0, -1e-5, NAN, INF)
    ],
    (25, "max_nfe", lambda b: sd.TorchDiffEq(max_nfe=0), ConfigError, "max_nfe = 0.*positive integer"),
    (25, "eta", lambda b: sd.EulerMaruyama(eta=-1.0), ConfigError, "eta = -1"),
    (25, "eta of ddim", lambda b: sd.DDIM(eta=1.5), ConfigError, r"eta = 1\.5"),
    (25, "eta NaN", lambda b: sd.DDIM(eta=NAN), ConfigError, "eta = nan"),
    (26, "dt = 0", lambda b: sd.sample(exact(), 2, solver=sd.TorchSDE(), times=[1.0, 0.5, 0.5]), ConfigError, "times are not decreasing"),
    (26, "dt < 0", lambda b: sd.sample(exact(), 2, solver=sd.TorchSDE(), times=[0.5, 0.6]), ConfigError, "times are not decreasing"),
    (26, "dt NaN", lambda b: sd.sample(exact(), 2, solver=sd.TorchSDE(), times=[0.5, NAN]), NonFiniteError, "times hold NaN"),
    (26, "dt backwards", lambda b: sd.log_prob(exact(), torch.zeros(2, 2), solver=sd.TorchSDE()), ConfigError, "TorchSDE.*TorchDiffEq"),
    (26, "no noise", lambda b: sd.TorchSDE(eta=0.0), ConfigError, "TorchDiffEq"),
    (
        27,
        "underflow",
        lambda b: sd.sample(BlowUp(-1), x_init=torch.ones(4, 2).double(), ids=range(70, 74), solver=sd.TorchDiffEq(rtol=1e-3), batch_size=4),
        SolverError,
        r"dopri5.*underflowed at t = 0\.7[45]\d* after \d+ network calls \(sample ids \[72\]\); loosen rtol and atol",
    ),
    (
        27,
        "underflow of log_prob",
        lambda b: sd.log_prob(BlowUp(1), torch.ones(3, 2).double(), solver=sd.TorchDiffEq(rtol=1e-3)),
        SolverError,
        r"dopri5.*underflowed at t = 0\.2[45]\d* after \d+ network calls \(sample ids \[2\]\)",
    ),
    (
        28,
        "max_nfe",
        lambda b: sd.sample(exact(), 4, solver=sd.TorchDiffEq(rtol=1e-9, atol=1e-9, max_nfe=50)),
        SolverError,
        r"max_nfe = 50 network calls reached at t = 0\.\d+ after 50 network calls",
    ),
    (28, "max_nfe fixed", lambda b: sd.sample(exact(), 4, solver=sd.TorchDiffEq("rk4", max_nfe=6), steps=5), SolverError, "max_nfe = 6 .* after 6 "),
    (28, "log_prob", lambda b: sd.log_prob(exact(), torch.ones(3, 2), solver=sd.TorchDiffEq(max_nfe=9)), SolverError, "max_nfe = 9 .* after 9 "),
    *[
        (
            29,
            f"{solver!r} {value}",
            lambda b, solver=solver, value=value: sd.sample(
                nan_below(0.55, value), 3, ids=[5, 6, 7], solver=solver, times=sd.grid.uniform(sd.VPSDE(), 40), batch_size=3
            ),
            SolverError,
            r"steps 16 to 31, t from 0\.6\d* to 0\.2\d*, for sample ids \[6\]",
        )
        for solver in (sd.Euler(), sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchSDE(), sd.TorchDiffEq("rk4"))
        for value in (NAN, INF)
    ],
    (
        29,
        "adaptive",
        lambda b: sd.sample(nan_below(0.55), 3, ids=[5, 6, 7], solver=sd.TorchDiffEq(), batch_size=3),
        SolverError,
        r"dopri5.* at t = 0\.[345]\d* after \d+ network calls.*not finite.*\(sample ids \[6\]\)",
    ),
    (29, "at once", lambda b: sd.sample(nan_below(2.0), 3, solver=sd.TorchDiffEq(), batch_size=3), SolverError, r"t = 1 after 1 .*not finite.*ids \[1\]\)"),
    (29, "log_prob", lambda b: sd.log_prob(network(lambda self, x: x * NAN), torch.ones(3, 2)), SolverError, r"not finite.*ids \[0, 1, 2\]"),
    (29, "trajectory", lambda b: list(sd.trajectory(nan_below(0.5), 3, steps=4)), SolverError, r"steps 0 to 3.*ids \[1\]"),
    (30, "None", lambda b: network(lambda self, x: None).score(torch.zeros(3, 2), 0.5), ShapeError, r"NoneType.*\(3, 2\)"),
    (30, "one column", lambda b: network(lambda self, x: x[:, :1]).score(torch.zeros(3, 2), 0.5), ShapeError, r"\(3, 1\).*\(3, 2\)"),
    (30, "sample", lambda b: sd.sample(network(lambda self, x: x[:1]), 3, steps=2, batch_size=3), ShapeError, r"\(1, 2\).*\(3, 2\)"),
    (30, "log_prob", lambda b: sd.log_prob(network(lambda self, x: x.sum()), torch.zeros(3, 2)), ShapeError, r"\(\).*\(3, 2\)"),
    (30, "prior", lambda b: sd.log_prob(exact(), torch.zeros(3, 2), prior=lambda x: x), ConfigError, r"prior.*\(3, 2\).*\(3,\)"),
    (30, "not the ODE", lambda b: sd.log_prob(exact(), torch.zeros(2, 2), solver=sd.DDIM()), ConfigError, "probability-flow ODE"),
    (30, "not a model", lambda b: sd.sample(nn.Identity(), 2, steps=2), ConfigError, "Identity.*ScoreModel"),
    (31, "no transform", lambda b: sd.bits_per_dim(model(), LEVELS), ConfigError, r"[Tt]ransform\(levels="),
    (31, "too high", lambda b: sd.bits_per_dim(model(), LEVELS + 16, T16), ConfigError, r"Transform\(levels=16\).*Transform\(levels=\.\.\.\)"),
    (31, "negative", lambda b: sd.bits_per_dim(model(), LEVELS - 16, T16), ConfigError, r"Transform\(levels=16\)"),
    # checkpoints
    (32, "nothing", lambda b: sd.load(b.new), CheckpointNotFound, "no checkpoint at /.*new"),
    (32, "an empty folder", lambda b: sd.load(b.folder), CheckpointNotFound, "no checkpoint in /"),
    (32, "command line", lambda b: command("sample", b.new, "--out", b.file("x.npz")), Exited, "^1: .*no checkpoint at /.*new"),
    (33, "device", lambda b: sd.load("/dev/null"), CheckpointError, "not a regular file"),
    (33, "FIFO", lambda b: (os.mkfifo(b.file("fifo")), sd.load(b.file("fifo"))), CheckpointError, "not a regular file"),
    (33, "weights a folder", lambda b: (b.weights.unlink(), b.weights.mkdir(), sd.load(b.run)), CheckpointError, "not a regular file"),
    (34, "truncated", lambda b: (os.truncate(b.weights, 100), sd.load(b.run)), CheckpointCorrupt, r"model\.safetensors.* 100 bytes, expected \d+ bytes"),
    (34, "empty", lambda b: (os.truncate(b.weights, 0), sd.load(b.run)), CheckpointCorrupt, r"model\.safetensors.* 0 bytes, expected \d+ bytes"),
    (34, "garbage", lambda b: (b.config.write_bytes(b"garbage"), sd.load(b.run)), CheckpointCorrupt, r"config\.json.*7 bytes.*expected bytes"),
    (34, "a file", lambda b: (Path(b.file("f")).write_text("x" * 9), sd.load(b.file("f"))), CheckpointCorrupt, "9 bytes; expected bytes"),
    (35, "flipped", lambda b: (flip_bit(b.weights, -5), sd.load(b.run)), CheckpointCorrupt, r"sha256.*tensor net\.\S+ damaged"),
    (35, "flipped config", lambda b: (flip_bit(b.config, -9), sd.load(b.run)), CheckpointCorrupt, r"config\.json.*sha256"),
    (36, ".pt", lambda b: sd.load(pickled(b)), CheckpointUntrusted, r"pickle refused; save with `scoresde\.save`"),
    (36, "in disguise", lambda b: (shutil.copy(pickled(b), b.weights), sd.load(b.run)), CheckpointError, r"model\.safetensors"),
    (37, "sde", lambda b: sd.load(b.run, sde=sd.VESDE()), CheckpointMismatch, r"sde\.\S+ is .* in the checkpoint, but .* was requested"),
    (37, "sde field", lambda b: sd.load(b.run, sde=sd.VPSDE(beta_max=9.0)), CheckpointMismatch, r"sde\.args\.beta_max is 20\.0.*9\.0"),
    (37, "net", lambda b: sd.load(b.run, net=sd.nets.MLP((2,), width=16, depth=1)), CheckpointMismatch, r"net\.args\.width is 8 .*16"),
    (37, "parameterization", lambda b: sd.load(b.run, parameterization="eps"), CheckpointMismatch, "parameterization is 'v'.*'eps'"),
    (37, "keys", lambda b: sd.load(b.run, model=b.other), CheckpointMismatch, "missing keys.*unexpected keys|class"),
    (38, "a file in the way", lambda b: sd.save(model((2,)), b.file("f/x")), CheckpointWriteError, "could not write.*no previous checkpoint"),
    (38, "full", lambda b: limited(lambda: sd.save(model((2,)), b.run)), CheckpointWriteError, r"could not write.*previous checkpoint intact: /\S+"),
    # training
    (39, "Ctrl-C", lambda b: stopped(signal.SIGINT, b), KeyboardInterrupt, r"saved step \d+"),
    (39, "SIGTERM", lambda b: stopped(signal.SIGTERM, b), SystemExit, "143"),
    (40, "loss", diverging, TrainingDiverged, r"step 1:.*t = .*learning rate"),
    (40, "arguments", lambda b: sd.fit(model((2,)), torch.zeros(3, 2), steps=1, lr=NAN, progress=False), ConfigError, "lr = nan"),
    (40, "no data", lambda b: sd.fit(model((2,)), None, steps=1, progress=False), ConfigError, "NoneType"),
]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What torch imports at its first use of this and that takes seconds, which are not those of the guard."""
    import torch._dynamo  # noqa: F401


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    sd.save(model((2,)), folder)
    return folder


@pytest.fixture
def box(saved, tmp_path):
    """Files to spoil: a saved run and its two files, a folder, a file, a path where nothing is, and another model."""
    shutil.copytree(saved, tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("checkpoint-*")
    (tmp_path / "empty").mkdir()
    (tmp_path / "f").write_text("x")
    return SimpleNamespace(
        run=tmp_path / "run",
        weights=folder / "model.safetensors",
        config=folder / "config.json",
        folder=tmp_path / "empty",
        new=tmp_path / "new",
        file=lambda name: str(tmp_path / name),
        other=network(lambda self, x: x),
    )


@pytest.mark.parametrize(
    ("work", "error", "message"), [case[2:] for case in CASES], ids=[f"{row}-{name}" for row, name, *_ in CASES]
)
def test_row(work, error, message, box):
    if os.environ.get("SCORESDE_TABLE_OPTIMIZED") and sys.flags.optimize != 1:
        raise RuntimeError("this run should be one of python -O")

    def late(signum, frame):
        raise TimeoutError("60 seconds")  # enough for a busy machine: this is against hanging

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        with pytest.raises(error) as caught:
            work(box)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    text = str(caught.value)
    if not re.search(message, text, re.DOTALL):
        pytest.fail(f"{message!r} is not in {text!r}")
    if issubclass(error, ScoreSDEError):
        standard = tuple(c for c in type(caught.value).__mro__ if c.__module__ == "builtins" and issubclass(c, Exception))
        if standard[0] is Exception and error is not CheckpointError:
            pytest.fail(f"{error.__name__} is no standard error")
        if type(caught.value) is not error and error is not CheckpointError:
            pytest.fail(f"{type(caught.value).__name__} for {error.__name__}")
        if error is not SolverError and "\n" in text:
            pytest.fail(f"more than a line: {text!r}")
    if error is CheckpointWriteError and not caught.value.errno:
        pytest.fail("errno is lost")


def test_every_row_that_exists_is_in_the_table():
    assert {row for row, *_ in CASES} == set(range(1, 41))
    names = [(row, name) for row, name, *_ in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_the_whole_table_under_python_O():
    """Where ``assert`` statements are not executed: those of torchdiffeq among them."""
    command = [sys.executable, "-O", "-m", "pytest", __file__, "-k", "test_row", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "SCORESDE_TABLE_OPTIMIZED": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{len(CASES)} passed" in done.stdout


def test_the_previous_checkpoint_is_intact_after_a_full_disk(box):
    before = {p.name: p.read_bytes() for p in box.weights.parent.iterdir()}
    with pytest.raises(CheckpointWriteError):
        limited(lambda: sd.save(model((2,)), box.run))
    assert {p.name: p.read_bytes() for p in box.weights.parent.iterdir()} == before
    sd.load(box.run)


# ---- any configuration: a finite result, or one of our errors

numbers = st.one_of(
    st.floats(min_value=1e-6, max_value=100.0),
    st.sampled_from([0.0, -1.0, NAN, INF, -INF, 1e-300, 1e300, 0, 1, 2, True, None, "1", 1e-5, 0.5, 1.0]),
)
counts = st.one_of(st.integers(1, 6), st.sampled_from([0, -1, 2.5, True, None, "3", NAN]))


def maybe(strategy):
    return st.one_of(st.none(), strategy)


def made(cls, **fields):
    return st.fixed_dictionaries({}, optional=fields).map(lambda kw: (cls, kw))


sdes = st.one_of(
    made(sd.VPSDE, beta_min=numbers, beta_max=numbers, t_min=numbers, t_max=numbers, t_end=numbers),
    made(sd.SubVPSDE, beta_min=numbers, beta_max=numbers, t_min=numbers, t_max=numbers, t_end=numbers),
    made(sd.VESDE, sigma_min=numbers, sigma_max=numbers, t_min=numbers, t_max=numbers),
    made(sd.CosineSDE, t_min=numbers, t_max=numbers, t_end=numbers),
    made(sd.EDMSDE, sigma_min=numbers, sigma_max=numbers),
    made(sd.RectifiedFlow, t_min=numbers, t_max=numbers, t_end=numbers),
)
solvers = st.one_of(
    *(made(cls) for cls in (sd.Euler, sd.Heun, sd.RK4, sd.Ancestral, sd.ReverseDiffusion, sd.PredictorCorrector)),
    *(made(cls, eta=numbers) for cls in (sd.EulerMaruyama, sd.DDIM)),
    made(sd.TorchSDE, eta=numbers, method=st.sampled_from(["euler", "srk", "heun", "nothing"])),
    made(sd.Langevin, snr=numbers, steps=counts),
    made(sd.TorchDiffEq, method=st.sampled_from(["dopri5", "rk4", "x"]), rtol=numbers, atol=numbers, max_nfe=st.sampled_from([0, 20, 200])),
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    sde=sdes,
    solver=solvers,
    steps=maybe(counts),
    times=maybe(st.lists(numbers, max_size=4)),
    t_end=maybe(numbers),
    n=st.one_of(st.integers(0, 3), st.sampled_from([-1, 2.5, None, "2"])),
    seed=st.one_of(st.integers(0, 1 << 64), st.sampled_from([-1, 0.5, None])),
    ids=maybe(st.lists(st.one_of(st.integers(-1, 5), st.just(1 << 41)), max_size=3)),
    batch_size=maybe(counts),
    std=st.sampled_from([1e-6, 0.1, 1.0, 100.0]),
    single=st.booleans(),
)
def test_any_configuration_is_finite_or_refused(sde, solver, steps, times, t_end, n, seed, ids, batch_size, std, single):
    dtype = torch.float32 if single else torch.float64
    try:
        built, solver = sde[0](**sde[1]), solver[0](**solver[1])
        target = sd.GaussianMixture(torch.tensor([[0.3, -0.2]], dtype=dtype), torch.tensor([std], dtype=dtype))
        x = sd.sample(
            sd.ExactModel(target, built),
            n,
            solver=solver,
            steps=steps if steps is not None or times is not None else 3,
            times=times,
            t_end=t_end,
            seed=seed,
            ids=ids,
            batch_size=batch_size,
        )
    except ScoreSDEError as error:
        assert str(error)
    else:
        assert x.shape == (n, 2)
        assert bool(x.isfinite().all())


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    sde=sdes,
    solver=solvers,
    steps=maybe(counts),
    divergence=st.sampled_from(["exact", "hutchinson", "nothing"]),
    probes=counts,
    std=st.sampled_from([1e-6, 0.1, 1.0, 100.0]),
    scale=st.sampled_from([0.0, 1.0, 1e3, 1e30]),
    single=st.booleans(),
)
def test_any_likelihood_is_finite_or_refused(sde, solver, steps, divergence, probes, std, scale, single):
    dtype = torch.float32 if single else torch.float64
    try:
        built, solver = sde[0](**sde[1]), solver[0](**solver[1])
        target = sd.GaussianMixture(torch.tensor([[0.3, -0.2]], dtype=dtype), torch.tensor([std], dtype=dtype))
        found = sd.log_prob(
            sd.ExactModel(target, built),
            scale * torch.tensor([[0.5, 1.0], [-1.0, 2.0]], dtype=dtype),
            solver=solver,
            steps=3 if steps is None and not isinstance(solver, sd.TorchDiffEq) else steps,
            divergence=divergence,
            probes=probes,
        )
    except ScoreSDEError as error:
        assert str(error)
    else:
        assert found.log_prob.shape == (2,)
        assert bool(found.log_prob.isfinite().all())

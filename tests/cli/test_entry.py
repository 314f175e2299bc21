"""From arguments to an exit code: what makes no sense is one line that says what to do."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

from scoresde.cli import main, options

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("frobnicate", 2, "invalid choice: 'frobnicate'"),
        ("trian --data digits", 2, "did you mean 'train'"),
        ("train", 2, "required: --out"),
        ("sample", 2, "required: run$"),
        ("train --data digist --out x", 2, "did you mean 'digits'"),
        ("train --data digits --out x --steps 0", 2, "steps = 0, expected a positive integer"),
        ("train --data digits --out x --steps 2.5", 2, "--steps: got 2.5, expected int"),
        ("train --data digits --out x --minutes soon", 2, "--minutes: got soon, expected float"),
        ("train --data digits --out x --steps 2 --minutes 3", 2, "steps = 2 and minutes = 3.0"),
        ("train --data digits --out x --stpes 2", 2, "--stpes.*did you mean '--steps'"),
        ("train --data digits --out x --sde VPSED", 2, "expected one of [^;]*VESDE[^;]*; did you mean 'VPSDE'"),
        ("train --data digits --out x --sde VESDE --sde.sigma_mxa 3", 2, "takes sigma_min, .*did you mean 'sigma_max'"),
        ("train --data digits --out x --sde.beta_max", 2, "--sde.beta_max needs a value"),
        ("train --data digits --out x --sde.beta_max five", 2, "--sde.beta_max = 'five', expected float"),
        ("train --data digits --out x --sde.beta_min 30", 2, "beta_min = 30.0 and beta_max = 20.0"),
        ("train --data digits --out x --solver.rtol 1", 2, "`scoresde train` takes no --solver"),
        ("train --data digits --out x --parameterization epsilon", 2, "did you mean 'eps'"),
        ("train --data digits --out x --weighting liklihood", 2, "did you mean 'likelihood'"),
        ("train --data moons --out x --conditional", 2, "moons has no labels"),
        ("train --data digits --out x --net ResNet", 2, "--net 'ResNet' is unknown, expected one of MLP, UNet"),
        ("train --data digits --out x --threads 0", 2, "threads = 0"),
        ("train --data {runs} --out x", 1, "no train-images-idx3"),
        ("sample {runs}/nothing", 1, "no checkpoint at .*nothing"),
        ("sample {runs}/digits --solver Huen", 2, "did you mean 'Heun'"),
        ("sample {runs}/digits --solver TorchDiffEq --solver.method dopri6", 2, "did you mean 'dopri"),
        ("sample {runs}/digits --solver DDIM --solver.eta.x 1", 2, "eta of DDIM is a plain value"),
        ("sample {runs}/digits --out x.jpg", 2, "x.jpg: expected a name that ends in .png"),
        ("sample {runs}/digits --n 0", 2, "n = 0"),
        ("sample {runs}/digits --steps -1", 2, "steps = -1"),
        ("sample {runs}/digits --seed -1", 2, "seed = -1"),
        ("sample {runs}/digits --label 3", 2, "trained without labels"),
        ("sample {runs}/labels --label 10", 2, "expected classes 0..9"),
        ("sample {runs}/labels --label one", 2, "expected classes 0..9"),
        ("sample {runs}/digits --net.width 3", 2, "--net.width without --net"),
        ("sample {runs}/digits --sde VESDE", 1, "sde"),
        ("sample {runs}/digits --device nowhere", 2, "--device nowhere"),
        ("sample {runs}/digits --t_end 5", 2, "t_end = 5"),
        ("nll {runs}/digits --data moons", 2, r"\(1, 8, 8\), but moons has \(2,\)"),
        ("nll {runs}/digits --data digits --split tset", 2, "invalid choice: 'tset'"),
        ("nll {runs}/digits --data digits --solver DDIM --n 2 --steps 2", 2, "TorchDiffEq, Euler, Heun or RK4"),
        ("nll {runs}/digits --data digits --rtol 0 --n 2", 2, "rtol = 0.0"),
        ("nll {runs}/digits --data digits --solver TorchDiffEq --solver.max_nfe 5 --n 2", 1, "max_nfe = 5"),
        ("bench {runs}/digits --data digits --nfe 5,ten", 2, "--nfe 5,ten: expected positive integers"),
        ("bench {runs}/digits --data digits --solvers Heun,Foo", 2, "'Foo' is unknown"),
        ("bench {runs}/digits --data digits --n 1400 --features off", 2, "samples = 1400 and a pool of 1500"),
        ("bench {runs}/digits --data digits --n 10 --samples 10", 2, "--n and --samples are the same"),
        ("bench {runs}/digits --data digits --grids kerras", 2, "--grids kerras: expected own, uniform"),
        ("demo --minutes 0 --out {runs}/demo", 2, "minutes = 0.0"),
        ("demo --minutes", 2, "expected one argument"),
    ],
)
def test_errors_are_one_line(line, code, message, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.format(runs=runs))
    assert main([*words, "--progress", "off"] if words[0] in options.COMMANDS else words) == code
    error = capsys.readouterr().err.splitlines()
    said = [text for text in error if text.startswith("scoresde: error: ")]
    assert len(said) == 1
    assert re.search(message, said[0]), said[0]
    assert not any("Traceback" in text for text in error)
    assert set(error) <= {*said, *(text for text in error if text.startswith(("[", "UNet", "MLP", "Data")))}  # stages of the demo


def test_debug_shows_where(runs, run, capsys):
    assert run(f"sample {runs}/digits --n 0 --debug") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("scoresde: error: n = 0")


def test_exit_codes_of_a_process(tmp_path):
    """The real thing, once: a process of its own, codes and streams as a shell sees them."""
    cases = (("sample nowhere", 1, "no checkpoint"), ("sample nowhere --solver Huen", 2, "did you mean 'Heun'"))
    for line, code, message in cases:
        command = [sys.executable, "-m", "scoresde.cli", *line.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == code
        assert done.stdout == ""
        assert re.fullmatch(rf"scoresde: error: .*{message}.*\n", done.stderr)

"""A run goes on by --resume alone, and every command that is printed works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import scoresde as sd
from scoresde.cli import runs as module

OWN = """
import torch
from dataclasses import dataclass
import scoresde as sd

class Net(torch.nn.Module):
    def __init__(self, features: int = 2, width: int = 8):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
    def forward(self, x, c_noise):
        return self.linear(torch.cat([x, c_noise[:, None]], 1))

@dataclass(frozen=True)
class Cubic(sd.SDE):
    speed: float = 5.0
    t_min: float = 1e-3
    def alpha(self, t):
        return torch.exp(-self.speed * t**3)
    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.speed * t**3))
"""

SMALL = "--net UNet --net.width 8 --net.blocks 1 --batch_size 16 --validate_every 0"
TRAINED = {
    "moons": "--data moons",
    "digits": f"--data digits {SMALL}",
    "conditional": f"--data digits --conditional {SMALL}",
    "own": "--data moons --net mine_for_the_test.part:Net --net.width 4 --sde mine_for_the_test.part:Cubic --sde.speed 6.0",
    "no test set": "--data only.npz",
}
QUICK = {"nll": " --n 4 --steps 3 --check 2", "bench": " --nfe 2 --solvers auto --samples 4 --features off --paths 4", "tune": " --paths 16 --iterations 0", "sample": ""}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with spaces in its name, with a package of one's own and a data set without test samples."""
    folder = tmp_path / "my runs"
    (folder / "mine_for_the_test").mkdir(parents=True)
    (folder / "mine_for_the_test" / "part.py").write_text(OWN)
    monkeypatch.chdir(folder)
    import numpy as np

    np.savez("only.npz", train=np.linspace(-1, 1, 80, dtype=np.float32).reshape(40, 2))
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_each_printed_command_runs(name, run, here, capsys):
    assert run(f"train {TRAINED[name]} --steps 3 --out 'a run'") == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  scoresde ")]
    assert [line.split()[1] for line in printed] == (["sample", "nll", "tune"] if name == "no test set" else ["sample", "nll", "bench", "tune"])
    for line in printed:
        command = line.removeprefix("scoresde ")
        assert run(command + QUICK[command.split()[0]]) == 0, (line, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert ("classes by turns" in said) == (name == "conditional")


def test_resume_alone_restores_the_options(run, here, capsys):
    line = f"train {TRAINED['own']} --lr 0.01 --schedule constant --seed 3 --out run"
    assert run(f"{line} --steps 4") == 0
    whole = f"{line.replace('--out run', '--out whole')} --steps 8"
    assert run(whole) == 0
    capsys.readouterr()
    assert run("train --resume --out run --steps 8") == 0
    nets = [sd.load(name, net=_net(), sde=_sde()) for name in ("run", "whole")]
    ends = [model.state_dict() for model in nets]
    assert all((ends[0][key] - ends[1][key]).abs().max() < 1e-3 for key in ends[0])
    assert run("train --resume --out run") == 0  # the options of the last command: nothing is left to do
    logged = _logged()
    assert logged[-1]["step"] == 8
    assert run("train --resume --out run --steps 12 --lr 0.001") == 0  # extended
    logged = _logged()
    assert (logged[-1]["step"], logged[-1]["lr"]) == (12, 0.001)


def _logged():
    lines = [json.loads(text) for text in Path("run/log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def _net():
    from mine_for_the_test.part import Net

    return Net(width=4)


def _sde():
    from mine_for_the_test.part import Cubic

    return Cubic(6.0)


def test_a_damaged_command_is_found(run, here, capsys):
    assert run("train --data moons --steps 2 --out run") == 0
    path = Path("run/command.json")
    path.write_text(path.read_text().replace("moons", "rings"))
    assert run("train --resume --out run --steps 4") == 1
    assert "command.json" in capsys.readouterr().err


def test_arguments_that_are_merged():
    assert module._without(["train", "--steps", "3", "--lr=2", "--data", "x"], ["--steps", "--lr"]) == ["train", "--data", "x"]
    assert module._value(["--steps", "3", "--steps=4"], "--steps") == "4"
    assert module.resumed(["train", "--out", "/nowhere", "--steps", "3"]) == (["train", "--out", "/nowhere", "--steps", "3"], False)


def test_what_makes_no_sense_is_said_before_data_are_read(run, here, capsys):
    (here / "file").write_text("")
    for options, said in (
        ("--lr -1 --data nothing", "lr"),
        ("--schedule cosin --data nothing", "schedule"),
        ("--data nothing --out file", "is a file, expected a folder"),
        ("--data nothing --weighting x", "weighting"),
    ):
        assert run(f"train --out run --steps 2 {options}") == 2
        assert said in capsys.readouterr().err


def test_python_m_scoresde(here):
    done = subprocess.run([sys.executable, "-m", "scoresde", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.strip()


def test_the_result_of_nll_is_json(run, here, capsys):
    assert run("nll nothing --data moons --out result.csv") == 2
    assert "expected a name that ends in .json" in capsys.readouterr().err


def test_far_fetched_names_are_not_proposed(run, capsys):
    assert run("sample run --guidance 2") == 2
    assert "did you mean" not in capsys.readouterr().err
    assert run("sample run --solvr Heun") == 2
    assert "did you mean '--solver'" in capsys.readouterr().err

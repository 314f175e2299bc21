"""Classes by name: scoresde's own from the faces of its folders, and one's own by their place."""

import importlib
import os
import shlex
import sys

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde import nets, sdes, solvers
from scoresde.cli import classes, main
from scoresde.core import faces
from scoresde.errors import ConfigError

torch.set_num_threads(1)


@pytest.mark.parametrize(("kind", "package", "base"), [("sde", sdes, sd.SDE), ("net", nets, torch.nn.Module), ("solver", solvers, sd.Solver)])
def test_what_a_face_offers_can_be_named(kind, package, base):
    found = classes.own(kind)
    left_out = {name for name in faces.own(package, base) if name not in found}
    assert left_out == ({"Recipe", "ReferenceScheme"} if kind == "solver" else set())  # made by tune, not of text
    for name, cls in found.items():
        made = classes.make(kind, name, {}, {"features": 2})
        assert type(made) is cls is classes.find(kind, name)
        assert classes.signature(cls).startswith(f"{name}(")


def test_grids_are_those_of_the_module():
    found = classes.grids()
    assert set(found) == {"uniform", "quadratic", "karras", "log_snr", "logistic"}
    for grid in found.values():
        times = grid(sd.VPSDE(), 4)
        assert len(times) == 5
        assert bool((times.diff() < 0).all())


@pytest.mark.parametrize(("kind", "wrong", "right"), [("sde", "VPSED", "VPSDE"), ("net", "UNte", "UNet"), ("solver", "Huen", "Heun")])
def test_an_unknown_name_is_told_all_names(kind, wrong, right):
    with pytest.raises(ConfigError) as error:
        classes.find(kind, wrong)
    listed = str(error.value).partition("expected one of ")[2].partition(", or a subclass")[0].split(", ")
    assert sorted(listed) == sorted(classes.own(kind))
    assert str(error.value).endswith(f"did you mean {right!r}?")


def test_classes_of_ones_own(tmp_path, monkeypatch, quick, capsys):
    (tmp_path / "mine_cli.py").write_text(
        """
import torch, scoresde as sd
from dataclasses import dataclass

@dataclass(frozen=True)
class Fast(sd.SDE):
    speed: float = 1.0
    t_max: float = 3.0
    def alpha(self, t): return torch.exp(-self.speed * t)
    def sigma(self, t): return (-torch.expm1(-2 * self.speed * t)).sqrt()

class Net(torch.nn.Module):
    def __init__(self, features, width: int = 4):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(features + 1, width), torch.nn.SiLU(), torch.nn.Linear(width, features))
    def forward(self, x, c_noise): return self.layers(torch.cat([x, c_noise[:, None]], 1))

@dataclass(frozen=True)
class Half(sd.Solver):
    share: float = 0.5
    def step(self, model, x, t, s, state, noise): return x + self.share * (s - t) * model.velocity(x, t), state

class Other: pass
"""
    )
    monkeypatch.chdir(tmp_path)
    own = "--sde mine_cli:Fast --sde.speed 2 --net mine_cli.Net --net.width 8"
    assert main(shlex.split(f"train --data moons --steps 2 --out run {own} {quick}")) == 0
    assert os.getcwd() not in sys.path
    solver = "--solver mine_cli:Half --solver.share 0.25 --steps 3"
    assert main(shlex.split(f"sample run {own} {solver} --n 4 --out x.npy {quick}")) == 0
    mine = importlib.import_module("mine_cli")
    model = sd.load("run", net=mine.Net(2, 8), sde=mine.Fast(2.0))
    assert np.array_equal(np.load("x.npy"), sd.sample(model, 4, solver=mine.Half(0.25), steps=3).numpy())
    capsys.readouterr()
    for line, code, message in (
        (f"sample run {quick}", 2, "give yours"),
        (f"sample run --sde mine_cli:Fast --sde.speed 3 --net mine_cli:Net --net.width 8 {quick}", 1, "speed"),
        ("train --data moons --out x --sde mine_cli:Fats", 2, "it has Fast; did you mean 'Fast'"),
        ("train --data moons --out x --sde mine_cli:Other", 2, "no subclass of SDE"),
        ("train --data moons --out x --sde not_there:Fast", 2, "No module named 'not_there'"),
        ("train --data moons --out x --net mine_cli:Net --net.widht 8", 2, "did you mean 'width'"),
        ("train --data moons --out x --net mine_cli:Net --net.width wide", 2, "'wide', expected int"),
    ):
        assert main(shlex.split(line)) == code, line
        assert message in capsys.readouterr().err

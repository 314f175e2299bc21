"""The command line as a user meets it: what it writes, what it says, and its exit codes."""

import contextlib
import csv
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde.cli import classes, commands, demo, entry, main
from scoresde.training import fitting

torch.set_num_threads(1)
COMMANDS = ("demo", "train", "sample", "nll", "bench", "tune")
QUICK = "--progress off --threads 1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with three short runs: images, labelled images, points."""
    folder = tmp_path_factory.mktemp("runs")
    net = "--net UNet --net.width 8 --net.blocks 1 --batch_size 16"
    assert main(shlex.split(f"train --data digits --steps 3 --out {folder}/digits {net} {QUICK}")) == 0
    assert main(shlex.split(f"train --data digits --steps 3 --out {folder}/labels {net} --conditional {QUICK}")) == 0
    assert main(shlex.split(f"train --data moons --steps 3 --out {folder}/moons --sde VESDE --sde.sigma_max 20 {QUICK}")) == 0
    return folder


def run(line, folder):
    return main(shlex.split(line.format(runs=folder)) + shlex.split(QUICK))


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"scoresde {command} " in text.split("examples:")[1]
    if command == "train":
        assert "VESDE(sigma_min=0.01, sigma_max=50.0" in text
    if command in ("sample", "nll"):
        assert all(name in text for name in ("Heun()", "TorchDiffEq(method=", "PredictorCorrector("))


def test_no_arguments_explain_everything(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"scoresde {command}" in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert re.search(r"\d+\.\d+", capsys.readouterr().out)


def test_every_example_of_the_help_is_understood(monkeypatch):
    """The examples are parsed, and their classes made; the commands themselves are left out."""
    seen = []
    for name in COMMANDS:
        monkeypatch.setattr(entry, f"run_{name}", lambda a: seen.append(a))
    from scoresde.cli.options import _ABOUT, _EXAMPLES

    lines = [line for text in (_ABOUT, *_EXAMPLES.values()) for line in text.splitlines() if line.startswith("  ")]
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}", line.strip())[0])
        words = words[words.index("scoresde") + 1 :] if "scoresde" in words else words[words.index("scoresde.cli") + 1 :]
        assert main(words) == 0, line
    assert len(seen) == len(lines) > 15
    for a in seen:
        for kind, given in a.options.items():
            if given and "my_module" not in a[kind]:
                classes.make(kind, a[kind], given, {"features": 2})


# ---- train


def test_train_writes_a_run(runs, capsys):
    model = sd.load(runs / "digits")
    assert model.event_shape == (1, 8, 8)
    assert (model.net.config["width"], model.net.config["channels"], model.sde) == (8, 1, sd.VPSDE())
    assert model.transform == sd.Transform(levels=17)
    assert sd.load(runs / "labels").net.config["classes"] == 10
    moons = sd.load(runs / "moons")
    assert type(moons.net) is sd.nets.MLP
    assert moons.sde == sd.VESDE(sigma_max=20.0)
    assert (runs / "digits" / "loss.png").stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in (runs / "digits" / "log.jsonl").read_text().splitlines()]
    assert max(steps) == 3


def test_options_reach_fit(tmp_path, monkeypatch):
    found = {}

    def fit(model, data, **arguments):
        found.update(arguments, model=model, data=data)
        raise KeyboardInterrupt("that will do")

    monkeypatch.setattr(fitting, "fit", fit)
    line = "train --data digits --out x --lr 3e-4 --ema 0.99 --weighting simple --times uniform --clip 2 --warmup 7 --seed 5 --bf16"
    line += " --parameterization eps --batch-size 32 --accumulate 2 --resume --checkpoint_every 10 --validate_every 20"
    assert main([*shlex.split(line), "--net", "MLP", "--net.width=16"]) == 130
    expected = {"lr": 3e-4, "ema": 0.99, "weighting": "simple", "times": "uniform", "clip": 2.0, "warmup": 7, "seed": 5}
    expected |= {"batch_size": 32, "accumulate": 2, "resume": True, "overwrite": False, "checkpoint_every": 10}
    expected |= {"minutes": 10.0, "steps": None, "out": "x", "validate_every": 20, "bf16": True}
    assert {name: found[name] for name in expected} == expected
    assert found["model"].parameterization is sd.parameterization.eps
    assert found["model"].net.config["features"] == [1, 8, 8]  # an MLP takes the whole event
    main(shlex.split("train --data digits --out x --steps 9"))
    assert (found["steps"], found["minutes"]) == (9, None)


def test_the_seed_is_of_the_initial_weights_too(tmp_path, monkeypatch):
    weights = []

    def fit(model, data, **arguments):
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", fit)
    state = torch.get_rng_state()
    for seed in (1, 1, 2):
        main(shlex.split(f"train --data moons --out x --seed {seed}"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_is_not_overwritten_by_accident(tmp_path, capsys):
    line = f"train --data moons --out {tmp_path}/run --net.width 8 --net.depth 1 --batch_size 8 {QUICK}"
    assert main(shlex.split(f"{line} --steps 2")) == 0
    before = sd.load(tmp_path / "run").state_dict()
    capsys.readouterr()
    assert main(shlex.split(f"{line} --steps 2 --seed 1")) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--overwrite" in error
    after = sd.load(tmp_path / "run").state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert main(shlex.split(f"{line} --steps 2 --resume")) == 0  # the same options: nothing left to do
    assert main(shlex.split(f"{line} --steps 2 --seed 1 --resume")) == 1  # not the same run
    assert "seed" in capsys.readouterr().err
    assert main(shlex.split(f"{line} --steps 2 --seed 1 --overwrite")) == 0
    after = sd.load(tmp_path / "run").state_dict()
    assert not all(torch.equal(before[k], after[k]) for k in before)


# ---- sample


def test_samples_as_arrays_are_those_of_the_library(runs, tmp_path, capsys):
    line = "sample {runs}/digits --solver PredictorCorrector --solver.predictor DDIM --solver.predictor.eta 1"
    assert run(f"{line} --solver.corrector.snr 0.1 --steps 3 --n 5 --seed 7 --out {tmp_path}/new/x.npz", runs) == 0
    assert "6 network calls each" in capsys.readouterr().out
    model = sd.load(runs / "digits")
    solver = sd.PredictorCorrector(sd.DDIM(eta=1.0), sd.Langevin(snr=0.1))
    expected = sd.sample(model, 5, solver=solver, steps=3, seed=7)
    with np.load(tmp_path / "new" / "x.npz") as found:
        assert np.array_equal(found["samples"], expected.numpy())
        assert np.array_equal(found["levels"], model.transform.quantize(expected).numpy())
        assert found["levels"].dtype == np.uint8
    assert run(f"sample {{runs}}/moons --n 6 --steps 2 --t_end 0.1 --denoise --out {tmp_path}/x.npy", runs) == 0
    expected = sd.sample(sd.load(runs / "moons"), 6, steps=2, t_end=0.1, denoise=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.numpy())


def test_network_calls_are_those_of_a_sample(runs, tmp_path, capsys):
    assert run(f"sample {{runs}}/digits --solver Heun --steps 4 --n 9 --batch_size 4 --out {tmp_path}/x.png", runs) == 0
    assert "9 samples by Heun(), 8 network calls each" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_raw_and_averaged_weights(runs, tmp_path):
    for name in ("a", "b"):
        assert run(f"sample {{runs}}/moons --n 3 --steps 2 {'--raw ' * (name == 'b')}--out {tmp_path}/{name}.npy", runs) == 0
    a, b = (np.load(tmp_path / f"{name}.npy") for name in "ab")
    assert not np.array_equal(a, b)
    assert np.array_equal(b, sd.sample(sd.load(runs / "moons", ema=False), 3, steps=2).numpy())


def test_labels(runs, tmp_path):
    assert run(f"sample {{runs}}/labels --n 5 --steps 2 --label 3,8 --out {tmp_path}/x.npy", runs) == 0
    expected = sd.sample(sd.load(runs / "labels"), 5, steps=2, label=torch.tensor([3, 8, 3, 8, 3]))
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.numpy())


def test_what_cannot_be_drawn_is_refused_first(tmp_path, monkeypatch, capsys):
    sd.save(sd.NetworkModel(sd.nets.MLP(5, width=8, depth=1), sd.VPSDE(), (5,)), tmp_path / "five")
    monkeypatch.setattr(commands, "sample", lambda *_, **__: pytest.fail("sampled"))
    assert main(shlex.split(f"sample {tmp_path}/five --out x.png {QUICK}")) == 2
    assert "--out x.npz" in capsys.readouterr().err


def test_processes_share_the_samples(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run(f"sample {{runs}}/moons --n 7 --steps 2 --out {tmp_path}/x.npz", runs) == 0
    parts = [np.load(tmp_path / f"x-{rank}-of-2.npz") for rank in (0, 1)]
    ids = np.concatenate([part["ids"] for part in parts])
    assert sorted(ids) == list(range(7))
    whole = sd.sample(sd.load(runs / "moons"), 7, steps=2)
    assert np.array_equal(np.concatenate([part["samples"] for part in parts]), whole[torch.from_numpy(ids)].numpy())
    assert run(f"sample {{runs}}/moons --n 7 --out {tmp_path}/x.png", runs) == 2


# ---- nll


def test_bits_per_dim_are_those_of_the_library(runs, tmp_path, capsys):
    line = "nll {runs}/digits --data digits --n 3 --dequantizations 2 --probes 2 --rtol 1e-2 --seed 4"
    assert run(f"{line} --out {tmp_path}/new/r.json", runs) == 0
    digits = sd.data.digits()
    solver = sd.TorchDiffEq(rtol=1e-2, atol=1e-2)
    expected = sd.bits_per_dim(
        sd.load(runs / "digits"), digits.test[:3], digits.transform, dequantizations=2, probes=2, seed=4, solver=solver
    )
    found = json.loads((tmp_path / "new" / "r.json").read_text())
    assert found["bits_per_dim"] == expected.mean
    assert found["std_error"] == expected.std_error
    assert (found["dequantization_std"], found["probe_std_error"]) == (expected.dequantization_std, expected.probe_std_error)
    assert (found["network_calls"], found["samples"], found["solver"]) == (expected.nfe, 3, repr(solver))
    text = capsys.readouterr().out
    assert f"{expected.mean:.4f} +- {expected.std_error:.4f} bits/dim" in text
    assert "t_min" in text


def test_points_have_nats(runs, tmp_path):
    line = "nll {runs}/moons --data moons --split train --n 20 --solver Heun --steps 5 --divergence exact"
    assert run(f"{line} --out {tmp_path}/r.json", runs) == 0
    x = sd.data.toy("moons").train[:20]
    log_p = sd.log_prob(sd.load(runs / "moons"), x, solver=sd.Heun(), steps=5, divergence="exact").log_prob
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["log_prob"] == pytest.approx(float(log_p.mean()), rel=1e-12)
    assert found["std_error"] == pytest.approx(float(log_p.std()) / math.sqrt(20), rel=1e-12)
    assert "bits_per_dim" not in found


def test_the_bound_of_a_run_without_dequantization(tmp_path):
    """--bound is that of what the run was trained for, and says so; and a network that is named is told of the run's augmentations."""
    net = "--net MLP --net.width 8"
    line = f"train --data digits --steps 1 --batch_size 8 {net} --dequantization normal --augment shift --out {tmp_path}/run"
    assert run(line, tmp_path) == 0
    line = f"nll {tmp_path}/run --data digits --n 3 --steps 2 --check 0 --bound 2 --out {tmp_path}/r.json"
    assert run(f"{line} {net}", tmp_path) == 0
    digits = sd.data.digits()
    model = sd.load(tmp_path / "run")
    assert model.net.config["augmentations"] > 0
    found = json.loads((tmp_path / "r.json").read_text())
    levels, density = (sd.elbo(model, digits.test[:3], digits.transform, draws=2, reconstruction=r) for r in ("levels", "density"))
    assert (found["bound"], found["bound_reconstruction"]) == (pytest.approx(levels.mean, rel=1e-4), "levels")
    assert abs(levels.mean - density.mean) > 0.05


# ---- bench


def test_bench_writes_counted_network_calls(runs, tmp_path, capsys):
    line = f"bench {{runs}}/digits --data digits --nfe 2,5 --n 50 --solvers Heun,DDIM,TorchSDE --features off --out {tmp_path}/bench"
    assert run(line + " --paths 8", runs) == 0
    lines = (tmp_path / "bench" / "steps_vs_quality.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    model, digits = sd.load(runs / "digits"), sd.data.digits()
    test = digits.transform.dequantize(digits.test)
    counted = []
    for row in rows:
        with sd.count_evaluations(model) as calls:
            x = sd.sample(model, 50, solver=eval(row["solver"], vars(sd)), steps=int(row["steps"]))
        counted.append(calls.forward)
        assert float(row["sliced_wasserstein"]) == pytest.approx(sd.metrics.sliced_wasserstein(x, test), rel=1e-6)
    assert [float(row["nfe"]) for row in rows] == counted == [2, 4, 2, 5, 2, 4]
    assert float(rows[0]["median"]) > 0
    assert rows[4]["median"] == "nan"  # TorchSDE draws noise: it has no path to follow
    assert (tmp_path / "bench" / "steps_vs_quality.png").stat().st_size > 10_000
    assert (tmp_path / "bench" / "steps_vs_error.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "noise floor" in text
    assert "TorchSDE" in text
    assert "  up to 2 network calls: " in text
    before = (tmp_path / "bench" / "steps_vs_quality.json").read_text()
    assert run(line + " --paths 8", runs) == 0  # nothing is left to do
    assert (tmp_path / "bench" / "steps_vs_quality.json").read_text() == before
    capsys.readouterr()
    assert run(line + " --paths 4", runs) == 2
    assert "paths was 8, now 4" in (said := capsys.readouterr().err)
    assert "--overwrite replaces it" in said
    assert run(line + " --paths 0 --overwrite --grids own,karras", runs) == 0
    text = (tmp_path / "bench" / "steps_vs_quality.csv").read_text()
    assert "DDIM(eta=0.0),DDIM,karras," in text


def test_bench_in_features(runs, tmp_path, capsys):
    line = f"bench {{runs}}/digits --data digits --nfe 3 --samples 40 --solvers DDIM --features on --paths 0 --out {tmp_path}/b"
    assert run(line, runs) == 0
    text = capsys.readouterr().out
    assert "Frechet" in text
    assert "features: FeatureExtractor(digits: 64 features" in text


def test_bench_gives_labels_to_a_conditional_run(runs, monkeypatch):
    found = {}

    def frontier(model, reference, **arguments):
        found.update(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "frontier", frontier)
    monkeypatch.setattr(commands, "fit_features", lambda data, **_: torch.nn.Identity())
    assert run("bench {runs}/labels --data digits --n 299", runs) == 130
    labels = sd.data.digits().test_labels
    assert torch.equal(found["label"], torch.cat([labels, labels[:2]]))
    assert (found["nfe"], found["samples"]) == ([5, 10, 20, 50, 100], 299)
    assert isinstance(found["features"], torch.nn.Identity)  # images with labels
    assert (found["solvers"][0], found["noise"]) == ("auto", "independent")
    found.clear()
    run("bench {runs}/digits --data digits --features off --solvers auto,Heun --grids own,log_snr --noise path", runs)
    assert "label" not in found
    assert found["noise"] == "path"
    assert (found["samples"], found["features"]) == (297, None)
    assert found["solvers"] == ["auto", sd.Heun()]
    assert found["grids"] == {"own": None, "log_snr": sd.grid.log_snr}


# ---- classes of one's own


def test_classes_of_ones_own(tmp_path, monkeypatch, capsys):
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
    assert main(shlex.split(f"train --data moons --steps 2 --out run {own} {QUICK}")) == 0
    assert os.getcwd() not in sys.path
    solver = "--solver mine_cli:Half --solver.share 0.25 --steps 3"
    assert main(shlex.split(f"sample run {own} {solver} --n 4 --out x.npy {QUICK}")) == 0
    import importlib

    mine = importlib.import_module("mine_cli")
    model = sd.load("run", net=mine.Net(2, 8), sde=mine.Fast(2.0))
    assert np.array_equal(np.load("x.npy"), sd.sample(model, 4, solver=mine.Half(0.25), steps=3).numpy())
    capsys.readouterr()
    for line, code, message in (
        (f"sample run {QUICK}", 2, "give yours"),
        (f"sample run --sde mine_cli:Fast --sde.speed 3 --net mine_cli:Net --net.width 8 {QUICK}", 1, "speed"),
        ("train --data moons --out x --sde mine_cli:Fats", 2, "it has Fast; did you mean 'Fast'"),
        ("train --data moons --out x --sde mine_cli:Other", 2, "no subclass of SDE"),
        ("train --data moons --out x --sde not_there:Fast", 2, "No module named 'not_there'"),
        ("train --data moons --out x --net mine_cli:Net --net.widht 8", 2, "did you mean 'width'"),
        ("train --data moons --out x --net mine_cli:Net --net.width wide", 2, "'wide', expected int"),
    ):
        assert main(shlex.split(line)) == code, line
        assert message in capsys.readouterr().err


# ---- errors


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("frobnicate", 2, "invalid choice: 'frobnicate'"),
        ("trian --data digits", 2, "did you mean 'train'"),
        ("train", 2, "required: --data, --out"),
        ("sample", 2, "required: run$"),
        ("train --data digist --out x", 2, "did you mean 'digits'"),
        ("train --data digits --out x --steps 0", 2, "steps = 0, expected a positive integer"),
        ("train --data digits --out x --steps 2.5", 2, "--steps: got 2.5, expected int"),
        ("train --data digits --out x --minutes soon", 2, "--minutes: got soon, expected float"),
        ("train --data digits --out x --steps 2 --minutes 3", 2, "steps = 2 and minutes = 3.0"),
        ("train --data digits --out x --stpes 2", 2, "--stpes.*did you mean '--steps'"),
        ("train --data digits --out x --sde VPSED", 2, "expected one of VPSDE, .*did you mean 'VPSDE'"),
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
    assert main([*words, "--progress", "off"] if words[0] in COMMANDS else words) == code
    error = capsys.readouterr().err.splitlines()
    said = [text for text in error if text.startswith("scoresde: error: ")]
    assert len(said) == 1
    assert re.search(message, said[0]), said[0]
    assert not any("Traceback" in text for text in error)
    assert set(error) <= {*said, *(text for text in error if text.startswith(("[", "UNet", "MLP", "Data")))}  # stages of the demo


def test_debug_shows_where(runs, capsys):
    assert run("sample {runs}/digits --n 0 --debug", runs) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("scoresde: error: n = 0")


def test_the_unexpected_is_one_line_too(monkeypatch, capsys):
    def fail(a):
        raise RuntimeError("first line\n  second line")

    monkeypatch.setattr(entry, "run_demo", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "scoresde: error: RuntimeError: first line second line (--debug shows where)\n"


def test_warnings_are_one_line(monkeypatch, capsys):
    import warnings

    monkeypatch.setattr(entry, "run_demo", lambda a: warnings.warn("blurred\nover"))
    assert main(["demo"]) == 0
    assert capsys.readouterr().err == "scoresde: warning: blurred over\n"


@contextlib.contextmanager
def forked(arguments, log):
    """main(arguments) in a process of its own, which has torch already; its stderr goes to ``log``."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(descriptor, 2)
            sys.stderr = os.fdopen(descriptor, "w", buffering=1)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = main(arguments)
            sys.stderr.flush()
        os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["train", "sample"])
def test_signals(command, signum, code, runs, tmp_path):
    out, log = tmp_path / "run", tmp_path / "err"
    if command == "train":
        line = f"train --data moons --steps 1000000 --net.width 8 --batch_size 8 --out {out} {QUICK}"
    else:
        line = f"sample {runs}/moons --steps 10000 --n 100000 --out {tmp_path}/x.npy --threads 1"
    with forked(shlex.split(line), log) as pid:
        deadline = time.monotonic() + 60
        sign = out / "log.jsonl" if command == "train" else log
        while not (sign.exists() and sign.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(pid, signum)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == code
    said = log.read_text()
    assert "Traceback" not in said
    assert ("interrupted" if signum == signal.SIGINT else "terminated") in said.splitlines()[-1]
    if command == "train":
        assert re.search(r"saved step \d+", said)
        assert "--resume" in said or signum == signal.SIGTERM
        assert sd.load(out).event_shape == (2,)


def test_exit_codes_of_a_process(tmp_path):
    """The real thing, once: a process of its own, codes and streams as a shell sees them."""
    script = "import sys; from scoresde.cli import main; sys.exit(main())"
    cases = (("sample nowhere", 1, "no checkpoint"), ("sample nowhere --solver Huen", 2, "did you mean 'Heun'"))
    for line, code, message in cases:
        command = [sys.executable, "-c", script, *line.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == code
        assert done.stdout == ""
        assert re.fullmatch(rf"scoresde: error: .*{message}.*\n", done.stderr)


# ---- demo


def test_the_demo_keeps_to_its_time():
    calls = 6 * 185 + 3 * 60  # of the whole comparison on one batch
    fast, slow = 50 / calls / 5, 100 / calls  # five batches in 50 s; one in 100 s
    assert demo.plan(fast, 60.0, 30.0, 64, 297) == ((5, 10, 20, 50, 100), 297)
    assert demo.plan(fast, 30.0, 30.0, 64, 297) == ((5, 10, 20, 50, 100), 128)
    assert demo.plan(slow, 80.0, 30.0, 64, 297) == ((5, 10, 20, 50, 100), 64)  # late, but in time
    assert demo.plan(slow, 50.0, 30.0, 64, 297) == ((5, 10, 20, 50), 64)
    assert demo.plan(slow, -50.0, 30.0, 64, 297) == ((5, 10), 64)  # never nothing


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "BITS_SAMPLES", 8)
    monkeypatch.setattr(demo, "plan", lambda *_: ((5, 10), 64))  # else it would find that there is no time left
    monkeypatch.setattr(demo, "SOLVERS", (sd.Euler(), sd.Heun(), sd.TorchDiffEq(rtol=1e-1, atol=1e-1)))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--minutes", "0.05"]) == 0
    captured = capsys.readouterr()
    for name in ("samples", "trajectory", "loss", "steps_vs_quality"):
        assert (out / f"{name}.png").stat().st_size > 5000
    text = captured.out
    assert text.splitlines()[0].split() == ["SDE", "solver", "steps", "NFE", "seconds", "quality", "bits/dim"]
    assert re.search(r"VPSDE +Heun +5 +10 ", text)
    assert re.search(r"log-likelihood by dopri5.*\d\.\d{3} \+- \d\.\d{3}", text)
    assert "Try next" in text
    assert text.startswith((out / "table.txt").read_text())
    rows = [line for line in (out / "steps_vs_quality.csv").read_text().splitlines() if not line.startswith("#")]
    assert len(rows) == 1 + 2 * 2 + 1
    assert "up to 10 network calls only" in captured.err
    assert all(f"[{stage}/4]" in captured.err for stage in (1, 2, 3, 4))  # progress
    assert sd.load(out / "run").event_shape == (1, 8, 8)
    assert main(["demo", "--out", str(out), "--minutes", "0.05"]) == 2
    assert "--overwrite" in capsys.readouterr().err


# ---- tune


def test_tune_writes_a_recipe_that_sample_uses(runs, tmp_path, capsys):
    import shutil

    shutil.copytree(runs / "moons", tmp_path / "moons")
    where = tmp_path / "moons"
    assert main(shlex.split(f"tune {where} --nfe 3,4 --iterations 2 --paths 16 {QUICK}")) == 0
    text = capsys.readouterr().out
    assert re.search(r"^3 +\w+ +\d", text, re.M)
    assert f"scoresde sample {where} --steps 3" in text
    model = sd.load(where)
    assert sorted(model.recipes) == [3, 4]
    assert main(shlex.split(f"sample {where} --steps 3 --n 5 --out {tmp_path}/x.npy {QUICK}")) == 0
    assert "3 network calls each" in capsys.readouterr().out
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert torch.allclose(x, sd.sample(model, 5, solver=model.recipes[3]), atol=1e-6)
    assert main(shlex.split(f"tune {where} --nfe ten {QUICK}")) == 2
    assert "--nfe ten: expected positive integers" in capsys.readouterr().err

"""What each command writes and says is what the library gives."""

import csv
import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde.cli import entry, main
from scoresde.core.digest import digest
from scoresde.training import fitting

torch.set_num_threads(1)

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


@pytest.fixture
def caught(monkeypatch, tmp_path):
    """The arguments that `fit` gets, in the place of training."""
    found = {}

    def fit(model, data, **arguments):
        weights = torch.cat([p.flatten() for p in model.parameters()])
        found.update(arguments, model=model, data=data, weights=weights)
        raise KeyboardInterrupt("that will do")

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.chdir(tmp_path)
    return found


def test_options_reach_fit(caught):
    line = "train --data digits --out x --lr 3e-4 --ema 0.99 --weighting simple --times uniform --clip 2 --warmup 7 --seed 5 --bf16"
    line += " --parameterization eps --batch-size 32 --accumulate 2 --resume --checkpoint_every 10 --validate_every 20"
    assert main([*shlex.split(line), "--net", "MLP", "--net.width=16"]) == 130
    expected = {"lr": 3e-4, "ema": 0.99, "weighting": "simple", "times": "uniform", "clip": 2.0, "warmup": 7, "seed": 5}
    expected |= {"batch_size": 32, "accumulate": 2, "resume": True, "overwrite": False, "checkpoint_every": 10}
    expected |= {"minutes": 10.0, "steps": None, "out": "x", "validate_every": 20, "bf16": True}
    assert {name: caught[name] for name in expected} == expected
    assert caught["model"].parameterization is sd.parameterization.eps
    assert caught["model"].net.config["features"] == [1, 8, 8]  # an MLP takes the whole event
    main(shlex.split("train --data digits --out x --steps 9"))
    assert (caught["steps"], caught["minutes"]) == (9, None)


def test_the_seed_is_of_the_initial_weights_too(caught):
    weights = []
    state = torch.get_rng_state()
    for seed in (1, 1, 2):
        main(shlex.split(f"train --data moons --out x --seed {seed}"))
        weights.append(caught["weights"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_is_not_overwritten_by_accident(tmp_path, capsys, quick):
    line = f"train --data moons --out {tmp_path}/run --net.width 8 --net.depth 1 --batch_size 8 {quick}"
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


def test_samples_as_arrays_are_those_of_the_library(runs, run, tmp_path, capsys):
    line = f"sample {runs}/digits --solver PredictorCorrector --solver.predictor DDIM --solver.predictor.eta 1"
    assert run(f"{line} --solver.corrector.snr 0.1 --steps 3 --n 5 --seed 7 --out {tmp_path}/new/x.npz") == 0
    assert "6 network calls each" in capsys.readouterr().out
    model = sd.load(runs / "digits")
    solver = sd.PredictorCorrector(sd.DDIM(eta=1.0), sd.Langevin(snr=0.1))
    expected = sd.sample(model, 5, solver=solver, steps=3, seed=7)
    with np.load(tmp_path / "new" / "x.npz") as found:
        assert np.array_equal(found["samples"], expected.numpy())
        assert np.array_equal(found["levels"], model.transform.quantize(expected).numpy())
        assert found["levels"].dtype == np.uint8
    assert run(f"sample {runs}/moons --n 6 --steps 2 --t_end 0.1 --denoise --out {tmp_path}/x.npy") == 0
    expected = sd.sample(sd.load(runs / "moons"), 6, steps=2, t_end=0.1, denoise=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.numpy())


def test_network_calls_are_those_of_a_sample(runs, run, tmp_path, capsys):
    assert run(f"sample {runs}/digits --solver Heun --steps 4 --n 9 --batch_size 4 --out {tmp_path}/x.png") == 0
    assert "9 samples by Heun(), 8 network calls each" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_raw_and_averaged_weights(runs, run, tmp_path):
    for name in ("a", "b"):
        assert run(f"sample {runs}/moons --n 3 --steps 2 {'--raw ' * (name == 'b')}--out {tmp_path}/{name}.npy") == 0
    a, b = (np.load(tmp_path / f"{name}.npy") for name in "ab")
    assert not np.array_equal(a, b)
    assert np.array_equal(b, sd.sample(sd.load(runs / "moons", ema=False), 3, steps=2).numpy())


def test_labels(runs, run, tmp_path):
    assert run(f"sample {runs}/labels --n 5 --steps 2 --label 3,8 --out {tmp_path}/x.npy") == 0
    expected = sd.sample(sd.load(runs / "labels"), 5, steps=2, label=torch.tensor([3, 8, 3, 8, 3]))
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.numpy())


def test_what_cannot_be_drawn_is_refused_first(run, tmp_path, capsys):
    """Before anything is drawn, which would find that t_end is wrong too."""
    model = sd.NetworkModel(sd.nets.MLP((9, 8, 3), width=8, depth=1), sd.VPSDE(), (9, 8, 3))
    sd.save(model, tmp_path / "last")
    assert run(f"sample {tmp_path}/last --out {tmp_path}/x.png --t_end 5") == 2
    error = capsys.readouterr().err
    assert "--out x.npz" in error
    assert "x.permute(0, 3, 1, 2)" in error


def test_signals_are_drawn_on_a_page(run, tmp_path, capsys):
    from matplotlib.image import imread

    sd.save(sd.NetworkModel(sd.nets.MLP((1, 128), width=8, depth=1), sd.VPSDE(), (1, 128)), tmp_path / "signals")
    assert run(f"sample {tmp_path}/signals --n 70 --steps 1 --out {tmp_path}/x.png") == 0
    assert "x.png (the first 64 of them): 70 samples" in capsys.readouterr().out
    assert max(imread(tmp_path / "x.png").shape) < 2500  # once a strip of 29,986 pixels


def test_a_picture_has_the_grey_levels_of_the_data(runs, run, tmp_path):
    """Samples are quantized before they are drawn, as real images are: 17 levels and the white lines between them."""
    from matplotlib.image import imread

    assert run(f"sample {runs}/digits --n 16 --steps 3 --out {tmp_path}/x.png") == 0
    found = np.unique(imread(tmp_path / "x.png")[..., 0])
    levels = np.linspace(0, 1, 17)
    assert np.abs(found[:, None] - levels).min(1).max() < 1 / 255
    assert len(found) > 5


def test_processes_share_the_samples(runs, run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run(f"sample {runs}/moons --n 7 --steps 2 --out {tmp_path}/x.npz") == 0
    parts = [np.load(tmp_path / f"x-{rank}-of-2.npz") for rank in (0, 1)]
    ids = np.concatenate([part["ids"] for part in parts])
    assert sorted(ids) == list(range(7))
    whole = sd.sample(sd.load(runs / "moons"), 7, steps=2)
    assert np.allclose(np.concatenate([part["samples"] for part in parts]), whole[torch.from_numpy(ids)].numpy(), rtol=0, atol=1e-6)
    assert run(f"sample {runs}/moons --n 7 --out {tmp_path}/x.png") == 2


# ---- nll


def test_bits_per_dim_are_those_of_the_library(runs, run, tmp_path, capsys):
    line = f"nll {runs}/digits --data digits --n 3 --dequantizations 2 --probes 2 --rtol 1e-2 --seed 4"
    assert run(f"{line} --out {tmp_path}/new/r.json") == 0
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


@pytest.mark.parametrize("option", ["--dequantizations 2", "--dequantization normal", "--importance_weighted"])
def test_options_of_integer_data_are_refused_for_floats(run, runs, capsys, option):
    assert run(f"nll {runs}/moons --data moons --n 2 {option}") == 2
    assert "are for integer data, and moons holds floats: leave them out" in capsys.readouterr().err


def test_points_have_nats(runs, run, tmp_path):
    line = f"nll {runs}/moons --data moons --split train --n 20 --solver Heun --steps 5 --divergence exact"
    assert run(f"{line} --out {tmp_path}/r.json") == 0
    x = sd.data.toy("moons").train[:20]
    log_p = sd.log_prob(sd.load(runs / "moons"), x, solver=sd.Heun(), steps=5, divergence="exact").log_prob
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["log_prob"] == pytest.approx(float(log_p.mean()), rel=1e-12)
    assert found["std_error"] == pytest.approx(float(log_p.std()) / math.sqrt(20), rel=1e-12)
    assert "bits_per_dim" not in found


def test_the_bound_of_a_run_without_dequantization(run, tmp_path):
    """--bound is that of what the run was trained for, and says so; and a network that is named is told of the run's augmentations."""
    net = "--net MLP --net.width 8"
    line = f"train --data digits --steps 1 --batch_size 8 {net} --dequantization normal --augment shift --out {tmp_path}/run"
    assert run(line) == 0
    line = f"nll {tmp_path}/run --data digits --n 3 --steps 2 --check 0 --bound 2 --out {tmp_path}/r.json"
    assert run(f"{line} {net}") == 0
    digits = sd.data.digits()
    model = sd.load(tmp_path / "run")
    assert model.net.config["augmentations"] > 0
    found = json.loads((tmp_path / "r.json").read_text())
    levels, density = (sd.elbo(model, digits.test[:3], digits.transform, draws=2, reconstruction=r) for r in ("levels", "density"))
    assert (found["bound"], found["bound_reconstruction"]) == (pytest.approx(levels.mean, rel=1e-4), "levels")
    assert abs(levels.mean - density.mean) > 0.05


def test_every_solver_of_the_help_computes_likelihoods(runs, run, tmp_path):
    """Those that `scoresde nll --help` lists, ReferenceSolver among them."""
    from scoresde.cli import classes

    assert {"ReferenceSolver", "TorchDiffEq", "AdaptiveODE", "Heun", "RK4", "Euler"} <= set(classes.of_the_flow())
    for name in classes.of_the_flow():
        loose = "--rtol 0.1" if "rtol" in classes.signature(classes.find("solver", name)) else "--steps 4"
        assert run(f"nll {runs}/moons --data moons --n 2 --check 0 --solver {name} {loose} --out {tmp_path}/{name}.json") == 0
        assert json.loads((tmp_path / f"{name}.json").read_text())["solver"].startswith(f"{name}(")


# ---- bench


def test_bench_writes_counted_network_calls(runs, run, tmp_path, capsys):
    line = f"bench {runs}/digits --data digits --nfe 2,5 --n 50 --solvers Heun,DDIM,TorchSDE --features off --out {tmp_path}/bench"
    assert run(line + " --paths 8") == 0
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
    assert run(line + " --paths 8") == 0  # nothing is left to do
    assert (tmp_path / "bench" / "steps_vs_quality.json").read_text() == before
    capsys.readouterr()
    assert run(line + " --paths 4") == 2
    assert "paths was 8, now 4" in (said := capsys.readouterr().err)
    assert "--overwrite replaces it" in said
    assert run(line + " --paths 0 --overwrite --grids own,karras") == 0
    text = (tmp_path / "bench" / "steps_vs_quality.csv").read_text()
    assert "DDIM(eta=0.0),DDIM,karras," in text


def test_bench_in_features(runs, run, tmp_path, capsys):
    line = f"bench {runs}/digits --data digits --nfe 3 --samples 40 --solvers DDIM --features on --paths 0 --out {tmp_path}/b"
    assert run(line) == 0
    text = capsys.readouterr().out
    assert "Frechet" in text
    assert "features: FeatureExtractor(digits: 64 features" in text


def settings_of(folder):
    content = json.loads((folder / "steps_vs_quality.json").read_text())
    return content["settings"], content["rows"]


def test_bench_gives_labels_to_a_conditional_run(runs, run, tmp_path):
    assert run(f"bench {runs}/labels --data digits --n 299 --nfe 2 --solvers DDIM --paths 0 --out {tmp_path}/a") == 0
    labels = sd.data.digits().test_labels
    found, _ = settings_of(tmp_path / "a")
    assert found["cond"] == {"label": digest(torch.cat([labels, labels[:2]]))}
    assert (found["samples"], found["noise"]) == (299, "independent")
    assert found["features"].startswith("FeatureExtractor(digits")  # images with labels
    line = f"bench {runs}/digits --data digits --features off --solvers auto,Heun --grids own,log_snr,logistic --noise path --nfe 2"
    assert run(f"{line} --paths 0 --out {tmp_path}/b") == 0
    found, rows = settings_of(tmp_path / "b")
    assert (found["cond"], found["noise"], found["samples"], found["features"]) == ({}, "path", 297, "none")
    assert [row["solver"].partition("(")[0] for row in rows] == ["ReferenceSolver"] * 3 + ["Heun"] * 3
    assert {row["grid"] for row in rows} >= {"log_snr", "logistic"}
    assert entry.parse(["bench", "run", "--data", "digits"])[1].nfe == "5,10,20,50,100"


# ---- tune


def test_tune_writes_a_recipe_that_sample_uses(runs, tmp_path, capsys, quick):
    shutil.copytree(runs / "moons", tmp_path / "moons")
    where = tmp_path / "moons"
    assert main(shlex.split(f"tune {where} --nfe 3,4 --iterations 2 --paths 16 {quick}")) == 0
    text = capsys.readouterr().out
    assert re.search(r"^3 +\w+ +\d", text, re.M)
    assert f"scoresde sample {where} --steps 3" in text
    model = sd.load(where)
    assert sorted(model.recipes) == [3, 4]
    assert main(shlex.split(f"sample {where} --steps 3 --n 5 --out {tmp_path}/x.npy {quick}")) == 0
    assert "3 network calls each" in capsys.readouterr().out
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert torch.allclose(x, sd.sample(model, 5, solver=model.recipes[3]), atol=1e-6)
    assert main(shlex.split(f"tune {where} --nfe ten {quick}")) == 2
    assert "--nfe ten: expected positive integers" in capsys.readouterr().err

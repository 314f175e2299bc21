"""The error budget: each term on a case where it is large and known, honest intervals, JSON, comparisons."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from problems import SDES, correlated_mixture, marginal_sample, name, two_modes

import scoresde as sd
from scoresde.likelihood import budget
from scoresde.likelihood.report import Report

ConfigError = sd.errors.ConfigError
T16 = sd.Transform(levels=16)


def small_model() -> sd.ExactModel:
    return sd.ExactModel(correlated_mixture(3), sd.VPSDE())


def levels_of(target: sd.GaussianMixture, n: int, seed: int = 0) -> torch.Tensor:
    return T16.quantize(target.sample(n, seed=seed))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_prior_mismatch_is_what_an_exact_prior_would_change(sde):
    target = two_modes()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 200)
    r = sd.log_prob(model, x, divergence="exact", steps=20)
    true = sd.log_prob(model, x, divergence="exact", steps=20, prior=lambda z: model.log_prob(z, sde.t_max))
    change = float((true.log_prob - r.log_prob).mean())
    assert r.report().term("prior") == pytest.approx(change, rel=0.02, abs=1e-7)
    assert math.isnan(true.report().term("prior"))
    again = sd.log_prob(model, x, divergence="exact", steps=20, prior="reference").report()
    assert abs(again.term("prior")) < 0.1  # the moments of 200 latents, to their sampling error


def test_prior_mismatch_without_a_reference_is_that_of_the_latents():
    """Off-centre data under VE: the latents' own mean and variance say what N(0, sigma^2 I) misses."""
    target, sde = sd.GaussianMixture(torch.full((1, 4), 10.0).double(), torch.tensor([0.5])), sd.VESDE(sigma_max=20.0)
    model = sd.ExactModel(target, sde)
    x = target.sample(400)
    r = sd.log_prob(model, x, divergence="exact", steps=8)
    model.reference = None
    model_free = sd.log_prob(model, x, solver=sd.Heun(), steps=40, divergence="exact")
    assert model_free.report().term("prior") == pytest.approx(r.report().term("prior"), rel=0.1)
    assert r.report().term("prior") == pytest.approx(4 * 0.5 * (10 / 20) ** 2, rel=0.15)


def test_the_error_of_few_steps_is_measured_with_many():
    """Of 600 samples with 20 steps of Euler, 100 are solved with 80 too: what that changes is known, and mends the mean of all."""
    target = two_modes()
    model = sd.ExactModel(target, sd.VPSDE())
    levels = levels_of(target, 600)
    few, many = (
        {"solver": sd.Euler(), "steps": steps, "divergence": "exact", "batch_size": 600} for steps in (20, 80)
    )
    b = sd.bits_per_dim(model, levels, T16, check=100, check_steps=80, **few)
    c = sd.bits_per_dim(model, levels, T16, check=0, **many)
    change = b.per_sample - c.per_sample
    assert abs(change.mean()) > 0.01  # a case where it matters
    assert b.report().term("time steps") == pytest.approx(abs(float(change[:100].mean())), rel=1e-9)
    assert b.corrected == pytest.approx(b.mean - float(change[:100].mean()), abs=1e-12)
    assert abs(b.corrected - c.mean) < 3 * float(change.std()) / math.sqrt(100)
    assert abs(b.corrected - c.mean) < 0.3 * abs(b.mean - c.mean)
    assert f"{b.corrected:.4f} +- {b.corrected_std_error:.4f} without it" in b.report().table()
    assert b.check_nfe >= 80
    assert math.isnan(c.corrected)
    nats = sd.log_prob(model, target.sample(50), check=20, check_steps=80, **few)
    exact = sd.log_prob(model, target.sample(50), **many)
    assert torch.allclose(nats.discretization[:20], (nats.log_prob - exact.log_prob)[:20], atol=1e-9)
    assert nats.discretization[20:].isnan().all()


@pytest.mark.parametrize("slope", [-1.0, 0.0, 2.0])
def test_the_error_of_a_corrected_mean(slope):
    """Its standard error is the standard deviation over 2,000 data sets, where errors go with the values and where they do not."""
    g = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(2000):
        truth = torch.randn(300, generator=g, dtype=torch.float64)
        error = slope * truth + 0.7 + torch.randn(300, generator=g, dtype=torch.float64)
        error[30:], value = math.nan, truth + error
        mean, std_error = budget.corrected(value, error)
        means.append(mean)
        errors.append(std_error)
    spread = torch.tensor(means)
    assert abs(spread.mean()) < 4 * spread.std() / math.sqrt(2000)
    assert float(spread.std()) == pytest.approx(sum(errors) / 2000, rel=0.07)  # 1.6 % is the error of either


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"steps": 20, "check_steps": 20, "check": 8}, "more steps"),
        ({"check_steps": 40, "check": 8}, "more steps"),
        ({"steps": 20, "check_steps": 80, "check": 0}, "check of 1 or more"),
        ({"steps": 20, "check_steps": 80.5, "check": 8}, "check_steps"),
        ({"solver": sd.AdaptiveODE(), "check_steps": 80, "check": 8}, "its own steps"),
    ],
    ids=str,
)
def test_a_check_that_makes_no_sense(how, says):
    with pytest.raises(ConfigError, match=says):
        sd.bits_per_dim(small_model(), levels_of(correlated_mixture(3), 4), T16, **how)


@pytest.mark.parametrize("sde", [sd.VPSDE(t_min=1e-3), sd.RectifiedFlow(t_min=0.01), sd.EDMSDE(sigma_min=0.02)], ids=name)
def test_the_cut_is_what_no_blur_would_change(sde):
    target = correlated_mixture(3)
    model = sd.ExactModel(target, sde)
    x = target.sample(100)
    r = sd.log_prob(model, x, divergence="exact", check=60)
    change = target.log_prob(x) - model.log_prob(x, sde.t_min)
    assert r.cut[60:].isnan().all()
    assert torch.allclose(r.cut[:60], change[:60], rtol=0.2, atol=0.02 * float(change.abs().max()))
    assert r.report().term("cut") == pytest.approx(float(r.cut[:60].mean()))
    probed = sd.log_prob(model, x, probes=8, check=60)
    assert probed.report().term("cut") == pytest.approx(float(r.cut[:60].mean()), abs=0.2 * float(change.abs().mean()))


@pytest.mark.parametrize(("solver", "steps"), [(None, 10), (None, 16), (sd.Euler(), 100), (sd.Heun(), 40), (sd.TorchDiffEq(rtol=1e-3, atol=1e-3), None)])
def test_the_time_steps_error_has_the_size_of_the_error(solver, steps):
    """Estimate over truth, of each point: it is measured with a solver of which more is known than of this one."""
    target, sde = correlated_mixture(8), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 48)
    prior = lambda z: model.log_prob(z, sde.t_max)  # noqa: E731
    with sd.count_evaluations(model) as calls:
        r = sd.log_prob(model, x, solver=solver, steps=steps, divergence="exact", prior=prior, check=48)
    assert calls.rows == 48 * (r.nfe + r.check_nfe)
    error = r.log_prob - model.log_prob(x, sde.t_min)
    assert torch.allclose(r.discretization, error, rtol=0.05, atol=2e-5)
    assert r.report().term("time steps") == pytest.approx(abs(float(r.discretization.mean())))


@pytest.mark.slow
def test_probe_and_dequantization_errors_are_those_of_repetition():
    """The reported standard errors against the spread of the mean over 40 seeds: within 40 % (the spread itself is known to 11 %)."""
    model = small_model()
    x = model.target.sample(16)
    means = torch.tensor([float(sd.log_prob(model, x, steps=8, probes=4, seed=s, divergence="gaussian").log_prob.mean()) for s in range(40)])
    reported = sd.log_prob(model, x, steps=8, probes=4, divergence="gaussian").report().term("probes")
    assert reported == pytest.approx(float(means.std()), rel=0.4)
    levels = levels_of(model.target, 12)
    means = torch.tensor(
        [sd.bits_per_dim(model, levels, T16, dequantizations=4, steps=6, divergence="exact", seed=s, check=0).mean for s in range(40)]
    )
    terms = [
        sd.bits_per_dim(model, levels, T16, dequantizations=4, steps=6, divergence="exact", seed=s, check=0).report().term("dequantization")
        for s in range(4)
    ]
    assert sum(terms) / 4 == pytest.approx(float(means.std()), rel=0.4)
    assert math.isnan(sd.bits_per_dim(model, levels, T16, steps=6, divergence="exact", check=0).report().term("dequantization"))


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    """200 repetitions on exact models: the true mean lies in the 95 % interval 92 to 98 % of the time (0.95 +- 2 binomial errors)."""
    target = correlated_mixture(2)
    model = sd.ExactModel(target, sd.VPSDE())
    many = levels_of(target, 400_000, seed=99)
    x = T16.dequantize(many, seed=98, dtype=torch.float64)
    truth = float(-target.log_prob(x).mean()) / (2 * math.log(2)) + T16.bits_offset
    inside = 0
    for i in range(200):
        levels = levels_of(target, 100, seed=i)
        r = sd.bits_per_dim(model, levels, T16, steps=12, seed=i, check=0, batch_size=100).report()
        inside += r.interval[0] <= truth <= r.interval[1]
    assert 184 <= inside <= 196


def test_importance_weighted_dequantization_is_a_tighter_bound():
    """Towards -log2 of the probability of each level, computed by quadrature: below the uniform bound, falling with the draws."""
    target = sd.GaussianMixture(torch.tensor([[-0.4], [0.5]]).double(), torch.tensor([0.15, 0.06]))
    model = sd.ExactModel(target, sd.VPSDE())
    levels = levels_of(target, 60)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    points = T16.low + (levels.double() + u) * T16.bin_width
    log_P = target.log_prob(points.view(-1, 1)).view(60, -1).logsumexp(1) - math.log(2000) + math.log(T16.bin_width)
    truth = float(-log_P.mean()) / math.log(2)
    how = {"divergence": "exact", "steps": 24, "check": 0, "prior": "reference"}
    uniform = sd.bits_per_dim(model, levels, T16, dequantizations=32, **how).mean
    bounds = [sd.bits_per_dim(model, levels, T16, dequantizations=k, dequantization="importance", **how).mean for k in (4, 32)]
    assert uniform > bounds[0] > bounds[1] > truth - 0.03
    assert bounds[1] - truth < 0.2 * (uniform - truth)
    with pytest.raises(ConfigError, match="needs divergence = 'exact'"):
        sd.bits_per_dim(model, levels, T16, dequantization="importance", divergence="hutchinson")
    with pytest.raises(ConfigError, match="expected None, 'uniform', 'normal' or a Dequantizer"):
        sd.bits_per_dim(model, levels, T16, dequantization="variational")


def test_the_table_and_its_json(tmp_path):
    model = small_model()
    levels = levels_of(model.target, 20)
    b = sd.bits_per_dim(model, levels, T16, dequantizations=2, probes=2, steps=10, seed=3)
    report = b.report()
    text = str(report)
    for word in ("mean", "95 % interval", "data", "dequantization", "probes", "time steps", "prior", "cut", "bits/dim", f"{b.mean:.5f}"):
        assert word in text
    again = Report.from_json(report.to_json(tmp_path / "report.json"))
    assert again == report == Report.from_json(tmp_path / "report.json")
    found = json.loads(report.to_json())
    wanted = {"dequantization", "draws", "levels", "solver", "steps", "divergence", "probes", "prior", "t_min", "t_max", "sde", "seed", "model", "weights",
              "reference", "data", "samples", "dimensions", "nfe", "vjp", "dtype", "device", "versions"}  # fmt: skip
    assert wanted <= set(found["settings"])
    assert found["settings"]["nfe"] == b.nfe == 20
    wide = 1.96 * b.std_error + report.term("time steps")
    assert report.interval == pytest.approx((b.mean - wide, b.mean + wide))
    assert report.term("time steps") > 1e-5
    with pytest.raises(ConfigError, match="no report"):
        Report.from_json("{}")
    with pytest.raises(ConfigError, match="no term 'prio'"):
        report.term("prio")
    single = sd.log_prob(model, model.target.sample(1)).report()
    assert "NaN" not in single.to_json()
    assert math.isnan(Report.from_json(single.to_json()).std_error)


def test_comparisons():
    """Paired over the same samples: the spread of the difference is much smaller than that of the data."""
    target = correlated_mixture(3)
    good, bad = (sd.ExactModel(t, sd.VPSDE()) for t in (target, sd.GaussianMixture(target.means, torch.full((3,), 0.5).double())))
    levels = levels_of(target, 40)
    a, b = (sd.bits_per_dim(m, levels, T16, divergence="exact", steps=10, check=0) for m in (bad, good))
    c = sd.compare(a, b)
    d = a.per_sample - b.per_sample
    assert c.paired
    assert c.difference == pytest.approx(float(d.mean()))
    assert c.std_error == pytest.approx(float(d.std()) / 40**0.5)
    assert abs(c.difference) > 3 * c.std_error
    other = sd.bits_per_dim(good, levels_of(target, 40, seed=7), T16, divergence="exact", steps=10, check=0)
    free = sd.compare(a.report(), other)
    assert not free.paired
    assert free.std_error == pytest.approx(math.hypot(a.std_error, other.std_error))
    assert "unpaired, z = " in str(free)
    assert a.settings["model"] != b.settings["model"]
    assert str(sd.compare(a, a)) == "+0.0000 +- 0.0000 bits/dim (paired, z = 0.00)"
    assert "z = -inf" in str(replace(c, difference=-1.0, std_error=0.0))


def test_comparisons_that_are_refused():
    model = small_model()
    levels = levels_of(model.target, 4)
    a = sd.bits_per_dim(model, levels, T16, divergence="exact", steps=4, check=0).report()
    wide = sd.bits_per_dim(model, levels, sd.Transform(levels=17), divergence="exact", steps=4, check=0)
    weighted = sd.bits_per_dim(model, levels, T16, divergence="exact", steps=4, check=0, dequantization="importance", dequantizations=2)
    model.weights = "raw"
    raw = sd.bits_per_dim(model, levels, T16, divergence="exact", steps=4, check=0)
    nats = sd.log_prob(model, model.target.sample(4), steps=4)
    bound = replace(a, settings=a.settings | {"bound": "elbo"})
    cases = ((wide, "levels: 16 against 17"), (weighted, "importance-weighted, 2 draws"), (raw, "'averaged' against 'raw'"))
    for other, message in (*cases, (nats, "unit: 'bits/dim' against 'nats'"), (bound, "bound: None against 'elbo'")):
        with pytest.raises(ConfigError, match=f"do not mean the same.*{message}"):
            sd.compare(a, other)


def test_the_command_line_has_budget_and_bound(tmp_path, capsys):
    """`scoresde nll` by the default solver, with the budget, the bound and all settings in its file."""
    from scoresde.cli import main

    moons = sd.data.toy("moons")
    model = sd.NetworkModel(sd.nets.MLP(2, width=16, depth=1), sd.VPSDE(), (2,))
    model.reference = sd.GaussianReference.fit(moons.train)
    sd.save(model, tmp_path / "run")
    out = tmp_path / "r.json"
    line = f"nll {tmp_path / 'run'} --data moons --split train --n 12 --steps 6 --bound 3 --check 4 --progress off --out {out}"
    assert main(line.split()) == 0
    found = json.loads(out.read_text())
    saved, x = sd.load(tmp_path / "run"), moons.train[:12]
    r, bound = sd.log_prob(saved, x, steps=6, check=4), sd.elbo(saved, x, draws=3)
    assert found["log_prob"] == pytest.approx(float(r.log_prob.mean()), rel=1e-9)
    assert (found["bound"], found["network_calls"], found["steps"]) == (pytest.approx(bound.mean, rel=1e-9), 6, 6)
    assert found["budget"]["time steps"] == pytest.approx(r.report().term("time steps"), rel=1e-6)
    assert (found["weights"], found["data"], found["data_hash"]) == ("averaged", "moons", r.settings["data"])
    text = capsys.readouterr().out
    assert "variational bound" in text
    assert "change of the mean without the blur" in text


def test_the_command_line_goes_on(tmp_path, capsys):
    """The rows beside --out: the same command computes nothing again, another one is refused with the field named, --overwrite replaces."""
    from scoresde.cli import main

    digits = sd.data.digits()
    net = sd.nets.UNet(channels=1, width=8)
    sd.save(sd.NetworkModel(net, sd.VPSDE(), (1, 8, 8), transform=digits.transform), tmp_path / "run")
    out = tmp_path / "new" / "r.json"
    line = f"nll {tmp_path / 'run'} --data digits --n 5 --steps 4 --batch-size 2 --check 2 --progress off --out {out}"
    assert main(line.split()) == 0
    first = json.loads(out.read_text())
    rows = out.parent / "r.rows.jsonl"
    assert [json.loads(text)["ids"] for text in rows.read_text().splitlines()[1:]] == [[0, 1], [2, 3], [4]]
    out.unlink()
    kept = rows.read_text()
    rows.write_text("".join(kept.splitlines(keepends=True)[:3]))  # as if it had died in the last piece
    assert main(line.split()) == 0
    again = json.loads(out.read_text())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert rows.read_text() == kept
    capsys.readouterr()
    assert main(f"{line} --dequantization normal".split()) == 2
    error = capsys.readouterr().err
    assert "dequantization was 'uniform', now 'normal'" in error
    assert error.rstrip().endswith("or --overwrite")
    assert main(f"{line} --dequantization normal --overwrite".split()) == 0
    found = json.loads(out.read_text())
    assert (found["dequantization"], found["budget"]["cut"]) == ("normal", 0.0)


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """Two processes: one result, printed and written once, the same as that of one."""
    digits = sd.data.digits()
    net = sd.nets.UNet(channels=1, width=8)
    sd.save(sd.NetworkModel(net, sd.VPSDE(), (1, 8, 8), transform=digits.transform), tmp_path / "run")
    line = f"nll {tmp_path / 'run'} --data digits --n 7 --steps 4 --batch_size 2 --check 3 --threads 1 --progress off --out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--", "scoresde.cli"]  # -- lest it takes --n for its own
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = subprocess.run([*command, *line.split(), str(tmp_path / "2.json")], env=quiet, capture_output=True, text=True, timeout=240)
    one = subprocess.run([sys.executable, "-m", "scoresde.cli", *line.split(), str(tmp_path / "1.json")], env=quiet, timeout=240)
    assert (two.returncode, one.returncode) == (0, 0), two.stderr
    assert two.stdout.count("written to") == two.stdout.count("95 % interval") == 1
    a, b = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert {**a, "seconds": 0} == {**b, "seconds": 0}
    ids = [i for text in (tmp_path / "2.rows.jsonl").read_text().splitlines()[1:] for i in json.loads(text)["ids"]]
    assert sorted(ids) == list(range(7))

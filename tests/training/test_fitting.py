"""Training: what a step does, that it is a function of (seed, step), and that nothing that can happen to a run spoils it."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde import data, loss, nets
from scoresde.checkpoints import folders, format
from scoresde.core import files, noise
from scoresde.core.noise import Noise
from scoresde.errors import (
    CheckpointMismatch,
    CheckpointWriteError,
    ConfigError,
    DTypeError,
    LockError,
    NonFiniteError,
    ShapeError,
    TrainingDiverged,
)
from scoresde.training import batches as training_batches
from scoresde.training import loop as training_loop
from scoresde.training import options, schedule
from scoresde.training import trainer as training_trainer

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


# ---- it learns


def test_it_learns_and_returns_what_happened(tmp_path):
    model, seen = make(), []
    history = sd.fit(
        model,
        MOONS,
        steps=300,
        batch_size=64,
        lr=3e-3,
        out=tmp_path,
        log_every=20,
        validate_every=100,
        checkpoint_every=100,
        progress=False,
        callback=lambda step, line: seen.append((step, line)),
    )
    assert history.steps == list(range(20, 301, 20))
    assert history.validation_steps == [0, 100, 200, 300]
    assert history.validation[-1] < history.validation[0] - 0.15
    assert np.mean(history.loss[-3:]) < history.loss[0] - 0.15
    assert all(a <= b for a, b in zip(history.seconds, history.seconds[1:], strict=False))
    assert len(repr(history)) < 100
    assert [line for _, line in seen] == lines(tmp_path)
    assert all(step == line["step"] for step, line in seen)
    assert {"step", "loss", "lr", "grad_norm", "seconds", "samples_per_second"} == set(lines(tmp_path)[1])
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    # the initial loss is that of a network that answers 0
    scale = loss.total_weight(loss.likelihood, model.sde)
    error = history.validation[0] / scale
    assert 0.1 < error < 1
    averaged, raw = sd.load(tmp_path), sd.load(tmp_path, ema=False)
    assert torch.equal(weights(averaged), weights(model))
    assert not torch.equal(weights(averaged), weights(raw))
    assert averaged.transform is None


def test_the_loss_is_the_true_one_whatever_the_sampling():
    """With lr ~ 0 the recorded losses of all samplings estimate one number: validation's."""
    values = {}
    for times in ("importance", "uniform", "stratified", "lognormal"):
        for weighting in ("min-snr", "likelihood"):
            h = sd.fit(make(), MOONS, steps=40, lr=1e-12, times=times, weighting=weighting, **{**QUICK, "batch_size": 256})
            values[times, weighting] = np.mean(h.loss), h.validation[-1]
    for weighting, best in (("min-snr", "uniform"), ("likelihood", "importance")):
        truth, validation = values[best, weighting]
        assert validation == pytest.approx(truth, rel=0.1)  # 1,024 samples: 3 %
        if weighting == "min-snr":  # the other has too much variance elsewhere to be told from a mistake
            for times in ("importance", "stratified", "lognormal"):
                assert values[times, weighting][0] == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("weighting", ["simple", "min-snr", "edm", loss.likelihood])
@pytest.mark.parametrize("times", [None, "uniform", loss.lognormal])
def test_every_weighting_under_every_sampling(weighting, times):
    h = sd.fit(make(), MOONS, steps=3, weighting=weighting, times=times, stratified=False, **{**QUICK, "log_every": 1})
    assert all(0 < value < math.inf for value in (*h.loss, *h.validation))


def test_a_constant_weight_changes_nothing():
    models = []
    for factor in (1.0, 64.0):
        models.append(make())
        sd.fit(models[-1], MOONS, steps=5, weighting=lambda s, t, f=factor: f * loss.likelihood(s, t), times="importance", **QUICK)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=0, atol=1e-6)


# ---- data


class Recorder(torch.nn.Module):
    """A network that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(2)), []

    def forward(self, x, c_noise, **cond):
        self.seen.append((x.detach().clone(), cond))
        return x * self.w


def record(samples, steps=1, **kwargs):
    net = Recorder()
    model = sd.NetworkModel(net, sd.VPSDE(t_max=2e-5, t_end=1.5e-5), (2,), "v")  # hardly any noise: the data can be seen
    history = sd.fit(model, samples, steps=steps, **{**QUICK, "batch_size": 45, **kwargs})
    return net.seen, model, history


def test_levels_are_dequantized_afresh_each_step():
    seen, model, _ = record(LEVELS, steps=3, batch_size=45)
    first, second, third = [x for x, _ in seen]
    assert model.transform == LEVELS.transform
    for x in (first, second, third):
        rows = (((x + 1) / 0.4).floor().long()).tolist()  # noise of 0.003 hardly ever moves a level
        agree = sum(row in LEVELS.train.tolist() for row in rows)
        assert agree >= 40
    trainer, ids, draws = trainer_for(make(), LEVELS, batch_size=45), np.arange(45), []
    for k in range(3):
        x0 = trainer._batch(k, ids)[0]
        draws.append((x0 + 1) / 0.4 - LEVELS.train[trainer.source.order(k * 45 + ids, 0)])
        assert -1e-5 < draws[-1].min() < 0.1
        assert 0.9 < draws[-1].max() < 1 + 1e-5
    for i in range(3):
        assert (draws[i] - draws[i - 1]).abs().mean() > 0.2  # of independent draws: 1/3


def test_normal_dequantization_sees_the_middles_and_is_remembered(tmp_path):
    seen = []

    class Spy(nets.MLP):
        def forward(self, x, c_noise, **cond):
            seen.append(x.detach().clone())
            return super().forward(x, c_noise, **cond)

    sde = LEVELS.transform.adapt(sd.VPSDE(), tails=5.0)
    model = sd.NetworkModel(Spy(2, 16, 1), sde, (2,))
    tiny = lambda sde, u: (torch.full((len(u),), sde.t_min, dtype=torch.float64), torch.ones(len(u), dtype=torch.float64))
    sd.fit(model, LEVELS, steps=3, times=tiny, dequantization="normal", **QUICK)
    assert model.transform == LEVELS.transform
    assert model.transform.dequantization == "normal"
    assert LEVELS.transform.dequantization == "uniform"
    x = torch.cat(seen)
    middle = LEVELS.transform.center(LEVELS.transform.quantize(x))
    blur = float((x - middle).std()) / LEVELS.transform.bin_width
    assert blur == pytest.approx(0.1, rel=0.1)  # a tenth of a bin, the noise of t_min; uniform noise has 0.29
    reference = model.reference.variance.sum() - sd.GaussianReference.fit(LEVELS).variance.sum()
    assert float(reference) < -1.5 * LEVELS.transform.bin_width**2 / 12  # the bins' own variance is not in it
    sd.save(model, tmp_path)
    again = sd.load(tmp_path, net=Spy(2, 16, 1))
    assert again.transform.dequantization == "normal"


def test_senseless_dequantizations():
    with pytest.warns(UserWarning, match="half a bin is"):
        sd.fit(make(), LEVELS, steps=1, dequantization="normal", **QUICK)
    with pytest.raises(ConfigError, match="'uniform' or 'normal'"):
        sd.fit(make(), LEVELS, steps=1, dequantization="gaussian", **QUICK)
    with pytest.raises(ConfigError, match="integer levels"):
        sd.fit(make(), MOONS, steps=1, dequantization="normal", **QUICK)


def test_float_tensors_are_used_as_they_are():
    x = torch.randn(45, 2)
    seen, model, _ = record(x, steps=1)
    ((got, cond),) = seen
    assert cond == {}
    assert model.transform is None
    distance = torch.cdist(got, x).min(1)[0]
    assert distance.max() < 0.02


def test_labels_go_to_networks_that_want_them():
    assert all("label" not in cond for _, cond in record(LEVELS)[0])
    seen = record(LEVELS, conditional=True)[0]
    assert all(len(cond["label"]) == len(x) for x, cond in seen)
    model = make(classes=3)
    before = model.net.embedding.label.weight.clone()
    sd.fit(model, LEVELS, steps=6, **QUICK)
    moved = (model.net.embedding.label.weight - before).abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, True]
    sd.fit(make(classes=3), MOONS, steps=1, **QUICK)  # no labels there
    with pytest.raises(ConfigError, match="no labels"):
        sd.fit(make(), MOONS, steps=1, conditional=True, **QUICK)


class Rows(torch.utils.data.Dataset):
    def __init__(self, kind, n=45):
        self.x, self.kind, self.used = torch.linspace(-1, 1, 2 * n).view(n, 2), kind, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.used.append(i)
        x = self.x[i]
        return {"x": x, "tuple": (x,), "label": (x, i % 3), "dict": (x, {"shift": torch.tensor(0.5), "k": i})}[self.kind]


@pytest.mark.parametrize("kind", ["x", "tuple", "label", "dict"])
def test_datasets(kind):
    rows = Rows(kind)
    seen, _, _ = record(rows, steps=1)
    ((x, cond),) = seen
    assert sorted(rows.used) == list(range(45))
    assert torch.cdist(x, rows.x[rows.used]).diagonal().max() < 0.02
    if kind == "dict":
        assert cond["k"].tolist() == rows.used
        assert cond["shift"].shape == (45,)
    else:
        assert cond == {}
    if kind == "label":
        rows.used.clear()
        ((_, cond),) = record(rows, steps=1, conditional=True)[0]
        assert cond["label"].tolist() == [i % 3 for i in rows.used]


def test_each_sample_once_an_epoch_in_an_order_of_its_own():
    """Also where an epoch ends inside a batch."""
    rows = Rows("x", 45)
    sd.fit(sd.NetworkModel(Recorder(), sd.VPSDE(), (2,)), rows, steps=9, **{**QUICK, "batch_size": 10})
    epochs = [rows.used[:45], rows.used[45:90]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(45))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(45))
    other = Rows("x", 45)
    sd.fit(sd.NetworkModel(Recorder(), sd.VPSDE(), (2,)), other, steps=9, seed=1, **{**QUICK, "batch_size": 10})
    assert other.used != rows.used


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.uint8), DTypeError, "give a `Transform`"),
        (torch.zeros(5, 2, dtype=torch.long), DTypeError, "give a `Transform`"),
        (torch.zeros(5, 2, dtype=torch.complex64), DTypeError, "complex64"),
        (torch.zeros(5, 2, dtype=torch.float64), DTypeError, "float64.*float32"),
        (np.zeros((5, 2), np.float32), DTypeError, "ndarray.*as_tensor"),
        ([[0.0, 1.0]], DTypeError, "list"),
        (torch.tensor([[0.0, math.nan]]), NonFiniteError, r"NaN.*\(0, 1\)"),
        (torch.tensor([[0.0, math.inf]]), NonFiniteError, "inf"),
        (torch.zeros(2), ShapeError, r"\(2,\)"),
        (torch.zeros(0, 2), ShapeError, "empty batch"),
        (torch.zeros(5, 3), ShapeError, r"\(5, 3\).*\(2,\)"),
        (data.digits(), ShapeError, r"\(1500, 1, 8, 8\).*\(2,\)"),
        (Rows("x", 0), ShapeError, "empty"),
        (3, ConfigError, "int"),
        (None, ConfigError, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_senseless_data(samples, error, message):
    with pytest.raises(error, match=message):
        sd.fit(make(), samples, steps=1, progress=False)


class Constant(Rows):
    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.value


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (torch.zeros(2, dtype=torch.uint8), DTypeError),
        (np.zeros(2), DTypeError),
        (torch.full((2,), math.nan), NonFiniteError),
        (torch.zeros(3), ShapeError),
    ],
    ids=["integers", "numpy", "NaN", "shape"],
)
def test_senseless_datasets(item, error):
    with pytest.raises(error):
        sd.fit(make(), Constant(item), steps=1, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "steps = None and minutes = None"),
        ({"steps": 3, "minutes": 1.0}, "steps = 3 and minutes = 1"),
        *[({"steps": bad}, "steps.*positive integer") for bad in (0, -1, 2.5, True)],
        ({"minutes": 0.0}, "minutes"),
        ({"steps": 3, "lr": math.nan}, "lr"),
        ({"steps": 3, "lr": 0.0}, "lr"),
        ({"steps": 3, "ema": 1.0}, "ema"),
        ({"steps": 3, "clip": -1.0}, "clip"),
        ({"steps": 3, "betas": (0.9,)}, "betas"),
        ({"steps": 3, "warmup": -1}, "warmup"),
        ({"steps": 3, "schedule": "cosin"}, "schedule"),
        ({"steps": 3, "weighting": "likelyhood"}, "did you mean 'likelihood'"),
        ({"steps": 3, "times": "importanc"}, "did you mean 'importance'"),
        ({"steps": 3, "batch_size": 2, "accumulate": 3}, "batch_size = 2"),
        ({"steps": 3, "seed": -1}, "seed"),
        ({"steps": 3, "resume": True}, "without out"),
    ],
)
def test_senseless_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sd.fit(make(), MOONS, progress=False, **arguments)


def test_a_model_without_parameters():
    with pytest.raises(ConfigError, match="no parameters"):
        sd.fit(sd.ExactModel(MOONS.target, sd.VPSDE()), MOONS, steps=1, progress=False)


# ---- a step


def test_learning_rates():
    s = schedule.Schedule(lr=2.0, steps=100, warmup=10, hold=10, kind="cosine")
    assert [s(k) for k in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert s(55) == pytest.approx(1.0)
    assert 0 < s(99) < 1e-3
    assert s(32) == pytest.approx(1 + math.cos(math.pi * 22 / 90))
    timed = schedule.Schedule(lr=2.0, steps=None, warmup=10, hold=50, kind="cosine")
    resolved = schedule.Schedule(lr=2.0, steps=1000, warmup=10, hold=50, kind="cosine")
    assert [timed(k) for k in range(50)] == [resolved(k) for k in range(50)]
    assert resolved(525) == pytest.approx(1.0)
    constant = schedule.Schedule(lr=2.0, steps=100, warmup=4, hold=4, kind="constant")
    assert [constant(k) for k in (0, 3, 99)] == [0.5, 2.0, 2.0]
    assert schedule.Schedule(1.0, 5, 0, 0, "cosine")(0) == 1.0


def test_learning_rates_reach_the_optimizer():
    h = sd.fit(make(), MOONS, steps=20, lr=0.01, warmup=5, **{**QUICK, "log_every": 1})
    expected = schedule.Schedule(0.01, 20, 5, 5, "cosine")
    assert h.lr == [expected(k) for k in range(20)]
    model, other = make(), make()
    sd.fit(model, MOONS, steps=1, lr=0.01, warmup=0, ema=0.0, **QUICK)
    step = (weights(model) - weights(other)).abs()
    assert float(step.max()) == pytest.approx(0.01, rel=1e-3)  # Adam's first step is lr sign(gradient)
    default = options.check_options({**OPTIONS, "steps": 300, "warmup": None})
    assert (default["warmup"], default["hold"]) == (30, 30)
    default = options.check_options({**OPTIONS, "steps": None, "minutes": 1.0, "warmup": None})
    assert (default["warmup"], default["hold"]) == (100, 100)
    timed = options.check_options({**OPTIONS, "steps": None, "minutes": 1.0, "warmup": 10})
    assert (timed["warmup"], timed["hold"]) == (10, options.TIMED)


OPTIONS = {
    **{"steps": 10, "minutes": None, "batch_size": 8, "lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.0, "warmup": 2},
    **{"schedule": "cosine", "clip": 1.0, "accumulate": 1, "ema": 0.5, "weighting": "likelihood", "times": None},
    **{"stratified": True, "seed": 0, "out": None, "resume": False, "overwrite": False, "checkpoint_every": 10},
    **{"log_every": 10, "validate_every": 10, "bf16": False},
}


def trainer_for(model, samples=MOONS, **options):
    checked = options.check_options({**OPTIONS, **options})
    return training_trainer.Trainer(model, training_batches.Source.make(samples, model, None), checked, torch.device("cpu"), 0, 1)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_average_against_its_recursion(decay):
    trainer = trainer_for(make(dtype=torch.float64), MOONS.train.double(), ema=decay)
    expected = None
    for n in range(12):
        trainer.advance()
        w = weights(trainer.model)
        d = min(decay, (1 + n) / (10 + n))
        expected = w.clone() if expected is None else d * expected + (1 - d) * w
        torch.testing.assert_close(weights(trainer.averaged), expected, rtol=0, atol=1e-14)
    assert (decay == 0) == torch.equal(expected, w)
    trainer.finish()
    torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=1e-14)


def test_a_step_against_plain_torch():
    """One step by hand: the same draws, the plain Adam, the norm clipped by hand."""
    model, mine = make(dtype=torch.float64), make(dtype=torch.float64)
    x = MOONS.train.double()
    trainer = trainer_for(model, x, clip=0.01)
    optimizer = torch.optim.Adam(mine.parameters(), lr=1.0)
    sde = mine.sde
    for k in range(3):
        index = trainer.source.order(k * 8 + np.arange(8), 0)
        x0, t, eps, weight, cond = trainer._batch(k, np.arange(8))
        assert torch.equal(x0, x[index])
        assert cond == {}
        u = ((sde.log_snr(t) - sde.log_snr(1e-5)) / (sde.log_snr(1.0) - sde.log_snr(1e-5)) * 8).floor()
        assert u.tolist() == list(range(8))  # one time a stratum of log-SNR
        assert weight.tolist() == pytest.approx([1.0] * 8)
        trainer.advance()
        optimizer.param_groups[0]["lr"] = trainer.schedule(k)
        optimizer.zero_grad()
        x_t = sde.perturb(x0, t, eps)
        (mine.eps(x_t, t) - eps).square().mean().backward()
        norm = torch.stack([p.grad.norm() for p in mine.parameters()]).norm()
        assert float(trainer._norm) == pytest.approx(float(norm))
        for p in mine.parameters():
            p.grad *= min(1, 0.01 / float(norm))
        optimizer.step()
        torch.testing.assert_close(weights(model), weights(mine), rtol=0, atol=1e-6)


def test_draws_of_steps_differ_and_are_standard():
    trainer = trainer_for(make(), batch_size=64)
    draws = [trainer._batch(k, np.arange(64)) for k in (0, 1, 63, 64, 200)]
    for i in (0, 1, 2):
        values = [d[i] for d in draws]
        assert all(not torch.equal(a, b) for n, a in enumerate(values) for b in values[:n])
    again = trainer._batch(1, np.arange(64))
    assert all(torch.equal(a, b) for a, b in zip(again[:4], draws[1][:4], strict=True))
    part = trainer._batch(1, np.arange(16, 48))
    assert all(torch.equal(a, b[16:48]) for a, b in zip(part[:4], draws[1][:4], strict=True))
    eps = torch.cat([trainer._batch(k, np.arange(64))[2] for k in range(100)]).flatten()
    assert abs(float(eps.mean())) < 4.5 / len(eps) ** 0.5
    assert abs(float(eps.var()) - 1) < 4.5 * (2 / len(eps)) ** 0.5


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_is_one_step_of_the_whole_batch(accumulate):
    models = [make(dtype=torch.float64) for _ in range(2)]
    for model, n in zip(models, (1, accumulate), strict=True):
        sd.fit(model, MOONS.train.double(), steps=4, accumulate=n, lr=1e-2, warmup=0, **{**QUICK, "batch_size": 20})
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=0, atol=1e-6)
    assert not torch.equal(weights(models[0]), weights(make(dtype=torch.float64)))


def test_bf16_keeps_weights_in_float32():
    model, full = make(), make()
    h = sd.fit(model, MOONS, steps=40, lr=1e-2, bf16=True, **QUICK)
    f = sd.fit(full, MOONS, steps=40, lr=1e-2, **QUICK)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert h.loss != f.loss
    assert h.loss == pytest.approx(f.loss, rel=0.05)
    sd.fit(model, MOONS, steps=2, bf16=True, **QUICK)  # a second time in one process


def test_buffers_and_frozen_parameters():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)
            self.layer.bias.requires_grad_(False)

        def forward(self, x, c_noise):
            return self.layer(self.norm(x))

    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,))
    bias = model.net.layer.bias.clone()
    sd.fit(model, MOONS, steps=5, **QUICK)
    assert torch.equal(model.net.layer.bias, bias)
    assert int(model.net.norm.num_batches_tracked) == 5


# ---- a function of its arguments


def test_nothing_global_changes():
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # is not looked at either
        state = torch.get_rng_state()
        results.append(make(3, dropout=0.3))
        sd.fit(results[-1], LEVELS, steps=8, **QUICK)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(results[0]), weights(results[1]))
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    other = make(3, dropout=0.3)
    sd.fit(other, LEVELS, steps=8, seed=1, **QUICK)
    assert not torch.equal(weights(results[0]), weights(other))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert handlers == (signal.default_int_handler, signal.SIG_DFL)


def test_dropout_is_on_in_training_and_differs_between_steps():
    trainer = trainer_for(make(dropout=0.5))
    trainer.model.train()
    seeds = {training_trainer._dropout_seed(s, k, r) for s in (0, 1) for k in range(100) for r in range(3)}
    assert len(seeds) == 600
    masks = []
    for seed in (1, 2, 1):
        with noise.seeded(seed, torch.device("cpu")):
            masks.append(torch.rand(5))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])


def test_validation_is_at_fixed_noise_and_with_the_average():
    trainer = trainer_for(make())
    first = trainer.validate()
    for _ in range(3):
        trainer.advance()
    second = trainer.validate()
    assert trainer.validate() == second != first
    assert trainer.averaged.training == trainer.model.training
    by_raw = trainer_for(trainer.model)
    assert by_raw.validate() != second
    by_raw.model.load_state_dict(trainer.averaged.state_dict())
    assert trainer_for(by_raw.model).validate() == second


# ---- interrupted runs


RUN = {"steps": 60, "warmup": 7, "checkpoint_every": 7, "validate_every": 25, "lr": 1e-2, **QUICK}


def run(root, model=None, **kwargs):
    model = model or make(dropout=0.2)
    history = sd.fit(model, LEVELS, out=root, **{**RUN, **kwargs})
    return model, history


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    model, history = run(root)
    return root, model, history


def stop_at(k, signum):
    def callback(step, line):
        if step == k:
            os.kill(os.getpid(), signum)

    return callback


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_the_run_goes_on_to_the_bit(tmp_path, uninterrupted, signum, capfd):
    error = KeyboardInterrupt if signum == signal.SIGINT else SystemExit
    with pytest.raises(error) as caught:
        run(tmp_path, callback=stop_at(30, signum))
    if error is SystemExit:
        assert caught.value.code == 143
        assert "saved step 30" in capfd.readouterr().err
    else:
        assert "saved step 30" in str(caught.value)
    assert format.read(tmp_path).config["training"]["step"] == 30
    model, history = run(tmp_path, resume=True)
    root, whole, other = uninterrupted
    assert torch.equal(weights(model), weights(whole))
    assert equal(state_of(tmp_path), state_of(root))
    assert (history.steps, history.loss, history.validation) == (other.steps, other.loss, other.validation)
    without_time = [
        [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines(r)]
        for r in (tmp_path, root)
    ]
    assert without_time[0] == without_time[1]
    assert all(a <= b for a, b in zip(history.seconds, history.seconds[1:], strict=False))
    # once more: nothing is left to do
    model, history = run(tmp_path, resume=True)
    assert torch.equal(weights(model), weights(whole))
    assert history.loss == other.loss


def test_fitted_times_go_on_to_the_bit(tmp_path):
    arguments = {"times": "fitted", "steps": 300, "checkpoint_every": 70}
    whole, history = run(tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callback=stop_at(140, signal.SIGINT), **arguments)  # between the fits of steps 128 and 256
    shares = format.read(tmp_path / "cut").config["training"]["shares"]
    assert len(shares) == 32
    assert max(shares) > 2 * min(shares)
    model, resumed = run(tmp_path / "cut", resume=True, **arguments)
    assert torch.equal(weights(model), weights(whole))
    assert equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))
    assert resumed.loss == history.loss
    flat, _ = run(tmp_path / "flat", **{**arguments, "times": "importance"})
    assert not torch.equal(weights(flat), weights(whole))


def test_fitted_times_of_a_random_dataset_are_a_function_of_the_seed():
    class Random(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, i):
            return torch.randn(2)

    found = []
    for other in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(other)
            model = make()
            sd.fit(model, Random(), steps=140, times="fitted", **QUICK)
        found.append(weights(model))
    assert torch.equal(*found)


def test_resuming_with_other_times_of_ones_own_is_refused(tmp_path):
    arguments = {"steps": 20, **QUICK}
    sd.fit(make(), MOONS, out=tmp_path, times=loss.FittedTimes((0.9, 0.1)), **arguments)
    with pytest.raises(CheckpointMismatch, match=r"times is .*0\.9, 0\.1"):
        sd.fit(make(), MOONS, out=tmp_path, resume=True, times=loss.FittedTimes((0.1, 0.9)), **arguments)


def test_resuming_with_another_dequantization_names_it(tmp_path):
    model = lambda: sd.NetworkModel(nets.MLP(2, 16, 1), LEVELS.transform.adapt(sd.VPSDE()), (2,))
    sd.fit(model(), LEVELS, steps=10, out=tmp_path, dequantization="normal", **QUICK)
    with pytest.raises(CheckpointMismatch, match="dequantization is 'normal' in the checkpoint, but None"):
        sd.fit(model(), LEVELS, steps=10, out=tmp_path, resume=True, **QUICK)


def test_fitted_times_lower_the_variance_of_the_loss():
    """The scatter of the logged loss over the last two thirds of a run, against log-SNR uniform: the same mean, less scatter."""
    spread = {}
    for times in ("importance", "fitted"):
        model = make()
        history = sd.fit(model, MOONS, steps=900, lr=1e-3, times=times, stratified=False, **{**QUICK, "log_every": 1})
        losses = torch.tensor(history.loss[300:])
        spread[times] = float(losses.std()), float(losses.mean())
    assert spread["fitted"][0] < 0.8 * spread["importance"][0]
    error = spread["importance"][0] / 600**0.5
    assert abs(spread["fitted"][1] - spread["importance"][1]) < 5 * error


def test_ctrl_c_without_a_folder_and_a_second_one():
    model = make()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 10"):
        sd.fit(model, MOONS, steps=60, callback=stop_at(10, signal.SIGINT), **QUICK)
    assert not model.training

    def twice(step, line):
        if step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one must be immediate")

    with pytest.raises(KeyboardInterrupt) as caught:
        sd.fit(make(), MOONS, steps=60, callback=twice, **QUICK)
    assert "step" not in str(caught.value)


def test_the_log_is_cut_where_the_run_goes_on(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop_at(20, signal.SIGINT))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 40, "validation": 1.0, "seconds": 1}\n{"step": 50, "loss"')
    _, history = run(tmp_path, resume=True)
    assert history.loss == uninterrupted[2].loss
    assert [line["step"] for line in lines(tmp_path)] == [line["step"] for line in lines(uninterrupted[0])]


def test_a_damaged_checkpoint_costs_some_steps_only(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop_at(30, signal.SIGINT))
    file = folders.folders(tmp_path)[-1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"truncated.*the previous checkpoint is used"):
        run(tmp_path, resume=True)
    assert equal(state_of(tmp_path), state_of(uninterrupted[0]))


def test_a_model_saved_in_between_does_not_harm_the_run(tmp_path, uninterrupted):
    model = make(5)

    def save(step, line):
        if step in (10, 20):
            sd.save(model, tmp_path)
        stop_at(30, signal.SIGINT)(step, line)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=save)
    for _ in range(4):
        sd.save(model, tmp_path)
    assert torch.equal(weights(sd.load(tmp_path)), weights(model))
    assert [format.is_training(folder) for folder in folders.folders(tmp_path)] == [True, True, False, False]
    run(tmp_path, resume=True)
    assert equal(state_of(tmp_path), state_of(uninterrupted[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "options.seed is 0 in the checkpoint, but 1 was requested"),
        ({"batch_size": 16}, "options.batch_size is 32"),
        ({"lr": 1e-3}, "options.lr is 0.01"),
        ({"steps": 61}, "options.steps is 60 in the checkpoint, but 61"),
        ({"weighting": "simple"}, "options.(times|weighting)"),
        ({"model": make(dropout=0.1)}, "net.args.dropout is 0.2 in the checkpoint, but 0.1"),
        ({"conditional": True}, "conditional is False"),
    ],
)
def test_a_run_goes_on_with_the_same_arguments_only(uninterrupted, change, message):
    with pytest.raises(CheckpointMismatch, match=message):
        run(uninterrupted[0], resume=True, **change)


def test_other_data_are_refused(uninterrupted):
    other = data.Data(LEVELS.train.flip(0), LEVELS.test, LEVELS.transform)
    with pytest.raises(CheckpointMismatch, match=r"data is '[0-9a-f]{64}'"):
        sd.fit(make(dropout=0.2), other, out=uninterrupted[0], resume=True, **RUN)


def test_a_run_is_not_overwritten_unasked(tmp_path):
    short = {"steps": 5, "warmup": 0}
    run(tmp_path, **short, resume=True)  # nothing to resume: starts
    first = state_of(tmp_path)
    with pytest.raises(ConfigError, match=r"resume=True continues it, overwrite=True removes it"):
        run(tmp_path, **short)
    assert equal(state_of(tmp_path), first)
    run(tmp_path, **short, overwrite=True, seed=1)
    assert not equal(state_of(tmp_path), first)
    assert len(folders.folders(tmp_path)) == 1
    assert [line["step"] for line in lines(tmp_path)] == [0, 5, 5]


def test_a_constant_schedule_can_be_extended(tmp_path):
    constant = {"schedule": "constant", "warmup": 3}
    run(tmp_path, steps=20, **constant)
    run(tmp_path, steps=30, resume=True, **constant)
    run(tmp_path / "b", steps=30, **constant)
    assert equal(state_of(tmp_path), state_of(tmp_path / "b"))


def test_minutes_become_steps_once(tmp_path, monkeypatch):
    begun = time.perf_counter()
    h = sd.fit(make(), MOONS, minutes=0.8 / 60, out=tmp_path, batch_size=16, progress=False)
    assert h.steps[-1] > options.TIMED or time.perf_counter() - begun > 0.8  # a busy machine
    training = format.read(tmp_path).config["training"]
    assert training["steps"] == training["step"] == h.steps[-1]
    again = sd.fit(make(), MOONS, minutes=0.8 / 60, out=tmp_path, batch_size=16, progress=False, resume=True)
    assert again.loss == h.loss
    # interrupted before and after the number is known
    monkeypatch.setattr(training_loop, "agree", lambda value, world, device: 80)
    model = {}
    for name, stops in {"whole": (), "late": (60,), "early": (20,), "both": (30, 70)}.items():
        root = tmp_path / name
        for k in (*stops, None):
            model[name] = make()
            arguments = {"minutes": 1.0, "out": root, "resume": True, **QUICK}
            if k is None:
                h = sd.fit(model[name], MOONS, **arguments)
            else:
                with pytest.raises(KeyboardInterrupt):
                    sd.fit(model[name], MOONS, callback=stop_at(k, signal.SIGINT), **arguments)
        assert h.steps[-1] == 80
        assert torch.equal(weights(model[name]), weights(model["whole"]))
    assert h.lr[4] < h.lr[7]  # 80 steps: still warming up


# ---- things go wrong


class Poisoned(torch.nn.Module):
    """A network whose answer, or whose gradient only, is not finite from one call on."""

    def __init__(self, call, value=math.nan, gradient=False):
        super().__init__()
        self.inner, self.call, self.value, self.gradient, self.calls = nets.MLP(2, 8, 1), call, value, gradient, 0

    def forward(self, x, c_noise):
        self.calls += self.training
        out = self.inner(x, c_noise)
        if self.calls != self.call or not self.training:
            return out
        if self.gradient:
            out.register_hook(lambda g: g * math.inf)
            return out
        return torch.where(c_noise[:, None] == c_noise.min(), self.value, out)


@pytest.mark.parametrize(("value", "gradient"), [(math.nan, False), (math.inf, False), (1e30, False), (0.0, True)])
def test_divergence_is_described_and_never_saved(tmp_path, value, gradient):
    model = sd.NetworkModel(Poisoned(13, value, gradient), sd.VPSDE(), (2,), "v")
    with pytest.raises(TrainingDiverged, match=r"step 13: .* t = \S+\.\.\S+ .*learning rate 0\.01\.") as caught:
        sd.fit(model, MOONS, steps=40, lr=0.01, warmup=5, schedule="constant", out=tmp_path, checkpoint_every=4, **QUICK)
    if not gradient:
        worst = float(str(caught.value).split("worst samples at t = ")[1].split("..")[0])
        assert worst < 2e-4  # the smallest time of 32 strata is the one that was poisoned
    found = format.read(tmp_path)
    assert found.config["training"]["step"] == 12
    assert all(t.isfinite().all() for tensors in found.tensors.values() for t in tensors.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert [line["step"] for line in lines(tmp_path)] == [0, 10]


def test_a_device_that_is_looked_at_now_and_then_saves_nothing_bad():
    """As on a GPU, where the loss of each step stays on the device."""
    model = sd.NetworkModel(Poisoned(6), sd.VPSDE(), (2,), "v")
    trainer = trainer_for(model)
    looks = trainer.check_finite
    trainer.check_finite = lambda step=None: None
    for _ in range(9):
        trainer.advance()
    trainer.check_finite = looks
    with pytest.raises(TrainingDiverged, match=r"one of the steps 1\.\.9"):
        trainer.check_finite()


def test_a_full_disk_stops_the_run_and_keeps_the_last(tmp_path, monkeypatch):
    real, calls = files.write_file, []

    def fails(path, content):
        if path.name == "ema.safetensors":
            calls.append(path)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(folders, "write_file", fails)
    with pytest.raises(CheckpointWriteError, match=r"No space left.*previous checkpoint intact: \S+checkpoint-000014"):
        run(tmp_path)
    monkeypatch.undo()
    assert format.read(tmp_path).config["training"]["step"] == 14


def test_two_runs_in_one_folder(tmp_path):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sd.fit(make(), MOONS, steps=10**6, out=tmp_path, callback=lambda step, line: os.write(go, b"1"), **QUICK)
        finally:
            os._exit(1)
    try:
        os.read(ready, 1)
        with pytest.raises(LockError, match=f"process {pid} "):
            sd.fit(make(), MOONS, steps=5, out=tmp_path, **QUICK)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sd.fit(make(), MOONS, steps=5, out=tmp_path, overwrite=True, **QUICK)


def test_progress_is_shown(capfd):
    sd.fit(make(), MOONS, steps=30, batch_size=8, log_every=5)
    text = capfd.readouterr().err
    assert "30/30" in text
    assert "loss" in text
    assert "lr" in text


@pytest.mark.slow
def test_twenty_kills_and_the_same_weights_to_the_bit(tmp_path, uninterrupted):
    """kill -9 at random moments, of a run with shuffled levels, dropout, warm-up and an average."""
    rng, kills, longest = random.Random(0), 0, {"steps": 400, "checkpoint_every": 5}
    run(tmp_path / "whole", **longest)
    root = tmp_path / "killed"
    for attempt in range(400):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run(root, resume=True, **longest)
                code = 0
            finally:
                os._exit(code)
        if kills < 20:
            wait = rng.uniform(0.005, 0.12)
            time.sleep(wait)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kills += status == -signal.SIGKILL
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"attempt {attempt} ended with {status}"
    assert kills == 20
    assert equal(state_of(root), state_of(tmp_path / "whole"))
    assert not [name for name in os.listdir(root) if name.startswith(".tmp")]
    steps = [line["step"] for line in lines(root)]
    assert steps == [line["step"] for line in lines(tmp_path / "whole")]


SCRIPT = """
import sys, json
import torch, torch.distributed as dist
torch.set_num_threads(1)
import scoresde as sd
from scoresde import nets, data

class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.used = data.toy("moons", 96).train.double(), []
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        self.used.append(i)
        return self.x[i]

torch.manual_seed(int(__import__("os").environ.get("RANK", 0)))  # the first process's weights count
model = sd.NetworkModel(nets.MLP(2, 16, 2), sd.VPSDE(), (2,), "v").double()
with torch.no_grad():
    if __import__("os").environ.get("RANK", "0") == "0":
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-0.2, 0.2, p.numel()).view(p.shape) * (1 + i % 3))
rows = Rows()
out = sys.argv[1]
h = sd.fit(model, rows, steps=12, batch_size=25, accumulate=2, lr=1e-2, warmup=2, out=out + "/run", checkpoint_every=5,
           log_every=6, progress=False)
rank = dist.get_rank() if dist.is_initialized() else 0
world = dist.get_world_size() if dist.is_initialized() else 1
torch.save([p.detach() for p in model.parameters()], f"{out}/weights-{world}-{rank}.pt")
json.dump({"used": rows.used, "loss": h.loss, "steps": h.steps}, open(f"{out}/used-{world}-{rank}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    a = subprocess.Popen([*torchrun, str(script), str(two)], env=env, stderr=subprocess.PIPE, text=True)
    b = subprocess.run([sys.executable, str(script), str(one)], env=env, capture_output=True, text=True, timeout=300)
    errors = a.communicate(timeout=300)[1]
    assert a.returncode == 0, errors
    assert b.returncode == 0, b.stderr
    first, second = (torch.load(two / f"weights-2-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = torch.load(one / "weights-1-0.pt", weights_only=True)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    for x, y in zip(first, alone, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    used = [json.loads((two / f"used-2-{rank}.json").read_text()) for rank in (0, 1)]
    whole = json.loads((one / "used-1-0.json").read_text())
    batches = [whole["used"][25 * k : 25 * (k + 1)] for k in range(12)]
    sizes = [len(u["used"]) // 12 for u in used]
    assert sizes == [13, 12]
    mine = [used[0]["used"][13 * k : 13 * (k + 1)] + used[1]["used"][12 * k : 12 * (k + 1)] for k in range(12)]
    assert mine == batches  # the same samples step by step, none twice
    assert sorted(whole["used"][:96]) == list(range(96))  # each once an epoch
    assert used[0]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert equal(state_of(two / "run"), state_of(two / "run"))
    for key, tensor in state_of(two / "run").items():
        torch.testing.assert_close(tensor, state_of(one / "run")[key], rtol=1e-4, atol=1e-5)


def test_permutations_and_streams_are_keyed():
    a = noise.permutation(1000, 0, 5)
    assert sorted(a.tolist()) == list(range(1000))
    others = [noise.permutation(1000, *key) for key in ((1, 5), (0, 6), (0, 5, 1))]
    assert all((a != b).any() for b in others)
    assert (a == noise.permutation(1000, 0, 5)).all()
    streams = [training_batches.ORDER, training_trainer._TIME, training_trainer._EPS, training_trainer._DROPOUT, *(training_trainer._VALIDATION + i for i in range(3))]
    assert len(set(streams)) == 7
    assert min(streams) > 6  # those of noise.py
    assert Noise(0, np.zeros(1, np.int64), (1,)).normal(streams[0]).isfinite()

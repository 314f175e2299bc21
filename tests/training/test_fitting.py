"""Training as a whole: it learns, the average is what is left, it is a function of its arguments, and divergence spoils nothing."""

from __future__ import annotations

import json
import math
import random
import signal

import numpy as np
import pytest
import torch
from training.runs import LEVELS, MOONS, QUICK, equal, lines, make, run_script, state_of, trainer_for, weights

import scoresde as sd
from scoresde import loss, nets
from scoresde.checkpoints import format
from scoresde.errors import ConfigError, TrainingDiverged

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


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_average_against_its_recursion(decay):
    trainer = trainer_for(make(dtype=torch.float64), MOONS.train.double(), ema=decay)
    expected = None
    for n in range(12):
        trainer.advance()
        w = weights(trainer.model)
        d = min(decay, (1 + n) / (10 + n))
        expected = w.clone() if expected is None else d * expected + (1 - d) * w
        with trainer.average.in_place():
            torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=1e-14)
        assert torch.equal(weights(trainer.model), w)
    assert (decay == 0) == torch.equal(expected, w)
    trainer.finish()
    torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=1e-14)


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


def test_a_model_without_parameters():
    with pytest.raises(ConfigError, match="no parameters"):
        sd.fit(sd.ExactModel(MOONS.target, sd.VPSDE()), MOONS, steps=1, progress=False)


# ---- what the data mean


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


def test_a_model_of_ones_own_is_told_the_transform_unless_it_has_one():
    class Own(sd.ScoreModel):
        def __init__(self):
            super().__init__(sd.VPSDE(), (2,))
            self.w = torch.nn.Parameter(torch.zeros(2))

        def denoise(self, x, t):
            return x * self.w

    class Sure(Own):
        transform = sd.Transform(levels=7)

    own, sure = Own(), Sure()
    for model in (own, sure):
        sd.fit(model, LEVELS, steps=1, **QUICK)
    assert (own.transform, sure.transform) == (LEVELS.transform, sd.Transform(levels=7))


def test_what_is_left_is_called_averaged():
    model = make()
    model.weights = "raw"  # as whoever loads such ones says
    sd.fit(model, MOONS, steps=1, **QUICK)
    assert model.weights == "averaged"


def test_senseless_dequantizations():
    with pytest.warns(UserWarning, match="half a bin is"):
        sd.fit(make(), LEVELS, steps=1, dequantization="normal", **QUICK)
    with pytest.raises(ConfigError, match="'uniform' or 'normal'"):
        sd.fit(make(), LEVELS, steps=1, dequantization="gaussian", **QUICK)
    with pytest.raises(ConfigError, match="integer levels"):
        sd.fit(make(), MOONS, steps=1, dequantization="normal", **QUICK)


def test_labels_go_to_networks_that_want_them():
    model = make(classes=3)
    before = model.net.embedding.label.weight.clone()
    sd.fit(model, LEVELS, steps=6, **QUICK)
    moved = (model.net.embedding.label.weight - before).abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, True]
    sd.fit(make(classes=3), MOONS, steps=1, **QUICK)  # no labels there
    with pytest.raises(ConfigError, match="no labels"):
        sd.fit(make(), MOONS, steps=1, conditional=True, **QUICK)


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


def test_progress_is_shown(capfd):
    sd.fit(make(), MOONS, steps=30, batch_size=8, log_every=5)
    text = capfd.readouterr().err
    assert "30/30" in text
    assert "loss" in text
    assert "lr" in text


# ---- processes


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
looked = 1 if world == 1 else 2  # at the first item, and of several processes each at what it begins with
json.dump({"first": rows.used[0], "used": rows.used[looked:], "loss": h.loss, "steps": h.steps}, open(f"{out}/used-{world}-{rank}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    run_script(SCRIPT, tmp_path, two, processes=2)
    run_script(SCRIPT, tmp_path, one)
    first, second = (torch.load(two / f"weights-2-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = torch.load(one / "weights-1-0.pt", weights_only=True)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    for x, y in zip(first, alone, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    used = [json.loads((two / f"used-2-{rank}.json").read_text()) for rank in (0, 1)]
    whole = json.loads((one / "used-1-0.json").read_text())
    batches = [whole["used"][25 * k : 25 * (k + 1)] for k in range(12)]
    assert [u["first"] for u in (*used, whole)] == [0, 0, 0]  # looked at for its conditions, before the first step
    sizes = [len(u["used"]) // 12 for u in used]
    assert sizes == [13, 12]
    mine = [used[0]["used"][13 * k : 13 * (k + 1)] + used[1]["used"][12 * k : 12 * (k + 1)] for k in range(12)]
    assert mine == batches  # the same samples step by step, none twice
    assert sorted(whole["used"][:96]) == list(range(96))  # each once an epoch
    assert used[0]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert equal(state_of(two / "run"), state_of(two / "run"))
    for key, tensor in state_of(two / "run").items():
        torch.testing.assert_close(tensor, state_of(one / "run")[key], rtol=1e-4, atol=1e-5)

"""Training on the likelihood of the ODE: it gains, it is a function of its seed, and the best weights are kept."""

from __future__ import annotations

import copy
import math
import os
import signal
import warnings

import pytest
import torch

import scoresde as sd
from scoresde.errors import ConfigError, SolverError, TrainingDiverged
from scoresde.training.fine_tuning import Looks, fine_tune


def random_weights(net: torch.nn.Module, scale: float = 0.5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (scale / math.sqrt(max(p[0].numel(), 1))))
    return net


@pytest.fixture(scope="module")
def moons():
    data = sd.data.toy("moons", n=2000)
    model = sd.NetworkModel(random_weights(sd.nets.MLP(2, width=32, depth=1), 0.3), sd.VPSDE(t_min=1e-3), (2,))
    sd.fit(model, data, steps=200, batch_size=64, progress=False)
    return data, model


@pytest.mark.slow
def test_fine_tuning_lowers_the_converged_nll(moons):
    """By more than four standard errors of the difference, on samples of no other use, by an adaptive solver and by 60 calls."""
    data, model = moons
    x = data.test[-400:]
    tuned = copy.deepcopy(model)
    how = {"batch_size": 64, "solver_steps": 12, "lr": 2e-3, "validate_every": 15, "validation_samples": 200, "progress": False}
    lines = []
    found = fine_tune(tuned, data, steps=30, callback=lambda k, line: lines.append((k, line)), **how)
    fine = {"solver": sd.ReferenceSolver(), "steps": 60, "divergence": "exact"}
    for arguments in (fine, {"solver": sd.AdaptiveODE(1e-4, 1e-4), "divergence": "exact"}):
        gain = sd.log_prob(tuned, x, **arguments).log_prob - sd.log_prob(model, x, **arguments).log_prob
        assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(len(x))
    assert found.validation_steps == [0, 15, 30]
    assert found.after < found.before
    assert found.best == found.validation_steps[found.validation.index(found.after)]
    assert (len(found.nll), len(lines)) == (30, 33)
    assert not tuned.training


def test_fine_tuning_is_a_function_of_the_seed(moons):
    data, model = moons
    runs = []
    for seed in (0, 0, 1):
        torch.rand(1)  # the global generator is no part of it
        tuned = copy.deepcopy(model).train()
        found = fine_tune(tuned, data.train, steps=2, batch_size=16, solver_steps=4, seed=seed, progress=False)
        assert (found.validation, found.best) == ([], 2)
        assert math.isnan(found.after)
        runs.append((found.nll, [p.detach() for p in tuned.parameters()]))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(p, q) for p, q in zip(runs[0][1], runs[1][1], strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(runs[0][1], model.parameters(), strict=True))


def test_weights_that_got_worse_are_not_kept(moons):
    data, model = moons
    tuned = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="never below"):
        found = fine_tune(tuned, data, steps=2, lr=0.3, batch_size=16, solver_steps=4, clip=None, validation_samples=64, progress=False)
    assert found.best == 0
    assert found.after == found.before
    assert found.validation[-1] > found.before
    assert all(torch.equal(p, q) for p, q in zip(tuned.parameters(), model.parameters(), strict=True))


def test_divergence_is_refused_and_undone(moons):
    data, model = moons
    tuned = copy.deepcopy(model)
    with pytest.raises(TrainingDiverged, match="step 2 of fine_tune"):
        fine_tune(tuned, data.train, steps=3, lr=1e30, batch_size=8, solver_steps=4, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(tuned.parameters(), model.parameters(), strict=True))


class Spy(torch.nn.Module):
    """Keeps what it is called with at t_min, where x is a state that log p is of, and at times of their own for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen, self.noised, self.first = sd.nets.MLP(2, width=8, depth=1, classes=2), [], [], math.inf

    def forward(self, x, c_noise, label=None):
        self.first = min(self.first, float(c_noise.min()))
        if float(c_noise.max()) == self.first:
            self.seen.append((x.detach(), label))
        if float(c_noise.min()) < float(c_noise.max()):
            self.noised.append((x.detach(), c_noise))
        return self.net(x, c_noise, label)


@pytest.mark.parametrize("dequantization", ["uniform", "normal"])
def test_fine_tuning_on_levels_with_labels(dequantization):
    """Samples and labels go together, and levels are dequantized as the model expects it: log p sees states at t_min, the denoising
    loss, which adds noise of its own, data without any: with "normal" the middles of the bins, of the same samples."""
    label = torch.arange(64) % 2
    levels = (label[:, None] * 8 + torch.randint(0, 4, (64, 2), generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    data = sd.data.Data(levels, levels, sd.Transform(levels=16, dequantization=dequantization), label, label)
    # all times are near t_min, so that noise that is added twice shows
    model = sd.NetworkModel(Spy(), sd.VPSDE(t_min=2e-3, t_max=4e-3, t_end=3e-3), (2,))
    fine_tune(model, data, steps=4, batch_size=64, solver_steps=3, conditional=True, validate_every=4, progress=False)
    assert model.reference is not None
    t = model.sde.levels([model.sde.t_min])[0]
    at_end, noised = model.net.seen, model.net.noised
    assert len(at_end) >= 6
    for x, given in at_end[:6]:
        assert torch.equal((x.mean(1) > -0.25).long(), given)
        off = (x / t.alpha + 1) / data.transform.bin_width % 1 - 0.5  # from the middle of its bin, in bins
        assert float(off.std()) == pytest.approx(t.sigma / data.transform.bin_width if dequantization == "normal" else 12**-0.5, rel=0.25)
    batches = [x for x, _ in at_end[1:5]]  # the first is of validation
    assert all(not torch.equal(a, b) for a, b in zip(batches, batches[1:], strict=False))
    assert len(noised) == 4
    eps = []
    for x, (x_t, c_noise) in zip(batches, noised, strict=True):
        clean = data.transform.center(data.transform.quantize(x / t.alpha), x.dtype) if dequantization == "normal" else x
        s = (4 * c_noise.double()).exp()[:, None]  # sigma/alpha
        alpha = (1 + s.square()).rsqrt()
        assert float(s.max()) < 1.6 * t.s
        eps.append((x_t / alpha - clean) / s)
        if dequantization == "normal":
            assert float((x / t.alpha - clean).std()) == pytest.approx(t.s, rel=0.25)
    eps = torch.cat(eps).flatten()
    assert abs(float(eps.mean())) < 5 / len(eps) ** 0.5
    assert float(eps.std()) == pytest.approx(1, abs=5 / (2 * len(eps)) ** 0.5)  # 0.16; with noise added twice 1.3


def test_wrong_arguments_of_fine_tune(moons):
    data, model = moons
    for bad in (
        {"steps": 0},
        {"lr": -1.0},
        {"batch_size": 0},
        {"solver_steps": 0},
        {"anchor": -1.0},
        {"clip": 0.0},
        {"prior": "mine"},
        {"divergence": "?"},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            fine_tune(model, data, **{"steps": 1, "progress": False, **bad})
    with pytest.raises(ConfigError, match="no parameters"):
        fine_tune(sd.ExactModel(data.target, sd.VPSDE()), data, steps=1)


class Blind(torch.nn.Module):
    """A network that answers NaN where x is far out."""

    def __init__(self):
        super().__init__()
        self.net = random_weights(sd.nets.MLP(2, width=8, depth=1), 0.3)

    def forward(self, x, c_noise):
        return torch.where(x.abs().amax(1, keepdim=True) > 50, math.nan, self.net(x, c_noise))


@pytest.mark.parametrize("far", [1, 4], ids=["one sample", "all samples"])
def test_where_no_look_is_finite_the_last_weights_are_kept(far):
    test = torch.zeros(4, 2)
    test[:far] = 100.0
    data = sd.data.Data(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), test)
    model = sd.NetworkModel(Blind(), sd.VPSDE(t_min=1e-3), (2,))
    before, lines = copy.deepcopy(model), []
    with pytest.warns(UserWarning, match="at no look"):
        found = fine_tune(
            model, data, steps=2, batch_size=8, solver_steps=3, progress=False, callback=lambda k, line: lines.append((k, line))
        )
    assert found.validation == [math.inf, math.inf]
    assert (found.validation_steps, found.best, found.after) == ([0, 2], 2, math.inf)
    assert [k for k, line in lines if line == {"validation": math.inf}] == [0, 2]
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("bad", [[], [0], [1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, None], ids=str)
def test_a_look_that_is_not_finite_is_never_the_best(bad, value):
    """Three looks, the later the better, but for those that fail: of some samples or, by an error, of all."""
    weight = torch.zeros(2)
    looks = Looks([weight])

    def measure(k):
        if k in bad and value is None:
            raise SolverError("log p of no sample is finite")
        return value if k in bad else -float(k)

    for k in range(3):
        weight.fill_(k + 1.0)
        found = looks.add(10 * k, lambda k=k: measure(k))
        assert found == (math.inf if k in bad else -k)
    good = [k for k in range(3) if k not in bad]
    assert looks.steps == [0, 10, 20]
    assert [math.isfinite(v) for v in looks.nll] == [k in good for k in range(3)]
    assert looks.told == bool(good)
    assert looks.best == (10 * good[-1] if good else 0)
    weight.fill_(7.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        looks.finish()
    assert weight.tolist() == [good[-1] + 1.0 if good else 7.0] * 2
    assert ["at no look" in str(w.message) for w in caught] == ([] if good else [True])


def test_ctrl_c_ends_it_after_a_step_with_the_best_weights(moons):
    """Of a run that gets worse from the first step on: those of before; without validation samples the last ones, of whole steps."""
    data, model = moons
    how = {"steps": 9, "batch_size": 16, "solver_steps": 4, "progress": False}
    handler, after_two = signal.getsignal(signal.SIGINT), []
    worse, last = copy.deepcopy(model), copy.deepcopy(model)

    def stop(k, line):
        if k == 2 and "nll" in line:
            after_two.append([p.detach().clone() for p in last.parameters()])
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        fine_tune(worse, data, lr=0.3, clip=None, validation_samples=64, validate_every=1, callback=stop, **how)
    assert all(torch.equal(p, q) for p, q in zip(worse.parameters(), model.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):
        fine_tune(last, data.train, callback=stop, **how)
    assert all(torch.equal(p, q) for p, q in zip(last.parameters(), after_two[1], strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(last.parameters(), model.parameters(), strict=True))
    assert all(p.grad is None for p in last.parameters())
    assert signal.getsignal(signal.SIGINT) == handler

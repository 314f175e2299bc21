"""Gradients of log p: against exact scores and finite differences, of the same number as ``log_prob``; fine-tuning on it."""

from __future__ import annotations

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, image_mixture, marginal_sample, name

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError, SolverError, TrainingDiverged
from scoresde.likelihood.gradients import differentiable_log_prob, log_prob_gradient
from scoresde.training import fine_tuning
from scoresde.training.fine_tuning import fine_tune

KINDS = [("exact", 1), ("hutchinson", 2), ("reference", 1), ("gaussian", 2), ("hutch++", 4)]
by_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square error over that of the exact values."""
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def random_weights(net: torch.nn.Module, scale: float = 0.5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (scale / math.sqrt(max(p[0].numel(), 1))))
    return net


def mlp(classes: int | None = None, sde: sd.SDE = SDES[0]) -> sd.NetworkModel:
    """A float64 network in three dimensions with weights everywhere, and a reference that is not its own."""
    net = random_weights(sd.nets.MLP(3, width=16, depth=2, classes=classes)).double()
    model = sd.NetworkModel(net, sde, (3,))
    model.reference = sd.GaussianReference.fit(correlated_mixture(3).sample(200))
    return model


# ---- with respect to x


@pytest.mark.parametrize("dim", [2, 6])
@by_sde
def test_gradient_is_the_exact_score(sde, dim):
    """Relative error, measured at 16, 40 and 80 calls: 8e-4, 2e-5 and 5e-6 at most."""
    target = correlated_mixture(dim)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 16)
    y = x.clone().requires_grad_()
    exact = model.log_prob(y, sde.t_min)
    (score,) = torch.autograd.grad(exact.sum(), y)
    assert relative(score, model.score(x, sde.t_min)) < 1e-9
    prior = lambda z: model.log_prob(z, sde.t_max)
    for steps, limit in ((16, 1.5e-3), (40, 4e-5)):
        value, gradient = log_prob_gradient(model, x, steps=steps, prior=prior)
        assert relative(gradient, score) < limit
        assert (value - exact).abs().max() < 6 * limit
        assert not value.requires_grad
        assert not gradient.requires_grad
    # and with the prior of the reference what its mismatch at t_max leaves
    assert relative(log_prob_gradient(model, x, steps=40, prior="reference")[1], score) < 1e-3


@by_sde
def test_gaussian_data_are_exact_in_any_number_of_calls(sde):
    target = gaussian(4)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 8)
    for steps, kind in ((1, "exact"), (2, "exact"), (5, "exact"), (3, "reference")):
        value, gradient = log_prob_gradient(model, x, steps=steps, divergence=kind, prior="reference")
        assert torch.allclose(value, model.log_prob(x, sde.t_min), rtol=0, atol=1e-8)
        assert relative(gradient, model.score(x, sde.t_min)) < 1e-8


@pytest.mark.parametrize(("kind", "probes"), KINDS)
def test_it_is_the_number_of_log_prob_and_its_finite_difference(kind, probes):
    model = mlp(classes=3)
    x, label = correlated_mixture(3).sample(5, seed=1), torch.tensor([0, 2, 1, 1, 0])
    how = {"steps": 6, "divergence": kind, "probes": probes, "seed": 3, "ids": [4, 0, 9, 2, 2]}
    for prior in (None, "reference", lambda z: -z.square().sum(1)):
        value, gradient = log_prob_gradient(model, x, prior=prior, label=label, **how)
        expected = sd.log_prob(model, x, solver=sd.ReferenceSolver(), prior=prior, label=label, **how)
        assert torch.allclose(value, expected.log_prob, rtol=0, atol=1e-10)
    generator = torch.Generator().manual_seed(2)
    direction, h = torch.randn(x.shape, generator=generator, dtype=x.dtype), 1e-5
    ends = [
        sd.log_prob(model, x + s * h * direction, solver=sd.ReferenceSolver(), prior=prior, label=label, **how).log_prob for s in (1, -1)
    ]
    assert torch.allclose((ends[0] - ends[1]) / (2 * h), (gradient * direction).sum(1), rtol=1e-6, atol=1e-6)
    assert (gradient - log_prob_gradient(model, x, prior=prior, label=label.flip(0), **how)[1]).abs().max() > 1e-3


def test_on_images_by_a_unet():
    net = random_weights(sd.nets.UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, attention=(-1,))).double()
    model = sd.NetworkModel(net, sd.VPSDE(), (1, 4, 4))
    generator = torch.Generator().manual_seed(1)
    x, direction = (torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    model.reference = sd.GaussianReference(torch.zeros(1, 4, 4), torch.ones(()), "isotropic")
    _, gradient = log_prob_gradient(model, x, steps=4, divergence="hutchinson")
    value = lambda y: sd.log_prob(model, y, solver=sd.ReferenceSolver(), steps=4).log_prob
    slope = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    assert torch.allclose(slope, (gradient * direction).flatten(1).sum(1), rtol=1e-5, atol=1e-5)


def test_sample_i_is_sample_i():
    model = sd.ExactModel(image_mixture(), sd.VPSDE())
    x = model.target.sample(7)
    how = {"steps": 8, "divergence": "hutchinson", "probes": 2, "seed": 5}
    whole = log_prob_gradient(model, x, batch_size=7, **how)
    for size in (1, 3, 16):
        for found, expected in zip(log_prob_gradient(model, x, batch_size=size, **how), whole, strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    value, gradient = log_prob_gradient(model, x[[5, 2]], ids=[5, 2], **how)
    assert torch.allclose(value, whole[0][[5, 2]], rtol=0, atol=1e-9)
    assert torch.allclose(gradient, whole[1][[5, 2]], rtol=0, atol=1e-9)
    assert (whole[1] - log_prob_gradient(model, x, **{**how, "seed": 6})[1]).abs().max() > 1e-3


def test_calls_are_counted_and_the_model_is_left_alone():
    model = mlp().train()
    x = torch.zeros(4, 3, dtype=torch.float64)
    with sd.count_evaluations(model) as calls, torch.inference_mode():
        value, gradient = log_prob_gradient(model, x.clone(), steps=5)
    assert (calls.forward, calls.vjp) == (5, 15)
    assert model.training
    assert model.net.training
    assert all(p.grad is None for p in model.parameters())
    assert (value.shape, gradient.shape) == ((4,), (4, 3))
    assert not gradient.is_inference()
    single = sd.NetworkModel(copy.deepcopy(model.net).float(), model.sde, (3,))
    single.reference = model.reference
    value32, gradient32 = log_prob_gradient(single, x.float(), steps=5)
    assert (value32.dtype, gradient32.dtype) == (torch.float64, torch.float32)
    assert torch.allclose(gradient32.double(), gradient, rtol=1e-3, atol=1e-3)


# ---- with respect to the parameters


@pytest.mark.parametrize(("kind", "probes"), KINDS)
@pytest.mark.parametrize("sde", [SDES[0], SDES[4]], ids=name)
def test_gradient_of_the_parameters_is_the_finite_difference(sde, kind, probes):
    model = mlp(sde=sde)
    x = marginal_sample(correlated_mixture(3), sde, sde.t_min, 6)
    how = {"steps": 5, "divergence": kind, "probes": probes}
    value = differentiable_log_prob(model, x, **how)
    assert torch.allclose(value, sd.log_prob(model, x, solver=sd.ReferenceSolver(), **how).log_prob, rtol=0, atol=1e-10)
    value.mean().backward()
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None)
    ends = []
    for s in (1, -1):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(other.parameters(), directions, strict=True):
                p.add_(d, alpha=s * 1e-6)
        ends.append(float(sd.log_prob(other, x, solver=sd.ReferenceSolver(), **how).log_prob.mean()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
    assert abs(slope) > 1e-3


def test_graph_to_x_and_parameters_at_once():
    model = mlp()
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    first, *rest = torch.autograd.grad(differentiable_log_prob(model, x, steps=4).sum(), [x, *model.net.output.parameters()])
    assert torch.allclose(first, log_prob_gradient(model, x, steps=4)[1])
    assert all(float(g.abs().sum()) > 0 for g in rest)


def test_wrong_arguments():
    model, x = mlp(), torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="expected a ReferenceSolver"):
        differentiable_log_prob(model, x, solver=sd.Heun())
    with pytest.raises(ConfigError, match="divergence"):
        log_prob_gradient(model, x, divergence="none")
    with pytest.raises(ConfigError, match="steps"):
        log_prob_gradient(model, x, steps=0)
    with pytest.raises(ConfigError, match="prior answered shape"):
        log_prob_gradient(model, x, prior=lambda z: z)
    with pytest.raises(DTypeError):
        log_prob_gradient(model, x.float())
    with pytest.raises(NonFiniteError):
        differentiable_log_prob(model, x * math.nan)
    with pytest.raises(ShapeError):
        differentiable_log_prob(model, x[:, :2])
    model.reference = None
    with pytest.raises(ConfigError, match="has no Gaussian reference"):
        differentiable_log_prob(model, x)
    assert differentiable_log_prob(model, x, solver=sd.ReferenceSolver(reference=mlp().reference)).shape == (2,)


# ---- fine-tuning


@pytest.fixture(scope="module")
def moons():
    data = sd.data.toy("moons", n=2000)
    model = sd.NetworkModel(random_weights(sd.nets.MLP(2, width=32, depth=1), 0.3), sd.VPSDE(t_min=1e-3), (2,))
    sd.fit(model, data, steps=200, batch_size=64, progress=False)
    return data, model


def converged(model: sd.NetworkModel, x: torch.Tensor) -> torch.Tensor:
    return -sd.log_prob(model, x, solver=sd.AdaptiveODE(1e-5, 1e-5), divergence="exact").log_prob


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
    """Keeps what it is called with at t_min, where x is the data."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen, self.first = sd.nets.MLP(2, width=8, depth=1, classes=2), [], math.inf

    def forward(self, x, c_noise, label=None):
        self.first = min(self.first, float(c_noise.min()))
        if float(c_noise.max()) == self.first:
            self.seen.append((x.detach(), label))
        return self.net(x, c_noise, label)


@pytest.mark.parametrize("dequantization", ["uniform", "normal"])
def test_fine_tuning_on_levels_with_labels(dequantization, monkeypatch):
    """Samples and labels go together, and levels are dequantized as the model expects it: log p sees states at t_min, the denoising
    loss, which adds noise of its own, data without any: with "normal" the middles of the bins, of the same samples."""
    clean, loss = [], sd.loss.denoising_loss
    monkeypatch.setattr(sd.loss, "denoising_loss", lambda model, x0, *rest: clean.append(x0) or loss(model, x0, *rest))
    label = torch.arange(64) % 2
    levels = (label[:, None] * 8 + torch.randint(0, 4, (64, 2), generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    data = sd.data.Data(levels, levels, sd.Transform(levels=16, dequantization=dequantization), label, label)
    model = sd.NetworkModel(Spy(), sd.VPSDE(t_min=2e-3), (2,))
    fine_tune(model, data, steps=4, batch_size=64, solver_steps=3, conditional=True, validate_every=4, progress=False)
    assert model.reference is not None
    t = model.sde.levels([model.sde.t_min])[0]
    assert len(model.net.seen) >= 6
    for x, given in model.net.seen[:6]:
        assert torch.equal((x.mean(1) > -0.25).long(), given)
        off = (x / t.alpha + 1) / data.transform.bin_width % 1 - 0.5  # from the middle of its bin, in bins
        assert float(off.std()) == pytest.approx(t.sigma / data.transform.bin_width if dequantization == "normal" else 12**-0.5, rel=0.25)
    batches = [x for x, _ in model.net.seen[1:5]]  # the first is of validation
    assert all(not torch.equal(a, b) for a, b in zip(batches, batches[1:], strict=False))
    assert len(clean) == 4
    for x, x0 in zip(batches, clean, strict=True):
        if dequantization == "normal":
            assert torch.equal(x0, data.transform.center(data.transform.quantize(x0), x0.dtype))
            assert float((x / t.alpha - x0).std()) == pytest.approx(t.sigma / t.alpha, rel=0.25)
        else:
            assert torch.equal(x0, x)


@pytest.mark.parametrize("bad", [[0], [1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("all_fail", [False, True])
def test_a_look_that_is_not_finite_is_never_the_best(moons, monkeypatch, bad, all_fail):
    """Three looks at which log p is 0, 1 and 2, the later the better, but for those that fail, of one sample or of all."""
    data, model = moons
    tuned, states = copy.deepcopy(model), []

    def failing(model, x, **how):
        value = torch.full((len(x),), float(len(states)), dtype=torch.float64)
        if len(states) in bad:
            value[3] = math.nan
        states.append([p.detach().clone() for p in model.parameters()])
        if len(states) - 1 in bad and all_fail:
            raise SolverError("log p of no sample is finite")
        return SimpleNamespace(log_prob=value)

    monkeypatch.setattr(fine_tuning, "log_prob", failing)
    how = {"steps": 2, "lr": 1e-3, "batch_size": 16, "solver_steps": 4, "validate_every": 1, "validation_samples": 16, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fine_tune(tuned, data, **how)
    good = [k for k in range(3) if k not in bad]
    assert [math.isfinite(v) for v in found.validation] == [k in good for k in range(3)]
    assert all(v == math.inf for k, v in enumerate(found.validation) if k in bad)
    assert found.best == (good[-1] if good else 2)
    assert found.after == (found.validation[good[-1]] if good else math.inf)
    assert all(torch.equal(p, q) for p, q in zip(tuned.parameters(), states[found.best], strict=True))
    assert ["at no look" in str(w.message) for w in caught if "fine_tune" in str(w.message)] == ([] if good else [True])


def test_wrong_arguments_of_fine_tune(moons):
    data, model = moons
    for bad in ({"steps": 0}, {"lr": -1.0}, {"batch_size": 0}, {"solver_steps": 0}, {"anchor": -1.0}, {"clip": 0.0}, {"prior": "mine"}, {"divergence": "?"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            fine_tune(model, data, **{"steps": 1, "progress": False, **bad})
    with pytest.raises(ConfigError, match="no parameters"):
        fine_tune(sd.ExactModel(data.target, sd.VPSDE()), data, steps=1)

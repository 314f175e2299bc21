"""Gradients of log p: against exact scores and finite differences, of the same number as ``log_prob``."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, image_mixture, marginal_sample, name

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from scoresde.likelihood.gradients import differentiable_log_prob, log_prob_gradient

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
    with pytest.raises(ShapeError, match="your prior gave shape"):
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

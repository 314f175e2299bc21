"""Trace estimators: unbiased by z-tests, with the variance of their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import correlated_mixture, gaussian, marginal_sample, z_limit

import scoresde as sd
from scoresde.core.noise import Noise
from scoresde.likelihood.traces import NUMBERS, Traces, exact_divergence

N, D = 4000, 8


def matrix(rank: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    left, right = (torch.randn(D, rank, dtype=torch.float64, generator=generator) for _ in range(2))
    return left @ right.mT / rank**0.5


def estimates(kind: str, M: torch.Tensor, probes: int = 1, a: float = 0.0, reference=None) -> torch.Tensor:
    """(N, columns) estimates of the trace of M + a I, each with its own random vectors."""
    noise = Noise(3, np.arange(N), (D,), torch.float64)
    x = torch.zeros(N, D, dtype=torch.float64, requires_grad=True)
    found, products = Traces.draw(kind, probes, noise, reference)(x @ M.mT + a * x, x, a)
    assert products == (D if kind == "exact" else probes)
    return found


@pytest.mark.parametrize(("kind", "probes"), [("hutchinson", 1), ("gaussian", 1), ("reference", 1), ("hutch++", 3), ("hutch++", 7)])
def test_unbiased(kind, probes):
    """A bias of a tenth of the estimator's standard deviation would be seen with power 0.96 (6.3 standard errors against 4.9)."""
    M = matrix()
    found = estimates(kind, M, probes, 3.0, sd.ExactModel(gaussian(D), sd.VPSDE()).reference)
    error = found.mean(1) - float(M.trace()) - 3 * D
    assert abs(float(error.mean() / error.std())) * math.sqrt(N) < z_limit(5)


def test_variances_are_those_of_the_formulas():
    """Var e^T M e, S the symmetric part: 2 sum over i != j of S_ij^2, and 2 |S|^2 for normal e; of a sample variance: 5 errors."""
    M = matrix()
    S = (M + M.mT) / 2
    off = float((S - S.diag().diag()).square().sum())
    for kind, expected in (("hutchinson", 2 * off), ("gaussian", 2 * float(S.square().sum()))):
        for a in (0.0, 10.0):  # a known multiple of I adds nothing
            found = estimates(kind, M, 1, a)[:, 0]
            error = float((found - found.mean()).pow(4).mean() - found.var() ** 2) ** 0.5 / math.sqrt(N)
            assert abs(float(found.var()) - expected) < 5 * error
    several = estimates("hutchinson", M, 4)
    assert float(several.mean(1).var()) == pytest.approx(2 * off / 4, rel=0.15)


def test_hutch_pp_is_exact_up_to_its_rank():
    low = matrix(2)
    assert torch.allclose(estimates("hutch++", low, 6, 5.0), low.trace() + 5 * D, rtol=0, atol=1e-9)
    assert estimates("hutchinson", low, 6).mean(1).std() > 0.5
    full = matrix() + 20 * matrix(1)  # one large direction
    assert estimates("hutch++", full, 6).mean(1).std() < 0.2 * estimates("hutchinson", full, 6).mean(1).std()


def test_exact():
    M = matrix()
    assert torch.allclose(estimates("exact", M, a=2.0), M.trace() + 2 * D)


def test_probes_of_a_sample_are_its_own():
    noise = Noise(3, np.array([7, 2]), (D,), torch.float64)
    both = Traces.draw("hutch++", 6, noise, None)
    one = Traces.draw("hutch++", 6, Noise(3, np.array([2]), (D,), torch.float64), None)
    assert torch.equal(both.probes[:, 1:], one.probes)
    assert torch.equal(both.sketch[:, 1:], one.sketch)
    assert not torch.equal(both.probes[0, 0], both.probes[0, 1])


def test_log_prob_is_unbiased_with_every_estimator():
    """Mean z over 48 points of a correlated mixture: a bias of 0.7 of an estimator's standard error has power 0.97 to be seen."""
    target, sde = correlated_mixture(8), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 48)
    exact = sd.log_prob(model, x, steps=16, divergence="exact")
    spread = {}
    for kind, probes in (("hutchinson", 12), ("gaussian", 12), ("reference", 12), ("hutch++", 12)):
        r = sd.log_prob(model, x, steps=16, divergence=kind, probes=probes, seed=1)
        z = (r.delta - exact.delta) / r.std_error
        assert torch.equal(r.latent, exact.latent)
        assert abs(float(z.clamp(-4, 4).mean())) * math.sqrt(len(z)) < 1.3 * z_limit(4, 1e-4), kind  # z has a t distribution
        spread[kind] = float((r.delta - exact.delta).square().mean().sqrt())
        if kind != "hutch++":  # with four columns its spread is too rough
            assert 0.7 < float(r.std_error.square().mean().sqrt()) / spread[kind] < 1.4, kind
    assert max(spread["reference"], spread["hutchinson"]) < spread["gaussian"]
    assert spread["hutch++"] < spread["hutchinson"]


def test_the_control_variate_has_mean_zero_and_cuts_the_variance():
    """Half of the reference's own error is removed; for Gaussian data, where it is all of the error, a quarter of the variance is left."""
    for target, low, high in ((gaussian(8), 0.249, 0.251), (correlated_mixture(8), 0.4, 0.95)):
        model = sd.ExactModel(target, sd.VPSDE())
        x = target.sample(1).expand(512, -1).contiguous()
        r = sd.log_prob(model, x, steps=8, batch_size=512, divergence="hutchinson")
        reference = model.reference
        first, end = model.sde.levels([model.sde.t_min, model.sde.t_max])
        noise = Noise(0, np.arange(512), (8,), torch.float64)
        control = Traces.draw("hutchinson", 1, noise, reference).control(reference, first, end)[:, 0]
        assert abs(float(control.mean() / control.std())) * math.sqrt(512) < z_limit(2)
        ratio = float(r.log_prob.var() / (r.log_prob - control).var())
        assert low < ratio < high
    model.reference = None
    bare = sd.log_prob(model, x[:1], solver=sd.TorchDiffEq(rtol=1e-7, atol=1e-7), divergence="hutchinson")
    assert float(r.log_prob[0] - control[0]) == pytest.approx(float(bare.log_prob[0]), abs=0.1)  # 8 calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "hutch"}, "divergence = 'hutch', expected one of 'hutchinson', 'gaussian', 'reference'"),
        ({"divergence": "hutch++", "probes": 2}, "probes = 2 for divergence = 'hutch\\+\\+', expected at least 3"),
        ({"probes": 1.5}, "probes = 1.5, expected a positive integer"),
    ],
)
def test_errors(arguments, message):
    model = sd.ExactModel(gaussian(3), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match=message):
        sd.log_prob(model, model.target.sample(2), **arguments)


class Doubled(torch.autograd.Function):
    """2 x + sin x, which says nothing of batches of vectors."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x + x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (2 + x.cos()) if bool(g.isfinite().all()) else g  # a look at the numbers, which a batch of vectors has not


class Custom(torch.nn.Module):
    """A network around it, of images."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)

    def forward(self, x, c_noise):
        return Doubled.apply(self.mix(x))


class ChannelsLast(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.norm = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.GroupNorm(2, 4)
        self.to(torch.float64)

    def forward(self, x, c_noise):
        return self.norm(self.mix(x).contiguous(memory_format=torch.channels_last)).sin()


def unet_in_channels_last():
    net = sd.nets.UNet(channels=4, width=8, multipliers=(1,), blocks=1).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [Custom, ChannelsLast, unet_in_channels_last])
def test_the_exact_trace_of_networks_that_cannot_be_batched(make):
    """Their products one after the other: the trace of the whole Jacobian, and its gradient."""
    torch.manual_seed(0)
    net = make()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    c = torch.zeros(2, dtype=torch.float64)
    truth = [torch.autograd.functional.jacobian(lambda y, i=i: net(y, c[:1])[0].flatten(), x[i : i + 1]).reshape(36, 36).trace() for i in range(2)]
    y = x.clone().requires_grad_()
    found, products = Traces.draw("exact", 1, Noise(0, np.arange(2), (4, 3, 3), torch.float64), None)(net(y, c), y, 0.0)
    assert products == 36
    assert torch.allclose(found[:, 0], torch.stack(truth), rtol=1e-10)
    model = sd.NetworkModel(net, sd.VPSDE(), (4, 3, 3))
    model.reference = sd.GaussianReference(torch.zeros(4, 3, 3), torch.ones(()), "isotropic")
    value, gradient = sd.log_prob_gradient(model, x, steps=2)
    assert torch.allclose(value, sd.log_prob(model, x, steps=2, divergence="exact").log_prob, rtol=1e-10)
    direction = torch.randn(x.shape, dtype=x.dtype)
    up, down = (sd.log_prob(model, x + h * direction, steps=2, divergence="exact").log_prob for h in (1e-5, -1e-5))
    assert torch.allclose((up - down) / 2e-5, (gradient * direction).flatten(1).sum(1), rtol=1e-5, atol=1e-5)


def test_a_network_that_fails_for_another_reason_says_so():
    """The loop is no way to hide what is wrong."""

    class Torn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("the backward of Torn is torn")

    x = torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="torn"):
        exact_divergence(Torn.apply(x), x)


@pytest.mark.parametrize(("B", "D"), [(1, 784), (4, 784), (64, 300), (1, 20)])
def test_the_memory_of_the_exact_trace_is_bounded(monkeypatch, B, D):
    """As many vectors at once as hold ``NUMBERS`` numbers, one at least; and they are all there."""
    sizes, grad = [], torch.autograd.grad

    def watched(v, x, vectors, **how):
        sizes.append(vectors.numel())
        return grad(v, x, vectors, **how)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    x = torch.zeros(B, D, requires_grad=True)
    weight = torch.rand(D)
    trace = exact_divergence(x * weight, x)
    assert torch.allclose(trace, weight.sum().double().expand(B))
    assert max(sizes) <= max(NUMBERS, B * D)
    assert len(sizes) == -(-D // max(1, NUMBERS // (B * D)))

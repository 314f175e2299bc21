"""Derivatives in time and in an SDE's own parameters: by autograd and torch.func, equal to finite differences."""

from __future__ import annotations

import pytest
import torch
from problems import SDES
from torch import nn

import scoresde as sd

H = 1e-5

X = torch.linspace(-1.5, 1.5, 10, dtype=torch.float64).view(5, 2)

MIXTURE = sd.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64))


class Learned(nn.Module):
    """What both ways to give a learned rate k share."""

    t_min = 1e-3

    def __init__(self, k: float = 1.2) -> None:
        nn.Module.__init__(self)
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))


class Rate(Learned, sd.SDE):
    """A learned rate k: alpha = exp(-k t), sigma^2 = 1 - alpha^2, so that f = -k and g^2 = 2 k."""

    def alpha(self, t):
        return torch.exp(-self.k * t)

    def sigma(self, t):
        return (-torch.expm1(-2 * self.k * t)).sqrt()


class RateByCoefficients(Learned, sd.SDE):
    """The same, given by f and g."""

    def drift_coefficient(self, t):
        return -self.k * torch.ones_like(t)

    def diffusion(self, t):
        return (2 * self.k).sqrt() * torch.ones_like(t)


class ByCoefficients(sd.SDE):
    def drift_coefficient(self, t):
        return -(0.2 + t)

    def diffusion(self, t):
        return (0.5 + t * t).sqrt()


def network(sde):
    torch.manual_seed(0)
    net = sd.nets.MLP(2, width=16).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return sd.NetworkModel(net, sde, (2,))


def functions(sde):
    """Each as a function of t () or (B,) that gives one number a time."""

    def of(answer):
        return lambda t: answer(X, t).sum() if t.ndim == 0 else answer(X, t).sum(1)

    found = {"alpha": sde.alpha, "sigma": sde.sigma, "f": sde.drift_coefficient, "g": sde.diffusion, "log_snr": sde.log_snr}
    found |= {f"derivative {i}": lambda t, i=i: sde._derivatives(t)[i] for i in (0, 1)}
    for kind, model in (("exact", sd.ExactModel(MIXTURE, sde)), ("network", network(sde))):
        found |= {f"{kind} {name}": of(getattr(model, name)) for name in ("velocity", "score", "eps", "denoise")}
        found[f"{kind} angular"] = of(lambda x, t, model=model: model.angular_velocity(x, t.expand(len(x))))
    return found


def close(found, expected):
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6), (found, expected)


@pytest.mark.parametrize("sde", [*SDES, ByCoefficients()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", [0.5, [0.2, 0.35, 0.5, 0.65, 0.8]], ids=["one", "each"])
def test_in_time(sde, times):
    t = torch.tensor(times, dtype=torch.float64)
    for name, function in functions(sde).items():
        slope = ((function(t + H) - function(t - H)) / (2 * H)).detach()
        here = t.clone().requires_grad_()
        value = function(here)
        found = torch.autograd.grad(value.sum(), here, allow_unused=True)[0] if value.requires_grad else None
        close(torch.zeros_like(t) if found is None else found, slope)
        close(torch.func.grad(lambda s, f=function: f(s).sum())(t), slope)
        close(torch.func.jvp(function, (t,), (torch.ones_like(t),))[1], slope)
        if name == "network angular":  # and of one that is not a constant, a second derivative
            bend = torch.func.grad(lambda s, f=function: torch.func.grad(lambda r: f(r).sum())(s).sum())(t)
            twice = (function(t + 1e-3) - 2 * function(t) + function(t - 1e-3)).detach() / 1e-6
            assert torch.allclose(bend, twice, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_over_times_by_vmap(sde):
    times = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for model in (sd.ExactModel(MIXTURE, sde), network(sde)):
        found = torch.func.vmap(lambda t, m=model: m.velocity(X, t))(times)
        for v, t in zip(found, times.tolist(), strict=True):
            assert torch.allclose(v, model.velocity(X, t), rtol=1e-12, atol=1e-12)
        slopes = torch.func.vmap(torch.func.grad(lambda t, m=model: m.score(X, t).sum()))(times)
        close(slopes, torch.stack([(model.score(X, float(t) + H) - model.score(X, float(t) - H)).sum() / (2 * H) for t in times]))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_nothing_has_a_graph_that_was_not_asked_for(sde):
    model = sd.ExactModel(MIXTURE, sde)
    for t in (0.5, torch.tensor(0.5), torch.full((5,), 0.5)):
        assert not model.velocity(X, t).requires_grad
        assert not model.score(X, t).requires_grad
        assert not sde.drift_coefficient(t).requires_grad
        assert not sde.diffusion(t).requires_grad
    with torch.no_grad():
        assert not sde.diffusion(torch.tensor(0.5, requires_grad=True)).requires_grad


@pytest.mark.parametrize("kind", [Rate, RateByCoefficients])
@pytest.mark.parametrize("t", [0.5, torch.full((5,), 0.5, dtype=torch.float64)], ids=["one", "each"])
def test_in_parameters_of_the_sde(kind, t):
    sde = kind()
    model = network(sde)
    level = torch.tensor(-0.5, dtype=torch.float64)
    answers = {"alpha": sde.alpha, "sigma": sde.sigma, "f": sde.drift_coefficient, "g": sde.diffusion}
    answers |= {name: lambda t, name=name: getattr(model, name)(X, t) for name in ("velocity", "score", "denoise")}
    answers["time_of_log_snr"] = lambda t: sde.time_of_log_snr(level)
    for name, answer in answers.items():
        (found,) = torch.autograd.grad(answer(t).sum(), sde.k)
        with torch.no_grad():
            ends = []
            for step in (H, -H):
                sde.k += step
                ends.append(answer(t).sum())
                sde.k -= step
        assert float(found) == pytest.approx(float(ends[0] - ends[1]) / (2 * H), rel=1e-6, abs=1e-8), name
    closed = {"f": -1.0, "g": (2 / 1.2) ** 0.5 / 2}
    for name, slope in closed.items():
        (found,) = torch.autograd.grad(answers[name](0.5), sde.k)
        assert float(found) == pytest.approx(slope, rel=1e-9)

"""The exact model: its score is the gradient of log p."""

from __future__ import annotations

import math

import pytest
import torch
from models.mixtures import M2, S2, by_kind, by_name, mixture, points, times

import scoresde as sd
from scoresde.errors import ConfigError, NonFiniteError, ScoreSDEError, ShapeError


def gradient(model, x, t):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model.log_prob(x, t).sum(), x)[0]


@by_kind
@by_name
def test_score_is_the_gradient_of_log_prob(sde, kind):
    model = sd.ExactModel(mixture(kind), sde)
    for t in times(sde):
        x = points(model, t)
        score, grad = model.score(x, t), gradient(model, x, t)
        error = (score - grad).flatten(1).norm(dim=1) / grad.flatten(1).norm(dim=1)
        assert float(error.max()) <= 1e-10, t


@by_kind
@by_name
def test_score_in_float32(sde, kind):
    """Against the same mixture, at the same points, in float64: 1e-4 from t = 1e-5 on, with float32 times too."""
    single, double = mixture(kind, dtype=torch.float32), mixture(kind, dtype=torch.float32).double()
    model, reference = sd.ExactModel(single, sde), sd.ExactModel(double, sde)
    for t in times(sde, 1e-5):
        x = points(model, t)
        exact = reference.score(x.double(), t)
        for time in (t, torch.full((len(x),), t, dtype=torch.float32).clamp(sde.t_min, sde.t_max)):
            score = model.score(x, time)
            assert score.dtype == torch.float32
            error = (score.double() - exact).norm(dim=1) / exact.norm(dim=1)
            assert float(error.max()) <= 1e-4, t
            assert model.denoise(x, time).dtype == torch.float32


@by_kind
def test_posterior_mean_by_quadrature(kind):
    """E[x_0 | x] and E[eps | x] of a one-dimensional mixture, as integrals over x_0."""
    target = mixture(kind, (1,))
    alpha, sigma = 0.6, 0.5
    x0 = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    prior = target.log_prob(x0[:, None])
    for x in (-2.0, 0.3, 1.9):
        w = torch.softmax(prior - 0.5 * ((x - alpha * x0) / sigma) ** 2, 0)
        mean = float((w * x0).sum())
        denoised, eps = target.posterior(torch.tensor([[x]], dtype=torch.float64), alpha, sigma)
        assert float(denoised) == pytest.approx(mean, rel=1e-9)
        assert float(eps) == pytest.approx((x - alpha * mean) / sigma, rel=1e-9)


@by_kind
@by_name
def test_x_is_alpha_x0_plus_sigma_eps(sde, kind):
    model = sd.ExactModel(mixture(kind), sde)
    for t in times(sde):
        x = points(model, t)
        level = sde.levels([t])[0]
        x0, eps = model.predict(x, t)
        assert torch.allclose(level.alpha * x0 + level.sigma * eps, x, rtol=1e-12, atol=1e-12 * float(x.abs().max()))


@by_kind
@by_name
def test_one_time_a_sample_or_one_for_all(sde, kind):
    model = sd.ExactModel(mixture(kind), sde)
    t = torch.tensor([sde.t_min, 0.02, 0.5, sde.t_max], dtype=torch.float64)
    x = torch.cat([points(model, float(s), 3)[:1] for s in t])
    for name in ("denoise", "eps", "score", "velocity", "log_prob"):
        function = getattr(model, name)
        rows = torch.cat([function(x[i : i + 1], float(t[i])) for i in range(len(t))])
        both = function(x, t)
        assert torch.allclose(both, rows, rtol=1e-11, atol=1e-11 * float(rows.abs().max())), name


def test_bad_calls():
    target = sd.GaussianMixture(M2, S2)
    for x, error in ((torch.zeros(4, 2), ShapeError), (torch.zeros(3), ShapeError), (torch.full((1, 3), math.nan), NonFiniteError)):
        with pytest.raises(error):
            target.log_prob(x)
        with pytest.raises(error):
            sd.ExactModel(target, sd.VPSDE()).log_prob(x, 0.5)
    for n in (-1, 2.5, True, None):
        with pytest.raises(ScoreSDEError):
            target.sample(n)
    for bandwidth in (0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="bandwidth"):
            sd.GaussianMixture.from_data(torch.zeros(4, 2), bandwidth)


def test_densities_and_their_gradients_under_vmap():
    """torch.func's idiom for the gradients of samples: vmap(grad(log p)) is the score."""
    target = sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), torch.tensor([0.5, 0.7]).double())
    model = sd.ExactModel(target, sd.VPSDE())
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.func.vmap(torch.func.grad(lambda one: model.log_prob(one[None], 0.5)[0]))(x)
    assert torch.allclose(found, model.score(x, 0.5), rtol=1e-10)

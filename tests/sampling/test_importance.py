"""Importance weights on known truth: samples of an exact mixture with their density, another mixture times a constant as target."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from problems import SDES, correlated_mixture, name, z_limit

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from scoresde.sampling.importance import Weights, importance_weights, pareto_shape

LOG_Z = 3.7


def wide() -> sd.GaussianMixture:
    """The proposal: it covers the target."""
    means = torch.tensor([[-0.8, 0.0], [0.9, 0.3]], dtype=torch.float64)
    return sd.GaussianMixture(means, torch.tensor([0.7, 0.8], dtype=torch.float64), torch.tensor([0.4, 0.6]))


def narrow() -> sd.GaussianMixture:
    """The target, within it; its mean is (0.34, 0.1)."""
    means = torch.tensor([[-0.6, 0.2], [0.575, 0.075]], dtype=torch.float64)
    return sd.GaussianMixture(means, torch.tensor([0.4, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.8]))


def draw(n: int, sde: sd.SDE = SDES[0], seed: int = 0, **how) -> tuple[torch.Tensor, Weights]:
    x, log_p = sd.sample(sd.ExactModel(wide(), sde), n, steps=24, seed=seed, return_log_prob=True, **how)
    return x, importance_weights(narrow().log_prob(x) + LOG_Z, log_p)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_normalizer_and_mean_of_a_known_target(sde):
    """An error of 0.07 in log Z, four standard errors, would be seen with power 0.5, one of 0.1 with 0.95."""
    x, weights = draw(3000, sde)
    assert weights.log_normalizer_error < 0.018
    assert abs(weights.log_normalizer - LOG_Z) < 4 * weights.log_normalizer_error
    mean, error = weights.estimate(x)
    assert bool(((mean - torch.tensor([0.34, 0.1], dtype=torch.float64)).abs() < 4 * error).all())
    assert float(error.max()) < 0.02
    assert 1000 < weights.ess < 3000
    assert weights.k_hat < 0.5


@pytest.mark.slow
def test_intervals_cover():
    """200 repetitions: 95 % intervals hold the truth in 90.5 to 98.5 % of them (three binomial standard errors), for Z and a mean."""
    x, log_p = sd.sample(sd.ExactModel(wide(), SDES[0]), 200 * 250, steps=24, return_log_prob=True)
    log_f = narrow().log_prob(x) + LOG_Z
    z, inside = [], torch.zeros(2)
    for i in range(200):
        part = slice(250 * i, 250 * (i + 1))
        weights = importance_weights(log_f[part], log_p[part], few=20)
        z.append((math.exp(weights.log_normalizer - LOG_Z) - 1) / weights.log_normalizer_error)
        mean, error = weights.estimate(x[part, 0])
        inside += torch.tensor([abs(z[-1]) < 1.96, abs(float(mean) - 0.34) < 1.96 * float(error)])
    assert bool((inside >= 181).all())
    assert bool((inside <= 197).all())
    # Z itself is estimated without bias
    assert abs(sum(z) / len(z)) < z_limit(1) / math.sqrt(200)


def test_formulas_by_hand():
    weights = importance_weights(torch.tensor([0.0, math.log(2.0), math.log(5.0), -math.inf]), torch.zeros(4), few=1)
    w = torch.tensor([1.0, 2.0, 5.0, 0.0], dtype=torch.float64)
    assert torch.allclose(weights.normalized, w / 8)
    assert weights.ess == pytest.approx(64 / 30)
    assert weights.log_normalizer == pytest.approx(math.log(2.0))
    assert weights.log_normalizer_error == pytest.approx(float(w.std()) / 2 / 2)
    mean, error = weights.estimate(torch.tensor([1.0, 2.0, 3.0, math.nan]))  # no weight, no matter
    assert float(mean) == pytest.approx(20 / 8)
    assert float(error) == pytest.approx(math.sqrt(1 * 1.5**2 + 4 * 0.5**2 + 25 * 0.5**2) / 8)
    whole = weights.estimate(torch.ones(4, 2, 3))
    assert whole[0].shape == whole[1].shape == (2, 3)
    assert torch.allclose(whole[0], torch.ones(2, 3, dtype=torch.float64))
    # a constant factor, however large, changes log Z alone
    far = importance_weights(torch.tensor([0.0, 1.0, 2.0]) + 5000.0, torch.zeros(3), few=1)
    near = importance_weights(torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3), few=1)
    assert far.log_normalizer == pytest.approx(near.log_normalizer + 5000)
    assert far.ess == pytest.approx(near.ess)
    assert "ess=" in repr(far)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 1.0])
def test_pareto_shape_of_known_tails(k):
    """100 draws of 400 numbers: their mean within 5 standard errors of k, shrunk to 0.5 as by 10 of 410, and 0.02 of bias."""
    u = torch.rand(100, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.tensor([pareto_shape(((row**-k - 1) / k).sort().values) for row in u])
    error = float(found.std()) / 10
    assert error < 0.01
    assert abs(float(found.mean()) - (400 * k + 5) / 410) < 5 * error + 0.02


def test_k_hat_tells_a_proposal_that_is_too_narrow():
    """Weights exp(a z^2/2), z normal, have the tail exponent 1/a: k = a."""
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    light = importance_weights(0.25 * z.square() / 2, torch.zeros_like(z))
    assert light.k_hat < 0.5
    with pytest.warns(UserWarning, match=r"k_hat = .*expected at most 0.7"):
        heavy = importance_weights(1.2 * z.square() / 2, torch.zeros_like(z))
    assert heavy.k_hat > 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        even = importance_weights(1e-5 * z.square(), torch.zeros_like(z))  # what is left of weights when the model is the target
    assert even.k_hat == -math.inf
    assert even.ess == pytest.approx(20_000)
    assert math.isnan(importance_weights(z[:10], z[:10], few=1).k_hat)


def test_few_effective_samples_are_told():
    log_target = torch.zeros(500)
    log_target[3] = 20.0
    with pytest.warns(UserWarning, match=r"1 effective of 500 samples, expected 100 or more"):
        importance_weights(log_target, torch.zeros(500))


def test_wrong_arguments():
    good = torch.zeros(200)
    for bad in (good.long(), [0.0]):
        with pytest.raises(DTypeError, match="log_target"):
            importance_weights(bad, good)
    for bad in (good[:, None], good[:0], torch.tensor(0.0)):
        with pytest.raises(ShapeError, match="log_prob"):
            importance_weights(good, bad)
    with pytest.raises(ShapeError, match="200 samples, log_prob 100"):
        importance_weights(good, good[:100])
    for name_, value in (("log_target", math.nan), ("log_target", math.inf), ("log_prob", math.nan), ("log_prob", -math.inf)):
        arguments = {"log_target": good.clone(), "log_prob": good.clone()}
        arguments[name_][7] = value
        with pytest.raises(NonFiniteError, match=rf"{name_} holds NaN or inf in 1 of 200 samples, the first at index 7"):
            importance_weights(**arguments)
    with pytest.raises(ConfigError, match="-inf for all"):
        importance_weights(good - math.inf, good)
    weights = importance_weights(good, good)
    with pytest.raises(ShapeError):
        weights.estimate(good[:3])
    with pytest.raises(NonFiniteError):
        weights.estimate(good * math.nan)
    with pytest.raises(DTypeError):
        weights.estimate(good.int())


def test_a_gradient_asked_of_the_target_is_no_matter():
    x = torch.zeros(200, requires_grad=True)
    assert not importance_weights(-x.square(), torch.zeros(200)).log_weights.requires_grad


def test_a_mixture_of_another_dimension():
    """Five dimensions, correlated: the model is its own target, up to the factor."""
    target = correlated_mixture(5)
    x, log_p = sd.sample(sd.ExactModel(target, sd.VPSDE()), 500, steps=40, return_log_prob=True)
    weights = importance_weights(target.log_prob(x) - 1.5, log_p)
    assert weights.ess > 499
    assert abs(weights.log_normalizer + 1.5) < max(4 * weights.log_normalizer_error, 0.01)


def test_few_samples_of_even_weights_are_as_good_as_they_are():
    """40 equal weights are 40 effective samples: nothing to warn of. 40 of which ten carry all are ten."""
    z = torch.zeros(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importance_weights(z, z).ess == pytest.approx(40)
    some = torch.where(torch.arange(40) < 10, 0.0, -50.0)
    with pytest.warns(UserWarning, match=r"10 effective of 40 samples, expected 20 or more"):
        importance_weights(some, z)

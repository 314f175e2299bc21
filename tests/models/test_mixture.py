"""Gaussian mixtures against the textbook, at all noise levels."""

from __future__ import annotations

import math
import os
import resource

import pytest
import torch
from models.mixtures import KINDS, M2, S2, by_kind, by_name, mixture, points, times

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from scoresde.models import mixture as mixtures


def matrices(target):
    """The covariance matrices (K, D, D) of a mixture, from the arguments in its own buffers."""
    c = target.variances.double()
    if target.basis is None:
        return torch.diag_embed(c)
    u = target.basis.double()
    return u @ torch.diag_embed(c) @ u.mT


def log_density(x, means, covariances, weights):
    """log sum_k w_k N(x; m_k, C_k) by Cholesky and determinant, one component at a time."""
    terms = []
    for m, C, w in zip(means.flatten(1), covariances, weights, strict=True):
        d = x.flatten(1) - m
        square = (d * torch.linalg.solve(C, d.T).T).sum(1)
        terms.append(math.log(w) - 0.5 * square - 0.5 * torch.linalg.slogdet(2 * math.pi * C).logabsdet)
    return torch.stack(terms).logsumexp(0)


def arguments(kind, seed=0):
    """What the mixture of this kind and seed was made of, in float64: means, matrices, normalised weights."""
    target = mixture(kind, seed=seed)
    return target.means, matrices(target), target.log_weights.exp()


@by_kind
def test_log_prob_is_the_textbook_formula(kind):
    target = mixture(kind)
    x = target.sample(50) + torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(target.log_prob(x), log_density(x, *arguments(kind)), rtol=1e-11, atol=1e-11)
    assert target.log_prob(x.float()).dtype == torch.float32


@by_kind
@by_name
def test_log_prob_at_every_time(sde, kind):
    model = sd.ExactModel(mixture(kind), sde)
    means, covariances, weights = arguments(kind)
    for t in times(sde):
        x = points(model, t)
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        expected = log_density(x, alpha * means, alpha**2 * covariances + sigma**2 * torch.eye(3).double(), weights)
        assert torch.allclose(model.log_prob(x, t), expected, rtol=1e-9, atol=1e-9)
        assert torch.allclose(model.target.at(alpha, sigma).log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_densities_integrate_to_one():
    target = mixture("full", (2,))
    grid = torch.linspace(-6, 6, 401, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    for density in (target, target.at(0.5, 0.4)):
        assert float(density.log_prob(x).exp().sum()) * 0.03**2 == pytest.approx(1, abs=1e-9)


@by_kind
def test_marginals_are_closed_under_at(kind):
    target = mixture(kind)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = target.at(0.8, 0.3).at(0.5, 0.7)
    once = target.at(0.4, math.sqrt(0.5**2 * 0.3**2 + 0.7**2))
    assert torch.allclose(twice.log_prob(x), once.log_prob(x), rtol=1e-12)
    for a, b in zip(twice.posterior(x, 0.6, 0.5), once.posterior(x, 0.6, 0.5), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)
    assert torch.allclose(target.at(1.0, 0.0).log_prob(x), target.log_prob(x), rtol=1e-13)
    assert torch.equal(twice.sample(5), twice.sample(5))


@by_kind
def test_images_are_vectors_of_another_shape(kind):
    flat, image = mixture(kind, (12,)), mixture(kind, (3, 2, 2))
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert image.event_shape == (3, 2, 2)
    assert torch.equal(flat.log_prob(x), image.log_prob(x.view(4, 3, 2, 2)))
    assert torch.equal(flat.sample(6), image.sample(6).flatten(1))
    models = [sd.ExactModel(target, sd.VPSDE()) for target in (flat, image)]
    for t in (0.3, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)):
        score = models[1].score(x.view(4, 3, 2, 2), t)
        assert score.shape == (4, 3, 2, 2)
        assert torch.equal(models[0].score(x, t), score.flatten(1))


def test_kinds_agree_where_they_coincide():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means, std, weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).double(), [0.3, 0.9], [0.4, 0.6]
    std, weights = torch.tensor(std).double(), torch.tensor(weights).double()
    same = [
        sd.GaussianMixture(means, std, weights),
        sd.GaussianMixture(means, std[:, None].expand(2, 4), weights),
        sd.GaussianMixture(means, torch.diag_embed((std**2)[:, None].expand(2, 4)), weights),
        sd.GaussianMixture(means, std, 7 * weights),
        sd.GaussianMixture(means.flip(0), std.flip(0), weights.flip(0)),
        sd.GaussianMixture(means.repeat(2, 1), std.repeat(2), weights.repeat(2)),
    ]
    for other in same[1:]:
        assert torch.allclose(other.log_prob(x), same[0].log_prob(x), rtol=1e-10)
        for a, b in zip(other.posterior(x, 0.7, 0.2), same[0].posterior(x, 0.7, 0.2), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_widely_separated_components_do_not_underflow():
    target = sd.GaussianMixture(torch.tensor([[-50.0], [50.0]]).double(), torch.tensor([0.1, 0.1]).double())
    model = sd.ExactModel(target, sd.VESDE())
    x = torch.tensor([[-50.02], [0.0], [49.9], [300.0]], dtype=torch.float64)
    assert bool(model.log_prob(x, 1e-5).isfinite().all())
    assert model.denoise(x, 1e-5).flatten().tolist() == pytest.approx([-50.02 + 0.02 * 0.0099, 0, 49.9 + 0.1 * 0.0099, 297.5], abs=0.05)


def test_second_derivatives():
    """The score can be differentiated again: exact divergences need it."""
    target = mixture("full")
    model = sd.ExactModel(target, sd.VPSDE())
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    for kind in KINDS:
        model = sd.ExactModel(mixture(kind), sd.VPSDE())
        for t in (0.2, torch.tensor([0.2, 0.4], dtype=torch.float64)):
            assert torch.autograd.gradcheck(lambda y, m=model, t=t: m.score(y, t), (x,), nondet_tol=0)
            assert torch.autograd.gradcheck(lambda y, m=model, t=t: m.log_prob(y, t), (x,), nondet_tol=0)


@by_kind
def test_sample_moments(kind):
    """Mean and covariance against the mixture's, N = 20,000: z below 5.5 over 12 figures; a shift of 4 % of a std is z = 5.7."""
    target, n = mixture(kind), 20_000
    means, covariances, weights = arguments(kind)
    mean = (weights[:, None] * means).sum(0)
    d = means - mean
    covariance = (weights[:, None, None] * (covariances + d[:, :, None] * d[:, None, :])).sum(0)
    x = target.sample(n, seed=2)
    assert x.shape == (n, 3)
    assert x.dtype == torch.float64
    centred = x - mean
    z = centred.mean(0) / (covariance.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 5.5
    products = centred[:, :, None] * centred[:, None, :]
    z = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    assert float(z.abs().max()) < 5.5
    # and the law itself: log p of the samples has the mean of log p under the mixture, by an independent draw of components
    k = torch.multinomial(weights, n, replacement=True, generator=torch.Generator().manual_seed(0))
    chol = torch.linalg.cholesky(covariances)[k]
    y = means[k] + (chol @ torch.randn(n, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[..., 0]
    a, b = target.log_prob(x), target.log_prob(y)
    assert abs(float(a.mean() - b.mean())) < 5.5 * math.sqrt(float(a.var() + b.var()) / n)


@by_kind
def test_sample_i_is_a_function_of_seed_and_i(kind):
    target = mixture(kind)
    x = target.sample(40, seed=3)
    assert torch.equal(target.sample(7, seed=3), x[:7])
    assert not torch.equal(target.sample(40, seed=4), x)
    assert torch.allclose(mixture(kind, dtype=torch.float32).sample(40, seed=3), x.float(), atol=1e-4)
    assert target.sample(0).shape == (0, 3)


def test_component_frequencies():
    target = sd.GaussianMixture(torch.tensor([[-10.0], [0.0], [10.0]]), torch.full((3,), 0.1), torch.tensor([1.0, 2.0, 5.0]))
    x, n = target.sample(40_000), 40_000
    for value, p in ((-10.0, 1 / 8), (0.0, 2 / 8), (10.0, 5 / 8)):
        count = int(((x - value).abs() < 2).sum())
        assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_from_data():
    x = torch.randn(30, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kde = sd.GaussianMixture.from_data(x, 0.3)
    y = torch.zeros(1, 2, 2, dtype=torch.float64)
    expected = (-0.5 * ((y - x) / 0.3).flatten(1).square().sum(1)).logsumexp(0) - math.log(30) - 4 * math.log(0.3 * math.sqrt(2 * math.pi))
    assert float(kde.log_prob(y)) == pytest.approx(float(expected), rel=1e-12)


def peak_megabytes(work, n) -> float:
    """By how many MB a forked child's memory grows at most from work(2) to work(n)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(2)  # pages in code, and what is made once
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            work(n)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        except BaseException:
            grown = math.inf
        os.write(write, str(grown).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert status == 0
    with os.fdopen(read) as pipe:
        return float(pipe.read())


@by_kind
@pytest.mark.parametrize("per_sample", [False, True])
def test_chunks_change_nothing(kind, per_sample, monkeypatch):
    model = sd.ExactModel(mixture(kind, (2, 2)), sd.VPSDE())
    x = points(model, 0.2, 23)
    t = torch.linspace(0.1, 0.9, 23, dtype=torch.float64) if per_sample else 0.2
    whole = [*model.predict(x, t), model.log_prob(x, t)]
    for numbers in (1, 30, 24 * 5):
        monkeypatch.setattr(mixtures, "CHUNK", numbers)
        for y in (x, x.clone().requires_grad_()):
            for a, b in zip([*model.predict(y, t), model.log_prob(y, t)], whole, strict=True):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)
            assert model.log_prob(y, t).requires_grad == y.requires_grad


@pytest.mark.parametrize("kind", ["isotropic", "full"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_thousand_components_in_64_dimensions_fit_in_memory(kind, per_sample):
    """B x K x D numbers in float64 would be 205 MB for 400 points, and several of them are alive at once."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(1000, 64, generator=generator)
    if kind == "full":
        covariances = torch.eye(64).expand(1000, 64, 64) * (0.5 + torch.rand(1000, 1, 1, generator=generator))
    else:
        covariances = 0.5 + torch.rand(1000, generator=generator)
    model = sd.ExactModel(sd.GaussianMixture(means, covariances), sd.VPSDE())
    x = torch.randn(400, 64, generator=generator)
    t = torch.linspace(0.1, 0.9, 400, dtype=torch.float64) if per_sample else 0.5

    def work(n):
        time = t[:n] if per_sample else t
        assert model.score(x[:n], time).shape == (n, 64)
        assert model.log_prob(x[:n], time).shape == (n,)

    assert peak_megabytes(work, 400) < 150


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3), torch.ones(3)), ShapeError, r"means has shape \(3,\)"),
        ((torch.zeros(0, 3), torch.ones(0)), ShapeError, "empty"),
        ((torch.zeros(2, 3, dtype=torch.long), S2), DTypeError, "int64"),
        ((torch.full((2, 3), math.nan), S2), NonFiniteError, "NaN"),
        ((M2, torch.ones(3)), ShapeError, r"\(3,\).*\(2, 3\)"),
        ((M2, torch.ones(2, 3, 2)), ShapeError, r"\(2, 3, 2\)"),
        ((M2, torch.ones(())), ShapeError, "covariances"),
        ((M2, torch.tensor([1.0, 0.0])), ConfigError, "> 0"),
        ((M2, torch.tensor([1.0, -1.0])), ConfigError, "> 0"),
        ((M2, torch.tensor([1.0, math.nan])), NonFiniteError, "covariances"),
        ((M2, torch.tensor([1.0, math.inf])), NonFiniteError, "covariances"),
        ((M2, -torch.eye(3).expand(2, 3, 3)), ConfigError, "eigenvalue"),
        ((M2, torch.ones(2, 3, 3).triu()), ConfigError, "symmetric"),
        ((M2, S2, torch.ones(3)), ShapeError, "weights"),
        ((M2, S2, torch.tensor([1.0, 0.0])), ConfigError, "weights"),
        ((M2, S2, torch.tensor([1.0, -1.0])), ConfigError, "weights"),
        ((M2, S2, torch.tensor([1.0, math.nan])), ConfigError, "weights"),
        ((M2, S2, torch.tensor([1.0, math.inf])), ConfigError, "weights"),
    ],
)
def test_bad_mixtures(arguments, error, message):
    with pytest.raises(error, match=message):
        sd.GaussianMixture(*arguments)

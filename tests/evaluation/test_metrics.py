"""Distances against closed forms, and the noise floor against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import correlated_mixture, two_modes, z_limit

import scoresde as sd
from scoresde import metrics
from scoresde.errors import ConfigError, NonFiniteError, ShapeError
from scoresde.evaluation import metrics as evaluation_metrics
from scoresde.evaluation.bootstrap import bootstrap, interval, resampled_rows
from scoresde.evaluation.metrics import (
    energy_distance,
    frechet_distance,
    mmd,
    mode_occupancy_error,
    noise_floor,
    precision_recall,
    sliced_wasserstein,
    unit_directions,
)
from scoresde.models import mixture

torch.set_num_threads(1)


def normal(n, dim, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pairs in pieces of so many."""
    return lambda pairs: monkeypatch.setattr(evaluation_metrics, "CHUNK", pairs)


def test_a_shift_is_its_mean_square_over_directions():
    """Every projection is shifted by theta . d: the distance is |d|/sqrt(D) on the mean over directions, for any shape."""
    x = two_modes(8).sample(200)
    d = torch.linspace(-1, 1, 8, dtype=torch.float64)
    distance = sliced_wasserstein(x.view(-1, 2, 4), (x + d).view(-1, 2, 4), projections=20_000)
    assert distance == pytest.approx(float(d.norm()) / math.sqrt(8), rel=0.02)
    assert sliced_wasserstein(x, x[torch.arange(199, -1, -1)]) == 0


def test_one_dimension_is_the_distance_of_sorted_samples():
    x, y = two_modes().sample(50)[:, :1], two_modes().sample(50, seed=1)[:, :1]
    exact = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(exact, rel=1e-12)


def test_sets_of_different_sizes():
    """A set repeated is the same distribution, so the distance to a set of another size is that to the common multiple."""
    x, y = two_modes().sample(40), two_modes().sample(60, seed=1)
    equal = sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(equal, rel=1e-10)
    assert sliced_wasserstein(y, x) == pytest.approx(equal, rel=1e-10)


def test_noise_floor_is_its_definition():
    pool, reference = two_modes().sample(90), two_modes().sample(70, seed=1)
    orders = [np.random.Generator(np.random.Philox(key=[3, split])).permutation(90) for split in range(4)]
    for given in (None, reference):
        values = [sliced_wasserstein(pool[o[:30]], pool[o[30:]] if given is None else given, 16, 3) for o in orders]
        floor = noise_floor(pool, 30, splits=4, projections=16, seed=3, reference=given)
        assert (floor.mean, floor.std) == pytest.approx((np.mean(values), np.std(values)), rel=1e-12)


def test_bad_arguments():
    x = two_modes().sample(10)
    with pytest.raises(ShapeError, match="2 dimensions and y has 1"):
        sliced_wasserstein(x, x[:, :1])
    with pytest.raises(ConfigError, match="projections"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(ConfigError, match="more samples in the pool"):
        noise_floor(x, 10)
    with pytest.raises(ConfigError, match="splits"):
        noise_floor(x, 5, splits=0)


# ---- energy distance


def test_energy_distance_in_one_dimension_is_scipys():
    from scipy.stats import energy_distance as truth

    x, y = normal(300, 1), 0.7 * normal(170, 1, seed=1) + 0.4
    assert energy_distance(x, y) == pytest.approx(truth(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-9)
    assert energy_distance(x, x) == 0


@pytest.mark.parametrize("dim", [3, 40])
def test_energy_distance_is_its_definition_in_pieces(small_pieces, dim):
    x, y = normal(70, dim), normal(90, dim, seed=1) + 0.1

    def mean(a, b):
        return float((a[:, None] - b[None]).norm(dim=-1).mean())

    truth = math.sqrt(2 * mean(x, y) - mean(x, x) - mean(y, y))
    assert energy_distance(x, y) == pytest.approx(truth, rel=1e-6)
    small_pieces(500)  # five rows at a time
    assert energy_distance(x, y) == pytest.approx(truth, rel=1e-6)
    assert energy_distance(x.view(-1, dim, 1), y.view(-1, dim, 1)) == pytest.approx(truth, rel=1e-6)


def test_energy_distance_of_normals_against_the_closed_form():
    """For N(0, 1) and N(d, 1): 2 E|Z sqrt2 + d| - 2 E|Z sqrt2|, with E|N(d, 2)| a folded normal. z below 5 at n = 4,000."""
    d, n = 1.0, 4000
    folded = 2 / math.sqrt(math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
    truth = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    x, y = normal(n, 1), normal(n, 1, seed=1) + d
    # the linear terms' standard deviation is below 1 for each set; the bias of including each point with itself is 2 * 1.13/n
    assert abs(energy_distance(x, y) ** 2 - truth) < 5 * math.sqrt(2 / n)


@pytest.mark.slow
def test_pairs_of_large_sets_need_little_memory():
    import resource

    x, y = normal(12_000, 16), normal(12_000, 16, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert energy_distance(x, y) < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kB; the matrix has 1.15 GB


# ---- maximum mean discrepancy


@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_mmd_is_its_definition(small_pieces, kernel):
    x, y = normal(30, 3), normal(40, 3, seed=1) + 0.2
    k = metrics.make_kernel(kernel, y)
    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    truth = (xx.sum() - xx.trace()) / (30 * 29) + (yy.sum() - yy.trace()) / (40 * 39) - 2 * xy.mean()
    small_pieces(100)
    assert mmd(x, y, kernel) == pytest.approx(float(truth), rel=1e-9)
    assert mmd(x, y, k) == pytest.approx(float(truth), rel=1e-9)


def test_the_kernels_are_their_formulas():
    a, b = normal(4, 5), normal(6, 5, seed=1)
    square = (a[:, None] - b[None]).square().sum(-1)
    for h in (0.5, 2.0):
        truth = sum((-square / (2 * (s * h) ** 2)).exp() for s in (0.25, 0.5, 1, 2, 4)) / 5
        assert torch.allclose(metrics.make_kernel("rbf", b, h)(a, b), truth, rtol=1e-7)
    assert torch.allclose(metrics.make_kernel("polynomial", b)(a, b), (a @ b.T / 5 + 1) ** 3)
    d = metrics.distances(b, b)
    assert metrics.median_distance(b) == float(d[tuple(torch.triu_indices(6, 6, 1))].median())


@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_mmd_is_unbiased(kernel):
    """Zero on the mean over 400 pairs of sets of 20 and 30 of one distribution; a biased estimate would be 30 deviations off."""
    values = np.array([mmd(normal(20, 3, 2 * i), normal(30, 3, 2 * i + 1), kernel, 1.5) for i in range(400)])
    z = values.mean() / (values.std() / math.sqrt(len(values)))
    assert abs(z) < z_limit(2, 1e-4)
    # and it tells a shift of a third of a standard deviation
    moved = np.array([mmd(normal(20, 3, 2 * i), normal(30, 3, 2 * i + 1) + 0.33, kernel, 1.5) for i in range(100)])
    assert moved.mean() > 4 * values.std() / math.sqrt(100)


def test_mmd_against_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(50, 8), normal(50, 8, seed=1) + 0.3
    truth = kid.poly_mmd(x, y, degree=3, gamma=None, coef=1.0)
    assert mmd(x, y, "polynomial") == pytest.approx(float(truth), rel=1e-9)


# ---- Frechet distance


def gaussian_set(n, mean, covariance, seed):
    """Samples whose mean and covariance are exactly these."""
    z = normal(n, len(mean), seed)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (n - 1))).T
    return z @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_is_the_closed_form():
    a, b = normal(5, 5), normal(5, 5, seed=1)
    c, d = a @ a.T + 0.1 * torch.eye(5).double(), b @ b.T + 0.1 * torch.eye(5).double()
    m = torch.linspace(-1, 1, 5, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(c)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    truth = float(m.square().sum() + c.trace() + d.trace() - 2 * cross)
    x, y = gaussian_set(50, m, c, 2), gaussian_set(40, 0 * m, d, 3)
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-10)
    # commuting covariances: |m|^2 + sum (sqrt c - sqrt d)^2
    e, f = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    x, y = gaussian_set(50, torch.ones(3).double(), e.diag(), 2), gaussian_set(60, torch.zeros(3).double(), f.diag(), 3)
    assert frechet_distance(x, y) == pytest.approx(3 + 1 + 0 + 4, rel=1e-10)
    # 20,000 draws of the same: each of the five entries of a mean and covariances off by about 0.01
    assert frechet_distance(normal(20_000, 3), normal(20_000, 3, 1) + 1) == pytest.approx(3, abs=5 * math.sqrt(3 * 4 * 2 / 20_000))


def test_frechet_distance_with_fewer_samples_than_dimensions():
    """Against the eigenvalues of the product of the full covariances, which are singular."""
    x, y = normal(6, 20), normal(9, 20, seed=1) * 2 + 0.3
    values = torch.linalg.eigvals(torch.cov(x.T) @ torch.cov(y.T)).real.clamp(min=0)
    traces = torch.cov(x.T).trace() + torch.cov(y.T).trace()
    truth = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * values.sqrt().sum()
    assert frechet_distance(x, y) == pytest.approx(float(truth), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 1) == pytest.approx(20, rel=1e-10)


# ---- precision and recall


def test_precision_and_recall_of_constructed_sets(small_pieces):
    line = torch.arange(10.0).double()[:, None]  # the first and the third neighbours are 1 and 1 or 2 or 3 away
    assert precision_recall(line, line) == metrics.PrecisionRecall(1.0, 1.0)
    inside, far = line[3:7] + 0.1, line[:2] + 1000
    found = precision_recall(torch.cat([inside, inside + 0.05, far]), line, k=1)  # balls of radius 1 around each
    assert found.precision == 0.8
    # samples at 3.1, 3.15, 4.1, ... have balls of 0.05, and those far away of 1: no real one within
    assert found.recall == 0.0
    found = precision_recall(torch.cat([inside, far]), line, k=1)  # balls of 1 around 3.1, 4.1, 5.1, 6.1: real 3 to 7
    assert (found.precision, found.recall) == (pytest.approx(4 / 6), 0.5)
    assert precision_recall(far + 1e4, line, k=1) == metrics.PrecisionRecall(0.0, 0.0)
    uneven = torch.tensor([0.0, 1, 2, 10, 16, 22]).double()[:, None]  # balls of radius 1, 1, 1, 6, 6, 6
    assert precision_recall(torch.tensor([[2.9], [3.5], [5.0], [27.0]]).double(), uneven, k=1).precision == 0.75
    whole = precision_recall(normal(60, 3), normal(50, 3, 1))
    small_pieces(100)
    assert precision_recall(normal(60, 3), normal(50, 3, 1)) == whole


def test_a_lost_mode_costs_recall_and_noise_costs_precision():
    target = two_modes()
    real, one = target.sample(400), target.sample(2000, seed=1)
    one = one[one[:, 0] < 0][:400]  # of weight 0.4
    lost, noisy = precision_recall(one, real), precision_recall(real[:200] + normal(200, 2), real)
    assert lost.precision > 0.95
    assert lost.recall == pytest.approx(0.4, abs=0.1)
    assert noisy.precision < 0.6


# ---- occupancy


@pytest.mark.parametrize("hard", [False, True])
def test_occupancy_counts_lost_modes(hard):
    target = two_modes()
    left = target.sample(3000)
    left = left[left[:, 0] < 0][:500]
    assert mode_occupancy_error(left, target, hard=hard) == pytest.approx(0.6, abs=0.01)
    truth = abs(float((target.sample(3000)[:, 0] < 0).double().mean()) - 0.4)  # well separated
    assert mode_occupancy_error(target.sample(3000), target, hard=hard) == pytest.approx(truth, abs=0.01)


def test_occupancy_is_zero_on_the_mean_though_modes_overlap():
    """Shares of exact samples at a noisy level are within 5 standard errors of the weights; hard counts are not."""
    target = correlated_mixture(3)
    sde = sd.VPSDE()
    level = sde.levels([0.4])[0]
    x0 = target.sample(20_000)
    x = level.alpha * x0 + level.sigma * normal(20_000, 3, 5)
    r = mixture.responsibilities(x, target, level.alpha, level.sigma)
    z = (r.mean(0) - target.log_weights.exp()) / (r.std(0) / math.sqrt(len(x)))
    assert float(z.abs().max()) < 5
    assert mode_occupancy_error(x, target, level.alpha, level.sigma) < 0.02
    assert mode_occupancy_error(x, target, level.alpha, level.sigma, hard=True) > 0.08
    at = target.at(level.alpha, level.sigma)
    assert torch.allclose(mixture.responsibilities(x[:9], at), r[:9])
    full = sd.GaussianMixture(target.means, target.basis @ torch.diag_embed(target.variances) @ target.basis.mT)
    joint = torch.stack([torch.distributions.MultivariateNormal(m, c).log_prob(x[:9]) for m, c in zip(
        full.means, full.basis @ torch.diag_embed(full.variances) @ full.basis.mT, strict=True)], 1)
    assert torch.allclose(mixture.responsibilities(x[:9], full), joint.softmax(1))


# ---- intervals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "truth", "method"),
    [
        (lambda e: e.square().mean().sqrt(), math.sqrt(2.0), "percentile"),  # rms of exponential errors
        (lambda e: e.median(), math.log(2.0), "percentile"),
        (lambda e: e.mean(), 1.0, "basic"),
    ],
)
def test_bootstrap_covers(statistic, truth, method):
    """200 repetitions of 400 errors: a 95 % interval covers in 90 to 99 % of them (99.9 % of a binomial)."""
    hits = 0
    for i in range(200):
        errors = torch.distributions.Exponential(1.0).icdf(torch.rand(400, generator=torch.Generator().manual_seed(i)).double())
        found = bootstrap(statistic, errors, resamples=300, method=method, seed=i)
        hits += found.low <= truth <= found.high
        assert found.value == float(statistic(errors))
    assert 180 <= hits <= 198


@pytest.mark.slow
def test_bootstrap_centred_covers_what_a_distance_reads():
    """The mean reading of sliced Wasserstein distance to a fixed set, near the floor and away from it (99.9 % of a binomial)."""
    y = normal(100, 2, 10_000)
    directions = unit_directions(2, 16, 0)
    sorted_y = (y @ directions.T).sort(0).values

    def distances_of(x):
        """``sliced_wasserstein`` to y of many sets (..., 100, 2) at once."""
        return ((x @ directions.T).sort(-2).values - sorted_y).square().mean((-2, -1)).sqrt()

    assert float(distances_of(normal(100, 2, 1))) == pytest.approx(sliced_wasserstein(normal(100, 2, 1), y, 16), rel=1e-12)
    for shift in (0.0, 0.6):
        truth = float(distances_of(torch.stack([normal(100, 2, i) + shift for i in range(1000, 1200)])).mean())
        hits, plain = 0, 0
        for i in range(80):
            x = normal(100, 2, i) + shift
            values = distances_of(x[resampled_rows(100, 40, i)])
            found, raw = (interval(float(distances_of(x)), values, method=m) for m in ("centred", "percentile"))
            hits += found.low <= truth <= found.high
            plain += raw.low <= truth <= raw.high
        assert hits >= 68
        assert shift or plain < 68  # resampled sets read too much


def test_bootstrap_is_its_definition():
    x = normal(30, 2)
    rows = resampled_rows(30, 50, 7)
    values = [float(x[r].mean()) for r in rows]
    found = bootstrap(torch.mean, x, resamples=50, seed=7, level=0.8)
    assert (found.low, found.high) == pytest.approx((np.quantile(values, 0.1), np.quantile(values, 0.9)), rel=1e-12)
    assert found.std_error == pytest.approx(np.std(values))
    basic, centred = interval(found.value, values, 0.8, "basic"), interval(found.value, values, 0.8, "centred")
    assert (basic.low, basic.high) == (2 * found.value - found.high, 2 * found.value - found.low)
    assert centred.high - centred.low == pytest.approx(found.high - found.low)
    assert centred.low - found.low == pytest.approx(found.value - np.mean(values))
    assert bootstrap(torch.mean, x, resamples=50, seed=7, level=0.8) == found
    assert bootstrap(torch.mean, x, resamples=50, seed=8, level=0.8) != found
    state = torch.get_rng_state()
    bootstrap(torch.mean, x, resamples=5)
    assert torch.equal(state, torch.get_rng_state())
    assert math.isnan(interval(math.inf, values).low)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: energy_distance(x, x[:, :1]), ShapeError, "2 dimensions and y has 1"),
        (lambda x: energy_distance(x, x / 0), NonFiniteError, "y holds"),
        (lambda x: mmd(x, x, "linear"), ConfigError, "kernel = 'linear'"),
        (lambda x: mmd(x, x, bandwidth=0.0), ConfigError, "bandwidth"),
        (lambda x: mmd(x[:1], x), ConfigError, "two of each"),
        (lambda x: frechet_distance(x[:1], x), ConfigError, "two of each"),
        (lambda x: precision_recall(x, x, k=10), ConfigError, "k = 10"),
        (lambda x: mode_occupancy_error(x[:, :1], two_modes()), ShapeError, "x has shape"),
        (lambda x: bootstrap(torch.mean, x, method="bca"), ConfigError, "method = 'bca'"),
        (lambda x: bootstrap(torch.mean, x, level=95), ConfigError, "level = 95"),
        (lambda x: bootstrap(torch.mean, x, resamples=0), ConfigError, "resamples"),
        (lambda x: bootstrap(torch.mean, x[:0]), ConfigError, "at least one"),
    ],
)
def test_bad_arguments_of_the_others(call, error, message):
    with pytest.raises(error, match=message):
        call(two_modes().sample(10))

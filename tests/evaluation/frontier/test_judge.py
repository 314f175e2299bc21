"""Figures against closed forms and against the public functions."""

from __future__ import annotations

import pytest
import torch
from evaluation.frontier.cases import QUIET, Believed, Nothing, isotropic
from problems import gaussian, gaussian_path, name

import scoresde as sd
from scoresde import metrics
from scoresde.errors import ShapeError
from scoresde.evaluation import bootstrap
from scoresde.evaluation.frontier import distances, solve
from scoresde.evaluation.frontier.compare import frontier
from scoresde.evaluation.metrics import sliced_wasserstein


def test_pathwise_errors_are_those_of_the_closed_form():
    for sde in (sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()):
        model = sd.ExactModel(gaussian(3), sde)
        result = frontier(model, solvers=[sd.Heun()], nfe=(6, 20), samples=50, seed=4, resamples=300, progress=False)
        for row in result.rows:
            setting = solve.Setting(model, 50, 4, result.settings["t_end"], 50, {})
            truth = gaussian_path(model.target, sde, setting.start(50, torch.float64), sde.t_max, setting.t_end)
            x = sd.sample(model, 50, solver=sd.Heun(), steps=row.steps, seed=4)
            e = (x - truth).norm(dim=1)
            assert row.value("median") == pytest.approx(float(e.median()), rel=1e-6), name(sde)
            assert row.value("rms") == pytest.approx(float(e.square().mean().sqrt()), rel=1e-6)
            whole = bootstrap.bootstrap(lambda v: v.square().mean().sqrt(), e, resamples=300, seed=4)
            assert row.metrics["rms"].low == pytest.approx(whole.low, rel=1e-5)
            assert row.metrics["rms"].high == pytest.approx(whole.high, rel=1e-5)
        assert result.settings["converged_error"] < 1e-7


def test_log_p_and_occupancy_are_their_definitions():
    """A model whose samples are wrong in a known way: noise of std 1 left where N(0, 0.5^2) should be."""
    model = sd.ExactModel(isotropic(0, 0.5), sd.VPSDE())
    result = frontier(model, solvers=[Nothing()], nfe=(1,), samples=4000, **QUIET)
    # log p of N(0, 1) samples under N(0, 0.25) less its own mean: -2 (4 - 1) nats in four dimensions
    found = result.rows[0].metrics["log_prob_error"]
    assert found.low < -6 < found.high
    assert found.high - found.low < 0.6
    assert abs(found.value + 6) < 5 * found.std_error + 0.02
    assert result.rows[0].value("occupancy") == 0  # one mode
    two = sd.ExactModel(sd.GaussianMixture(torch.tensor([[-2.0], [2.0]]), torch.tensor([0.1, 0.1]), torch.tensor([0.2, 0.8])), sd.VPSDE())
    row = frontier(two, solvers=[Nothing()], nfe=(1,), samples=2000, **QUIET).rows[0]
    assert row.value("occupancy") == pytest.approx(0.3, abs=0.04)  # half of the noise on either side


def test_exact_sets_are_at_the_floor(exact):
    """A converged solver reads what fresh exact samples do, a bad one does not; the floor is the spread of fresh samples."""
    result = frontier(exact, solvers=[sd.Heun(), sd.Euler()], nfe=(100, 2), samples=1000, seed=3, paths=0, splits=20, progress=False)
    good, bad = result.rows[0], result.rows[3]
    for metric in ("sliced_wasserstein", "energy", "occupancy", "log_prob_error"):
        floor = result.floors[metric]
        assert abs(abs(good.value(metric)) - floor.mean) < 5 * floor.std, metric
        assert abs(bad.value(metric)) > floor.mean + 5 * floor.std, metric
        m = good.metrics[metric]
        assert m.low < m.value < m.high


def test_distances_are_those_of_the_public_functions(exact, moons):
    reference, pool = moons.sample(90, 1), moons.sample(300, 2)
    result = frontier(exact, reference, pool=pool, solvers=[sd.DDIM()], nfe=(6,), samples=60, seed=3, **QUIET)
    x = sd.sample(exact, 60, solver=sd.DDIM(), steps=6, seed=3)
    row = result.rows[0]
    assert row.value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(x, reference, seed=3), rel=1e-9)
    assert row.value("energy") == pytest.approx(metrics.energy_distance(x, reference), rel=1e-9)
    floor = metrics.noise_floor(pool, 60, seed=3, reference=reference)
    assert (result.floors["sliced_wasserstein"].mean, result.floors["sliced_wasserstein"].std) == pytest.approx((floor.mean, floor.std))


def test_figures_in_features_are_those_of_the_public_functions():
    model, calls = Believed(0.3, 1.1, sd.VPSDE()), []
    reference, pool = isotropic(0, 1).sample(80).float(), isotropic(0, 1).sample(400, 5).float()

    def see(x):
        calls.append(len(x))
        return torch.cat([x, x.square()], 1)[:, :6]

    result = frontier(model, reference, pool=pool, features=see, solvers=[sd.Heun()], nfe=(10,), samples=70, batch_size=16, **QUIET)
    x = sd.sample(model, 70, solver=sd.Heun(), steps=5, batch_size=16)
    a, b, row = see(x).double(), see(reference).double(), result.rows[0]
    assert max(calls[:-2]) <= 16
    assert row.value("mmd") == pytest.approx(metrics.mmd(a, b), rel=1e-5)
    assert row.value("frechet") == pytest.approx(metrics.frechet_distance(a, b), rel=1e-5)
    found = metrics.precision_recall(a, b)
    assert (row.value("precision"), row.value("recall")) == pytest.approx((found.precision, found.recall))
    assert set(result.floors) == {"sliced_wasserstein", "energy", "mmd", "frechet", "precision", "recall"}
    assert "see" in result.settings["features"]
    assert row.value("frechet") > result.floors["frechet"].mean
    plain = frontier(model, reference, solvers=[sd.Heun()], nfe=(10,), samples=70, batch_size=16, **QUIET).rows[0]
    assert plain.value("mmd") == pytest.approx(metrics.mmd(x.double(), reference.double()), rel=1e-5)
    assert "frechet" not in plain.metrics
    with pytest.raises(ShapeError, match=r"features gave shape \(80, 2, 2\)"):
        frontier(model, reference, features=lambda x: x.view(-1, 2, 2), solvers=[sd.Heun()], nfe=(2,), samples=16, **QUIET)


def test_first_order_intervals_are_those_of_the_full_bootstrap():
    """Standard errors of every distance, for samples off the reference, within 30 % of resampling in full."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, dtype=torch.float64, generator=generator) * 1.2 + 0.4
    y = torch.randn(200, 4, dtype=torch.float64, generator=generator)
    w = distances.Weights.make(300, 200, 0)
    directions = metrics.unit_directions(4, 32, 0)
    pairs, seen = distances.Pairs(y), distances.Seen(y)
    kernel = metrics.make_kernel("rbf", y)
    for found, function in (
        (distances.Projected(y, directions).distance(x, w), lambda v: sliced_wasserstein(v, y, 32)),
        (pairs.energy(x, w), lambda v: metrics.energy_distance(v, y)),
        (pairs.mmd(x, w, kernel, float(metrics.row_means(y, y, kernel, True).mean())), lambda v: metrics.mmd(v, y)),
        (seen.frechet(x, w), lambda v: metrics.frechet_distance(v, y)),
    ):
        full = bootstrap.bootstrap(function, x, resamples=200, method="centred")
        assert found.value == pytest.approx(full.value, rel=1e-9)
        assert 0.7 < found.std_error / full.std_error < 1.3
        assert found.low == pytest.approx(full.low, abs=1.2 * full.std_error)
        assert found.high == pytest.approx(full.high, abs=1.2 * full.std_error)
    both = distances.coupled(x, x + 0.1, directions, w)
    truth = [sliced_wasserstein(x[r], x[r] + 0.1, 32) for r in w.rows[:3]]
    assert both.value == pytest.approx(truth[0], rel=1e-9)  # a shift, in all resamples
    assert both.std_error < 1e-6

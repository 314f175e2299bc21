"""What a comparison says: the parts of the error, conditions, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation.frontier.cases import FEW, QUIET, Believed, isotropic

import scoresde as sd
from scoresde.errors import ConfigError, ShapeError
from scoresde.evaluation.frontier.compare import frontier


def test_prior_and_truncation_errors_are_those_of_gaussians():
    """One isotropic Gaussian N(m, c^2): all maps are affine, and SW^2 of N(a, s^2 I) and N(b, r^2 I) is |a - b|^2/D + (s - r)^2."""
    m, c, sde, end = 1.5, 0.7, sd.VESDE(sigma_max=5.0), 0.55
    model = sd.ExactModel(isotropic(m, c), sde)
    result = frontier(model, solvers=[sd.Heun()], nfe=(40,), samples=3000, t_end=end, projections=64, progress=False, paths=3000)
    top, low = sde.levels([sde.t_max, end])
    v_T, v_e = c**2 + top.sigma**2, c**2 + low.sigma**2
    ratio = math.sqrt(v_e / v_T)  # x_T - m shrinks by this
    prior = math.hypot(m * ratio, math.sqrt(v_e) - top.sigma * ratio)
    found = result.decomposition
    assert found["prior"].value == pytest.approx(prior, rel=0.05)
    assert found["truncation"].value == pytest.approx(math.sqrt(v_e) - c, rel=0.04)
    assert found["score"].value == 0
    assert "to fix: the prior error (a larger t_max)" in result.advice()
    assert result.rows[0].value("discretization") < 0.02


def test_the_score_error_is_that_of_a_wrong_model():
    """A model that believes in N(0.5, 1) where the data are N(0, 1): a distance of 0.5; a right one: within the noise."""
    reference, pool = isotropic(0, 1).sample(2000).float(), isotropic(0, 1).sample(5000, 1).float()
    how = {"pool": pool, "solvers": [sd.Heun(), sd.Ancestral()], "nfe": (20,), "samples": 800, "projections": 256, "progress": False}
    how |= {"batch_size": 800, "converged": sd.TorchDiffEq(rtol=1e-4, atol=1e-4), "resamples": 100}
    wrong = frontier(Believed(0.5, 1, sd.VPSDE()), reference, **how)
    score = wrong.decomposition["score"]
    assert score.value == pytest.approx(0.5, abs=0.07)
    assert score.low < 0.5 < score.high
    assert "to fix: the score error (train a better model)" in wrong.explain()
    assert wrong.rows[0].value("sliced_wasserstein") == pytest.approx(0.5, abs=0.07)
    assert wrong.rows[0].value("discretization") < 0.03
    assert wrong.rows[1].metrics["discretization"].low == 0  # Ancestral's: by difference of squares, within the noise
    right = frontier(Believed(0.0, 1, sd.VPSDE()), reference, **how)
    assert right.decomposition["score"].value < 0.1
    assert right.decomposition["score"].low == 0
    assert right.advice().startswith("to fix: only the discretization")


def test_conditions_go_to_the_network():
    class Shifted(sd.ScoreModel):
        """N(label, 1) under VP: x0 = label + alpha (x - alpha label)."""

        def denoise(self, x, t, label):
            level = self.sde.level(t, x)
            return label[:, None] + level.alpha * (x - level.alpha * label[:, None])

    model = Shifted(sd.VPSDE(), (2,))
    label = 5.0 * (torch.arange(200) % 2)
    reference = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + label[:, None]
    how = {"solvers": [sd.Heun()], "nfe": (20,), "samples": 200, **FEW}
    right, wrong = frontier(model, reference, label=label, **how), frontier(model, reference, label=0 * label, **how)
    assert right.rows[0].value("sliced_wasserstein") < 0.5 < wrong.rows[0].value("sliced_wasserstein")
    assert right.rows[0].value("median") < 0.1  # the converged paths have the same labels


def test_global_randomness_is_left_alone(exact):
    before = torch.get_rng_state()
    frontier(exact, solvers=[sd.Ancestral()], nfe=(4,), samples=30, **FEW)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 0}, ConfigError, "samples = 0"),
        ({"samples": 30, "pool": torch.zeros(59, 2)}, ConfigError, "samples = 30 and a pool of 59"),
        ({"nfe": ()}, ConfigError, "0 budgets"),
        ({"nfe": (5, 2.5)}, ConfigError, r"nfe = .*2\.5, expected a positive integer"),
        ({"solvers": []}, ConfigError, "0 solvers"),
        ({"solvers": [sd.Heun]}, ConfigError, r"Heun is a class.*Heun\(\)"),
        ({"solvers": [(sd.Heun(), 3)]}, ConfigError, "a grid is 3"),
        ({"solvers": [(sd.Heun(), None, None)]}, ConfigError, "a tuple of 3"),
        ({"solvers": [sd.Heun(), sd.Heun()]}, ConfigError, "Heun on the grid 'uniform' is given twice"),
        ({"grids": []}, ConfigError, "0 grids"),
        ({"grids": ["karras"]}, ConfigError, "a grid is 'karras'"),
        ({"reference": torch.zeros(5, 3)}, ShapeError, r"reference has shape \(5, 3\)"),
        ({"seed": -1}, ConfigError, "seed = -1"),
        ({"paths": -3}, ConfigError, "paths = -3"),
        ({"t_end": 2.0}, ConfigError, "t_end = 2"),
        ({"splits": 0}, ConfigError, "splits = 0"),
        ({"model": None}, ConfigError, "NoneType"),
        ({"model": Believed(0, 1, sd.VPSDE()), "reference": None}, ConfigError, "no reference was given"),
    ],
)
def test_bad_arguments(exact, arguments, error, message):
    given = {"model": exact, "reference": torch.zeros(40, 2), "solvers": [sd.Heun()], "nfe": (2,), **QUIET, **arguments}
    with pytest.raises(error, match=message):
        frontier(given.pop("model"), given.pop("reference"), **given)

"""Rows: each is a function of its own settings, from the same noise, or says why it failed."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation.frontier.cases import FEW, QUIET, Broken, Nothing

import scoresde as sd
from scoresde import grid
from scoresde.errors import ConfigError, DTypeError
from scoresde.evaluation.frontier import solve
from scoresde.evaluation.frontier.compare import frontier
from scoresde.evaluation.metrics import sliced_wasserstein
from scoresde.sampling import sampler


def test_a_failure_is_a_row(exact, moons):
    solvers = [Broken(), Broken("raise"), sd.Heun(), (sd.DDIM(), lambda sde, n, end: torch.linspace(1, 0.5, n + 1))]
    result = frontier(exact, moons.sample(50, 1), solvers=solvers, nfe=(4,), samples=20, **QUIET)
    broken, raised, fine, grid_row = result.rows
    assert math.isnan(broken.value("sliced_wasserstein"))
    assert "not finite" in broken.message
    assert raised.message == "KeyError: 'oops'"
    assert math.isfinite(fine.value("sliced_wasserstein"))
    assert "ends at t = 0.5, expected t_end = 0.001" in grid_row.message
    assert "Broken, uniform, budget 4: " in result.table()
    assert [line.get_xdata().tolist() for line in result.plot().axes[0].lines if line.get_marker() != "None"] == [[4.0]]


def test_every_solver_starts_from_the_same_noise(exact, moons):
    def run(seed):
        return frontier(exact, moons.sample(50, 1), solvers=[Nothing(), Nothing(1)], nfe=(1, 3), samples=30, seed=seed, **QUIET)

    result = run(3)
    assert len({r.value("sliced_wasserstein") for r in result.rows}) == 1
    noise = sd.sample(exact, 30, solver=Nothing(), steps=1, seed=3)
    assert result.rows[0].value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(noise, moons.sample(50, 1), seed=3), rel=1e-9)
    assert run(4).rows[0].value("energy") != result.rows[0].value("energy")


def test_a_row_is_a_function_of_its_own_settings(exact):
    """The same seed gives the same rows, whatever other rows there are and in which order."""
    how = {"samples": 40, **FEW}
    many = frontier(exact, solvers=[sd.Ancestral(), sd.Heun(), sd.DDIM()], nfe=(9, 4), **how)
    for row in many.rows[::2]:
        solver = {"Ancestral": sd.Ancestral(), "Heun": sd.Heun(), "DDIM": sd.DDIM()}[row.label]
        alone = frontier(exact, solvers=[solver], nfe=(row.budget,), **how)
        assert alone.rows[0].metrics == row.metrics
        assert (alone.floors, alone.decomposition) == (many.floors, many.decomposition)


def test_solvers_cross_grids(exact):
    mine = {"own": None, "log": grid.log_snr}
    result = frontier(exact, solvers={"A": sd.DDIM(), "B": (sd.Heun(), grid.karras)}, grids=mine, nfe=(6,), samples=20, **QUIET)
    default = exact.sde.default_grid if not hasattr(sd.DDIM(), "grid") else "own"
    assert [(r.label, r.grid) for r in result.rows] == [("A", default), ("A", "log"), ("B", "karras")]
    x = sd.sample(exact, 20, solver=sd.DDIM(), times=grid.log_snr(exact.sde, 6))
    level = exact.sde.levels([1e-3])[0]
    log_p = exact.target.log_prob_at(x, level.alpha, level.sigma).mean()
    other = exact.target.log_prob_at(sd.sample(exact, 20, solver=sd.DDIM(), steps=6), level.alpha, level.sigma).mean()
    difference = result.rows[1].value("log_prob_error") - result.rows[0].value("log_prob_error")
    assert difference == pytest.approx(float(log_p - other), abs=1e-6)
    again = frontier(exact, solvers=[sd.DDIM()], grids=[grid.uniform, grid.quadratic], nfe=(6,), samples=20, **QUIET)
    assert [r.grid for r in again.rows] == ["uniform", "quadratic"]


def test_auto_is_left_to_sample(exact, monkeypatch):
    given, true = [], sampler.sample

    def sample(model, n=None, *, solver, **more):
        given.append(solver)
        return true(model, n, solver=sd.DDIM() if solver == "auto" else solver, **more)

    monkeypatch.setattr(solve, "sample", sample)
    (row,) = frontier(exact, solvers="auto", nfe=(5,), samples=10, **QUIET).rows
    assert (row.label, row.grid, row.steps, row.nfe, row.message) == ("auto", "own", 5, 5, "")
    assert set(given) == {"auto"}


def test_levels_are_compared_in_model_space():
    """A model that is exact for dequantized data is at the floor: samples and real ones are treated alike."""
    transform = sd.Transform(levels=4)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (900, 3), generator=generator)
    # uniform on [-1, 1]^3 once dequantized: nearly a mixture of narrow Gaussians on a fine grid of its values
    centres = (torch.arange(10) + 0.5) / 5 - 1
    points = torch.cartesian_prod(centres, centres, centres)
    model = sd.ExactModel(sd.GaussianMixture(points, torch.full((len(points),), 0.06)), sd.VPSDE())
    how = {"pool": levels[300:], "solvers": [sd.Heun()], "nfe": (50,), "samples": 300, **QUIET}
    result = frontier(model, levels[:300], transform=transform, **how)
    floor = result.floors["sliced_wasserstein"]
    assert abs(result.rows[0].value("sliced_wasserstein") - floor.mean) < 5 * floor.std
    with pytest.raises(DTypeError, match="Transform"):
        frontier(model, levels[:300], solvers=[sd.Heun()], **QUIET)
    with pytest.raises(ConfigError, match=r"levels run from 0 to 3, but Transform\(levels=3\)"):
        frontier(model, levels[:300], transform=sd.Transform(levels=3), **QUIET)

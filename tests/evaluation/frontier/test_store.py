"""Rows are found again by what made them, and what the frontier takes and refuses."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from evaluation.frontier.cases import Net, recipe_of

import scoresde as sd
from scoresde import grid
from scoresde.errors import CheckpointNotFound, ConfigError, DTypeError
from scoresde.evaluation.features import fit_features
from scoresde.evaluation.frontier import solve, work
from scoresde.evaluation.frontier.compare import SOLVERS, frontier
from scoresde.evaluation.frontier.result import Frontier
from scoresde.evaluation.frontier.rows import label_of
from scoresde.evaluation.metrics import sliced_wasserstein

QUIET = {"progress": False, "paths": 0, "resamples": 20}

FEW = {"progress": False, "paths": 8, "resamples": 20, "converged": sd.TorchDiffEq(rtol=1e-4, atol=1e-4)}


@pytest.fixture
def made(monkeypatch):
    """(label, grid, budget) of the rows that were not found in a file."""
    found, true = [], solve.run
    monkeypatch.setattr(work, "run", lambda s, job: found.append((job.label, job.grid_name, job.budget)) or true(s, job))
    return found


def test_grids_that_share_a_name_are_told_apart(exact, tmp_path, made):
    three, seven = functools.partial(grid.karras, rho=3), functools.partial(grid.karras, rho=7)
    how = {"solvers": sd.DDIM(), "nfe": 5, "samples": 20, **QUIET, "out": tmp_path / "f"}
    first = frontier(exact, grids=three, **how)
    second = frontier(exact, grids=seven, **how)
    assert [r.grid for r in (*first.rows, *second.rows)] == ["karras(rho=3)", "karras(rho=7)"]
    assert first.rows[0].metrics != second.rows[0].metrics
    assert len(made) == 2
    both = frontier(exact, grids=[three, seven], **how)
    assert both.rows == (*first.rows, *second.rows)
    named_so = frontier(exact, grids={"mine": three}, **how)  # the same by another name
    assert len(made) == 2
    assert (named_so.rows[0].grid, named_so.rows[0].metrics) == ("mine", first.rows[0].metrics)
    lambdas = [lambda sde, n, start=None, end=None, f=f: f(sde, n, start, end) for f in (grid.uniform, grid.log_snr)]
    result = frontier(exact, grids=lambdas, **how)
    assert [r.grid for r in result.rows] == ["<lambda>", "<lambda> 2"]
    with pytest.raises(ConfigError, match="given twice"):
        frontier(exact, grids=[three, three], **how)


def test_a_grid_counts_by_the_times_that_it_gives(exact, tmp_path, made):
    rho = [3.0]

    class Mine:
        __slots__ = ()

        def __call__(self, sde, n, start=None, end=None):
            return grid.karras(sde, n, start, end, rho=rho[0])

    how = {"solvers": sd.DDIM(), "grids": Mine(), "nfe": 5, "samples": 20, **QUIET, "out": tmp_path / "f"}
    frontier(exact, **how)
    frontier(exact, **how)
    assert len(made) == 1
    rho[0] = 7.0
    frontier(exact, **how)
    assert len(made) == 2


def test_solvers_that_hold_functions_are_told_apart(exact, tmp_path, made):
    low, high = sd.SASolver(tau=lambda lam: 0.1), sd.SASolver(tau=lambda lam: 1.0)
    how = {"nfe": 5, "samples": 20, **QUIET, "out": tmp_path / "f"}
    first = frontier(exact, solvers=low, **how)
    both = frontier(exact, solvers=[low, high], **how)
    assert [r.label for r in both.rows] == ["SASolver(tau=<lambda>)", "SASolver(tau=<lambda>) 2"]
    assert both.rows[0] == first.rows[0]
    assert both.rows[1].metrics != first.rows[0].metrics
    assert len(made) == 2


def test_auto_is_made_anew_once_the_model_is_tuned(exact, tmp_path, made):
    how = {"solvers": ["auto", sd.DDIM()], "nfe": (5, 6), "samples": 20, "batch_size": 20, **FEW, "out": tmp_path / "f"}
    first = frontier(exact, **how)
    assert first.rows[0].solver.startswith("ReferenceSolver(")
    exact.recipes[5] = recipe_of(5)
    made.clear()
    second = frontier(exact, **how)
    assert made == [("auto", "own", 5)]
    assert second.rows[0].solver.startswith("Recipe(solver=UniPC(order=2")
    assert second.rows[0].value("median") != first.rows[0].value("median")
    x = sd.sample(exact, 20, solver=recipe_of(5))
    level = exact.sde.levels([1e-3])[0]
    log_p = [exact.target.log_prob_at(v, level.alpha, level.sigma).mean() for v in (x, sd.sample(exact, 20, solver=sd.DDIM(), steps=5))]
    difference = second.rows[0].value("log_prob_error") - second.rows[2].value("log_prob_error")
    assert difference == pytest.approx(float(log_p[0] - log_p[1]), abs=1e-6)
    exact.recipes[5] = recipe_of(5, power=2.0)
    frontier(exact, **how)
    assert made == [("auto", "own", 5)] * 2
    exact.recipes.clear()
    frontier(exact, **how)
    assert len(made) == 2  # as at first


def test_models_that_differ_are_other_settings(tmp_path):
    reference = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    how = {"solvers": sd.DDIM(), "nfe": 2, "samples": 10, **QUIET, "out": tmp_path / "f"}
    frontier(sd.NetworkModel(Net(), sd.VPSDE(), (2,), "v"), reference, **how)
    frontier(sd.NetworkModel(Net(), sd.VPSDE(), (2,), "v"), reference, **how)
    with pytest.raises(ConfigError, match=r"other settings: model was 'NetworkModel \w+', now 'NetworkModel"):
        frontier(sd.NetworkModel(Net(), sd.VPSDE(), (2,), "eps"), reference, **how)
    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,), "v")
    model.reference = sd.GaussianReference.fit(reference)
    with pytest.raises(ConfigError, match=r"gaussian was 'None', now 'GaussianReference\("):
        frontier(model, reference, **how)
    with pytest.raises(ConfigError, match="noise was 'independent', now 'path'"):
        frontier(sd.NetworkModel(Net(), sd.VPSDE(), (2,), "v"), reference, noise="path", **how)

    def features(scale):
        return lambda x: scale * x

    frontier(model, reference, features=features(1.0), **{**how, "out": tmp_path / "g"})
    with pytest.raises(ConfigError, match="features was"):
        frontier(model, reference, features=features(2.0), **{**how, "out": tmp_path / "g"})


def test_the_best_is_among_the_defaults(exact):
    kinds = {solver if isinstance(solver, str) else type(solver) for solver in SOLVERS}
    assert {"auto", sd.StochasticExponential, sd.SASolver, sd.DEIS, sd.UniPC, sd.Heun} <= kinds
    assert sd.DPMSolverPP(3) in SOLVERS
    result = frontier(exact, nfe=8, samples=60, batch_size=64, **FEW)
    assert not [r.message for r in result.rows if r.message]
    best = result.recommend(nfe=8)
    assert best.row.label == "auto"
    assert str(best).startswith("auto (ReferenceSolver), 8 steps on the grid 'own': 8 network calls, median ")
    exact.recipes[8] = recipe_of(8)
    tuned = frontier(exact, solvers="auto", nfe=8, samples=60, **FEW).recommend(nfe=8)
    assert str(tuned).startswith("auto (Recipe(UniPC)), 8 steps")


def test_recipes_run_once_at_their_own_budget(exact):
    recipes = [recipe_of(5), recipe_of(1), recipe_of(12, 2.0), recipe_of(12, 3.0)]
    result = frontier(exact, solvers=[*recipes, sd.DDIM()], nfe=(4, 6), samples=30, **FEW)
    found = [(r.label, r.grid, r.steps, r.budget, r.nfe) for r in result.rows]
    assert found[:4] == [
        ("Recipe(nfe=5)", "own", 5, 5, 5),
        ("Recipe(nfe=1)", "own", 1, 1, 1),
        ("Recipe(nfe=12)", "own", 12, 12, 12),
        ("Recipe(nfe=12) 2", "own", 12, 12, 12),
    ]
    assert [r.budget for r in result.rows[4:]] == [4, 6]
    for recipe, row in zip(recipes, result.rows, strict=False):
        x = sd.sample(exact, 30, solver=recipe)
        same = sd.sample(exact, 30, solver=recipe.solver, times=recipe.times)
        assert torch.equal(x, same)
        level = exact.sde.levels([1e-3])[0]
        mean = exact.target.log_prob_at(x, level.alpha, level.sigma).mean()
        first = exact.target.log_prob_at(sd.sample(exact, 30, solver=recipes[0]), level.alpha, level.sigma).mean()
        assert row.value("log_prob_error") - result.rows[0].value("log_prob_error") == pytest.approx(float(mean - first), abs=1e-6)
    assert label_of(recipes[0]) == "Recipe(nfe=5)"
    with pytest.raises(ConfigError, match="a recipe was given with the grid 'karras', but has times of its own"):
        frontier(exact, solvers=[(recipes[0], grid.karras)], samples=30, **FEW)


def test_noise_along_a_path(exact):
    reference = sd.data.two_moons().sample(60, 1)
    how = {"solvers": [sd.Ancestral(), sd.Heun()], "nfe": (6, 24), "samples": 40, "batch_size": 40, **QUIET}
    path, independent = frontier(exact, reference, noise="path", **how), frontier(exact, reference, **how)
    for row, other in zip(path.rows[:2], independent.rows[:2], strict=True):
        for found, noise in ((row, "path"), (other, "independent")):
            x = sd.sample(exact, 40, solver=sd.Ancestral(), steps=row.steps, noise=noise, batch_size=40)
            assert found.value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(x, reference), rel=1e-9)
        assert row.metrics != other.metrics
    assert [r.metrics for r in path.rows[2:]] == [r.metrics for r in independent.rows[2:]]  # no noise in them
    assert path.settings["noise"] == "path"


def test_one_of_a_kind_may_come_alone(exact):
    one = frontier(exact, solvers=sd.DDIM(), nfe=4, grids=grid.karras, samples=20, **QUIET)
    listed = frontier(exact, solvers=[sd.DDIM()], nfe=[4], grids=[grid.karras], samples=20, **QUIET)
    assert [(r.label, r.grid, r.budget, r.metrics) for r in one.rows] == [(r.label, r.grid, r.budget, r.metrics) for r in listed.rows]
    assert len(one.rows) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nfe": "10"}, ConfigError, "nfe = '10', expected a positive integer"),
        ({"nfe": None}, ConfigError, "nfe = None"),
        ({"nfe": True}, ConfigError, "nfe = True"),
        ({"solvers": 3}, ConfigError, "solvers = 3, expected instances"),
        ({"solvers": sd.Heun}, ConfigError, r"Heun is a class, expected an instance: Heun\(\)"),
        ({"solvers": "Heun"}, ConfigError, "expected a solver"),
        ({"grids": "karras"}, ConfigError, "grids = 'karras', expected a function"),
        ({"grids": 3}, ConfigError, "grids = 3"),
        ({"t_end": "x"}, ConfigError, "t_end = 'x'"),
        ({"noise": "brown"}, ConfigError, "noise = 'brown', expected 'independent' or 'path'"),
        ({"features": 5}, ConfigError, "features = 5, expected a function"),
        ({"features": lambda x: x, "samples": 3}, ConfigError, "samples = 3 and a reference of 40: .* more than 3 of each"),
        ({"features": lambda x: x, "reference": torch.zeros(2, 2)}, ConfigError, "samples = 2 and a reference of 2"),
        ({"converged": 5}, ConfigError, "converged = 5, expected a solver"),
        ({"transform": 5}, ConfigError, "transform = 5, expected a scoresde.Transform"),
        ({"transform": sd.Transform(levels=4), "reference": [1]}, DTypeError, "reference is a list"),
        ({"y": torch.zeros(7), "samples": 30}, ConfigError, "'y' is no option of frontier, and the model takes no condition"),
        ({"out": "."}, ConfigError, "out = '.', expected the name of a file"),
        ({"out": 5}, ConfigError, "out = 5, expected the name of a file"),
        ({"out": "pyproject.toml/a"}, (ConfigError, sd.errors.CheckpointWriteError), "pyproject.toml"),
    ],
)
def test_bad_arguments_are_errors_of_the_family(arguments, error, message):
    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,))
    given = {"reference": torch.randn(40, 2), "solvers": [sd.Heun()], "nfe": (2,), **QUIET, **arguments}
    with pytest.raises(error, match=message):
        frontier(model, given.pop("reference"), **given)


def test_bad_questions_are_errors_of_the_family(exact, tmp_path):
    result = frontier(exact, solvers=sd.DDIM(), nfe=2, samples=10, **QUIET)
    for arguments, message in (
        ({"nfe": "10"}, "nfe = '10', expected a number"),
        ({"error": "small"}, "error = 'small', expected a number"),
        ({"nfe": math.nan}, "nfe = nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            result.recommend(**arguments)
    with pytest.raises(CheckpointNotFound, match=r"no such file, expected what Frontier\.to_json wrote"):
        Frontier.from_json(tmp_path / "none.json")
    with pytest.raises(CheckpointNotFound):
        Frontier.from_json(tmp_path)
    with pytest.raises(sd.errors.CheckpointWriteError):
        result.to_json(tmp_path)
    with pytest.raises(ConfigError, match="data is a Tensor, expected a Data"):
        fit_features(torch.zeros(5, 2), progress=False)
    assert not list(tmp_path.iterdir())  # nothing half written

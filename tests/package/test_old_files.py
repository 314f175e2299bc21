"""Files that version 0.1 wrote are read, and mean the same: a run, a recipe, a report, a frontier and its rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import scoresde as sd

OLD = Path(__file__).parent / "version_0_1"
ANSWERS = json.loads((OLD / "answers.json").read_text())


@pytest.fixture(scope="module")
def model():
    return sd.load(OLD / "run")


def test_a_run_gives_the_samples_it_gave(model):
    x = sd.sample(model, 4, solver=sd.Heun(), steps=6, seed=3)
    assert torch.allclose(x, torch.tensor(ANSWERS["heun_samples"]), atol=1e-5)
    assert model.reference is not None


def test_an_interrupted_run_ends_as_the_whole_one_did(tmp_path, model):
    shutil.copytree(OLD / "interrupted", tmp_path / "run")
    torch.manual_seed(0)
    resumed = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    moons = sd.data.two_moons().sample(256, seed=0).float()
    sd.fit(resumed, moons, steps=60, batch_size=32, seed=0, out=tmp_path / "run", progress=False, checkpoint_every=40, resume=True)
    for name, weight in model.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], weight, atol=1e-6), name


def test_a_recipe_is_a_solver(model):
    recipe = sd.Recipe.load(OLD / "recipe-5.json")
    x = sd.sample(model, 4, solver=recipe, seed=3)
    assert torch.allclose(x, torch.tensor(ANSWERS["recipe_samples"]), atol=1e-5)
    assert recipe.report["median_error"] > 0


def test_a_report_is_compared_with_one_of_today(model):
    text = (OLD / "report.json").read_text()
    old = sd.compare.__globals__["Report"].from_json(text)
    x = sd.data.two_moons().sample(256, seed=0).float()[:4]
    # as it was made: the trace by one probe, predictions of order 4
    today = sd.log_prob(model, x, seed=1, solver=sd.ReferenceSolver(order=4), divergence="hutchinson")
    assert torch.allclose(today.log_prob, torch.tensor(ANSWERS["log_prob"], dtype=torch.float64), atol=1e-5)
    difference = sd.compare(old, today)
    assert difference.paired
    assert abs(difference.difference) < 1e-5


def test_a_frontier_is_read_and_its_rows_are_known():
    frontier = sd.Frontier.from_json(OLD / "frontier.json")
    assert [[row.label, row.nfe] for row in frontier.rows] == ANSWERS["rows"]

"""Labels of solvers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from evaluation.frontier.cases import isotropic, made

import scoresde as sd
from scoresde.evaluation.frontier.rows import label_of
from scoresde.evaluation.metrics import NoiseFloor


@pytest.mark.parametrize(
    ("solver", "label"),
    [
        (sd.Heun(), "Heun"),
        (sd.DDIM(), "DDIM"),
        (sd.EulerMaruyama(eta=0.5), "EulerMaruyama(eta=0.5)"),
        (sd.TorchDiffEq("dopri8", rtol=1e-3), "TorchDiffEq(dopri8)"),
        (sd.TorchSDE(), "TorchSDE(srk)"),
        (sd.PredictorCorrector(sd.DDIM(eta=1.0), sd.Langevin(snr=0.1)), "DDIM(eta=1.0) + Langevin(snr=0.1)"),
        (sd.Picard(sd.DDIM(eta=0.5), tolerance=0.1), "Picard(DDIM(eta=0.5), tolerance=0.1)"),
        ("auto", "auto"),
    ],
)
def test_labels(solver, label):
    assert label_of(solver) == label


def test_labels_of_solvers_that_hold_things():
    @dataclass(frozen=True)
    class Recipe(sd.Solver):
        weights: tuple = (1.0, 2.0)
        reference: object = None
        order: int = 2

        def step(self, model, x, t, s, state, noise):
            return x, state

    assert label_of(Recipe((3.0,), isotropic(0, 1), 3)) == "Recipe(reference=GaussianMixture, order=3)"
    result = made(("A", "u", 5, 0.5), floors={"median": NoiseFloor(0.1, 0.01)})
    assert result.metric == "median"

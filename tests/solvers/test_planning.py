"""Steps, times and grids of a solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampling.cases import Counted, mixture

import scoresde as sd
from scoresde.errors import ConfigError
from scoresde.models.batches import default_batch_size


def test_the_default_number_of_steps():
    model = sd.NetworkModel(Counted(), sd.VPSDE(), (2,))
    for solver, calls_due in ((sd.Euler(), 50), (sd.Heun(), 100), (sd.TorchDiffEq("euler"), 50), (sd.TorchSDE("euler"), 50)):
        with sd.count_evaluations(model) as calls:
            sd.sample(model, 2, solver=solver)
        assert calls.forward == calls_due
    assert len(list(sd.trajectory(model, 2, solver=sd.TorchDiffEq()))) == 2  # in one go


def test_times_of_all_kinds():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    grid = [1.0, 0.5, 0.1, 0.01]
    expected = sd.sample(model, 4, times=torch.tensor(grid, dtype=torch.float64))
    for times in (grid, tuple(grid), np.array(grid), torch.tensor(grid, dtype=torch.float64)[None][0]):
        assert torch.equal(sd.sample(model, 4, times=times), expected)
    assert torch.equal(sd.sample(model, 4, times=sd.grid.quadratic(model.sde, 3)), sd.sample(model, 4, times=sd.grid.quadratic(model.sde, 3)))
    heun = sd.Heun()
    assert torch.equal(sd.sample(model, 4, solver=heun, times=sd.grid.uniform(model.sde, 7)), sd.sample(model, 4, solver=heun, steps=7))
    edm = sd.ExactModel(mixture(), sd.EDMSDE())
    assert torch.equal(sd.sample(edm, 4, solver=heun, times=sd.grid.karras(edm.sde, 7)), sd.sample(edm, 4, solver=heun, steps=7))




def test_default_batch_sizes():
    sizes = {event: default_batch_size(event) for event in ((1,), (2,), (64,), (1, 28, 28), (3, 32, 32), (3, 256, 256))}
    assert sizes == {(1,): 1024, (2,): 1024, (64,): 64, (1, 28, 28): 16, (3, 32, 32): 16, (3, 256, 256): 16}


@pytest.mark.parametrize("gap", [1e-8, 1e-6])
def test_a_step_that_is_nothing_beside_its_neighbours_is_refused(gap):
    model = sd.ExactModel(mixture(), sd.VPSDE())
    times = [1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.05, 0.001]
    for other in (sorted([*times, 0.5 - gap], reverse=True), [1.0, 1.0 - gap, 0.1], [1.0, 0.1, 0.1 - 0.1 * gap]):
        with pytest.raises(ConfigError, match=r"are as good as one: the step between them is .* leave one of them out"):
            sd.sample(model, 2, solver=sd.UniPC(), times=other)
    small = sd.sample(model, x_init=torch.ones(2, *model.event_shape, dtype=model.dtype), solver=sd.Heun(), times=[0.5, 0.5 - gap])
    assert 0 < float((small - 1).abs().max()) < 100 * gap  # a small step alone is a step

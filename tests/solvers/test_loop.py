"""The loop: states that are not finite are found and named."""

from __future__ import annotations

import math
import re

import pytest
import torch

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import PRIOR
from scoresde.errors import SolverError
from scoresde.solvers.loop import CHECK_EVERY


class Spoiled(sd.ScoreModel):
    """NaN (or inf) below some time for the states that start negative in their first coordinate."""

    def __init__(self, below, value=math.nan, rows=lambda x: x[:, 0] < 0):
        super().__init__(sd.VPSDE(), (2,))
        self.below, self.value, self.rows = below, value, rows

    def denoise(self, x, t, **cond):
        bad = self.rows(x) if float(t if not isinstance(t, torch.Tensor) else t.max()) < self.below else torch.zeros(len(x), dtype=torch.bool)
        return torch.where(bad[:, None], torch.full_like(x, self.value), torch.zeros_like(x))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", [sd.Euler(), sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchDiffEq("rk4"), sd.TorchSDE()], ids=repr)
def test_non_finite_states_are_found_within_16_steps(solver, value):
    model, steps = Spoiled(0.55, value), 100
    start = Noise(0, check_ids(None, 5), (2,)).normal(PRIOR)
    bad = [100 + i for i in range(5) if float(start[i, 0]) < 0]  # x0 = 0 elsewhere: signs stay
    x_init = start.clone()
    if not isinstance(solver, (sd.Euler, sd.Heun, sd.TorchDiffEq)):
        x_init, model.rows, bad = start, (lambda x: torch.arange(len(x)) == 2), [102]
    with pytest.raises(SolverError) as caught:
        times = sd.grid.uniform(model.sde, steps)
        sd.sample(model, x_init=x_init, ids=range(100, 105), solver=solver, times=times, batch_size=8)
    message = str(caught.value)
    first, last = map(int, re.search(r"steps (\d+) to (\d+)", message).groups())
    high, low = map(float, re.search(r"t from ([\d.e-]+) to ([\d.e-]+)", message).groups())
    assert last - first + 1 <= CHECK_EVERY == 16
    assert first <= 46 <= last  # t < 0.55 is met at step 46 (or 45, by those who look ahead)
    assert low < 0.55 < high
    assert re.search(r"sample ids \[([\d, ]+)\]", message).group(1) == ", ".join(map(str, bad))
    assert type(solver).__name__ in message


def test_non_finite_states_in_the_last_steps_are_found():
    for steps in (1, 15, 16, 17, 33):
        model = Spoiled(1.5 / steps if steps > 1 else 2.0, rows=lambda x: torch.ones(len(x), dtype=torch.bool))
        with pytest.raises(SolverError, match=rf"to {steps - 1}, t from"):
            sd.sample(model, 2, solver=sd.Euler(), steps=steps, t_end=1e-5)
        with pytest.raises(SolverError, match=rf"to {steps - 1}, t from"):
            list(sd.trajectory(model, 2, solver=sd.Euler(), steps=steps, t_end=1e-5))


def test_the_number_of_ids_in_a_message_is_limited():
    model = Spoiled(0.9, rows=lambda x: torch.ones(len(x), dtype=torch.bool))
    with pytest.raises(SolverError, match=r"sample ids \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\.:"):
        sd.sample(model, 100, solver=sd.Euler(), steps=20, batch_size=100)
    with pytest.raises(SolverError, match=r"sample ids \[0, 1, 2\]:"):  # each once, not once for each row of padding
        sd.sample(model, 3, solver=sd.Euler(), steps=20, batch_size=100)

"""What the tests of the frontier share."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

import scoresde as sd
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier.result import Frontier
from scoresde.evaluation.frontier.rows import Row
from scoresde.solvers.recipe import Recipe

QUIET = {"progress": False, "paths": 0, "resamples": 20}

FEW = {"progress": False, "paths": 8, "resamples": 20, "converged": sd.TorchDiffEq(rtol=1e-5, atol=1e-5)}


def isotropic(mean, std, dim=4):
    return sd.GaussianMixture(torch.full((1, dim), float(mean), dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


class Believed(sd.ScoreModel):
    """A model, not known to be exact, that believes in N(mean, std^2 I)."""

    def __init__(self, mean, std, sde, dim=4, delay=0.0):
        super().__init__(sde, (dim,))
        self.inside, self.delay = isotropic(mean, std, dim), delay

    def predict(self, x, t):
        time.sleep(self.delay)
        level = self.sde.level(t, x)
        return self.inside.posterior(x, level.alpha, level.sigma)


@dataclass(frozen=True)
class Broken(sd.Solver):
    how: str = "inf"

    def step(self, model, x, t, s, state, noise):
        if self.how == "raise":
            raise KeyError("oops")
        return x + model.velocity(x, t) * math.inf, state


@dataclass(frozen=True)
class Nothing(sd.Solver):
    """Leaves the noise that it starts from."""

    tag: int = 0

    def step(self, model, x, t, s, state, noise):
        model.velocity(x, t)
        return x, state


def made(*rows, floors=None):
    """A frontier of (label, grid, nfe, median)."""
    built = [
        Row("VPSDE()", f"{label}()", label, g, nfe, nfe, nfe, nfe, 1.0, 0.1, 0.01, True, {"median": Interval(v, 0.9 * v, 1.1 * v, 0.05 * v)})
        for label, g, nfe, v in rows
    ]
    return Frontier(tuple(built), floors or {}, {}, {"t_end": 1e-3})


def recipe_of(n, power=1.0, order=2):
    times = torch.linspace(1, 0, n + 1, dtype=torch.float64) ** power * (1 - 1e-3) + 1e-3
    return Recipe(sd.UniPC(order), tuple(times.tolist()), n)


class Net(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, c_noise):
        return self.scale * x

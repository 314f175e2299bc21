"""Solvers of every kind and small models, for the tests of sampling."""

from __future__ import annotations

import pytest
import torch
from problems import SDES, name
from torch import nn

import scoresde as sd

by_sde = pytest.mark.parametrize("sde", SDES, ids=name)

SOLVERS = [
    sd.Euler(),
    sd.Heun(),
    sd.RK4(),
    sd.EulerMaruyama(),
    sd.EulerMaruyama(eta=0.0),
    sd.EulerMaruyama(eta=0.5),
    sd.DDIM(),
    sd.DDIM(eta=0.7),
    sd.Ancestral(),
    sd.ReverseDiffusion(),
    sd.Langevin(steps=2),
    sd.PredictorCorrector(),
    sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(snr=0.1, steps=2), order="corrector-predictor"),
    sd.PredictorCorrector(sd.RK4(), sd.Langevin(snr=0.1)),
    sd.TorchDiffEq("rk4"),
    sd.TorchDiffEq("midpoint"),
    sd.TorchSDE("euler"),
    sd.TorchSDE("srk"),
    sd.TorchSDE("midpoint", eta=0.5),
]


def mixture(event=(3,), dtype=torch.float64, K=4):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand((K, *event), generator=generator, dtype=torch.float64) - 1
    return sd.GaussianMixture(means.to(dtype), 0.1 + 0.3 * torch.rand(K, generator=generator).to(dtype))


class Counted(nn.Module):
    calls = 0

    def forward(self, x, c_noise):
        Counted.calls += 1
        return 0.1 * x

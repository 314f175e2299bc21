"""Mixtures of every kind, and their density by the textbook."""

from __future__ import annotations

import math

import pytest
import torch

import scoresde as sd

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]

by_name = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)

KINDS = ("isotropic", "diagonal", "full")

by_kind = pytest.mark.parametrize("kind", KINDS)


def mixture(kind, event=(3,), K=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    D = math.prod(event)

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    means = 3 * rand(K, *event) - 1.5
    weights = 0.2 + rand(K)
    if kind == "isotropic":
        covariances = 0.2 + rand(K)
    elif kind == "diagonal":
        covariances = 0.2 + rand(K, *event)
    else:
        a = rand(K, D, D) - 0.5
        covariances = a @ a.mT / D + 0.04 * torch.eye(D, dtype=torch.float64)
    return sd.GaussianMixture(means.to(dtype), covariances.to(dtype), weights)


def points(model, t, n=12, seed=1):
    """Points where p_t lives, and some far outside."""
    level = model.sde.levels([t])[0]
    x0 = model.target.double().sample(n, seed) if model.dtype == torch.float64 else model.target.sample(n, seed)
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=x0.dtype)
    x = level.alpha * x0 + level.sigma * z
    x[-2:] = x[-2:] + 3 * (level.alpha + level.sigma)
    return x


def times(sde, least=0.0):
    return [t for t in (sde.t_min, 1e-4, 1e-3, 0.02, 0.3, 0.7, sde.t_max) if max(sde.t_min, least) <= t <= sde.t_max]

M2, S2 = torch.zeros(2, 3), torch.ones(2)

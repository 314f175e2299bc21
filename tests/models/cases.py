"""What the tests of models share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import scoresde as sd

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]

by_name = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)

NAMES = ("x0", "eps", "score", "v", "edm", "velocity")


def target(event=(3,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand((3, *event), generator=generator, dtype=dtype) - 1
    return sd.GaussianMixture(means, 0.3 + torch.rand(3, generator=generator, dtype=dtype))


class Exact(nn.Module):
    """The network that a perfectly trained one would be: it knows x and the noise level only by (c_in x, c_noise)."""

    def __init__(self, mixture, name, sde):
        super().__init__()
        self.mixture, self.name, self.sde = mixture, name, sde

    def forward(self, x_in, c_noise):
        t = self.sde.time_of_log_snr(-8 * c_noise.double())  # c_noise = log(sigma/alpha)/4
        t = t.clamp(self.sde.t_min, self.sde.t_max)
        alpha, sigma = (f(t).view(-1, *[1] * (x_in.ndim - 1)) for f in (self.sde.alpha, self.sde.sigma))
        data = 0.5 if self.name == "edm" else 1.0
        x = x_in * (alpha**2 * data**2 + sigma**2).sqrt()
        x0, eps = self.mixture.posterior(x, alpha, sigma)
        return {
            "x0": lambda: x0,
            "eps": lambda: eps,
            "score": lambda: -eps / sigma,
            "v": lambda: alpha * eps - sigma * x0,
            "edm": lambda: self.edm(x, x0, alpha, sigma),
            "velocity": lambda: self.velocity(t, x0, eps),
        }[self.name]()

    def velocity(self, t, x0, eps):
        """By differences of alpha and sigma in closed form: nothing of what is tested."""
        slopes = [torch.func.jvp(f, (t,), (torch.ones_like(t),))[1].view(-1, *[1] * (x0.ndim - 1)) for f in (self.sde.alpha, self.sde.sigma)]
        return slopes[0] * x0 + slopes[1] * eps

    @staticmethod
    def edm(x, x0, alpha, sigma):
        # 2206.00364, table 1, in y = x/alpha and s = sigma/alpha
        y, s = x / alpha, sigma / alpha
        c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
        return (x0 - c_skip * y) / c_out


def times(sde):
    return [t for t in (sde.t_min, 1e-3, 0.05, 0.4, 0.9, sde.t_max) if sde.t_min <= t <= sde.t_max]


def states(sde, t, n=6, event=(3,)):
    x0 = target(event).sample(n, 1)
    return sde.perturb(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


def noisy_net():
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = noisy_net()
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x, c_noise):
        return self.frozen(self.inner(x))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x, c_noise):
        return self.inner(x)

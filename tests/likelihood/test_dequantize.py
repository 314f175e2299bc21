"""Dequantizers: their densities are those of their draws, their bounds are bounds, and meet -log2 P(k) where they should."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import SDES, name, z_limit

import scoresde as sd
from scoresde.likelihood.dequantize import Dequantizer, Normal, Uniform, resolve

ConfigError = sd.errors.ConfigError
T8 = sd.Transform(levels=8)


def log2_probability(model: sd.ExactModel, levels: torch.Tensor, transform: sd.Transform, alpha: float = 1.0) -> torch.Tensor:
    """log2 of the integral of p at t_min over the bins of (B, D) levels, stretched by alpha; for diagonal components."""
    t = model.sde.t_min
    p = model.target.at(float(model.sde.alpha(t)), float(model.sde.sigma(t)))
    low = alpha * (transform.low + levels.double() * transform.bin_width)[:, None]
    z = [(edge - p.means.double()) / p.variances.double().sqrt() for edge in (low, low + alpha * transform.bin_width)]
    inside = (torch.special.ndtr(z[1]) - torch.special.ndtr(z[0])).prod(-1)
    return (inside @ p.log_weights.double().exp()).log2()


def smooth_mixture() -> sd.GaussianMixture:
    """Two dimensions, components narrower and wider than a bin of eight levels (0.25)."""
    means = torch.tensor([[-0.4, 0.3], [0.5, -0.2], [0.1, 0.6]]).double()
    return sd.GaussianMixture(means, torch.tensor([[0.15, 0.3], [0.06, 0.2], [0.3, 0.1]]).double(), torch.tensor([3.0, 1.0, 2.0]))


def spikes(transform: sd.Transform) -> tuple[sd.GaussianMixture, torch.Tensor, torch.Tensor]:
    """Discrete data in two dimensions: a spike on the middle of every pair of levels; those pairs and their probabilities."""
    K = transform.levels
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    w = 0.2 + torch.rand(K * K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = w / w.sum()
    return sd.GaussianMixture(transform.center(pairs, torch.float64), torch.full((K * K,), 1e-6).double(), w), pairs, w


@pytest.mark.slow
def test_uniform_noise_gives_a_bound_and_its_importance_weighted_one_goes_to_the_truth():
    """Two dimensions, 80 samples. The mean over draws is above the exact -log2 P(k) by 0.258 bits/dim (4,000 draws of the exact p), with
    a standard error of 0.022 for 16; the log of the mean of 4 draws is above it by less, that of 32 by no more than 0.01."""
    model = sd.ExactModel(smooth_mixture(), sd.VPSDE())
    levels = T8.quantize(model.target.sample(80))
    truth = float(-log2_probability(model, levels, T8).mean()) / 2
    how = {"divergence": "exact", "steps": 24, "check": 0, "prior": lambda z: model.log_prob(z, 1.0)}
    gap = sd.bits_per_dim(model, levels, T8, dequantizations=16, **how).mean - truth
    four, many = (sd.bits_per_dim(model, levels, T8, dequantizations=k, importance_weighted=True, **how).mean - truth for k in (4, 32))
    assert gap == pytest.approx(0.258, abs=4 * 0.022)
    assert 0 < four < 0.3 * gap
    assert abs(many) < 0.01
    alias = sd.bits_per_dim(model, levels, T8, dequantizations=4, dequantization="importance", **how)
    assert alias.mean == pytest.approx(four + truth, abs=1e-12)
    assert alias.settings["dequantization"] == "uniform, importance-weighted, 4 draws"


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_normal_noise_meets_discrete_data(sde):
    """Spikes at the middles of the bins, at a t_min where sigma/alpha is a seventh of a bin: the mean of log q - log p, with the exact p
    at t_min, is -log2 of the spikes' weights to 0.002 bits/dim, and above -log2 P(k); with larger noise it costs more."""
    target, pairs, w = spikes(T8)
    for tails in (2.5, 3.5):  # -log2 erf(tails/sqrt 2) is 0.018, 0.0007
        model = sd.ExactModel(target, T8.adapt(sde, tails))
        rows = torch.arange(64).repeat(20)
        x, log_q = Normal(T8).draw(pairs[rows], model, 0, np.arange(len(rows)), 0)
        bits = float((log_q - model.log_prob(x, model.sde.t_min)).mean()) / (2 * math.log(2))
        alpha = float(model.sde.alpha(model.sde.t_min))
        P = -float(log2_probability(model, pairs, T8, alpha).mean()) / 2
        assert P - 1e-9 < bits
        assert bits - P < (0.0005 if tails == 3.5 else 0.02)
    assert abs(bits + float(w.log2().mean()) / 2) < 0.002
    x, log_q = Uniform(T8).draw(pairs, model, 0, np.arange(64), 0)
    assert float((log_q - model.log_prob(x, model.sde.t_min)).mean()) / (2 * math.log(2)) > bits + 0.3  # far off


def test_bits_per_dim_of_discrete_data_by_normal_noise():
    """The same through the ODE, with the exact prior; the cut at t_min costs nothing, and the report says so."""
    target, pairs, w = spikes(T8)
    model = sd.ExactModel(target, T8.adapt(sd.VPSDE()))
    how = {"divergence": "exact", "solver": sd.AdaptiveODE(rtol=1e-4, atol=1e-4), "prior": lambda z: model.log_prob(z, 1.0)}
    b = sd.bits_per_dim(model, pairs, replace(T8, dequantization="normal"), check=4, **how)
    assert b.mean == pytest.approx(-float(w.log2().mean()) / 2, abs=0.002)
    assert b.settings["dequantization"] == "normal"
    assert b.report().term("cut") == 0
    assert "bound on the discrete data" in b.report().table()
    uniform = sd.bits_per_dim(model, pairs[:8], T8, check=4, dequantization="uniform", **how)
    assert uniform.mean > b.mean + 0.2
    assert uniform.report().term("cut") != 0
    with pytest.raises(ConfigError, match="dequantization: 'normal' against 'uniform'"):
        sd.compare(b, uniform)


@pytest.mark.parametrize("tails", [0.7, 1.5, 3.5])
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()], ids=name)
def test_the_density_is_that_of_the_draws(sde, tails):
    """E_q[1/q] is the volume of a bin, alpha bin_width, and E[e^2] that of a normal distribution cut off at tau."""
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1).double(), torch.ones(1)), T8.adapt(sde, tails))
    n = 20_000
    levels = torch.full((n, 1), 5)
    x, log_q = Normal(T8).draw(levels, model, 1, np.arange(n), 3)
    alpha, sigma = float(model.sde.alpha(model.sde.t_min)), float(model.sde.sigma(model.sde.t_min))
    e = (x / alpha - T8.center(levels, torch.float64)) * alpha / sigma
    tau = T8.bin_width * alpha / (2 * sigma)
    assert tau == pytest.approx(tails, rel=1e-3)
    assert float(e.abs().max()) <= tau + 1e-9
    if tails < 2:  # beyond, rare draws carry most of the mean of 1/q
        r = (-log_q).exp() / (alpha * T8.bin_width)
        assert abs(float(r.mean()) - 1) < z_limit(12) * float(r.std()) / n**0.5
    phi = math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)
    second = 1 - 2 * tau * phi / math.erf(tau / math.sqrt(2))
    assert abs(float(e.square().mean()) - second) < z_limit(12) * float(e.square().std()) / n**0.5
    assert abs(float(e.mean())) < z_limit(12) * float(e.std()) / n**0.5
    normal = torch.distributions.Normal(0.0, sigma).log_prob(e * sigma)[:, 0] - math.log(math.erf(tau / math.sqrt(2)))
    assert torch.allclose(log_q, normal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Uniform, Normal])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_stay_in_their_bins_and_belong_to_their_samples(kind, dtype):
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 3, dtype=dtype), torch.ones(1)), T8.adapt(sd.VPSDE(), 1.0))
    levels = torch.randint(0, 8, (3000, 3), generator=torch.Generator().manual_seed(0))
    x, log_q = kind(T8).draw(levels, model, 4, np.arange(3000), 1)
    alpha = 1.0 if kind is Uniform else float(model.sde.alpha(model.sde.t_min))
    assert torch.equal(T8.quantize(x.double() / alpha * (1 - 1e-7)), levels)
    assert (x.dtype, log_q.dtype, log_q.shape) == (dtype, torch.float64, (3000,))
    rows = [17, 5, 2999]
    some, some_q = kind(T8).draw(levels[rows], model, 4, np.array(rows), 1)
    assert torch.equal(some, x[rows])
    assert torch.allclose(some_q, log_q[rows], rtol=0, atol=1e-12)
    for seed, draw in ((5, 1), (4, 2)):
        assert not torch.equal(kind(T8).draw(levels, model, seed, np.arange(3000), draw)[0], x)


@dataclass(frozen=True)
class LowerHalf(Dequantizer):
    """A density of one's own: uniform on the lower half of each bin."""

    name = "lower half"

    def draw(self, levels, model, seed, ids, draw):
        x, log_q = Uniform(self.transform).draw(levels, model, seed, ids, draw)
        low = self.transform.low + levels * self.transform.bin_width
        return (low + (x - low) / 2).to(x.dtype), log_q + levels[0].numel() * math.log(2)


def test_a_dequantizer_of_ones_own():
    """A bound too, of the same P(k): above the truth, and its importance-weighted one converges to what the half bin holds."""
    model = sd.ExactModel(smooth_mixture(), sd.VPSDE())
    levels = T8.quantize(model.target.sample(60))
    how = {"divergence": "exact", "steps": 24, "check": 0, "prior": lambda z: model.log_prob(z, 1.0)}
    b = sd.bits_per_dim(model, levels, dequantization=LowerHalf(T8), dequantizations=24, importance_weighted=True, **how)
    half = sd.Transform(levels=16)
    truth = -float(log2_probability(model, 2 * levels, half).mean()) / 2
    assert abs(b.mean - truth) < 0.008
    assert b.mean > -float(log2_probability(model, levels, T8).mean()) / 2
    assert b.settings["dequantization"] == "lower half, importance-weighted, 24 draws"
    with pytest.raises(ConfigError, match="the dequantizer is of Transform"):
        sd.bits_per_dim(model, levels, sd.Transform(levels=16), dequantization=LowerHalf(T8))


def test_none_is_what_the_model_was_trained_for():
    net = sd.nets.MLP(2, width=8, depth=1)
    normal = replace(T8, dequantization="normal")
    trained = sd.NetworkModel(net, sd.VPSDE(), (2,), transform=normal)
    assert resolve(None, trained, T8) == Normal(normal)
    assert resolve(None, sd.NetworkModel(net, sd.VPSDE(), (2,), transform=T8), normal) == Uniform(T8)
    exact = sd.ExactModel(smooth_mixture(), sd.VPSDE())  # has no transform: the one that is given tells
    assert isinstance(resolve(None, exact, T8), Uniform)
    assert isinstance(resolve(None, exact, normal), Normal)
    assert isinstance(resolve("uniform", trained, normal), Uniform)
    with pytest.raises(ConfigError, match=r"dequantization = 'variational', expected None, 'uniform', 'normal' or a Dequantizer"):
        resolve("variational", exact, T8)
    with pytest.raises(ConfigError, match=r"dequantization = \['normal'\], expected None"):
        resolve(["normal"], exact, T8)


def test_too_much_noise_for_the_bins_is_told():
    levels = torch.zeros(2, 2, dtype=torch.int64)
    model = sd.ExactModel(smooth_mixture(), T8.adapt(sd.VPSDE(), 1.5))
    how = {"solver": sd.Heun(), "steps": 2, "check": 0, "dequantization": "normal"}
    with pytest.warns(UserWarning, match=r"at 1.5 standard deviations.*0\.21 bits/dim too large.*about 0\.0357: transform\.adapt"):
        sd.bits_per_dim(model, levels, T8, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.bits_per_dim(sd.ExactModel(smooth_mixture(), T8.adapt(sd.VPSDE())), levels, T8, **how)


def test_a_model_of_bare_levels_and_noise_that_it_has_not_seen():
    levels = torch.zeros(2, 2, dtype=torch.int64)
    model = sd.ExactModel(smooth_mixture(), T8.adapt(sd.VPSDE()))
    model.transform = replace(T8, dequantization="normal")
    how = {"solver": sd.Heun(), "steps": 2, "check": 0}
    with pytest.warns(UserWarning, match="has hardly seen the rest"):
        sd.bits_per_dim(model, levels, T8, dequantization="uniform", **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.bits_per_dim(model, levels, T8, **how)

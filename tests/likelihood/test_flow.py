"""log p in reference coordinates: exact on Gaussian data, few calls, and the clock that it runs by."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, image_mixture, marginal_sample, name, slope, two_modes

import scoresde as sd
from scoresde.likelihood.clock import Clock
from scoresde.likelihood.flow import quadrature


def bits(r: sd.likelihood.LogProb, exact: torch.Tensor) -> torch.Tensor:
    return (r.log_prob - exact) / (r.latent[0].numel() * math.log(2))


@pytest.mark.parametrize("dim", [2, 16, pytest.param(24, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_log_prob_in_16_and_40_calls(sde, dim):
    """Mean absolute error a point and signed mean in bits/dim. Measured: 0.0012 and 0.0010 at 16 calls, 0.00003 at 40."""
    target = correlated_mixture(dim)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, {2: 128, 16: 48, 24: 32, 64: 12}[dim])
    exact = model.log_prob(x, sde.t_min)
    for calls, limit in ((16, 0.0025), (40, 0.0002)):
        r = sd.log_prob(model, x, steps=calls, divergence="exact", prior="reference", batch_size=len(x))
        e = bits(r, exact)
        assert e.abs().mean() < limit
        assert e.mean().abs() < limit
        assert (r.nfe, r.vjp) == (calls, calls * dim)


@pytest.mark.parametrize("order", [1, 2])
def test_convergence_order(order):
    """Adams-Bashforth of order k with Adams-Moulton of order k + 1 converges with order k + 1."""
    target, sde = two_modes(), sd.VPSDE(t_min=1e-3)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 32)
    prior = lambda z: model.log_prob(z, sde.t_max)  # noqa: E731
    exact = model.log_prob(x, sde.t_min)
    steps = [160, 320]
    errors = []
    for n in steps:
        r = sd.log_prob(model, x, solver=sd.ReferenceSolver(order=order, free=False), steps=n, divergence="exact", prior=prior)
        errors.append(float((r.log_prob - exact).abs().mean()))
    assert abs(slope([n - 1 for n in steps], errors) - (order + 1)) < 0.1


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gaussian_data_are_exact_in_any_number_of_calls(sde, steps):
    target = gaussian(4)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 8)
    r = sd.log_prob(model, x, steps=steps, divergence="exact", prior="reference")
    assert torch.allclose(r.log_prob, model.log_prob(x, sde.t_min), rtol=0, atol=1e-8)
    r = sd.log_prob(model, x, steps=steps, divergence="reference", prior="reference")  # nor do probes in its basis err
    assert torch.allclose(r.log_prob, model.log_prob(x, sde.t_min), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["full", "diagonal", "dct", "isotropic"])
def test_any_reference_converges_to_the_same(kind):
    target, sde = image_mixture(), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 12)
    model.reference = sd.GaussianReference.fit(target.sample(400), kind=kind)
    prior = lambda z: model.log_prob(z, sde.t_max)  # noqa: E731
    r = sd.log_prob(model, x, steps=64, divergence="exact", prior=prior)
    assert bits(r, model.log_prob(x, sde.t_min)).abs().max() < 2e-5
    assert torch.allclose(r.prior, model.log_prob(r.latent, sde.t_max), rtol=0, atol=1e-9)


def test_the_same_probe_gives_the_same_as_by_the_velocity():
    """Probes and their correction are the same for every solver: what differs is the discretization alone."""
    target, sde = correlated_mixture(6), sd.SubVPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 4)
    tight, alone = sd.TorchDiffEq(rtol=1e-7, atol=1e-7), sd.AdaptiveODE(rtol=1e-6, atol=1e-6)
    for kind, probes, solvers in (("hutchinson", 2, [tight]), ("gaussian", 2, [alone]), ("reference", 1, [alone]), ("hutch++", 6, [tight, alone])):
        fine = sd.log_prob(model, x, steps=160, divergence=kind, probes=probes)
        for solver in solvers:
            other = sd.log_prob(model, x, solver=solver, divergence=kind, probes=probes)
            assert torch.allclose(fine.log_prob, other.log_prob, rtol=0, atol=5e-5), kind
            assert torch.allclose(fine.latent, other.latent, rtol=0, atol=2e-6)
            assert torch.allclose(fine.std_error, other.std_error, rtol=0, atol=5e-5, equal_nan=True)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_reference_prior(sde):
    """N(alpha m, C_t) is closer to the truth at t_max than N(0, sigma^2 I), with any solver."""
    target = two_modes()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 32)
    exact = lambda z: model.log_prob(z, sde.t_max)  # noqa: E731
    r, standard, true = (sd.log_prob(model, x, steps=32, divergence="exact", prior=p) for p in ("reference", None, exact))
    assert torch.equal(r.latent, true.latent)
    assert torch.allclose(r.delta, true.delta, rtol=0, atol=1e-12)
    assert (r.prior - true.prior).abs().max() < 1e-5 * 2
    assert (r.prior - true.prior).abs().mean() < 0.05 * (standard.prior - true.prior).abs().mean()
    other = sd.log_prob(model, x, solver=sd.TorchDiffEq(rtol=1e-7, atol=1e-7), divergence="exact", prior="reference")
    assert torch.allclose(other.log_prob, r.log_prob, rtol=0, atol=1e-3)


def test_t_max_is_called_where_noise_does_not_hide_the_data():
    target = two_modes()
    sde = sd.EDMSDE(sigma_max=4.0)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 32)
    with sd.count_evaluations(model) as calls:
        r = sd.log_prob(model, x, steps=40, divergence="exact", prior=lambda z: model.log_prob(z, sde.t_max))
    assert calls.forward == r.nfe == 40
    assert bits(r, model.log_prob(x, sde.t_min)).abs().max() < 1e-4


class Spoiled(sd.ScoreModel):
    """An exact model that answers NaN for samples with a first number above 10,000."""

    def __init__(self, inner):
        super().__init__(inner.sde, inner.event_shape)
        self.inner, self.reference = inner, inner.reference

    def denoise(self, x, t, **cond):
        bad = (x.flatten(1)[:, :1] > 1e4).view(-1, *[1] * (x.ndim - 1))
        return torch.where(bad, math.nan, self.inner.denoise(x, t))


def test_batch_mates_do_not_matter():
    """Alone, beside 63 zeros, beside 63 scaled by 255, beside one that fails: the same to 1e-9."""
    target = correlated_mixture(6)
    model = Spoiled(sd.ExactModel(target, sd.VPSDE()))
    x = target.sample(1)
    alone = sd.log_prob(model, x, probes=2, steps=12)
    mates = [torch.zeros(63, 6).double(), (255 * target.sample(63, seed=1)).clamp(-90.0, 90.0)]
    for other in mates:
        beside = sd.log_prob(model, torch.cat([x, other]), probes=2, steps=12, batch_size=64)
        assert abs(float(beside.log_prob[0] - alone.log_prob[0])) < 1e-9
        assert beside.log_prob.isfinite().all()
    with pytest.warns(UserWarning, match=r"log p of 1 samples is not finite, ids \[1\]"):
        beside = sd.log_prob(model, torch.cat([x, 2e4 + x]), probes=2, steps=12)
    assert abs(float(beside.log_prob[0] - alone.log_prob[0])) < 1e-9
    assert math.isnan(float(beside.log_prob[1]))
    assert math.isnan(float(beside.prior[1]))
    with pytest.raises(sd.errors.SolverError, match="not finite, ids"):
        sd.log_prob(model, 2e4 + x, steps=12)


def test_without_a_reference_it_is_torchdiffeq():
    target = correlated_mixture(3)
    model = sd.ExactModel(target, sd.VPSDE())
    x = target.sample(4)
    by_velocity = sd.log_prob(model, x, solver=sd.TorchDiffEq(), divergence="exact")
    model.reference = None
    assert torch.equal(sd.log_prob(model, x, divergence="exact").log_prob, by_velocity.log_prob)
    for wrong in ({"solver": sd.ReferenceSolver()}, {"prior": "reference"}, {"divergence": "reference"}):
        with pytest.raises(sd.errors.ConfigError, match=r"GaussianReference\.fit"):
            sd.log_prob(model, x, **wrong)
    with pytest.raises(sd.errors.ConfigError, match="prior = 'standard'"):
        sd.log_prob(model, x, prior="standard")


def test_float32_network():
    target, sde = correlated_mixture(4), sd.VPSDE()
    x = marginal_sample(target, sde, sde.t_min, 16).float()
    model = sd.ExactModel(correlated_mixture(4).float(), sde)
    r = sd.log_prob(model, x, divergence="exact", prior="reference")
    assert r.latent.dtype == torch.float32
    assert (r.log_prob - sd.ExactModel(target, sde).log_prob(x.double(), sde.t_min)).abs().max() < 5e-3


def test_conditions_reach_the_network():
    class Shifted(sd.ScoreModel):
        def __init__(self, inner):
            super().__init__(inner.sde, inner.event_shape)
            self.inner, self.reference = inner, inner.reference

        def denoise(self, x, t, shift=None):
            return self.inner.denoise(x - self.sde.alpha(float(t)) * shift, t) + shift

    inner = sd.ExactModel(correlated_mixture(2), sd.VPSDE())
    inner.reference = sd.GaussianReference(torch.zeros(2).double(), torch.ones(2).double())
    x, shift = inner.target.sample(6), torch.arange(12, dtype=torch.float64).view(6, 2) / 12
    a = inner.sde.alpha(1.0)
    r = sd.log_prob(Shifted(inner), x + shift, steps=60, divergence="exact", shift=shift, batch_size=4, prior=lambda z: z[:, 0] * 0)
    log_p = r.log_prob + inner.log_prob(r.latent - a * shift, 1.0)
    assert (log_p - inner.log_prob(x, inner.sde.t_min)).abs().max() < 1e-3


def test_quadrature_is_exact_for_cubics():
    w = [0.1, 0.15, 0.3, 0.32, 0.5, 0.9]
    for n in (2, 3, 4):
        q = quadrature(w, n)
        for power in range(n):
            assert sum(a * b**power for a, b in zip(q, w, strict=True)) == pytest.approx((0.9 ** (power + 1) - 0.1 ** (power + 1)) / (power + 1))
    assert sum(a * b**4 for a, b in zip(quadrature(w, 4), w, strict=True)) != pytest.approx((0.9**5 - 0.1**5) / 5, rel=1e-6)
    assert quadrature([0.0, 1.0], 4) == pytest.approx([0.5, 0.5])


SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]
ONE = sd.GaussianReference(torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.3, dtype=torch.float64), width=1.5)
TWO = dataclasses.replace(ONE, detail=0.01)


def name(sde):
    return type(sde).__name__


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_clock_of_one_part_is_that_of_the_reference_solver(sde):
    levels = Clock.of(ONE).levels(sde, 12)
    times = sd.ReferenceSolver(reference=ONE, free=False).grid(sde, 12, end=sde.t_min).flip(0)
    torch.testing.assert_close(torch.tensor([float(t) for t in levels], dtype=torch.float64), times, rtol=1e-9, atol=0)


@pytest.mark.parametrize("reference", [ONE, TWO])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_levels_are_equally_spaced_in_its_time(sde, reference):
    clock = Clock.of(reference)
    levels = clock.levels(sde, 20)
    assert (float(levels[0]), float(levels[-1])) == (sde.t_min, sde.t_max)
    steps = torch.tensor([clock.time(t) for t in levels], dtype=torch.float64).diff()
    torch.testing.assert_close(steps, steps.mean().expand(20), rtol=1e-6, atol=0)
    lam = lambda t: math.log(t.alpha / t.sigma)
    for t in levels[3:-3:5]:
        a, b = sde.levels([float(t) * (1 - 1e-5), float(t) * (1 + 1e-5)])
        assert clock.slope(t) == pytest.approx((lam(b) - lam(a)) / (clock.time(b) - clock.time(a)), rel=1e-4)


def test_half_of_the_nodes_are_where_levels_come_apart():
    sde = sd.VPSDE()
    s = torch.tensor([t.sigma / t.alpha for t in Clock.of(TWO).levels(sde, 100)])
    near = ((s > 0.01 / 8) & (s < 0.01 * 8)).sum()  # within three widths, 0.95 of a logistic distribution
    assert 50 <= int(near) <= 65
    alone = torch.tensor([t.sigma / t.alpha for t in Clock.of(ONE).levels(sde, 100)])
    assert int(((alone > 0.01 / 8) & (alone < 0.01 * 8)).sum()) < 30


def spikes():
    """Levels 0..4 in three dimensions with unequal probabilities, as an exact density of bare levels."""
    transform = sd.Transform(levels=5, dequantization="normal")
    levels = torch.cartesian_prod(*[torch.arange(5)] * 3)
    weights = torch.rand(125, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    target = sd.GaussianMixture(transform.center(levels, torch.float64), torch.full((125,), 1e-4, dtype=torch.float64), weights)
    return transform, levels, target


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()], ids=name)
def test_the_detail_makes_likelihoods_of_bare_levels_cheap(sde):
    """Errors of log p at t_min in bits per dimension, root mean square over points: far below those without it at 20 and 40 calls."""
    transform, _, target = spikes()
    model = sd.ExactModel(target, transform.adapt(sde))
    t_min = model.sde.t_min
    first = model.sde.levels([t_min])[0]
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = first.alpha * target.sample(64) + first.sigma * noise
    exact = model.log_prob(x, t_min)
    errors = {}
    for detail in (None, transform.bin_width / 4):
        reference = dataclasses.replace(model.reference, detail=detail, width=2.0)
        for calls in (20, 30, 40):
            r = sd.log_prob(
                model,
                x,
                solver=sd.ReferenceSolver(reference=reference),
                steps=calls,
                divergence="exact",
                prior=lambda x: model.log_prob(x, model.sde.t_max),
            )
            errors[detail is not None, calls] = float(((r.log_prob - exact) / (3 * math.log(2))).square().mean().sqrt())
    assert errors[True, 30] < 0.03  # 0.046 and 0.008 with predictions of order 4 in the clock of two parts
    assert errors[True, 40] < 0.004
    assert errors[True, 20] < 0.6 * errors[False, 20]
    assert errors[True, 40] < 0.15 * errors[False, 40]


def test_fit_knows_the_detail_of_bare_levels_and_checkpoints_keep_it(tmp_path):
    transform, levels, _ = spikes()
    data = sd.data.Data(levels.to(torch.uint8), levels[:10].to(torch.uint8), transform)
    model = sd.NetworkModel(sd.nets.MLP(3, 8, 1), transform.adapt(sd.VPSDE()), (3,))
    sd.fit(model, data, steps=1, out=tmp_path, progress=False, dequantization="normal")
    assert model.reference.detail == pytest.approx(transform.bin_width / 4)
    assert sd.load(tmp_path).reference.detail == model.reference.detail
    assert sd.GaussianReference.fit(data).detail == model.reference.detail
    assert model.reference.fingerprint() != dataclasses.replace(model.reference, detail=None).fingerprint()
    plain = dataclasses.replace(data, transform=sd.Transform(levels=5))
    assert sd.GaussianReference.fit(plain).detail is None


def test_a_senseless_detail():
    with pytest.raises(sd.ScoreSDEError, match="detail"):
        dataclasses.replace(ONE, detail=0.0)

"""log p against exact densities; Hutchinson; the parts; bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, image_mixture, marginal_sample, name, two_modes, z_limit

import scoresde as sd

TIGHT = sd.TorchDiffEq(rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("target", [correlated_mixture(2), correlated_mixture(16), image_mixture()], ids=["2", "16", "image"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_log_prob_is_exact(sde, target):
    """Within 1e-5 nats per dimension of the exact log p at t_min, with the exact log p at t_max as prior."""
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 16)
    r = sd.log_prob(model, x, solver=TIGHT, divergence="exact", prior=lambda z: model.log_prob(z, sde.t_max))
    assert (r.log_prob - model.log_prob(x, sde.t_min)).abs().max() < 1e-5 * x[0].numel()
    assert torch.equal(r.log_prob, r.prior + r.delta)
    assert (r.std_error == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_log_prob_is_exact_in_64_dimensions(sde):
    test_log_prob_is_exact(sde, correlated_mixture(64))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_prior_mismatch_is_the_whole_gap(sde):
    """With N(0, prior_std^2 I) as prior the error is log N - log p at t_max: small on the mean, and never hidden."""
    target = two_modes()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 32)
    r = sd.log_prob(model, x, solver=TIGHT, divergence="exact")
    gap = r.log_prob - model.log_prob(x, sde.t_min)
    mismatch = sde.prior_log_prob(r.latent) - model.log_prob(r.latent, sde.t_max)
    assert (gap - mismatch).abs().max() < 1e-6
    assert 1e-8 < gap.abs().max() < 0.1  # there is one, and this is its size in two dimensions


@pytest.mark.parametrize("solver", [sd.Euler(), sd.Heun(), sd.RK4()], ids=repr)
def test_fixed_step_solvers_converge_to_the_same_log_prob(solver):
    target, sde = two_modes(), sd.VPSDE(t_min=1e-3)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 16)
    exact = model.log_prob(x, sde.t_min)
    errors = []
    for steps in (100, 200):
        r = sd.log_prob(model, x, solver=solver, steps=steps, divergence="exact", prior=lambda z: model.log_prob(z, sde.t_max))
        errors.append(float((r.log_prob - exact).abs().median()))
        assert r.nfe == steps * {"Euler": 1, "Heun": 2, "RK4": 4}[type(solver).__name__]
    order = {"Euler": 1, "Heun": 2, "RK4": 4}[type(solver).__name__]
    assert math.log2(errors[0] / errors[1]) > order - 0.4


def test_hutchinson_is_unbiased_and_its_standard_error_is_right():
    """64 probes x 24 points on a correlated target. A bias of 5 standard errors on the mean would be seen with power 0.99."""
    target, sde = correlated_mixture(8), sd.VPSDE()
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 24)
    solver = sd.TorchDiffEq(rtol=1e-5, atol=1e-5)
    exact = sd.log_prob(model, x, solver=solver, divergence="exact")
    r = sd.log_prob(model, x, solver=solver, probes=64, seed=1)
    z = (r.delta - exact.delta) / r.std_error
    assert r.std_error.min() > 0.01  # the Jacobian is not diagonal: the probes do differ
    assert z.abs().max() < z_limit(len(x))
    assert abs(float(z.mean())) * math.sqrt(len(z)) < z_limit(1)
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5  # the reported error has the size of the error


def test_hutchinson_has_no_variance_for_a_diagonal_jacobian():
    target = sd.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.2, 0.5, 1.0]], dtype=torch.float64))
    model = sd.ExactModel(target, sd.VPSDE())
    x = target.sample(4)
    exact = sd.log_prob(model, x, divergence="exact").delta
    assert torch.allclose(sd.log_prob(model, x, divergence="hutchinson").delta, exact, rtol=1e-8)


def test_one_call_gives_value_and_divergence():
    model = sd.ExactModel(gaussian(3), sd.VPSDE())
    x = model.target.sample(5)
    with sd.count_evaluations(model) as calls:
        r = sd.log_prob(model, x, probes=2)
    assert (calls.forward, calls.vjp) == (r.nfe, r.vjp) == (r.nfe, 2 * r.nfe)
    with sd.count_evaluations(model) as calls:
        r = sd.log_prob(model, x, divergence="exact", solver=sd.Heun(), steps=5)
    assert (calls.forward, calls.vjp) == (r.nfe, r.vjp) == (10, 30)


def test_probes_belong_to_the_sample():
    model = sd.ExactModel(correlated_mixture(4), sd.VPSDE())
    x = model.target.sample(6)
    how = {"solver": sd.Heun(), "steps": 20, "divergence": "hutchinson"}
    whole = sd.log_prob(model, x, **how)
    part = sd.log_prob(model, x[[4, 1]], ids=[4, 1], **how)
    assert torch.allclose(part.log_prob, whole.log_prob[[4, 1]], rtol=0, atol=1e-9)
    other = sd.log_prob(model, x[[4, 1]], ids=[0, 1], **how)
    assert abs(float(other.log_prob[0] - whole.log_prob[4])) > 1e-3
    chunked = sd.log_prob(model, x, batch_size=2, **how)
    assert torch.allclose(chunked.log_prob, whole.log_prob, rtol=0, atol=1e-9)


def test_float32_is_accurate():
    target, sde = correlated_mixture(4), sd.VPSDE()
    exact = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_min, 16).float()
    model = sd.ExactModel(correlated_mixture(4).float(), sde)
    r = sd.log_prob(model, x, divergence="exact", prior=lambda z: model.log_prob(z, sde.t_max))
    assert r.latent.dtype == torch.float32
    assert (r.log_prob - exact.log_prob(x.double(), sde.t_min)).abs().max() < 5e-3


def test_global_rng_and_mode_are_untouched():
    net = sd.nets.MLP(2, width=16, depth=1, dropout=0.5)
    model = sd.NetworkModel(net, sd.VPSDE(), (2,)).train()
    state = torch.get_rng_state()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    first = sd.log_prob(model, x, solver=sd.Heun(), steps=5)
    second = sd.log_prob(model, x, solver=sd.Heun(), steps=5)
    assert torch.equal(first.log_prob, second.log_prob)  # no dropout
    assert model.training
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


class FlatDensity(sd.ScoreModel):
    """Stands for a density that is uniform on [-1, 1]^D as far as the ODE is concerned: velocity 0, divergence 0."""

    def __init__(self, sde, event_shape):
        super().__init__(sde, event_shape)
        self.register_buffer("kind", torch.zeros(1, dtype=torch.float64))

    def denoise(self, x, t, **cond):
        level = self.sde.level(t, x)
        b = level.sigma_dot / level.sigma  # velocity = b x + (alpha' - alpha b) x0 = 0
        return -b * x / (level.alpha_dot - level.alpha * b)


def test_bits_per_dim_of_the_uniform_density():
    """A uniform density over K levels costs log2 K bits: 8 for 256. The offset comes from the transform."""
    model = FlatDensity(sd.VPSDE(), (1, 4, 4))
    flat = lambda z: torch.full((len(z),), -16 * math.log(2.0), dtype=torch.float64)  # noqa: E731
    levels = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    b = sd.bits_per_dim(model, levels, sd.Transform(levels=256), prior=flat)
    assert b.mean == pytest.approx(8.0, abs=1e-9)
    levels = levels % 17
    b = sd.bits_per_dim(model, levels, sd.Transform(levels=17), prior=flat)
    assert b.mean == pytest.approx(math.log2(17), abs=1e-9)


def test_bits_per_dim_is_the_formula_and_invariant_under_the_range():
    """-log2 p of a Gaussian target in two ranges that are the same up to scale: the same bits."""
    levels = torch.randint(2, 14, (6, 3), generator=torch.Generator().manual_seed(0))
    bits = []
    for low, high in ((-1.0, 1.0), (-2.0, 2.0)):
        transform = sd.Transform(levels=16, low=low, high=high)
        scale = (high - low) / 2
        target = sd.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0.5 * scale], dtype=torch.float64))
        sde = sd.VESDE(sigma_min=1e-4 * scale, sigma_max=50 * scale)
        model = sd.ExactModel(target, sde)
        b = sd.bits_per_dim(model, levels, transform, divergence="exact", solver=TIGHT)
        x = transform.dequantize(levels, dtype=torch.float64)
        expected = -target.log_prob(x).mean() / (3 * math.log(2)) + math.log2(16 / (high - low))
        assert b.mean == pytest.approx(float(expected), abs=2e-3)  # the prior's mismatch in VE
        bits.append(b.mean)
    assert bits[0] == pytest.approx(bits[1], abs=1e-6)


def test_bits_per_dim_counts_and_averages():
    target = sd.GaussianMixture(torch.zeros(1, 3), torch.tensor([0.5]))
    model = sd.ExactModel(target, sd.VPSDE())
    levels = torch.randint(0, 16, (6, 3), generator=torch.Generator().manual_seed(0))
    transform = sd.Transform(levels=16)
    with sd.count_evaluations(model) as calls:
        b = sd.bits_per_dim(model, levels, transform, dequantizations=3, batch_size=4, solver=sd.Heun(), steps=9, check=4)
    assert b.nfe == 3 * 18  # of a sample, in all draws, however many batches
    assert calls.rows == 6 * b.nfe + 4 * b.check_nfe
    nats = sd.log_prob(model, torch.zeros(6, 3), batch_size=4, solver=sd.Heun(), steps=9, divergence="exact")
    assert (nats.nfe, nats.vjp) == (18, 54)
    assert sd.elbo(model, levels, transform, draws=5, batch_size=4).nfe == 6
    b = sd.bits_per_dim(model, levels, transform, dequantizations=3, batch_size=4)
    assert b.per_sample.shape == (6,)
    assert b.mean == pytest.approx(float(b.per_sample.mean()))
    assert b.std_error == pytest.approx(float(b.per_sample.std()) / math.sqrt(6))
    assert b.dequantization_std > 0
    again = sd.bits_per_dim(model, levels[[5]], transform, dequantizations=3, ids=[5])
    assert float(again.per_sample[0]) == pytest.approx(float(b.per_sample[5]), abs=1e-3)


def test_warns_where_sigma_min_blurs_the_levels():
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 3), torch.tensor([0.5])), sd.VESDE())
    levels = torch.randint(0, 256, (2, 3), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="half a bin"):
        sd.bits_per_dim(model, levels, sd.Transform(levels=256), solver=sd.Heun(), steps=5)

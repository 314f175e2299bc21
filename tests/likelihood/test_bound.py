"""The variational bound: equal to -log p for exact models, above the entropy for wrong ones, its parts against quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, name, z_limit

import scoresde as sd
from scoresde.core.noise import Noise
from scoresde.likelihood.bound_parts import Ends, bound_times, last_term, prior_term, reference_integral

ConfigError = sd.errors.ConfigError


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_bound_of_an_exact_model_is_log_p_of_the_data(sde, dim):
    """z of the mean difference over 400 points. Standard errors of 0.02 and 0.08 nats: a bias of 0.2 and 0.7 nats would be seen."""
    target = correlated_mixture(dim)
    model = sd.ExactModel(target, sde)
    x = target.sample(400, seed=2)
    r = sd.elbo(model, x, prior="reference", seed=1, batch_size=400)
    d = r.per_sample - target.log_prob(x)
    se = float(d.std()) / 20
    assert se < 0.006 * dim + 0.01
    assert abs(float(d.mean())) < z_limit(12) * se
    assert r.nfe == 17
    assert r.mean == pytest.approx(-(r.prior + r.diffusion + r.reconstruction))
    # without the reference it is the same mean, ten times as rough
    model.reference = None
    rough = sd.elbo(model, x, seed=1)
    d = rough.per_sample - target.log_prob(x)
    assert abs(float(d.mean())) < z_limit(12) * float(d.std()) / 20
    assert float(d.std()) / 20 > 4 * se


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_gaussian_data_have_no_variance(sde):
    """The difference from the reference is zero: what is left of the bound is log p, to the cut at t_min."""
    target = gaussian(4)
    model = sd.ExactModel(target, sde)
    x = target.sample(20)
    r = sd.elbo(model, x, draws=2, prior="reference")
    assert r.draw_std_error < 1e-6
    assert torch.allclose(r.per_sample, target.log_prob(x), rtol=0, atol=0.03)
    fine = type(sde)(t_min=1e-7) if hasattr(sde, "t_min") and "t_min" in type(sde).__dataclass_fields__ else sd.EDMSDE(sigma_min=1e-4)
    r = sd.elbo(sd.ExactModel(target, fine), x, draws=2, prior="reference")
    assert torch.allclose(r.per_sample, target.log_prob(x), rtol=0, atol=2e-2 if isinstance(sde, sd.VESDE) else 1e-3)


def test_the_closed_form_is_the_integral():
    model = sd.ExactModel(gaussian(3), sd.VPSDE())
    x, reference = model.target.sample(5), model.reference
    first, last = model.sde.levels([1e-5, 1.0])
    snr = torch.linspace(2 * math.log(last.alpha / last.sigma), 2 * math.log(first.alpha / first.sigma), 20_001, dtype=torch.float64)
    s2 = (-snr).exp()[:, None, None]
    c, r2 = reference.variance, reference.analyse(x - reference.mean).square()
    error = ((c.square() + s2 * r2) / (c + s2).square()).sum(-1)
    expected = 0.5 * torch.trapezoid(error, snr, dim=0)
    assert torch.allclose(reference_integral(x, Ends(first, last, reference, None)), expected, rtol=1e-6)
    none = reference_integral(x, Ends(first, last, None, None))
    assert torch.allclose(none, 0.5 * 3 * (snr[-1] - snr[0]).expand(5))


@pytest.mark.parametrize("known", [True, False])
def test_times_are_a_change_of_variables(known):
    model = sd.ExactModel(gaussian(3), sd.CosineSDE())
    first, last = model.sde.levels([1e-5, 0.999])
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t, slope = bound_times(model.sde, u, Ends(first, last, model.reference if known else None, None))
    snr = model.sde.log_snr(t)
    assert bool((t.diff() * (1 if known else -1) > 0).all())
    f = (-(snr / 4).square()).exp()  # of the log-SNR
    whole = 2 * math.sqrt(math.pi) * (math.erf(math.log(first.alpha / first.sigma) / 2) - math.erf(math.log(last.alpha / last.sigma) / 2))
    assert float((f * slope.abs()).mean()) == pytest.approx(whole, rel=1e-4)
    assert float(slope.min()) > 0


class Shrunk(sd.ScoreModel):
    """A wrong model: the exact one, its estimates a tenth too close to the mean."""

    def __init__(self, inner):
        super().__init__(inner.sde, inner.event_shape)
        self.inner, self.reference = inner, inner.reference

    def denoise(self, x, t, **cond):
        m = self.inner.reference.mean
        return m + 0.9 * (self.inner.denoise(x, t) - m)


def test_a_wrong_model_has_a_bound_above_the_entropy():
    target = correlated_mixture(4)
    sde = sd.VPSDE(t_min=1e-3)
    x = target.sample(400)
    right, wrong = (sd.elbo(m, x, prior="reference") for m in (sd.ExactModel(target, sde), Shrunk(sd.ExactModel(target, sde))))
    entropy = -float(target.log_prob(x).mean())
    assert -right.mean == pytest.approx(entropy, abs=0.15)
    assert -wrong.mean > entropy + 0.5


def test_errors_over_draws_are_those_of_repetition():
    """Against the spread of the mean over 40 seeds: never below it by more than its own 11 %, and at most twice it (strata help)."""
    model = sd.ExactModel(correlated_mixture(4), sd.VPSDE())
    x = model.target.sample(16)
    runs = [sd.elbo(model, x, draws=8, seed=s, check_scale=False) for s in range(40)]
    spread = float(torch.tensor([r.mean for r in runs]).std())
    reported = float(np.mean([r.draw_std_error for r in runs]))
    assert 0.75 * spread < reported < 2.5 * spread
    assert math.isnan(sd.elbo(model, x, draws=1).draw_std_error)


def test_levels_bound_the_discrete_data():
    """Above -log2 P(level) by quadrature, of which the dequantized bound is above by more; and bits are nats with the offset."""
    T = sd.Transform(levels=16)
    target = sd.GaussianMixture(torch.tensor([[-0.4], [0.5]]).double(), torch.tensor([0.25, 0.2]))
    model = sd.ExactModel(target, sd.VPSDE())
    levels = T.quantize(target.sample(600))
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    points = T.low + (levels.double() + u) * T.bin_width
    log_P = target.log_prob(points.view(-1, 1)).view(600, -1).logsumexp(1) - math.log(2000 / T.bin_width)
    truth = -log_P / math.log(2)
    t = float(model.sde.time_of_log_snr(torch.tensor(-2 * math.log(0.35 * T.bin_width), dtype=torch.float64)))
    discrete = sd.elbo(model, levels, T, reconstruction="levels", t_min=t, prior="reference")
    continuous = sd.elbo(model, levels, T, prior="reference")
    for r, least, most in ((discrete, -0.02, 0.3), (continuous, -0.03, 0.1)):
        d = r.per_sample - truth
        inner = (levels > 0).all(1) & (levels < 15).all(1)  # the outermost levels hold the tails as well
        assert least < float(d[inner].mean()) < most
    x = T.dequantize(levels, dtype=torch.float64)
    nats = sd.elbo(model, x, prior="reference")
    assert torch.allclose(continuous.per_sample, -nats.per_sample / math.log(2) + T.bits_offset)
    assert discrete.settings["dequantization"] == "none"
    with pytest.raises(ConfigError, match="do not mean the same"):
        sd.compare(discrete, continuous)


def test_the_bound_is_of_what_the_model_was_trained_for():
    """Atoms on the middles of 16 pairs of levels, 2 bits/dim: a model of "normal" dequantization has that as its bound, to 0.23, four
    standard errors of the draws. At dequantized points, which it knows nothing of, it is 6.4."""
    T, normal = sd.Transform(levels=16), sd.Transform(levels=16, dequantization="normal")
    pairs = torch.cartesian_prod(torch.arange(0, 16, 4), torch.arange(0, 16, 4))
    target = sd.GaussianMixture(T.center(pairs, torch.float64), torch.full((16,), 1e-6).double())
    model = sd.ExactModel(target, T.adapt(sd.VPSDE()))
    levels, how = pairs.repeat(12, 1), {"draws": 64, "prior": "reference"}
    density = sd.elbo(model, levels, T, **how)
    assert density.settings["reconstruction"] == "density"
    assert density.mean > 5
    model.transform = normal  # as ``fit`` leaves it; the transform that is given tells where the model has none
    bound = sd.elbo(model, levels, T, **how)
    assert (bound.settings["reconstruction"], bound.settings["dequantization"]) == ("levels", "none")
    assert bound.mean == pytest.approx(2.0, abs=0.23)
    assert torch.equal(sd.elbo(model, levels, T, reconstruction="levels", **how).per_sample, bound.per_sample)
    assert torch.equal(sd.elbo(model, levels, T, reconstruction="density", **how).per_sample, density.per_sample)
    assert sd.elbo(model, T.center(levels, torch.float64)).settings["reconstruction"] == "density"
    model.transform = None
    assert torch.equal(sd.elbo(model, levels, normal, **how).per_sample, bound.per_sample)


def test_beside_the_value_of_the_ode():
    """For an exact model bound and value agree; their comparison is refused all the same, and the gap is plain arithmetic."""
    target, T = correlated_mixture(3), sd.Transform(levels=64, low=-3.0, high=3.0)
    model = sd.ExactModel(target, sd.VPSDE())
    levels = T.quantize(target.sample(300))
    bound, value = sd.elbo(model, levels, T), sd.bits_per_dim(model, levels, T, divergence="exact", steps=20, check=0)
    gap = bound.per_sample - value.per_sample
    assert abs(float(gap.mean())) < z_limit(1) * float(gap.std()) / 300**0.5
    assert bound.settings["data"] == value.settings["data"]
    with pytest.raises(ConfigError, match="bound: 'variational' against None"):
        sd.compare(bound, value)
    assert "KL at t_max" in str(bound.report())
    assert "bits/dim (300 samples)" in str(bound)


def test_a_sample_is_its_own():
    model = sd.ExactModel(correlated_mixture(3), sd.VPSDE())
    x = model.target.sample(6)
    whole = sd.elbo(model, x, draws=4)
    part = sd.elbo(model, x[[4, 1]], draws=4, ids=[4, 1], batch_size=1)
    assert torch.allclose(part.per_sample, whole.per_sample[[4, 1]], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws = 0"),
        ({"prior": "flat"}, "prior = 'flat'"),
        ({"reconstruction": "levels"}, "'levels' for integers"),
        ({"t_min": 2.0}, "t_min = 2.0, expected from 1e-05"),
    ],
)
def test_wrong_arguments(arguments, message):
    model = sd.ExactModel(gaussian(3), sd.VPSDE())
    with pytest.raises(ConfigError, match=message):
        sd.elbo(model, model.target.sample(2), **arguments)
    with pytest.raises(ConfigError, match="integer levels need their transform"):
        sd.elbo(model, torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("known", [True, False])
def test_the_prior_part_is_the_divergence_of_normals(known):
    model = sd.ExactModel(gaussian(3), sd.EDMSDE(sigma_max=2.0))
    first, last = model.sde.levels([0.002, 2.0])
    x, m = model.target.sample(4), model.reference
    covariance = last.alpha**2 * m.basis @ m.variance.diag() @ m.basis.mT + last.sigma**2 * torch.eye(3).double()
    normal = torch.distributions.MultivariateNormal
    q = normal(last.alpha * x, last.sigma**2 * torch.eye(3).double())
    p = normal(last.alpha * m.mean, covariance) if known else normal(torch.zeros(3).double(), last.sigma**2 * torch.eye(3).double())
    expected = torch.distributions.kl_divergence(q, p)
    assert torch.allclose(prior_term(x, Ends(first, last, m, m if known else None)), expected, rtol=1e-9)


def test_the_outermost_levels_hold_the_tails():
    """-log of the normal's mass in the bin, which for the first and the last level reaches to infinity."""

    class Constant(sd.ScoreModel):
        def denoise(self, x, t, **cond):
            return torch.full_like(x, self.value)

    T = sd.Transform(levels=4)
    model = Constant(sd.EDMSDE(sigma_min=0.2), (2,))
    ends = Ends(*model.sde.levels([0.2, 80.0]), None, None)
    noise = Noise(0, np.arange(4), (2,), torch.float64)
    levels = torch.arange(4)[:, None].expand(4, 2)
    x = T.center(levels, torch.float64)
    edges = torch.tensor([-math.inf, -0.5, 0.0, 0.5, math.inf], dtype=torch.float64)
    for value in (-3.0, 0.1, 0.9, 6.0):
        model.value = value
        mass = torch.special.ndtr((edges - value) / 0.2).diff()
        found = last_term(model, x, ends, noise, T)
        sure = mass > 1e-9
        assert torch.allclose(found[sure], -2 * mass[sure].log(), rtol=1e-5, atol=1e-9)
        assert found.isfinite().all()

"""What a network predicts: every parameterization of an exact model is the exact model."""

from __future__ import annotations

import math

import pytest
import torch
from models.cases import NAMES, Exact, by_name, states, target, times
from torch import nn

import scoresde as sd
from scoresde import parameterization as P


@by_name
@pytest.mark.parametrize("name", NAMES)
def test_every_parameterization_of_an_exact_model_is_the_exact_model(sde, name):
    """x0 to 1e-12 of its scale, eps to 1e-12 of it, given what the network returns to float64's last digits.

    What rounding costs by itself is allowed: x0 = (x - sigma eps)/alpha loses a factor sigma/alpha, eps = (x - alpha x0)/sigma
    one of 1/sigma, of which (1 - alpha c_skip)/sigma cannot know better.
    """
    exact = sd.ExactModel(target(), sde)
    model = sd.NetworkModel(Exact(target(), name, sde), sde, (3,), name)
    for t in times(sde):
        x = states(sde, t)
        level = sde.levels([t])[0]
        s = level.sigma / level.alpha
        (x0, eps), (x0_exact, eps_exact) = model.predict(x, t), exact.predict(x, t)
        tolerance = 1e-12 + 1e-14 * s
        assert float((x0 - x0_exact).abs().max()) <= tolerance * max(1.0, float(x0_exact.abs().max()))
        tolerance = 1e-12 + 1e-15 / level.sigma
        assert float((eps - eps_exact).abs().max()) <= tolerance * max(1.0, float(eps_exact.abs().max()))


@by_name
def test_parameterizations_agree_with_one_another(sde):
    """At moderate noise, where none of them is ill-conditioned, all six are one model to 1e-12, score and velocity too."""
    models = [sd.NetworkModel(Exact(target(), name, sde), sde, (3,), name) for name in NAMES]
    t = float(sde.time_of_log_snr(0.5))
    x = states(sde, t)
    for quantity in ("denoise", "eps", "score", "velocity"):
        values = [getattr(model, quantity)(x, t) for model in models]
        for value in values[1:]:
            assert torch.allclose(value, values[0], rtol=1e-12, atol=1e-12 * float(values[0].abs().max())), quantity


def test_coefficients_of_the_papers():
    alpha, sigma = 0.6, 0.8
    assert P.v(alpha, sigma) == (pytest.approx(0.6), pytest.approx(-0.8))
    assert P.eps(alpha, sigma) == (pytest.approx(1 / 0.6), pytest.approx(-0.8 / 0.6))
    assert P.score(alpha, sigma) == (pytest.approx(1 / 0.6), pytest.approx(0.64 / 0.6))
    assert P.x0(alpha, sigma) == (0.0, 1.0)
    s = 2.5  # EDM's own: alpha = 1
    assert P.edm(1.0, s) == (pytest.approx(0.25 / (s**2 + 0.25)), pytest.approx(s * 0.5 / math.sqrt(s**2 + 0.25)))
    assert P.EDM()(1.0, s)[2] == pytest.approx(1 / math.sqrt(s**2 + 0.25))
    assert P.Scaled()(alpha, sigma)[2] == pytest.approx(1.0)
    for f in (P.x0, P.v, P.edm):  # finite at alpha = 0
        assert all(math.isfinite(c) for c in f(0.0, 1.0))
    assert P.velocity(0.3, 0.7, -1.0, 1.0) == (pytest.approx(1.0), pytest.approx(-0.7))  # x0 = x - t F, whatever t
    for name in NAMES:  # tensors and floats alike
        f, level = getattr(P, name), [alpha, sigma, -1.5, 0.7] if name == "velocity" else [alpha, sigma]
        pairs = zip(f(*level), f(*torch.tensor(level, dtype=torch.float64)), strict=True)
        assert all(float(b) == pytest.approx(a, rel=1e-14) for a, b in pairs)


def test_a_function_is_a_parameterization():
    def doubled(alpha, sigma):
        return 0 * alpha, 0 * alpha + 2

    class Half(nn.Module):
        def forward(self, x, c_noise):
            return torch.ones_like(x)

    model = sd.NetworkModel(Half(), sd.VPSDE(), (2,), doubled)
    assert torch.equal(model.denoise(torch.randn(3, 2), 0.5), torch.full((3, 2), 2.0))


@by_name
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_data_of_another_size(sde, scale):
    """A network sees inputs of unit variance; the exact network of the scaled target is that of the target, scaled."""
    inputs = []

    class Spy(nn.Module):
        def forward(self, x, c_noise):
            inputs.append(x)
            return torch.zeros_like(x)

    x0 = scale * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    for given in (P.EDM(scale), P.Scaled("v", scale), P.Scaled("velocity", scale), P.Scaled("x0", scale), lambda a, s: (0 * a, 1.0, (a**2 * scale**2 + s**2) ** -0.5)):
        model = sd.NetworkModel(Spy(), sde, (2,), given)
        for t in (sde.t_min, 0.4, sde.t_max):
            model.denoise(sde.perturb(x0, t, eps), t)
            assert float(inputs[-1].std()) == pytest.approx(1, rel=0.03)
    ours = P.EDM(scale)(0.6, 0.8)
    s = 0.8 / 0.6  # 2206.00364, table 1
    assert ours[0] * 0.6 == pytest.approx(scale**2 / (s**2 + scale**2))
    assert ours[1] == pytest.approx(s * scale / (s**2 + scale**2) ** 0.5)


def test_a_flow_matching_network_is_its_own_velocity():
    """eps - x0 under rectified flow; under the name v it would be another model."""
    sde, mixture = sd.RectifiedFlow(), target()

    class Flow(nn.Module):
        def forward(self, x_in, c_noise):
            t = sde.time_of_log_snr(-8 * c_noise.double()).clamp(sde.t_min, sde.t_max)[:, None]
            x0, eps = mixture.posterior(x_in, 1 - t, t)
            return eps - x0

    def of_x(alpha, sigma):
        return 1.0, -sigma, 1.0  # the paper's network sees x itself

    exact = sd.ExactModel(mixture, sde)
    x = states(sde, 0.4)
    model = sd.NetworkModel(Flow(), sde, (3,), of_x)
    assert torch.allclose(model.velocity(x, 0.4), exact.velocity(x, 0.4), rtol=1e-10, atol=1e-10)
    assert torch.allclose(model.score(x, 0.4), exact.score(x, 0.4), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("given", ["velocity", P.EDM(5.0), P.Scaled("eps", 3.5), P.Scaled("velocity", 0.1)], ids=str)
def test_they_are_saved_by_name(given, tmp_path):
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,), given)
    sd.save(model, tmp_path)
    again = sd.load(tmp_path)
    assert again.parameterization == model.parameterization
    with pytest.raises(sd.errors.CheckpointMismatch, match="parameterization"):
        sd.load(tmp_path, parameterization="v")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: P.EDM(0.0), "sigma_data = 0.0"),
        (lambda: P.Scaled("edm", 2.0), r"give EDM\(2.0\)"),
        (lambda: P.Scaled("vv"), "parameterization = 'vv'"),
        (lambda: P.named("flow"), "did you mean 'velocity', as it is called here"),
        (lambda: P.named("v_prediction"), "did you mean 'v'"),
        (lambda: sd.NetworkModel(sd.nets.MLP(2), sd.VPSDE(), (2,), lambda a, s: 1.0), "your parameterization gave 1.0"),
        (lambda: sd.NetworkModel(sd.nets.MLP(2), sd.VPSDE(), (2,), lambda a, s: a / 0), "your parameterization raised ZeroDivisionError"),
    ],
)
def test_bad_ones_are_refused(make, message):
    with pytest.raises(sd.errors.ConfigError, match=message):
        make()

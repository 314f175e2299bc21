"""One-step methods: each is the formula of its paper, and those that are one are equal."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import CLOSED, SDES, name, slope, two_modes
from sampling.cases import by_sde

import scoresde as sd
from scoresde.core.streams import STEP


@by_sde
def test_ddim_is_exact_in_one_step_for_dirac_data(sde):
    """One step from anywhere to anywhere against a fine Runge-Kutta path of the ODE: 1e-9 of the scale."""
    target = sd.GaussianMixture(torch.tensor([[0.7, -1.3]], dtype=torch.float64), torch.tensor([1e-8], dtype=torch.float64))
    model = sd.ExactModel(target, sde)
    t, s = (5.0, 0.5) if isinstance(sde, sd.EDMSDE) else (0.8, 0.3)
    x = sde.perturb(target.sample(6), t, torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    one = sd.sample(model, x_init=x, times=[t, s], solver=sd.DDIM())
    fine = sd.sample(model, x_init=x, times=torch.linspace(t, s, 401, dtype=torch.float64), solver=sd.RK4())
    assert float((one - fine).abs().max()) <= 1e-8 * float(x.abs().max())
    many = sd.sample(model, x_init=x, times=torch.linspace(t, s, 8, dtype=torch.float64), solver=sd.DDIM())
    assert float((one - many).abs().max()) <= 1e-12 * float(x.abs().max())


@by_sde
def test_ddim_is_the_exponential_euler_method(sde):
    """x_s = (sigma_s/sigma_t) x - alpha_s (e^-h - 1) x0 with h = lambda_s - lambda_t (2206.00927, eq. 3.7)."""
    model = sd.ExactModel(two_modes(), sde)
    times = sd.grid.log_snr(sde, 12)
    alpha, sigma = CLOSED[name(sde)][:2]
    x = y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sde.prior_std
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = (alpha(s) / sigma(s)).log() - (alpha(t) / sigma(t)).log()
        y = sigma(s) / sigma(t) * y - alpha(s) * torch.expm1(-h) * model.denoise(y, t)
    found = sd.sample(model, x_init=x, times=times, solver=sd.DDIM())
    assert float((found - y).abs().max()) <= 1e-12 * max(1.0, float(x.abs().max()))


@by_sde
def test_equivalent_solvers(sde):
    """The same draws, and the same samples to rounding."""
    model = sd.ExactModel(two_modes(), sde)
    kw = {"times": sd.grid.log_snr(sde, 12), "seed": 5, "batch_size": 7}
    scale = sde.prior_std
    pairs = [
        (sd.DDIM(eta=1.0), sd.Ancestral(), 1e-12),
        (sd.EulerMaruyama(eta=0.0), sd.Euler(), 1e-12),
        (sd.TorchDiffEq("euler"), sd.Euler(), 1e-12),
        (sd.TorchDiffEq("heun2"), sd.Heun(), 1e-12),
        (sd.TorchSDE("euler"), sd.EulerMaruyama(), 1e-12),
        (sd.TorchSDE("euler", eta=0.4), sd.EulerMaruyama(eta=0.4), 1e-12),
        (sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(steps=0)), sd.Ancestral(), 0.0),
    ]
    for a, b, tolerance in pairs:
        x, y = sd.sample(model, 7, solver=a, **kw), sd.sample(model, 7, solver=b, **kw)
        assert float((x - y).abs().max()) <= tolerance * max(1.0, scale) * 10, (a, b)
    assert float((sd.sample(model, 7, solver=sd.DDIM(eta=0.9), **kw) - sd.sample(model, 7, solver=sd.Ancestral(), **kw)).abs().max()) > 1e-3


@by_sde
def test_ancestral_and_reverse_diffusion_differ_at_second_order(sde):
    """Without noise, one step of each from the same state: the gap falls as the square of the step."""
    model = sd.ExactModel(two_modes(), sde)
    t = 3.0 if isinstance(sde, sd.EDMSDE) else 0.5
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * float(sde.sigma(t))
    gaps = []
    noise_of = lambda stream=STEP: torch.zeros_like(x)
    for h in (0.004, 0.002, 0.001):
        a, b = sde.levels([t, t - h * t])
        one, _ = sd.Ancestral().step(model, x, a, b, None, noise_of)
        two, _ = sd.ReverseDiffusion().step(model, x, a, b, None, noise_of)
        gaps.append(float((one - two).norm()))
    if isinstance(sde, (sd.VESDE, sd.EDMSDE)):  # alpha = 1: one and the same mean
        assert max(gaps) < 1e-13 * float(x.norm())
        return
    assert math.log2(gaps[1] / gaps[2]) == pytest.approx(2, abs=0.05)
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.DDIM(eta=0.5), sd.Ancestral()], ids=repr)
@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.SubVPSDE(), sd.CosineSDE(), sd.RectifiedFlow()], ids=name)
def test_every_sde_is_edm_seen_through_x_over_alpha(sde, solver):
    """x/alpha at noise level sigma/alpha: the transitions of all SDEs are those of alpha = 1 (M12)."""
    times = sd.grid.log_snr(sde, 15)
    s = (-sde.log_snr(times) / 2).exp()
    edm = sd.EDMSDE(sigma_min=float(s[-1]) * 0.999, sigma_max=float(s[0]) * 1.001)
    model, other = sd.ExactModel(two_modes(), sde), sd.ExactModel(two_modes(), edm)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sde.prior_std
    found = sd.sample(model, x_init=x, times=times, solver=solver) / float(sde.alpha(float(times[-1])))
    # sigma/alpha is t of EDM; x_init/alpha is large, and float64 keeps 1e-16 of it
    expected = sd.sample(other, x_init=x / float(sde.alpha(float(times[0]))), times=s, solver=solver)
    assert float((found - expected).abs().max()) <= 1e-10


@by_sde
def test_there_and_back_again(sde):
    """The ODE from t_max to t_min and back, by log_prob's own solve: ten times the tolerance, of the scale at t_max."""
    model, tolerance = sd.ExactModel(two_modes(), sde), 1e-8
    solver = sd.TorchDiffEq("dopri5", tolerance, tolerance)
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sde.prior_std
    x = sd.sample(model, x_init=start, solver=solver, t_end=sde.t_min)
    back = sd.log_prob(model, x, solver=solver, divergence="exact").latent
    # an error at t_min grows on the way to t_max by d x_T/d x_eps: sigma(t_max)/std of the data there
    assert float((back - start).abs().max()) <= 10 * tolerance * max(1.0, sde.prior_std) / 0.3


# ---- Euler-Maruyama, against the equation itself


def order_grid(sde):
    return sd.grid.karras if isinstance(sde, sd.EDMSDE) else sd.grid.uniform


def linear_moments(sde, c, solver_coefficients, times):
    """Variance of a linear scheme x_s = a x + b z on centred Gaussian data of variance c, started at the exact variance."""
    t0 = float(times[0])
    variance = float(sde.alpha(t0) ** 2 * c + sde.sigma(t0) ** 2)
    levels = sde.levels(times)
    for t, s in pairwise(levels):
        a, b2 = solver_coefficients(t, s, c)
        variance = a**2 * variance + b2
    return variance


def euler_maruyama_coefficients(t, s, c):
    """dx = [f x - g^2 score] dt + g dw with the score -x/(alpha^2 c + sigma^2): written from the SDE, not from our solver."""
    h = s - t
    return 1 + h * (t.f + t.g2 / (t.alpha**2 * c + t.sigma**2)), t.g2 * abs(h)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weak_order_of_euler_maruyama(sde):
    """Variance error by exact moment recursion: slope at least 0.9, 1 within 0.1 where no symmetry helps."""
    c, steps, found = 0.3, [640, 1280], []
    for n in steps:
        times = order_grid(sde)(sde, n)
        end = float(times[-1])
        exact = float(sde.alpha(end) ** 2 * c + sde.sigma(end) ** 2)
        found.append(abs(linear_moments(sde, c, euler_maruyama_coefficients, times) - exact))
    order = slope(steps, found)
    assert order >= 0.9
    if not isinstance(sde, (sd.VESDE, sd.RectifiedFlow)):  # those superconverge on a centred Gaussian
        assert order == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_euler_maruyama_is_the_scheme_of_the_recursion(sde):
    """One step of the solver is a x + b z with the a and b of the recursion, so its weak order is the one measured."""
    c = 0.3
    target = sd.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([math.sqrt(c)], dtype=torch.float64))
    model = sd.ExactModel(target, sde)
    times = order_grid(sde)(sde, 20)[10:12]
    x = torch.tensor([[0.7, -1.2], [0.0, 0.0]], dtype=torch.float64)
    y = sd.sample(model, x_init=x, times=times, solver=sd.EulerMaruyama(), seed=3)
    t, s = sde.levels(times)
    a, b2 = euler_maruyama_coefficients(t, s, c)
    z = sd.noise.Noise(3, sd.noise.check_ids(None, 2), (2,), torch.float64).normal(sd.noise.STEP, 0)
    assert torch.allclose(y, a * x + math.sqrt(b2) * z, rtol=1e-10, atol=1e-12)

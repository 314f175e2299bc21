"""A toy of everything that a user may add, put through the checks that the built-in ones go through. Nothing is registered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import marginal_sample, reference_path, slope, two_modes
from torch import nn

import scoresde as sd
from scoresde import loss, metrics

# ---- an SDE: a frozen dataclass, by either pair of functions


@dataclass(frozen=True)
class Trigonometric(sd.SDE):
    """By alpha and sigma: alpha = cos^2, sigma = sin, which is none of the six."""

    t_max: float = 1.5

    def alpha(self, t):
        return torch.cos(t) ** 2

    def sigma(self, t):
        return torch.sin(t)


@dataclass(frozen=True)
class Ramp(sd.SDE):
    """By its coefficients: dx = -(a + t) x dt + sqrt(2 (a + t)) dw, of which x_t has alpha = exp(-(a t + t^2/2)), VP otherwise."""

    a: float = 0.2
    t_max: float = 3.0
    t_end: float | None = 1e-3

    def drift_coefficient(self, t):
        return -(self.a + t)

    def diffusion(self, t):
        return (2 * (self.a + t)).sqrt()


@dataclass(frozen=True)
class Blurred(sd.SDE):
    """By its coefficients, from data that are blurred already: sigma(0) = 0.05."""

    sigma_0: float = 0.05
    t_max: float = 30.0

    def drift_coefficient(self, t):
        return 0.0

    def diffusion(self, t):
        return (2 * t).sqrt()


OWN_SDES = [Trigonometric(), Ramp(), Blurred()]
by_sde = pytest.mark.parametrize("sde", OWN_SDES, ids=lambda s: type(s).__name__)


@by_sde
def test_an_sde_of_ones_own_is_consistent(sde):
    assert sd.check_sde(sde) == []
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    if isinstance(sde, Ramp):
        alpha = (-(0.2 * t + t**2 / 2)).exp()
        assert torch.allclose(sde.alpha(t), alpha, rtol=1e-9)
        assert torch.allclose(sde.sigma(t), (1 - alpha**2).sqrt(), rtol=1e-6)
    if isinstance(sde, Blurred):
        assert torch.allclose(sde.sigma(t), (0.05**2 + t**2).sqrt(), rtol=1e-9)
    # as a configuration it is a value
    assert eval(repr(sde)) == sde


@pytest.mark.slow
@by_sde
def test_an_sde_of_ones_own_works_with_everything(sde):
    target = two_modes()
    model = sd.ExactModel(target, sde)
    # the score
    t = 0.4 * sde.t_max
    x = marginal_sample(target, sde, t, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
    assert torch.allclose(model.score(x.detach(), t), gradient, rtol=1e-9)
    # log p, exact but for the tolerance
    x = marginal_sample(target, sde, sde.t_min, 8)
    solver = sd.TorchDiffEq("dopri5", 1e-8, 1e-8)
    found = sd.log_prob(model, x, solver=solver, divergence="exact", prior=lambda y: model.log_prob(y, sde.t_max))
    assert torch.allclose(found.log_prob, model.log_prob(x, sde.t_min), atol=2e-5)
    # every solver, and the law of what it draws
    exact = target.sample(8_000)
    floor = metrics.noise_floor(exact, 500, splits=2).mean
    for solver, steps in (
        (sd.Heun(), 40),
        (sd.RK4(), 30),
        (sd.DDIM(), 80),
        (sd.Ancestral(), 120),
        (sd.ReverseDiffusion(), 120),
        (sd.EulerMaruyama(), 200),
        (sd.PredictorCorrector(corrector=sd.Langevin(snr=0.02)), 100),
        (sd.TorchDiffEq(), None),
        (sd.TorchSDE("srk"), 80),
    ):
        times = None if steps is None else sd.grid.log_snr(sde, steps)
        y = sd.sample(model, 500, solver=solver, times=times, batch_size=500)
        assert metrics.sliced_wasserstein(y, exact) < 3 * floor, solver
    for grid in (sd.grid.uniform, sd.grid.quadratic, sd.grid.karras, sd.grid.log_snr):
        times = grid(sde, 6)
        assert bool((times.diff() < 0).all())
        assert bool(sd.sample(model, 3, times=times).isfinite().all())


@by_sde
def test_every_time_sampling_is_of_its_density(sde):
    """The integral of 1 over [t_min, t_max] as the mean of 1/density, on a fine stratified u: to 1 %."""
    u = loss.stratify(torch.full((4096,), 0.5))
    for name in ("uniform", "stratified", "importance"):
        t, density = loss.sample_times(name, sde, u)
        assert bool((density > 0).all())
        assert float(t.min()) >= sde.t_min
        assert float(t.max()) <= sde.t_max
        weight = loss.likelihood(sde, t) * t  # something smooth, that is small where densities are
        exact = loss.likelihood(sde, s := torch.linspace(sde.t_min, sde.t_max, 200_001, dtype=torch.float64)) * s
        integral = float(torch.trapezoid(exact, s))
        assert float((weight / density).mean()) == pytest.approx(integral, rel=0.01), name


def test_training_under_an_sde_of_ones_own(tmp_path):
    model = sd.NetworkModel(sd.nets.MLP(2, width=16, depth=1), Trigonometric(), (2,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    history = sd.fit(model, two_modes().sample(64).float(), steps=5, batch_size=16, log_every=5, out=tmp_path, progress=False)
    assert math.isfinite(history.loss[-1])
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(sd.ScoreSDEError, match=r"give yours, load\(path, sde=\.\.\.\)"):
        sd.load(tmp_path)
    again = sd.load(tmp_path, sde=Trigonometric())
    x = torch.randn(3, 2)
    assert torch.equal(again.score(x, 0.5), model.score(x, 0.5))


# ---- a parameterization: a function


def noise_to_signal(alpha, sigma):
    """F = x0 - x/(alpha + sigma): x0 = x/(alpha + sigma) + F."""
    return 1 / (alpha + sigma), 0 * alpha + 1


def test_a_parameterization_of_ones_own():
    sde, target = sd.SubVPSDE(), two_modes()
    exact = sd.ExactModel(target, sde)

    class Exact(nn.Module):
        def forward(self, x_in, c_noise):
            t = sde.time_of_log_snr(-8 * c_noise).clamp(sde.t_min, sde.t_max)
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            x = x_in * (alpha**2 + sigma**2).sqrt()
            return target.posterior(x, alpha, sigma)[0] - x / (alpha + sigma)

    model = sd.NetworkModel(Exact(), sde, (2,), noise_to_signal).double()
    model.register_buffer("dtype_of", torch.zeros(1, dtype=torch.float64))
    for t in (0.05, 0.5, torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)):
        x = marginal_sample(target, sde, 0.4, 3)
        for quantity in ("denoise", "eps", "score", "velocity"):
            a, b = getattr(model, quantity)(x, t), getattr(exact, quantity)(x, t)
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11 * float(b.abs().max())), quantity
    times = sd.grid.log_snr(sde, 9)  # DDIM's own grid depends on the scale of the data, which this model was not told
    x = sd.sample(model, 5, solver=sd.DDIM(), times=times, batch_size=5)
    assert torch.allclose(x, sd.sample(exact, 5, solver=sd.DDIM(), times=times, batch_size=5), rtol=1e-8)


# ---- a network: any nn.Module with forward(x, c_noise, **cond)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, c_noise, shift=None):
        h = self.inner(torch.cat([x, c_noise[:, None], c_noise[:, None] ** 2], 1))
        return h if shift is None else h + shift


def test_a_network_of_ones_own(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sd.NetworkModel(Tiny(), sd.VPSDE(), (2,), "eps")
    data = two_modes().sample(256).float()
    history = sd.fit(model, data, steps=60, batch_size=64, lr=1e-2, log_every=20, out=tmp_path, progress=False)
    assert history.loss[-1] < history.loss[0]
    shift = torch.full((4, 2), 0.5)
    plain, shifted = (sd.sample(model, 4, steps=5, **cond) for cond in ({}, {"shift": shift}))
    assert float((plain - shifted).abs().max()) > 1e-2
    assert torch.isfinite(sd.log_prob(model, data[:4], solver=sd.Heun(), steps=10, shift=shift).log_prob).all()
    again = sd.load(tmp_path, net=Tiny())
    assert torch.equal(sd.sample(again, 4, steps=5), plain)


# ---- a foreign model: denoise


class Shrinkage(sd.ScoreModel):
    """The exact answer for N(0, 1/4): E[x_0 | x] = alpha x / (alpha^2 + 4 sigma^2)."""

    def __init__(self, sde):
        super().__init__(sde, (2,))

    def denoise(self, x, t, **cond):
        level = self.sde.level(t, x)
        return level.alpha / (level.alpha**2 + 4 * level.sigma**2) * x


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.EDMSDE(), Trigonometric()], ids=lambda s: type(s).__name__)
def test_a_foreign_model(sde):
    model = Shrinkage(sde)
    exact = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2).double(), torch.full((1,), 0.5).double()), sde)
    x = marginal_sample(exact.target, sde, 0.5, 6)
    for t in (0.5, torch.full((6,), 0.5, dtype=torch.float64)):
        for quantity in ("denoise", "eps", "score", "velocity"):
            a, b = getattr(model, quantity)(x, t), getattr(exact, quantity)(x, t)
            assert torch.allclose(a, b, rtol=1e-9), quantity
    a, b = (sd.log_prob(m, x, divergence="exact").log_prob for m in (model, exact))
    assert torch.allclose(a, b, atol=1e-3)
    with sd.count_evaluations(model) as calls:
        y = sd.sample(model, x_init=x, solver=sd.Heun(), steps=7, batch_size=6)
    assert calls.forward == 14
    assert torch.allclose(y, sd.sample(exact, x_init=x, solver=sd.Heun(), steps=7, batch_size=6), rtol=1e-7)


# ---- a solver: step, and init if it plans or remembers


@dataclass(frozen=True)
class Midpoint(sd.Solver):
    """Order 2, two calls a step, no plan."""

    def step(self, model: Any, x, t, s, state, noise):
        middle = (t + s) / 2
        return x + (s - t) * model.velocity(x + (middle - t) * model.velocity(x, t), middle), state


@dataclass(frozen=True)
class AdamsBashforth(sd.Solver):
    """Order 2, one call a step: it plans its coefficients and remembers a velocity."""

    def init(self, model, x, times):
        steps = [s - t for t, s in zip(times[:-1], times[1:], strict=True)]
        ratios = [0.0] + [b / a for a, b in zip(steps[:-1], steps[1:], strict=True)]
        return {"plan": dict(zip(map(float, times[:-1]), zip(steps, ratios, strict=True), strict=True)), "last": None}

    def step(self, model, x, t, s, state, noise):
        (h, r), v = state["plan"][float(t)], model.velocity(x, t)
        last = v if state["last"] is None else state["last"]
        return x + h * ((1 + r / 2) * v - r / 2 * last), {**state, "last": v}


class Duck:
    """No base class: it does not say what is asked of a solver."""

    def step(self, model, x, t, s, state, noise):
        return x + (s - t) * model.velocity(x, t), state

    def __repr__(self):
        return "Duck()"


@dataclass(frozen=True)
class NoisyEuler(sd.Solver):
    """With noise of a stream of its own."""

    stream: int = 77

    def step(self, model, x, t, s, state, noise):
        score = model.score(x, t)
        h = t - s
        return x - h * (t.f * x - t.g2 * score) + math.sqrt(t.g2 * h) * noise(self.stream), state


OWN_SOLVERS = [Midpoint(), AdamsBashforth(), NoisyEuler()]


def test_a_solver_is_a_subclass():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    for use in (lambda: sd.sample(model, 2, solver=Duck(), steps=2), lambda: sd.Picard(Duck()), lambda: sd.PredictorCorrector(Duck())):
        with pytest.raises(sd.errors.ConfigError, match=r"= Duck\(\), expected a solver.*a subclass of scoresde.Solver"):
            use()


@pytest.mark.parametrize("solver", OWN_SOLVERS, ids=repr)
def test_a_solver_of_ones_own_goes_through_the_checks(solver):
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    draw = lambda n, **kw: sd.sample(model, n, solver=solver, steps=6, batch_size=4, **kw)
    whole = draw(11)
    assert torch.equal(draw(3), whole[:3])
    assert torch.equal(draw(3, ids=[10, 4, 4]), whole[[10, 4, 4]])
    path = list(sd.trajectory(model, 4, solver=solver, steps=6))
    assert torch.equal(path[-1][2], whole[:4])
    calls_due = {"Midpoint": 2}.get(type(solver).__name__, 1)
    with sd.count_evaluations(model) as calls:
        draw(4)
    assert calls.forward == 6 * calls_due
    for sde in (sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow(), *OWN_SDES):
        assert bool(sd.sample(sd.ExactModel(two_modes(), sde), 3, solver=solver, steps=5).isfinite().all())
    with pytest.raises(sd.errors.SolverError, match="not finite"):
        sd.sample(sd.NetworkModel(Spoiled(), sd.VPSDE(), (2,)), 3, solver=solver, steps=5)
    # as a predictor
    pc = sd.PredictorCorrector(predictor=solver, corrector=sd.Langevin(snr=0.05))
    assert bool(sd.sample(model, 3, solver=pc, steps=5).isfinite().all())


class Spoiled(nn.Module):
    def forward(self, x, c_noise):
        return x * math.nan


@pytest.mark.parametrize(("solver", "order"), [(Midpoint(), 2), (AdamsBashforth(), 2)], ids=repr)
def test_a_solver_of_ones_own_has_its_order(solver, order):
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = marginal_sample(model.target, model.sde, 1.0, 32)
    exact = reference_path(model, x, sd.grid.uniform(model.sde, 2))
    errors = [float((sd.sample(model, x_init=x, solver=solver, steps=n, batch_size=32) - exact).norm(dim=1).median()) for n in (320, 640)]
    assert slope([320, 640], errors) == pytest.approx(order, abs=0.1)
    # and log_prob takes it
    x = marginal_sample(model.target, model.sde, 1e-5, 4)
    found = sd.log_prob(model, x, solver=solver, steps=400, divergence="exact", prior=lambda y: model.log_prob(y, 1.0)).log_prob
    assert torch.allclose(found, model.log_prob(x, 1e-5), atol=0.15 if order == 1 else 0.02)


# ---- a corrector, a grid, a weighting, a density of times, a metric: functions


@dataclass(frozen=True)
class OneLangevinStep(sd.Corrector):
    """A corrector: correct(model, x, t, noise)."""

    h: float = 0.01

    def correct(self, model, x, t, noise):
        h = self.h * t.sigma**2
        return x + h * model.score(x, t) + math.sqrt(2 * h) * noise(1 << 40)


def test_a_corrector_of_ones_own():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    solver = sd.PredictorCorrector(sd.Ancestral(), OneLangevinStep())
    x = sd.sample(model, 2000, solver=solver, steps=100, batch_size=2000)
    exact = two_modes().sample(20_000)
    assert metrics.sliced_wasserstein(x, exact) < 3 * metrics.noise_floor(exact, 2000, splits=2).mean
    assert torch.equal(sd.sample(model, 5, solver=solver, steps=9, batch_size=5, ids=[4, 3, 2, 1, 0]).flip(0), sd.sample(model, 5, solver=solver, steps=9, batch_size=5))


def cubic(sde, n, start=None, end=None):
    """Equal steps in t^(1/3)."""
    start, end = start or sde.t_max, end or sde.t_end or sde.t_min
    return torch.linspace(start ** (1 / 3), end ** (1 / 3), n + 1, dtype=torch.float64) ** 3


def test_a_grid_of_ones_own():
    for sde in (sd.VPSDE(), sd.EDMSDE(), Ramp()):
        model = sd.ExactModel(two_modes(), sde)
        times = cubic(sde, 12).clamp(sde.t_min, sde.t_max)
        path = list(sd.trajectory(model, 3, times=times, solver=sd.DDIM()))
        assert [p[1] for p in path] == times.tolist()
        assert bool(path[-1][2].isfinite().all())


def test_a_weighting_and_a_density_of_times_of_ones_own():
    def weighting(sde, t):
        return sde.sigma(t) ** 2

    def times(sde, u):
        t = sde.t_min + (sde.t_max - sde.t_min) * u.sqrt()  # density 2 (t - t_min)/(t_max - t_min)^2
        return t, 2 * (t - sde.t_min) / (sde.t_max - sde.t_min) ** 2

    assert loss.resolve_weighting(weighting) is weighting
    assert loss.resolve_times(times) is times
    sde = sd.CosineSDE()
    t, density = loss.sample_times(times, sde, loss.stratify(torch.full((4096,), 0.5)))
    assert float((weighting(sde, t) / density).mean()) == pytest.approx(loss.total_weight(weighting, sde), rel=0.01)
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sde, (2,))
    history = sd.fit(model, torch.randn(32, 2), steps=4, batch_size=8, weighting=weighting, times=times, log_every=2, progress=False)
    assert all(math.isfinite(v) for v in history.loss)
    # a loss of zero noise error is zero, whatever the weight
    exact = sd.ExactModel(sd.GaussianMixture(torch.full((1, 2), 0.3).double(), torch.full((1,), 1e-9).double()), sde)
    x0, eps = torch.full((6, 2), 0.3).double(), torch.randn(6, 2).double()
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    assert float(loss.denoising_loss(exact, x0, t, eps, weighting(sde, t)).abs().max()) < 1e-12


def test_a_metric_of_ones_own():
    """A metric is a function of two sets of samples: nothing knows of it but its caller."""

    def energy_distance(x, y):
        d = lambda a, b: torch.cdist(a.double(), b.double()).mean()
        return float(2 * d(x, y) - d(x, x) - d(y, y))

    exact = two_modes().sample(2000)
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    scores = {steps: energy_distance(sd.sample(model, 1000, solver=sd.DDIM(), steps=steps, batch_size=1000), exact) for steps in (3, 50)}
    assert scores[50] < scores[3]

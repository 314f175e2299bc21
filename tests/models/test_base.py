"""Score models: all that follows from one method, and the checks around it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from models.cases import NAMES, Exact, Linear, Net, by_name, states, target, times
from torch import nn

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ScoreSDEError, ShapeError, TimeRangeError
from scoresde.models.base import inference


@by_name
def test_derived_quantities(sde):
    model = sd.ExactModel(target(), sde)
    for t in times(sde):
        x, level = states(sde, t), sde.levels([t])[0]
        x0, eps = model.predict(x, t)
        assert torch.equal(model.denoise(x, t), x0)
        assert torch.equal(model.forward(x, t), x0)
        assert torch.equal(model.eps(x, t), eps)
        score = model.score(x, t)
        assert torch.allclose(score, -eps / level.sigma, rtol=1e-12)
        # velocity = f x - g^2/2 score, from the closed pair; both terms may be large where they cancel
        drift, noise = sde.drift(x, t), 0.5 * sde.diffusion(t) ** 2 * score
        scale = float(drift.abs().max() + noise.abs().max())
        assert torch.allclose(model.velocity(x, t), drift - noise, rtol=0, atol=1e-12 * scale)
        assert torch.allclose(model.velocity(x, t), level.alpha_dot * x0 + level.sigma_dot * eps, rtol=1e-12)


class DenoiseOnly(sd.ScoreModel):
    """A foreign model that gives E[x_0 | x] alone; the mixture is the truth."""

    def __init__(self, mixture, sde):
        super().__init__(sde, mixture.event_shape)
        self.mixture = mixture

    def denoise(self, x, t, **cond):
        level = self.sde.level(t, x)
        return self.mixture.posterior(x, level.alpha, level.sigma)[0]


@by_name
def test_a_foreign_model_needs_denoise_alone(sde):
    foreign, exact = DenoiseOnly(target(), sde), sd.ExactModel(target(), sde)
    for t in times(sde):
        x, level = states(sde, t), sde.levels([t])[0]
        # eps = (x - alpha x0)/sigma loses digits where sigma is small: 1e-16/sigma
        tolerance = 1e-12 + 2e-15 * (1 + float(x.abs().max())) / level.sigma
        for quantity in ("denoise", "eps"):
            a, b = getattr(foreign, quantity)(x, t), getattr(exact, quantity)(x, t)
            assert torch.allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max()))), quantity
        a, b = foreign.velocity(x, t), exact.velocity(x, t)
        assert torch.allclose(a, b, rtol=0, atol=tolerance * (1 + abs(level.sigma_dot) + abs(level.alpha_dot)))
    x0, eps = foreign.predict(x, t)
    assert x0.shape == eps.shape == x.shape


@pytest.mark.parametrize("t_max", [0.999, 0.999999, 1 - 1e-7])
@pytest.mark.parametrize("cls", [sd.CosineSDE, sd.RectifiedFlow])
@pytest.mark.parametrize("name", ["x0", "v", "edm"])
def test_velocity_is_finite_where_alpha_is_tiny(cls, name, t_max):
    """f and g^2 go to infinity there, alpha' x0 + sigma' eps does not; and it stays accurate."""
    sde = cls(t_max=t_max)
    model = sd.NetworkModel(Exact(target(), name, sde), sde, (3,), name)
    exact = sd.ExactModel(target(), sde)
    x = states(sde, t_max)
    velocity = model.velocity(x, t_max)
    slope = math.pi / 2 if cls is sd.CosineSDE else 1.0
    mean = (target().log_weights.exp()[:, None] * target().means).sum(0)
    # alpha -> 0: E[x_0 | x] -> E[x_0], E[eps | x] -> x
    assert torch.allclose(velocity, exact.velocity(x, t_max), rtol=1e-9)
    limit = -slope * mean + (x if cls is sd.RectifiedFlow else 0 * x)
    assert torch.allclose(velocity, limit.expand_as(velocity), atol=20 * (1 - t_max) + 1e-9)


@by_name
@pytest.mark.parametrize("name", [*NAMES, "foreign"])
def test_one_time_a_sample_or_one_for_all(sde, name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, dtype=torch.float64), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, c_noise):
            return self.inner(x) * c_noise.view(-1, 1, 1, 1)

    mixture = target((3, 2, 2))
    model = DenoiseOnly(mixture, sde) if name == "foreign" else sd.NetworkModel(Net(), sde, (3, 2, 2), name)
    t = torch.tensor([sde.t_min, 0.05, 0.5, sde.t_max], dtype=torch.float64)
    x = torch.cat([states(sde, float(s), 1, (3, 2, 2)) for s in t])
    for quantity in ("denoise", "eps", "score", "velocity"):
        function = getattr(model, quantity)
        both = function(x, t)
        for i, s in enumerate(t.tolist()):
            one = function(x[i : i + 1], s)[0].detach()
            # where eps = (x - alpha x0)/sigma is all there is, rounding costs 1/sigma, and once more in the score
            sigma = float(sde.sigma(s))
            tolerance = (1e-10 + 1e-15 / sigma) * (1 + float(one.abs().max())) / (sigma if quantity == "score" else 1.0)
            assert torch.allclose(both[i], one, rtol=0, atol=tolerance), (quantity, s)
            # a float, a tensor () and a Level are the same time
            assert torch.equal(function(x[i : i + 1], torch.tensor(s, dtype=torch.float64))[0], one)
            assert torch.equal(function(x[i : i + 1], sde.levels([s])[0])[0], one)


def test_dtype_follows_x():
    for dtype in (torch.float32, torch.float64):
        model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1).to(dtype), sd.VPSDE(), (2,))
        x = torch.randn(3, 2, dtype=dtype)
        for t in (0.5, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)):
            for quantity in ("denoise", "eps", "score", "velocity"):
                assert getattr(model, quantity)(x, t).dtype == dtype
            assert all(part.dtype == dtype for part in model.predict(x, t))


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.w = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))

        def forward(self, x, c_noise):
            return torch.tanh(x @ self.w) + torch.sin(c_noise)[:, None]

    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,), name)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for quantity in ("denoise", "score", "velocity"):
        for time in (0.3, t):
            function = getattr(model, quantity)
            assert torch.autograd.gradcheck(lambda y, f=function, time=time: f(y, time), (x,), nondet_tol=0)
            assert torch.autograd.gradgradcheck(lambda y, f=function, time=time: f(y, time), (x,), nondet_tol=0)
    # to the weights
    weight = model.net.w
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(model, {"net.w": w}, (x, 0.3)), (weight,), nondet_tol=0)


def test_under_other_gradient_modes():
    """Likelihoods and latents need gradients or buffers inside, whatever is outside: the same, also to tensors of these modes."""
    transform = sd.Transform(levels=4)
    levels = torch.randint(0, 4, (3, 2))
    net = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    for model, x in ((net, torch.randn(3, 2)), (sd.ExactModel(target((2,)), sd.VPSDE()), torch.randn(3, 2, dtype=torch.float64))):
        model.reference = model.reference or sd.GaussianReference(torch.zeros(2), torch.ones(()), "isotropic")
        calls = {
            "log_prob": lambda m=model, x=x: sd.log_prob(m, x + 0, seed=1).log_prob,
            "check": lambda m=model, x=x: sd.log_prob(m, x + 0, steps=4, check=3).discretization,
            "cut": lambda m=model, x=x: sd.log_prob(m, x + 0, steps=4, check=2).cut[:2],
            "velocity": lambda m=model, x=x: sd.log_prob(m, x + 0, solver=sd.Heun(), steps=4, check=2).log_prob,
            "bits_per_dim": lambda m=model: sd.bits_per_dim(m, levels + 0, transform, steps=4).per_sample,
            "elbo": lambda m=model: sd.elbo(m, levels + 0, transform).per_sample,
            "encode": lambda m=model, x=x: sd.encode(m, x + 0, steps=4),
            "encode by Heun": lambda m=model, x=x: sd.encode(m, x + 0, solver=sd.Heun(), steps=4),
            "interpolate": lambda m=model, x=x: sd.interpolate(m, x + 0, x.flip(0), 3, steps=4),
            "round trip": lambda m=model, x=x: sd.round_trip_error(m, x + 0, steps=4),
            "gradient": lambda m=model, x=x: sd.log_prob_gradient(m, x + 0, steps=4)[1],
            "while sampling": lambda m=model: sd.sample(m, 3, steps=4, return_log_prob=True)[1],
        }
        for name, call in calls.items():
            expected = call()
            for mode in (torch.no_grad, torch.inference_mode):
                with mode():
                    found = call()
                    assert not torch.is_grad_enabled()
                assert torch.allclose(found, expected, rtol=1e-9, equal_nan=True), (name, mode)
                assert not found.requires_grad


def test_models_and_levels_can_be_copied():
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    x = torch.randn(3, 2)
    with sd.count_evaluations(model) as calls:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.score(x, 0.5), model.score(x, 0.5))
    assert calls.forward == 2  # a copy is another model
    (level,) = model.sde.levels([0.3])
    for other in (copy.deepcopy(level), copy.copy(level), pickle.loads(pickle.dumps(level))):
        assert (float(other), other.alpha, other.sigma, other.f, other.g2) == (0.3, level.alpha, level.sigma, level.f, level.g2)


def test_inference_nests():
    model = Net().train()
    with inference(model):
        assert not model.training
        with inference(model, grad=True):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
        assert not model.training
    assert model.training


def net_model(**kwargs):
    return sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,), **kwargs)


@pytest.mark.parametrize("quantity", ["denoise", "predict", "eps", "score", "velocity"])
def test_bad_states_and_times(quantity):
    for model in (net_model(), sd.ExactModel(target((2,), torch.float32), sd.VPSDE())):
        function = getattr(model, quantity)
        x = torch.zeros(3, 2)
        for bad in (torch.zeros(3, 3), torch.zeros(2), torch.zeros(3, 1, 2), torch.zeros(())):
            with pytest.raises(ShapeError, match=r"x has shape .*expected"):
                function(bad, 0.5)
        for t in (torch.full((3, 1), 0.5), torch.full((2,), 0.5), torch.full((1,), 0.5)):
            with pytest.raises(ShapeError, match=r"t has shape"):
                function(x, t)
        for t in (0.0, 1.01, -1.0, torch.tensor([0.5, 0.5, 2.0])):
            with pytest.raises(TimeRangeError, match=r"\[t_min, t_max\] = \[1e-05, 1\]"):
                function(x, t)
        for t in (math.nan, torch.tensor([0.5, math.nan, 0.5])):
            with pytest.raises(NonFiniteError, match="t holds NaN"):
                function(x, t)
        for kind in (torch.int64, torch.uint8, torch.bool, torch.complex64):
            with pytest.raises(DTypeError, match=str(kind)):
                function(torch.zeros(3, 2).to(kind), 0.5)
        for bad in (None, [[0.0, 0.0]], 1.0):
            with pytest.raises(DTypeError, match=type(bad).__name__):
                function(bad, 0.5)
        for t in (None, "a"):
            with pytest.raises(ScoreSDEError, match="t = "):
                function(x, t)


def test_dtypes_that_do_not_match_the_network():
    with pytest.raises(DTypeError, match=r"float64.*float32"):
        net_model().score(torch.zeros(3, 2, dtype=torch.float64), 0.5)
    plain = sd.NetworkModel(Linear(), sd.VPSDE(), (2,))
    with pytest.raises(DTypeError, match=r"float64.*float32"):
        plain.score(torch.zeros(3, 2, dtype=torch.float64), 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sd.NetworkModel(nn.Identity, sd.VPSDE(), (2,)), "torch.nn.Module"),
        (lambda: sd.NetworkModel(lambda x, c: x, sd.VPSDE(), (2,)), "torch.nn.Module"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE, (2,)), "instance of an SDE"),
        (lambda: sd.NetworkModel(nn.Identity(), "vp", (2,)), "instance of an SDE"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), ()), "event_shape"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), (0,)), "event_shape"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), (2.5,)), "event_shape"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), 2), "event_shape"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), "ab"), "event_shape"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), (2,), "epsilon"), "did you mean 'eps'"),
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), (2,), None), "x0, eps, score, v, velocity, edm"),
    ],
)
def test_bad_models(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_model_that_defines_nothing():
    with pytest.raises(ConfigError, match=r"Nothing defines neither denoise\(x, t, \*\*cond\) nor predict"):

        class Nothing(sd.ScoreModel):
            pass


def test_a_subclass_of_a_subclass_keeps_its_checks():
    class Halved(DenoiseOnly):
        def denoise(self, x, t, **cond):
            return 0.5 * parent.denoise(x, t)

    model, parent = Halved(target(), sd.VPSDE()), DenoiseOnly(target(), sd.VPSDE())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(model.denoise(x, 0.5), 0.5 * parent.denoise(x, 0.5))
    with pytest.raises(ShapeError):
        model.denoise(x[0], 0.5)

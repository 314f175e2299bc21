"""Score models: five parameterizations of one exact model, the derived quantities, conditions, modes, counts and errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import scoresde as sd
from scoresde import parameterization as P
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ScoreSDEError, ShapeError, TimeRangeError
from scoresde.models.base import inference
from scoresde.models.conditions import slice_cond
from scoresde.models.views import Conditioned

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]
by_name = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
NAMES = ("x0", "eps", "score", "v", "edm")


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
        }[self.name]()

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


# ---- parameterizations


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
    """At moderate noise, where none of them is ill-conditioned, all five are one model to 1e-12, score and velocity too."""
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
    assert P.input_scale(P.edm, 1.0, s) == pytest.approx(1 / math.sqrt(s**2 + 0.25))
    assert P.input_scale(P.v, alpha, sigma) == pytest.approx(1.0)
    for f in (P.x0, P.v, P.edm):  # finite at alpha = 0
        assert all(math.isfinite(c) for c in f(0.0, 1.0))
    for name in NAMES:  # tensors and floats alike
        f = getattr(P, name)
        pairs = zip(f(alpha, sigma), f(*torch.tensor([alpha, sigma], dtype=torch.float64)), strict=True)
        assert all(float(b) == pytest.approx(a, rel=1e-14) for a, b in pairs)


@by_name
@pytest.mark.parametrize("name", NAMES)
def test_the_network_sees_unit_variance_and_quarter_log_noise(sde, name):
    seen = {}

    class Probe(nn.Module):
        def forward(self, x, c_noise):
            seen.update(x=x, c_noise=c_noise)
            return torch.zeros_like(x)

    model = sd.NetworkModel(Probe(), sde, (3,), name)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = 0.5 if name == "edm" else 1.0
    t = torch.tensor([sde.t_min, 0.05, 0.5, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for time, rows in ((t, slice(None)), (0.5, 2)):
        model.denoise(x, time)
        a, s = alpha[rows], sigma[rows]
        scale = (a**2 * data**2 + s**2).rsqrt()
        assert torch.allclose(seen["x"], x * (scale[:, None] if scale.ndim else scale), rtol=1e-12)
        assert seen["c_noise"].shape == (4,)
        assert torch.allclose(seen["c_noise"], ((s / a).log() / 4).expand(4), rtol=1e-12)


def test_a_function_is_a_parameterization():
    def doubled(alpha, sigma):
        return 0 * alpha, 0 * alpha + 2

    class Half(nn.Module):
        def forward(self, x, c_noise):
            return torch.ones_like(x)

    model = sd.NetworkModel(Half(), sd.VPSDE(), (2,), doubled)
    assert torch.equal(model.denoise(torch.randn(3, 2), 0.5), torch.full((3, 2), 2.0))


# ---- derived quantities


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


@pytest.mark.parametrize("t_max", [0.999, 0.999999, 1 - 1e-12])
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


# ---- gradients


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


# ---- conditions


class Labelled(nn.Module):
    """Answers with its conditions, and remembers them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, c_noise, label=None, scale=1.0):
        self.seen.append((label, scale))
        return torch.zeros_like(x) if label is None else scale * label.to(x.dtype).view(-1, *[1] * (x.ndim - 1)).expand_as(x)


def test_conditions_reach_the_network():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    x, label = torch.zeros(3, 2), torch.tensor([1, 2, 3])
    expected = label[:, None].expand(3, 2).float()
    for function in (model.denoise, model.forward, model, lambda *a, **k: model.predict(*a, **k)[0]):
        assert torch.equal(function(x, 0.5, label=label), expected)
    for t in (0.5, torch.full((3,), 0.5)):
        alpha, sigma = float(model.sde.alpha(0.5)), float(model.sde.sigma(0.5))
        assert torch.allclose(model.eps(x, t, label=label, scale=2.0), -2 * alpha / sigma * expected)
        assert torch.allclose(model.score(x, t, label=label), alpha / sigma**2 * expected)
        model.velocity(x, t, label=label, scale=7.0)
        assert model.net.seen[-1] == (label, 7.0)


def test_conditions_reach_the_network_from_sample_and_log_prob():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    label = torch.arange(5)
    for solver in (sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchDiffEq(), sd.TorchSDE()):
        # data that are the label itself: the sample must find its own, in batches, padded, and whatever the order
        x = sd.sample(model, 5, solver=solver, steps=4, batch_size=2, denoise=True, label=label)
        assert torch.equal(x, label[:, None].expand(5, 2).float())
        x = sd.sample(model, 2, solver=solver, steps=4, denoise=True, ids=[1, 0], label=label[:2], scale=2.0)
        assert torch.equal(x, 2.0 * label[:2, None].expand(2, 2))
    for *_, x0 in sd.trajectory(model, 5, steps=2, label=label):
        assert torch.equal(x0, label[:, None].expand(5, 2).float())
    # log_prob: three samples in batches of two, one of them alone with its own label
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1, classes=5), sd.VPSDE(), (2,))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    whole = sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact", batch_size=2, label=label).log_prob
    for i in range(3):
        one = sd.log_prob(model, x[i : i + 1], solver=sd.Heun(), steps=8, divergence="exact", label=label[i : i + 1]).log_prob
        assert float(one) == pytest.approx(float(whole[i]), abs=1e-4)
    assert float((whole - sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact").log_prob).abs().min()) > 1e-3


def test_conditions_of_the_wrong_length():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    with pytest.raises(ShapeError, match=r"'label' has shape \(4,\) for 5 samples"):
        sd.sample(model, 5, steps=2, label=torch.arange(4))


def test_slice_cond():
    cond = {"label": torch.arange(4), "shared": torch.tensor(3.0), "one": torch.zeros(1, 2), "text": "a"}
    cut = slice_cond(cond, lambda v: v[:2], 4)
    assert cut["label"].tolist() == [0, 1]
    assert cut["shared"] is cond["shared"]
    assert cut["one"] is cond["one"]
    assert cut["text"] == "a"


# ---- modes


def noisy_net():
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = noisy_net()
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x, c_noise):
        return self.frozen(self.inner(x))


@pytest.mark.parametrize("fails", [False, True])
def test_the_mode_is_given_back(fails):
    net = Net()
    model = sd.NetworkModel(net, sd.VPSDE(), (2,))
    before = {name: module.training for name, module in model.named_modules()}
    assert not before["net.frozen"]
    stats = net.inner[1].running_mean.clone()
    x = torch.randn(4, 2)
    if fails:
        net.inner[1].register_forward_hook(lambda *_: torch.full((4, 2), math.nan))
    for call in (
        lambda: sd.sample(model, 4, steps=3),
        lambda: list(sd.trajectory(model, 4, steps=3)),
        lambda: sd.log_prob(model, x, solver=sd.Heun(), steps=3),
    ):
        if fails:
            with pytest.raises(ScoreSDEError):
                call()
        else:
            call()
        assert {name: module.training for name, module in model.named_modules()} == before
        assert torch.equal(net.inner[1].running_mean, stats)
        assert torch.is_grad_enabled()
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_evaluation_mode_is_used():
    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,))
    model.train()
    a, b = sd.sample(model, 4, steps=5), sd.sample(model, 4, steps=5)
    assert torch.equal(a, b)
    assert not a.requires_grad
    modes = [[m.training for m in model.modules()] for _, _, _, _ in sd.trajectory(model, 2, steps=2)]
    assert all(mode == modes[0] and mode[0] for mode in modes)  # while the user has the stage, it is as it was


def test_under_other_gradient_modes():
    """log_prob needs gradients, sampling none: both answer the same under no_grad and inference_mode, also to tensors of these."""
    net = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    for model, x in ((net, torch.randn(3, 2)), (sd.ExactModel(target((2,)), sd.VPSDE()), torch.randn(3, 2, dtype=torch.float64))):
        expected = sd.log_prob(model, x, seed=1)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found = sd.log_prob(model, x + 0, seed=1)
                assert not torch.is_grad_enabled()
            assert torch.allclose(found.log_prob, expected.log_prob, rtol=1e-9)
            assert not found.log_prob.requires_grad


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


# ---- counting


def test_counts():
    model = sd.ExactModel(target(), sd.VPSDE())
    x = torch.randn(4, 3, dtype=torch.float64)
    with sd.count_evaluations(model) as outer:
        model.score(x, 0.5)
        with sd.count_evaluations(model) as inner:
            model.predict(x, 0.5)
            model.velocity(x, 0.5)
        model.denoise(x, torch.full((4,), 0.5))
    model.eps(x, 0.5)
    assert (outer.forward, inner.forward, outer.vjp) == (4, 2, 0)
    with pytest.raises(ZeroDivisionError), sd.count_evaluations(model) as calls:
        model.eps(x, 0.5)
        raise ZeroDivisionError
    model.eps(x, 0.5)
    assert calls.forward == 1
    assert model._calls == []
    # two at once that look alike are told apart
    with sd.count_evaluations(model) as a, sd.count_evaluations(model) as b:
        assert a == b
    with sd.count_evaluations(model) as c:
        model.eps(x, 0.5)
    assert (a.forward, b.forward, c.forward) == (0, 0, 1)


def test_counts_are_of_the_network():
    """One network call for each derived quantity, counted at the network itself."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x, c_noise):
            Counting.calls += 1
            return x

    for make in (lambda: sd.NetworkModel(Counting(), sd.VPSDE(), (2,)),):
        model = make()
        x = torch.randn(3, 2)
        for quantity in ("denoise", "predict", "eps", "score", "velocity"):
            Counting.calls = 0
            with sd.count_evaluations(model) as calls:
                getattr(model, quantity)(x, 0.5)
            assert calls.forward == Counting.calls == 1
        Counting.calls = 0
        with sd.count_evaluations(model) as calls:
            r = sd.log_prob(model, x, solver=sd.Heun(), steps=3, probes=2)
            sd.sample(model, 3, solver=sd.PredictorCorrector(), steps=3, denoise=True)
        assert calls.forward == Counting.calls
        assert (r.nfe, r.vjp) == (6, 12)
        assert calls.forward == 6 + 7
        Counting.calls = 0
        bound = Conditioned(model, {})
        with sd.count_evaluations(model) as calls, sd.count_evaluations(bound) as also:
            bound.score(x, 0.5)
        assert calls.forward == also.forward == Counting.calls == 1


# ---- errors


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


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x, c_noise):
        return self.inner(x)


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x[:, :1], r"\(3, 1\).*\(3, 2\)"),
        (lambda x: x[0], r"\(2,\).*\(3, 2\)"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.numpy(), "ndarray"),
    ],
)
@pytest.mark.parametrize("quantity", ["denoise", "predict", "score", "velocity"])
def test_networks_that_answer_something_else(answer, message, quantity):
    model = sd.NetworkModel(Answers(answer), sd.VPSDE(), (2,))
    with pytest.raises(ShapeError, match=message):
        getattr(model, quantity)(torch.zeros(3, 2), 0.5)

    class Foreign(sd.ScoreModel):
        def denoise(self, x, t, **cond):
            return answer(x)

    with pytest.raises(ShapeError, match=message):
        getattr(Foreign(sd.VPSDE(), (2,)), quantity)(torch.zeros(3, 2), 0.5)


def test_errors_of_the_network_itself_pass_through():
    model = sd.NetworkModel(Answers(lambda x: x @ torch.zeros(3, 3)), sd.VPSDE(), (2,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.score(torch.zeros(3, 2), 0.5)
    with pytest.raises(ConfigError, match="'label' is no option of this function, and the model takes no condition"):
        net = Linear()
        sd.NetworkModel(net, sd.VPSDE(), (2,)).score(torch.zeros(3, 2), 0.5, label=torch.arange(3))


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
        (lambda: sd.NetworkModel(nn.Identity(), sd.VPSDE(), (2,), None), "x0, eps, score, v, edm"),
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
            return 0.5 * self._own_denoise_of_parent(x, t)

        def _own_denoise_of_parent(self, x, t):
            return DenoiseOnly._own_denoise(self, x, t)

    model, parent = Halved(target(), sd.VPSDE()), DenoiseOnly(target(), sd.VPSDE())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(model.denoise(x, 0.5), 0.5 * parent.denoise(x, 0.5))
    with pytest.raises(ShapeError):
        model.denoise(x[0], 0.5)

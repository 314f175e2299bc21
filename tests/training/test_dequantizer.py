"""A dequantizer is trained on the whole bound, and the gap to -log2 P(k) closes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import SDES, correlated_mixture, name, z_limit

import scoresde as sd
from scoresde.core.noise import Noise
from scoresde.likelihood.bound_parts import Ends
from scoresde.likelihood.dequantize import Uniform
from scoresde.likelihood.variational import BinFlow, VariationalDequantizer
from scoresde.training.dequantizer import bound_by_one_call, fit_dequantizer
from scoresde.training.loss import stratify

E = sd.errors
T4 = sd.Transform(levels=4)


def narrow() -> sd.ExactModel:
    """One dimension; both components lie within one bin each of four levels (0.5), off its middle."""
    means, stds = torch.tensor([[-0.4], [0.3]]).double(), torch.tensor([0.08, 0.06]).double()
    return sd.ExactModel(sd.GaussianMixture(means, stds, torch.tensor([0.6, 0.4])), sd.VPSDE())


def diagonal() -> sd.ExactModel:
    """Two dimensions, correlated within a bin: a Gaussian along the diagonal, of eigenvalues 0.115 and 0.005."""
    c = torch.tensor([[0.06, 0.055], [0.055, 0.06]]).double()
    return sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2).double(), c[None]), sd.VPSDE())


def data(model: sd.ExactModel, n: int, seed: int = 0) -> torch.Tensor:
    return T4.quantize(model.target.sample(n, seed=seed))


def truth(model: sd.ExactModel, levels: torch.Tensor) -> torch.Tensor:
    """-log2 P(k)/D of each sample, the exact p at t_min integrated over the bins by the midpoint rule."""
    D, n = levels.shape[1], 64
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    cell = torch.stack(torch.meshgrid(*[middles] * D, indexing="ij"), -1).view(-1, D)
    cells, index = torch.unique(levels, dim=0, return_inverse=True)
    p = [model.log_prob(T4.low + (k + cell) * T4.bin_width, model.sde.t_min).exp().mean() for k in cells]
    return -(torch.stack(p) * T4.bin_width**D).log2()[index] / D


def log_ratios(model: sd.ExactModel, q: sd.dequantize.Dequantizer, levels: torch.Tensor, draws: int) -> torch.Tensor:
    """log2 p(x) - log2 q(x|k) with the exact p, bits per dimension, (draws, B)."""
    rows = np.arange(len(levels))
    found = [q.draw(levels, model, 7, rows, j) for j in range(draws)]
    return torch.stack([model.log_prob(x, model.sde.t_min) - log_q for x, log_q in found]) / (levels.shape[1] * math.log(2))


def iw(ratios: torch.Tensor, k: int, D: int) -> float:
    """The bound by the log of the mean of k draws, the mean over as many groups of them as there are."""
    groups = ratios[: len(ratios) // k * k].view(-1, k, ratios.shape[1]) * (D * math.log(2))
    return -float((groups.logsumexp(1) - math.log(k)).mean()) / (D * math.log(2))


@pytest.fixture(scope="module")
def fitted() -> VariationalDequantizer:
    model = narrow()
    return fit_dequantizer(model, data(model, 400), T4, steps=200, batch_size=64, width=16, progress=False)


def test_the_gap_of_uniform_noise_closes(fitted):
    """One dimension, 300 unseen samples, 24 draws. Uniform noise is several bits above the truth; what is left is at least 0, to 4
    standard errors, and less than a tenth of that. By importance weighting, 4 draws do more than 12 uniform ones."""
    model = narrow()
    levels = data(model, 300, seed=1)
    P = float(truth(model, levels).mean())
    uniform, variational = (log_ratios(model, q, levels, 24) for q in (Uniform(T4), fitted))
    gap, left = -float(uniform.mean()) - P, -float(variational.mean()) - P
    se = float(variational.std(0).square().mean().sqrt()) / (24 * 300) ** 0.5
    assert gap > 2
    assert se < 0.015
    assert -4 * se < left < 0.1 * gap
    assert abs(iw(variational, 4, 1) - P) < 0.5 * (iw(uniform, 12, 1) - P)
    assert fitted.history[0] == pytest.approx(gap + P, rel=0.5)  # starts from uniform noise, by noisy estimates of a few batches
    assert float(np.mean(fitted.history[-20:])) == pytest.approx(left + P, abs=0.2)


@pytest.mark.slow
def test_couplings_follow_what_is_correlated_within_a_bin():
    """Two dimensions: a factorised q leaves the correlation within a bin, a q with couplings less than a third of that."""
    model = diagonal()
    train, levels = data(model, 400), data(model, 300, seed=1)
    P = float(truth(model, levels).mean())
    gap = -float(log_ratios(model, Uniform(T4), levels, 24).mean()) - P
    left = []
    for couplings in (0, 2):
        q = fit_dequantizer(model, train, T4, steps=250, batch_size=64, width=16, couplings=couplings, progress=False)
        ratios = log_ratios(model, q, levels, 24)
        left.append(-float(ratios.mean()) - P)
        se = float(ratios.std(0).square().mean().sqrt()) / (24 * 300) ** 0.5
        assert left[-1] > -4 * se
    assert left[0] < gap / 4
    assert left[1] < left[0] / 3


@pytest.mark.slow
def test_bits_per_dim_takes_it(fitted):
    """Through the ODE, with an exact trace and prior: the mean over the same draws, no cut, no comparison with others."""
    model = narrow()
    levels = data(model, 60, seed=1)
    solver = sd.AdaptiveODE(rtol=1e-4, atol=1e-4)
    how = {"divergence": "exact", "solver": solver, "prior": lambda z: model.log_prob(z, 1.0), "check": 4}
    b = sd.bits_per_dim(model, levels, dequantization=fitted, seed=7, **how)
    assert b.mean == pytest.approx(-float(log_ratios(model, fitted, levels, 1).mean()), abs=0.005)
    assert b.settings["dequantization"] == fitted.name == f"variational {fitted.fingerprint}"
    assert b.report().term("cut") == 0
    other = VariationalDequantizer(T4, BinFlow((1,), 4, width=16))
    for kind in ("uniform", other):
        with pytest.raises(E.ConfigError, match="dequantization: 'variational"):
            sd.compare(b, sd.bits_per_dim(model, levels[:4], T4, dequantization=kind, **how))


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_objective_and_its_gradient_are_those_of_the_whole_bound(sde, reference):
    """Exact model, one point 16,000 times: the mean of the estimates is -log p, that of their gradients minus the score, to the cut
    at t_min. With a reference the standard errors are 0.014 nats, and 0.05 of a score of 3.8 and 1.6; ten times that without."""
    target = correlated_mixture(2)
    model = sd.ExactModel(target, sde)
    point = torch.tensor([[0.4, -0.3]]).double()
    exact = point.clone().requires_grad_()
    nll = -target.log_prob(exact)
    (score,) = torch.autograd.grad(nll.sum(), exact)
    if not reference:
        model.reference = None
    n = 16_000
    x = point.repeat(n, 1).requires_grad_()
    first, last = sde.levels([sde.t_min, sde.t_max])
    share = stratify(Noise(1, np.arange(n), (1,), torch.float64).uniform(5)[:, 0])
    value = bound_by_one_call(model, x, Ends(first, last, model.reference, None), Noise(2, np.arange(n), (2,), torch.float64), share)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    prior = 0.5 * float((last.alpha / last.sigma) ** 2 * point.square().sum())  # KL of the standard prior: a bound, not -log p
    cut = 0.02 + prior
    limit = z_limit(36)
    value, nll = value.detach(), nll.detach()
    se = float(value.std()) / n**0.5
    assert abs(float(value.mean() - nll)) < limit * se + cut
    error = (gradient.mean(0) - score[0]).abs()
    assert bool((error < limit * gradient.std(0) / n**0.5 + 0.05).all()), (error, gradient.std(0) / n**0.5)
    if reference:
        assert se < 0.02
        assert float(gradient.std(0).max()) / n**0.5 < 0.06


def test_the_objective_is_what_elbo_gives_for_a_wrong_model():
    """A model that is far off, and ends at a noise that matters, so that each part does: reconstruction, integral and prior."""

    class Wrong(sd.ScoreModel):
        def denoise(self, x, t):
            return 0.2 * x

    model, n, batches = Wrong(sd.RectifiedFlow(t_min=0.3), (2,)), 16_000, 40
    model.reference = sd.GaussianReference.of_moments(torch.zeros(2).double(), torch.eye(2).double())  # for less noise
    x = torch.tensor([[0.4, -1.3]]).double().repeat(n, 1)
    first, last = model.sde.levels([model.sde.t_min, model.sde.t_max])
    share = stratify(Noise(1, np.arange(n), (1,), torch.float64).uniform(5)[:, 0], torch.arange(n) % (n // batches), n // batches)
    value = bound_by_one_call(model, x, Ends(first, last, model.reference, None), Noise(2, np.arange(n), (2,), torch.float64), share)
    value = value.view(batches, -1).mean(1)  # their spread is what stratified times leave
    expected = -sd.elbo(model, x, draws=16, batch_size=n).per_sample
    se = float((value.var() / batches + expected.var() / n).sqrt())
    assert se < 0.03
    assert float(expected.mean()) > 4
    assert abs(float(value.mean() - expected.mean())) < 4 * se


def test_the_prior_counts_in_the_objective():
    """A process that ends at t = 0.2 with N(0, sigma^2 I): the bound is -log p(x) + E[log p_t(x_t) - log N(x_t; 0, sigma^2 I)]."""
    target = correlated_mixture(2)
    model = sd.ExactModel(target, sd.VPSDE())
    n, point = 16_000, torch.tensor([[0.4, -0.3]]).double()
    first, last = model.sde.levels([model.sde.t_min, 0.2])
    share = stratify(Noise(1, np.arange(n), (1,), torch.float64).uniform(5)[:, 0])
    ends, noise = Ends(first, last, model.reference, None), Noise(2, np.arange(n), (2,), torch.float64)
    value = bound_by_one_call(model, point.repeat(n, 1), ends, noise, share)
    x_t = last.alpha * point + last.sigma * Noise(3, np.arange(n), (2,), torch.float64).normal(0)
    normal = -0.5 * (x_t / last.sigma).square().sum(1) - math.log(2 * math.pi * last.sigma**2)
    excess = model.log_prob(x_t, 0.2) - normal
    kl = 0.5 * (last.alpha / last.sigma) ** 2 * float(point.square().sum())
    expected = float(excess.mean() - target.log_prob(point))
    se = float((value.var() + excess.var()).sqrt()) / n**0.5
    assert kl > 10 * se + 0.03
    assert abs(float(value.mean()) - expected) < z_limit(1) * se + 0.01


def test_models_of_the_middles_of_the_bins_are_refused():
    """N(c, s^2) at t_min, whose exact score asks for N(c, s^2/2): 0.139 bits per dimension worse than "normal"."""
    normal = sd.Transform(levels=4, dequantization="normal")
    levels = torch.zeros(4, 2, dtype=torch.int64)
    how = {"steps": 1, "batch_size": 2, "progress": False}
    net = sd.nets.MLP(2, width=8, depth=1)
    model = sd.NetworkModel(net, sd.VPSDE(), (2,), transform=normal)
    # whatever transform is given: it tells nothing of what the model was trained on
    for transform in (None, T4):
        with pytest.raises(E.ConfigError, match=r'give bits_per_dim.*dequantization="normal"'):
            fit_dequantizer(model, levels, transform, **how)
    model = sd.NetworkModel(net, sd.VPSDE(), (2,))  # knows nothing: then the data tell
    with pytest.raises(E.ConfigError, match="middles of the bins"):
        fit_dequantizer(model, sd.data.Data(levels, levels[:0], normal), **how)
    model = sd.NetworkModel(net, sd.VPSDE(), (2,), transform=T4)
    fit_dequantizer(model, levels, normal, **how)


def test_training_is_a_function_of_its_seed_and_leaves_the_model_and_the_global_generator_alone():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,), transform=T4).train()
    model.net.output.weight.requires_grad_(False)
    flags, weights = [p.requires_grad for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    state, levels = torch.get_rng_state(), torch.randint(0, 4, (30, 2), generator=torch.Generator().manual_seed(0))
    how = {"steps": 3, "batch_size": 20, "progress": False}
    a, b = fit_dequantizer(model, levels, **how), fit_dequantizer(model, sd.data.Data(levels, levels[:0], T4), **how)
    assert torch.equal(state, torch.get_rng_state())
    assert a.fingerprint == b.fingerprint
    assert a.history == b.history
    assert len(a.history) == 3
    assert fit_dequantizer(model, levels, seed=1, **how).fingerprint != a.fingerprint
    assert model.training
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_conditions_go_with_their_samples():
    seen, times = [], []

    class Spy(sd.ScoreModel):
        def denoise(self, x, t, label, shared):
            near = t == self.sde.t_min
            times.append(t)
            seen.append((T4.quantize(x[near])[:, 0], label[near]))
            return 0.1 * shared * x

    levels = torch.randint(0, 4, (37, 1), generator=torch.Generator().manual_seed(0))
    sde = sd.VPSDE(t_min=1e-9)  # at whose end x is not noisy
    fit_dequantizer(Spy(sde, (1,)), levels, T4, steps=4, batch_size=64, progress=False, label=levels[:, 0], shared=1.0)
    x, label = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(x) >= 16
    assert len(torch.cat(times).unique()) > 4 * 55  # each step has its own
    assert float((x == label).double().mean()) > 0.9
    with pytest.raises(E.ShapeError, match="condition 'label'"):
        fit_dequantizer(Spy(sde, (1,)), levels, T4, steps=1, progress=False, label=levels[:5, 0], shared=1.0)


def test_errors():
    model, levels = narrow(), torch.zeros(4, 1, dtype=torch.int64)
    for wrong, error, match in (
        ({"transform": None}, E.ConfigError, "tell how many levels"),
        ({"data": levels + 4}, E.ConfigError, "levels run from 4 to 4"),
        ({"data": levels.double()}, E.DTypeError, "expected integers"),
        ({"data": levels.repeat(1, 2)}, E.ShapeError, r"\(4, 2\)"),
        ({"steps": 0}, E.ConfigError, "steps"),
        ({"batch_size": 0}, E.ConfigError, "batch_size"),
        ({"lr": -1.0}, E.ConfigError, "lr"),
        ({"width": 0}, E.ConfigError, "width"),
        ({"couplings": -1}, E.ConfigError, "couplings = -1"),
        ({"seed": -1}, E.ConfigError, "seed"),
    ):
        with pytest.raises(error, match=match):
            fit_dequantizer(**{"model": model, "data": levels, "transform": T4, "progress": False, "steps": 1} | wrong)

    class Broken(sd.ScoreModel):
        def denoise(self, x, t):
            return x * math.nan

    with pytest.raises(E.TrainingDiverged, match=r"not finite at one of the steps 1\.\.3: try a smaller lr"):
        fit_dequantizer(Broken(sd.VPSDE(), (1,)), levels, T4, steps=3, progress=False)

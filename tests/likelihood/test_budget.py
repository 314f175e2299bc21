"""Errors of the time steps, on exact densities: far from sharp modes, at few steps, by every kind of solver."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from problems import SDES, correlated_mixture, name

import scoresde as sd
from scoresde.likelihood import budget

MOONS = copy.deepcopy(sd.data.toy("moons", 20).target).double()


def eight(std):
    """Ten modes in eight dimensions."""
    g = torch.Generator().manual_seed(1)
    return sd.GaussianMixture(torch.randn(10, 8, dtype=torch.float64, generator=g), torch.full((10,), std, dtype=torch.float64))


def away(n, distance=10.0):
    u = torch.randn(n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return distance * u / u.norm(dim=1, keepdim=True)


def grid(n=31):
    side = torch.linspace(-3, 3, n, dtype=torch.float64)
    return torch.cartesian_prod(side, side)


def judged(model, x, **how):
    """The errors of log p at t_min, and what the budget says of them."""
    r = sd.log_prob(model, x, prior=lambda z: model.log_prob(z, model.sde.t_max), check=len(x), **how)
    return r.log_prob - model.log_prob(x, model.sde.t_min).double(), r.discretization


FAR = {
    "moons": (MOONS, grid(), 0.03),
    "8-D": (eight(0.3), away(48), 0.03),
    "8-D, sharp, on the data": (eight(0.03), eight(0.03).sample(32), 0.001),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_densities_of_exact_models_are_right_everywhere(case, dtype):
    """The default, and what it says of itself: fixed steps are 28 nats off on the first grid, 64 on the second."""
    target, x, most = FAR[case]
    x = x if dtype == torch.float64 else x[::3]
    model = sd.ExactModel(copy.deepcopy(target), sd.VPSDE()).to(dtype)
    error, found = judged(model, x.to(dtype))
    assert error.abs().max() < most
    assert (error.abs() <= 2 * found.abs() + 5e-4).all()


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize(("solver", "steps"), [(None, 40), (None, 10), (sd.Heun(), 20)], ids=str)
def test_errors_of_fixed_steps_are_told_far_from_the_data(case, solver, steps):
    target, x, _ = FAR[case]
    error, found = judged(sd.ExactModel(target, sd.VPSDE()), x[::3], solver=solver, steps=steps)
    assert error.abs().max() > 0.1  # a case where they are large
    assert torch.allclose(found, error, rtol=0.01, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("case", FAR)
def test_densities_are_right_under_every_sde(case, sde):
    target, x, most = FAR[case]
    model = sd.ExactModel(target, sde)
    error, found = judged(model, x)
    assert error.abs().max() < 3 * most
    assert (error.abs() <= 2 * found.abs() + 5e-4).all()
    error, found = judged(model, x, steps=40)
    assert torch.allclose(found, error, rtol=0.01, atol=1e-3)


class Memorised(sd.ScoreModel):
    """A network that has learned its data by heart: exact, and not known to be."""

    def __init__(self, target, sde):
        super().__init__(sde, target.event_shape)
        self.target = target
        self.reference = sd.GaussianReference.of_moments(*target.moments())

    def predict(self, x, t):
        level = self.sde.level(t, x)
        return self.target.posterior(x, level.alpha, level.sigma)


def test_a_memorised_model_is_judged_by_an_adaptive_solver_where_steps_do_not_converge():
    """40 and 80 steps agree on what both get wrong; nine in ten of those points are found all the same."""
    x, sde = away(64), sd.VPSDE()
    exact = sd.ExactModel(eight(0.3), sde).log_prob(x, sde.t_min)
    how = {"prior": "reference", "check": 64}
    r = sd.log_prob(Memorised(eight(0.3), sde), x, **how)
    assert r.nfe == 40
    truth = sd.log_prob(Memorised(eight(0.3), sde), x, solver=sd.AdaptiveODE(1e-7, 1e-7), **how).log_prob
    assert (truth - exact).abs().max() < 1.0  # the prior's part
    error = r.log_prob - truth
    assert error.abs().max() > 30
    assert (error.abs() <= 2 * r.discretization.abs() + 0.05).double().mean() > 0.95
    assert float(r.discretization.mean()) == pytest.approx(float(error.mean()), rel=0.2)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("solver", [None, sd.Heun()], ids=str)
def test_few_steps_warn_and_their_interval_holds_the_truth(solver, steps):
    """Of a model that is known: levels of a mixture, in bits per dimension."""
    target = correlated_mixture(8)
    model, transform = Memorised(target, sd.VPSDE()), sd.Transform(levels=64, low=-3.0, high=3.0)
    levels = transform.quantize(target.sample(200))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        b = sd.bits_per_dim(model, levels, transform, solver=solver, steps=steps, check=200)
    many = sd.bits_per_dim(model, levels, transform, steps=120, check=0)
    error, report = abs(b.mean - many.mean), b.report()
    assert report.term("time steps") == pytest.approx(error, rel=0.05)
    assert report.interval[0] < many.mean < report.interval[1]
    if error > 2 * b.std_error:
        (warning,) = [w for w in caught if "time steps err by" in str(w.message)]
        assert f"than {steps}" in str(warning.message)
        assert b.std_error < report.time_steps
    assert "not estimated" not in report.table()
    assert "not estimated, check = 0" in sd.log_prob(model, target.sample(4), steps=1).report().table()


def test_a_good_solve_does_not_warn():
    target, transform = correlated_mixture(3), sd.Transform(levels=64, low=-3.0, high=3.0)
    levels = transform.quantize(target.sample(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b = sd.bits_per_dim(Memorised(target, sd.VPSDE()), levels, transform)
    assert b.report().term("time steps") < 1e-3


def test_solvers_are_judged_by_better_ones():
    exact, net = sd.ExactModel(MOONS, sd.VPSDE()), sd.NetworkModel(sd.nets.MLP(2, width=4, depth=1), sd.VPSDE(), (2,))
    fixed = [(judge.solver, judge.steps) for judge in budget.judges(net, sd.ReferenceSolver(), 60)]
    assert fixed[0] == (sd.ReferenceSolver(), 120)
    assert isinstance(fixed[1][0], sd.AdaptiveODE)
    assert budget.judges(net, sd.Heun(), 3)[0].steps == 40
    (tight,) = budget.judges(net, sd.AdaptiveODE(1e-3, 1e-3), None)
    assert (tight.solver.rtol, tight.looser) == (pytest.approx(1e-4), False)
    (tight,) = budget.judges(net, sd.AdaptiveODE(1e-5, 1e-7), None)  # float32: no smaller ones, so larger ones, which err more
    assert (tight.solver.rtol, tight.looser) == (pytest.approx(1e-4), True)
    (tight,) = budget.judges(exact, sd.TorchDiffEq(rtol=1e-5, atol=1e-5), None)
    assert (tight.solver.atol, tight.looser) == (pytest.approx(1e-7), False)
    assert all(isinstance(judge.solver, sd.AdaptiveODE) for judge in budget.judges(exact, sd.ReferenceSolver(), 60))


def test_a_looser_judge_has_the_sign_of_an_error():
    """Where nothing tighter is to be had, the difference is the error of the looser solve, and of its size."""
    torch.manual_seed(0)
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    torch.nn.init.normal_(model.net.output.weight)
    x = torch.randn(8, 2)
    tight, loose = (sd.log_prob(model, x, solver=sd.AdaptiveODE(tol, tol)).log_prob for tol in (1e-6, 1e-5))
    r = sd.log_prob(model, x, solver=sd.AdaptiveODE(1e-6, 1e-6), check=8)
    assert torch.allclose(r.discretization, loose - tight, rtol=1e-3, atol=1e-9)
    assert float(r.discretization.abs().max()) > 0


class Rough(Memorised):
    """A network that is rough in the noise level, as those with random Fourier features of it are: hundreds of waves along a path."""

    def __init__(self, target, sde, size=0.03, waves=20.0):
        super().__init__(target, sde)
        self.size, self.waves = size, waves * torch.randn(target.event_shape, generator=torch.Generator().manual_seed(0)).double()

    def predict(self, x, t):
        level = self.sde.level(t, x)
        _, eps = self.target.posterior(x, level.alpha, level.sigma)
        s = torch.as_tensor(level.sigma / level.alpha)
        eps = eps + self.size * (self.waves * s.log()).sin() * (2 * x / (level.alpha**2 + level.sigma**2) ** 0.5).sin()
        return (x - level.sigma * eps) / level.alpha, eps


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_errors_of_rough_networks_are_told(steps):
    """More steps are no better there, so that nothing can be extrapolated: within a tenth in the mean over points."""
    model = Rough(correlated_mixture(16), sd.VPSDE())
    x = model.target.sample(24)
    truth = sd.log_prob(model, x, solver=sd.AdaptiveODE(1e-6, 1e-6)).log_prob
    r = sd.log_prob(model, x, steps=steps, check=24)
    error = (r.log_prob - truth).abs().mean()
    assert error > 0.05
    assert float(r.discretization.abs().mean()) == pytest.approx(float(error), rel=0.15)


def test_networks_are_predicted_at_order_3_up_to_50_calls():
    """Where order 4 runs away on rough ones; exact models and those of bare levels keep it."""
    model = Memorised(correlated_mixture(3), sd.VPSDE())
    exact = sd.ExactModel(model.target, sd.VPSDE())
    x = model.target.sample(3)
    for calls, order, net in ((20, 3, model), (50, 3, model), (51, 4, model), (12, 3, exact), (20, 4, exact)):
        found, same = (sd.log_prob(net, x, steps=calls, solver=sd.ReferenceSolver(order=k)).log_prob for k in (None, order))
        assert torch.equal(found, same), (calls, order)

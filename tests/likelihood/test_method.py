"""What log p is computed with when nothing is said, and what is refused: priors, steps of solvers that have none, other transforms."""

from __future__ import annotations

import math

import pytest
import torch
from problems import correlated_mixture, gaussian

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError


def network(shape, reference=True):
    torch.manual_seed(0)
    D = math.prod(shape)
    net = sd.nets.MLP(D, width=8, depth=1) if len(shape) == 1 else sd.nets.UNet(1, width=8, multipliers=(1,), blocks=1)
    model = sd.NetworkModel(net, sd.VPSDE(), shape)
    model.reference = sd.GaussianReference(torch.zeros(shape), torch.ones(()), "isotropic") if reference else None
    return model


def test_the_trace_is_exact_in_few_dimensions():
    """And so is log p, to the last digit that the solver has, where one probe has an error of 0.1."""
    model = sd.ExactModel(correlated_mixture(16), sd.VPSDE())
    x = model.target.sample(4)
    r = sd.log_prob(model, x, prior=lambda z: model.log_prob(z, 1.0))
    assert (r.log_prob - model.log_prob(x, model.sde.t_min)).abs().max() < 1e-3
    assert (r.settings["divergence"], r.settings["probes"], float(r.std_error.max())) == ("exact", 0, 0.0)
    kinds = {
        (16,): sd.log_prob(network((16,)), torch.zeros(1, 16), steps=2),
        (17,): sd.log_prob(network((17,)), torch.zeros(1, 17), steps=2),
        (1, 4, 5): sd.log_prob(network((1, 4, 5)), torch.zeros(1, 1, 4, 5), steps=2),
    }
    assert [r.settings["divergence"] for r in kinds.values()] == ["exact", "hutchinson", "hutchinson"]
    wide = sd.ExactModel(correlated_mixture(20), sd.VPSDE())
    assert sd.log_prob(wide, wide.target.sample(1), steps=2).settings["divergence"] == "exact"
    several = sd.log_prob(model, x, probes=3, steps=2)  # who asks for probes gets them
    assert (several.settings["divergence"], several.settings["probes"]) == ("hutchinson", 3)
    levels = torch.zeros(2, 16, dtype=torch.long)
    assert sd.bits_per_dim(network((16,)), levels, sd.Transform(4), steps=2, check=0).settings["divergence"] == "exact"


def test_the_solver_follows_the_model_and_the_steps():
    exact = sd.ExactModel(gaussian(2), sd.VPSDE())
    x = exact.target.sample(2)
    solver = lambda model, x, **how: sd.log_prob(model, x, **how).settings["solver"].split("(")[0]
    assert solver(exact, x) == "AdaptiveODE"
    assert solver(exact, x, steps=3) == "ReferenceSolver"
    assert solver(exact, x, check=1, check_steps=50) == "ReferenceSolver"
    assert solver(network((2,)), x.float()) == "ReferenceSolver"
    assert solver(network((2,), reference=False), x.float()) == "TorchDiffEq"


@pytest.mark.parametrize("solver", [sd.TorchDiffEq(), sd.AdaptiveODE(), None], ids=repr)
def test_steps_of_a_solver_that_chooses_its_own(solver):
    model = network((2,), reference=False)
    for function, data in ((sd.log_prob, torch.zeros(2, 2)), (sd.bits_per_dim, torch.zeros(2, 2, dtype=torch.long))):
        with pytest.raises(ConfigError, match=r"steps = 7 with .*, which chooses its own steps: leave steps out"):
            function(model, data, **({"transform": sd.Transform(4)} if function is sd.bits_per_dim else {}), solver=solver, steps=7)
    sd.log_prob(model, torch.zeros(1, 2), solver=sd.TorchDiffEq("rk4"), steps=3)  # a fixed one takes them


def broken(z):
    raise KeyError("no such table")


PRIORS = {
    "NaN": (lambda z: torch.full((len(z),), math.nan), NonFiniteError, "answered NaN for 3 of 3 states"),
    "inf": (lambda z: torch.full((len(z),), math.inf), NonFiniteError, "answered inf for 3 of 3 states"),
    "float": (lambda z: -1.0, ShapeError, "answered a float, expected log p at t_max in nats, a float tensor of shape \\(3,\\)"),
    "list": (lambda z: [0.0] * len(z), ShapeError, "answered a list"),
    "shape": (lambda z: z, ShapeError, "answered shape \\(3, 2\\)"),
    "one": (lambda z: z.sum(), ShapeError, "answered shape \\(\\)"),
    "integers": (lambda z: torch.zeros(len(z), dtype=torch.long), DTypeError, "answered torch.int64"),
    "raises": (broken, ConfigError, "the prior that was given raised KeyError: 'no such table'; it was called with states x \\(3, 2\\)"),
}


@pytest.mark.parametrize("case", PRIORS)
def test_priors_that_answer_nonsense(case):
    prior, error, message = PRIORS[case]
    model, x = network((2,)), torch.zeros(3, 2)
    for call in (
        lambda: sd.log_prob(model, x, prior=prior, steps=2),
        lambda: sd.bits_per_dim(model, x.long(), sd.Transform(4), prior=prior, steps=2),
        lambda: sd.log_prob_gradient(model, x, prior=prior, steps=2),
        lambda: sd.differentiable_log_prob(model, x, prior=prior, steps=2),
    ):
        with pytest.raises(error, match=message) as raised:
            call()
    if case == "raises":
        assert isinstance(raised.value.__cause__, KeyError)


def test_a_prior_of_no_density_is_an_answer():
    model = network((2,))
    nowhere = sd.log_prob(model, torch.zeros(3, 2), prior=lambda z: torch.full((len(z),), -math.inf), steps=2)
    assert (nowhere.log_prob == -math.inf).all()


@pytest.mark.parametrize("function", [sd.bits_per_dim, sd.elbo])
def test_levels_and_range_are_those_of_the_model(function):
    model, levels = network((2,)), torch.tensor([[0, 3], [2, 1]])
    how = {"steps": 2} if function is sd.bits_per_dim else {"draws": 2}
    with pytest.raises(ConfigError, match="Transform"):
        function(model, levels, **how)
    model.transform = sd.Transform(levels=4)
    own = function(model, levels, **how)  # falls back on it
    assert own.mean == function(model, levels, sd.Transform(levels=4), **how).mean
    for other in (sd.Transform(levels=8), sd.Transform(levels=4, low=0.0)):
        with pytest.raises(ConfigError, match=r"transform = Transform.*, but the model's own is Transform\(levels=4, low=-1.0, high=1.0\)"):
            function(model, levels, other, **how)
        assert math.isfinite(function(model, levels, other, check_scale=False, **how).mean)
    same = [function(model, levels.to(dtype), **how).mean for dtype in (torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64)]
    assert same == [own.mean] * 5

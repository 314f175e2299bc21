"""Picard iteration: the sequential solution, in fewer rounds."""

from __future__ import annotations

import pytest
import torch
from problems import SDES, correlated_mixture, image_mixture, name, two_modes

import scoresde as sd


def gap(x, y):
    """The largest root mean square difference of a sample."""
    return float((x - y).flatten(1).square().mean(1).sqrt().max())


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.Euler(), sd.Ancestral(), sd.DDIM(eta=0.5)], ids=repr)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_sequential_result_within_the_tolerance_in_fewer_rounds(sde, solver):
    """100 steps. Measured: gap at most 1.5 tolerances; 6 to 15 rounds for ODE solvers, 18 to 30 for those with noise."""
    model = sd.ExactModel(two_modes(), sde)
    sequential = sd.sample(model, 8, solver=solver, steps=100, seed=1)
    most = 16 if solver in (sd.DDIM(), sd.Euler()) else 33
    rounds = []
    for tolerance in (1e-3, 1e-5, 1e-8):
        with sd.count_evaluations(model) as calls:
            x = sd.sample(model, 8, solver=sd.Picard(solver, tolerance=tolerance), steps=100, seed=1, batch_size=8)
        assert gap(x, sequential) < 3 * tolerance
        rounds.append(calls.forward)
        assert set(calls.per_sample) == set(range(8))
        assert calls.forward < calls.per_sample[0] < 100 * calls.forward
    assert rounds == sorted(rounds)
    assert rounds[-1] <= most


@pytest.mark.parametrize("window", [1, 2, 7, 20, 1000])
def test_any_window(window):
    model = sd.ExactModel(correlated_mixture(16), sd.VPSDE())
    sequential = sd.sample(model, 5, solver=sd.Ancestral(), steps=50, seed=1)
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, 5, solver=sd.Picard(sd.Ancestral(), window, 1e-9), steps=50, seed=1)
    assert gap(x, sequential) < 1e-8
    assert calls.forward <= 50
    assert calls.per_sample[0] <= window * calls.forward
    if window == 1:  # plain steps
        assert calls.forward == calls.per_sample[0] == 50
        assert gap(x, sequential) < 1e-12


def test_a_tolerance_that_cannot_be_reached_ends_in_the_exact_result():
    """Each round settles one state at least, so even rounding errors for ever above the tolerance end after ``steps`` rounds."""
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, 4, solver=sd.Picard(tolerance=1e-300), steps=30)
    assert calls.forward <= 30
    assert gap(x, sd.sample(model, 4, solver=sd.DDIM(), steps=30)) < 1e-13


def test_one_step_and_other_grids():
    model = sd.ExactModel(two_modes(), sd.EDMSDE())
    for steps in (1, 2):
        assert gap(sd.sample(model, 4, solver=sd.Picard(), steps=steps), sd.sample(model, 4, solver=sd.DDIM(), steps=steps)) < 1e-2
    times = sd.grid.log_snr(model.sde, 40)
    fast, slow = (sd.sample(model, 4, solver=s, times=times) for s in (sd.Picard(tolerance=1e-7), sd.DDIM()))
    assert gap(fast, slow) < 1e-6


def test_the_grid_is_the_inner_solvers():
    class Spaced(sd.DDIM):
        def grid(self, sde, n, start=None, end=None):
            return sd.grid.log_snr(sde, n, start, end)

    model = sd.ExactModel(two_modes(), sd.VPSDE())
    fast, slow = (sd.sample(model, 4, solver=s, steps=20) for s in (sd.Picard(Spaced(), tolerance=1e-7), Spaced()))
    assert gap(fast, slow) < 1e-6
    assert gap(slow, sd.sample(model, 4, solver=sd.DDIM(), steps=20)) > 1e-3


def test_images_and_float32():
    model = sd.ExactModel(image_mixture().float(), sd.VPSDE())
    fast, slow = (sd.sample(model, 6, solver=s, steps=40) for s in (sd.Picard(tolerance=1e-4), sd.DDIM()))
    assert fast.dtype == torch.float32
    assert gap(fast, slow) < 3e-4


class Shifted(sd.ScoreModel):
    """Standard normal data around a condition: of each sample (B, D), or shared."""

    def denoise(self, x, t, *, shift, gain=1.0):
        level = self.sde.level(t, x)
        m = gain * shift
        return m + level.alpha / (level.alpha**2 + level.sigma**2) * (x - level.alpha * m)


def test_conditions_belong_to_their_samples():
    model = Shifted(sd.VPSDE(), (2,))
    generator = torch.Generator().manual_seed(0)
    shift = 3 * torch.randn(5, 2, generator=generator)
    cond = {"shift": shift, "gain": torch.tensor(2.0)}
    fast = sd.sample(model, 5, solver=sd.Picard(sd.Ancestral(), 10, 1e-5), steps=40, **cond)
    slow = sd.sample(model, 5, solver=sd.Ancestral(), steps=40, **cond)
    assert gap(fast, slow) < 1e-4
    assert float((slow - 2 * shift).abs().mean()) < 2  # the condition is felt
    assert float((slow - 2 * shift.roll(1, 0)).abs().mean()) > 3


def test_batch_mates_matter_within_the_tolerance_only():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    solver = sd.Picard(sd.DDIM(), 20, 1e-5)
    hard = sd.sample(model, 64, solver=solver, steps=60, batch_size=64)
    alone = sd.sample(model, 1, ids=[7], solver=solver, steps=60, batch_size=1)
    assert gap(hard[7:8], alone) < 3e-5


def test_a_nan_mate_is_named_and_does_not_hold_up_the_others():
    class Broken(sd.ExactModel):
        def predict(self, x, t, **cond):
            level = self.sde.level(t, x)
            x0, eps = self.target.posterior(x, level.alpha, level.sigma)
            return torch.where(x[:, :1] > 100, torch.nan, x0), eps

    model = Broken(two_modes(), sd.VPSDE())
    x = torch.zeros(3, 2, dtype=torch.float64)
    x[1] = 200.0
    with sd.count_evaluations(model) as calls, pytest.raises(sd.errors.SolverError, match=r"sample ids \[1\]"):
        sd.sample(model, x_init=x, solver=sd.Picard(), steps=100)
    assert calls.forward < 20


@pytest.mark.parametrize("solver", [sd.Heun(), sd.RK4(), sd.PredictorCorrector(), sd.TorchDiffEq("euler")], ids=repr)
def test_solvers_of_more_calls_are_refused(solver):
    with pytest.raises(sd.errors.ConfigError, match="one call a step"):
        sd.sample(sd.ExactModel(two_modes(), sd.VPSDE()), 2, solver=sd.Picard(solver), steps=4)


def test_solvers_with_a_memory_are_refused():
    class Momentum(sd.Solver):
        def init(self, model, x, times):
            return 0 * x

        def step(self, model, x, t, s, state, noise):
            v = model.velocity(x, t)
            return x + (s - t) * (v + 0.1 * state), v

    with pytest.raises(sd.errors.ConfigError, match="remembers"):
        sd.sample(sd.ExactModel(two_modes(), sd.VPSDE()), 2, solver=sd.Picard(Momentum()), steps=4)


@pytest.mark.parametrize(
    "bad",
    [{"solver": sd.DDIM}, {"solver": 3}, {"window": 0}, {"window": 2.0}, {"window": True}, {"tolerance": 0.0}, {"tolerance": float("nan")}],
    ids=str,
)
def test_bad_inputs(bad):
    with pytest.raises(sd.errors.ConfigError):
        sd.Picard(**bad)


def test_log_prob_is_told_what_it_takes():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="log p needs"):
        sd.log_prob(model, torch.zeros(2, 2, dtype=torch.float64), solver=sd.Picard())


def test_trajectory_gives_every_state():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    fast = [x for _, _, x, _ in sd.trajectory(model, 4, solver=sd.Picard(tolerance=1e-8), steps=20)]
    slow = [x for _, _, x, _ in sd.trajectory(model, 4, solver=sd.DDIM(), steps=20)]
    assert len(fast) == len(slow) == 21
    assert max(gap(a, b) for a, b in zip(fast, slow, strict=True)) < 1e-7


def test_a_brownian_path_drives_it_too():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    fast, slow = (
        sd.sample(model, 4, solver=s, steps=40, noise="path") for s in (sd.Picard(sd.Ancestral(), tolerance=1e-8), sd.Ancestral())
    )
    assert gap(fast, slow) < 1e-7
    assert gap(slow, sd.sample(model, 4, solver=sd.Ancestral(), steps=40)) > 0.1

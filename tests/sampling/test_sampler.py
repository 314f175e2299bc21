"""Sampling: sample i is sample i, every call is counted, and each solver draws from exactly the law that its formula has.

Laws are checked without bias: on Gaussian data every step is affine, so mean and variance after any number of steps follow by
recursion from closed forms typed here, and z-tests compare with those, not with the continuum. Family-wise error 1e-6 over all
of them (Bonferroni).
"""

from __future__ import annotations

import math
import random
import re
import warnings

import numpy as np
import pytest
import torch
from problems import CLOSED, SDES, correlated_mixture, marginal_sample, name, two_modes, z_limit
from torch import nn

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import CORRECTOR, PRIOR, STEP
from scoresde.errors import SolverError
from scoresde.models.batches import default_batch_size
from scoresde.solvers import planning
from scoresde.solvers.loop import CHECK_EVERY

by_sde = pytest.mark.parametrize("sde", SDES, ids=name)

SOLVERS = [
    sd.Euler(),
    sd.Heun(),
    sd.RK4(),
    sd.EulerMaruyama(),
    sd.EulerMaruyama(eta=0.0),
    sd.EulerMaruyama(eta=0.5),
    sd.DDIM(),
    sd.DDIM(eta=0.7),
    sd.Ancestral(),
    sd.ReverseDiffusion(),
    sd.Langevin(steps=2),
    sd.PredictorCorrector(),
    sd.PredictorCorrector(sd.Ancestral(), sd.Langevin(snr=0.1, steps=2), order="corrector-predictor"),
    sd.PredictorCorrector(sd.RK4(), sd.Langevin(snr=0.1)),
    sd.TorchDiffEq("rk4"),
    sd.TorchDiffEq("midpoint"),
    sd.TorchSDE("euler"),
    sd.TorchSDE("srk"),
    sd.TorchSDE("midpoint", eta=0.5),
]
ADAPTIVE = [sd.TorchDiffEq("dopri5"), sd.TorchDiffEq("bosh3", rtol=1e-3, atol=1e-3)]
by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


def mixture(event=(3,), dtype=torch.float64, K=4):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand((K, *event), generator=generator, dtype=torch.float64) - 1
    return sd.GaussianMixture(means.to(dtype), 0.1 + 0.3 * torch.rand(K, generator=generator).to(dtype))


def unet_model(sde=SDES[0]):
    """A network with random weights everywhere: the output layer starts as zero otherwise."""
    net = sd.nets.UNet(channels=1, width=8, multipliers=(1, 2), blocks=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 / math.sqrt(max(p[0].numel(), 1))))
    return sd.NetworkModel(net, sde, (1, 8, 8), "v")


# ---- sample i is sample i


@by_solver
def test_sample_i_is_sample_i(solver):
    """To the bit, for any n and order of ids, at the same batch size; whatever batch mates and padding there are."""
    model = sd.ExactModel(mixture(), sd.VPSDE())
    draw = lambda n, **kw: sd.sample(model, n, solver=solver, steps=3, seed=7, batch_size=8, **kw)
    whole = draw(21)
    assert torch.equal(whole, draw(21))
    assert torch.equal(draw(5), whole[:5])
    assert torch.equal(draw(16), whole[:16])
    for ids in ([20], [3, 2, 1], [13, 13, 0], list(range(20, -1, -1))):
        assert torch.equal(draw(len(ids), ids=ids), whole[ids])
    assert torch.equal(draw(4, ids=torch.tensor([9, 4, 17, 2])), whole[[9, 4, 17, 2]])
    assert len(torch.unique(whole, dim=0)) == 21
    assert not torch.equal(sd.sample(model, 21, solver=solver, steps=3, seed=8, batch_size=8), whole)


@pytest.mark.parametrize("solver", [sd.Heun(), sd.DDIM(), sd.PredictorCorrector(), sd.TorchSDE()], ids=repr)
def test_sample_i_is_sample_i_with_a_network(solver):
    model = unet_model()
    whole = sd.sample(model, 11, solver=solver, steps=3, batch_size=4)
    assert bool(whole.std() > 0.1)
    for n, ids in ((3, None), (1, [10]), (5, [10, 3, 3, 0, 7])):
        found = sd.sample(model, n, solver=solver, steps=3, batch_size=4, ids=ids)
        assert torch.equal(found, whole[ids or list(range(n))])
    for size in (1, 3, 11, 16):
        other = sd.sample(model, 11, solver=solver, steps=3, batch_size=size)
        assert float((other - whole).abs().max()) <= 1e-4 * float(whole.std())


@by_solver
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"])
def test_batch_sizes_agree(solver, dtype, tolerance):
    model = sd.ExactModel(mixture(dtype=dtype), sd.VPSDE())
    whole = sd.sample(model, 9, solver=solver, steps=6)
    assert whole.dtype == dtype
    for size in (1, 4, 9, 100):
        other = sd.sample(model, 9, solver=solver, steps=6, batch_size=size)
        assert float((other - whole).abs().max()) <= tolerance


@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
def test_adaptive_solvers_agree_within_their_tolerance(solver):
    """Step sizes are common to a batch, so samples depend on their mates; by no more than what the tolerance allows."""
    model = sd.ExactModel(mixture(), sd.VPSDE())
    reference = sd.sample(model, 7, solver=sd.TorchDiffEq("dopri8", 1e-9, 1e-9))
    for size in (1, 4, 7):
        x = sd.sample(model, 7, solver=solver, batch_size=size)
        assert float((x - reference).abs().max()) < 200 * solver.rtol
    assert torch.equal(sd.sample(model, 8, solver=solver, batch_size=4), sd.sample(model, 8, solver=solver, batch_size=4))


@by_solver
def test_noise_is_the_same_in_every_dtype(solver):
    """The same start and the same draws: float32 follows float64."""
    model = sd.ExactModel(mixture(), sd.VPSDE())
    double = sd.sample(model, 9, solver=solver, steps=5)
    single = sd.sample(sd.ExactModel(mixture(dtype=torch.float32), sd.VPSDE()), 9, solver=solver, steps=5)
    assert single.dtype == torch.float32
    assert float((single - double).abs().max()) < 2e-3


@by_solver
def test_global_state_is_untouched(solver):
    model = sd.ExactModel(mixture(), sd.VPSDE())
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = sd.sample(model, 4, solver=solver, steps=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(12345)
    np.random.seed(12345)
    assert torch.equal(sd.sample(model, 4, solver=solver, steps=3), first)


# ---- trajectories


@by_solver
def test_a_trajectory_ends_at_the_sample(solver):
    model = sd.ExactModel(mixture(), sd.VPSDE())
    n, steps = 8, 5
    path = list(sd.trajectory(model, n, solver=solver, steps=steps, seed=3))
    assert [p[0] for p in path] == list(range(steps + 1))
    bound, _ = planning.bind_solver(solver, model, steps)
    assert [p[1] for p in path] == getattr(bound, "grid", sd.grid.uniform)(model.sde, steps).tolist()
    assert all(type(p[1]) is float for p in path)
    assert torch.equal(path[-1][2], sd.sample(model, n, solver=solver, steps=steps, seed=3, batch_size=n))
    noise = Noise(3, check_ids(None, n), (3,), torch.float64)
    assert torch.equal(path[0][2], noise.normal(PRIOR) * model.sde.prior_std)
    for _, t, x, x0 in path:
        assert torch.equal(x0, model.denoise(x, t))
    assert len({p[2].data_ptr() for p in path}) == steps + 1  # a stage that is kept is not written over
    assert torch.equal(path[-1][3], sd.sample(model, n, solver=solver, steps=steps, seed=3, batch_size=n, denoise=True))


def test_trajectories_are_lazy_and_independent():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    solver = sd.RK4()
    with pytest.raises(sd.errors.ConfigError, match="steps"):
        sd.trajectory(model, 4, steps=0)  # before the first next()
    a, b = (sd.trajectory(model, 4, solver=solver, steps=6, seed=s) for s in (0, 1))
    interleaved = [(next(a)[2], next(b)[2]) for _ in range(7)]
    for s in (0, 1):
        alone = [p[2] for p in sd.trajectory(model, 4, solver=solver, steps=6, seed=s)]
        assert all(torch.equal(x, pair[s]) for x, pair in zip(alone, interleaved, strict=True))
    with sd.count_evaluations(model) as calls:
        next(sd.trajectory(model, 4, solver=solver, steps=6))
    assert calls.forward == 1
    # what a user does to a stage is the user's own affair
    first = sd.trajectory(model, 4, steps=3)
    for _, _, x, x0 in first:
        x.zero_()
        x0.zero_()
        end = x
    again = list(sd.trajectory(model, 4, steps=3))
    assert bool((again[-1][2] != 0).all())
    assert bool((end == 0).all())


def test_a_trajectory_from_x_init_leaves_it_alone():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    x = torch.randn(3, 3, dtype=torch.float64)
    kept = x.clone()
    for _, _, stage, _ in sd.trajectory(model, x_init=x, steps=2):
        stage.zero_()
    assert torch.equal(x, kept)
    sd.sample(model, x_init=x, steps=2)
    assert torch.equal(x, kept)


# ---- counting

CALLS = [
    (sd.Euler(), 1),
    (sd.Heun(), 2),
    (sd.RK4(), 4),
    (sd.EulerMaruyama(), 1),
    (sd.EulerMaruyama(eta=0.0), 1),
    (sd.DDIM(), 1),
    (sd.DDIM(eta=1.0), 1),
    (sd.Ancestral(), 1),
    (sd.ReverseDiffusion(), 1),
    (sd.Langevin(), 1),
    (sd.Langevin(steps=3), 3),
    (sd.Langevin(steps=0), 0),
    (sd.PredictorCorrector(), 2),
    (sd.PredictorCorrector(sd.Heun(), sd.Langevin(steps=0)), 2),
    (sd.PredictorCorrector(sd.Heun(), sd.Langevin(steps=3), order="corrector-predictor"), 5),
    (sd.TorchDiffEq("euler"), 1),
    (sd.TorchDiffEq("midpoint"), 2),
    (sd.TorchDiffEq("heun2"), 2),
    (sd.TorchDiffEq("heun3"), 3),
    (sd.TorchDiffEq("rk4"), 4),
    (sd.TorchSDE("euler"), 1),
    (sd.TorchSDE("euler_heun"), 1),
    (sd.TorchSDE("srk"), 2),
    (sd.TorchSDE("heun"), 2),
    (sd.TorchSDE("midpoint"), 2),
]


class Counted(nn.Module):
    calls = 0

    def forward(self, x, c_noise):
        Counted.calls += 1
        return 0.1 * x


@pytest.mark.parametrize(("solver", "each"), CALLS, ids=[repr(s) for s, _ in CALLS])
def test_every_network_call_is_counted(solver, each):
    model = sd.NetworkModel(Counted(), sd.VPSDE(), (2,))
    for n, size, denoise in ((4, 4, False), (5, 2, True)):
        Counted.calls = 0
        with sd.count_evaluations(model) as calls:
            sd.sample(model, n, solver=solver, steps=6, batch_size=size, denoise=denoise)
        batches = -(-n // size)
        assert calls.forward == Counted.calls == batches * (6 * each + denoise)
        assert calls.vjp == 0
    Counted.calls = 0
    with sd.count_evaluations(model) as calls:
        list(sd.trajectory(model, 4, solver=solver, steps=6))
    assert calls.forward == Counted.calls == 6 * each + 7


def test_adaptive_calls_are_counted():
    model = sd.NetworkModel(Counted(), sd.VPSDE(), (2,))
    for rtol in (1e-3, 1e-6):
        Counted.calls = 0
        with sd.count_evaluations(model) as calls:
            sd.sample(model, 4, solver=sd.TorchDiffEq("dopri5", rtol, rtol), batch_size=4)
        assert calls.forward == Counted.calls
        assert (calls.forward - 2) % 6 == 0  # two to find the first step, then six a step, rejected ones included
        # max_nfe is what is counted
        exact = sd.TorchDiffEq("dopri5", rtol, rtol, max_nfe=calls.forward)
        sd.sample(model, 4, solver=exact, batch_size=4)
        with pytest.raises(SolverError, match=f"max_nfe = {calls.forward - 1} "):
            sd.sample(model, 4, solver=sd.TorchDiffEq("dopri5", rtol, rtol, max_nfe=calls.forward - 1), batch_size=4)


# ---- the arguments


def test_where_a_sample_starts_and_ends():
    for sde in SDES:
        model = sd.ExactModel(mixture(), sde)
        path = list(sd.trajectory(model, 2, steps=3))
        assert path[0][1] == sde.t_max
        assert path[-1][1] == (sde.t_end if sde.t_end is not None else sde.t_min)
        noise = Noise(0, check_ids(None, 2), (3,), torch.float64)
        assert torch.equal(path[0][2], noise.normal(PRIOR) * float(sde.sigma(sde.t_max)))
    model = sd.ExactModel(mixture(), sd.VPSDE())
    assert [p[1] for p in sd.trajectory(model, 2, solver=sd.Heun(), steps=2, t_end=0.2)] == pytest.approx([1.0, 0.6, 0.2], abs=1e-15)
    assert list(sd.trajectory(model, 2, steps=2, t_end=1e-5))[-1][1] == 1e-5
    # noise at times[0] has the size that it should have there
    start = next(sd.trajectory(model, 2, times=[0.3, 0.1]))[2]
    assert torch.equal(start, noise.normal(PRIOR) * float(sd.VPSDE().sigma(0.3)))


def test_the_default_number_of_steps():
    model = sd.NetworkModel(Counted(), sd.VPSDE(), (2,))
    for solver, calls_due in ((sd.Euler(), 50), (sd.Heun(), 100), (sd.TorchDiffEq("euler"), 50), (sd.TorchSDE("euler"), 50)):
        with sd.count_evaluations(model) as calls:
            sd.sample(model, 2, solver=solver)
        assert calls.forward == calls_due
    assert len(list(sd.trajectory(model, 2, solver=sd.TorchDiffEq()))) == 2  # in one go


def test_times_of_all_kinds():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    grid = [1.0, 0.5, 0.1, 0.01]
    expected = sd.sample(model, 4, times=torch.tensor(grid, dtype=torch.float64))
    for times in (grid, tuple(grid), np.array(grid), torch.tensor(grid, dtype=torch.float64)[None][0]):
        assert torch.equal(sd.sample(model, 4, times=times), expected)
    assert torch.equal(sd.sample(model, 4, times=sd.grid.quadratic(model.sde, 3)), sd.sample(model, 4, times=sd.grid.quadratic(model.sde, 3)))
    heun = sd.Heun()
    assert torch.equal(sd.sample(model, 4, solver=heun, times=sd.grid.uniform(model.sde, 7)), sd.sample(model, 4, solver=heun, steps=7))
    edm = sd.ExactModel(mixture(), sd.EDMSDE())
    assert torch.equal(sd.sample(edm, 4, solver=heun, times=sd.grid.karras(edm.sde, 7)), sd.sample(edm, 4, solver=heun, steps=7))


@by_sde
def test_grids(sde):
    for grid in (sd.grid.uniform, sd.grid.quadratic, sd.grid.karras, sd.grid.log_snr):
        for n in (1, 2, 37):
            t = grid(sde, n)
            assert t.dtype == torch.float64
            assert t.shape == (n + 1,)
            assert bool((t.diff() < 0).all())
            assert float(t[0]) == sde.t_max
            assert float(t[-1]) == (sde.t_end or sde.t_min)
        t = grid(sde, 5, start=0.7, end=0.2)
        assert (float(t[0]), float(t[-1])) == (0.7, 0.2)
    n = 10
    t = sd.grid.uniform(sde, n)
    assert torch.allclose(t.diff(), (t[-1] - t[0]) / n)
    assert torch.allclose(sd.grid.quadratic(sde, n).sqrt().diff(), (t[-1].sqrt() - t[0].sqrt()) / n)
    ratio = (-sde.log_snr(sd.grid.karras(sde, n)) / 2).exp() ** (1 / 7)
    assert torch.allclose(ratio.diff(), (ratio[-1] - ratio[0]) / n, rtol=1e-6)
    log_snr = sde.log_snr(sd.grid.log_snr(sde, n))
    assert torch.allclose(log_snr.diff(), (log_snr[-1] - log_snr[0]) / n, rtol=1e-6)
    # EDM's own formula
    if isinstance(sde, sd.EDMSDE):
        i = torch.arange(n + 1, dtype=torch.float64) / n
        formula = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert torch.allclose(sd.grid.default(sde, n), formula, rtol=1e-12)


def test_x_init():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = sd.sample(model, x_init=x, times=[0.4, 0.3], solver=sd.Euler())
    assert not y.requires_grad
    assert torch.allclose(y, x.detach() - 0.1 * model.velocity(x.detach(), 0.4), rtol=1e-12)
    assert torch.equal(sd.sample(model, 5, x_init=x, times=[0.4, 0.3], solver=sd.Euler()), y)
    assert torch.equal(sd.sample(model, x_init=x[1:2], times=[0.4, 0.3], solver=sd.Euler(), batch_size=16), y[1:2])
    # noise is that of the ids, whatever the start
    ids = [4, 3, 2, 1, 0]
    a = sd.sample(model, x_init=x, steps=4, solver=sd.Ancestral(), ids=ids, batch_size=5)
    b = sd.sample(model, x_init=x.flip(0), steps=4, solver=sd.Ancestral(), batch_size=5)
    assert torch.equal(a, b.flip(0))


def test_denoise_is_one_tweedie_call_at_the_end():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    for solver in (sd.Heun(), sd.Ancestral(), sd.TorchDiffEq()):
        x = sd.sample(model, 6, solver=solver, steps=4, t_end=0.05)
        clean = sd.sample(model, 6, solver=solver, steps=4, t_end=0.05, denoise=True)
        assert torch.allclose(clean, model.denoise(x, 0.05), rtol=1e-9)
        assert float((clean - x).abs().max()) > 1e-3


@pytest.mark.parametrize("solver", [*SOLVERS, *ADAPTIVE], ids=repr)
def test_no_samples(solver):
    model = sd.ExactModel(mixture((1, 2, 2)), sd.VPSDE())
    x = sd.sample(model, 0, solver=solver, steps=3, denoise=True)
    assert x.shape == (0, 1, 2, 2)
    assert x.dtype == torch.float64


def test_any_event_shape():
    for event in ((1,), (2, 3), (2, 2, 2, 2)):
        model = sd.ExactModel(mixture(event), sd.VPSDE())
        for solver in (sd.Heun(), sd.PredictorCorrector(), sd.TorchDiffEq(), sd.TorchSDE()):
            x = sd.sample(model, 3, solver=solver, steps=3)
            assert x.shape == (3, *event)
            flat = sd.ExactModel(mixture((math.prod(event),)), sd.VPSDE())
            flat.target.means = model.target.means.flatten(1)
            assert torch.allclose(sd.sample(flat, 3, solver=solver, steps=3).view(x.shape), x, rtol=1e-9, atol=1e-10)


def test_default_batch_sizes():
    sizes = {event: default_batch_size(event) for event in ((1,), (2,), (64,), (1, 28, 28), (3, 32, 32), (3, 256, 256))}
    assert sizes == {(1,): 1024, (2,): 1024, (64,): 64, (1, 28, 28): 16, (3, 32, 32): 16, (3, 256, 256): 16}


def test_progress_shows_and_changes_nothing(capsys):
    model = sd.ExactModel(mixture(), sd.VPSDE())
    assert torch.equal(sd.sample(model, 4, steps=3, progress=True), sd.sample(model, 4, steps=3))
    out = capsys.readouterr()
    assert out.out == ""
    assert "sampling" in out.err


def test_under_other_gradient_modes():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    for solver in (sd.Heun(), sd.RK4(), sd.Ancestral(), sd.TorchDiffEq(), sd.TorchSDE(), sd.PredictorCorrector()):
        expected = sd.sample(model, 4, solver=solver, steps=4)
        with torch.no_grad():
            assert torch.equal(sd.sample(model, 4, solver=solver, steps=4), expected)
        with torch.inference_mode():
            found = sd.sample(model, 4, solver=solver, steps=4)
            stages = [x for _, _, x, _ in sd.trajectory(model, 4, solver=solver, steps=4)]
        assert torch.equal(found, expected)
        assert torch.allclose(stages[-1], expected, rtol=1e-9)
        assert not found.is_inference()


def test_no_warnings():
    """Nothing that we do makes torch, torchdiffeq or torchsde complain."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solver in [*SOLVERS, *ADAPTIVE]:
            for sde in (sd.VPSDE(), sd.EDMSDE()):
                sd.sample(sd.ExactModel(mixture(dtype=torch.float32), sde), 3, solver=solver, steps=3)


# ---- the loop's checks


class Spoiled(sd.ScoreModel):
    """NaN (or inf) below some time for the states that start negative in their first coordinate."""

    def __init__(self, below, value=math.nan, rows=lambda x: x[:, 0] < 0):
        super().__init__(sd.VPSDE(), (2,))
        self.below, self.value, self.rows = below, value, rows

    def denoise(self, x, t, **cond):
        bad = self.rows(x) if float(t if not isinstance(t, torch.Tensor) else t.max()) < self.below else torch.zeros(len(x), dtype=torch.bool)
        return torch.where(bad[:, None], torch.full_like(x, self.value), torch.zeros_like(x))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", [sd.Euler(), sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchDiffEq("rk4"), sd.TorchSDE()], ids=repr)
def test_non_finite_states_are_found_within_16_steps(solver, value):
    model, steps = Spoiled(0.55, value), 100
    start = Noise(0, check_ids(None, 5), (2,)).normal(PRIOR)
    bad = [100 + i for i in range(5) if float(start[i, 0]) < 0]  # x0 = 0 elsewhere: signs stay
    x_init = start.clone()
    if not isinstance(solver, (sd.Euler, sd.Heun, sd.TorchDiffEq)):
        x_init, model.rows, bad = start, (lambda x: torch.arange(len(x)) == 2), [102]
    with pytest.raises(SolverError) as caught:
        times = sd.grid.uniform(model.sde, steps)
        sd.sample(model, x_init=x_init, ids=range(100, 105), solver=solver, times=times, batch_size=8)
    message = str(caught.value)
    first, last = map(int, re.search(r"steps (\d+) to (\d+)", message).groups())
    high, low = map(float, re.search(r"t from ([\d.e-]+) to ([\d.e-]+)", message).groups())
    assert last - first + 1 <= CHECK_EVERY == 16
    assert first <= 46 <= last  # t < 0.55 is met at step 46 (or 45, by those who look ahead)
    assert low < 0.55 < high
    assert re.search(r"sample ids \[([\d, ]+)\]", message).group(1) == ", ".join(map(str, bad))
    assert type(solver).__name__ in message


def test_non_finite_states_in_the_last_steps_are_found():
    for steps in (1, 15, 16, 17, 33):
        model = Spoiled(1.5 / steps if steps > 1 else 2.0, rows=lambda x: torch.ones(len(x), dtype=torch.bool))
        with pytest.raises(SolverError, match=rf"to {steps - 1}, t from"):
            sd.sample(model, 2, solver=sd.Euler(), steps=steps, t_end=1e-5)
        with pytest.raises(SolverError, match=rf"to {steps - 1}, t from"):
            list(sd.trajectory(model, 2, solver=sd.Euler(), steps=steps, t_end=1e-5))


def test_the_number_of_ids_in_a_message_is_limited():
    model = Spoiled(0.9, rows=lambda x: torch.ones(len(x), dtype=torch.bool))
    with pytest.raises(SolverError, match=r"sample ids \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\.:"):
        sd.sample(model, 100, solver=sd.Euler(), steps=20, batch_size=100)
    with pytest.raises(SolverError, match=r"sample ids \[0, 1, 2\]:"):  # each once, not once for each row of padding
        sd.sample(model, 3, solver=sd.Euler(), steps=20, batch_size=100)


# ---- equivalences


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


# ---- the laws

GAUSSIAN = torch.tensor([[0.8, -0.3]]), torch.tensor([[0.5, 0.2]])  # mean and std of the two coordinates


def step_of(solver, sde, t, s, mean, variance):
    """(a, c, b2) with x_s = a x + c + sqrt(b2) z, from closed forms: score = -(x - alpha m)/(alpha^2 v + sigma^2)."""
    alpha, sigma, f, g2 = CLOSED[name(sde)]
    at, as_, st, ss = alpha(t), alpha(s), sigma(t), sigma(s)
    p = at**2 * variance + st**2
    if isinstance(solver, (sd.EulerMaruyama, sd.TorchSDE)):
        h, k = s - t, (1 + solver.eta**2) / 2 * g2(t)
        return 1 + h * (f(t) + k / p), -h * k * at * mean / p, solver.eta**2 * g2(t) * (t - s)
    r = at / as_
    b2 = st**2 - r**2 * ss**2
    if isinstance(solver, sd.ReverseDiffusion):
        return 2 - r - b2 / p, b2 * at * mean / p, b2
    if isinstance(solver, sd.DDIM):
        v = solver.eta**2 * ss**2 * b2 / st**2
        # x0 = gain x + shift, eps = (x - alpha x0)/sigma
        gain, shift = at * variance / p, st**2 * mean / p
        k = (ss**2 - v).clamp_min(0).sqrt() / st
        return as_ * gain + k * (1 - at * gain), as_ * shift - k * at * shift, v
    gain, shift = at * variance / p, st**2 * mean / p
    return r * ss**2 / st**2 + as_ * b2 / st**2 * gain, as_ * b2 / st**2 * shift, ss**2 * b2 / st**2


LAW_SOLVERS = [
    sd.EulerMaruyama(),
    sd.EulerMaruyama(eta=0.5),
    sd.Ancestral(),
    sd.ReverseDiffusion(),
    sd.DDIM(eta=0.5),
    sd.DDIM(eta=1.0),
    sd.TorchSDE("euler"),
    sd.TorchSDE("euler", eta=0.7),
]
LAW_STEPS, LAW_N = 12, 20_000
LAW_TESTS = len(LAW_SOLVERS) * len(SDES) * 4 * 2 * 2  # solvers, SDEs, times, coordinates, mean and variance


def law_scores(solver, sde, model=None, n=LAW_N):
    """z-scores of mean and variance at four of the times, against the recursion."""
    m, std = (v.double() for v in GAUSSIAN)
    model = model or sd.ExactModel(sd.GaussianMixture(m, std), sde)
    times = sd.grid.karras(sde, LAW_STEPS) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.log_snr(sde, LAW_STEPS)
    if isinstance(solver, (sd.EulerMaruyama, sd.TorchSDE)) and not isinstance(sde, (sd.EDMSDE, sd.VESDE)):
        times = sd.grid.quadratic(sde, LAW_STEPS)  # explicit: log-SNR steps at the end of VP would be unstable
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.full((2,), float(sde.sigma(float(times[0]))) ** 2).double()
    scores = []
    for step, t, x, _ in sd.trajectory(model, n, solver=solver, times=times, seed=11):
        if step:
            a, c, b2 = step_of(solver, sde, times[step - 1], times[step], m[0], std[0] ** 2)
            mean, variance = a * mean + c, a**2 * variance + b2
        if step in (3, 6, 9, LAW_STEPS):
            assert t == float(times[step])
            scores.append((x.mean(0) - mean) / (variance / n).sqrt())
            scores.append((x.var(0) / variance - 1) / math.sqrt(2 / n))
    return torch.cat(scores)


@by_sde
@pytest.mark.parametrize("solver", LAW_SOLVERS, ids=repr)
def test_reverse_sde_marginals(solver, sde):
    """M11. With N = 20,000 and |z| < 6.1, a scale error of 5 % gives z = 9.8 and a shift of 5 % of a std z = 7.0 on average."""
    scores = law_scores(solver, sde)
    assert scores.numel() == 16
    assert float(scores.abs().max()) < z_limit(LAW_TESTS)


def test_the_marginal_test_has_its_power():
    """A model whose data are 5 % wider, or whose mean is shifted by 10 % of a std, is found at N = 20,000."""
    m, std = (v.double() for v in GAUSSIAN)
    for wrong in (sd.GaussianMixture(m, 1.05 * std), sd.GaussianMixture(m + 0.1 * std, std)):
        scores = law_scores(sd.Ancestral(), sd.VPSDE(), sd.ExactModel(wrong, sd.VPSDE()))
        assert float(scores.abs().max()) > z_limit(LAW_TESTS)


@by_sde
def test_the_discretised_laws_are_close_to_the_data(sde):
    """What the recursion converges to is the data's law: mean and std within 5 % at 200 steps, for all of these solvers."""
    m, std = (v.double()[0] for v in GAUSSIAN)
    for solver in LAW_SOLVERS:
        times = sd.grid.karras(sde, 400) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.quadratic(sde, 400)
        mean, variance = 0 * m, torch.full((2,), float(sde.sigma(float(times[0]))) ** 2).double()
        for t, s in zip(times[:-1], times[1:], strict=True):
            a, c, b2 = step_of(solver, sde, t, s, m, std**2)
            mean, variance = a * mean + c, a**2 * variance + b2
        assert torch.allclose(variance.sqrt(), std, rtol=0.05), solver
        assert float(((mean - m) / std).abs().max()) < 0.05, solver


# ---- Langevin


def test_langevin_has_the_stationary_law_of_its_step():
    """Unadjusted Langevin with h = 2 (snr |z|/|score|)^2 on N(0, V) in D dimensions is biased, by a known amount.

    With score = -x/V, |x|^2 is a chain of its own, and E|x'|^2 = E|x|^2 at stationarity says, exactly,

        E[V/|x|^2] = 1/((1 + snr^2)(D + 2)),

    where V itself would have 1/(D - 2). N = 4,000 chains in 64-D: z < 5 allows 1.6 %, the bias of snr = 0.3 is 14 %, and that of
    a step common to the batch (Song's code) 3 %. A start from the exact law and 60 steps forget 99.9 % of it.
    """
    D, n, snr, steps = 64, 4_000, 0.3, 60
    sde = sd.EDMSDE()
    target = sd.GaussianMixture(torch.zeros(1, D, dtype=torch.float64), torch.full((1,), 0.5).double())
    model = sd.ExactModel(target, sde)
    t = 2.0
    V = 0.5**2 + t**2
    x = math.sqrt(V) * Noise(1, check_ids(None, n), (D,), torch.float64).normal(PRIOR)
    x = sd.sample(model, x_init=x, times=[3.0, t], solver=sd.Langevin(snr=snr, steps=steps), batch_size=n)
    ratio = V / x.square().sum(1)
    expected = 1 / ((1 + snr**2) * (D + 2))
    z = float((ratio.mean() - expected) / (ratio.std() / math.sqrt(n)))
    assert abs(z) < 5
    assert abs(float((ratio.mean() - 1 / (D - 2)) / (ratio.std() / math.sqrt(n)))) > 20  # it is not V's own
    assert abs(float(x.mean())) < 5 * math.sqrt(float(x.var()) / x.numel())


def test_langevin_is_stable_where_the_score_vanishes():
    """In one dimension the score is close to 0 now and then: the step is bounded, and the chain stays near its law."""
    target = sd.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 0.5).double())
    model = sd.ExactModel(target, sd.EDMSDE())
    x = sd.sample(model, 500, times=[0.5, 0.4], solver=sd.Langevin(snr=0.16, steps=200), batch_size=500)
    assert float(x.abs().max()) < 6 * math.sqrt(0.25 + 0.16) * 1.5
    zero = sd.sample(model, x_init=torch.zeros(3, 1, dtype=torch.float64), times=[0.5, 0.4], solver=sd.Langevin())
    assert bool(zero.isfinite().all())


@by_sde
def test_predictor_corrector_in_64_dimensions(sde):
    """50 steps of each on a Gaussian: the std of samples is within 10 % of the corrector's own, see above."""
    D, n, snr = 64, 100, 0.16
    target = sd.GaussianMixture(torch.full((1, D), 0.5, dtype=torch.float64), torch.full((1,), 0.3).double())
    model = sd.ExactModel(target, sde)
    for predictor in (sd.ReverseDiffusion(), sd.EulerMaruyama()):
        solver = sd.PredictorCorrector(predictor, sd.Langevin(snr=snr, steps=4))
        times = sd.grid.karras(sde, 50) if isinstance(sde, (sd.EDMSDE, sd.VESDE)) else sd.grid.quadratic(sde, 50)
        x = sd.sample(model, n, solver=solver, times=times)
        std = math.sqrt(0.3**2 * (1 + snr**2) * (1 + 2 / D))
        assert float(x.std(0).mean()) == pytest.approx(std, rel=0.1), solver
        assert float(x.mean()) == pytest.approx(0.5, abs=0.02), solver


def test_predictor_corrector_is_its_parts():
    """By hand: the predictor with the step's noise, the corrector with its own streams, at the right time, in both orders."""
    sde = sd.SubVPSDE()
    model = sd.ExactModel(mixture(), sde)
    times = [0.9, 0.6, 0.3]
    levels = sde.levels(times)
    corrector, predictor = sd.Langevin(snr=0.2, steps=2), sd.Ancestral()
    noise = Noise(4, check_ids(None, 6), (3,), torch.float64)
    for order in ("predictor-corrector", "corrector-predictor"):
        x = noise.normal(PRIOR) * levels[0].sigma
        for i, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            def correct(x, at, i=i):
                for k in range(2):
                    z, score = noise.normal(CORRECTOR + k, i), model.score(x, at)
                    h = 2 * (0.2 * z.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)) ** 2
                    h = h.clamp_max(float(sde.sigma(float(at))) ** 2)
                    x = x + h * score + (2 * h).sqrt() * z
                return x

            if order == "corrector-predictor":
                x = correct(x, t)
            x, _ = predictor.step(model, x, t, s, None, lambda stream=STEP, i=i: noise.normal(stream, i))
            if order == "predictor-corrector":
                x = correct(x, s)
        solver = sd.PredictorCorrector(predictor, corrector, order)
        found = sd.sample(model, 6, solver=solver, times=times, seed=4, batch_size=6)
        assert torch.allclose(found, x, rtol=1e-11)


# ---- few steps


@by_sde
def test_every_solver_is_finite_from_one_step_up(sde):
    model = sd.ExactModel(two_modes(), sde)
    for solver in SOLVERS:
        for steps in (1, 2, 5, 10):
            x = sd.sample(model, 4, solver=solver, steps=steps, batch_size=4)
            assert bool(x.isfinite().all()), (solver, steps)


@by_sde
def test_ancestral_has_the_spread_of_the_data_at_ten_steps(sde):
    """Within 20 %, on the default grid, where discrete tables give NaN (their beta exceeds 1 below 20 steps)."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=torch.float64)
    target = sd.GaussianMixture(means, torch.tensor([0.3, 0.4], dtype=torch.float64))
    x = sd.sample(sd.ExactModel(target, sde), 4_000, solver=sd.Ancestral(), steps=10, batch_size=4_000)
    assert float(x.var(0).sum().sqrt()) == pytest.approx(math.sqrt(1.5**2 + 0.25**2 + 2 * 0.125), rel=0.2)


@pytest.mark.parametrize("solver", [sd.Heun(), sd.RK4(), sd.DDIM(), sd.TorchDiffEq("dopri5")], ids=repr)
@by_sde
def test_ode_samples_have_the_law_of_the_data(sde, solver):
    """Two modes with weights 0.4 and 0.6, N = 2,000: the fraction within 5 sigma = 5.5 % and the spread within 6 %."""
    model = sd.ExactModel(two_modes(), sde)
    steps = {"Heun": 40, "RK4": 20, "DDIM": 150}.get(name(solver))
    x = sd.sample(model, 2_000, solver=solver, times=steps and sd.grid.log_snr(sde, steps), batch_size=2_000)
    assert float((x[:, 0] < 0).double().mean()) == pytest.approx(0.4, abs=0.055)
    assert torch.allclose(x.std(0), two_modes().sample(50_000).std(0), rtol=0.06)


# ---- log p of what is sampled


BY_REFERENCE = [(sde, "auto", steps, limit) for sde in SDES for steps, limit in ((20, 4e-3), (40, 3e-5))]
OTHERS = [(sd.UniPC(), 40, 2e-2), (sd.DEIS(4), 40, 5e-2), (sd.RK4(), 20, 2e-2), (sd.AdaptiveODE(1e-5, 1e-5), None, 1e-3)]


@pytest.mark.parametrize(("sde", "solver", "steps", "limit"), BY_REFERENCE + [(sde, *row) for sde in SDES[::4] for row in OTHERS], ids=repr)
def test_log_prob_of_samples_is_the_exact_one(sde, solver, steps, limit):
    """Samples from the exact density at t_max, so that the prior adds no error; root mean square error in nats, at t_end and t_min."""
    target = correlated_mixture(4)
    model = sd.ExactModel(target, sde)
    x = marginal_sample(target, sde, sde.t_max, 16)
    known = model.log_prob(x, sde.t_max) - sde.prior_log_prob(x)
    how = {"x_init": x, "solver": solver, "steps": steps}
    for end in (2 * sde.t_min, sde.t_min):
        with sd.count_evaluations(model) as calls:
            y, log_p = sd.sample(model, t_end=end, return_log_prob=True, **how)
        assert (log_p.shape, log_p.dtype) == ((16,), torch.float64)
        assert float((log_p + known - model.log_prob(y, end)).square().mean().sqrt()) < limit
        plain = sd.sample(model, t_end=end, **how)
        assert torch.allclose(y, plain, rtol=0, atol=1e-11 if steps else 1e-4)
        if solver in ("auto", sd.UniPC()):
            assert (calls.forward, calls.vjp) == (steps + 1, 4 * (steps + 1))
    assert torch.allclose(log_p, sd.log_prob(model, y, steps=60, divergence="exact").log_prob, rtol=0, atol=2 * limit)


@pytest.mark.slow
def test_log_prob_of_sample_i_is_that_of_sample_i():
    """Of a network with labels, in float32, with random traces, by every kind of solver."""
    net = sd.nets.MLP(3, width=16, depth=1, classes=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    model = sd.NetworkModel(net, sd.VPSDE(), (3,))
    label = torch.arange(7) % 3
    for reference in (None, sd.GaussianReference(torch.zeros(3), torch.ones(3))):
        model.reference = reference
        for solver in ("auto", sd.Heun(), sd.AdaptiveODE(1e-3, 1e-3))[: 3 if reference is None else 1]:
            how = {"solver": solver, "return_log_prob": True, "divergence": "hutchinson", "probes": 2, "seed": 3}
            how["steps"] = None if hasattr(solver, "rtol") else 8
            x, log_p = sd.sample(model, 7, label=label, **how)
            plain = {**how, "return_log_prob": False}
            assert torch.allclose(x, sd.sample(model, 7, label=label, **plain), rtol=0, atol=2e-2 if hasattr(solver, "rtol") else 1e-5)
            for size in (3,):
                for found, whole in zip(sd.sample(model, 7, label=label, batch_size=size, **how), (x, log_p), strict=True):
                    assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4)
            for found, whole in zip(sd.sample(model, ids=[5, 2], n=2, label=label[[5, 2]], **how), (x, log_p), strict=True):
                assert torch.allclose(found, whole[[5, 2]], rtol=1e-4, atol=1e-4)
            exact = sd.sample(model, 7, label=label, **{**how, "divergence": "exact"})[1]
            assert 1e-4 < float((exact - log_p).abs().max()) < 5


@pytest.mark.parametrize("kind", ["hutchinson", "gaussian", "hutch++"])
def test_log_prob_of_samples_has_the_probes_of_log_prob(kind):
    """Back along the same path with the same probes the estimate is the same, with the same correction, by either kind of solver."""
    model = sd.ExactModel(correlated_mixture(6), sd.SubVPSDE())
    how = {"divergence": kind, "probes": 3, "seed": 5, "ids": [7, 1, 4, 9]}
    for solver, steps in (("auto", 60), (sd.AdaptiveODE(1e-4, 1e-4), None)):
        x, log_p = sd.sample(model, 4, solver=solver, steps=steps, t_end=model.sde.t_min, return_log_prob=True, **how)
        assert torch.allclose(log_p, sd.log_prob(model, x, steps=60, **how).log_prob, rtol=0, atol=2e-3)
        assert (log_p - sd.log_prob(model, x, steps=40, divergence="exact").log_prob).abs().max() > 1e-2


@by_sde
def test_log_prob_of_samples_that_start_in_the_middle(sde):
    """From N(0, sigma^2 I) there: of Gaussian data all is known, the path is a change of scale."""
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)), sde)
    times = sd.grid.log_snr(sde, 40)[18:]
    start, end = sde.levels(times[[0, -1]])
    x, log_p = sd.sample(model, 5, solver=sd.ReferenceSolver(), times=times, return_log_prob=True)
    grow = math.sqrt((0.25 * end.alpha**2 + end.sigma**2) / (0.25 * start.alpha**2 + start.sigma**2))
    normal = torch.distributions.Normal(0.0, torch.tensor(start.sigma * grow, dtype=torch.float64))
    assert torch.allclose(log_p, normal.log_prob(x).sum(1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [*SOLVERS, sd.AdaptiveSDE(), sd.EDMStochastic(), sd.SASolver(), sd.Restart(sd.Heun())], ids=repr)
def test_log_prob_of_samples_is_refused_where_noise_is_added(solver):
    if repr(solver).split("(")[0] in ("Euler", "Heun", "RK4", "TorchDiffEq") or getattr(solver, "eta", None) == 0.0:
        return
    model = sd.ExactModel(mixture(), sd.VPSDE())
    steps = 1 if hasattr(solver, "rtol") else 3
    with sd.count_evaluations(model) as calls, pytest.raises(sd.errors.ConfigError, match="return_log_prob=True needs"):
        sd.sample(model, 4, solver=solver, steps=steps, return_log_prob=True)
    assert calls.forward <= 6  # it is known at the first noise


def test_wrong_arguments_of_log_prob_of_samples():
    model = sd.ExactModel(mixture(), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="denoise=True"):
        sd.sample(model, 2, return_log_prob=True, denoise=True)
    with pytest.raises(sd.errors.ConfigError, match="divergence"):
        sd.sample(model, 2, return_log_prob=True, divergence="trace")
    with pytest.raises(sd.errors.ConfigError, match="probes"):
        sd.sample(model, 2, return_log_prob=True, probes=0)
    x, log_p = sd.sample(model, 0, return_log_prob=True)
    assert (x.shape, log_p.shape) == ((0, 3), (0,))

"""Sampling: sample i is sample i, calls are counted, and what is asked is what is drawn."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
import torch
from problems import SDES
from sampling.cases import SOLVERS, Counted, mixture

import scoresde as sd
from scoresde.core.noise import Noise, check_ids
from scoresde.core.streams import PRIOR
from scoresde.errors import SolverError
from scoresde.solvers import planning

ADAPTIVE = [sd.TorchDiffEq("dopri5"), sd.TorchDiffEq("bosh3", rtol=1e-3, atol=1e-3)]

by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


def unet_model(sde=SDES[0]):
    """A network with random weights everywhere: the output layer starts as zero otherwise."""
    net = sd.nets.UNet(channels=1, width=8, multipliers=(1, 2), blocks=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 / math.sqrt(max(p[0].numel(), 1))))
    return sd.NetworkModel(net, sde, (1, 8, 8), "v")


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


def _half_network():
    """A network of bfloat16 weights; the dtypes of what it was given are kept."""
    torch.manual_seed(0)
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.eye(2, dtype=torch.bfloat16) / 2)

        def forward(self, x, c_noise):
            seen.append((x.dtype, c_noise.dtype))
            return x @ self.w

    return sd.NetworkModel(Net(), sd.VPSDE(), (2,), parameterization="x0"), seen


@pytest.mark.parametrize("solver", ["auto", sd.UniPC(2), sd.Heun(), sd.EulerMaruyama(), sd.AdaptiveODE(rtol=1e-2, atol=1e-2)], ids=str)
def test_states_of_a_half_precision_network_are_float32(solver):
    """The network is asked in its own dtype; the state is not rounded to it, so that only its answers are."""
    model, seen = _half_network()
    single = sd.NetworkModel(model.net, sd.VPSDE(), (2,), parameterization="x0")
    how = {} if isinstance(solver, sd.AdaptiveODE) else {"steps": 30}
    y = sd.sample(model, 64, solver=solver, **how)
    assert y.dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    narrow = sd.sample(model, 64, solver=solver, dtype=torch.bfloat16, **how)
    assert narrow.dtype == torch.bfloat16
    single.net.w.data = single.net.w.data.float()
    exact = sd.sample(single, 64, solver=solver, **how)
    off, off_narrow = ((x.float() - exact).square().mean().sqrt() for x in (y, narrow))
    assert off < 0.02
    if "steps" in how and solver != sd.EulerMaruyama():  # whose noise, rounded alike in both, is most of what is off; tolerances too
        assert off < 0.7 * off_narrow


def test_x_init_is_cast_to_the_dtype_of_the_states():
    """float64 states for a float32 model, by an argument or by nothing: cast, not refused, and every sample is what it is alone."""
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same = sd.sample(model, x_init=x.float(), steps=6)
    assert torch.equal(sd.sample(model, x_init=x, steps=6), same)
    wide = sd.sample(model, x_init=x, steps=6, dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert 0 < float((wide - same).abs().max()) < 1e-4
    *_, (_, _, last, x0) = sd.trajectory(model, x_init=x, steps=6, dtype=torch.float64)
    assert torch.allclose(last, wide, atol=1e-6)
    assert x0.dtype == torch.float64
    assert sd.sample(model, 3, steps=2, dtype=torch.float64).dtype == torch.float64
    for wrong in (torch.int32, "float32"):
        with pytest.raises(sd.errors.ConfigError, match="dtype"):
            sd.sample(model, 3, steps=2, dtype=wrong)
    y, log_p = sd.sample(model, x_init=x, steps=6, dtype=torch.float64, return_log_prob=True)
    assert (y.dtype, log_p.dtype) == (torch.float64, torch.float64)

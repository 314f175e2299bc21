"""The frontier of quality against calls: honest counts, figures against closed forms, floors, parts of the error, files."""

import csv
import dataclasses
import json
import math
import time
from dataclasses import dataclass

import pytest
import torch
from problems import gaussian, gaussian_path, name

import scoresde as sd
from scoresde import grid, metrics
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.evaluation import bootstrap
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier import distances, jobs, solve, work
from scoresde.evaluation.frontier.compare import NFE, SOLVERS, frontier
from scoresde.evaluation.frontier.result import Frontier
from scoresde.evaluation.frontier.rows import Row, label_of
from scoresde.evaluation.metrics import NoiseFloor, sliced_wasserstein
from scoresde.sampling import sampler

torch.set_num_threads(1)
QUIET = {"progress": False, "paths": 0, "resamples": 20}
FEW = {"progress": False, "paths": 8, "resamples": 20, "converged": sd.TorchDiffEq(rtol=1e-5, atol=1e-5)}


@pytest.fixture(scope="module")
def moons():
    return sd.data.two_moons()


@pytest.fixture(scope="module")
def exact(moons):
    return sd.ExactModel(moons, sd.VPSDE())


def isotropic(mean, std, dim=4):
    return sd.GaussianMixture(torch.full((1, dim), float(mean), dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


class Believed(sd.ScoreModel):
    """A model, not known to be exact, that believes in N(mean, std^2 I)."""

    def __init__(self, mean, std, sde, dim=4, delay=0.0):
        super().__init__(sde, (dim,))
        self.inside, self.delay = isotropic(mean, std, dim), delay

    def predict(self, x, t):
        time.sleep(self.delay)
        level = self.sde.level(t, x)
        return self.inside.posterior(x, level.alpha, level.sigma)


@dataclass(frozen=True)
class Startup(sd.Solver):
    """Three calls in the first step, one in each later: what a multistep method does."""

    def init(self, model, x, times):
        return 0

    def step(self, model, x, t, s, state, noise):
        for _ in range(2 if state == 0 else 0):
            model.velocity(x, t)
        return x + (s - t) * model.velocity(x, t), state + 1


@dataclass(frozen=True)
class LastIsEuler(sd.Solver):
    """Two calls a step, one in the last: 2 N - 1 for N steps; and twice as many in the sixth."""

    def init(self, model, x, times):
        return (times[-1], 0)

    def step(self, model, x, t, s, state, noise):
        end, k = state
        for _ in range(1 + (s != end) + 2 * (k == 5)):
            v = model.velocity(x, t)
        return x + (s - t) * v, (end, k + 1)


@dataclass(frozen=True)
class LateStart(sd.Solver):
    """Five calls in the second step, one in all others: N + 4."""

    def init(self, model, x, times):
        return 0

    def step(self, model, x, t, s, state, noise):
        for _ in range(5 if state == 1 else 1):
            v = model.velocity(x, t)
        return x + (s - t) * v, state + 1


@dataclass(frozen=True)
class Paired(sd.Solver):
    """Evaluates every sample at two times in one call."""

    def step(self, model, x, t, s, state, noise):
        both = model.denoise(torch.cat([x, x]), torch.tensor([float(t)] * len(x) + [float(s)] * len(x), dtype=torch.float64))
        return both[: len(x)], state


@dataclass(frozen=True)
class Broken(sd.Solver):
    how: str = "inf"

    def step(self, model, x, t, s, state, noise):
        if self.how == "raise":
            raise KeyError("oops")
        return x + model.velocity(x, t) * math.inf, state


@dataclass(frozen=True)
class Nothing(sd.Solver):
    """Leaves the noise that it starts from."""

    tag: int = 0

    def step(self, model, x, t, s, state, noise):
        model.velocity(x, t)
        return x, state


@dataclass(frozen=True)
class Churned(sd.Solver):
    """Random in the middle only."""

    def step(self, model, x, t, s, state, noise):
        x = x + (s - t) * model.velocity(x, t)
        return (x + 0.1 * noise(0), state) if 0.4 < t < 0.6 else (x, state)


def test_default_solvers_and_budgets():
    assert NFE == (5, 8, 10, 15, 20, 35, 50, 100)
    assert len({type(s) for s in SOLVERS}) >= 6
    assert sum(isinstance(s, sd.TorchDiffEq) for s in SOLVERS) >= 3
    assert SOLVERS[0] == "auto"
    assert sd.frontier is frontier
    assert sd.Frontier is Frontier


# ---- counts


def test_network_calls_are_counted(exact, moons):
    corrector = sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(steps=2))
    solvers = [sd.Euler(), sd.Heun(), sd.RK4(), corrector, Startup(), LastIsEuler(), LateStart()]
    result = frontier(exact, moons.sample(40, 1), solvers=solvers, nfe=(3, 10, 13), samples=20, batch_size=8, **QUIET)
    found = {(r.label, r.budget): (r.steps, r.nfe) for r in result.rows}
    expected = {
        "Euler": [(3, 3), (10, 10), (13, 13)],
        "Heun": [(1, 2), (5, 10), (6, 12)],
        "RK4": [(0, 0), (2, 8), (3, 12)],
        "ReverseDiffusion + Langevin(steps=2)": [(1, 3), (3, 9), (4, 12)],
        "Startup": [(1, 3), (8, 10), (11, 13)],
        "LastIsEuler": [(2, 3), (5, 9), (6, 13)],
        "LateStart": [(1, 1), (6, 10), (9, 13)],
    }
    assert {label for label, _ in found} == set(expected)
    for label, rows in expected.items():
        assert [found[label, budget] for budget in (3, 10, 13)] == rows, label
    for solver, label in ((sd.Heun(), "Heun"), (Startup(), "Startup")):  # against a count of our own
        with sd.count_evaluations(exact) as calls:
            sd.sample(exact, 20, solver=solver, steps=found[label, 13][0], batch_size=8)
        assert calls.forward == 3 * found[label, 13][1]  # three batches
    (impossible,) = [r for r in result.rows if r.steps == 0]
    assert math.isnan(impossible.value("sliced_wasserstein"))
    assert "one step takes 4 network calls, more than 3" in impossible.message


def test_samples_evaluated_at_once_are_counted_each(exact):
    (row,) = frontier(exact, solvers=[Paired()], nfe=(6,), samples=20, batch_size=5, **QUIET).rows
    assert (row.steps, row.nfe, row.calls) == (3, 6, 3)


def test_counting_makes_no_network_calls_and_leaves_the_model_as_it_was(exact):
    setting = solve.Setting(exact, 4, 0, 1e-3, 4, {})
    before = dict(vars(exact))
    (job,) = jobs.make_jobs(exact.sde, [sd.Heun()], None, [100])
    posterior, called = exact.target.posterior, []
    exact.target.posterior = lambda *a: called.append(1) or posterior(*a)
    try:
        assert solve.steps_of(setting, job) == (50, "")
    finally:
        del exact.target.posterior
    assert not called
    assert vars(exact) == before


def test_an_adaptive_solver_runs_once_and_is_counted(exact, moons):
    loose, tight = sd.TorchDiffEq(rtol=1e-2, atol=1e-2), sd.TorchDiffEq(rtol=1e-4, atol=1e-4)
    result = frontier(exact, moons.sample(50, 1), solvers=[loose, tight], nfe=(5, 10), samples=20, batch_size=20, **QUIET)
    assert [(r.steps, r.budget, r.grid) for r in result.rows] == [(None, None, "adaptive")] * 2
    with sd.count_evaluations(exact) as calls:
        sd.sample(exact, 20, solver=tight, batch_size=20)
    assert result.rows[1].nfe == calls.forward > result.rows[0].nfe
    assert result.rows[0].label == result.rows[1].label == "TorchDiffEq(dopri5)"
    assert "rtol=0.01" in result.table()
    assert "rtol=0.0001" in result.table()


def test_time_goes_to_the_model_or_to_the_loop():
    @dataclass(frozen=True)
    class Slow(sd.Euler):
        def step(self, model, x, t, s, state, noise):
            time.sleep(0.02)
            return super().step(model, x, t, s, state, noise)

    reference = torch.zeros(20, 4).add(torch.arange(20.0)[:, None])
    result = frontier(Believed(0, 1, sd.VPSDE(), delay=0.04), reference, solvers=[Slow(), sd.Euler()], nfe=(4,), samples=16, **QUIET)
    slow, fast = result.rows
    assert 0.06 < slow.seconds_per_call < 0.2
    assert 0.02 < slow.overhead < 0.05
    assert fast.overhead < 0.02 < 0.04 < fast.seconds_per_call


@pytest.mark.parametrize(("solver", "truth"), [(sd.DDIM(), True), (sd.Ancestral(), False), (Churned(), False), (sd.TorchDiffEq(), True)])
def test_deterministic_solvers_are_told_from_others(exact, solver, truth):
    (row,) = frontier(exact, solvers=[solver], nfe=(7,), samples=12, **FEW).rows
    assert row.deterministic is truth
    assert ("median" in row.metrics) is truth
    assert math.isfinite(row.value("discretization"))


# ---- figures against closed forms


def test_pathwise_errors_are_those_of_the_closed_form():
    for sde in (sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()):
        model = sd.ExactModel(gaussian(3), sde)
        result = frontier(model, solvers=[sd.Heun()], nfe=(6, 20), samples=50, seed=4, resamples=300, progress=False)
        for row in result.rows:
            setting = solve.Setting(model, 50, 4, result.settings["t_end"], 50, {})
            truth = gaussian_path(model.target, sde, setting.start(50, torch.float64), sde.t_max, setting.t_end)
            x = sd.sample(model, 50, solver=sd.Heun(), steps=row.steps, seed=4)
            e = (x - truth).norm(dim=1)
            assert row.value("median") == pytest.approx(float(e.median()), rel=1e-6), name(sde)
            assert row.value("rms") == pytest.approx(float(e.square().mean().sqrt()), rel=1e-6)
            whole = bootstrap.bootstrap(lambda v: v.square().mean().sqrt(), e, resamples=300, seed=4)
            assert row.metrics["rms"].low == pytest.approx(whole.low, rel=1e-5)
            assert row.metrics["rms"].high == pytest.approx(whole.high, rel=1e-5)
        assert result.settings["converged_error"] < 1e-7


def test_log_p_and_occupancy_are_their_definitions():
    """A model whose samples are wrong in a known way: noise of std 1 left where N(0, 0.5^2) should be."""
    model = sd.ExactModel(isotropic(0, 0.5), sd.VPSDE())
    result = frontier(model, solvers=[Nothing()], nfe=(1,), samples=4000, **QUIET)
    # log p of N(0, 1) samples under N(0, 0.25) less its own mean: -2 (4 - 1) nats in four dimensions
    found = result.rows[0].metrics["log_prob_error"]
    assert found.low < -6 < found.high
    assert found.high - found.low < 0.6
    assert abs(found.value + 6) < 5 * found.std_error + 0.02
    assert result.rows[0].value("occupancy") == 0  # one mode
    two = sd.ExactModel(sd.GaussianMixture(torch.tensor([[-2.0], [2.0]]), torch.tensor([0.1, 0.1]), torch.tensor([0.2, 0.8])), sd.VPSDE())
    row = frontier(two, solvers=[Nothing()], nfe=(1,), samples=2000, **QUIET).rows[0]
    assert row.value("occupancy") == pytest.approx(0.3, abs=0.04)  # half of the noise on either side


def test_exact_sets_are_at_the_floor(exact):
    """A converged solver reads what fresh exact samples do, a bad one does not; the floor is the spread of fresh samples."""
    result = frontier(exact, solvers=[sd.Heun(), sd.Euler()], nfe=(100, 2), samples=1000, seed=3, paths=0, splits=20, progress=False)
    good, bad = result.rows[0], result.rows[3]
    for metric in ("sliced_wasserstein", "energy", "occupancy", "log_prob_error"):
        floor = result.floors[metric]
        assert abs(abs(good.value(metric)) - floor.mean) < 5 * floor.std, metric
        assert abs(bad.value(metric)) > floor.mean + 5 * floor.std, metric
        m = good.metrics[metric]
        assert m.low < m.value < m.high


def test_distances_are_those_of_the_public_functions(exact, moons):
    reference, pool = moons.sample(90, 1), moons.sample(300, 2)
    result = frontier(exact, reference, pool=pool, solvers=[sd.DDIM()], nfe=(6,), samples=60, seed=3, **QUIET)
    x = sd.sample(exact, 60, solver=sd.DDIM(), steps=6, seed=3)
    row = result.rows[0]
    assert row.value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(x, reference, seed=3), rel=1e-9)
    assert row.value("energy") == pytest.approx(metrics.energy_distance(x, reference), rel=1e-9)
    floor = metrics.noise_floor(pool, 60, seed=3, reference=reference)
    assert (result.floors["sliced_wasserstein"].mean, result.floors["sliced_wasserstein"].std) == pytest.approx((floor.mean, floor.std))


def test_figures_in_features_are_those_of_the_public_functions():
    model, calls = Believed(0.3, 1.1, sd.VPSDE()), []
    reference, pool = isotropic(0, 1).sample(80).float(), isotropic(0, 1).sample(400, 5).float()

    def see(x):
        calls.append(len(x))
        return torch.cat([x, x.square()], 1)[:, :6]

    result = frontier(model, reference, pool=pool, features=see, solvers=[sd.Heun()], nfe=(10,), samples=70, batch_size=16, **QUIET)
    x = sd.sample(model, 70, solver=sd.Heun(), steps=5, batch_size=16)
    a, b, row = see(x).double(), see(reference).double(), result.rows[0]
    assert max(calls[:-2]) <= 16
    assert row.value("mmd") == pytest.approx(metrics.mmd(a, b), rel=1e-5)
    assert row.value("frechet") == pytest.approx(metrics.frechet_distance(a, b), rel=1e-5)
    found = metrics.precision_recall(a, b)
    assert (row.value("precision"), row.value("recall")) == pytest.approx((found.precision, found.recall))
    assert set(result.floors) == {"sliced_wasserstein", "energy", "mmd", "frechet", "precision", "recall"}
    assert "see" in result.settings["features"]
    assert row.value("frechet") > result.floors["frechet"].mean
    plain = frontier(model, reference, solvers=[sd.Heun()], nfe=(10,), samples=70, batch_size=16, **QUIET).rows[0]
    assert plain.value("mmd") == pytest.approx(metrics.mmd(x.double(), reference.double()), rel=1e-5)
    assert "frechet" not in plain.metrics
    with pytest.raises(ShapeError, match=r"features gave shape \(80, 2, 2\)"):
        frontier(model, reference, features=lambda x: x.view(-1, 2, 2), solvers=[sd.Heun()], nfe=(2,), samples=16, **QUIET)


def test_first_order_intervals_are_those_of_the_full_bootstrap():
    """Standard errors of every distance, for samples off the reference, within 30 % of resampling in full."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, dtype=torch.float64, generator=generator) * 1.2 + 0.4
    y = torch.randn(200, 4, dtype=torch.float64, generator=generator)
    w = distances.Weights.make(300, 200, 0)
    directions = metrics.unit_directions(4, 32, 0)
    pairs, seen = distances.Pairs(y), distances.Seen(y)
    kernel = metrics.make_kernel("rbf", y)
    for found, function in (
        (distances.Projected(y, directions).distance(x, w), lambda v: sliced_wasserstein(v, y, 32)),
        (pairs.energy(x, w), lambda v: metrics.energy_distance(v, y)),
        (pairs.mmd(x, w, kernel, float(metrics.row_means(y, y, kernel, True).mean())), lambda v: metrics.mmd(v, y)),
        (seen.frechet(x, w), lambda v: metrics.frechet_distance(v, y)),
    ):
        full = bootstrap.bootstrap(function, x, resamples=200, method="centred")
        assert found.value == pytest.approx(full.value, rel=1e-9)
        assert 0.7 < found.std_error / full.std_error < 1.3
        assert found.low == pytest.approx(full.low, abs=1.2 * full.std_error)
        assert found.high == pytest.approx(full.high, abs=1.2 * full.std_error)
    both = distances.coupled(x, x + 0.1, directions, w)
    truth = [sliced_wasserstein(x[r], x[r] + 0.1, 32) for r in w.rows[:3]]
    assert both.value == pytest.approx(truth[0], rel=1e-9)  # a shift, in all resamples
    assert both.std_error < 1e-6


# ---- parts of the error


def test_prior_and_truncation_errors_are_those_of_gaussians():
    """One isotropic Gaussian N(m, c^2): all maps are affine, and SW^2 of N(a, s^2 I) and N(b, r^2 I) is |a - b|^2/D + (s - r)^2."""
    m, c, sde, end = 1.5, 0.7, sd.VESDE(sigma_max=5.0), 0.55
    model = sd.ExactModel(isotropic(m, c), sde)
    result = frontier(model, solvers=[sd.Heun()], nfe=(40,), samples=3000, t_end=end, projections=64, progress=False, paths=3000)
    top, low = sde.levels([sde.t_max, end])
    v_T, v_e = c**2 + top.sigma**2, c**2 + low.sigma**2
    ratio = math.sqrt(v_e / v_T)  # x_T - m shrinks by this
    prior = math.hypot(m * ratio, math.sqrt(v_e) - top.sigma * ratio)
    found = result.decomposition
    assert found["prior"].value == pytest.approx(prior, rel=0.05)
    assert found["truncation"].value == pytest.approx(math.sqrt(v_e) - c, rel=0.04)
    assert found["score"].value == 0
    assert "to fix: the prior error (a larger t_max)" in result.advice()
    assert result.rows[0].value("discretization") < 0.02


def test_the_score_error_is_that_of_a_wrong_model():
    """A model that believes in N(0.5, 1) where the data are N(0, 1): a distance of 0.5; a right one: within the noise."""
    reference, pool = isotropic(0, 1).sample(2000).float(), isotropic(0, 1).sample(5000, 1).float()
    how = {"pool": pool, "solvers": [sd.Heun(), sd.Ancestral()], "nfe": (20,), "samples": 800, "projections": 256, "progress": False}
    how |= {"batch_size": 800, "converged": sd.TorchDiffEq(rtol=1e-4, atol=1e-4), "resamples": 100}
    wrong = frontier(Believed(0.5, 1, sd.VPSDE()), reference, **how)
    score = wrong.decomposition["score"]
    assert score.value == pytest.approx(0.5, abs=0.07)
    assert score.low < 0.5 < score.high
    assert "to fix: the score error (train a better model)" in wrong.explain()
    assert wrong.rows[0].value("sliced_wasserstein") == pytest.approx(0.5, abs=0.07)
    assert wrong.rows[0].value("discretization") < 0.03
    assert wrong.rows[1].metrics["discretization"].low == 0  # Ancestral's: by difference of squares, within the noise
    right = frontier(Believed(0.0, 1, sd.VPSDE()), reference, **how)
    assert right.decomposition["score"].value < 0.1
    assert right.decomposition["score"].low == 0
    assert right.advice().startswith("to fix: only the discretization")


# ---- rows


def test_a_failure_is_a_row(exact, moons):
    solvers = [Broken(), Broken("raise"), sd.Heun(), (sd.DDIM(), lambda sde, n, end: torch.linspace(1, 0.5, n + 1))]
    result = frontier(exact, moons.sample(50, 1), solvers=solvers, nfe=(4,), samples=20, **QUIET)
    broken, raised, fine, grid_row = result.rows
    assert math.isnan(broken.value("sliced_wasserstein"))
    assert "not finite" in broken.message
    assert raised.message == "KeyError: 'oops'"
    assert math.isfinite(fine.value("sliced_wasserstein"))
    assert "ends at t = 0.5, expected t_end = 0.001" in grid_row.message
    assert "Broken, uniform, budget 4: " in result.table()
    assert [line.get_xdata().tolist() for line in result.plot().axes[0].lines if line.get_marker() != "None"] == [[4.0]]


def test_every_solver_starts_from_the_same_noise(exact, moons):
    def run(seed):
        return frontier(exact, moons.sample(50, 1), solvers=[Nothing(), Nothing(1)], nfe=(1, 3), samples=30, seed=seed, **QUIET)

    result = run(3)
    assert len({r.value("sliced_wasserstein") for r in result.rows}) == 1
    noise = sd.sample(exact, 30, solver=Nothing(), steps=1, seed=3)
    assert result.rows[0].value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(noise, moons.sample(50, 1), seed=3), rel=1e-9)
    assert run(4).rows[0].value("energy") != result.rows[0].value("energy")


def test_a_row_is_a_function_of_its_own_settings(exact):
    """The same seed gives the same rows, whatever other rows there are and in which order."""
    how = {"samples": 40, **FEW}
    many = frontier(exact, solvers=[sd.Ancestral(), sd.Heun(), sd.DDIM()], nfe=(9, 4), **how)
    for row in many.rows[::2]:
        solver = {"Ancestral": sd.Ancestral(), "Heun": sd.Heun(), "DDIM": sd.DDIM()}[row.label]
        alone = frontier(exact, solvers=[solver], nfe=(row.budget,), **how)
        assert alone.rows[0].metrics == row.metrics
        assert (alone.floors, alone.decomposition) == (many.floors, many.decomposition)


def test_solvers_cross_grids(exact):
    mine = {"own": None, "log": grid.log_snr}
    result = frontier(exact, solvers={"A": sd.DDIM(), "B": (sd.Heun(), grid.karras)}, grids=mine, nfe=(6,), samples=20, **QUIET)
    default = exact.sde.default_grid if not hasattr(sd.DDIM(), "grid") else "own"
    assert [(r.label, r.grid) for r in result.rows] == [("A", default), ("A", "log"), ("B", "karras")]
    x = sd.sample(exact, 20, solver=sd.DDIM(), times=grid.log_snr(exact.sde, 6))
    level = exact.sde.levels([1e-3])[0]
    log_p = exact.target.log_prob_at(x, level.alpha, level.sigma).mean()
    other = exact.target.log_prob_at(sd.sample(exact, 20, solver=sd.DDIM(), steps=6), level.alpha, level.sigma).mean()
    difference = result.rows[1].value("log_prob_error") - result.rows[0].value("log_prob_error")
    assert difference == pytest.approx(float(log_p - other), abs=1e-6)
    again = frontier(exact, solvers=[sd.DDIM()], grids=[grid.uniform, grid.quadratic], nfe=(6,), samples=20, **QUIET)
    assert [r.grid for r in again.rows] == ["uniform", "quadratic"]


def test_auto_is_left_to_sample(exact, monkeypatch):
    given, true = [], sampler.sample

    def sample(model, n=None, *, solver, **more):
        given.append(solver)
        return true(model, n, solver=sd.DDIM() if solver == "auto" else solver, **more)

    monkeypatch.setattr(solve, "sample", sample)
    (row,) = frontier(exact, solvers="auto", nfe=(5,), samples=10, **QUIET).rows
    assert (row.label, row.grid, row.steps, row.nfe, row.message) == ("auto", "own", 5, 5, "")
    assert set(given) == {"auto"}


def test_levels_are_compared_in_model_space():
    """A model that is exact for dequantized data is at the floor: samples and real ones are treated alike."""
    transform = sd.Transform(levels=4)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (900, 3), generator=generator)
    # uniform on [-1, 1]^3 once dequantized: nearly a mixture of narrow Gaussians on a fine grid of its values
    centres = (torch.arange(10) + 0.5) / 5 - 1
    points = torch.cartesian_prod(centres, centres, centres)
    model = sd.ExactModel(sd.GaussianMixture(points, torch.full((len(points),), 0.06)), sd.VPSDE())
    how = {"pool": levels[300:], "solvers": [sd.Heun()], "nfe": (50,), "samples": 300, **QUIET}
    result = frontier(model, levels[:300], transform=transform, **how)
    floor = result.floors["sliced_wasserstein"]
    assert abs(result.rows[0].value("sliced_wasserstein") - floor.mean) < 5 * floor.std
    with pytest.raises(DTypeError, match="Transform"):
        frontier(model, levels[:300], solvers=[sd.Heun()], **QUIET)
    with pytest.raises(ConfigError, match=r"levels run from 0 to 3, but Transform\(levels=3\)"):
        frontier(model, levels[:300], transform=sd.Transform(levels=3), **QUIET)


def test_conditions_go_to_the_network():
    class Shifted(sd.ScoreModel):
        """N(label, 1) under VP: x0 = label + alpha (x - alpha label)."""

        def denoise(self, x, t, label):
            level = self.sde.level(t, x)
            return label[:, None] + level.alpha * (x - level.alpha * label[:, None])

    model = Shifted(sd.VPSDE(), (2,))
    label = 5.0 * (torch.arange(200) % 2)
    reference = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + label[:, None]
    how = {"solvers": [sd.Heun()], "nfe": (20,), "samples": 200, **FEW}
    right, wrong = frontier(model, reference, label=label, **how), frontier(model, reference, label=0 * label, **how)
    assert right.rows[0].value("sliced_wasserstein") < 0.5 < wrong.rows[0].value("sliced_wasserstein")
    assert right.rows[0].value("median") < 0.1  # the converged paths have the same labels


def test_global_randomness_is_left_alone(exact):
    before = torch.get_rng_state()
    frontier(exact, solvers=[sd.Ancestral()], nfe=(4,), samples=30, **FEW)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 0}, ConfigError, "samples = 0"),
        ({"samples": 30, "pool": torch.zeros(59, 2)}, ConfigError, "samples = 30 and a pool of 59"),
        ({"nfe": ()}, ConfigError, "0 budgets"),
        ({"nfe": (5, 2.5)}, ConfigError, "nfe = 2.5"),
        ({"solvers": []}, ConfigError, "0 solvers"),
        ({"solvers": [sd.Heun]}, ConfigError, r"Heun is a class.*Heun\(\)"),
        ({"solvers": [(sd.Heun(), 3)]}, ConfigError, "a grid is 3"),
        ({"solvers": [(sd.Heun(), None, None)]}, ConfigError, "a tuple of 3"),
        ({"solvers": [sd.Heun(), sd.Heun()]}, ConfigError, "Heun on the grid 'uniform' is given twice"),
        ({"grids": []}, ConfigError, "0 grids"),
        ({"grids": ["karras"]}, ConfigError, "a grid is 'karras'"),
        ({"reference": torch.zeros(5, 3)}, ShapeError, r"reference has shape \(5, 3\)"),
        ({"seed": -1}, ConfigError, "seed = -1"),
        ({"paths": -3}, ConfigError, "paths = -3"),
        ({"t_end": 2.0}, ConfigError, "t_end = 2"),
        ({"splits": 0}, ConfigError, "splits = 0"),
        ({"model": None}, ConfigError, "NoneType"),
        ({"model": Believed(0, 1, sd.VPSDE()), "reference": None}, ConfigError, "no reference was given"),
    ],
)
def test_bad_arguments(exact, arguments, error, message):
    given = {"model": exact, "reference": torch.zeros(40, 2), "solvers": [sd.Heun()], "nfe": (2,), **QUIET, **arguments}
    with pytest.raises(error, match=message):
        frontier(given.pop("model"), given.pop("reference"), **given)


# ---- files


def test_files_hold_what_was_measured(exact, moons, tmp_path):
    how = {"solvers": [sd.DDIM(eta=0.5), Broken(), sd.Heun()], "nfe": (3, 6), **FEW}
    result = frontier(exact, moons.sample(60, 1), pool=moons.sample(200, 2), **how)
    result.to_csv(tmp_path / "new" / "b.csv")
    lines = (tmp_path / "new" / "b.csv").read_text().splitlines()
    comments = dict(line[2:].split(" = ", 1) for line in lines if line.startswith("#"))
    assert comments["sde"] == repr(sd.VPSDE())
    assert (comments["samples"], comments["reference"], comments["seed"]) == ("60", "60", "0")
    assert comments["floor_energy"].startswith(repr(result.floors["energy"].mean))
    assert float(comments["error_prior"]) == result.decomposition["prior"].value
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(result.rows) == 6
    for read, row in zip(rows, result.rows, strict=True):
        assert (read["solver"], read["sde"], read["grid"]) == (row.solver, row.sde, row.grid)
        assert (int(read["steps"]), float(read["nfe"]), int(read["budget"])) == (row.steps, row.nfe, row.budget)
        for metric in ("sliced_wasserstein", "median"):
            m = row.metrics.get(metric, Interval(math.nan, math.nan, math.nan, math.nan))
            found = [float(read[f"{metric}{end}"]) for end in ("", "_low", "_high")]
            assert found == pytest.approx([m.value, m.low, m.high], nan_ok=True, rel=1e-15)
    assert eval(rows[0]["solver"], vars(sd)) == sd.DDIM(eta=0.5)  # the recipe
    result.to_json(tmp_path / "b.json")
    json.loads((tmp_path / "b.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    read = Frontier.from_json(tmp_path / "b.json")
    assert repr(read) == repr(result)
    assert read.table() == result.table()
    assert read.recommend(nfe=6).row == result.recommend(nfe=6).row
    with pytest.raises(ConfigError, match=r"read from a file: make the solver, Heun\(\)"):
        _ = read.recommend(nfe=6).arguments
    table = result.table().splitlines()
    assert table[0].split()[:4] == ["solver", "grid", "steps", "NFE"]
    assert table[2].split()[:4] == ["DDIM(eta=0.5)", result.rows[0].grid, "3", "3"]
    assert any(line.startswith("real samples") and f"{result.floors['energy'].mean:.3g} " in line for line in table)
    figure = result.plot(tmp_path / "b.png", "sliced_wasserstein")
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "DDIM(eta=0.5)" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not what Frontier\.to_json writes"):
        Frontier.from_json(tmp_path / "c.json")


def test_a_frontier_goes_on_from_its_file(exact, tmp_path, monkeypatch):
    out, made, true = tmp_path / "new" / "f.jsonl", [], solve.run

    monkeypatch.setattr(work, "run", lambda setting, job: made.append((job.label, job.budget)) or true(setting, job))
    how = {"nfe": (4, 8), "samples": 30, **FEW, "out": out}
    first = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4
    again = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4
    assert repr(again) == repr(first)  # times too: what was measured
    text = out.read_text()
    more = frontier(exact, solvers=[sd.DDIM(), sd.Heun()], **how)  # other solvers are no other settings
    assert made[4:] == [("DDIM", 4), ("DDIM", 8)]
    assert repr(more.rows[2:]) == repr(first.rows[:2])
    # killed while it wrote a line: that row is made again
    out.write_text(text[: text.index('"row"', text.index('"row"') + 1) + 30])
    cut = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4 + 2 + 3
    assert [r.metrics for r in cut.rows] == [r.metrics for r in first.rows]
    assert (cut.floors, cut.decomposition) == (first.floors, first.decomposition)
    for change in ({"samples": 31}, {"seed": 1}, {"resamples": 21}, {"t_end": 0.01}, {"paths": 7}):
        key, value = next(iter(change.items()))
        with pytest.raises(ConfigError, match=rf"holds a frontier of other settings: .*{key} was .*, now {value}"):
            frontier(exact, solvers=[sd.Heun()], **{**how, **change})
    other = sd.ExactModel(sd.data.two_moons(std=0.2), sd.VPSDE())
    with pytest.raises(ConfigError, match="model was 'ExactModel"):
        frontier(other, solvers=[sd.Heun()], **how)
    for content in ("hello\n", '{"a": 1}\n'):
        (tmp_path / "x").write_text(content)
        with pytest.raises(ConfigError, match="give another file"):
            frontier(exact, solvers=[sd.Heun()], **{**how, "out": tmp_path / "x"})


# ---- which to use


def made(*rows, floors=None):
    """A frontier of (label, grid, nfe, median)."""
    built = [
        Row("VPSDE()", f"{label}()", label, g, nfe, nfe, nfe, nfe, 1.0, 0.1, 0.01, True, {"median": Interval(v, 0.9 * v, 1.1 * v, 0.05 * v)})
        for label, g, nfe, v in rows
    ]
    return Frontier(tuple(built), floors or {}, {}, {"t_end": 1e-3})


def test_recommendations():
    f = made(("A", "u", 5, 0.5), ("A", "u", 10, 0.1), ("A", "v", 10, 0.2), ("B", "u", 9, 0.05), ("B", "u", 20, 0.06), ("C", "u", 20, 0.01))
    assert (f.recommend(nfe=10).row.label, f.recommend(nfe=8).row.label, f.recommend(nfe=50).row.label) == ("B", "A", "C")
    best = f.recommend(error=0.2)
    assert (best.row.label, best.row.nfe) == ("B", 9)
    assert [(r.label, r.grid) for r in best.others] == [("A", "u"), ("A", "v"), ("C", "u")]
    assert "B, 9 steps on the grid 'u': 9 network calls, median 0.05 [0.045, 0.055]" in str(best)
    assert "instead of A (u): 10 calls, median 0.1" in str(best)
    assert f.recommend(nfe=30, error=0.05).row.nfe == 9
    with pytest.raises(ConfigError, match=r"within 3 network calls: the closest is A \(u\) with 5"):
        f.recommend(nfe=3)
    with pytest.raises(ConfigError, match=r"median of 0.001: the closest is C \(u\) with 0.01 at 20 calls"):
        f.recommend(error=0.001)
    with pytest.raises(ConfigError, match=r"0.01 within 10 network calls: the closest is B \(u\) with 0.05 at 9"):
        f.recommend(nfe=10, error=0.01)
    with pytest.raises(ConfigError, match="neither"):
        f.recommend()
    with pytest.raises(ConfigError, match="metric = 'rms', expected one of median"):
        f.recommend(nfe=3, metric="rms")
    share = {"precision": Interval(0.8, 0.7, 0.9, 0.05)}
    g = Frontier((dataclasses.replace(f.rows[0], metrics=share), dataclasses.replace(f.rows[3], metrics={"precision": Interval(0.9, 0, 1, 0)})), {}, {}, {"t_end": 0})
    assert g.recommend(nfe=10, metric="precision").row.label == "B"
    assert g.recommend(error=0.75, metric="precision").row.label == "A"
    with pytest.raises(ConfigError, match="closest is B"):
        g.recommend(error=0.95, metric="precision")


def test_a_recommendation_can_be_sampled_with(exact):
    result = frontier(exact, solvers=[(sd.DDIM(), grid.log_snr), sd.Ancestral()], nfe=(6,), samples=30, **FEW)
    best = result.recommend(nfe=6)
    assert torch.equal(
        sd.sample(exact, 5, **best.arguments), sd.sample(exact, 5, solver=sd.DDIM(), times=grid.log_snr(exact.sde, 6, end=1e-3))
    )
    result = frontier(exact, solvers=[Nothing(), sd.Ancestral()], nfe=(6,), samples=30, t_end=0.01, **FEW)
    other = result.recommend(nfe=6, metric="energy")
    assert other.row.label == "Ancestral"
    assert torch.equal(sd.sample(exact, 5, **other.arguments), sd.sample(exact, 5, solver=sd.Ancestral(), steps=6, t_end=0.01))


@pytest.mark.parametrize(
    ("solver", "label"),
    [
        (sd.Heun(), "Heun"),
        (sd.DDIM(), "DDIM"),
        (sd.EulerMaruyama(eta=0.5), "EulerMaruyama(eta=0.5)"),
        (sd.TorchDiffEq("dopri8", rtol=1e-3), "TorchDiffEq(dopri8)"),
        (sd.TorchSDE(), "TorchSDE(srk)"),
        (sd.PredictorCorrector(sd.DDIM(eta=1.0), sd.Langevin(snr=0.1)), "DDIM(eta=1.0) + Langevin(snr=0.1)"),
        (sd.Picard(sd.DDIM(eta=0.5), tolerance=0.1), "Picard(DDIM(eta=0.5), tolerance=0.1)"),
        ("auto", "auto"),
    ],
)
def test_labels(solver, label):
    assert label_of(solver) == label


def test_labels_of_solvers_that_hold_things():
    @dataclass(frozen=True)
    class Recipe(sd.Solver):
        weights: tuple = (1.0, 2.0)
        reference: object = None
        order: int = 2

        def step(self, model, x, t, s, state, noise):
            return x, state

    assert label_of(Recipe((3.0,), isotropic(0, 1), 3)) == "Recipe(reference=GaussianMixture, order=3)"
    result = made(("A", "u", 5, 0.5), floors={"median": NoiseFloor(0.1, 0.01)})
    assert result.metric == "median"

"""The comparison of solvers: honest counts, honest floor, and failures that are rows."""

import csv
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.frontier import NFE, SOLVERS, bench, label_of
from scoresde.metrics import sliced_wasserstein

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def moons():
    return sd.data.two_moons()


@pytest.fixture(scope="module")
def exact(moons):
    return sd.ExactModel(moons, sd.VPSDE())


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
class Broken(sd.Solver):
    def step(self, model, x, t, s, state, noise):
        return x + model.velocity(x, t) * math.inf, state


@dataclass(frozen=True)
class Nothing(sd.Solver):
    """Leaves the noise that it starts from."""

    tag: int = 0

    def step(self, model, x, t, s, state, noise):
        model.velocity(x, t)
        return x, state


def test_default_solvers_and_budgets():
    assert NFE == (5, 10, 20, 50, 100)
    assert len({type(s) for s in SOLVERS}) >= 6
    assert sum(isinstance(s, sd.TorchDiffEq) for s in SOLVERS) >= 3


def test_an_exact_model_falls_to_the_floor(exact, moons):
    reference, pool = moons.sample(2000, 1), moons.sample(8000, 2)
    result = bench(exact, reference, pool=pool, solvers=[sd.Heun(), sd.DDIM()], nfe=(4, 10, 30, 100), n=1000, progress=False)
    for label in ("Heun", "DDIM"):
        quality = [r.quality for r in result.rows if r.label == label]
        assert quality[0] > quality[1] > quality[2]
        assert quality[0] > result.floor.mean + 5 * result.floor.std  # the few steps show
        assert abs(quality[3] - result.floor.mean) < 4 * result.floor.std  # enough of them do not
    # the floor is what fresh real samples get
    fresh = [sliced_wasserstein(moons.sample(1000, 10 + i), reference) for i in range(20)]
    assert abs(np.mean(fresh) - result.floor.mean) < 4 * np.std(fresh) / math.sqrt(10)
    assert 0.3 < result.floor.std / np.std(fresh) < 3


def test_network_calls_are_counted(exact, moons):
    corrector = sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(steps=2))
    solvers = [sd.Euler(), sd.Heun(), sd.RK4(), corrector, Startup()]
    result = bench(exact, moons.sample(40, 1), solvers=solvers, nfe=(3, 10, 13), n=20, batch_size=8, progress=False)
    found = {(r.label, r.budget): (r.steps, r.nfe) for r in result.rows}
    expected = {
        "Euler": [(3, 3), (10, 10), (13, 13)],
        "Heun": [(1, 2), (5, 10), (6, 12)],
        "RK4": [(0, 0), (2, 8), (3, 12)],
        "ReverseDiffusion + Langevin(steps=2)": [(1, 3), (3, 9), (4, 12)],
        "Startup": [(1, 3), (8, 10), (11, 13)],
    }
    assert {label for label, _ in found} == set(expected)
    for label, rows in expected.items():
        assert [found[label, budget] for budget in (3, 10, 13)] == rows, label
    for solver, label in ((sd.Heun(), "Heun"), (Startup(), "Startup")):  # against a count of our own
        with sd.count_evaluations(exact) as calls:
            sd.sample(exact, 20, solver=solver, steps=found[label, 13][0], batch_size=8)
        assert calls.forward == 3 * found[label, 13][1]  # three batches
    (impossible,) = [r for r in result.rows if r.steps == 0]
    assert math.isnan(impossible.quality)
    assert "one step takes 4 network calls, more than 3" in impossible.message


def test_an_adaptive_solver_runs_once_and_is_counted(exact, moons):
    loose, tight = sd.TorchDiffEq(rtol=1e-2, atol=1e-2), sd.TorchDiffEq(rtol=1e-4, atol=1e-4)
    result = bench(exact, moons.sample(50, 1), solvers=[loose, tight], nfe=(5, 10), n=20, batch_size=20, progress=False)
    assert [(r.steps, r.budget, r.grid) for r in result.rows] == [(None, None, "adaptive")] * 2
    with sd.count_evaluations(exact) as calls:
        sd.sample(exact, 20, solver=tight, batch_size=20)
    assert result.rows[1].nfe == calls.forward > result.rows[0].nfe
    assert result.rows[0].label == result.rows[1].label == "TorchDiffEq(dopri5)"
    assert "rtol=0.01" in result.table()
    assert "rtol=0.0001" in result.table()


def test_a_failure_is_a_row(exact, moons):
    result = bench(exact, moons.sample(50, 1), solvers=[Broken(), sd.Heun()], nfe=(4,), n=20, progress=False)
    broken, fine = result.rows
    assert math.isnan(broken.quality)
    assert "not finite" in broken.message
    assert math.isfinite(fine.quality)
    assert "Broken, budget 4: " in result.table()
    assert [line.get_xdata().tolist() for line in result.plot().axes[0].lines if line.get_marker() != "None"] == [[4.0]]


def test_every_solver_starts_from_the_same_noise(exact, moons):
    def run(seed):
        return bench(exact, moons.sample(50, 1), solvers=[Nothing(), Nothing(1)], nfe=(1, 3), n=30, seed=seed, progress=False)

    result = run(3)
    assert len({r.quality for r in result.rows}) == 1
    assert [r.quality for r in run(3).rows] == [r.quality for r in result.rows]
    assert run(4).rows[0].quality != result.rows[0].quality
    noise = sd.sample(exact, 30, solver=Nothing(), steps=1, seed=3)
    assert result.rows[0].quality == pytest.approx(sliced_wasserstein(noise, moons.sample(50, 1), seed=3), rel=1e-12)


def test_levels_are_compared_in_model_space():
    """A model that is exact for dequantized data is at the floor: samples and real ones are treated alike."""
    transform = sd.Transform(levels=4)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (900, 3), generator=generator)
    # uniform on [-1, 1]^3 once dequantized: nearly a mixture of narrow Gaussians on a fine grid of its values
    centres = (torch.arange(10) + 0.5) / 5 - 1
    grid = torch.cartesian_prod(centres, centres, centres)
    model = sd.ExactModel(sd.GaussianMixture(grid, torch.full((len(grid),), 0.06)), sd.VPSDE())
    result = bench(
        model, levels[:300], pool=levels[300:], solvers=[sd.Heun()], nfe=(50,), n=300, transform=transform, progress=False
    )
    assert abs(result.rows[0].quality - result.floor.mean) < 5 * result.floor.std
    with pytest.raises(DTypeError, match="Transform"):
        bench(model, levels[:300], solvers=[sd.Heun()], progress=False)
    with pytest.raises(ConfigError, match=r"levels run from 0 to 3, but Transform\(levels=3\)"):
        bench(model, levels[:300], transform=sd.Transform(levels=3), progress=False)


def test_conditions_go_to_the_network(moons):
    class Shifted(sd.ScoreModel):
        """N(label, 1) under VP: x0 = label + alpha (x - alpha label)."""

        def denoise(self, x, t, label):
            level = self.sde.level(t, x)
            return label[:, None] + level.alpha * (x - level.alpha * label[:, None])

    model = Shifted(sd.VPSDE(), (2,))
    label = 5.0 * (torch.arange(200) % 2)
    reference = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + label[:, None]
    right = bench(model, reference, solvers=[sd.Heun()], nfe=(20,), n=200, progress=False, label=label)
    wrong = bench(model, reference, solvers=[sd.Heun()], nfe=(20,), n=200, progress=False, label=0 * label)
    assert right.rows[0].quality < 0.5 < wrong.rows[0].quality


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ConfigError, "n = 0"),
        ({"n": 30, "pool": torch.zeros(59, 2)}, ConfigError, "n = 30 and a pool of 59"),
        ({"nfe": ()}, ConfigError, "0 budgets"),
        ({"nfe": (5, 2.5)}, ConfigError, "nfe = 2.5"),
        ({"solvers": []}, ConfigError, "0 solvers"),
        ({"solvers": [sd.Heun]}, ConfigError, r"Heun is a class.*Heun\(\)"),
        ({"reference": torch.zeros(5, 3)}, ShapeError, r"reference has shape \(5, 3\)"),
        ({"seed": -1}, ConfigError, "seed = -1"),
        ({"model": None}, ConfigError, "NoneType"),
    ],
)
def test_bad_arguments(exact, moons, arguments, error, message):
    given = {"model": exact, "reference": torch.zeros(40, 2), "solvers": [sd.Heun()], "nfe": (2,), "progress": False, **arguments}
    with pytest.raises(error, match=message):
        bench(given.pop("model"), given.pop("reference"), **given)


def test_files_hold_what_was_measured(exact, moons, tmp_path):
    reference = moons.sample(60, 1)
    result = bench(exact, reference, pool=moons.sample(200, 2), solvers=[sd.DDIM(eta=0.5), Broken()], nfe=(3, 6), progress=False)
    result.to_csv(tmp_path / "new" / "b.csv")
    lines = (tmp_path / "new" / "b.csv").read_text().splitlines()
    comments = dict(line[2:].split(" = ", 1) for line in lines if line.startswith("#"))
    assert comments["sde"] == repr(sd.VPSDE())
    assert (comments["n"], comments["reference"], comments["pool"], comments["seed"]) == ("60", "60", "200", "0")
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(result.rows) == 4
    for read, row in zip(rows, result.rows, strict=True):
        assert (read["solver"], read["sde"], read["grid"]) == (row.solver, row.sde, "uniform")
        assert (int(read["steps"]), float(read["nfe"]), int(read["budget"])) == (row.steps, row.nfe, row.budget)
        assert float(read["quality"]) == row.quality or math.isnan(row.quality)
        assert float(read["floor_mean"]) == result.floor.mean
        assert float(read["seconds"]) == row.seconds > 0
    assert rows[0]["solver"] == "DDIM(eta=0.5)"
    assert eval(rows[0]["solver"], vars(sd)) == sd.DDIM(eta=0.5)  # the recipe
    result.to_json(tmp_path / "b.json")
    content = json.loads((tmp_path / "b.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert content["rows"][0]["quality"] == result.rows[0].quality
    assert content["rows"][2]["quality"] is None
    assert content["floor"]["mean"] == result.floor.mean
    table = result.table().splitlines()
    assert table[0].split()[:4] == ["SDE", "solver", "steps", "NFE"]
    assert table[2].split()[:4] == ["VPSDE", "DDIM(eta=0.5)", "3", "3"]
    assert any(f"60 real samples get {result.floor.mean:.4f}" in line for line in table)
    figure = result.plot(tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "DDIM(eta=0.5)" in [text.get_text() for text in figure.axes[0].texts]


def test_without_a_pool_the_floor_is_not_known(exact, moons):
    result = bench(exact, moons.sample(30, 1), solvers=[sd.Heun()], nfe=(4,), progress=False)
    assert result.floor is None
    assert "noise floor is not known" in result.table()
    assert result.settings["n"] == 30


def test_global_randomness_is_left_alone(exact, moons):
    before = torch.get_rng_state()
    bench(exact, moons.sample(30, 1), pool=moons.sample(60, 1), solvers=[sd.Ancestral()], nfe=(4,), progress=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("solver", "label"),
    [
        (sd.Heun(), "Heun"),
        (sd.DDIM(), "DDIM"),
        (sd.EulerMaruyama(eta=0.5), "EulerMaruyama(eta=0.5)"),
        (sd.TorchDiffEq("dopri8", rtol=1e-3), "TorchDiffEq(dopri8)"),
        (sd.TorchSDE(), "TorchSDE(srk)"),
        (sd.PredictorCorrector(sd.DDIM(eta=1.0), sd.Langevin(snr=0.1)), "DDIM(eta=1.0) + Langevin(snr=0.1)"),
    ],
)
def test_labels(solver, label):
    assert label_of(solver) == label

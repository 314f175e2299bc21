"""Honest counts: network calls, time, and which solvers are deterministic."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pytest
import torch
from evaluation.frontier.cases import FEW, QUIET, Believed

import scoresde as sd
from scoresde.evaluation.frontier import jobs, solve
from scoresde.evaluation.frontier.compare import NFE, SOLVERS, frontier
from scoresde.evaluation.frontier.result import Frontier


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

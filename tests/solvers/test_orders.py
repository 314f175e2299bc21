"""The order that each solver declares, measured: one loop over the face of ``solvers/``; a class without a case fails.

What a solver says of itself decides what is measured. ``noise`` "deterministic": the median error of a path against the ODE solved
to 1e-12. "strong": the root mean square difference to a fine solve by another library, torchsde, that is driven by the same Brownian
motion. "weak": the error of mean and variance on Gaussian data, where both follow exactly from the solver's own steps (one row a
draw): no sampling error, so that every error is seen. The slope of the last doubling is then ``accuracy``, within 0.1, or within 0.15
for strong orders, whose errors are means over 256 paths.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import (
    SDES,
    LinearLangevin,
    gaussian,
    gaussian_path,
    graded,
    law_error,
    marginal_sample,
    name,
    reference_path,
    slope,
    two_modes,
)

import scoresde as sd
from scoresde import solvers
from scoresde.core.faces import own
from scoresde.core.streams import SECOND, STEP
from scoresde.solvers.loop import solve
from scoresde.solvers.planning import bind_solver

PATHS = 16
CLASSES = own(solvers, sd.Solver)


@dataclass(frozen=True)
class Case:
    """A solver, or what makes one for an SDE and times, and where its order is measured.

    Attributes:
        steps: two numbers, the second twice the first.
        place: of a deterministic one. "graded": the middle of the way, a start that is cut short (for those that begin with a low
            order); "even": the same in equal steps of t; "whole": from t_max down in equal steps of t; "own": on its own grid.
        least: at least the order; symmetry makes it better on Gaussian data, and the comment says by how much.
        only: names of SDEs; () is all.
        why: the reason of an accuracy of None; the error is then measured to stay ("" is none, "-": nothing to measure).
        rms: over paths, in place of the median.
        near: how close the slope is to the order; 0.1 but where the comment says what is in the way.
    """

    solver: Any
    steps: tuple[int, int] = (80, 160)
    place: str = "graded"
    least: bool = False
    only: tuple[str, ...] = ()
    why: str = ""
    rms: bool = False
    near: float = 0.1
    paths: int = PATHS


class Fast(sd.SDE):
    """``EDMSDE`` in a time so short that torchdiffeq, whose first step of an interval is 1e-4, takes one step an interval."""

    t_min, t_max = 2e-8, 8e-4

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 1e5 * t


def whole(solver, *only, first=320):
    """From t_max to t_min. sigma of VE grows by a factor of 5000: a method of order 1 is asymptotic late there."""
    at = tuple(only) or tuple(map(name, SDES))
    late = first == 320 and solver.accuracy == 1
    rest = tuple(n for n in at if n != "VESDE") if late else at
    return [Case(solver, (first, 2 * first), "whole", only=rest), *([Case(solver, (2560, 5120), "whole", only=("VESDE",))] if late else [])]


UNLIKE = ("VPSDE", "VESDE", "RectifiedFlow")
LOOSE = {"rtol": 1e6, "atol": 1e6}  # every step is accepted: the steps are those of the grid
CASES: dict[str, list[Case]] = {
    "Euler": whole(sd.Euler()),
    "Heun": whole(sd.Heun()),
    "RK4": whole(sd.RK4()),
    "EulerMaruyama": [
        Case(sd.EulerMaruyama(), (64, 128)),
        Case(sd.EulerMaruyama(0.5), (64, 128), only=("VPSDE", "VESDE")),
        Case(sd.EulerMaruyama(0.0)),
    ],
    "DDIM": [
        *whole(sd.DDIM()),
        Case(sd.DDIM(1.0), (64, 128)),
        Case(sd.DDIM(0.5), (64, 128), only=("VPSDE", "VESDE")),
    ],
    "Ancestral": [Case(sd.Ancestral(), (64, 128))],
    "ReverseDiffusion": [Case(sd.ReverseDiffusion(), (64, 128))],
    "DPMSolverPP": [
        *(Case(sd.DPMSolverPP(k, singlestep=single)) for k in (1, 2, 3) for single in (False, True)),
        *(Case(sd.DPMSolverPP(k, eta=eta), (160, 320)) for k in (1, 2, 3) for eta in (0.6, 1.0)),
    ],
    "UniPC": [
        *(Case(sd.UniPC(k, corrector=corrector)) for k in (1, 2, 3) for corrector in (True, False)),
        Case(sd.UniPC(1, variant="bh1")),
        Case(sd.UniPC(2, variant="bh1")),
    ],
    "DEIS": [Case(sd.DEIS(k)) for k in (1, 2, 3, 4)],
    "AdamsBashforth": [
        *(Case(sd.AdamsBashforth(k, of)) for of in ("x0", "eps", "v") for k in (1, 2, 3, 4)),
        *(Case(sd.AdamsBashforth(k, "velocity")) for k in (1, 2, 3)),
        Case(sd.AdamsBashforth(4, "velocity"), only=tuple(n for n in map(name, SDES) if n != "VESDE")),
        Case(sd.AdamsBashforth(4, "velocity"), only=("VESDE",), near=0.25),  # 3.8: over VE's time the start is felt longest
    ],
    "SASolver": [
        *(Case(sd.SASolver(p, c, 0.0)) for p, c in ((1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (1, 2), (1, 4), (2, 3), (3, 4), (2, 4))),
        *(Case(sd.SASolver(k, k, 0.0), (320, 640)) for k in (2, 3)),
        Case(sd.SASolver(4, 4, 0.0), only=UNLIKE),
        *(Case(sd.SASolver(p, c, tau), (160, 320)) for p, c, tau in ((1, 0, 1.0), (2, 0, 0.7), (1, 2, 0.7), (2, 1, 1.0), (3, 3, 0.5), (4, 4, 0.5))),
        Case(sd.SASolver(2, 2, 1.0), (160, 320), least=True),  # 3.0
        Case(sd.SASolver(3, 3, lambda lam: 1 / (1 + lam**2)), (160, 320)),
    ],
    "StochasticExponential": [
        *(Case(sd.StochasticExponential(k, 0.0, 0.4), (640, 1280) if k == 2 else (320, 640)) for k in (1, 2, 3)),
        *(Case(sd.StochasticExponential(k, 1.0, 0.4), (160, 320)) for k in (1, 2)),
        Case(sd.StochasticExponential(3, 0.5, 0.4), (160, 320), least=True),  # 2.3
    ],
    "EDMStochastic": [
        Case(sd.EDMStochastic(0.0)),
        Case(sd.EDMStochastic(10.0), (160, 320)),
        Case(sd.EDMStochastic(10.0, s_noise=1.05), (160, 320), why="s_noise is a bias that stays"),
    ],
    "Restart": [
        Case(sd.Restart(sd.Heun(), rounds=0), only=UNLIKE),
        Case(sd.Restart(sd.Ancestral(), rounds=0), (64, 128), only=UNLIKE),
        Case(sd.Restart(sd.EDMStochastic(0.0)), (160, 320), why="its own steps are as few as before"),
    ],
    "Langevin": [Case(sd.Langevin(), why="-")],  # it corrects at a time and solves nothing; see test_langevin_has_the_stationary_law_of_its_step
    "PredictorCorrector": [
        Case(sd.PredictorCorrector(sd.DDIM(), LinearLangevin(0.1)), (160, 320), why="the corrector's own bias stays"),
    ],
    "Picard": [
        Case(sd.Picard(sd.DDIM(), tolerance=1e-12), only=UNLIKE),
        Case(sd.Picard(sd.Euler(), tolerance=1e-12), only=("RectifiedFlow",)),
        Case(sd.Picard(sd.Ancestral(), 32, 1e-7), (64, 128), only=("VPSDE",)),
    ],
    "Recipe": [
        Case(lambda sde, times: sd.Recipe(sd.UniPC(2), tuple(times.tolist()), len(times) - 1)),
        Case(lambda sde, times: sd.Recipe(sd.DEIS(2), tuple(times.tolist()), len(times) - 1), only=UNLIKE),
    ],
    "ReferenceScheme": [Case(sd.ReferenceScheme(((1.0,),)), why="-")],  # its weights are for the times that they were fitted to
    "ReferenceSolver": [
        *(Case(sd.ReferenceSolver(k, corrector, free=False), steps, "own", paths=64)
          for k, corrector, steps in ((1, False, (320, 640)), (2, False, (320, 640)), (1, True, (320, 640)), (2, True, (160, 320)), (3, True, (120, 240)))),
        Case(sd.ReferenceSolver(4, True, free=False), (180, 360), "own", paths=64),
    ],
    "AdaptiveODE": [
        Case(sd.AdaptiveODE(**LOOSE), (12, 24), "even", only=tuple(n for n in map(name, SDES) if n != "EDMSDE")),  # 1e-11 to 1e-10; of EDM 4.7
        Case(sd.AdaptiveODE(method="bosh3", **LOOSE), (40, 80), "even"),
    ],
    "AdaptiveSDE": [Case(sd.AdaptiveSDE(), why="-")],  # it follows a tolerance, test_the_adaptive_path_converges_... (test_adaptive.py)
    "TorchDiffEq": [
        *(Case(sd.TorchDiffEq(method), (40, 80), "even") for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
        Case(sd.TorchDiffEq("dopri5", **LOOSE), (12, 24), "even", only=("Fast",)),
        Case(sd.TorchDiffEq("dopri8", **LOOSE), (5, 10), "even", only=("Fast",), rms=True),
        Case(sd.TorchDiffEq("bosh3", **LOOSE), (40, 80), "even", only=("Fast",)),
        Case(sd.TorchDiffEq("fehlberg2", **LOOSE), (80, 160), "even", only=("Fast",)),
        Case(sd.TorchDiffEq("adaptive_heun", **LOOSE), (40, 80), "even", only=("Fast",)),
    ],
    "TorchSDE": [
        *(Case(sd.TorchSDE(method), (64, 128)) for method in ("euler", "heun", "midpoint", "euler_heun")),
        Case(sd.TorchSDE("srk"), (64, 128), least=True),  # 2.0: of Gaussian data the drift is linear
        Case(sd.TorchSDE("heun", eta=0.5), (64, 128), only=("VPSDE",)),
    ],
}  # fmt: skip


def times_of(case, solver, model, n):
    """The n steps of a place (two more if graded)."""
    sde = model.sde
    if case.place == "graded":
        return graded(sde, n)
    if case.place == "even":
        ends = graded(sde, 1)[[0, -1]].tolist()
        return torch.linspace(*ends, n + 1, dtype=torch.float64)
    if case.place == "own":
        return bind_solver(solver, model, n)[0].grid(sde, n)
    return (sd.grid.karras if isinstance(sde, sd.EDMSDE) else sd.grid.uniform)(sde, n)


@functools.cache
def problem(sde, modes, start, end, paths):
    """A model, starts of paths at one time and their ends at another."""
    target = two_modes() if modes == 2 else gaussian()
    x = marginal_sample(target, sde, start, paths)
    if modes == 1:
        return sd.ExactModel(target, sde), x, gaussian_path(target, sde, x, start, end)
    same = (sd.EDMSDE(), 1e5) if isinstance(sde, Fast) else (sde, 1.0)  # the clock of the reference is an ordinary one
    times = torch.tensor([start, end], dtype=torch.float64) * same[1]
    return sd.ExactModel(target, sde), x, reference_path(sd.ExactModel(target, same[0]), x, times)


def of_paths(case, sde, modes):
    """The error of a deterministic solve at both numbers of steps."""
    found = []
    for n in case.steps:
        plan = times_of(case, case.solver, sd.ExactModel(two_modes(), sde), n)
        model, x, exact = problem(sde, modes, float(plan[0]), float(plan[-1]), case.paths)
        solver = made(case, sde, plan)
        how = {"steps": n} if case.place == "own" else {} if isinstance(solver, sd.Recipe) else {"times": plan}
        gap = (sd.sample(model, x_init=x, solver=solver, batch_size=case.paths, **how) - exact).norm(dim=1)
        found.append(float(gap.square().mean().sqrt() if case.rms else gap.median()))
    return found


def made(case, sde, times):
    return case.solver if isinstance(case.solver, sd.Solver) else case.solver(sde, times)


# ---- strong orders: one Brownian motion of t

FINE, DRIVEN = 1024, 256


class Driven:
    """The noise of n equal steps of t: the increments of one Brownian motion and its integrals, as torchsde's methods want them.

    Over an interval of h the first normal is W/sqrt(h), the second, independent one is that of the integral U = h (W/2 + sqrt(h/12) z).
    """

    def __init__(self, x, n, length):
        generator = torch.Generator().manual_seed(0)
        fine, h = length / FINE, length / n
        w, z = torch.randn(2, FINE, *x.shape, dtype=x.dtype, generator=generator)
        w = math.sqrt(fine) * w
        u = fine * (0.5 * w + math.sqrt(fine / 12) * z)
        w, u = (v.view(n, FINE // n, *x.shape) for v in (w, u))
        within = w.cumsum(1) - w  # of the start of each fine interval, within its own
        W, U = w.sum(1), (u + fine * within).sum(1)
        self.first, self.second = W / math.sqrt(h), (U / h - W / 2) / math.sqrt(h / 12)
        self.ids = range(len(x))

    def at(self, i):
        return DrivenStep(self, i)


@dataclass(frozen=True)
class DrivenStep:
    """``Driven`` at one step."""

    noise: Driven
    step: int

    @property
    def ids(self):
        return self.noise.ids

    def __call__(self, stream=STEP):
        return {STEP: self.noise.first, SECOND: self.noise.second}[stream][self.step]


def driven(solver, model, x, n, low, high):
    levels = model.sde.levels(sd.grid.uniform(model.sde, n, high, low))
    solver, _ = bind_solver(solver, model, n)
    with torch.no_grad():
        *_, (_, _, y) = solve(model, solver, x, levels, Driven(x, n, high - low))
    return y


@functools.cache
def middle(sde, eta):
    """A model, x at a time away from the ends, where g changes by orders of magnitude in a step, and the fine solve from it."""
    low, high = {"VESDE": (0.5, 1.0), "EDMSDE": (0.5, 5.0)}.get(name(sde), (0.05, 0.9))
    model = sd.ExactModel(gaussian(), sde)
    x = marginal_sample(gaussian(), sde, high, DRIVEN)
    return model, x, low, high, driven(sd.TorchSDE("srk", eta), model, x, FINE, low, high)


def of_driven_paths(case, sde):
    solver = case.solver
    while isinstance(solver, sd.solvers.base.Wrapper):
        solver = solver.inner
    model, x, low, high, fine = middle(sde, getattr(solver, "eta", 1.0))
    return [float((driven(case.solver, model, x, n, low, high) - fine).square().sum(1).mean().sqrt()) for n in case.steps]


# ---- the loop


def measure(case, sde, modes=2):
    """(declared, measured)"""
    solver = made(case, sde, graded(sde, case.steps[0]))
    if solver.noise == "deterministic":
        return solver.accuracy, slope(list(case.steps), of_paths(case, sde, modes))
    if solver.noise == "strong":
        return solver.accuracy, slope(list(case.steps), of_driven_paths(case, sde))
    return solver.accuracy, slope(list(case.steps), [law_error(solver, sde, n, draws=3 if case.why else 1) for n in case.steps])


@pytest.mark.parametrize("sde", [*SDES, Fast()], ids=name)
@pytest.mark.parametrize("title", sorted(CLASSES))
def test_the_order_that_is_declared(title, sde):
    assert title in CASES, f"no case for {title}: give one, with the numbers of steps at which its order shows"
    for case in CASES[title]:
        if name(sde) not in (case.only or tuple(map(name, SDES))):
            continue
        if case.why:
            assert case.solver.accuracy is None, f"{case.solver}: {case.why}"
            if case.why != "-":
                assert measure(case, sde)[1] < 0.3, f"{case.solver}: {case.why}"
            continue
        targets = (2, 1) if case.place in ("graded", "whole") and name(sde) in ("SubVPSDE", "EDMSDE") else (2,)
        for modes in targets:
            declared, found = measure(case, sde, modes)
            assert declared is not None, f"{case.solver} converges: its slope is {found:.2f}"
            noise = made(case, sde, graded(sde, 2)).noise
            near = 0.15 if noise == "strong" else case.near
            assert found >= declared - near, f"{case.solver} declares {declared} ({noise}), measured {found:.2f}"
            assert case.least or found <= declared + near, f"{case.solver} declares {declared} ({noise}), measured {found:.2f}"


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_strong_orders_of_those_that_declare_the_weak_one(sde):
    """Of order 1, in the same reverse SDE as all others; churn is an SDE of its own, and converges to itself."""
    for solver in (sd.SASolver(2, 2, 1.0), sd.StochasticExponential(2, 1.0, 0.4), sd.DPMSolverPP(2, eta=1.0)):
        found = slope([64, 128], of_driven_paths(Case(solver, (64, 128)), sde))
        assert found >= 0.85, f"{solver} {found:.2f}"  # 0.9 to 1.3: the second order of the drift still shows
    model, x, low, high, _ = middle(sde, 1.0)
    churn = sd.EDMStochastic(4.0, 0.0, math.inf)
    a, b, c = (driven(churn, model, x, n, low, high) for n in (64, 128, 256))
    assert slope([64, 128], [float((u - v).square().sum(1).mean().sqrt()) for u, v in ((a, b), (b, c))]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_restarts_that_are_refined_with_the_grid_converge_as_their_solver(sde):
    """Their own steps an eighth of the grid's: order 2 in law."""
    found = [law_error(sd.Restart(sd.EDMStochastic(0.0), 0.1, 0.5, 2, n // 8), sde, n) for n in (160, 320)]
    assert slope([160, 320], found) == pytest.approx(2, abs=0.1)


def test_every_class_has_a_case_and_every_case_a_class():
    """And what a class says depends on its arguments alone: an accuracy is a positive number or None, ``noise`` one of three words."""
    assert set(CASES) == set(CLASSES)
    for title, cases in CASES.items():
        for case in cases:
            solver = made(case, sd.VPSDE(), graded(sd.VPSDE(), 4))
            assert type(solver) is CLASSES[title]
            assert solver.noise in sd.solvers.base.NOISES
            assert solver.asks in sd.solvers.base.ASKS
            assert (solver.accuracy is None) == bool(case.why)


@dataclass(frozen=True)
class Boasting(sd.Euler):
    accuracy = 2.0


def test_a_wrong_order_is_measured_all_the_same():
    """The loop compares what a class says with what it does."""
    assert measure(Case(Boasting()), sd.VPSDE()) == (2.0, pytest.approx(1.0, abs=0.1))

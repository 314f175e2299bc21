"""Digests: what differs has another one, what is equal the same."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from evaluation.frontier.cases import Net, recipe_of

import scoresde as sd
from scoresde import grid
from scoresde.core.digest import digest, plain_repr, solver_digest


def closing_over(value):
    return lambda lam: value * lam

WIDTH = 2.0


def named(lam):
    return WIDTH * lam


def helper(lam):
    return named(lam)


@dataclass(frozen=True, eq=False)
class Curve:
    a: float

    def __call__(self, lam):
        return self.a


class Plain:
    def __init__(self, rho):
        self._rho = rho

    def method(self, lam):
        return self._rho

DIFFERENT = {
    "partial": (functools.partial(grid.karras, rho=3), functools.partial(grid.karras, rho=7)),
    "partial's function": (functools.partial(grid.karras), functools.partial(grid.log_snr)),
    "constants": (lambda lam: 0.3, lambda lam: 0.7),
    "names": (lambda x: x.sin(), lambda x: x.cos()),
    "inner functions": (lambda x: (lambda: 1)(), lambda x: (lambda: 2)()),
    "defaults": (lambda lam, a=1: a, lambda lam, a=2: a),
    "keyword defaults": (lambda lam, *, a=1: a, lambda lam, *, a=2: a),
    "closures": (closing_over(1.0), closing_over(2.0)),
    "callable objects": (Curve(1.0), Curve(2.0)),
    "bound methods": (Plain(1).method, Plain(2).method),
    "lists": ([1, [2]], [[1], 2]),
    "arrays": (torch.zeros(2), torch.zeros(3)),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "classes": (sd.Heun, sd.Euler),
    "solvers": (sd.SASolver(tau=lambda lam: 0.3), sd.SASolver(tau=lambda lam: 0.7)),
    "modules": (Net(1.0), Net(2.0)),
    "parameterization": tuple(sd.NetworkModel(Net(), sd.VPSDE(), (2,), p) for p in ("v", "eps")),
    "sde": tuple(sd.NetworkModel(Net(), sd.VPSDE(beta_max=b), (2,)) for b in (20.0, 19.0)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_has_another_digest(what):
    a, b = DIFFERENT[what]
    assert digest(a) == digest(a)
    assert digest(a) != digest(b)


def test_what_is_equal_has_one_digest():
    assert digest(functools.partial(grid.karras, rho=3)) == digest(functools.partial(grid.karras, rho=3))
    assert digest(closing_over(1.0)) == digest(closing_over(1.0))
    assert digest(Plain(1).method) == digest(Plain(1).method)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    a, b = (sd.NetworkModel(Net(), sd.VPSDE(), (2,)) for _ in range(2))
    b.recipes[5] = recipe_of(5)
    assert digest(a) == digest(b)  # recipes are of "auto" alone
    around = []
    around.append(closing_over(around))  # no end of it
    assert digest(around[0]) == digest(around[0])


def test_a_function_is_known_by_what_it_names(monkeypatch):
    before = digest(named), digest(helper)
    monkeypatch.setitem(globals(), "WIDTH", 3.0)
    assert digest(named) != before[0]
    assert digest(helper) != before[1]


def test_an_edited_solver_is_another():
    def make(factor):
        class Mine(sd.Solver):
            def step(self, model, x, t, s, state, noise):
                return x + factor * (s - t) * model.velocity(x, t), state

        return Mine()

    assert solver_digest(make(1.0)) == solver_digest(make(1.0))
    assert solver_digest(make(1.0)) != solver_digest(make(2.0))


def test_a_digest_is_the_same_in_another_process(capsys):
    code = """if True:
        import functools, torch
        import scoresde as sd
        from scoresde import grid
        from scoresde.core.digest import digest, solver_digest
        tau = lambda lam: 0.3 if str(lam) in {"a", "b", "c"} else object
        reference = sd.GaussianReference.fit(torch.arange(40.0).view(10, 4) ** 1.5)
        print(digest(tau, functools.partial(grid.karras, rho=3), reference), solver_digest(sd.SASolver(tau=tau)))
    """
    env = {**os.environ, "PYTHONHASHSEED": "7"}  # sets in another order
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == there.stdout
    assert len(there.stdout.split()) == 2, there.stderr


def test_plain_reprs_have_no_addresses():
    assert plain_repr(sd.SASolver(tau=closing_over(1))) == plain_repr(sd.SASolver(tau=closing_over(2)))

"""Every argument of every public function and class, replaced in turn by some thirty wrong values: an error of the family, or rightly accepted.

What is right is judged by the kind of the argument, as its annotation names it, and by the few exceptions of ``RIGHT``. A call that
takes more than five seconds of CPU time or four gigabytes more than there were is a failure, as is any other exception.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import functools
import importlib
import inspect
import io
import math
import os
import resource
import signal
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde.errors import ScoreSDEError
from scoresde.likelihood.variational import BinFlow

SECONDS = 5.0
ROOM = 4 << 30  # bytes of address space
LEAST = 0.98

BIG, HUGE = 10**12, 10**400


def raises(*args: Any, **kwargs: Any) -> None:
    raise ZeroDivisionError("of the user")


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "word": lambda: "xq",
    "empty": lambda: "",
    "bytes": lambda: b"x",
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "words": lambda: ["a", "b"],
    "nested": lambda: [[1.0], [2.0, 3.0]],
    "set": lambda: {1, 2},
    "object": object,
    "class": lambda: dict,
    "date": lambda: datetime.date(2020, 1, 1),
    "minus": lambda: -1,
    "zero": lambda: 0,
    "half": lambda: 1.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "big": lambda: BIG,
    "huge": lambda: HUGE,
    "true": lambda: True,
    "complex": lambda: 1j,
    "int64": lambda: np.int64(-3),
    "numpy nan": lambda: np.float32("nan"),
    "array": lambda: np.zeros((2, 3)),
    "words array": lambda: np.array(["a", "b"]),
    "integers": lambda: torch.tensor([5, 700, -3]),
    "shape": lambda: torch.zeros(2, 3, 4, 5),
    "bools": lambda: torch.ones(4, 2, dtype=torch.bool),
    "complex tensor": lambda: torch.ones(4, 2, dtype=torch.complex64),
    "sparse": lambda: torch.ones(4, 2).to_sparse(),
    "not finite": lambda: torch.full((4, 2), math.nan),
    "meta": lambda: torch.ones(4, 2, device="meta"),
    "no samples": lambda: torch.zeros(0, 2),
    "raises": lambda: raises,
    "text of it": lambda: lambda *args, **kwargs: "xq",
}


# ---- valid calls
torch.set_num_threads(1)
G = torch.Generator().manual_seed(0)
X = torch.randn(4, 2, generator=G)
LEVELS = torch.randint(0, 4, (4, 2), generator=G)
T4 = sd.Transform(levels=4)
MIXTURE = sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1))
SDE = sd.VPSDE()
EXACT = sd.ExactModel(MIXTURE, SDE)
DATA = sd.data.Data(torch.randn(16, 2, generator=G), X)
LABELLED = sd.data.Data(torch.randn(16, 2, generator=G), X, labels=torch.arange(16) % 2)
REFERENCE = sd.GaussianReference.fit(DATA.train)
DEQUANTIZER = sd.VariationalDequantizer(T4, BinFlow((2,), 4, width=2, depth=1))
REPORT = sd.log_prob(EXACT, X, steps=2)
FRONTIER = {"a": [(4.0, 0.5, 0.4, 0.6), (8.0, 0.25, 0.2, 0.3)]}
RECIPE = sd.Recipe(sd.UniPC(2), (1.0, 0.1, 1e-3), 2)
QUIET = {"progress": False}


def network() -> sd.NetworkModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sd.NetworkModel(sd.nets.MLP(2, 4, 1), SDE, (2,), transform=None)


NET = network()
SOLVER_STEPS = {"steps": 3, "batch_size": 2}


def solve(cls: type, **given: Any) -> Any:
    """A solver, and samples by it: what the class takes, a call must not fail by."""
    return sd.sample(EXACT, 2, solver=cls(**given), times=[1.0, 0.7, 0.3, 0.01], batch_size=2)


def run_sde(cls: type, **given: Any) -> Any:
    return sd.sample(sd.ExactModel(MIXTURE, cls(**given)), 2, **SOLVER_STEPS)


def run_net(cls: type, x: torch.Tensor, **given: Any) -> Any:
    return cls(**given)(x, torch.zeros(len(x)))


def draw(mixture: Any) -> Any:
    return sd.sample(sd.ExactModel(mixture, SDE), 2, **SOLVER_STEPS)


def closed(figure: Any) -> Any:
    import matplotlib.pyplot as plt

    plt.close("all")
    return figure


def entered(manager: Any) -> Any:
    with manager:
        return manager


IMAGES = torch.randn(2, 1, 4, 4, generator=G)
PLOT = [-2.0, 2.0, -2.0, 2.0]

SOLVERS: dict[str, dict[str, Any]] = {
    name: {} for name in ("RK4", "Euler", "Heun", "ReverseDiffusion", "DDIM", "DEIS", "AdamsBashforth", "Ancestral", "DPMSolverPP", "EDMStochastic",
    "EulerMaruyama", "Picard", "PredictorCorrector", "ReferenceSolver", "Restart", "SASolver", "StochasticExponential", "UniPC")
} | {
    "AdaptiveODE": {"max_nfe": 300},
    "AdaptiveSDE": {"rtol": 0.5, "atol": 0.5, "max_nfe": 300},
    "TorchDiffEq": {"rtol": 0.1, "atol": 0.1, "max_nfe": 300},
    "TorchSDE": {"method": "euler"},
    "ReferenceScheme": {"weights": ((1.0,), (0.0, 1.0), (0.0, 0.0, 1.0)), "reference": EXACT.reference},
}  # fmt: skip

LIKELIHOOD = {"model": EXACT, "x": X, "steps": 2}

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **{name: (functools.partial(solve, getattr(sd, name)), given) for name, given in SOLVERS.items()},
    **{name: (functools.partial(run_sde, getattr(sd, name)), {}) for name in ("VPSDE", "SubVPSDE", "VESDE", "CosineSDE", "EDMSDE", "RectifiedFlow")},
    "Langevin": (lambda **k: solve(sd.PredictorCorrector, corrector=sd.Langevin(**k)), {}),
    "Recipe": (sd.Recipe, {"solver": sd.UniPC(2), "times": (1.0, 0.1, 1e-3), "nfe": 2}),
    "Transform": (lambda **k: sd.Transform(**k).dequantize(LEVELS), {"levels": 4}),
    "GaussianMixture": (lambda **k: draw(sd.GaussianMixture(**k)), {"means": torch.zeros(2, 2), "covariances": torch.ones(2), "weights": torch.ones(2)}),
    "GaussianReference": (lambda **k: sd.GaussianReference(**k).fingerprint(), {"mean": torch.zeros(2), "variance": torch.ones(2)}),
    "ExactModel": (lambda **k: sd.sample(sd.ExactModel(**k), 2, **SOLVER_STEPS), {"target": MIXTURE, "sde": SDE}),
    "NetworkModel": (lambda **k: sd.sample(sd.NetworkModel(**k), 2, **SOLVER_STEPS), {"net": NET.net, "sde": SDE, "event_shape": (2,)}),
    "VariationalDequantizer": (sd.VariationalDequantizer, {"transform": T4, "net": DEQUANTIZER.net}),
    "nets.MLP": (functools.partial(run_net, sd.nets.MLP, X), {"features": 2, "width": 4, "depth": 1}),
    "nets.UNet": (functools.partial(run_net, sd.nets.UNet, IMAGES), {"channels": 1, "width": 8, "multipliers": (1,), "blocks": 1, "groups": 2}),
    "nets.with_waves": (sd.nets.with_waves, {"x": X, "c_noise": torch.zeros(4), "frequencies": (1.0,)}),
    "sample": (sd.sample, {"model": EXACT, "n": 2, "steps": 3, "batch_size": 2}),
    "trajectory": (lambda **k: list(sd.trajectory(**k)), {"model": EXACT, "n": 2, "steps": 3}),
    "log_prob": (sd.log_prob, LIKELIHOOD),
    "bits_per_dim": (sd.bits_per_dim, {"model": EXACT, "levels": LEVELS, "transform": T4, "steps": 2, "check": 0}),
    "elbo": (sd.elbo, {"model": EXACT, "data": X, "draws": 1}),
    "log_prob_gradient": (sd.log_prob_gradient, LIKELIHOOD),
    "differentiable_log_prob": (sd.differentiable_log_prob, LIKELIHOOD),
    "encode": (sd.encode, LIKELIHOOD),
    "decode": (sd.decode, {"model": EXACT, "z": X, "steps": 2}),
    "round_trip_error": (lambda model, x: sd.round_trip_error(model, x, steps=2), {"model": EXACT, "x": X}),
    "interpolate": (lambda model, a, b, n: sd.interpolate(model, a, b, n, steps=2), {"model": EXACT, "a": X, "b": X, "n": 2}),
    "importance_weights": (sd.importance_weights, {"log_target": torch.zeros(4), "log_prob": torch.zeros(4)}),
    "compare": (sd.compare, {"a": REPORT, "b": REPORT}),
    "fit_reference": (sd.fit_reference, {"model": EXACT, "n": 8}),
    "tune": (sd.tune, {"model": EXACT, "nfe": 2, "paths": 16, "iterations": 0, **QUIET}),
    "frontier": (sd.frontier, {"model": EXACT, "solvers": sd.DDIM(), "nfe": 2, "samples": 10, "paths": 0, "projections": 4, "resamples": 4, "splits": 2, **QUIET}),
    "fit": (lambda model=None, **k: sd.fit(network() if model is None else model, **k), {"data": DATA, "steps": 1, "batch_size": 4, **QUIET}),
    "fine_tune": (lambda model=None, **k: sd.fine_tune(network() if model is None else model, **k), {"data": DATA, "steps": 1, "batch_size": 4, "solver_steps": 2, **QUIET}),
    "fit_dequantizer": (sd.fit_dequantizer, {"model": NET, "data": LEVELS, "transform": T4, "steps": 1, "width": 2, "depth": 1, **QUIET}),
    "features.fit_features": (sd.features.fit_features, {"data": LABELLED, "features": 2, "width": 1, "steps": 1, **QUIET}),
    "features.FeatureExtractor": (lambda **k: sd.features.FeatureExtractor(**k)(X), {"event_shape": (2,), "classes": 2, "features": 2, "width": 1}),
    "count_evaluations": (lambda **k: entered(sd.count_evaluations(**k)), {"model": EXACT}),
    "check_sde": (sd.check_sde, {"sde": SDE, "n": 10}),
    "save": (sd.save, {"model": NET, "path": "saved"}),
    "load": (sd.load, {"path": "loaded"}),
    "data.Data": (sd.data.Data, {"train": X, "test": X}),
    "data.from_dataset": (sd.data.from_dataset, {"dataset": torch.utils.data.TensorDataset(X)}),
    "data.idx": (sd.data.idx, {"folder": "idx"}),
    "data.npz": (sd.data.npz, {"path": "x.npz", "levels": 9}),
    "data.load": (sd.data.load, {"source": "moons"}),
    "data.fashion_mnist": (sd.data.fashion_mnist, {"folder": "nowhere"}),
    "data.toy": (sd.data.toy, {"name": "moons", "n": 8}),
    "data.two_moons": (lambda **k: draw(sd.data.two_moons(**k)), {}),
    "augment.Flip": (sd.augment.Flip, {}),
    "augment.Shift": (sd.augment.Shift, {}),
    "augment.Chain": (sd.augment.Chain, {"parts": (sd.augment.Flip(),)}),
    "grid.uniform": (sd.grid.uniform, {"sde": SDE, "n": 3}),
    "grid.quadratic": (sd.grid.quadratic, {"sde": SDE, "n": 3}),
    "grid.log_snr": (sd.grid.log_snr, {"sde": SDE, "n": 3}),
    "grid.karras": (sd.grid.karras, {"sde": SDE, "n": 3}),
    "grid.logistic": (sd.grid.logistic, {"sde": SDE, "n": 3}),
    "grid.default": (sd.grid.default, {"sde": SDE, "n": 3}),
    "metrics.sliced_wasserstein": (sd.metrics.sliced_wasserstein, {"x": X, "y": X}),
    "metrics.energy_distance": (sd.metrics.energy_distance, {"x": X, "y": X}),
    "metrics.mmd": (sd.metrics.mmd, {"x": X, "y": X}),
    "metrics.frechet_distance": (sd.metrics.frechet_distance, {"x": X, "y": X}),
    "metrics.precision_recall": (sd.metrics.precision_recall, {"x": X, "y": X, "k": 1}),
    "metrics.mode_occupancy_error": (sd.metrics.mode_occupancy_error, {"x": X, "target": MIXTURE}),
    "metrics.noise_floor": (sd.metrics.noise_floor, {"pool": DATA.train, "n": 4, "splits": 2, "projections": 4}),
    "metrics.bootstrap": (sd.metrics.bootstrap, {"statistic": torch.mean, "x": X, "resamples": 4}),
    "plot.density": (lambda **k: closed(sd.plot.density(**k)), {"model": EXACT, "limits": PLOT, "t": 0.5, "resolution": 4}),
    "plot.vector_field": (lambda **k: closed(sd.plot.vector_field(**k)), {"model": EXACT, "t": 0.5, "limits": PLOT, "arrows": 3, "resolution": 4}),
    "plot.samples": (lambda **k: closed(sd.plot.samples(**k)), {"x": IMAGES}),
    "plot.frontier": (lambda **k: closed(sd.plot.frontier(**k)), {"points": FRONTIER}),
    "plot.loss": (lambda **k: closed(sd.plot.loss(**k)), {"history": "log.jsonl"}),
    "plot.trajectory": (lambda **k: closed(sd.plot.trajectory(**k)), {"steps": list(sd.trajectory(EXACT, 2, steps=2)), "rows": 2, "columns": 2}),
    "Frontier.from_json": (sd.Frontier.from_json, {"path": "frontier.json"}),
    "Recipe.from_json": (sd.Recipe.from_json, {"text": RECIPE.to_json()}),
    "Recipe.load": (sd.Recipe.load, {"path": "recipe.json"}),
    "Report.from_json": (type(REPORT.report()).from_json, {"text": REPORT.report().to_json()}),
    "GaussianReference.fit": (sd.GaussianReference.fit, {"data": DATA.train}),
    "GaussianMixture.from_data": (sd.GaussianMixture.from_data, {"x": X, "bandwidth": 0.1}),
    "score": (EXACT.score, {"x": X, "t": 0.5}),
    "SDE.perturb": (SDE.perturb, {"x0": X, "t": 0.5, "eps": X}),
    "Transform.dequantize": (T4.dequantize, {"levels": LEVELS}),
    "Transform.quantize": (T4.quantize, {"x": X.clamp(-0.9, 0.9)}),
    "GaussianMixture.sample": (MIXTURE.sample, {"n": 2}),
    "GaussianMixture.log_prob": (MIXTURE.log_prob, {"x": X}),
}

# abstract, without arguments, or no call of a user's
OTHERS = {"digits", "SDE", "Solver", "Corrector", "ScoreModel", "Dequantizer", "Frontier", "ScoreSDEError"}


def arguments(name: str) -> dict[str, str]:
    """The names of the arguments that are replaced, with their annotations as text."""
    call, given = CALLS[name]
    target = getattr(sd, name, call) if "." not in name else call
    with contextlib.suppress(AttributeError):
        target = functools.reduce(getattr, name.split("."), sd)
    parameters = inspect.signature(target).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name: str(p.annotation) for p in parameters if p.kind not in kinds and p.name != "self" and not p.name.startswith("_")} or dict.fromkeys(given, "Any")


# ---- what is right
FINITE = {"minus", "zero", "half", "big", "int64"}  # of a float; what is out of its range is refused where that is tested

POSITIVE = {
    "lr", "rtol", "atol", "max_nfe", "sigma_min", "sigma_max", "beta_max", "t_min", "t_max", "t_end", "width", "bandwidth", "std", "snr", "tolerance", "rho",
    "level", "floor", "minutes", "few",
}  # fmt: skip

NAMES = {"name", "title", "ylabel", "source", "text"}  # any word is one

# (argument, value) and (call.argument, value) that are right all the same
RIGHT: set[tuple[str, str]] = {
    ("seed", "zero"), ("seed", "big"), ("check", "zero"), ("n", "zero"), ("frequencies", "list"), ("frequencies", "tuple"), ("attention", "list"),
    ("attention", "tuple"),
    # more than there are is all of them
    ("check", "big"), ("validate_every", "big"), ("checkpoint_every", "big"), ("log_every", "big"), ("max_bytes", "big"), ("memory", "big"),
    ("validation_samples", "big"), ("max_nfe", "big"), ("window", "big"), ("warmup", "big"), ("groups", "big"), ("rows", "big"), ("columns", "big"),
    ("paths", "big"), ("features.fit_features.batch_size", "big"),
    # none of them
    ("warmup", "zero"), ("augmentations", "zero"), ("couplings", "zero"), ("iterations", "zero"), ("paths", "zero"), ("Langevin.steps", "zero"),
    ("corrector_order", "zero"), ("Restart.rounds", "zero"), ("model", "dict"), ("report", "dict"), ("plot.frontier.levels", "dict"),
    ("history", "list"), ("history", "tuple"), ("data.Data.test", "no samples"),
    # whatever suits a user: any function, what is not looked at, sets of another shape
    ("callback", "class"), ("callback", "raises"), ("callback", "text of it"), ("s_max", "inf"), ("EDMStochastic.s_max", "inf"),
    ("frontier.solvers", "None"), ("frontier.converged", "None"), ("fit.model", "None"), ("fine_tune.model", "None"),  # of the valid call
    ("NetworkModel.transform", "None"), ("data.from_dataset.test", "None"), ("GaussianMixture.means", "shape"), ("GaussianReference.fit.data", "shape"),
    ("GaussianMixture.from_data.x", "shape"), ("metrics.bootstrap.x", "shape"), ("plot.samples.x", "shape"), ("data.from_dataset.dataset", "shape"),
    ("frontier.features", "raises"), ("frontier.features", "text of it"), ("frontier.grids", "raises"),  # of solvers and paths that need none
    ("levels", "big"), ("plot.frontier.levels", "dict"), ("frontier.grids", "class"), ("frontier.grids", "text of it"), ("frontier.features", "class"),
    ("features.FeatureExtractor.accuracy", "nan"), ("features.FeatureExtractor.accuracy", "numpy nan"), ("draw", "zero"), ("draw", "big"),
        ("VariationalDequantizer.history", "integers"), ("VariationalDequantizer.history", "no samples"), ("Transform.quantize.x", "shape"),
    ("Transform.quantize.x", "no samples"), 
}  # fmt: skip


def rightly(name: str, argument: str, kind: str, label: str) -> bool:
    """Whether a call may take this value."""
    if (argument, label) in RIGHT or (f"{name}.{argument}", label) in RIGHT:
        return True
    if label == "None":
        return "None" in kind
    if label == "true":
        return "bool" in kind
    if "float" in kind and label in FINITE:
        return argument not in POSITIVE or label in ("half", "big")
    if label == "word":
        return "PathLike" in kind or argument in NAMES
    if label == "empty":
        return argument in NAMES
    return label == "raises" and argument == "callback"


class Hang(BaseException):
    """Five seconds of CPU time are over."""


@contextlib.contextmanager
def guarded(room: int):
    """At most that much address space more, and SECONDS of CPU time, then Hang."""

    def stop(*_):
        raise Hang

    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (size + room, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def attempt(call: Callable[..., Any], given: dict[str, Any]) -> str:
    """"family", "accepted", "hang", or what else it ended with."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        call(**given)
    except ScoreSDEError:
        return "family"
    except Hang:
        return "hang"
    except Exception as error:
        if str(error) == "of the user" and "callback" in given:
            return "accepted"  # what a callback raises is its user's, who sees it
        return f"{type(error).__name__}: {str(error)[:90]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted"


def walk(names: list[str]) -> tuple[int, list[str]]:
    """How many wrong values were tried, and what went wrong with which."""
    tried, bad = 0, []
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), guarded(ROOM):
        warnings.simplefilter("ignore")
        for name in names:
            call, given = CALLS[name]
            for argument, kind in arguments(name).items():
                for label, make in WRONG.items():
                    tried += 1
                    found = attempt(call, {**given, argument: make()})
                    if found != "family" and not (found == "accepted" and rightly(name, argument, kind, label)):
                        bad.append(f"{name}({argument} = {label}): {found}")
    return tried, bad


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files are that the valid calls name."""
    monkeypatch.chdir(tmp_path)
    sd.save(NET, "loaded")
    np.savez("x.npz", train=np.random.default_rng(0).integers(0, 9, (4, 2), dtype=np.uint8))
    Path("log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    REPORT.report().to_json("report.json")
    RECIPE.save("recipe.json")
    sd.frontier(EXACT, **{k: v for k, v in CALLS["frontier"][1].items() if k != "model"}).to_json("frontier.json")
    images, labels = np.zeros((4, 3, 3), np.uint8), np.zeros(4, np.uint8)
    Path("idx").mkdir()
    for part in ("train", "t10k"):
        Path(f"idx/{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 3]) + images.tobytes())
        Path(f"idx/{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4]) + labels.tobytes())
    return tmp_path


@pytest.mark.slow
def test_wrong_values_end_in_the_family(folder):
    """At least 98 % of all: an error of the family, or rightly accepted; none hangs."""
    tried, bad = walk(list(CALLS))
    kinds = collections.Counter(line.rpartition("): ")[2].partition(":")[0] for line in bad)
    print(f"{tried} wrong values, {len(bad)} not as they should be ({1 - len(bad) / tried:.2%} right): {dict(kinds)}")
    Path(os.environ.get("WRONG_VALUES", "bad.txt")).write_text("\n".join(bad))
    assert not kinds["hang"], [line for line in bad if line.endswith("hang")]
    assert 1 - len(bad) / tried >= LEAST, "\n".join(bad[:200])


def test_the_valid_calls_are_valid_and_all_of_the_public_api(folder):
    for name, (call, given) in CALLS.items():
        if name != "data.fashion_mnist":  # of a folder that is not everywhere
            assert attempt(call, given) == "accepted", name
    offered = set()
    for module in ("", "sdes", "nets", "models", "solvers", "data", "likelihood", "checkpoints", "sampling", "training", "plot", "evaluation"):
        face = importlib.import_module(f"scoresde.{module}".rstrip("."))
        offered |= {name for name in face.__all__ if callable(getattr(face, name)) and not isinstance(getattr(face, name), types.ModuleType)}
    assert {name.rpartition(".")[2] for name in CALLS} >= offered - OTHERS

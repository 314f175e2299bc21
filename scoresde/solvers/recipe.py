"""Recipes: a solver with its time grid for a number of network calls, as ``tune`` finds them; JSON in and out."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core import encoding, files
from scoresde.core.checks import check_positive_int
from scoresde.core.digest import name_of, of_model
from scoresde.core.doors import checked
from scoresde.errors import CheckpointCorrupt, CheckpointMismatch, ConfigError
from scoresde.models.network import NetworkModel
from scoresde.models.reference import GaussianReference
from scoresde.solvers.base import Solver, Wrapper, check_solver
from scoresde.solvers.multistep import DEIS, AdamsBashforth, DPMSolverPP, UniPC
from scoresde.solvers.reference import ReferenceScheme, ReferenceSolver

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.base import SDE
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw

MOST = 1 << 26  # bytes of a file

SLACK = 1e-9  # relative, of times at the ends of an SDE's range


@checked
@dataclass(frozen=True)
class Recipe(Wrapper):
    """A solver on a grid of its own: ``sample(model, n, solver=recipe)`` makes ``nfe`` network calls.

    Args:
        solver: a solver, bound to the model when it is used.
        times: decreasing, from t_max to where samples stop.
        nfe: network calls a sample; for the solvers that ``tune`` takes, which make one a step, one less than there are times.
        model: what it was made for: repr of the SDE, its t_min and t_max, event shape, fingerprints of the Gaussian reference and of
            the weights, names of the conditions.
        report: errors on pilot paths that the fit did not see, of the recipe and of the best untuned choice (``built_in``):
            ``median_error`` and ``rms_error``, Euclidean distances at t_end to the model's own converged paths.

    Raises:
        ConfigError: times that do not decrease or are not within [t_min, t_max] of ``model``; an nfe that is not that of solver and
            times; in use, another number of steps, or a model of another SDE or shape, or whose times end earlier.
    """

    solver: Solver
    times: tuple[float, ...]
    nfe: int
    model: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    report: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    default_steps: int = field(init=False, repr=False, default=0)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_solver(self.solver)
        check_positive_int(self.nfe, "nfe")
        try:
            t = tuple(float(v) for v in self.times)
        except (TypeError, ValueError):
            raise ConfigError(f"times = {self.times!r} of a Recipe, expected decreasing numbers") from None
        if len(t) < 2 or not all(math.isfinite(a) and a > b for a, b in zip(t, t[1:], strict=False)):
            raise ConfigError(f"times of a Recipe are {t[:4]}..., expected at least two decreasing numbers")
        for name, value in (("model", self.model), ("report", self.report)):
            if not isinstance(value, dict):
                raise ConfigError(f"{name} = {value!r} of a Recipe, expected a dict")
        low, high = (self.model.get(name, end) for name, end in (("t_min", 0.0), ("t_max", math.inf)))
        numbers = all(isinstance(v, (int, float)) for v in (low, high))
        if wrong := _outside(t, low, high) if numbers else f"t_min = {low!r} and t_max = {high!r} are no numbers":
            raise ConfigError(f"a Recipe for {self.model.get('sde', 'a model')}: {wrong}; tune(model, nfe={self.nfe}) makes one")
        if type(self.solver) in _solvers().values() and self.nfe != len(t) - 1:
            raise ConfigError(f"nfe = {self.nfe} of a Recipe of {len(t)} times: {self.solver} makes {len(t) - 1} network calls on them")
        if isinstance(self.solver, ReferenceScheme) and len(self.solver.weights) != self.nfe:
            raise ConfigError(f"nfe = {self.nfe} of a Recipe, but its ReferenceScheme has {len(self.solver.weights)} rows of weights")
        object.__setattr__(self, "times", t)
        object.__setattr__(self, "default_steps", self.nfe)

    @property
    def own_grid(self) -> bool:
        return True

    def bind(self, model: Answers, calls: int | None) -> Recipe:
        """This recipe for a model. Raises ConfigError if it was made for another."""
        if calls is None:
            raise ConfigError("times and a recipe were given: a recipe has times of its own; leave times out")
        if calls != self.nfe:
            raise ConfigError(f"steps = {calls} for a recipe of {self.nfe} network calls: leave steps out, or tune(model, nfe={calls})")
        wrong = self.mismatch(model)
        if wrong:
            raise ConfigError(f"this recipe was made for another model: {wrong}; tune(model, nfe={self.nfe}) makes one for yours")
        return self.around(self.solver.bind(model, None))

    def mismatch(self, model: Answers, weights: str | None = None) -> str:
        """What differs between the model that this was made for and the given one; "" if nothing does.

        Args:
            model: the model to use it for.
            weights: ``fingerprint(model)``, to compare too (with other weights a recipe works, but it is not the best).
        """
        saved = self.model
        if weights is not None and saved.get("weights", weights) != weights:
            return "its weights are others (the model was trained since)"
        if saved.get("sde", repr(model.sde)) != repr(model.sde):
            return f"its SDE is {saved['sde']}, yours {model.sde!r}"
        if wrong := _outside(self.times, float(model.sde.t_min), float(model.sde.t_max)):
            return wrong
        if list(saved.get("event_shape", model.event_shape)) != list(model.event_shape):
            return f"its samples have shape {tuple(saved['event_shape'])}, yours {model.event_shape}"
        own = isinstance(self.solver, (ReferenceSolver, ReferenceScheme)) and self.solver.reference is None
        if own and (model.reference is None or model.reference.fingerprint() != saved.get("reference")):
            return "its Gaussian reference is another one (the model was trained on other data since)"
        return ""

    def grid(self, sde: SDE, n: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The recipe's times. Raises ConfigError for another end."""
        if end is not None and abs(end - self.times[-1]) > 1e-9 * self.times[-1]:
            raise ConfigError(f"t_end = {end} for a recipe that stops at {self.times[-1]}: tune(model, nfe={self.nfe}, t_end={end})")
        return torch.tensor(self.times, dtype=torch.float64, device="cpu")

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        return self.solver.step(model, x, t, s, state, noise)

    # ---- JSON

    def to_json(self) -> str:
        """The recipe as JSON; ``Recipe.from_json`` reads it. Raises ConfigError for a solver that recipes are not made of."""
        if type(self.solver) not in _solvers().values():
            raise ConfigError(
                f"a recipe around {self.solver!r} cannot be written: expected one of {', '.join(_solvers())}; keep it as code"
            )
        arguments = {f.name: getattr(self.solver, f.name) for f in dataclasses.fields(self.solver) if f.init}  # type: ignore[arg-type]
        reference = arguments.get("reference")
        if reference is not None:
            tensors = {name: {"shape": list(v.shape), "values": v.flatten().tolist()} for name, v in reference.tensors().items()}
            arguments["reference"] = {"kind": reference.kind, "width": reference.width, "typical": reference.typical, "tensors": tensors}
        content = {
            "solver": {"class": type(self.solver).__name__, "args": arguments},
            "times": list(self.times),
            "nfe": self.nfe,
            "model": self.model,
            "report": {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.report.items()},
        }
        return encoding.encode_document("recipe", content).decode()

    @classmethod
    @checked
    def from_json(cls, text: str, name: str = "recipe") -> Recipe:
        """A recipe from JSON. Solvers are scoresde's own, by name; nothing is imported.

        Raises:
            CheckpointCorrupt: damaged, or not what ``to_json`` made.
            CheckpointMismatch: a solver that recipes are not made of; a file of another kind or version.
            ConfigError: times or an nfe that fit neither each other nor the model that it says.
        """
        if not isinstance(text, str):
            raise ConfigError(f"text = {text!r}, expected the JSON that Recipe.to_json gave")
        return cls._read(text, name)

    @classmethod
    def _read(cls, text: str | bytes, name: str) -> Recipe:
        content = encoding.decode_document(name, text, "recipe")
        try:
            solver = _own(content["solver"]["class"], name)
            arguments = {k: _tuples(v) if k == "weights" else v for k, v in content["solver"]["args"].items()}
            reference = arguments.get("reference")
            if reference is not None:
                saved = reference["tensors"].items()
                tensors: dict[str, Any] = {
                    k: torch.tensor(v["values"], dtype=torch.float64, device="cpu").view(v["shape"]) for k, v in saved
                }
                arguments["reference"] = GaussianReference(
                    **tensors, kind=reference["kind"], width=reference["width"], typical=reference.get("typical", 1.0)
                )
            times, nfe = tuple(float(t) for t in content["times"]), content["nfe"]
            made, model, report = solver(**arguments), dict(content["model"]), dict(content["report"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            if isinstance(error, CheckpointMismatch):
                raise
            raise CheckpointCorrupt(f"{name}: no recipe that `Recipe.save` wrote: {type(error).__name__}: {error}") from error
        return cls(made, times, nfe, model, report)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes JSON to a file, or into a folder (of a checkpoint, say) as ``recipe-NFE.json``. Raises CheckpointWriteError."""
        file = Path(path)
        file = file / f"recipe-{self.nfe}.json" if file.suffix != ".json" else file
        files.write_text(file, self.to_json())
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads what ``save`` wrote. Raises CheckpointNotFound: no such file; CheckpointError: no regular one; else as ``from_json``."""
        return cls._read(files.read_own(path, MOST, "a JSON file that Recipe.save or tune wrote"), str(path))


def fingerprint(model: ScoreModel) -> str:
    """Sixteen hexadecimal digits of a model's weights and of its parameterization, for a model that has one."""
    return of_model(model, name_of(model.parameterization) if isinstance(model, NetworkModel) else "")


def _solvers() -> dict[str, type]:
    """The solvers that recipes are made of, by name."""
    made_of = (AdamsBashforth, DEIS, DPMSolverPP, ReferenceScheme, ReferenceSolver, UniPC)
    return {cls.__name__: cls for cls in made_of}


def _own(name: str, where: str) -> type:
    """One of these solvers."""
    if name not in _solvers():
        raise CheckpointMismatch(f"{where}: its solver is a {name!r}, which is none that recipes are made of")
    return _solvers()[name]


def _outside(times: tuple[float, ...], low: float, high: float) -> str:
    """What is wrong with times that should be within [low, high], and above 0; "" if nothing is."""
    first, last = times[0], times[-1]
    if 0 < last >= low * (1 - SLACK) and first <= high * (1 + SLACK):
        return ""
    return f"its times run from {first:.6g} to {last:.6g}, expected within [t_min, t_max] = [{low:.6g}, {high:.6g}] and above 0"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

"""SDEs, networks and solvers by name, as the command line gives them: ``--sde VESDE --sde.sigma_max 20``.

A short name is one of scoresde's own classes; a dotted one, ``package.module:Class``, is imported. Nothing is registered
anywhere: what can be named is what the faces of the folders offer.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from scoresde import nets, sdes, solvers
from scoresde.core import faces
from scoresde.core.checks import did_you_mean
from scoresde.errors import ConfigError
from scoresde.sdes import grid
from scoresde.sdes.base import SDE
from scoresde.solvers.base import Solver
from scoresde.solvers.reference import ReferenceSolver

KINDS: dict[str, tuple[type[Any], ModuleType]] = {"sde": (SDE, sdes), "net": (nn.Module, nets), "solver": (Solver, solvers)}


def own(kind: str) -> dict[str, type]:
    """scoresde's public classes of a kind ("sde", "net", "solver") that text can make, by name.

    All arguments of an SDE or a solver have defaults, but for those solvers that ``tune`` makes; what a network must be told, data say.
    """
    base, package = KINDS[kind]
    classes = faces.own(package, base)
    return classes if kind == "net" else {name: cls for name, cls in classes.items() if not _missing(cls, {})}


def of_the_flow() -> dict[str, type]:
    """Those of the solvers by which log p can be computed: of the probability-flow ODE by its velocity, or in reference coordinates."""

    def follows(cls: type) -> bool:
        solver = cls()
        return isinstance(solver, ReferenceSolver) or (solver.asks, solver.noise) == ("velocity", "deterministic")

    return {name: cls for name, cls in own("solver").items() if follows(cls)}


def grids() -> dict[str, Callable[..., Tensor]]:
    """The grids of times in ``scoresde.grid``, by name: its public functions of (sde, n, start, end)."""
    start = ["sde", "n", "start", "end"]
    functions = {name: value for name, value in vars(grid).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {name: f for name, f in functions.items() if list(inspect.signature(f).parameters)[:4] == start and f is not grid.default}


def signature(cls: type) -> str:
    """The class with its arguments, VESDE(sigma_min=0.01, ...) for instance, for a help text."""
    parts = [name if p.default is p.empty else f"{name}={p.default!r}" for name, p in _parameters(cls).items()]
    return f"{cls.__name__}({', '.join(parts)})"


def make(kind: str, name: str, options: Mapping[str, str], known: Mapping[str, Any] | None = None) -> Any:
    """An instance of the class called ``name``, with arguments as text.

    Args:
        kind: "sde", "net" or "solver".
        name: of one of scoresde's own classes, or ``package.module:Class``.
        options: {argument: text}; {"predictor": "DDIM", "predictor.eta": "1"} for arguments that are solvers themselves.
        known: values for arguments that the class has and ``options`` does not give.

    Raises:
        ConfigError: an unknown class or argument, a value of the wrong type, a missing argument.
    """
    return _make(kind, find(kind, name), options, known or {}, f"--{kind}")


def find(kind: str, name: str) -> type:
    """The class of that name. Raises ConfigError, with a suggestion."""
    classes = own(kind)
    if name in classes:
        return classes[name]
    if "." in name or ":" in name:
        return _import(kind, name)
    base = KINDS[kind][0].__name__
    raise ConfigError(
        f"--{kind} {name!r} is unknown, expected one of {', '.join(classes)}, or a subclass of {base} of your own as "
        f"package.module:Class{did_you_mean(name, classes)}"
    )


def _import(kind: str, name: str) -> type:
    base = KINDS[kind][0]
    module_name, _, class_name = name.partition(":") if ":" in name else name.rpartition(".")
    here = os.getcwd()
    added = here not in sys.path  # as `python -m` does: your own class is most often in the folder you are in
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"--{kind} {name}: cannot import {module_name!r}: {error}; expected package.module:Class") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        classes = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
        what = "has no such class" if cls is None else f"is no subclass of {base.__name__}"
        raise ConfigError(
            f"--{kind} {name}: {class_name!r} of {module_name} {what}; it has {', '.join(classes) or 'none'}"
            f"{did_you_mean(class_name, classes)}"
        )
    return cls


def _make(kind: str, cls: type, options: Mapping[str, str], known: Mapping[str, Any], prefix: str) -> Any:
    parameters = _parameters(cls)
    for option in options:
        if option.split(".")[0] not in parameters:
            raise ConfigError(
                f"{prefix}.{option} is unknown: {cls.__name__} takes {', '.join(parameters) or 'no arguments'}"
                f"{did_you_mean(option, parameters)}"
            )
    arguments = {name: value for name, value in known.items() if name in parameters}
    for name, parameter in parameters.items():
        text, below = options.get(name), {k[len(name) + 1 :]: v for k, v in options.items() if k.startswith(f"{name}.")}
        if isinstance(parameter.default, Solver):  # a solver made of solvers
            if text is not None or below:
                inner = type(parameter.default) if text is None else find("solver", text)
                arguments[name] = _make("solver", inner, below, {}, f"{prefix}.{name}")
        elif below:
            raise ConfigError(f"{prefix}.{name}.{next(iter(below))} is unknown: {name} of {cls.__name__} is a plain value")
        elif text is not None:
            arguments[name] = _value(cls, name, text, f"{prefix}.{name}")
    missing = _missing(cls, arguments)
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}: give {prefix}.{missing[0]} VALUE")
    return cls(**arguments)


def _missing(cls: type, arguments: Mapping[str, Any]) -> list[str]:
    """The arguments that must still be given."""
    return [name for name, p in _parameters(cls).items() if p.default is p.empty and name not in arguments]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _value(cls: type, name: str, text: str, option: str) -> Any:
    """The text as what the constructor's annotation says, by jsonargparse."""
    from jsonargparse import ArgumentError, ArgumentParser

    try:
        hint = typing.get_type_hints(vars(cls).get("__init__", cls)).get(name, typing.Any)
    except (NameError, TypeError, AttributeError):  # an annotation that only a type checker can resolve
        hint = typing.Any
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    for form in (text, f"[{text}]"):  # 1,2,2 is a sequence too
        try:
            return parser.parse_args([f"--value={form}"]).value
        except ArgumentError:
            readable = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    raise ConfigError(f"{option} = {text!r}, expected {readable.replace('collections.abc.', '')}")

"""What a model may be told beside x and t: which conditions it takes, and those of some rows."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.core.checks import did_you_mean, letters_apart
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.models.plain import plain

NEAR = 2  # letters: a keyword that close to an option is taken for that option, misspelled


OURS = ("x", "t")  # arguments of every model, which no condition can be called


class Conditions(NamedTuple):
    """The conditions that a model takes: those with these names, and with ``others`` any other one, as of a bare ``**cond``.

    ``required``: those that must be given, since without them the model cannot be called, or was never trained.
    """

    names: tuple[str, ...] = ()
    others: bool = False
    required: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], first: int) -> Conditions:
        """Those of a function's parameters that come after the ``first`` ones, which are x and the noise level."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # written in C, or wrapped so that nothing is known
            return cls(others=True)
        plain_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = [p for p in parameters[first:] if p.kind in plain_kinds]
        others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        return cls(tuple(p.name for p in named), others, tuple(p.name for p in named if p.default is p.empty))


def speaker(net: nn.Module) -> nn.Module:
    """The network whose signature says what it takes: inside of what torch puts around it, and of modules that pass everything on,
    ``forward(*args, **kwargs)``, to the one part that they have."""
    net = plain(net)
    while _passes_on(net.forward) and len(parts := list(net.children())) == 1:
        net = plain(parts[0])
    return net


def _passes_on(function: Callable[..., Any]) -> bool:
    try:
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return False
    return kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


@functools.cache
def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The keywords of a public function, all but its ``**cond``."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds)


def check_conditions(takes: Conditions, cond: Mapping[str, Any], *functions: Callable[..., Any], dtype: torch.dtype) -> dict[str, Any]:
    """The conditions that a public function was given, as tensors where they are arrays, lists or class numbers.

    Checks that every keyword of ``**cond`` is a condition of the model, and no misspelled option of the functions that got it, and
    that nothing is missing that the model cannot do without.

    Args:
        takes: what the model takes.
        cond: what was given.
        functions: the public functions that were called, with their options.
        dtype: of arrays and lists of floats.

    Raises:
        ConfigError: a name that the model does not take; one within two letters of an option, whatever the model takes; one that is
            missing.
        DTypeError: a label that is no class number.
    """
    where = functions[0].__name__ if functions else "this function"
    options = tuple(dict.fromkeys(option for function in functions for option in options_of(function))) if cond else ()
    for name in cond:
        if name in OURS:
            raise ConfigError(f"a condition is called {name!r}, as an argument of every model is: give it another name")
        if name in takes.names:
            continue
        # a short option is near to anything: half of its letters must be right
        near = [o for o in options if letters_apart(name, o) <= min(NEAR, (len(o) - 1) // 2)]
        if takes.others and not near:
            continue
        known = [*takes.names, *options]
        hint = f"; did you mean {near[0]!r}?" if near else did_you_mean(name, known)
        conditions = ", ".join(takes.names) + (" and any other" if takes.others and takes.names else "")
        taken = f"the model takes {conditions} as condition" if takes.names else "the model takes no condition"
        taken = "the model takes any condition, but none so close to an option" if takes.others and not takes.names else taken
        raise ConfigError(f"{name!r} is no option of {where}, and {taken}{hint}")
    missing = [name for name in takes.required if cond.get(name) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]!r} is missing: this model was trained with that condition alone and knows nothing without it; give it to "
            f"{where}, {missing[0]}=..., for instance a number for all samples or a tensor of one each"
            + (", or train it without one now and then (label_dropout=0.1)" if missing[0] == "label" else "")
        )
    return as_tensors(cond, dtype)


def as_tensors(cond: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Conditions as networks take them: arrays and lists of numbers as tensors, floats among them in ``dtype``; the ``label`` of one
    class for all samples as a tensor (1,). Containers may be nested. All else stays what it is. Raises DTypeError."""
    return {name: _label(value) if name == "label" else _as_tensors(value, dtype) for name, value in cond.items()}


def _as_tensors(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_tensors(part, dtype) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if not _numeric(value):
            return _refilled(value, [_as_tensors(part, dtype) for part in value])
        try:
            value = np.asarray(value)
        except ValueError:  # ragged: its rows are lists of their own
            return _refilled(value, [_as_tensors(part, dtype) for part in value])
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "biuf":
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    return value


def _numeric(value: Any) -> bool:
    """Whether this is a number, or a list of lists of them."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_numeric(part) for part in value)
    return isinstance(value, (int, float, np.generic))


def _label(value: Any) -> Any:
    """Class numbers as a tensor: of one number (1,). Raises DTypeError."""
    if value is None or isinstance(value, Tensor):
        return value
    try:
        found = np.asarray([operator.index(value)]) if not isinstance(value, (list, tuple, np.ndarray, bool)) else np.asarray(value)
    except (TypeError, ValueError):  # no integer, or a ragged list
        found = np.asarray("")
    if found.dtype.kind not in "iu" or not found.ndim:
        raise DTypeError(f"label = {value!r}, expected a class number for all samples, or one each: a LongTensor, an array or a list")
    return torch.from_numpy(found.astype(np.int64))


def slice_cond(cond: Mapping[str, Any], rows: Callable[[Tensor], Tensor], n: int) -> dict[str, Any]:
    """The conditions of some of n samples. In containers as outside: tensors whose first dimension is n are one row a sample, those
    whose first dimension is 1 are one row for all, lists of n texts one a sample; all else is shared."""
    return {name: _slice(value, rows, n) for name, value in cond.items()}


def _slice(value: Any, rows: Callable[[Tensor], Tensor], n: int) -> Any:
    if isinstance(value, Tensor):
        if not value.ndim or value.shape[0] not in (1, n):
            return value
        return rows(value.expand(n, *value.shape[1:]))
    if isinstance(value, Mapping):
        return {key: _slice(part, rows, n) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) == n and all(isinstance(part, str) for part in value):
            return [value[i] for i in rows(torch.arange(n, device="cpu")).tolist()]
        return _refilled(value, [_slice(part, rows, n) for part in value])
    return value


def _refilled(container: Any, parts: list[Any]) -> Any:
    """A list, tuple or named tuple like this one, with other parts."""
    if isinstance(container, list):
        return parts
    return tuple(parts) if type(container) is tuple else type(container)(*parts)


def conditions_of_rows(cond: Mapping[str, Any], rows: np.ndarray, n: int, device: torch.device) -> dict[str, Any]:
    """The conditions of these rows of n samples, on a device. Raises ShapeError: a condition of another number of samples."""
    check_lengths(cond, n)
    index = torch.from_numpy(rows)
    return slice_cond(cond, lambda v: v[index.to(v.device)].to(device), n)


def check_lengths(cond: Any, n: int, name: str = "") -> None:
    """Raises ShapeError for a condition, in a container or not, that is neither of n samples nor of one for all."""
    if isinstance(cond, Tensor) and cond.ndim and cond.shape[0] not in (1, n):
        raise ShapeError(
            f"condition {name!r} has shape {tuple(cond.shape)} for {n} samples: expected ({n}, ...), a row each, or (1, ...), one row "
            "for all of them"
        )
    if isinstance(cond, (list, tuple)) and len(cond) != n and cond and all(isinstance(part, str) for part in cond):
        raise ShapeError(f"condition {name!r} is a list of {len(cond)} texts for {n} samples: expected one each, or one text for all")
    if isinstance(cond, Mapping):
        for key, part in cond.items():
            check_lengths(part, n, f"{name}[{key!r}]" if name else key)
    elif isinstance(cond, (list, tuple)):
        for i, part in enumerate(cond):
            check_lengths(part, n, f"{name}[{i}]")

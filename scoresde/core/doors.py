"""The door of a public function or class: what is given for an argument is what its annotation says, before anything is done.

``@checked`` reads the annotations once. Integers and floats may be Python's, NumPy's or tensors of one number, and arrive as Python's;
True and False are no numbers; NaN is none either. Tensors are dense, real, and hold numbers. What the annotation does not say, a range
or a shape, is checked inside. A name that is not in the table below (of an alias, a protocol) is not checked here.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import as_integer, as_number, scalar_of, shown
from scoresde.errors import ConfigError, DTypeError

T = TypeVar("T")

CLASSES = (
    "ScoreModel", "Solver", "Corrector", "SDE", "Transform", "Dequantizer", "GaussianReference", "GaussianMixture", "BinFlow", "Module",
)  # fmt: skip

_WORDS = {
    "int": "a positive integer",  # or of any sign, where the default is not positive
    "float": "a number",
    "bool": "True or False",
    "str": "a name",
    "None": "None",
    "Tensor": "a torch.Tensor",
    "PathLike": "the name of a file or folder",
    "Callable": "a function",
    "Sequence": "a sequence",
    "tuple": "a tuple",
    "Iterable": "a sequence",
    "Mapping": "a dict",
    "dict": "a dict",
    "Solver": "a solver, scoresde.Heun() for instance, or yours, a subclass of scoresde.Solver",
    "Transform": "a scoresde.Transform",
    "dtype": "a torch.dtype, torch.float32 for instance",
    "device": "a torch.device",
    "Data": "a Data: scoresde.data.Data(train, test)",
    "Module": "a torch.nn.Module",
    "SDE": "an instance of an SDE",
}


class _No(Exception):
    """Not of this kind; the text says more."""


def checked(target: T) -> T:
    """A function, or a class by its ``__init__``, whose arguments are checked by their annotations. Raises ConfigError, DTypeError."""
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    function: Any = target
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    signed = {name for name, p in parameters.items() if isinstance(p.default, int) and p.default <= 0}
    kinds = {name: kind for name, text in function.__annotations__.items() if name != "return" and (kind := _alternatives(str(text)))}
    kinds = {name: kind for name, kind in kinds.items() if name in names}
    if not kinds:
        return target

    @functools.wraps(function)
    def door(*args: Any, **given: Any) -> Any:
        values = [_check(v, kinds[name], name, name in signed) if name in kinds else v for name, v in zip(names, args, strict=False)]
        for name in given:
            if name in kinds:
                given[name] = _check(given[name], kinds[name], name, name in signed)
        return function(*values, *args[len(values) :], **given)

    return door  # type: ignore[return-value]


def _alternatives(text: str) -> list[tuple[str, str]]:
    """The parts of a union as (word, what is in its brackets); none if one of them is not known here."""
    found = []
    for part in _split(text, "|"):
        head, _, inside = part.strip().partition("[")
        word = head.rpartition(".")[2]
        if word not in _WORDS and word not in CLASSES:
            return []
        found.append((word, inside.removesuffix("]")))
    named = any(word in ("PathLike", "device") for word, _ in found)  # by text, of which not every one will do
    return [pair for pair in found if pair[0] != "str"] if named else found


def _split(text: str, mark: str) -> list[str]:
    """A text at the marks that are in no brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == mark and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _check(value: Any, kind: list[tuple[str, str]], name: str, signed: bool = False) -> Any:
    notes = []
    for word, inside in kind:
        try:
            return _of_kind(value, word, inside)
        except _No as no:
            notes.append(str(no))
    words = " or ".join(_WORDS.get(word, f"a {word}") for word, _ in kind if word != "None") or "None"
    words = words.replace("a positive integer", "an integer") if signed else words
    if isinstance(value, type):
        raise ConfigError(f"{name} = {value.__name__} is a class, expected an instance of {words}, {value.__name__}() for instance")
    note = next((f": {note}" for note in notes if note), "")
    tensors = any(word == "Tensor" for word, _ in kind)
    if tensors and isinstance(value, Tensor):
        raise DTypeError(f"{name} has dtype {value.dtype}{note}")
    if [word for word, _ in kind if word != "None"] == ["Tensor"]:
        raise DTypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor: use torch.as_tensor({name})")
    if any(word in ("ScoreModel", "Data", "Module") for word, _ in kind):
        raise ConfigError(f"{name} is a {type(value).__name__}, expected {words}")
    raise ConfigError(f"{name} = {shown(value)}, expected {words}, not a {type(value).__name__}{note}")


def _of_kind(value: Any, word: str, inside: str) -> Any:
    """The value as this kind has it. Raises _No."""
    if word in ("int", "float"):
        found = as_integer(value) if word == "int" else as_number(value)
        if found is None:
            number = scalar_of(value)
            if word == "float" and isinstance(number, float) and math.isnan(number):
                return number  # it is refused inside, where the range is known
            raise _No
        return value if type(value) in (int, float) else found
    if word in ("Sequence", "tuple"):
        return _sequence(value, inside, word == "tuple")
    good = {
        "None": value is None,
        "bool": isinstance(value, (bool, np.bool_)),
        "str": isinstance(value, str),
        "Callable": callable(value),
        "Mapping": isinstance(value, Mapping),
        "dict": isinstance(value, dict),
        "Iterable": isinstance(value, (Iterable, Tensor, np.ndarray)) and not isinstance(value, (str, bytes, Mapping, set)),
        "PathLike": isinstance(value, (str, os.PathLike)) and os.fspath(value) not in ("", b"") and "\0" not in str(value),
        "Tensor": isinstance(value, Tensor),
        "dtype": isinstance(value, torch.dtype) and value.is_floating_point,
        "device": isinstance(value, torch.device) or _is_device(value),
    }.get(word)
    if good is None:
        good = any(cls.__name__ == word for cls in type(value).__mro__)
    if not good:
        raise _No
    if isinstance(value, Tensor):
        _check_tensor(value)
    return bool(value) if word == "bool" else value


def _is_device(value: Any) -> bool:
    """Whether this text names a device."""
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


def _check_tensor(x: Tensor) -> None:
    """Raises _No unless it is dense, real and holds numbers."""
    if x.layout is not torch.strided:
        raise _No("sparse, expected a dense one, as x.to_dense() gives")
    if x.is_complex():
        raise _No("complex, expected real numbers: torch.view_as_real(x) gives them as pairs")
    if x.is_meta:
        raise _No("on the meta device, it holds no numbers: expected one on a CPU or a GPU")


def _sequence(value: Any, inside: str, fixed: bool) -> Any:
    """A tuple of checked items, where the annotation names them."""
    if isinstance(value, Tensor):
        _check_tensor(value)
    items = value.tolist() if isinstance(value, (Tensor, np.ndarray)) and value.ndim else value
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)):
        raise _No
    parts = [part.strip() for part in _split(inside, ",") if part.strip() not in ("", "...")]
    if fixed and len(parts) > 1 and len(parts) != len(items):
        raise _No(f"{len(items)} values, expected {len(parts)}")
    kinds = [_alternatives(part) for part in parts]
    if not kinds or not all(kinds):
        return items
    every = kinds * len(items) if len(kinds) == 1 else kinds
    found = []
    for i, (item, kind) in enumerate(zip(items, every, strict=True)):
        try:
            found.append(_check(item, kind, f"item {i}"))
        except (ConfigError, DTypeError) as error:
            raise _No(str(error)) from None
    return tuple(found)



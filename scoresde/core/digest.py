"""What tells two things apart: a digest of values of any kind, for rows that are kept in files and found again in another process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PASSING = {"training", "recipes"}  # of a module: no part of what it computes

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def sha256_of(*parts: str | bytes | Tensor) -> str:
    """sha256, in hexadecimal, of texts, bytes and the bytes of tensors, one after the other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else tensor_bytes(part))
    return total.hexdigest()


def tensor_bytes(x: Tensor) -> Any:
    """The numbers of a tensor as bytes, without a copy where it is on the CPU and contiguous."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def of_tensors(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits that tell some tensors from others: of their dtypes, shapes and bytes."""
    return sha256_of(*(part for x in tensors for part in (f"{x.dtype} {tuple(x.shape)}", x)))[:16]


def of_model(model: nn.Module, parameterization: str = "") -> str:
    """Sixteen hexadecimal digits of a model's weights, by name, and of the name of its parameterization."""
    named = ((f"{name} {x.dtype} {tuple(x.shape)};", x) for name, x in model.state_dict().items())
    return sha256_of(parameterization, *(part for pair in named for part in pair))[:16]


def digest(*values: Any) -> str:
    """Sixteen hexadecimal digits of values of any kind, the same in every process.

    Numbers, text and tensors count by value; dataclasses by the fields that they are compared by; functions by code, defaults, what
    they close over and the plain values and functions of their own module that they name; ``functools.partial`` by function and
    arguments; modules by weights and public attributes; other objects by their attributes. A class counts by its name.
    """
    total = hashlib.sha256()
    met: dict[int, tuple[int, Any]] = {}
    for value in values:
        _add(value, total, met)
    return total.hexdigest()[:16]


def solver_digest(solver: Any) -> str:
    """Of a solver and of the methods of its class: one that was edited is another one."""
    methods = [
        (name, method)
        for cls in type(solver).__mro__[:-1]
        for name, method in sorted(vars(cls).items())
        if isinstance(method, types.FunctionType) and (not name.startswith("__") or name == "__call__")
    ]
    return digest(solver, methods)


def name_of(function: Any, code: bool = False) -> str:
    """The name that a function is known by in a config; a string is its own, and a dataclass tells its fields. With ``code`` one
    without a name, a lambda, is known by what it does, as far as its code tells."""
    if code and isinstance(function, types.FunctionType) and function.__name__ == "<lambda>":
        what = function.__code__
        return f"<lambda> {sha256_of(repr((what.co_names, what.co_consts)), what.co_code.hex())[:8]}"
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return repr(function)
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def plain_repr(value: Any) -> str:
    """A repr without addresses."""
    return _ADDRESS.sub("", repr(value))


def _add(value: Any, total: Any, met: dict[int, tuple[int, Any]]) -> None:
    total.update(f"{type(value).__qualname__};".encode())

    def add(*parts: Any) -> None:
        for part in parts:
            _add(part, total, met)

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        total.update(repr(value).encode())
    elif isinstance(value, Tensor):
        total.update(f"{value.dtype} {tuple(value.shape)};".encode())
        total.update(tensor_bytes(value))
    elif isinstance(value, np.ndarray):
        total.update(f"{value.dtype} {value.shape};".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            add(str(key), value[key])
    elif isinstance(value, (list, tuple)):
        total.update(f"{len(value)};".encode())
        add(*value)
    elif isinstance(value, (set, frozenset)):
        add(sorted(digest(item) for item in value))  # their order is not that of another process
    elif isinstance(value, types.CodeType):
        add(value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        total.update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode())
    elif id(value) in met:  # seen before, or from inside of itself
        total.update(f"{met[id(value)][0]}".encode())
    else:
        met[id(value)] = len(met), value  # kept, so that no other object gets its id
        _add_object(value, total, add)


def _add_object(value: Any, total: Any, add: Any) -> None:
    if isinstance(value, nn.Module):
        for name, module in value.named_modules():
            public = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in _PASSING}
            add(name, type(module), public)
        add(value.state_dict())
    elif isinstance(value, functools.partial):
        add(value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        add(value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        named = {name: value.__globals__[name] for name in sorted(_names(value.__code__)) if name in value.__globals__}
        plain = (bool, int, float, str, tuple, Tensor, functools.partial)
        own = {k: v for k, v in named.items() if isinstance(v, plain) or _is_near(v, value)}
        cells = [_content(cell) for cell in value.__closure__ or ()]
        add(value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells, own)
    elif dataclasses.is_dataclass(value):
        add(type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare})
    elif hasattr(value, "__dict__"):
        add(type(value), vars(value))
    else:
        total.update(plain_repr(value).encode())


def _names(code: types.CodeType) -> set[str]:
    """What a function and those inside it name."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*inner)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _is_near(value: Any, function: types.FunctionType) -> bool:
    """Whether this is a function of the same module."""
    return isinstance(value, types.FunctionType) and value.__module__ == function.__module__

"""What a model may be told beside x and t: which conditions it takes, and those of some rows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import did_you_mean, letters_apart
from scoresde.errors import ConfigError, ShapeError

NEAR = 2  # letters: a keyword that close to an option is taken for that option, misspelled


class Conditions(NamedTuple):
    """The conditions that a model takes: those with these names, and with ``others`` any other one, as of a bare ``**cond``."""

    names: tuple[str, ...] = ()
    others: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any], first: int) -> Conditions:
        """Those of a function's parameters that come after the ``first`` ones, which are x and the noise level."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # written in C, or wrapped so that nothing is known
            return cls(others=True)
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = tuple(p.name for p in parameters[first:] if p.kind in plain)
        return cls(names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


@functools.cache
def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The keywords of a public function, all but its ``**cond``."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds)


def check_conditions(takes: Conditions, cond: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Checks that every keyword of ``**cond`` is a condition of the model, and no misspelled option of the functions that got it.

    Raises:
        ConfigError: a name that the model does not take; one within two letters of an option, whatever the model takes.
    """
    if not cond:
        return
    options = tuple(dict.fromkeys(option for function in functions for option in options_of(function)))
    where = functions[0].__name__ if functions else "this function"
    for name in cond:
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


def slice_cond(cond: dict[str, Any], rows: Callable[[Tensor], Tensor], n: int) -> dict[str, Any]:
    """The conditions of some rows: tensors whose first dimension is n are per sample, all else is shared."""
    return {
        name: rows(value) if isinstance(value, Tensor) and value.ndim and value.shape[0] == n else value
        for name, value in cond.items()
    }


def conditions_of_rows(cond: dict[str, Any], rows: np.ndarray, n: int, device: torch.device) -> dict[str, Any]:
    """The conditions of these rows of n samples, on a device. Raises ShapeError: a condition of another number of samples."""
    check_lengths(cond, n)
    index = torch.from_numpy(rows)
    return slice_cond(cond, lambda v: v[index.to(v.device)].to(device), n)


def check_lengths(cond: Mapping[str, Any], n: int) -> None:
    """Raises ShapeError for a condition that is neither of n samples nor of one."""
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] not in (1, n):
            raise ShapeError(f"condition {name!r} has shape {tuple(value.shape)} for {n} samples: expected ({n}, ...)")



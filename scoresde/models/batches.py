"""Many samples, a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from scoresde.core.checks import check_memory, check_positive_int
from scoresde.models.answers import Answers
from scoresde.models.conditions import conditions_of_rows
from scoresde.models.views import Conditioned


class Batch(NamedTuple):
    """Some rows of n samples, and the model with the conditions of these."""

    rows: np.ndarray
    model: Any  # Answers

    @property
    def place(self) -> slice:
        """Where they are among the n samples; padding is left out."""
        return slice(int(self.rows[0]), int(self.rows[-1]) + 1)


def default_batch_size(event_shape: tuple[int, ...]) -> int:
    """About 4096 numbers, between 16 and 1024 samples: little padding for few samples, fast enough on a CPU for many."""
    numbers = int(np.prod(event_shape))
    return int(min(max(1 << round(np.log2(max(4096 / numbers, 1))), 16), 1024))


def batch_size_of(model: Answers, given: int | None) -> int:
    """The number of samples at once: as given, or a function of the event shape alone. Raises ConfigError."""
    if given is None:
        return default_batch_size(model.event_shape)
    return check_batch_size(given, model.event_shape)


def check_batch_size(given: int, event_shape: tuple[int, ...]) -> int:
    """A batch size. Raises ConfigError for one whose numbers of samples, state and noise alone are more than the memory there is."""
    numbers = 8.0 * (2 + 3 * math.prod(event_shape))  # rows and ids; what is computed from, in float64, and the new state
    check_memory(check_positive_int(given, "batch_size") * numbers, f"batch_size = {given} samples of shape {event_shape}")
    return given


def bind_conditions(model: Answers, cond: dict[str, Any], rows: np.ndarray, n: int, device: torch.device) -> Any:
    """The model with the conditions of these rows of n samples bound. Raises ShapeError: conditions of another number of samples."""
    return Conditioned(model, conditions_of_rows(cond, rows, n, device)) if cond else model


def in_batches(model: Answers, cond: dict[str, Any], n: int, size: int, device: torch.device, padded: bool = False) -> Iterator[Batch]:
    """n samples, ``size`` at a time.

    With ``padded`` the last batch is filled up with copies of its last sample: networks are not bit-stable across batch sizes.
    """
    for start in range(0, n, size):
        stop = min(start + size, n)
        rows = np.minimum(np.arange(start, start + size), stop - 1) if padded else np.arange(start, stop)
        yield Batch(rows, bind_conditions(model, cond, rows, n, device))

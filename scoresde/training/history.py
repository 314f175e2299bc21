"""What a training run remembers: losses by step, in memory and in a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoresde.core import files


@dataclass(frozen=True, repr=False)
class History:
    """What a training run recorded. Losses are the true loss, weighted and integrated over time, in nats per dimension for the
    likelihood weighting (up to terms without the model).

    Attributes:
        steps: the steps that were logged; ``loss``, ``lr``, ``grad_norm`` and ``seconds`` go with them.
        loss: the mean loss since the step logged before.
        lr: learning rate.
        grad_norm: norm of the gradient, before clipping.
        seconds: time in training so far.
        weighting, data: names of the weighting that the losses have, and of the data; "" if they are not known.
        validation_steps, validation: the loss of the averaged weights on the test data, at fixed times and noise.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    weighting: str = ""
    data: str = ""

    def add(self, line: dict[str, Any]) -> None:
        """Adds a line of the log."""
        if "validation" in line:
            self.validation_steps.append(line["step"])
            self.validation.append(line["validation"])
        else:
            self.steps.append(line["step"])
            for name in ("loss", "lr", "grad_norm", "seconds"):
                getattr(self, name).append(line[name])

    def __repr__(self) -> str:
        parts = [f"{self.steps[-1]} steps", f"loss {self.loss[-1]:.4g}"] if self.steps else ["no steps logged"]
        parts += [f"validation {self.validation[-1]:.4g}"] if self.validation else []
        return f"History({', '.join(parts)}{f', {self.seconds[-1]:.0f} s' if self.seconds else ''})"


class Log:
    """Lines of ``log.jsonl``, of the history and for the callback."""

    def __init__(self, root: Path | None, history: History, callback: Callable[[int, dict[str, Any]], Any] | None) -> None:
        self.path = None if root is None else root / "log.jsonl"
        self.history, self.callback = history, callback

    def line(self, line: dict[str, Any]) -> None:
        """Adds a line; the file has it before this returns."""
        if self.path is not None:
            files.append_text(self.path, json.dumps(line, allow_nan=False) + "\n")
        self.history.add(line)
        if self.callback is not None:
            self.callback(line["step"], dict(line))

"""The loop that every training shares: steps of an optimizer down a loss, each checked, shown, and never cut in half.

What is minimized comes as a function ``gradient(k)`` that gives the loss of step k and leaves its gradient in the parameters; what
happens between two steps (a line of a log, a validation, a checkpoint) as a function ``between(k)``. ``fit``, ``fine_tune``,
``fit_dequantizer`` and ``fit_features`` are this loop with those two.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.core.progress import bar
from scoresde.errors import TrainingDiverged
from scoresde.training.schedule import Schedule

MOST_STEPS = 1_000_000_000  # of training: weeks of the smallest network


def _nothing() -> None:
    pass


@dataclass
class Descent:
    """An optimizer on its way down a loss, between two steps.

    Attributes:
        optimizer: of the parameters that are trained.
        schedule: the learning rate of each step, and how many steps there will be; None: not known yet.
        diverged: the words of TrainingDiverged, of where it happened: "step 3", or "one of the steps 1..16".
        clip: largest norm of the gradient, or None.
        every: steps between two looks at whether all was finite. To look at each step stalls an accelerator. Before a step that is
            looked at changes the weights, all losses and gradients until then are known to be finite.
        average: called after each step, to follow the weights.
        step: how many steps have been taken.
        norm: of the last gradient, before clipping.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    diverged: Callable[[str], str]
    clip: float | None = None
    every: int = 1
    average: Callable[[], None] = _nothing
    step: int = 0
    norm: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    _sum: Tensor | float = 0.0
    _count: int = 0
    _finite: int = 0  # all was finite up to this step

    @property
    def steps(self) -> int | None:
        return self.schedule.steps

    @steps.setter
    def steps(self, steps: int | None) -> None:
        self.schedule = replace(self.schedule, steps=steps)

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def resume(self, step: int, steps: int | None) -> None:
        """Goes on after a step that another process took."""
        self.step, self.steps, self._finite = step, steps, step

    def advance(self, gradient: Callable[[int], Tensor]) -> None:
        """One step. Raises TrainingDiverged."""
        k = self.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(k)
        self.optimizer.zero_grad()
        loss = gradient(k)
        self.norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if self.clip is None else self.clip)
        self._sum = self._sum + loss + 0 * self.norm  # not finite from the first step that is not
        self._count += 1
        if (k + 1) % self.every == 0 or k + 1 == self.steps:
            self.check_finite(k + 1)
        self.optimizer.step()
        self.average()
        self.step = k + 1

    def check_finite(self, step: int | None = None) -> None:
        """Raises TrainingDiverged if a loss or a gradient up to this step was not finite."""
        step = self.step if step is None else step
        if not math.isfinite(self._sum):
            where = f"step {step}" if self._finite >= step - 1 else f"one of the steps {self._finite + 1}..{step}"
            raise TrainingDiverged(self.diverged(where))
        self._finite = step

    def take(self) -> tuple[Tensor, int]:
        """The sum of the losses since the last call, and of how many steps. Raises TrainingDiverged."""
        self.check_finite()
        found = torch.zeros((), device=self.norm.device) + self._sum, self._count
        self._sum, self._count = 0.0, 0
        return found


def descend(
    descent: Descent,
    gradient: Callable[[int], Tensor],
    between: Callable[[int], str],
    *,
    progress: bool,
    what: str,
    keep: bool = False,
    stop: Callable[[int, list[int]], int] = lambda k, caught: caught[0] if caught else 0,
    leave: Callable[[int], str] = lambda k: f"stopped after step {k}",
) -> None:
    """Takes the steps that are left, with a progress bar. No gradients are left behind.

    Args:
        gradient: gives the loss of step k, detached, and leaves its gradient in the parameters.
        between: called with the number of steps so far; gives what the bar says, "" for what it said before. It may set
            ``descent.steps``, if they were not known.
        progress, what, keep: whether there is a bar, what it is called, and whether it stays when all is done.
        stop: of the step and the signals that were caught, which to stop for, or 0.
        leave: called when the run is stopped; what can be saved is saved here. Gives the words of the exception.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step; a second one is immediate.
    """
    with _Bar(progress, descent, what, keep) as shown, catching_signals() as caught:
        try:
            while descent.steps is None or descent.step < descent.steps:
                descent.advance(gradient)
                shown.update(between(descent.step))
                signum = stop(descent.step, caught)
                if signum and descent.step != descent.steps:
                    _end(signum, leave(descent.step))
        finally:
            descent.optimizer.zero_grad()


@contextmanager
def catching_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM; from then on they do what they did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def handle(signum: int, frame: Any) -> None:
        caught.append(signum)
        restore()

    for signum in (signal.SIGINT, signal.SIGTERM):
        before[signum] = signal.signal(signum, handle)
    try:
        yield caught
    finally:
        restore()


def _end(signum: int, done: str) -> None:
    """Does what a signal asks for."""
    if signum == signal.SIGTERM:
        print(done, file=sys.stderr)
        raise SystemExit(128 + signum)
    raise KeyboardInterrupt(done)


class _Bar(bar):
    """A bar of a descent, which may begin in the middle, and whose end may become known on the way."""

    def __init__(self, show: bool, descent: Descent, what: str, keep: bool) -> None:
        super().__init__(show, descent.steps or 0, what, "step")
        self.descent = descent
        if self.bar is not None:
            self.bar.leave = keep
            self.bar.n = self.bar.initial = self.bar.last_print_n = descent.step
            self.bar.refresh()

    def __enter__(self) -> _Bar:
        return self

    def update(self, note: str) -> None:
        if self.bar is not None:
            self.bar.total = self.descent.steps
            self._advance(self.descent.step - self.bar.n, note)

"""The options of ``fit``: checked, completed, and which of them decide about the weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from scoresde.core.checks import check_integer, check_positive, check_positive_int
from scoresde.core.digest import name_of
from scoresde.core.encoding import plain
from scoresde.core.noise import check_seed
from scoresde.errors import ConfigError
from scoresde.training import loss
from scoresde.training.optimization import MOST_STEPS
from scoresde.training.schedule import KINDS, Schedule

if TYPE_CHECKING:
    from scoresde.data.augment import Augmentation

EXTENDED = ("steps", "minutes", "lr", "warmup", "hold", "schedule", "clip")  # what resume="extend" may change

TIMED = 50  # steps that ``minutes`` is turned into a number of steps from

MakesOptimizer: TypeAlias = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

_OWN_TIMES = {"likelihood": "importance", "edm": "lognormal"}  # the density of times that suits a weighting; uniform for all others


@dataclass(frozen=True, kw_only=True)
class Options:
    """How ``fit`` trains, see there: every field is one of its arguments, and nothing is left open.

    Raises:
        ConfigError: a value, or two values together, that make no sense.
    """

    steps: int | None
    minutes: float | None
    batch_size: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    schedule: str
    clip: float | None
    accumulate: int
    ema: float
    weighting: str | loss.Weighting
    times: str | loss.Times
    stratified: bool
    dequantization: str | None
    augment: Augmentation | None
    seed: int
    out: str | os.PathLike[str] | None
    resume: bool | str
    overwrite: bool
    checkpoint_every: int
    log_every: int | None
    validate_every: int | None
    bf16: bool
    optimizer: MakesOptimizer | None = None
    warmup_given: bool = True
    held: int | None = None  # ``hold``, where it does not follow from the others: of a run that was extended

    @classmethod
    def complete(
        cls,
        *,
        steps: int | None,
        warmup: int | None,
        weighting: str | loss.Weighting,
        times: str | loss.Times | None,
        stratified: bool,
        **others: Any,
    ) -> Options:
        """The options of a call of ``fit``, with what it left open filled in."""
        warmup_given = warmup is not None
        if warmup is None:
            warmup = min(100, steps // 10) if isinstance(steps, int) else 100
        if times is None:
            times = _OWN_TIMES.get(weighting, "uniform") if isinstance(weighting, str) else "uniform"
        stratified = True if times == "stratified" else stratified
        found: dict[str, Any] = {"weighting": weighting, "times": times, "stratified": stratified, "warmup_given": warmup_given}
        return cls(steps=steps, warmup=warmup, **found, **others)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(f"steps = {self.steps} and minutes = {self.minutes}: give one of them")
        counts = ("batch_size", self.batch_size), ("accumulate", self.accumulate), ("checkpoint_every", self.checkpoint_every)
        for name, count in counts:
            check_positive_int(count, name)
        for name, every in (("log_every", self.log_every), ("validate_every", self.validate_every)):
            if every is not None:
                check_positive_int(every, name)
        if self.resume not in (True, False, "extend"):
            raise ConfigError(f"resume = {self.resume!r}, expected True, False or 'extend'")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ConfigError(f"optimizer = {self.optimizer!r}, expected a function (parameters) -> torch.optim.Optimizer")
        if self.steps is not None:
            check_integer(self.steps, "steps", 1, MOST_STEPS)
        for name, value in (("minutes", self.minutes), ("clip", self.clip)):
            if value is not None:
                check_positive(value, name)
        check_positive(self.lr, "lr")
        check_seed(self.seed)
        for name, share, top in (("weight_decay", self.weight_decay, math.inf), ("ema", self.ema, 1)):
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < top:
                raise ConfigError(f"{name} = {share!r}, expected a number in [0, {top})")
        betas = self.betas
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= b < 1 for b in betas)):
            raise ConfigError(f"betas = {betas!r}, expected two numbers in [0, 1)")
        if self.schedule not in KINDS:
            raise ConfigError(f"schedule = {self.schedule!r}, expected {' or '.join(KINDS)}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ConfigError(f"warmup = {self.warmup!r}, expected a number of steps, 0 or more")
        loss.resolve_weighting(self.weighting)
        loss.resolve_times(self.times)
        if self.out is None and (self.resume or self.overwrite):
            raise ConfigError("resume or overwrite without out: give the folder of the run, out=...")
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other: give one of them")

    @property
    def hold(self) -> int:
        """The step from which on the learning rate falls: the timed steps of ``minutes`` are taken before their number is known."""
        if self.held is not None:
            return self.held
        return max(self.warmup, TIMED) if self.steps is None else self.warmup

    def learning_rates(self) -> Schedule:
        """The learning rate of each step; ``minutes`` leaves the number of steps open."""
        return Schedule(self.lr, self.steps, self.warmup, self.hold, self.schedule)

    def logs(self, k: int) -> bool:
        """Whether a line of the log is due after step k: a short run has some too, and the first is of the weights as they were made."""
        return k in (1, 2, 5, 10, 20) or k % 50 == 0 if self.log_every is None else k % self.log_every == 0

    def decisive(self) -> dict[str, Any]:
        """Those that decide about the weights, as a checkpoint's JSON: a run goes on with the same ones only. How the work is split up
        (``accumulate``) and what is written when are not among them."""
        found = {
            "steps": self.steps,
            "minutes": self.minutes,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "betas": [float(b) for b in self.betas],
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "hold": self.hold,
            "schedule": self.schedule,
            "clip": self.clip,
            "ema": self.ema,
            "weighting": name_of(self.weighting, code=True),
            "times": name_of(self.times, code=True),
            "stratified": self.stratified,
            "seed": self.seed,
            "bf16": self.bf16,
            "dequantization": self.dequantization,
            "augment": None if self.augment is None else repr(self.augment),
        }
        if self.optimizer is not None:
            found["optimizer"] = name_of(self.optimizer, code=True)
        return plain(found)

"""What ``fit`` does between two steps: the log, validations, checkpoints; and how a run starts, anew or from its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scoresde.checkpoints import folders, format
from scoresde.core import files
from scoresde.errors import ConfigError
from scoresde.training.history import History
from scoresde.training.optimization import descend
from scoresde.training.options import TIMED
from scoresde.training.trainer import LOOK

if TYPE_CHECKING:
    from scoresde.training.history import Log
    from scoresde.training.trainer import Trainer

SLOW = 5  # first steps of a process, which take longer than the others


def run_loop(trainer: Trainer, log: Log, root: Path | None, progress: bool) -> None:
    """Takes the steps that are left."""
    between = Between(trainer, log, root)
    descend(
        trainer.descent,
        trainer.gradient,
        between,
        progress=progress,
        what="training",
        keep=True,
        stop=lambda k, caught: signal_to_stop(trainer, k, caught),
        leave=between.leave,
    )


def signal_to_stop(trainer: Trainer, k: int, caught: list[int]) -> int:
    """The signal to stop for, or 0: all processes stop after the same step, or they would wait for each other."""
    signum = caught[0] if caught else 0
    if trainer.team.world == 1:
        return signum
    return 0 if k % LOOK else trainer.team.largest(signum)


class Between:
    """What happens between two steps, called with how many there were so far."""

    def __init__(self, trainer: Trainer, log: Log, root: Path | None) -> None:
        self.trainer, self.options, self.log, self.root = trainer, trainer.options, log, root
        self.validates = trainer.team.rank == 0 and trainer.source.test is not None and self.options.validate_every is not None
        self.first = trainer.step
        self.saved = trainer.step or None
        self.earlier = log.history.seconds[-1] if log.history.seconds else 0.0
        self.spent = 0.0 if trainer.extended else self.earlier  # of ``minutes``
        self.begun = time.perf_counter()
        if not self.first:
            self.validate()
        self.validation_time = time.perf_counter() - self.begun
        self.warm = self.marked = time.perf_counter()
        self.marked_step = trainer.step

    def __call__(self, k: int) -> str:
        trainer, options, note = self.trainer, self.options, ""
        if k == self.first + SLOW:
            self.warm = time.perf_counter()
        if trainer.descent.steps is None and k >= (self.first + TIMED if trainer.extended else max(TIMED, self.first + 2 * SLOW)):
            trainer.descent.steps = trainer.team.of_the_first(k + self.steps_left(k))
        last = k == trainer.descent.steps
        if options.logs(k) or last:
            note = self.record(k)
        if self.validates and (last or k % (options.validate_every or 1) == 0):
            self.validate()
        if k % options.checkpoint_every == 0 or last:
            self.save()
        return note

    def elapsed(self) -> float:
        """Seconds in training so far, in earlier processes too."""
        return self.earlier + time.perf_counter() - self.begun

    def steps_left(self, k: int) -> int:
        """How many more steps there is time for, at the pace of those after the first few."""
        pace = (time.perf_counter() - self.warm) / (k - self.first - SLOW)
        pace += self.validation_time / (self.options.validate_every or math.inf)
        left = 60 * (self.options.minutes or 0.0) - self.spent - (time.perf_counter() - self.begun) - self.validation_time
        return max(int(left / pace), 0)

    def record(self, k: int) -> str:
        """Adds a line to the log. Raises TrainingDiverged."""
        mean, norm = self.trainer.recorded()
        now, lr = time.perf_counter(), self.trainer.descent.schedule(k - 1)
        rate = (k - self.marked_step) * self.options.batch_size / (now - self.marked)
        self.marked, self.marked_step = now, k
        line = {"step": k, "loss": mean, "lr": lr, "grad_norm": norm, "seconds": round(self.elapsed(), 3)}
        self.log.line({**line, "samples_per_second": round(rate, 1)})
        return f"loss {mean:.4g}, lr {lr:.2g}"

    def validate(self) -> None:
        if self.validates:
            self.log.line({"step": self.trainer.step, "validation": self.trainer.validate(), "seconds": round(self.elapsed(), 3)})

    def save(self) -> None:
        """Writes a checkpoint, if there is none of this step. Raises TrainingDiverged: nothing bad is ever saved."""
        self.trainer.descent.check_finite()
        if self.root is not None and self.saved != self.trainer.step:
            self.trainer.save(self.root)
            self.saved = self.trainer.step

    def leave(self, k: int) -> str:
        """Saves what a run that is stopped can be resumed from, and says so."""
        self.save()
        return f"saved step {k} in {self.root}; resume=True goes on from there" if self.root else f"stopped after step {k}"


def _is_log(path: Path) -> bool:
    """Whether a file is a log of ours, whose run was killed before its first checkpoint; or there is none."""
    if not path.exists():
        return True
    try:
        return all("step" in json.loads(line) for line in files.read_lines(path)[:1])
    except (ValueError, TypeError):
        return False


def start_run(trainer: Trainer, root: Path, resume: bool | str, overwrite: bool, main: bool) -> History:
    """Makes the trainer and the folder ready, anew or from the last checkpoint; returns what was logged up to it."""
    runs = [folder for folder in folders.folders(root) if format.is_training(folder)]
    history, kept = History(), []
    if resume and runs:
        trainer.restore(root, extend=resume == "extend")
        for text in files.read_lines(root / "log.jsonl"):
            try:
                line = json.loads(text)
                if line["step"] <= trainer.step:
                    history.add(line)
                    kept.append(text)
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed
    elif runs and not overwrite:
        raise ConfigError(
            f"{root} holds a training run, {runs[-1].name}: resume=True continues it, overwrite=True removes it; or give another out"
        )
    elif main and not runs and not overwrite and not _is_log(root / "log.jsonl"):
        raise ConfigError(f"{root} holds a log.jsonl of something else: overwrite=True replaces it; or give another out")
    elif main:
        for folder in runs:
            folders.remove_folder(folder)
    if main:
        files.write_text(root / "log.jsonl", "".join(kept))
    return history

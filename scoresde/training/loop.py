"""The training loop of `fit`: start or resume, steps, checkpoints, signals."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.checkpoints import folders, format
from scoresde.core import files
from scoresde.core.processes import agree, agree_to_stop
from scoresde.errors import ConfigError
from scoresde.training.history import History
from scoresde.training.options import TIMED

if TYPE_CHECKING:
    from scoresde.training.history import Log
    from scoresde.training.trainer import Trainer


def run_loop(trainer: Trainer, log: Log, stop: list[int], root: Path | None, progress: bool) -> None:
    """Steps, and what happens between them."""
    from tqdm import tqdm

    o, world, device = trainer.options, trainer.world, trainer.device
    validates = trainer.rank == 0 and trainer.source.test is not None
    seconds_before = log.history.seconds[-1] if log.history.seconds else 0.0
    first, saved, begun = trainer.step, trainer.step if trainer.step else -1, time.perf_counter()
    bar = tqdm(
        total=trainer.steps,
        initial=trainer.step,
        disable=not progress,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.3 if sys.stderr.isatty() else 15,
    )

    def elapsed() -> float:
        return seconds_before + time.perf_counter() - begun

    def validate() -> None:
        if validates:
            log.line({"step": trainer.step, "validation": trainer.validate(), "seconds": round(elapsed(), 3)})

    def save() -> None:
        nonlocal saved
        trainer.check_finite()
        if root is not None and saved != trainer.step:
            trainer.save(root)
            saved = trainer.step

    with bar:
        if not first:
            validate()
        validation_time = time.perf_counter() - begun
        warm = marked = time.perf_counter()
        marked_step = trainer.step
        while trainer.steps is None or trainer.step < trainer.steps:
            trainer.advance()
            k = trainer.step
            bar.update()
            if k == first + 5:
                warm = time.perf_counter()  # the first few steps of a process are slower
            if trainer.steps is None and k >= max(TIMED, first + 10):
                pace = (time.perf_counter() - warm) / (k - first - 5) + validation_time / o["validate_every"]
                left = 60 * o["minutes"] - elapsed() - validation_time
                trainer.steps = bar.total = agree(k + max(int(left / pace), 0), world, device)
                bar.refresh()
            last = k == trainer.steps
            if k % o["log_every"] == 0 or last:
                trainer.check_finite()
                mean, norm = trainer.recorded()
                now = time.perf_counter()
                rate = (k - marked_step) * o["batch_size"] / (now - marked)
                marked, marked_step = now, k
                lr = trainer.schedule(k - 1)
                line = {"step": k, "loss": mean, "lr": lr, "grad_norm": norm, "seconds": round(elapsed(), 3)}
                log.line({**line, "samples_per_second": round(rate, 1)})
                bar.set_postfix_str(f"loss {mean:.4g}, lr {lr:.2g}", refresh=False)
            if k % o["validate_every"] == 0 or last:
                validate()
            if k % o["checkpoint_every"] == 0 or last:
                save()
            signum = agree_to_stop(stop, world, k, device)
            if signum and not last:
                save()
                done = f"saved step {k} in {root}; resume=True goes on from there" if root else f"stopped after step {k}"
                if signum == signal.SIGTERM:
                    print(done, file=sys.stderr)
                    raise SystemExit(128 + signum)
                raise KeyboardInterrupt(done)


def start_run(trainer: Trainer, root: Path, resume: bool, overwrite: bool, main: bool) -> History:
    """Makes the trainer and the folder ready, anew or from the last checkpoint; returns what was logged up to it."""
    runs = [folder for folder in folders.folders(root) if format.is_training(folder)]
    history, kept = History(), []
    if resume and runs:
        trainer.restore(root)
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
            f"{root} holds a training run, {runs[-1].name}: resume=True continues it, overwrite=True removes it; "
            "or give another out"
        )
    elif main:
        for folder in runs:
            folders.remove_folder(folder)
    if main:
        files.write_text(root / "log.jsonl", "".join(kept))
    return history


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

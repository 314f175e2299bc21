"""Training: ``fit`` minimizes the denoising loss, and everything random in step k is a function of (seed, k).

Data indices, times, noise, dequantization and dropout need no state of a generator: a checkpoint is weights, optimizer and a
step number, and a run that was killed goes on to the bit. Randomness is by position in the global batch, so that two processes
do what one does.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import _files, checkpoint
from . import loss as losses
from ._batches import Source
from ._tensor import check_positive, check_positive_int
from ._trainer import Trainer, agree, agree_to_stop, processes
from .augment import Augmentation
from .data import Data
from .dequantize import first_level
from .errors import ConfigError
from .model import NetworkModel, ScoreModel
from .noise import check_seed
from .transform import Transform

TIMED = 50  # steps that ``minutes`` is turned into a number of steps from


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
        validation_steps, validation: the loss of the averaged weights on the test data, at fixed times and noise.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

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


def fit(
    model: ScoreModel,
    data: Any,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 128,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    warmup: int | None = None,
    schedule: str = "cosine",
    clip: float | None = 1.0,
    accumulate: int = 1,
    ema: float = 0.999,
    weighting: str | losses.Weighting = "likelihood",
    times: str | losses.Times | None = None,
    stratified: bool = True,
    dequantization: str | None = None,
    augment: Augmentation | None = None,
    conditional: bool | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    validate_every: int = 500,
    callback: Callable[[int, dict[str, Any]], Any] | None = None,
    progress: bool = True,
    bf16: bool = False,
) -> History:
    """Trains a model by denoising score matching with Adam, and leaves it with the averaged weights, in evaluation mode.

    The model's ``reference`` becomes the mean and covariance of the data, and is saved with it. (Of a Dataset it is not made: set
    ``model.reference = GaussianReference.fit(samples)`` before or after.)

    The loss is the integral over t of w(t) |eps - eps_hat|^2 / D (see ``scoresde.loss``); what is optimized is the same divided
    by the integral of w, so that ``lr`` and ``clip`` mean the same for every SDE and weighting.

    Runs on an accelerator if there is one, and under ``torchrun`` on many, with the same result as on one up to rounding.

    Args:
        model: what to train; its parameters are changed in place.
        data: a ``Data`` (levels are dequantized afresh each step; its test set is for validation), a float tensor (N, *event)
            in model space, or a torch Dataset of such samples x, (x, label) or (x, dict of conditions).
        steps: number of steps of the optimizer. Or:
        minutes: time to train for: turned into steps after 50 timed steps, once; a resumed run keeps them.
        batch_size: samples a step, over all processes and passes together.
        lr, betas, weight_decay: of Adam (AdamW if weight_decay > 0); lr is the largest learning rate.
        warmup: steps of linear rise of the learning rate; by default 100, or a tenth of ``steps`` if that is fewer.
        schedule: "cosine" (down to 0) or "constant", after the warm-up.
        clip: largest norm of the gradient, or None.
        accumulate: forward and backward passes that a step is split into, to save memory.
        ema: decay d of the average of the weights: after step n it is min(d, (1 + n)/(10 + n)). 0: no average.
        weighting: w(t): "likelihood", "simple", "min-snr", "edm", or a function (sde, t) -> w.
        times: density of t: "importance", "uniform", "stratified", "lognormal", "fitted" (at steps 128, 256, 512, ... fitted to
            losses of the averaged weights for the least variance, see ``scoresde.loss.FittedTimes``), or a function
            (sde, u) -> (t, density). By default what suits the weighting: importance for likelihood, lognormal for edm, uniform for
            the others.
        stratified: one time in each of batch_size strata of equal probability, for less variance.
        dequantization: of integer levels: "uniform" noise over each bin, or "normal": the middles of the bins, for an SDE whose noise
            at t_min stays within a bin (``data.transform.adapt(sde)``). None: what ``data.transform`` says, uniform by default.
        augment: ``scoresde.augment.Flip()``, ``Shift()`` or your own, for a network that is told of it (made with ``augmentations``,
            its number of labels). Bits per dimension and samples are those of the data, not of what augmentation makes of them.
        conditional: give the labels of the data to the network as ``label``; by default if it was made with ``classes``.
        seed: of everything random.
        out: folder for checkpoints and ``log.jsonl``; None writes nothing.
        resume: continue from the last checkpoint in ``out``, or start if there is none. All other arguments must be the same.
        overwrite: remove checkpoints of another run from ``out``.
        checkpoint_every, log_every, validate_every: steps between checkpoints, lines of the log and validations.
        callback: called with (step, line of the log), in the main process.
        progress: show a bar with the loss, the learning rate and the time left.
        bf16: run the network in bfloat16 where that is safe (autocast); weights and the loss stay float32.

    Returns:
        The losses by step, a ``History``.

    Raises:
        ConfigError, DTypeError, ShapeError, NonFiniteError: arguments or data that make no sense.
        TrainingDiverged: the loss or its gradient is not finite. No such weights are ever saved.
        CheckpointMismatch: ``resume`` with another model, data or arguments; names the field and both values.
        CheckpointWriteError, LockError: see ``save``.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step and a checkpoint; a second one is immediate.
    """
    options = _check_options(dict(locals()))
    if options["dequantization"] is not None:
        if not isinstance(data, Data) or data.transform is None:
            raise ConfigError("dequantization is of integer levels: give a Data with a transform, or leave it out")
        data = replace(data, transform=replace(data.transform, dequantization=options["dequantization"]))
    source = Source.make(data, model, conditional)
    if augment is not None:
        config = getattr(getattr(model, "net", None), "config", None)
        told = augment.labels if config is None else config.get("augmentations", 0)  # a network of one's own is taken on trust
        if told != augment.labels:
            raise ConfigError(
                f"augment = {augment}, but the network was made with augmentations={told}: make it with augmentations={augment.labels}. "
                "One that is not told would model the augmented data, and pay for them in bits per dimension"
            )
    options["dequantization"] = None
    if source.transform is not None and source.transform.dequantization == "normal":
        options["dequantization"] = "normal"
        _check_blur(model, source.transform)
    device, rank, world = processes(model)
    if bf16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn("bf16 on a CPU without bfloat16 units is many times slower than float32: leave it out", stacklevel=2)
    if batch_size < world * accumulate:
        raise ConfigError(f"batch_size = {batch_size} for {world} processes of {accumulate} passes: expected one sample each")
    root = None if out is None else Path(out).absolute()
    main = rank == 0
    with ExitStack() as stack:
        if root is not None and main:
            stack.enter_context(_files.lock(root))
            _files.remove_temporaries(root)
        model.to(device).train()
        if isinstance(data, Data) and (isinstance(model, NetworkModel) or not hasattr(type(model), "transform")):
            model.transform = data.transform  # type: ignore[assignment]
        model.reference = source.reference(model) or model.reference
        model.recipes = {}  # they were made for other weights
        trainer = Trainer(model, source, options, device, rank, world)
        history = History()
        if root is not None:
            history = _start(trainer, root, resume, overwrite, main)
        log = _Log(root if main else None, history, callback if main else None)
        stop = stack.enter_context(_signals())
        stack.callback(trainer.finish)
        _loop(trainer, log, stop, root if main else None, progress and main)
        if world > 1:
            torch.distributed.barrier()
    return history


def _check_blur(model: ScoreModel, transform: Transform) -> None:
    """Warns of a t_min at which the noise does not stay within a bin."""
    tails = transform.tails(first_level(model))
    if not 2 <= tails <= 20:
        warnings.warn(
            f"dequantization = 'normal', but at t_min half a bin is {tails:.3g} standard deviations of the noise, expected 2 to 20: "
            f"adapt the SDE to the {transform.levels} levels, data.transform.adapt(sde)",
            stacklevel=3,
        )


def _loop(trainer: Trainer, log: _Log, stop: list[int], root: Path | None, progress: bool) -> None:
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


class _Log:
    """Lines of ``log.jsonl``, of the history and for the callback."""

    def __init__(self, root: Path | None, history: History, callback: Callable[[int, dict[str, Any]], Any] | None) -> None:
        self.path = None if root is None else root / "log.jsonl"
        self.history, self.callback = history, callback

    def line(self, line: dict[str, Any]) -> None:
        """Adds a line; the file has it before this returns."""
        if self.path is not None:
            _files.append_text(self.path, json.dumps(line, allow_nan=False) + "\n")
        self.history.add(line)
        if self.callback is not None:
            self.callback(line["step"], dict(line))


def _start(trainer: Trainer, root: Path, resume: bool, overwrite: bool, main: bool) -> History:
    """Makes the trainer and the folder ready, anew or from the last checkpoint; returns what was logged up to it."""
    runs = [folder for folder in _files.folders(root) if checkpoint.is_training(folder)]
    history, kept = History(), []
    if resume and runs:
        trainer.restore(root)
        for text in _files.read_lines(root / "log.jsonl"):
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
            _files.remove_folder(folder)
    if main:
        _files.write_text(root / "log.jsonl", "".join(kept))
    return history


def _check_options(o: dict[str, Any]) -> dict[str, Any]:
    """Checks fit's arguments, and completes them. Raises ConfigError."""
    if (o["steps"] is None) == (o["minutes"] is None):
        raise ConfigError(f"steps = {o['steps']} and minutes = {o['minutes']}: give one of them")
    for name in ("batch_size", "accumulate", "checkpoint_every", "log_every", "validate_every"):
        check_positive_int(o[name], name)
    for name in ("steps", "minutes", "clip"):
        if o[name] is not None:
            (check_positive_int if name == "steps" else check_positive)(o[name], name)
    check_positive(o["lr"], "lr")
    check_seed(o["seed"])
    for name in ("weight_decay", "ema"):
        value, top = o[name], 1 if name == "ema" else math.inf
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < top:
            raise ConfigError(f"{name} = {value!r}, expected a number in [0, {top})")
    betas = o["betas"]
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= b < 1 for b in betas)):
        raise ConfigError(f"betas = {betas!r}, expected two numbers in [0, 1)")
    o["betas"] = tuple(float(b) for b in betas)
    if o["schedule"] not in ("cosine", "constant"):
        raise ConfigError(f"schedule = {o['schedule']!r}, expected cosine or constant")
    if o["warmup"] is None:
        o["warmup"] = 100 if o["steps"] is None else min(100, o["steps"] // 10)
    if isinstance(o["warmup"], bool) or not isinstance(o["warmup"], int) or o["warmup"] < 0:
        raise ConfigError(f"warmup = {o['warmup']!r}, expected a number of steps, 0 or more")
    # the timed steps of minutes= are taken before the number of steps is known
    o["hold"] = max(o["warmup"], TIMED) if o["steps"] is None else o["warmup"]
    losses.resolve_weighting(o["weighting"])
    if o["times"] is None:
        o["times"] = {"likelihood": "importance", "edm": "lognormal"}.get(o["weighting"], "uniform")
    losses.resolve_times(o["times"])
    o["stratified"] = bool(o["stratified"]) or o["times"] == "stratified"
    if o["out"] is None and (o["resume"] or o["overwrite"]):
        raise ConfigError("resume or overwrite without out: give the folder of the run, out=...")
    if o["resume"] and o["overwrite"]:
        raise ConfigError("resume and overwrite exclude each other: give one of them")
    return o


@contextmanager
def _signals() -> Iterator[list[int]]:
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

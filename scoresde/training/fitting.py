"""Training: ``fit`` minimizes the denoising loss, and everything random in step k is a function of (seed, k).

Data indices, times, noise, dequantization and dropout need no state of a generator: a checkpoint is weights, optimizer and a
step number, and a run that was killed goes on to the bit. Randomness is by position in the global batch, so that two processes
do what one does.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from scoresde.checkpoints import folders
from scoresde.core import files
from scoresde.core.doors import checked
from scoresde.core.processes import Team
from scoresde.data.dataset import Data
from scoresde.errors import ConfigError
from scoresde.likelihood.dequantize import first_level
from scoresde.models.base import ScoreModel, inference
from scoresde.models.batches import batch_size_of
from scoresde.training import hygiene, loss
from scoresde.training.batches import Source, check_told
from scoresde.training.history import History, Log
from scoresde.training.loop import run_loop, start_run
from scoresde.training.options import MakesOptimizer, Options
from scoresde.training.trainer import Trainer

if TYPE_CHECKING:
    from scoresde.data.augment import Augmentation
    from scoresde.data.transform import Transform


@checked
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
    weighting: str | loss.Weighting = "likelihood",
    times: str | loss.Times | None = None,
    stratified: bool = True,
    dequantization: str | None = None,
    augment: Augmentation | None = None,
    conditional: bool | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool | Literal["extend"] = False,
    overwrite: bool = False,
    checkpoint_every: int = 1000,
    log_every: int | None = None,
    validate_every: int | None = 500,
    callback: Callable[..., Any] | None = None,
    progress: bool = True,
    bf16: bool = False,
    optimizer: MakesOptimizer | None = None,
) -> History:
    """Trains a model by denoising score matching with Adam, and leaves it with the averaged weights, in evaluation mode.

    The model's ``reference`` becomes the mean and covariance of the data, and is saved with it. (Of a Dataset it is not made: set
    ``model.reference = GaussianReference.fit(samples)`` before or after.)

    The loss is the integral over t of w(t) |eps - eps_hat|^2 / D (see ``scoresde.loss``); what is optimized is the same divided
    by the integral of w, so that ``lr`` and ``clip`` mean the same for every SDE and weighting.

    An SDE that is an nn.Module with parameters is learned along with the network, by the gradient of the true loss at the times that
    were drawn. The loss has no terms for the prior and for the last step: let your schedule keep log-SNR at both ends.

    Runs on an accelerator if there is one, and under ``torchrun`` on many, with the same result as on one up to rounding (but for what
    a network does of itself: its dropout, and statistics of batches, are each process's own).

    Args:
        model: what to train; its parameters are changed in place.
        data: a ``Data`` (levels are dequantized afresh each step; its test set is for validation), a float tensor (N, *event)
            in model space, or a torch Dataset of such samples x, (x, label) or (x, dict of conditions).
        steps: number of steps of the optimizer. Or:
        minutes: time to train for: turned into steps after 50 timed steps, once; a resumed run keeps them.
        batch_size: samples a step, over all processes and passes together.
        lr, betas, weight_decay: of Adam (AdamW if weight_decay > 0); lr is the largest learning rate.
        warmup: steps of linear rise of the learning rate; by default 100, or a tenth of ``steps`` if that is fewer.
        schedule: "cosine" (down to 0), "constant" or "inverse-sqrt", after the warm-up. A run with one of the latter two goes on with
            more ``steps`` as if there had been more from the start.
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
        conditional: give the labels of the data to the network as ``label``; by default if it takes them, by its signature (one of
            ours: if it was made with ``classes``).
        seed: of everything random.
        out: folder for checkpoints and ``log.jsonl``; None writes nothing.
        resume: True continues from the last checkpoint in ``out``, or starts if there is none. All other arguments must be the same.
            "extend" goes on with more ``steps``, ``minutes`` more, or another ``lr``, ``schedule``, ``warmup`` or ``clip``: the
            learning rate is that of a run that had been planned so from the start.
        overwrite: remove checkpoints of another run from ``out``.
        checkpoint_every, log_every, validate_every: steps between checkpoints, lines of the log and validations (None: none).
            log_every = None: lines after steps 1, 2, 5, 10 and 20, every 50, and the last one.
        callback: called in the main process with (step, line of the log); one that takes three arguments with (step, line, model),
            the model with its averaged weights, in evaluation mode: to draw samples, for instance.
        progress: show a bar with the loss, the learning rate and the time left.
        bf16: run the network in bfloat16 where that is safe (autocast); weights and the loss stay float32.
        optimizer: a function (parameters) -> ``torch.optim.Optimizer`` that makes another one than AdamW; its learning rate is that of
            ``lr`` and ``schedule``.

    Returns:
        The losses by step, a ``History``.

    Raises:
        ConfigError, DTypeError, ShapeError, NonFiniteError: arguments or data that make no sense.
        TrainingDiverged: the loss or its gradient is not finite. No such weights are ever saved.
        CheckpointMismatch: ``resume`` with another model, data or arguments; names the field and both values.
        CheckpointWriteError, LockError: see ``save``.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step and a checkpoint; a second one is immediate.
    """
    options = Options.complete(
        steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        lr=lr,
        betas=betas,
        weight_decay=weight_decay,
        warmup=warmup,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        ema=ema,
        weighting=weighting,
        times=times,
        stratified=stratified,
        dequantization=dequantization,
        augment=augment,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        validate_every=validate_every,
        bf16=bf16,
        optimizer=optimizer,
    )
    if dequantization is not None:
        if not isinstance(data, Data) or data.transform is None:
            raise ConfigError("dequantization is of integer levels: give a Data with a transform, or leave it out")
        data = replace(data, transform=replace(data.transform, dequantization=dequantization))
    source = Source.make(data, model, conditional)
    if augment is not None:
        check_told(model, augment)
    normal = source.transform is not None and source.transform.dequantization == "normal"
    options = replace(options, dequantization="normal" if normal else None)  # as the data have it, whoever said so
    if source.transform is not None and normal:
        _check_blur(model, source.transform)
    team = Team.to_train(model.device)
    hygiene.check_batch(batch_size, len(source.samples))
    if source.transform is None and isinstance(source.samples, torch.Tensor):
        hygiene.check_scale(source.evenly(hygiene.ROWS), model.sde)
    if bf16 and team.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn("bf16 on a CPU without bfloat16 units is many times slower than float32: leave it out", stacklevel=3)
    batch_size_of(model, batch_size)
    if batch_size < team.world * accumulate:
        raise ConfigError(f"batch_size = {batch_size} for {team.world} processes of {accumulate} passes: expected one sample each")
    root = None if out is None else Path(out).expanduser().absolute()
    main = team.rank == 0
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # whatever is outside
        stack.enter_context(torch.enable_grad())
        if root is not None and main:
            stack.enter_context(files.lock(root))
            folders.remove_temporaries(root)
        model.to(team.device).train()
        if isinstance(data, Data) and type(model).transform is ScoreModel.transform:  # a class may know its own
            model.transform = data.transform
        model.reference = source.reference(model) or model.reference
        model.recipes = {}  # they were made for other weights
        model.conditions = source.told(model.conditions)
        trainer = Trainer(model, source, options, team)
        history = History()
        if root is not None:
            history = start_run(trainer, root, resume, overwrite, main)
        name = data.name if isinstance(data, Data) and data.name != Data.name else ""
        history = replace(history, weighting=weighting if isinstance(weighting, str) else "of one's own", data=name)
        log = Log(root if main else None, history, _told(callback, trainer) if main else None)
        stack.callback(trainer.finish)
        if trainer.extended and progress and main:
            print(_extension(trainer), file=sys.stderr)
        run_loop(trainer, log, root if main else None, progress and main)
        team.wait()
    return history


def _told(callback: Callable[..., Any] | None, trainer: Trainer) -> Callable[[int, dict[str, Any]], Any] | None:
    """A callback of two arguments; one of three is given the model with the averaged weights."""
    if callback is None:
        return None
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return callback
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    if len(positional) < 3:
        return callback

    def with_model(step: int, line: dict[str, Any]) -> None:
        with trainer.average.in_place(), inference(trainer.model):
            callback(step, line, trainer.model)

    return with_model


def _extension(trainer: Trainer) -> str:
    """How a run that is extended goes on, in words."""
    descent, options = trainer.descent, trainer.options
    until = f"to step {descent.steps}" if descent.steps is not None else f"for {options.minutes:g} minutes more"
    return (
        f"goes on from step {trainer.step} {until}; the learning rate, {options.schedule} from {options.lr:.3g}, is planned anew "
        f"and goes on at {descent.schedule(trainer.step):.3g}"
    )


def _check_blur(model: ScoreModel, transform: Transform) -> None:
    """Warns of a t_min at which the noise does not stay within a bin."""
    tails = transform.tails(first_level(model))
    if not 2 <= tails <= 20:
        warnings.warn(
            f"dequantization = 'normal', but at t_min half a bin is {tails:.3g} standard deviations of the noise, expected 2 to 20: "
            f"adapt the SDE to the {transform.levels} levels, data.transform.adapt(sde)",
            stacklevel=4,
        )

"""One step of training, and the state between two steps, which is what a checkpoint holds."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.checkpoints import description, format
from scoresde.core import encoding
from scoresde.core.noise import Noise, permutation, seeded
from scoresde.core.streams import TRAIN
from scoresde.errors import CheckpointMismatch, ConfigError, TrainingDiverged
from scoresde.models.base import inference
from scoresde.training import loss
from scoresde.training.schedule import Schedule

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.training.batches import Source

_BLOCK = 64  # steps whose times are computed at once

_TIME, _EPS, _DROPOUT, _VALIDATION, _FIT = (TRAIN + (k << 8) for k in range(2, 7))  # streams of noise, after that of the order

_DRAW = 1 << 32  # dequantizations of training, apart from those of ``bits_per_dim``

_VALIDATION_SAMPLES = 1024

_FIT_SAMPLES = 2048  # losses that fitted times are fitted to

_DECISIVE = [  # arguments of fit that its result depends on
    *("steps", "minutes", "batch_size", "lr", "betas", "weight_decay", "warmup", "hold", "schedule", "clip", "ema"),
    *("weighting", "times", "stratified", "seed", "bf16", "dequantization", "augment"),
]


class Trainer:
    """A model, its optimizer and its average, between two steps: what a checkpoint holds."""

    def __init__(
        self, model: ScoreModel, source: Source, options: dict[str, Any], device: torch.device, rank: int, world: int
    ) -> None:
        from torch.optim.swa_utils import AveragedModel

        self.model, self.source, self.options = model, source, options
        self.device, self.rank, self.world = device, rank, world
        self.step, self.steps = 0, options["steps"]
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ConfigError(f"this {type(model).__name__} has no parameters to train")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), betas=options["betas"], weight_decay=options["weight_decay"], fused=True
        )
        self.average = AveragedModel(model, multi_avg_fn=functools.partial(_average, options["ema"]))
        self.seed, self.batch_size = options["seed"], options["batch_size"]
        self.ids = np.array_split(np.arange(self.batch_size), world)[rank]
        self.weighting, self.times = loss.resolve_weighting(options["weighting"]), loss.resolve_times(options["times"])
        self.scale = loss.total_weight(self.weighting, model.sde)
        self.judge: nn.Module = _Judge(model)
        if world > 1:
            self.judge = nn.parallel.DistributedDataParallel(self.judge)
        self.clip = options["clip"] or math.inf
        self._sum = self._norm = torch.zeros((), device=device)
        self._count, self._checked, self._block = 0, 0, -1
        self._last: list[tuple[Tensor, Tensor]] = []

    @property
    def schedule(self) -> Schedule:
        o = self.options
        return Schedule(o["lr"], self.steps, o["warmup"], o["hold"], o["schedule"])

    @property
    def averaged(self) -> ScoreModel:
        """The model with the averaged weights."""
        return self.average.module  # type: ignore[return-value]

    def advance(self) -> None:
        """One step of the optimizer."""
        k = self.step
        if self.options["times"] == "fitted" and k >= 2 * _BLOCK and k & (k - 1) == 0:  # 128, 256, 512, ...: where a block begins
            self.fit_times()
        lr = self.schedule(k)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        self._last.clear()
        total = torch.zeros((), device=self.device)
        passes = np.array_split(self.ids, self.options["accumulate"])
        with seeded(_dropout_seed(self.seed, k, self.rank), self.device):
            for i, ids in enumerate(passes):
                x0, t, eps, weight, cond = self._batch(k, ids)
                last = self.world == 1 or i + 1 == len(passes)
                quiet: Any = nullcontext() if last else self.judge.no_sync()  # type: ignore[operator]
                with quiet:
                    with self._autocast():
                        per_sample = self.judge(x0, t, eps, weight, cond)
                    part = per_sample.sum() / self.batch_size
                    (part * self.world).backward()  # processes average their gradients
                total += part.detach()
                self._last.append((t, per_sample.detach()))
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self._norm = norm
        self._sum = self._sum + total + 0 * norm  # not finite from the first step that is not
        self._count += 1
        if self.device.type == "cpu" or k % 16 == 0:  # elsewhere a look would stall the device
            self.check_finite(k + 1)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step = k + 1

    def check_finite(self, step: int | None = None) -> None:
        """Raises TrainingDiverged if a loss or gradient was not finite since the last call."""
        step = self.step if step is None else step
        if math.isfinite(self._sum):
            self._checked = step
            return
        t, value = (torch.cat([pair[i].double().cpu() for pair in self._last]) for i in (0, 1))
        bad = ~value.isfinite()
        worst = t[bad] if bad.any() else t[value.argmax()][None]
        steps = f"step {step}" if self._checked >= step - 1 else f"one of the steps {self._checked + 1}..{step}"
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at {steps}: loss {float(value.mean() * self.scale):.4g}, gradient norm "
            f"{float(self._norm):.4g}; worst samples at t = {float(worst.min()):.4g}..{float(worst.max()):.4g} of a batch with "
            f"t = {float(t.min()):.4g}..{float(t.max()):.4g}; learning rate {self.schedule(step - 1):.3g}. Nothing was saved "
            "since. Try a smaller lr or a longer warmup, bf16=False if it is on, and look for outliers in the data"
        )

    def recorded(self) -> tuple[float, float]:
        """The mean true loss since the last call, over all processes, and the last norm of the gradient."""
        mean = self._sum.double() * (self.scale / max(self._count, 1))
        if self.world > 1:
            torch.distributed.all_reduce(mean)
        self._sum, self._count = torch.zeros((), device=self.device), 0
        return float(mean), float(self._norm)

    def validate(self) -> float:
        """The true loss of the averaged weights on the test data, at fixed noise and, but for fitted ones, times (of a few draws a
        sample if they are few)."""
        source, model, n = self.source, self.averaged, _VALIDATION_SAMPLES
        test = 1 if source.test is None else len(source.test)
        u = Noise(self.seed, np.arange(n), (1,), torch.float64).uniform(_VALIDATION + 1)[:, 0]
        t, weight = self._times(loss.stratify(u, torch.from_numpy(permutation(n, self.seed, _VALIDATION))))
        total = 0.0
        with inference(model), self._autocast():
            for ids in np.split(np.arange(n), range(len(self.ids), n, len(self.ids))):
                x0, cond = source.batch(ids % test, ids, self.seed, 0, model, self.device, test=True)
                eps = Noise(self.seed, ids, model.event_shape, x0.dtype, self.device).normal(_VALIDATION + 2)
                on = (t[ids].to(self.device), weight[ids].to(self.device))
                total += float(loss.denoising_loss(model, x0, on[0], eps, on[1], **cond).double().sum())
        if not math.isfinite(total):
            raise TrainingDiverged(f"the validation loss after step {self.step} is {total}, with finite weights: too large ones")
        return total / n * self.scale

    def fit_times(self) -> None:
        """Fits the density of times to the losses of the averaged weights on training samples, at fixed places of the sequence."""
        source, model, n, k = self.source, self.averaged, _FIT_SAMPLES, self.step
        u = loss.stratify(Noise(self.seed, np.arange(n), (1,), torch.float64).uniform(_FIT, k)[:, 0])
        t, density = loss.importance(model.sde, u)
        weight, values = (self.weighting(model.sde, t) / density / self.scale).to(self.device), []
        index = source.order(np.arange(n), self.seed)
        key = _dropout_seed(self.seed, (1 << 40) + k, self.rank)  # for Datasets whose items are random
        with inference(model), self._autocast(), seeded(key, self.device):
            for ids in np.split(np.arange(n), range(len(self.ids), n, len(self.ids))):
                x0, cond = source.batch(index[ids], ids, self.seed, _DRAW - 1, model, self.device)
                eps = Noise(self.seed, ids, model.event_shape, x0.dtype, self.device).normal(_FIT + 1, k)
                values.append(loss.denoising_loss(model, x0, t[ids].to(self.device), eps, weight[ids], **cond).double())
        value = torch.cat(values)
        if self.world > 1:  # the same numbers to the bit in all processes
            torch.distributed.broadcast(value, 0)
        self.times = loss.FittedTimes.of((32 * u).long(), value.cpu(), 32)
        self._block = -1

    def finish(self) -> None:
        """Leaves the model with the averaged weights, in evaluation mode, without gradients."""
        self.optimizer.zero_grad()
        if self.average.n_averaged > 0:
            self.model.load_state_dict(self.averaged.state_dict())
        self.model.eval()

    def _batch(self, k: int, ids: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What step k does at some positions of the global batch: (x0, t, eps, weight, cond)."""
        block = k // _BLOCK
        if block != self._block:
            u = Noise(self.seed, np.arange(self.batch_size), (_BLOCK,), torch.float64).uniform(_TIME, block).T
            if self.options["stratified"]:
                u = (torch.arange(self.batch_size) + u) / self.batch_size
            t, weight = self._times(u.flatten())
            self._t, self._weight = t.view(_BLOCK, -1).to(self.device), weight.view(_BLOCK, -1).to(self.device)
            self._block = block
        rows = slice(int(ids[0]), int(ids[-1]) + 1)
        index = self.source.order(k * self.batch_size + ids, self.seed)
        x0, cond = self.source.batch(index, ids, self.seed, _DRAW + k, self.model, self.device, augment=self.options.get("augment"))
        eps = Noise(self.seed, ids, self.model.event_shape, x0.dtype, self.device).normal(_EPS, k)
        return x0, self._t[k % _BLOCK, rows], eps, self._weight[k % _BLOCK, rows], cond

    def _times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times, and w/density divided by the integral of w."""
        t, density = self.times(self.model.sde, u)
        return t, self.weighting(self.model.sde, t) / density / self.scale

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options["bf16"])

    # ---- checkpoints

    def save(self, root: Path) -> None:
        """Writes a checkpoint."""
        moments = self.optimizer.state
        state = {f"{key}.{name}": value for name, p in self.parameters.items() for key, value in moments[p].items()}
        tensors = {"model": self.model.state_dict(), "ema": self.averaged.state_dict(), "optimizer": state}
        training = self.description() | {"shares": list(getattr(self.times, "shares", ()))}
        config = {"model": description.describe(self.model), "training": training}
        format.write(root, *description.with_reference(self.model, tensors, config), self.step)

    def restore(self, root: Path) -> None:
        """Goes on from the last checkpoint. Raises CheckpointMismatch."""
        found = format.read(root, training=True)
        saved, path = found.config["training"], found.path
        description.check_same(found.config["model"], description.describe(self.model), path)
        ignored: dict[str, Any] = {"step": 0, "steps": 0}
        if self.options["schedule"] == "constant":  # no step depends on how many there will be
            saved["options"]["steps"], saved["steps"] = self.options["steps"], self.steps or saved["steps"]
        shares = saved.pop("shares", ())
        if shares and self.options["times"] == "fitted":
            self.times = loss.FittedTimes(tuple(shares))
        description.check_same({**saved, **ignored}, {**self.description(), **ignored}, path)
        self.step, self.steps = saved["step"], saved["steps"]
        encoding.check_weights(found.tensors["model"], self.model.state_dict(), path)
        encoding.check_weights(found.tensors["ema"], self.model.state_dict(), path)
        self.model.load_state_dict(found.tensors["model"])
        self.averaged.load_state_dict(found.tensors["ema"])
        self.average.n_averaged.fill_(self.step)
        for key, value in found.tensors["optimizer"].items():
            kind, name = key.split(".", 1)
            if name not in self.parameters:
                raise CheckpointMismatch(f"{path}: optimizer state {key} is of no parameter of this model")
            self.optimizer.state[self.parameters[name]][kind] = value.to(self.device)

    def description(self) -> dict[str, Any]:
        """All that decides what training does, as JSON."""
        names = {key: description.name_of(self.options[key]) for key in ("weighting", "times")}
        if self.options["augment"] is not None:
            names["augment"] = repr(self.options["augment"])
        return {
            "step": self.step,
            "steps": self.steps,
            "options": encoding.plain({**{k: self.options[k] for k in _DECISIVE}, **names}),
            "conditional": self.source.conditional,
            "data": self.source.hash(),
        }


class _Judge(nn.Module):
    """The loss as a module, since processes exchange gradients around a forward call."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, cond: dict[str, Any]) -> Tensor:
        return loss.denoising_loss(self.model, x0, t, eps, weight, **cond)


def _dropout_seed(seed: int, k: int, rank: int) -> int:
    key = np.array([seed, _DROPOUT], dtype=np.uint64)
    return int(np.random.Philox(key=key, counter=[rank, 0, k, 0]).random_raw()) >> 32  # torch keeps 32 bits


def _average(decay: float, averages: Any, weights: Any, n: Tensor | int) -> None:
    """a <- a + (1 - d)(w - a) with d = min(decay, (1 + n)/(10 + n)) after step n; the first step copies."""
    d = min(decay, (1 + int(n)) / (10 + int(n)))
    torch._foreach_lerp_(averages, weights, 1 - d)

"""One step of training, and the state between two steps, which is what a checkpoint holds."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.checkpoints import description, format
from scoresde.core import encoding
from scoresde.core.checks import theirs
from scoresde.core.noise import Noise, permutation, seeded
from scoresde.core.streams import FIT_TIMES, TRAIN_DROPOUT, TRAIN_EPS, TRAIN_TIMES, TRAINING_DRAW, VALIDATION
from scoresde.errors import CheckpointMismatch, ConfigError, TrainingDiverged
from scoresde.models.base import inference
from scoresde.models.plain import clean_name
from scoresde.sdes.base import device_of, own_parameters
from scoresde.training import hygiene, loss
from scoresde.training.average import Average
from scoresde.training.optimization import Descent
from scoresde.training.options import EXTENDED, TIMED
from scoresde.training.schedule import ENDLESS

if TYPE_CHECKING:
    from scoresde.core.processes import Team
    from scoresde.models.base import ScoreModel
    from scoresde.sdes.base import SDE
    from scoresde.training.batches import Source
    from scoresde.training.options import Options

BLOCK = 64  # steps whose times are computed at once

LOOK = 16  # steps between two looks at whether the loss is finite, where a look would stall the device

VALIDATION_SAMPLES = 1024

FIT_SAMPLES = 2048  # losses that fitted times are fitted to


class Trainer:
    """A model, its optimizer and its average, between two steps: what a checkpoint holds."""

    def __init__(self, model: ScoreModel, source: Source, options: Options, team: Team) -> None:
        self.model, self.source, self.options = model, source, options
        self.team, self.device = team, team.device
        clean = clean_name(model)
        self.parameters = {clean(name): p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ConfigError(f"this {type(model).__name__} has no parameters to train")
        self.optimizer = _optimizer(options, list(self.parameters.values()))
        self.average = Average(self.parameters, options.ema)
        self.descent = Descent(
            self.optimizer,
            options.learning_rates(),
            self._diverged,
            clip=options.clip,
            every=1 if team.device.type == "cpu" else LOOK,
            average=self.average.update,
        )
        self.seed, self.batch_size = options.seed, options.batch_size
        self.ids = np.array_split(np.arange(self.batch_size), team.world)[team.rank]
        self.weighting = loss.guarded(loss.resolve_weighting(options.weighting), "weighting")
        self.times = loss.guarded(loss.resolve_times(options.times), "times")
        loss.check_functions(self.weighting, self.times, model.sde)
        self.scale = loss.total_weight(self.weighting, model.sde)
        self.learns_sde = any(p.requires_grad for p in own_parameters(model.sde))
        self.extended = False
        self._block = -1
        self._last: list[tuple[Tensor, Tensor]] = []
        self.judge: nn.Module = _Judge(model)
        if team.world > 1:
            self.judge = nn.parallel.DistributedDataParallel(self.judge, find_unused_parameters=self._some_unused())

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self.descent.step

    def _some_unused(self) -> bool:
        """Whether some parameters have no gradient, which processes must look for at each step in order not to wait for them."""
        with inference(self.model, grad=True), seeded(0, self.device):
            x0, t, eps, weight, cond = self.batch(0, self.ids[:1])
            self.judge(x0, t, eps, weight, cond).sum().backward()
        found = any(p.grad is None for p in self.parameters.values())
        self.optimizer.zero_grad()
        return found

    def advance(self) -> None:
        """One step of the optimizer."""
        self.descent.advance(self.gradient)

    def gradient(self, k: int) -> Tensor:
        """The loss of step k on this process's part of the batch, whose gradient it leaves in the parameters."""
        if self.options.times == "fitted" and k >= 2 * BLOCK and k & (k - 1) == 0:  # 128, 256, 512, ...: where a block begins
            self.fit_times()
        self._last.clear()
        total = torch.zeros((), device=self.device)
        passes = np.array_split(self.ids, self.options.accumulate)
        with seeded(dropout_seed(self.seed, k, self.team.rank), self.device):
            for i, ids in enumerate(passes):
                x0, t, eps, weight, cond = self.batch(k, ids)
                last = self.team.world == 1 or i + 1 == len(passes)
                quiet: Any = nullcontext() if last else self.judge.no_sync()  # type: ignore[operator]
                with quiet:
                    with self._autocast():
                        per_sample = self.judge(x0, t, eps, weight, cond)
                    part = per_sample.sum() / self.batch_size
                    (part * self.team.world).backward()  # processes average their gradients
                total += part.detach()
                self._last.append((t, per_sample.detach()))
                if k == 0 and i == 0 and self.source.transform is None and not isinstance(self.source.samples, Tensor):
                    hygiene.check_scale(x0, self.model.sde, f"the first {len(x0)} items of the Dataset")
        return total

    def _diverged(self, where: str) -> str:
        t, value = (torch.cat([pair[i].double().cpu() for pair in self._last]) for i in (0, 1))
        bad = ~value.isfinite()
        worst = t[bad] if bad.any() else t[value.argmax()][None]
        lr = self.optimizer.param_groups[0]["lr"]
        return (
            f"the loss or its gradient is not finite at {where}: loss {float(value.mean() * self.scale):.4g}, gradient norm "
            f"{float(self.descent.norm):.4g}; worst samples at t = {float(worst.min()):.4g}..{float(worst.max()):.4g} of a batch with "
            f"t = {float(t.min()):.4g}..{float(t.max()):.4g}; learning rate {lr:.3g}. Nothing was saved "
            "since. Try a smaller lr or a longer warmup, bf16=False if it is on, and look for outliers in the data"
        )

    def recorded(self) -> tuple[float, float]:
        """The mean true loss since the last call, over all processes, and the last norm of the gradient. Raises TrainingDiverged."""
        total, count = self.descent.take()
        mean = total.double() * (self.scale / max(count, 1))
        if self.team.world > 1:
            torch.distributed.all_reduce(mean)
        return float(mean), float(self.descent.norm)

    def validate(self) -> float:
        """The true loss of the averaged weights on the test data, at fixed noise and, but for fitted ones, times (of a few draws a
        sample if they are few)."""
        source, model, n = self.source, self.model, VALIDATION_SAMPLES
        test = 1 if source.test is None else len(source.test)
        u = Noise(self.seed, np.arange(n), (1,), torch.float64).uniform(VALIDATION + 1)[:, 0]
        total = 0.0
        with self.average.in_place(), inference(model), self._autocast():
            t, weight = self._times(loss.stratify(u, torch.from_numpy(permutation(n, self.seed, VALIDATION))), model.sde)
            for ids in np.split(np.arange(n), range(len(self.ids), n, len(self.ids))):
                x0, cond = source.batch(ids % test, ids, self.seed, 0, model, self.device, test=True)
                eps = Noise(self.seed, ids, model.event_shape, x0.dtype, self.device).normal(VALIDATION + 2)
                on = (t[ids].to(self.device), weight[ids].to(self.device))
                total += float(loss.denoising_loss(model, x0, on[0], eps, on[1], **cond).double().sum())
        if not math.isfinite(total):
            raise TrainingDiverged(f"the validation loss after step {self.step} is {total}, with finite weights: too large ones")
        return total / n * self.scale

    def fit_times(self) -> None:
        """Fits the density of times to the losses of the averaged weights on training samples, at fixed places of the sequence."""
        source, model, n, k = self.source, self.model, FIT_SAMPLES, self.step
        u = loss.stratify(Noise(self.seed, np.arange(n), (1,), torch.float64).uniform(FIT_TIMES, k)[:, 0])
        values = []
        index = source.order(np.arange(n), self.seed)
        key = dropout_seed(self.seed, (1 << 40) + k, self.team.rank)  # for Datasets whose items are random
        with self.average.in_place(), inference(model), self._autocast(), seeded(key, self.device):
            t, density = loss.importance(model.sde, u.to(device_of(model.sde)))
            weight = (self.weighting(model.sde, t) / density / self.scale).to(self.device)
            for ids in np.split(np.arange(n), range(len(self.ids), n, len(self.ids))):
                x0, cond = source.batch(index[ids], ids, self.seed, TRAINING_DRAW - 1, model, self.device)
                eps = Noise(self.seed, ids, model.event_shape, x0.dtype, self.device).normal(FIT_TIMES + 1, k)
                values.append(loss.denoising_loss(model, x0, t[ids].to(self.device), eps, weight[ids], **cond).double())
        value = torch.cat(values)
        if self.team.world > 1:  # the same numbers to the bit in all processes
            torch.distributed.broadcast(value, 0)
        self.times = loss.FittedTimes.of((32 * u).long(), value.cpu(), 32)
        self._block = -1

    def finish(self) -> None:
        """Leaves the model with the averaged weights, in evaluation mode."""
        self.average.take()
        self.model.weights = "averaged"
        self.model.eval()

    def batch(self, k: int, ids: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What step k does at some positions of the global batch: (x0, t, eps, weight, cond)."""
        block = k // BLOCK
        if block != self._block:
            u = Noise(self.seed, np.arange(self.batch_size), (BLOCK,), torch.float64).uniform(TRAIN_TIMES, block).T
            if self.options.stratified:
                u = (torch.arange(self.batch_size, device="cpu") + u) / self.batch_size
            self._u, self._block = u.contiguous(), block
            if not self.learns_sde:  # whose times are of each step
                t, weight = self._times(u.flatten(), self.model.sde)
                self._t, self._weight = t.view(BLOCK, -1).to(self.device), weight.view(BLOCK, -1).to(self.device)
        rows = slice(int(ids[0]), int(ids[-1]) + 1)
        index = self.source.order(k * self.batch_size + ids, self.seed)
        x0, cond = self.source.batch(index, ids, self.seed, TRAINING_DRAW + k, self.model, self.device, augment=self.options.augment)
        eps = Noise(self.seed, ids, self.model.event_shape, x0.dtype, self.device).normal(TRAIN_EPS, k)
        if self.learns_sde:
            t, weight = self._times(self._u[k % BLOCK], self.model.sde, learned=True)
            return x0, t[rows].to(self.device), eps, weight[rows].to(self.device), cond
        return x0, self._t[k % BLOCK, rows], eps, self._weight[k % BLOCK, rows], cond

    def _times(self, u: Tensor, sde: SDE, learned: bool = False) -> tuple[Tensor, Tensor]:
        """Times, and w/density divided by the integral of w. Of an SDE that is learned the times of a step are numbers like any
        others, and the weight has derivatives: the gradient is that of the true loss."""
        with torch.no_grad():
            t, density = self.times(sde, u.to(device_of(sde)))
        with torch.set_grad_enabled(learned):
            return t, self.weighting(sde, t) / density / self.scale

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16)

    # ---- checkpoints

    def save(self, root: Path) -> None:
        """Writes a checkpoint."""
        with self.average.in_place():
            averaged = self.model.state_dict()
        tensors = {"model": self.model.state_dict(), "ema": averaged, "optimizer": self.optimizer_state()}
        shares = self.times.shares if isinstance(self.times, loss.FittedTimes) else ()
        training = self.description() | {"shares": list(shares), "scale": self.scale}
        config = {"model": description.describe(self.model), "training": training}
        content = description.with_reference(self.model, tensors, config)
        format.write(root, *content, self.step, buffers=description.names_of_buffers(self.model))

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizer remembers, and averages wider than the weights, as tensors by name. Raises ConfigError."""
        state = {f"average.{name}": a for name, a in self.average.state().items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state[p].items():
                if isinstance(value, (bool, int, float)):
                    value = torch.tensor(value, device="cpu")
                if value is not None and not isinstance(value, Tensor):
                    raise ConfigError(
                        f"this {type(self.optimizer).__name__} keeps a {type(value).__name__} for each parameter, {key!r}, which no "
                        "checkpoint can hold: give another optimizer, or out=None"
                    )
                if value is not None:
                    state[f"{key}.{name}"] = value
        return state

    def restore(self, root: Path, extend: bool = False) -> None:
        """Goes on from the last checkpoint, with ``extend`` to another end or at another learning rate. Raises CheckpointMismatch."""
        found = format.read(root, training=True)
        saved, path, options = found.config["training"], found.path, self.options
        description.check_same(found.config["model"], description.describe(self.model), path)
        ignored: dict[str, Any] = {"step": 0, "steps": 0}
        before = saved["options"]
        if not options.warmup_given:
            options = replace(options, warmup=before["warmup"])
        if extend:
            options = options if options.steps is not None else replace(options, held=max(options.warmup, saved["step"] + TIMED))
        else:
            options = replace(options, held=before["hold"])
        self.options, self.extended = options, extend
        anew = {name: options.decisive()[name] for name in EXTENDED} if extend else {}
        if not extend and options.schedule in ENDLESS:  # no step depends on how many there will be
            anew = {"steps": options.steps}
        elif not extend and options.steps != before["steps"] and options.steps is not None and before["steps"] is not None:
            raise CheckpointMismatch(
                f"{path}: options.steps is {before['steps']} in the checkpoint, but {options.steps} was requested. The learning rate of "
                f"a {options.schedule} depends on it: resume='extend' plans it anew for {options.steps} steps; or give the same"
            )
        before.update(anew)
        steps = options.steps if options.steps is not None else None if extend else saved["steps"]
        shares = saved.pop("shares", ())
        self.scale = saved.pop("scale", self.scale)  # of the SDE as it was at the start, where it is learned
        if shares and self.options.times == "fitted":
            self.times = loss.FittedTimes(tuple(shares))
        description.check_same({**saved, **ignored}, {**self.description(), **ignored}, path)
        self.descent.schedule = options.learning_rates()
        self.descent.resume(saved["step"], steps)
        encoding.check_weights(found.tensors["model"], self.model.state_dict(), path)
        encoding.check_weights(found.tensors["ema"], self.model.state_dict(), path)
        self.model.load_state_dict(found.tensors["model"])
        wider: dict[str, Tensor] = {}
        for key, value in found.tensors["optimizer"].items():
            kind, name = key.split(".", 1)
            if name not in self.parameters:
                raise CheckpointMismatch(f"{path}: optimizer state {key} is of no parameter of this model")
            if kind == "average":
                wider[name] = value
            else:
                self.optimizer.state[self.parameters[name]][kind] = value.to(self.device)
        self.average.restore(found.tensors["ema"], wider, self.step)

    def description(self) -> dict[str, Any]:
        """All that decides what training does, as JSON."""
        return {
            "step": self.step,
            "steps": self.descent.steps,
            "options": self.options.decisive(),
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


def dropout_seed(seed: int, k: int, rank: int) -> int:
    """What torch's generator starts step k with in a process: another one in each, at each step."""
    key = np.array([seed, TRAIN_DROPOUT], dtype=np.uint64)
    return int(np.random.Philox(key=key, counter=[rank, 0, k, 0]).random_raw()) >> 32  # torch keeps 32 bits


def _optimizer(options: Options, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """What ``optimizer`` makes, or AdamW. Raises ConfigError."""
    if options.optimizer is None:
        real = all(p.is_floating_point() for p in parameters)  # the fused one does not know complex numbers
        return torch.optim.AdamW(parameters, options.lr, options.betas, weight_decay=options.weight_decay, fused=True if real else None)
    with theirs("optimizer(parameters)"):
        made = options.optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer(parameters) gave a {type(made).__name__}, expected a torch.optim.Optimizer")
    return made

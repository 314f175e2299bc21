"""Training on the likelihood of the probability-flow ODE."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_positive, check_positive_int
from scoresde.core.noise import Noise, check_seed
from scoresde.core.progress import bar
from scoresde.core.streams import DEQUANTIZE, TRAIN
from scoresde.errors import ConfigError, SolverError, TrainingDiverged
from scoresde.likelihood.gradients import STEPS, Density
from scoresde.likelihood.ode import log_prob
from scoresde.models.base import check_model
from scoresde.models.batches import bind_conditions
from scoresde.solvers.adaptive import AdaptiveODE
from scoresde.training import loss as loss_module
from scoresde.training.batches import Source
from scoresde.training.schedule import Schedule

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver

VALIDATION = AdaptiveODE(rtol=1e-4, atol=1e-4)

_CALLS = TRAIN + (32 << 8)  # stream of noise, apart from those of ``fit``

_DRAW = 3 << 32  # dequantizations of fine-tuning, apart from all others

_VALIDATION_DRAW = 4 << 32


@dataclass(frozen=True)
class FineTuning:
    """What ``fine_tune`` did; nll is -log p in nats a sample.

    Attributes:
        nll: of the batch of each step, as it was minimized: by few calls. It may be far too low.
        validation_steps: after how many steps the validation samples were looked at; the first is 0.
        validation: their mean nll then, by ``validation_solver``; infinity if that of any sample was not finite.
        best: how many steps the weights that were kept have had: those of least validation nll; all, if it was never finite.
        seconds: of the whole.
    """

    nll: list[float]
    validation_steps: list[int]
    validation: list[float]
    best: int
    seconds: float

    @property
    def before(self) -> float:
        """nll of the validation samples before the first step; NaN without any."""
        return self.validation[0] if self.validation else math.nan

    @property
    def after(self) -> float:
        """nll of the validation samples with the weights that were kept; NaN without any."""
        return min(self.validation, default=math.nan)


def fine_tune(
    model: ScoreModel,
    data: Any,
    *,
    steps: int,
    lr: float = 3e-4,
    batch_size: int = 128,
    solver_steps: int = STEPS,
    divergence: str = "hutchinson",
    probes: int = 1,
    prior: str | None = None,
    clip: float | None = 1.0,
    conditional: bool | None = None,
    seed: int = 0,
    anchor: float = 1.0,
    validate_every: int = 50,
    validation_samples: int = 512,
    validation_solver: Solver | None = None,
    callback: Callable[[int, dict[str, float]], Any] | None = None,
    progress: bool = True,
) -> FineTuning:
    """Minimizes -log p(x)/D of the probability-flow ODE itself by Adam, for small models (FFJORD's objective, 1810.01367).

    ``fit`` minimizes a bound on the nll of the reverse SDE, which is not that of the ODE (2101.09258). A step of this costs about
    3 ``solver_steps`` (1 + probes) network calls, and for as long as ``fit`` still gains it gains more a second: this is for the
    end of a training, and for networks of small cost.

    What is minimized is the nll as a few network calls see it, and a network learns to exploit their error: without precautions the
    number in training goes on to fall, below that of the true density even, while the converged nll rises. Three things stand
    against it. Each step takes another number of calls, from ``solver_steps`` to half as many more, for what one grid overlooks
    another one sees. The denoising loss of ``fit``, in the same nats per dimension, is added to hold the network to the scores at
    all times (``anchor``). And the weights are judged by an adaptive solver, on samples that are not trained on; the best ones are
    kept. All the same: judge the result by ``log_prob`` with more steps, on samples of neither kind.

    Args:
        model: is changed in place, and left in evaluation mode with the best weights. If it has no Gaussian reference it gets that
            of the data. Recipes made for the old weights are dropped.
        data: as for ``fit``; the test set of a ``Data`` is for validation (without one the last weights are kept).
        steps: of Adam; the learning rate falls from ``lr`` by half a cosine.
        batch_size: samples a step. Which ones, their dequantization and their probes are functions of (seed, step).
        solver_steps: network calls for each log p, at least.
        divergence, probes: as for ``log_prob``.
        prior: None or "reference".
        clip: largest norm of the gradient of -log p/D, or None.
        conditional: as for ``fit``.
        anchor: what the denoising loss counts beside -log p/D; 0 leaves it out.
        validate_every: steps between two looks at the ``validation_samples`` first samples of the test set; one dequantization and
            one set of probes for all looks. A look at which log p of any sample is not finite counts as infinitely bad; if all do,
            the last weights are kept, with a warning.
        validation_solver: for them; None is ``AdaptiveODE(1e-4, 1e-4)``.
        callback: called with (step, {"nll": ...} or {"validation": ...}).

    Raises:
        ConfigError, DTypeError, ShapeError, NonFiniteError: arguments or data that make no sense.
        TrainingDiverged: nll or its gradient is not finite. The model is left with the best weights so far.
    """
    for name, value in (
        ("steps", steps),
        ("batch_size", batch_size),
        ("solver_steps", solver_steps),
        ("validate_every", validate_every),
        ("validation_samples", validation_samples),
    ):
        check_positive_int(value, name)
    check_positive(lr, "lr")
    if clip is not None:
        check_positive(clip, "clip")
    if isinstance(anchor, bool) or not isinstance(anchor, (int, float)) or not 0 <= anchor < math.inf:
        raise ConfigError(f"anchor = {anchor!r}, expected a number of at least 0")
    if prior not in (None, "reference"):
        raise ConfigError(f"prior = {prior!r} of fine_tune, expected None or 'reference'")
    check_model(model)
    check_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(f"this {type(model).__name__} has no parameters to train")
    source = Source.make(data, model, conditional)
    if model.reference is None:
        model.reference = source.reference(model)
    calls = range(solver_steps, solver_steps + solver_steps // 2 + 1)
    solver = VALIDATION if validation_solver is None else validation_solver
    densities = [Density.make(model, n, None, divergence, probes, prior) for n in calls]
    pick = (Noise(seed, np.zeros(1, np.int64), (steps,), torch.float64).uniform(_CALLS)[0] * len(densities)).long().tolist()
    model.recipes = {}
    model.eval()
    begun, device, D = time.perf_counter(), model.device, math.prod(model.event_shape)
    schedule = Schedule(lr, steps, 0, 0, "cosine")
    optimizer = torch.optim.Adam(parameters, lr=lr)
    done = FineTuning([], [], [], steps, math.nan)
    best: list[Tensor] = [p.detach().clone() for p in parameters]

    def noised(x: Tensor, ids: np.ndarray, draw: int) -> Tensor:
        if source.transform is None or source.transform.dequantization != "normal":
            return x
        t = model.sde.levels([model.sde.t_min])[0]  # middles of bins, which the noise of t_min dequantizes
        return t.alpha * x + t.sigma * Noise(seed, ids, model.event_shape, x.dtype, device).normal(DEQUANTIZE, draw)

    def validate(step: int) -> None:
        nonlocal done, best
        if source.test is None:
            return
        index = np.arange(min(validation_samples, len(source.test)))
        x, cond = source.batch(index, index, seed, _VALIDATION_DRAW, model, device, test=True)
        x = noised(x, index, _VALIDATION_DRAW)
        how: dict[str, Any] = {"divergence": divergence, "probes": probes, "prior": prior, "seed": seed, "check_scale": False}
        try:
            nll = -float(log_prob(model, x, solver=solver, **how, **cond).log_prob.mean())
        except SolverError:  # of all samples
            nll = math.inf
        nll = nll if math.isfinite(nll) else math.inf  # NaN compares with nothing, and log p = inf is no gain
        if nll < min(done.validation, default=math.inf):
            best = [p.detach().clone() for p in parameters]
            done = dataclasses.replace(done, best=step)
        done.validation_steps.append(step)
        done.validation.append(nll)
        if callback is not None:
            callback(step, {"validation": nll})

    def restore() -> None:
        with torch.no_grad():
            for p, kept in zip(parameters, best, strict=True):
                p.copy_(kept)

    validate(0)
    with bar(progress, steps, "fine-tuning", "step") as advance:
        for k in range(steps):
            positions = np.arange(k * batch_size, (k + 1) * batch_size)
            x, cond = source.batch(source.order(positions, seed), positions, seed, _DRAW, model, device)
            noise = Noise(seed, positions, model.event_shape, model.dtype, device)
            bound = bind_conditions(model, cond, np.arange(len(x)), len(x), device)
            optimizer.param_groups[0]["lr"] = schedule(k)
            optimizer.zero_grad()
            loss = -densities[pick[k]](bound, noised(x, positions, _DRAW), noise).mean() / D
            nll = loss.detach() * D
            if anchor:
                u = loss_module.stratify(Noise(seed, positions, (1,), torch.float64).uniform(_CALLS + 1)[:, 0])
                t, density = loss_module.importance(model.sde, u)
                eps, weight = noise.normal(_CALLS, k + 1), anchor * loss_module.likelihood(model.sde, t) / density
                # x0 is the data, not the state at t_min that log p is of
                loss = loss + loss_module.denoising_loss(bound, x, t.to(device), eps, weight.to(device)).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
            if not bool((loss.detach() + norm).isfinite()):
                restore()
                raise TrainingDiverged(
                    f"step {k + 1} of fine_tune: -log p/D = {float(nll) / D:.4g}, gradient norm {float(norm):.4g}; the model "
                    f"has the weights of step {done.best if math.isfinite(done.after) else 0} again: lower lr = {lr:g}, or take more than "
                    f"solver_steps = {solver_steps}"
                )
            optimizer.step()
            done.nll.append(float(nll))
            if callback is not None:
                callback(k + 1, {"nll": done.nll[-1]})
            advance(1, f"nll {done.nll[-1]:.4g}" + (f", validation {done.validation[-1]:.4g}" if done.validation else ""))
            if (k + 1) % validate_every == 0 or k + 1 == steps:
                validate(k + 1)
    optimizer.zero_grad()
    if done.validation and not math.isfinite(done.after):
        warnings.warn(
            "fine_tune: at no look was log p of all validation samples finite, so that nothing tells which weights are best: the last "
            "ones are kept; look at log_prob of these samples, or give another validation_solver",
            stacklevel=2,
        )
    elif done.validation:
        restore()
        if done.best == 0:
            warnings.warn(
                f"fine_tune: nll of the validation samples was never below the {done.before:.4g} it began with "
                f"({min(done.validation[1:]):.4g} at best): the weights are those of before; lower lr, or take more solver_steps",
                stacklevel=2,
            )
    return dataclasses.replace(done, seconds=time.perf_counter() - begun)

"""Training on the likelihood of the probability-flow ODE."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_calls, check_integer, check_least, check_positive, check_positive_int
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_seed
from scoresde.core.streams import DEQUANTIZE, FINE_TUNING, FINE_TUNING_DRAW, FINE_TUNING_VALIDATION_DRAW
from scoresde.errors import ConfigError, SolverError, TrainingDiverged
from scoresde.likelihood.gradients import STEPS, Density
from scoresde.likelihood.ode import log_prob
from scoresde.models.base import check_model
from scoresde.models.batches import batch_size_of, bind_conditions
from scoresde.solvers.adaptive import AdaptiveODE
from scoresde.training import loss as losses
from scoresde.training.batches import Source
from scoresde.training.optimization import MOST_STEPS, Descent, descend
from scoresde.training.schedule import Schedule

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver

VALIDATION = AdaptiveODE(rtol=1e-4, atol=1e-4)


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


@checked
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
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step; a second one is immediate. The model is left with the
            best weights so far, or with the last ones if there was no look.
    """
    for name, value in (("validate_every", validate_every), ("validation_samples", validation_samples)):
        check_positive_int(value, name)
    check_integer(steps, "steps", 1, MOST_STEPS)
    check_calls(check_positive_int(solver_steps, "solver_steps"), "solver_steps")
    batch_size_of(model, batch_size)
    check_positive(lr, "lr")
    if clip is not None:
        check_positive(clip, "clip")
    check_least(anchor, 0, "anchor")
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
    densities = [Density.make(model, n, None, divergence, probes, prior) for n in calls]
    objective = _Objective(model, source, densities, steps, batch_size, float(anchor), seed)
    validation = None
    if source.test is not None:
        solver = VALIDATION if validation_solver is None else validation_solver
        how = {"solver": solver, "divergence": divergence, "probes": probes, "prior": prior, "check_scale": False}
        validation = _Validation(model, source, min(validation_samples, len(source.test)), how, seed)
    model.recipes = {}
    model.eval()
    begun, nll, looks = time.perf_counter(), list[float](), Looks(parameters)

    def look(step: int) -> None:
        if validation is not None:
            value = looks.add(step, validation.nll)
            if callback is not None:
                callback(step, {"validation": value})

    def between(k: int) -> str:
        nll.append(objective.nll)
        if callback is not None:
            callback(k, {"nll": objective.nll})
        if k % validate_every == 0 or k == steps:
            look(k)
        return f"nll {objective.nll:.4g}" + (f", validation {looks.nll[-1]:.4g}" if looks.nll else "")

    def diverged(where: str) -> str:
        return (
            f"{where} of fine_tune: -log p/D = {objective.nll / objective.dim:.4g}, gradient norm {float(descent.norm):.4g}; the model "
            f"has the weights of step {looks.best} again: lower lr = {lr:g}, or take more than solver_steps = {solver_steps}"
        )

    descent = Descent(torch.optim.Adam(parameters, lr=lr), Schedule(lr, steps), diverged, clip=clip)
    look(0)
    try:
        descend(descent, objective.gradient, between, progress=progress, what="fine-tuning")
    except TrainingDiverged:
        looks.restore()
        raise
    except (KeyboardInterrupt, SystemExit):
        if looks.told:
            looks.restore()
        raise
    looks.finish()
    best = looks.best if looks.told else steps
    return FineTuning(nll, looks.steps, looks.nll, best, time.perf_counter() - begun)


class _Objective:
    """-log p/D as a few network calls see it, another number of them each step, and the denoising loss beside it.

    Attributes:
        nll: -log p of the last batch, in nats a sample.
        dim: D.
    """

    def __init__(
        self, model: ScoreModel, source: Source, densities: Sequence[Density], steps: int, batch_size: int, anchor: float, seed: int
    ) -> None:
        self.model, self.source, self.batch_size, self.anchor, self.seed = model, source, batch_size, anchor, seed
        u = Noise(seed, np.zeros(1, np.int64), (steps,), torch.float64).uniform(FINE_TUNING)[0]
        self.densities = [densities[i] for i in (u * len(densities)).long().tolist()]
        self.dim, self.nll = math.prod(model.event_shape), math.nan

    def gradient(self, k: int) -> Tensor:
        """The loss of step k, whose gradient it leaves in the parameters."""
        model, seed, device = self.model, self.seed, self.model.device
        ids = np.arange(k * self.batch_size, (k + 1) * self.batch_size)
        x, cond = self.source.batch(self.source.order(ids, seed), ids, seed, FINE_TUNING_DRAW, model, device)
        noise = Noise(seed, ids, model.event_shape, model.dtype, device)
        bound = bind_conditions(model, cond, np.arange(len(x)), len(x), device)
        loss = -self.densities[k](bound, _state(model, self.source, x, seed, ids, FINE_TUNING_DRAW), noise).mean() / self.dim
        self.nll = float(loss.detach() * self.dim)
        if self.anchor:
            u = losses.stratify(Noise(seed, ids, (1,), torch.float64).uniform(FINE_TUNING + 1)[:, 0])
            t, density = losses.importance(model.sde, u)
            eps, weight = noise.normal(FINE_TUNING, k + 1), self.anchor * losses.likelihood(model.sde, t) / density
            # x0 is the data, not the state at t_min that log p is of
            loss = loss + losses.denoising_loss(bound, x, t.to(device), eps, weight.to(device)).mean()
        loss.backward()
        return loss.detach()


@dataclass(frozen=True)
class _Validation:
    """-log p of the first ``n`` validation samples; one dequantization and one set of probes for all looks."""

    model: ScoreModel
    source: Source
    n: int
    how: dict[str, Any]
    seed: int

    def nll(self) -> float:
        """Its mean, in nats. Raises SolverError: it is not finite for any sample."""
        ids, draw = np.arange(self.n), FINE_TUNING_VALIDATION_DRAW
        x, cond = self.source.batch(ids, ids, self.seed, draw, self.model, self.model.device, test=True)
        x = _state(self.model, self.source, x, self.seed, ids, draw)
        return -float(log_prob(self.model, x, seed=self.seed, **self.how, **cond).log_prob.mean())


@dataclass
class Looks:
    """The looks at the validation samples, and the weights that did best; before the first look those of the beginning.

    Attributes:
        parameters: whose weights are kept.
        steps: after how many steps the looks were.
        nll: what they found; infinity where it was not finite.
        best: how many steps the weights that are kept have had.
    """

    parameters: Sequence[Tensor]
    steps: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    best: int = 0

    def __post_init__(self) -> None:
        self._kept = [p.detach().clone() for p in self.parameters]

    @property
    def told(self) -> bool:
        """Whether any look was finite, so that it is known which weights are best."""
        return math.isfinite(min(self.nll, default=math.inf))

    def add(self, step: int, measure: Callable[[], float]) -> float:
        """Looks, and keeps the weights if they are the best so far."""
        try:
            nll = measure()
        except SolverError:  # of all samples
            nll = math.inf
        nll = nll if math.isfinite(nll) else math.inf  # NaN compares with nothing, and log p = inf is no gain
        if nll < min(self.nll, default=math.inf):
            self._kept, self.best = [p.detach().clone() for p in self.parameters], step
        self.steps.append(step)
        self.nll.append(nll)
        return nll

    def restore(self) -> None:
        """Gives the parameters the weights that were kept."""
        with torch.no_grad():
            for p, kept in zip(self.parameters, self._kept, strict=True):
                p.copy_(kept)

    def finish(self) -> None:
        """Restores the best weights, if it is known which are; warns if not, or if no step did any good."""
        if self.told:
            self.restore()
        if self.nll and not self.told:
            warnings.warn(
                "fine_tune: at no look was log p of all validation samples finite, so that nothing tells which weights are best: the last "
                "ones are kept; look at log_prob of these samples, or give another validation_solver",
                stacklevel=3,
            )
        elif self.nll and self.best == 0:
            warnings.warn(
                f"fine_tune: nll of the validation samples was never below the {self.nll[0]:.4g} it began with "
                f"({min(self.nll[1:]):.4g} at best): the weights are those of before; lower lr, or take more solver_steps",
                stacklevel=3,
            )


def _state(model: ScoreModel, source: Source, x: Tensor, seed: int, ids: np.ndarray, draw: int) -> Tensor:
    """What log p is of: the data, or of middles of bins their state at t_min, whose noise dequantizes them."""
    if source.transform is None or source.transform.dequantization != "normal":
        return x
    t = model.sde.levels([model.sde.t_min])[0]
    return t.alpha * x + t.sigma * Noise(seed, ids, model.event_shape, x.dtype, x.device).normal(DEQUANTIZE, draw)

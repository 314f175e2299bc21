r"""log p as a differentiable function of x and of the parameters of a model, and fine-tuning on it.

.. math:: \log p(x) = \log p_T(x_T) + \int_{t_\mathrm{min}}^{t_\mathrm{max}} \nabla \cdot v(x_t, t)\, dt

by the steps of ``log_prob`` (see ``flow``), each of which is differentiated: what comes out is the exact gradient of the number
that ``log_prob`` answers with as many steps, not a discretization of the adjoint equation. The trace asks for second derivatives of
the network. The graph holds all network calls, so that memory grows as steps x batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.core.checks import check_data
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.progress import bar
from scoresde.errors import ConfigError
from scoresde.likelihood import flow
from scoresde.likelihood.method import check_prior
from scoresde.likelihood.traces import Traces, check_kind
from scoresde.models.base import check_model, check_same_kind, inference
from scoresde.models.batches import batch_size_of, bind_conditions, default_batch_size, in_batches
from scoresde.models.conditions import check_conditions
from scoresde.solvers.reference import ReferenceSolver

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

STEPS = 16  # network calls, all of which the graph holds


@checked
def differentiable_log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int = STEPS,
    solver: ReferenceSolver | None = None,
    divergence: str = "exact",
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | str | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """log p(x) in nats, (B,) float64, with a graph to x (if it requires a gradient) and to the parameters of the model.

    The same number as ``log_prob(model, x, solver=solver, steps=steps, ...)``, in one batch, in evaluation mode.

    Args:
        model: a ScoreModel with a Gaussian reference (or a solver that has one); its network must be differentiable twice.
        x: model-space floats (B, *event_shape).
        steps: network calls; the graph holds them all.
        solver: None is ``ReferenceSolver()``.
        divergence, probes, prior, seed, ids, **cond: as for ``log_prob``; a prior must be differentiable.

    Raises:
        DTypeError, ShapeError, NonFiniteError, DeviceError: a wrong x.
        ConfigError: another wrong argument, or a model without a reference.

    >>> import scoresde as sd
    >>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
    >>> x = torch.tensor([[0.5, -1.0]], requires_grad=True)
    >>> (score,) = torch.autograd.grad(differentiable_log_prob(model, x).sum(), x)
    >>> torch.allclose(score, -x, atol=1e-3)
    True
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, differentiable_log_prob, dtype=model.dtype)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    noise = Noise(check_seed(seed), check_ids(ids, len(x)), model.event_shape, x.dtype, x.device)
    log_p = Density.make(model, steps, solver, divergence, probes, prior)
    return log_p(bind_conditions(model, cond, np.arange(len(x)), len(x), x.device), x, noise)


@dataclass(frozen=True)
class Density:
    """log p as a function of x, planned once."""

    model: ScoreModel
    plan: flow.Plan
    divergence: str
    probes: int
    log_prior: Callable[[Tensor], Tensor]

    @classmethod
    def make(cls, model: ScoreModel, steps: int, solver: Any, divergence: str, probes: int, prior: Any) -> Density:
        """Checks the arguments. Raises ConfigError."""
        solver = ReferenceSolver() if solver is None else solver
        if not isinstance(solver, ReferenceSolver):
            raise ConfigError(f"solver = {solver!r}, expected a ReferenceSolver: its steps are what is differentiated")
        check_kind(divergence, probes, model.reference)
        plan = flow.plan(model, solver, steps)
        return cls(model, plan, divergence, probes, check_prior(prior, model, solver, plan.levels[-1]))

    def __call__(self, bound: ScoreModel, x: Tensor, noise: Noise) -> Tensor:
        """log p(x), (B,), by a model with its conditions bound."""
        first, end = self.plan.levels[0], self.plan.levels[-1]
        # fused attention has no second derivative: what is to be differentiated twice is computed by its plain formula
        with inference(self.model, grad=True), sdpa_kernel(SDPBackend.MATH):
            x = x.clone() if x.is_inference() else x
            traces = Traces.draw(self.divergence, self.probes, noise, self.model.reference)
            z, integral = flow.integrate(bound, x, self.plan, traces, graph=True)
            delta = integral + traces.control(self.model.reference, first, end)
            log_prior = self.log_prior(flow.latent(self.plan, z).to(x.dtype)).double()
        return log_prior + delta.mean(1) + flow.volume(self.plan)


@checked
def log_prob_gradient(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int = STEPS,
    solver: ReferenceSolver | None = None,
    divergence: str = "exact",
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | str | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **cond: Any,
) -> tuple[Tensor, Tensor]:
    """log p(x), (B,) float64, and its gradient with respect to x, (B, *event_shape) in the dtype of x.

    It is the gradient of the density that the probability-flow ODE gives. For a trained network that is near, but not equal to,
    ``model.score(x, t_min)``: a network's score is no gradient of anything, and knows nothing of its errors at other times.

    Args:
        batch_size: samples at once, whose graphs are held together; None: a quarter of what ``log_prob`` takes.
        Otherwise as for ``differentiable_log_prob``. Sample i does not depend on its batch mates.

    Raises:
        As ``differentiable_log_prob``.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, log_prob_gradient, dtype=model.dtype)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    log_p = Density.make(model, steps, solver, divergence, probes, prior)
    n, id_array = len(x), check_ids(ids, len(x))
    check_seed(seed)
    size = default_batch_size(model.event_shape) // 4 if batch_size is None else batch_size_of(model, batch_size)
    with bar(progress, -(-n // size), "gradient of log p") as advance, torch.inference_mode(False):
        values = torch.empty(n, dtype=torch.float64, device=x.device)
        gradients = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # not like x, which may be an inference tensor
        for batch in in_batches(model, cond, n, size, x.device):
            noise = Noise(seed, id_array[batch.rows], model.event_shape, x.dtype, x.device)
            part = x[batch.place].detach().clone().requires_grad_()
            value = log_p(batch.model, part, noise)
            (gradients[batch.place],) = torch.autograd.grad(value.sum(), part)
            values[batch.place] = value.detach()
            advance()
    return values, gradients

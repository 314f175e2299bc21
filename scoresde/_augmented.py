"""log p by any solver of the velocity: its state is x and one log-density a column of the trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._tensor import per_sample_rms
from ._traces import Traces, share
from .adaptive import angular_velocity
from .errors import ConfigError
from .model import ScoreModel
from .sde import Level


class Augmented:
    """What a solver sees: the velocity of the state (x, one log-density a column), in float64, shape (B, D + columns)."""

    def __init__(self, model: ScoreModel, x: Tensor, traces: Traces) -> None:
        self.model, self.sde, self.traces = model, model.sde, traces
        self.shape, self.dtype, self.dimensions = x.shape, x.dtype, x[0].numel()

    def velocity(self, y: Tensor, t: Level) -> Tensor:
        # dv/dx = sigma'/sigma I + (alpha'/alpha - sigma'/sigma) alpha dD/dx
        level = self.sde.level(t, y)
        columns: Any = (level.alpha, level.sigma, level.alpha_dot, level.sigma_dot)
        alpha, sigma, alpha_dot, sigma_dot = (c.flatten() if isinstance(c, Tensor) else c for c in columns)
        grow, known = sigma_dot / sigma, share(self.model.reference, sigma / alpha)
        return self._flow(self.model.velocity, y, t, grow + (alpha_dot / alpha - grow) * known)

    def angular(self, y: Tensor, t: Tensor) -> Tensor:
        """The same for x/c and dx/dtheta (see ``adaptive``), t (B,); ``rescale`` goes there and back."""
        level: Any = self.sde.level(t, y)
        s = (level.sigma / level.alpha).flatten()
        # dv/dy = cot I - 1/(sin cos) alpha dD/dx, with tan = s
        return self._flow(partial(angular_velocity, self.model), y, t, 1 / s - (s + 1 / s) * share(self.model.reference, s))

    def rescale(self, y: Tensor, c: float) -> Tensor:
        """(c x, log-densities + D log c)."""
        D = self.dimensions
        return torch.cat([c * y[:, :D], y[:, D:] + D * math.log(c)], dim=1)

    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        self.model.count_samples(ids, n)

    def _flow(self, velocity: Callable[..., Tensor], y: Tensor, t: Any, a: Any) -> Tensor:
        with torch.enable_grad():
            x = y[:, : self.dimensions].to(self.dtype).view(self.shape).requires_grad_()
            v = velocity(x, t)
        traces, products = self.traces(v, x, a)
        self.model.count_vjp(products)
        return torch.cat([v.detach().flatten(1).double(), traces], dim=1)

    def error_norm(self, error: Tensor) -> Tensor:
        """The larger of the root mean squares over x and over the log-densities, for each sample."""
        return torch.maximum(per_sample_rms(error[:, : self.dimensions]), per_sample_rms(error[:, self.dimensions :]))

    def __getattr__(self, name: str) -> Any:
        raise ConfigError(
            f"this solver asks the model for {name!r}; log_prob needs one that integrates the velocity of the "
            "probability-flow ODE: ReferenceSolver, AdaptiveODE, TorchDiffEq, Euler, Heun or RK4"
        )

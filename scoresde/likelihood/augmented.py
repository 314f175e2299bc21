"""log p by the solvers of the suite: those of the velocity, whose state holds the log-densities too, and those of x0 or eps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from scoresde.core.tensors import per_sample_rms
from scoresde.errors import ConfigError
from scoresde.likelihood.clock import Clock
from scoresde.likelihood.flow import Rate, log_volume, quadrature
from scoresde.likelihood.traces import share
from scoresde.models.reference import GaussianReference
from scoresde.models.views import View
from scoresde.sdes.levels import Level

if TYPE_CHECKING:
    from scoresde.likelihood.traces import Traces
    from scoresde.models.answers import Answers


class Augmented(View):
    """What a solver of the velocity sees: that of the state (x, one log-density a column), in float64, shape (B, D + columns)."""

    def __init__(self, model: Answers, x: Tensor, traces: Traces) -> None:
        super().__init__(model)
        self.traces = traces
        self.shape, self.dtype, self.dimensions = x.shape, x.dtype, x[0].numel()

    def seen(self, x: Tensor, t: Any) -> NoReturn:
        raise ConfigError(
            "this solver asks the model for x0, eps or the score; log p needs one that integrates the velocity of the "
            "probability-flow ODE: ReferenceSolver, AdaptiveODE, TorchDiffEq, Euler, Heun or RK4 (one of your own that says "
            "asks = 'velocity' must not ask for anything else)"
        )

    def velocity(self, x: Tensor, t: Any, **cond: Any) -> Tensor:
        # dv/dx = sigma'/sigma I + (alpha'/alpha - sigma'/sigma) alpha dD/dx
        level = self.sde.level(t, x)
        columns: Any = (level.alpha, level.sigma, level.alpha_dot, level.sigma_dot)
        alpha, sigma, alpha_dot, sigma_dot = (c.flatten() if isinstance(c, Tensor) else c for c in columns)
        grow, known = sigma_dot / sigma, share(self.reference, sigma / alpha)
        return self._flow(self.inner.velocity, x, t, grow + (alpha_dot / alpha - grow) * known)

    def angular_velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """The same for x/c and dx/dtheta, t (B,); ``rescale`` goes there and back."""
        level: Any = self.sde.level(t, y)
        s = level.s.flatten()
        # dv/dy = cot I - 1/(sin cos) alpha dD/dx, with tan = s
        return self._flow(self.inner.angular_velocity, y, t, 1 / s - (s + 1 / s) * share(self.reference, s))

    def rescale(self, x: Tensor, c: float) -> Tensor:
        """(c x, log-densities + D log c)."""
        D = self.dimensions
        return torch.cat([c * x[:, :D], x[:, D:] + D * math.log(c)], dim=1)

    def _flow(self, velocity: Callable[..., Tensor], y: Tensor, t: Any, a: Any) -> Tensor:
        with torch.enable_grad():
            x = y[:, : self.dimensions].to(self.dtype).view(self.shape).requires_grad_()
            v = velocity(x, t)
        traces, products = self.traces(v, x, a)
        self.count_vjp(products)
        return torch.cat([v.detach().flatten(1).double(), traces], dim=1)

    def error_norm(self, error: Tensor) -> Tensor:
        """The larger of the root mean squares over x and over the log-densities, for each sample."""
        return torch.maximum(per_sample_rms(error[:, : self.dimensions]), per_sample_rms(error[:, self.dimensions :]))

    # ---- the state of a sampling pass

    def begin(self, x: Tensor) -> Tensor:
        """The state of x."""
        return torch.cat([x.flatten(1).double(), x.new_zeros((len(x), self.traces.columns), dtype=torch.float64)], dim=1)

    def end(self, y: Tensor, levels: list[Level]) -> tuple[Tensor, Tensor]:
        """x of a state, and log p there less log p at the start, by column."""
        return y[:, : self.dimensions].to(self.dtype).view(self.shape), -y[:, self.dimensions :]


class Watched(View):
    """What a solver of x0 or eps sees: the model, with the rate A of the log-density noted at every call (see ``flow``).

    For solvers that call the model at decreasing times, at states that are on the path up to their own error, as all do that put a
    polynomial through the answers x0 or eps. A call more, at the end, closes the integral over the last step.
    """

    reference: GaussianReference

    def __init__(self, model: Answers, x: Tensor, traces: Traces) -> None:
        super().__init__(model)
        # any reference will do: what it says of the trace is taken off and added again
        unit = GaussianReference(torch.zeros(model.event_shape, device="cpu"), torch.ones((), device="cpu"), "isotropic")
        self.reference = unit if model.reference is None else model.reference
        self.rate = Rate(self.reference, x, traces)
        self.notes: list[tuple[Level, Tensor]] = []

    def seen(self, x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        if isinstance(t, Tensor) and t.ndim:
            raise ConfigError(
                "this solver asks at a time of each sample's own: return_log_prob=True needs one that does not, or one of the velocity"
            )
        if not isinstance(t, Level):
            (t,) = self.sde.levels([float(t)])
        if self.notes and not t < self.notes[-1][0]:
            raise ConfigError(
                f"this solver calls the model at t = {float(t):.6g} after t = {float(self.notes[-1][0]):.6g}: "
                "return_log_prob=True needs calls at decreasing times, as ReferenceSolver, UniPC or DEIS make them, or a solver of "
                "the velocity"
            )
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            x0, eps = self.inner.predict(here, t)
        self.notes.append((t, self.rate(self.inner, x0, here, t)))
        return x0.detach(), eps.detach()

    def velocity(self, x: Tensor, t: Any, **cond: Any) -> NoReturn:
        raise ConfigError("this solver asks the model for its velocity, and does not say so: asks = 'velocity' in its class")

    def begin(self, x: Tensor) -> Tensor:
        """The state of x."""
        return x

    def end(self, x: Tensor, levels: list[Level]) -> tuple[Tensor, Tensor]:
        """x, and log p there less log p at the start, by column."""
        first, last = levels[0], levels[-1]
        self.seen(x, last)
        times, rates = (list(column) for column in zip(*self.notes, strict=True))
        if times[0] < first:  # the solver takes the data to be hidden at the start: A = 0
            times, rates = [first, *times], [torch.zeros_like(rates[0]), *rates]
        clock = Clock.of(self.reference)
        weights = quadrature([clock.time(t) for t in times], 4)
        integral = sum(q * clock.slope(t) * A for q, t, A in zip(weights, times, rates, strict=True))
        volume = log_volume(self, first) - log_volume(self, last)
        return x, volume - integral - self.rate.left_out(first, last)


class Silent:
    """The noise of a solve whose density is asked for: there is none."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def at(self, step: int) -> Silent:
        return self

    def __call__(self, *_: Any) -> NoReturn:
        raise ConfigError(
            "this solver adds noise, and the density of what comes out is not known: return_log_prob=True needs a deterministic "
            "one, ReferenceSolver() or AdaptiveODE() for instance"
        )

    brownian = normal = __call__

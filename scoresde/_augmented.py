"""log p by the solvers of the suite: those of the velocity, whose state holds the log-densities too, and those of x0 or eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ._density import Clock, Rate, log_volume, quadrature
from ._tensor import per_sample_rms
from ._traces import Traces, share
from .adaptive import angular_velocity
from .errors import ConfigError
from .model import ScoreModel
from .reference import GaussianReference
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
            f"this solver asks the model for {name!r}; log p needs one that integrates the velocity of the "
            "probability-flow ODE: ReferenceSolver, AdaptiveODE, TorchDiffEq, Euler, Heun or RK4"
        )

    # ---- the state of a sampling pass

    def begin(self, x: Tensor) -> Tensor:
        """The state of x."""
        return torch.cat([x.flatten(1).double(), x.new_zeros((len(x), self.traces.columns), dtype=torch.float64)], dim=1)

    def end(self, y: Tensor, levels: list[Level]) -> tuple[Tensor, Tensor]:
        """x of a state, and log p there less log p at the start, by column."""
        return y[:, : self.dimensions].to(self.dtype).view(self.shape), -y[:, self.dimensions :]


class AsksVelocity(Exception):
    """A solver asked a ``Watched`` model for a velocity, or for answers at a time of each sample's own."""


class Watched:
    """What a solver sees: the model, with the rate A of the log-density noted at every call (see ``_density``).

    For solvers that call the model at decreasing times, at states that are on the path up to their own error, as all do that put a
    polynomial through the answers x0 or eps. A call more, at the end, closes the integral over the last step.
    """

    def __init__(self, model: ScoreModel, x: Tensor, traces: Traces) -> None:
        self.model, self.sde, self.event_shape = model, model.sde, model.event_shape
        # any reference will do: what it says of the trace is taken off and added again
        unit = GaussianReference(torch.zeros(model.event_shape), torch.ones(()), "isotropic")
        self.reference = unit if model.reference is None else model.reference
        self.rate = Rate(self.reference, x, traces)
        self.notes: list[tuple[Level, Tensor]] = []

    def denoise(self, x: Tensor, t: Any) -> Tensor:
        return self.predict(x, t)[0]

    def predict(self, x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        if isinstance(t, Tensor) and t.ndim:
            raise AsksVelocity
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
            x0, eps = self.model.predict(here, t)
        self.notes.append((t, self.rate(self.model, x0, here, t)))
        return x0.detach(), eps.detach()

    def velocity(self, x: Tensor, t: Any) -> NoReturn:
        raise AsksVelocity

    def eps(self, x: Tensor, t: Any) -> Tensor:
        return self.predict(x, t)[1]

    def score(self, x: Tensor, t: Any) -> Tensor:
        return -self.predict(x, t)[1] / t.sigma

    def begin(self, x: Tensor) -> Tensor:
        """The state of x."""
        return x

    def end(self, x: Tensor, levels: list[Level]) -> tuple[Tensor, Tensor]:
        """x, and log p there less log p at the start, by column."""
        first, last = levels[0], levels[-1]
        self.predict(x, last)
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

"""Solvers of other libraries behind our interface: torchdiffeq for the probability-flow ODE, torchsde for the reverse SDE.

Their argument order, their direction of time, their two-dimensional states and their sources of randomness stay in here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoresde.core.checks import did_you_mean
from scoresde.core.doors import checked
from scoresde.core.streams import SECOND, STEP
from scoresde.errors import ConfigError, SolverError
from scoresde.solvers.base import Solver, check_eta, check_tolerances

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw

ADAPTIVE = {"dopri5": 5.0, "dopri8": 8.0, "bosh3": 3.0, "fehlberg2": 2.0, "adaptive_heun": 2.0}  # by order

FIXED = {"euler": 1.0, "midpoint": 2.0, "heun2": 2.0, "heun3": 3.0, "rk4": 4.0}

STOCHASTIC = {
    "euler": "ito",
    "srk": "ito",
    "heun": "stratonovich",
    "midpoint": "stratonovich",
    "euler_heun": "stratonovich",
}


def _check_method(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise ConfigError(f"method = {method!r}, expected one of {', '.join(methods)}{did_you_mean(str(method), methods, 0.3)}")


@checked
@dataclass(frozen=True)
class TorchDiffEq(Solver):
    """torchdiffeq's methods on the probability-flow ODE (2011.13456, section 4.3; dopri5: Dormand and Prince 1980).

    An adaptive method needs no steps: ``sample(model, n, solver=TorchDiffEq())`` solves from t_max to t_end in one go. A fixed one
    ("euler", "midpoint", "heun2", "heun3", "rk4") takes one step an interval of the grid.

    The error norm is the largest over samples of the root mean square over a sample, so that no sample is solved worse for its
    batch mates; the step sizes are still common to a batch, so results depend on it within the tolerance. Times are never outside
    the interval.

    Args:
        method: name in torchdiffeq.
        rtol, atol: tolerance of one step, relative and absolute, in the units of x (and nats, for a log-density).
        max_nfe: network calls allowed for one solve of one batch.

    Raises (in a solve):
        SolverError: max_nfe reached, step size underflow, or a non-finite velocity, with time, calls and sample ids.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000
    default_steps: int = field(init=False, repr=False, default=1)  # type: ignore[misc]

    def __post_init__(self) -> None:
        _check_method(self.method, (*ADAPTIVE, *FIXED))
        check_tolerances(self.rtol, self.atol, self.max_nfe)
        if self.method in FIXED:
            object.__setattr__(self, "default_steps", Solver.default_steps)

    @property
    def accuracy(self) -> float:
        """The order of the method. The error of an adaptive one follows its tolerance, not a number of steps."""
        return {**ADAPTIVE, **FIXED}[self.method]

    def loosened(self, factor: float) -> TorchDiffEq | None:
        return replace(self, rtol=factor * self.rtol, atol=factor * self.atol) if self.method in ADAPTIVE else None

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> int:
        return 0  # network calls so far

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: int, noise: Draw) -> tuple[Tensor, int]:
        from torchdiffeq import odeint

        field = _Velocity(self, model, t, s, state, noise)
        times = torch.tensor([t, s], dtype=torch.float64, device=x.device)
        options: dict[str, Any] = {}
        if self.method in ADAPTIVE:
            # step_t: land on the end time; without it the last step runs past it, to times where there is no score
            options = {"norm": field.norm, "step_t": times[1:]}
        try:
            y = odeint(field, x, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        except AssertionError as error:  # torchdiffeq's own checks, which python -O drops: ours come first
            raise field.failure(f"torchdiffeq: {error}") from None
        return y, field.nfe


class _Velocity(torch.nn.Module):
    """The velocity as torchdiffeq wants it, (t, x), watching over what torchdiffeq does not."""

    def __init__(self, solver: TorchDiffEq, model: Answers, t: Level, s: Level, nfe: int, noise: Draw) -> None:
        super().__init__()
        self.solver, self.nfe, self.ids = solver, nfe, noise.ids
        self._model = (model,)  # in a tuple: not a submodule
        self.low, self.high, self.time = min(t, s), max(t, s), float(t)
        self.worst: Tensor | None = None
        self.last: Tensor | None = None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        now = float(t)
        if not math.isfinite(now):  # the size of the first step, from velocities that are not
            raise self.failure("the step size is not finite")
        if self.nfe >= self.solver.max_nfe:
            raise self.failure(f"max_nfe = {self.solver.max_nfe} network calls reached")
        self.nfe += 1
        self.time = min(max(now, self.low), self.high)
        (model,) = self._model
        self.last = model.velocity(x, model.sde.levels([self.time])[0])
        return self.last

    def norm(self, error: Tensor) -> Tensor:
        (model,) = self._model
        self.worst = model.error_norm(error)
        return self.worst.max()

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        if abs(float(dt)) <= 1e-14 * abs(float(t0)) or not math.isfinite(float(dt)):
            raise self.failure("the step size underflowed")

    def failure(self, what: str) -> SolverError:
        message = f"TorchDiffEq({self.solver.method!r}): {what} at t = {self.time:.6g} after {self.nfe} network calls"
        rows: Tensor | None = None
        if self.last is not None and not bool(self.last.isfinite().all()):
            rows = (~self.last.isfinite().flatten(1).all(1)).nonzero().flatten()
            message += "; the model's velocity is not finite there"
        elif self.worst is not None:
            rows = self.worst.nan_to_num(math.inf).argmax()[None]
        if rows is not None:
            ids = rows.tolist() if self.ids is None else [int(self.ids[r]) for r in rows.tolist()]
            message += f" (sample ids {ids[:8]}{'...' if len(ids) > 8 else ''})"
        return SolverError(message + "; loosen rtol and atol, raise max_nfe, or check the model at this time")


@checked
@dataclass(frozen=True)
class TorchSDE(Solver):
    """torchsde's methods on the reverse SDE, one step an interval of the grid, with our noise.

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw run backwards. The noise is additive (g depends on t only), so Ito and
    Stratonovich agree. "euler": order 1, one call; "srk": strong order 1.5, two calls (Roessler 2010); "heun" and "midpoint": two
    calls; "euler_heun": one. The Brownian motion is drawn forward, one interval at a time, from (seed, sample id, step).

    Raises:
        ConfigError: an unknown method or eta <= 0.
    """

    method: str = "srk"
    eta: float = 1.0
    asks: ClassVar[str] = "x0"
    noise: ClassVar[str] = "strong"

    def __post_init__(self) -> None:
        _check_method(self.method, tuple(STOCHASTIC))
        check_eta(self.eta, math.inf)
        if self.eta == 0:
            raise ConfigError("eta = 0 of TorchSDE: the noise is gone; use TorchDiffEq for the probability-flow ODE")

    @property
    def accuracy(self) -> float:
        return 1.5 if self.method == "srk" else 1.0

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        import torchsde

        if not s < t:
            raise ConfigError(f"{self} runs from noise to data only; use TorchDiffEq, Euler, Heun or RK4 the other way")
        field = _ReverseSDE(model, x.shape, t, s, self.eta, STOCHASTIC[self.method])
        bm = _brownian_increment(x.flatten(1), noise)
        ts = torch.tensor([-t, -s], dtype=torch.float64, device=x.device)
        # slightly more than the interval, so that rounding cannot leave a sliver for a second step
        dt = (t - s) * (1 + 1e-9)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):  # it draws once to look at the shape of g
            y = torchsde.sdeint(field, x.flatten(1), ts, bm=bm, method=self.method, dt=dt)[-1]
        return y.view(x.shape), state


class _ReverseSDE(torch.nn.Module):
    """The reverse SDE in increasing time tau = -t, on flat states: drift f and diffusion-vector product g_prod."""

    noise_type = "additive"

    def __init__(self, model: Answers, shape: torch.Size, t: Level, s: Level, eta: float, sde_type: str) -> None:
        super().__init__()
        self._model, self.shape, self.low, self.high, self.eta = (model,), shape, s, t, eta
        self.sde_type = sde_type
        self._memory: tuple[float, Tensor, Tensor] | None = None

    def _level(self, tau: Tensor) -> Level:
        (model,) = self._model
        return model.sde.levels([min(max(-float(tau), self.low), self.high)])[0]

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        # sdeint calls the drift once more, to look at its shape: the answer is kept for the step itself
        if self._memory is not None and self._memory[0] == float(tau) and self._memory[1] is y:
            return self._memory[2]
        t = self._level(tau)
        x0, eps = self._model[0].predict(y.view(self.shape), t)
        drift = -(t.alpha_dot * x0 + (t.sigma_dot + self.eta**2 * t.g2 / (2 * t.sigma)) * eps).flatten(1)
        self._memory = (float(tau), y, drift)
        return drift

    def g_prod(self, tau: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.eta * math.sqrt(self._level(tau).g2) * v


def _brownian_increment(y: Tensor, noise: Draw) -> Any:
    """A Brownian motion that is only ever asked for the one interval of a step: W, and U its time integral."""
    from torchsde import BaseBrownian

    class Increment(BaseBrownian):
        dtype, device, shape = y.dtype, y.device, y.shape
        levy_area_approximation = "space-time"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            h = float(tb) - float(ta)
            W = math.sqrt(h) * noise(STEP).view(y.shape)
            if not return_U:
                return W
            return W, h * (0.5 * W + math.sqrt(h / 12) * noise(SECOND).view(y.shape))

        def __repr__(self) -> str:
            return "Increment()"

    return Increment()

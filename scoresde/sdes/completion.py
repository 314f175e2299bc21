"""The pair that an SDE does not give: (f, g) of (alpha, sigma) by derivative, (alpha, sigma) of (f, g) by quadrature."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.core.quadrature import graded_edges, legendre
from scoresde.core.tensors import transformed
from scoresde.sdes.levels import FunctionsOfTime


def function_of_time(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Lets a function of a tensor of times take floats (answered in float64) and return plain numbers."""

    @functools.wraps(function)
    def of_time(self: FunctionsOfTime, t: Tensor | float) -> Tensor:
        t = t if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64, device="cpu")
        if not t.is_floating_point():
            t = t.double()
        value = function(self, t)
        return value if isinstance(value, Tensor) else torch.full_like(t, value)

    of_time.of_time = function  # type: ignore[attr-defined]
    return of_time


def time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function/dt, for a function that is elementwise: differentiable itself, in t and in what else the function depends on.

    By reverse mode: the first use of forward mode in a process imports seconds' worth of modules. It is kept for where reverse
    mode does not work, that is under inference_mode and inside the transforms of torch.func.
    """
    if not torch.is_inference_mode_enabled() and not transformed(t):
        graph = torch.is_grad_enabled() and (t.requires_grad or function(t).requires_grad)
        try:
            with torch.enable_grad():
                s = t if graph and t.requires_grad else t.detach().clone().requires_grad_()
                value = function(s)
                found = torch.autograd.grad(value.sum(), s, create_graph=graph, allow_unused=True) if value.requires_grad else (None,)
            return torch.zeros_like(t) if found[0] is None else found[0]
        except RuntimeError:  # t is outside of a transform, but parameters of the SDE are inside
            pass
    t = t.clone()  # which may have been expanded
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def _f_by_derivative(self: FunctionsOfTime, t: Tensor) -> Tensor:
    """f = alpha'/alpha."""
    return time_derivative(self.alpha, t) / self.alpha(t)


def _g_by_derivative(self: FunctionsOfTime, t: Tensor) -> Tensor:
    """g = sqrt(2 sigma (sigma' - sigma f))."""
    sigma = self.sigma(t)
    return (2 * sigma * (time_derivative(self.sigma, t) - sigma * self.drift_coefficient(t))).sqrt()


def alpha_by_quadrature(self: FunctionsOfTime, t: Tensor) -> Tensor:
    """alpha(t) = exp of the integral of f from 0 to t."""
    return _integrals(self, t)[0].exp().to(t.dtype)


def _sigma_by_quadrature(self: FunctionsOfTime, t: Tensor) -> Tensor:
    """sigma(t)^2 = alpha(t)^2 (sigma_0^2 + integral of g^2/alpha^2 from 0 to t)."""
    return _integrals(self, t)[1].sqrt().to(t.dtype)


def _integrals(sde: FunctionsOfTime, t: Tensor) -> tuple[Tensor, Tensor]:
    """log alpha(t) and sigma(t)^2, float64: what they are at the start of t's panel, and one panel's quadrature from there."""
    edges, log_alpha, variance = (c.to(t.device) for c in _panels(sde))
    t = t.double().contiguous()
    k = (torch.searchsorted(edges, t, right=True) - 1).clamp(0)
    gain, added = _over_panel(sde, edges[k], t - edges[k])
    return log_alpha[k] + gain, variance[k] * (2 * gain).exp() + added


def _over_panel(sde: FunctionsOfTime, start: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the SDE does from start to start + h: log alpha gained, and variance that noise adds."""
    nodes, weights, cumulative = (c.to(h.device) for c in legendre())
    s = start[..., None] + h[..., None] * nodes
    f, g = sde.drift_coefficient(s), sde.diffusion(s)
    gain = h * (f @ weights)
    rest = gain[..., None] - h[..., None] * (f @ cumulative.mT)  # log alpha gained from each node to the end
    return gain, h * ((g * rest.exp()).square() @ weights)


def _panels(sde: FunctionsOfTime) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of panels of [0, t_max], and log alpha and sigma^2 there. Kept, for an SDE that is a value."""
    frozen = dataclasses.is_dataclass(sde) and sde.__dataclass_params__.frozen  # type: ignore[attr-defined]
    fields = dataclasses.fields(sde) if frozen else ()  # type: ignore[arg-type]
    if frozen and all(isinstance(getattr(sde, field.name), (int, float, str, type(None))) for field in fields):
        return _kept_panels(sde)
    return _make_panels(sde)


def _make_panels(sde: FunctionsOfTime) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # its tensors could not be kept for other modes
        edges = graded_edges() * float(sde.t_max)
        gains, added = _over_panel(sde, edges[:-1], edges.diff())
        variance = [torch.as_tensor(sde.sigma_0, dtype=torch.float64, device="cpu") ** 2]  # it may be a parameter
        for gain, new in zip(gains, added, strict=True):
            variance.append(variance[-1] * (2 * gain).exp() + new)
        return edges, torch.cat([edges[:1], gains.cumsum(0)]), torch.stack(variance)


_kept_panels = functools.lru_cache(maxsize=64)(_make_panels)


def _log_snr(self: FunctionsOfTime, t: Tensor) -> Tensor:
    """log-SNR = 2 log(alpha/sigma)."""
    return 2 * (self.alpha(t).log() - self.sigma(t).log())


def _time_of_log_snr(self: FunctionsOfTime, log_snr: Tensor) -> Tensor:
    """The t in [t_min, t_max] with this log-SNR: bisection, then Newton with d log-SNR/dt = -g^2/sigma^2."""
    target = log_snr.double()

    def newton(t: Tensor) -> Tensor:
        step = (self.log_snr(t) - target) * (self.sigma(t) / self.diffusion(t)).square()
        return t + torch.where(step.isfinite(), step, 0.0)  # where g = 0, as between equal entries of a table, bisection has to do

    with torch.no_grad():
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        for _ in range(24):
            middle = (low * high).sqrt()  # log-SNR is closer to linear in log t than in t
            before = self.log_snr(middle) > target
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        t = (low * high).sqrt()
        for _ in range(3):
            t = torch.minimum(torch.maximum(newton(t), low), high)
    # a last step with a graph has the derivatives of the implicit function; it may leave the range by rounding
    return newton(t).clamp(self.t_min, self.t_max).to(log_snr.dtype)


DERIVED: dict[str, Callable[..., Tensor]] = {
    "alpha": alpha_by_quadrature,
    "sigma": _sigma_by_quadrature,
    "drift_coefficient": _f_by_derivative,
    "diffusion": _g_by_derivative,
    "log_snr": _log_snr,
    "time_of_log_snr": _time_of_log_snr,
}

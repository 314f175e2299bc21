"""Score models: everything that samples, scores or is trained is one method, E[x_0 | x_t], under one SDE."""

from __future__ import annotations

import math
import operator
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from . import parameterization as parameterizations
from ._tensor import affine, check_floating, check_shape, like
from .errors import ConfigError, DeviceError, DTypeError, ShapeError
from .parameterization import Parameterization
from .reference import GaussianReference
from .sde import SDE, Level, check_ends, check_range


class ScoreModel(nn.Module, ABC):
    r"""A model of the score of x_t under an SDE.

    A subclass defines ``denoise(x, t, **cond)``, the estimate of E[x_0 | x_t = x] (or ``predict``, which gives the noise too,
    where that is more accurate than x = alpha x0 + sigma eps solved for eps). All else follows, with one call each:

    .. math:: \varepsilon = (x - \alpha x_0)/\sigma, \quad \mathrm{score} = -\varepsilon/\sigma, \quad
              \mathrm{velocity} = \alpha' x_0 + \sigma' \varepsilon

    x has shape (B, *event_shape); t is a float, or a tensor of shape () or (B,). A result may be computed in a wider dtype than
    x; what is derived from it uses that width and is cast to the dtype of x at the end.

    All of them raise ShapeError (x, t or the network's answer of a wrong shape), DTypeError and DeviceError (x and the network
    do not match), TimeRangeError (t outside [t_min, t_max]) and NonFiniteError (t is NaN).
    """

    sde: SDE
    event_shape: tuple[int, ...]
    reference: GaussianReference | None = None  # mean and covariance of the data, for the solvers that work in its coordinates
    _own_denoise: Callable[..., Tensor]
    _own_predict: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, sde: SDE, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise ConfigError(f"sde = {sde!r}, expected an instance of an SDE, scoresde.VPSDE() for instance")
        check_range(sde)
        check_ends(sde)
        self.sde = sde
        try:
            self.event_shape = tuple(operator.index(n) for n in event_shape)
        except TypeError:  # no sequence, or not of integers
            self.event_shape = ()
        if not self.event_shape or min(self.event_shape) < 1:
            raise ConfigError(f"event_shape = {event_shape!r}, expected positive integers, (1, 28, 28) for instance")
        self.recipes: dict[int, Any] = {}  # by number of network calls: what ``tune`` found, for ``sample``
        self._calls: list[Calls] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Puts the checks and the counting of calls around the subclass's own denoise or predict."""
        super().__init_subclass__(**kwargs)
        for name in ("denoise", "predict"):
            if name in vars(cls):
                setattr(cls, f"_own_{name}", vars(cls)[name])
                setattr(cls, name, getattr(ScoreModel, name))
        if not (hasattr(cls, "_own_denoise") or hasattr(cls, "_own_predict")):
            raise ConfigError(f"{cls.__name__} defines neither denoise(x, t, **cond) nor predict(x, t, **cond)")

    def denoise(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The denoised sample E[x_0 | x_t = x], of the shape of x."""
        return self._evaluate(x, t, cond)[0].to(x.dtype)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        """The denoised sample and the noise, (x0, eps), with one network call."""
        x0, eps, _ = self._evaluate(x, t, cond, noise=True)
        return x0.to(x.dtype), eps.to(x.dtype)

    def eps(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The noise E[eps | x_t = x] = (x - alpha x0)/sigma."""
        return self._evaluate(x, t, cond, noise=True)[1].to(x.dtype)

    def score(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The score, gradient of log p_t(x) with respect to x: -eps/sigma."""
        _, eps, level = self._evaluate(x, t, cond, noise=True)
        return (like(-1 / level.sigma, eps) * eps).to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The velocity dx/dt = alpha' x0 + sigma' eps of the probability-flow ODE (2011.13456, eq. 13)."""
        x0, eps, level = self._evaluate(x, t, cond, noise=True)
        return affine(level.alpha_dot, x0, level.sigma_dot, eps).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The same as ``denoise``."""
        return self.denoise(x, t, **cond)

    def _evaluate(self, x: Tensor, t: Tensor | float, cond: dict[str, Any], noise: bool = False) -> tuple[Any, Any, Any]:
        """One call of the model: (x0, eps or None, level), checked and counted."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            check_floating(x)
        if x.shape[1:] != self.event_shape or x.ndim < 2:
            check_shape(x, self.event_shape)
        if not isinstance(t, Level):
            t = self.sde._check_time(t)
            t = self.sde.levels([float(t)])[0] if t.ndim == 0 else t
        level = self.sde.level(t, x)
        for calls in self._calls:
            calls.forward += 1
        own_predict = getattr(self, "_own_predict", None)
        try:
            x0, eps = own_predict(x, t, **cond) if own_predict else (self._own_denoise(x, t, **cond), None)
        except (RuntimeError, TypeError) as error:
            self._explain(x, error)
            raise
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            got = f"shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
            raise ShapeError(f"the model answered {got} for x of shape {tuple(x.shape)}: both must have the same shape")
        if noise and eps is None:
            eps = affine(1 / level.sigma, x.to(x0.dtype), -level.alpha / level.sigma, x0)
        return x0, eps, level

    def count_vjp(self, n: int) -> None:
        """Tells those who count (``count_evaluations``) of n vector-Jacobian products through this model."""
        for calls in (getattr(self, "inner", self))._calls:
            calls.vjp += n

    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        """Tells those who count of n (B,) evaluations for the samples with these ids; equal ids are one sample."""
        listening = (getattr(self, "inner", self))._calls
        if listening:  # to read n waits for the device
            found = {int(i): int(count) for i, count in zip(ids, n.tolist(), strict=True)}
            for calls in listening:
                for i, count in found.items():
                    calls.per_sample[i] = calls.per_sample.get(i, 0) + count

    def _explain(self, x: Tensor, error: Exception) -> None:
        """Turns a network's failure on a foreign dtype or device into the error that names both."""
        check_same_kind(self, x)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floating-point parameters or buffers; torch's default for a model without any."""
        first = self._first()
        return torch.get_default_dtype() if first is None else first.dtype

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters or buffers; the CPU for a model without any."""
        first = self._first()
        return torch.device("cpu") if first is None else first.device

    def _first(self) -> Tensor | None:
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor
        return None


def check_same_kind(model: ScoreModel, x: Tensor, name: str = "x") -> None:
    """Checks that x has the dtype and device of the model, if it has any. Raises DTypeError, DeviceError."""
    if model._first() is None:
        return
    if x.dtype != model.dtype:
        raise DTypeError(
            f"{name} has dtype {x.dtype} but the model has {model.dtype}: use {name}.to(model.dtype), or model.to({x.dtype})"
        )
    if x.device != model.device:
        raise DeviceError(f"{name} is on {x.device} but the model is on {model.device}: use {name}.to(model.device)")


class NetworkModel(ScoreModel):
    """A network under a parameterization: x0 = c_skip x + c_out net(c_in x, c_noise, **cond).

    Args:
        net: any nn.Module with ``forward(x, c_noise, **cond)``; x (B, *event_shape), c_noise (B,) is log(sigma/alpha)/4.
        sde: the diffusion.
        event_shape: shape of one sample.
        parameterization: "x0", "eps", "score", "v", "edm", or a function (alpha, sigma) -> (c_skip, c_out).
        transform: how the data's levels map to the model's space (set by ``fit``, kept in checkpoints).

    Raises:
        ConfigError: an unknown parameterization, a net that is no nn.Module, an sde that is no SDE.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        event_shape: tuple[int, ...],
        parameterization: str | Parameterization = "v",
        transform: Any = None,
    ) -> None:
        super().__init__(sde, event_shape)
        if not isinstance(net, nn.Module):
            raise ConfigError(f"net is a {type(net).__name__}, expected a torch.nn.Module (an instance, not a class)")
        self.net = net
        self.parameterization = _resolve(parameterization)
        self.transform = transform

    def predict(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        level = self.sde.level(t, x)
        alpha, sigma = level.alpha, level.sigma
        c_skip, c_out = self.parameterization(alpha, sigma)
        c_in = parameterizations.input_scale(self.parameterization, alpha, sigma)
        if isinstance(alpha, float):
            c_noise = torch.full((x.shape[0],), math.log(sigma / alpha) / 4, dtype=x.dtype, device=x.device)
        else:
            c_noise = like((sigma / alpha).log() / 4, x).flatten()
        F = self.net(like(c_in, x) * x, c_noise, **cond)
        if not isinstance(F, Tensor) or F.shape != x.shape:
            return F, F  # reported by the caller
        if F.dtype != x.dtype:  # under autocast
            F = F.to(x.dtype)
        x0 = affine(c_skip, x, c_out, F)
        # eps = (x - alpha x0)/sigma with the difference taken in the float64 coefficients: an error of 1e-16/sigma at most
        eps = affine((1 - alpha * c_skip) / sigma, x, -alpha * c_out / sigma, F)
        return x0, eps


def _resolve(parameterization: str | Parameterization) -> Parameterization:
    if callable(parameterization):
        return parameterization
    names = ("x0", "eps", "score", "v", "edm")
    if parameterization not in names:
        close = get_close_matches(str(parameterization), names, 1, 0.3)
        raise ConfigError(
            f"parameterization = {parameterization!r}, expected one of {', '.join(names)} or a function "
            "(alpha, sigma) -> (c_skip, c_out)" + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return getattr(parameterizations, parameterization)


class Conditioned(ScoreModel):
    """A model with its conditions bound, as solvers see it: ``model.score(x, t)`` is ``inner.score(x, t, **cond)``."""

    def __init__(self, inner: ScoreModel, cond: dict[str, Any]) -> None:
        super().__init__(inner.sde, inner.event_shape)
        self.inner, self.cond = inner, cond
        self.reference = inner.reference

    def predict(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        x0, eps, _ = self.inner._evaluate(x, t, self.cond, noise=True)
        return x0, eps


def slice_cond(cond: dict[str, Any], rows: Callable[[Tensor], Tensor], n: int) -> dict[str, Any]:
    """The conditions of some rows: tensors whose first dimension is n are per sample, all else is shared."""
    return {
        name: rows(value) if isinstance(value, Tensor) and value.ndim and value.shape[0] == n else value
        for name, value in cond.items()
    }


@dataclass
class Calls:
    """Network calls: ``forward`` evaluations of the model (of a batch), ``vjp`` vector-Jacobian products through one.

    ``per_sample``: sample id -> evaluations that this sample needed, of solvers in which that differs (``AdaptiveODE``,
    ``AdaptiveSDE``, ``Picard``); empty for all others. Solves with the same id add up.
    """

    forward: int = 0
    vjp: int = 0
    per_sample: dict[int, int] = field(default_factory=dict, repr=False)


@contextmanager
def count_evaluations(model: ScoreModel) -> Iterator[Calls]:
    """Counts the calls of a model: of a batch in ``forward`` and ``vjp``, of each sample in ``per_sample`` where they differ.

    >>> import scoresde as sd
    >>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
    >>> with sd.count_evaluations(model) as calls:
    ...     x = sd.sample(model, 4, solver=sd.Heun(), steps=10)
    >>> calls
    Calls(forward=20, vjp=0)
    """
    calls = Calls()
    model._calls.append(calls)
    try:
        yield calls
    finally:
        model._calls[:] = [c for c in model._calls if c is not calls]


@contextmanager
def inference(model: nn.Module, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless asked; the model is given back as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(grad):  # log_prob needs gradients inside, whatever is outside
            yield
    finally:
        for module in training:
            module.training = True

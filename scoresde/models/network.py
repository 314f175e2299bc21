"""A network under a parameterization as a score model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from scoresde.core.checks import as_number, shown, theirs
from scoresde.core.doors import checked
from scoresde.core.tensors import affine, like
from scoresde.errors import ConfigError
from scoresde.models.base import ScoreModel
from scoresde.models.conditions import Conditions, speaker
from scoresde.models.parameterization import coefficients, data_std, named, needs_derivatives
from scoresde.models.plain import plain
from scoresde.sdes.levels import Level

if TYPE_CHECKING:
    from scoresde.models.parameterization import Parameterization
    from scoresde.sdes.base import SDE


@checked
class NetworkModel(ScoreModel):
    """A network under a parameterization: x0 = c_skip x + c_out net(c_in x, c_noise, **cond).

    Args:
        net: any nn.Module with ``forward(x, c_noise, **cond)``; x (B, *event_shape), c_noise (B,) is log(sigma/alpha)/4.
        sde: the diffusion.
        event_shape: shape of one sample.
        parameterization: "x0", "eps", "score", "v", "velocity", "edm", ``EDM(sigma_data)``, ``Scaled(name, sigma_data)``, or a function
            (alpha, sigma) -> (c_skip, c_out) or (c_skip, c_out, c_in); see ``scoresde.parameterization``.
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
        if any(isinstance(p, (UninitializedBuffer, UninitializedParameter)) for p in (*net.parameters(), *net.buffers())):
            raise ConfigError(f"{type(net).__name__} has lazy parameters, whose shapes are not known: call it once before")
        if transform is not None and not isinstance(transform, Rescaling):
            raise ConfigError(f"transform is a {type(transform).__name__}, expected a scoresde.Transform, or None")
        self.net = net
        self.parameterization = _resolve(parameterization)
        self._dots = needs_derivatives(self.parameterization)
        self.transform = transform
        self.conditions = _conditions(net)

    @property
    def data_std(self) -> float:
        """The std of the data that its parameterization scales the network's input for."""
        return data_std(self.parameterization)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        level = self.sde.level(t, x)
        alpha, sigma = level.alpha, level.sigma
        c_skip, c_out, c_in = coefficients(self.parameterization, level, self._dots)
        if isinstance(level, Level):
            c_noise = torch.full((x.shape[0],), -level.lam / 4, dtype=x.dtype, device=x.device)
        else:
            c_noise = like(-level.lam / 4, x).flatten()
        # of a compiled network, or of replicas, there are no further derivatives: the network itself is for these
        net = plain(self.net) if x.requires_grad else self.net
        F = net(like(c_in, x) * x, c_noise, **cond)
        if not isinstance(F, Tensor) or F.shape != x.shape:
            return F, F  # reported by the caller
        if F.dtype != x.dtype:  # under autocast
            F = F.to(x.dtype)
        x0 = affine(c_skip, x, c_out, F)
        # eps = (x - alpha x0)/sigma with the difference taken in the float64 coefficients: an error of 1e-16/sigma at most
        eps = affine((1 - alpha * c_skip) / sigma, x, -alpha * c_out / sigma, F)
        return x0, eps


def made_with(model: ScoreModel) -> Mapping[str, Any] | None:
    """The arguments that the network of a model was made with, if it keeps them in ``config``, as our own do; else None."""
    net = dict(model.named_children()).get("net")
    return None if net is None else _config(net)


def _config(net: nn.Module) -> Mapping[str, Any] | None:
    config = getattr(speaker(net), "config", None)
    return config if isinstance(config, Mapping) else None


def _conditions(net: nn.Module) -> Conditions:
    """What a network takes, as its signature says; one of ours that has classes and no label dropout cannot do without a label."""
    found, made = Conditions.of(speaker(net).forward, 2), _config(net) or {}
    if "label" in found.names and made.get("classes") and not made.get("label_dropout"):
        return found._replace(required=("label",))
    return found


@runtime_checkable
class Rescaling(Protocol):
    """What a model needs of a ``Transform``, which is in a folder above."""

    def dequantize(self, levels: Tensor, seed: int = 0) -> Tensor: ...

    def quantize(self, x: Tensor) -> Tensor: ...


def _resolve(given: str | Parameterization) -> Parameterization:
    """A parameterization by name, or a user's own, which is tried once: it is named in what goes wrong with it."""
    if not callable(given):
        return named(given)
    with theirs("your parameterization"):
        found = given(0.6, 0.8, -1.0, 1.0) if needs_derivatives(given) else given(0.6, 0.8)
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3) or any(as_number(c) is None for c in found):
        raise ConfigError(
            f"your parameterization gave {shown(found)} at alpha = 0.6, sigma = 0.8, expected numbers, (c_skip, c_out) or "
            "(c_skip, c_out, c_in)"
        )
    return given

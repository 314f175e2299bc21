r"""Exact models: Gaussian mixtures stay Gaussian mixtures under every SDE, so their score and density are known at all times.

If x_0 is a mixture of N(m_k, C_k) with weights w_k, then x_t is a mixture of N(alpha m_k, alpha^2 C_k + sigma^2 I) with the same
weights. Computed in float64, whatever the dtype of x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from scoresde.core.checks import check_data
from scoresde.core.doors import checked
from scoresde.errors import ConfigError
from scoresde.models.base import ScoreModel
from scoresde.models.reference import GaussianReference

if TYPE_CHECKING:
    from scoresde.sdes.base import SDE


DRAWN = 1000  # samples of the target that tell of its tails


class Target(Protocol):
    """A distribution whose marginals are known: what ``ExactModel`` asks of it."""

    event_shape: tuple[int, ...]

    def posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x_t = x], E[eps | x_t = x])."""

    def log_prob_at(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """log density of alpha x_0 + sigma eps, (B,) in nats."""


@runtime_checkable
class Drawn(Protocol):
    """A target that can be drawn from as well: one to judge samples by."""

    def log_prob_at(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor: ...

    def sample(self, n: int, seed: int = 0) -> Tensor: ...


@runtime_checkable
class KnowsMarginals(Protocol):
    """What can be seen of a ``Target`` in an object."""

    def posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]: ...

    def log_prob_at(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor: ...


@runtime_checkable
class Moments(Protocol):
    """A target that knows its mean (*event) and covariance (D, D)."""

    def moments(self) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class KnowsDensity(Protocol):
    """A model that knows its density at every time."""

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor: ...


@checked
class ExactModel(ScoreModel):
    """The exact score model of a target whose marginals are known: a ground truth for solvers, likelihoods and guidance.

    Args:
        target: a ``GaussianMixture``, or any module with ``event_shape``, ``posterior(x, alpha, sigma)`` and
            ``log_prob_at(x, alpha, sigma)``; with ``moments()`` the model has an exact ``reference`` too
            (with ``sample(n, seed)`` one that knows of heavy tails).
        sde: the diffusion.
    """

    def __init__(self, target: Target, sde: SDE) -> None:
        if isinstance(target, type) or not isinstance(target, KnowsMarginals):
            raise ConfigError(
                f"target is a {type(target).__name__}, expected a GaussianMixture, or an object with event_shape, "
                "posterior(x, alpha, sigma) and log_prob_at(x, alpha, sigma)"
            )
        super().__init__(sde, target.event_shape)
        self.target = target
        if isinstance(target, Moments):
            self.reference = GaussianReference.of_moments(*target.moments(), exact=True)
            if isinstance(target, Drawn):
                self.reference = self.reference.measured(target.sample(DRAWN))

    def predict(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # takes no conditions
        level = self.sde.level(t, x)
        return self.target.posterior(x, level.alpha, level.sigma)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The exact log p_t(x) in nats, (B, *event) -> (B,), in the dtype of x."""
        check_data(x, self.event_shape)
        level = self.sde.level(t, x)
        return self.target.log_prob_at(x, level.alpha, level.sigma).to(x.dtype)

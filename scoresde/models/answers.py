"""What a model answers at (x, t): x0, eps, score and velocity, each formula once, for models and for what stands in their place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoresde.core.tensors import affine, like, per_sample_rms

if TYPE_CHECKING:
    from scoresde.models.reference import GaussianReference
    from scoresde.sdes.base import SDE


class Answers(ABC):
    r"""The answers of a model, all of them from one evaluation: x0 = E[x_0 | x_t = x] and eps = E[\varepsilon | x_t = x].

    .. math:: x = \alpha x_0 + \sigma \varepsilon, \quad \mathrm{score} = -\varepsilon/\sigma, \quad
              \mathrm{velocity} = \alpha' x_0 + \sigma' \varepsilon

    x has shape (B, *event_shape); t is a float, or a tensor of shape () or (B,). What is derived is computed in the width of the
    evaluation and cast to the dtype of x at the end.
    """

    sde: SDE
    event_shape: tuple[int, ...]
    reference: GaussianReference | None = None  # mean and covariance of the data, for the solvers that work in its coordinates

    _calls: Any  # a list of those who count

    @abstractmethod
    def _evaluate(self, x: Tensor, t: Tensor | float, cond: dict[str, Any], noise: bool = False) -> tuple[Any, Any, Any]:
        """(x0, eps, noise level) at (x, t), with one network call; eps may be None unless ``noise``."""

    @property
    def learned(self) -> bool:
        """Whether it is a network and no formula, as far as is known."""
        return False

    @abstractmethod
    def count_vjp(self, n: int) -> None:
        """Tells those who count (``count_evaluations``) of n vector-Jacobian products through this model."""

    @abstractmethod
    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        """Tells those who count of n (B,) evaluations for the samples with these ids; equal ids are one sample."""

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

    # ---- for solvers that choose their own steps: the state may be wider than x, and then says what these mean

    def angular_velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """dy/dtheta = cos(theta) eps - sin(theta) x0 for y = x/c, c = sqrt(alpha^2 + sigma^2), tan(theta) = sigma/alpha; t (B,)."""
        level: Any = self.sde.level(t, y)
        c = (level.alpha.square() + level.sigma.square()).sqrt()
        x0, eps = self.predict(like(c, y) * y, t)
        return affine(level.alpha / c, eps, -level.sigma / c, x0)

    def rescale(self, x: Tensor, c: float) -> Tensor:
        """The state of c x."""
        return c * x

    def error_norm(self, error: Tensor) -> Tensor:
        """The size of an error of the state, one number a sample: its root mean square."""
        return per_sample_rms(error)

    def repeated(self, times: int, n: int) -> Answers:
        """The model for ``times`` copies of n samples, one copy of all after the other."""
        return self

r"""Self-normalized importance weights of samples whose density is known, against a target known up to a factor.

With x_i from p and an unnormalised target f = Z q, the weights w_i = f(x_i)/p(x_i) give

.. math:: Z \approx \bar w = \frac1n \sum_i w_i, \qquad
          E_q[h] \approx \frac{\sum_i w_i h(x_i)}{\sum_i w_i}, \qquad
          \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

(Kish 1965; Owen, Monte Carlo theory, chapter 9). ``sample(..., return_log_prob=True)`` gives x_i with their log p.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.core.checks import check_floating, check_positive
from scoresde.core.doors import checked
from scoresde.errors import ConfigError, NonFiniteError, ShapeError

FEW = 100.0  # effective samples, below which standard errors are not to be relied on

HEAVY = 0.7  # k-hat, above which no sample size that one can pay for helps (1507.02646)

LEAST = 5  # weights in a tail that is fitted

EVEN_FEW = 0.5  # effective samples a sample, that are enough where there are fewer than ``few`` in all

EVEN = 0.01  # of the weight where the tail begins: what excess is of no account


@dataclass(frozen=True, eq=False)
class Weights:
    """Importance weights of n samples, made by ``importance_weights``.

    Attributes:
        log_weights: log f(x_i) - log p(x_i) in nats, (n,) float64; -inf where the target is 0.
    """

    log_weights: Tensor

    @functools.cached_property
    def normalized(self) -> Tensor:
        """w_i over their sum, (n,) float64."""
        return self.log_weights.softmax(0)

    @functools.cached_property
    def ess(self) -> float:
        """Kish's effective sample size, from 1 to n: how many samples of the target itself would give about as accurate a mean."""
        return 1 / float(self.normalized.square().sum())

    @functools.cached_property
    def log_normalizer(self) -> float:
        """Estimate of log Z, in nats: the log of the mean weight, for which E[mean weight] = Z; its own bias is -Var/2 < 0."""
        return float(self.log_weights.logsumexp(0)) - math.log(len(self.log_weights))

    @functools.cached_property
    def log_normalizer_error(self) -> float:
        """Standard error of ``log_normalizer``, by the delta method: std(w)/(mean(w) sqrt n). NaN for one sample."""
        n = len(self.log_weights)
        return float((n * self.normalized).std() / math.sqrt(n)) if n > 1 else math.nan

    def estimate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """E_q[h] and its standard error, from h(x_i) in ``values`` (n, ...): two tensors (...), float64.

        The error is that of a ratio by the delta method, sqrt(sum w_i^2 (h_i - estimate)^2)/sum w_i (Owen, eq. 9.9).

        Raises:
            DTypeError, ShapeError, NonFiniteError: values that are not n finite floats, or tensors of them.
        """
        n = len(self.log_weights)
        check_floating(values, "values")
        if values.ndim < 1 or len(values) != n:
            raise ShapeError(f"values have shape {tuple(values.shape)} for {n} samples: expected ({n}, ...)")
        w = self.normalized.to(values.device)
        h, used = values.detach().double().flatten(1) if values.ndim > 1 else values.detach().double()[:, None], w > 0
        if not bool(h[used].isfinite().all()):
            raise NonFiniteError("values hold NaN or inf for samples with a weight: leave these out, or repair the function")
        w, h = w[used], h[used]
        mean = w @ h
        error = (w.square() @ (h - mean).square()).sqrt()
        return mean.view(values.shape[1:]), error.view(values.shape[1:])

    @functools.cached_property
    def k_hat(self) -> float:
        """The shape k of a generalised Pareto distribution fitted to the largest weights: how heavy the tail is (1507.02646).

        Below 0.5 the variance of the weights is finite, and standard errors mean what they say; above 0.7 neither estimates nor
        errors can be relied on, whatever their size. Of the min(n/5, 3 sqrt n) largest ones, over the next one; NaN with fewer than
        5, and -inf where they exceed it by 1 % at most: even weights have no tail.
        """
        n = len(self.log_weights)
        tail = int(min(n / 5, 3 * math.sqrt(n)))
        if tail < LEAST:
            return math.nan
        w = (self.log_weights - self.log_weights.max()).exp().sort().values
        cut = w[-tail - 1]
        excess = (w[-tail:] - cut)[w[-tail:] > cut]
        if len(excess) < LEAST or float(excess[-1]) < EVEN * float(cut):
            return -math.inf
        return pareto_shape(excess)

    def __repr__(self) -> str:
        z, error = self.log_normalizer, self.log_normalizer_error
        return f"Weights(n={len(self.log_weights)}, ess={self.ess:.4g}, log Z={z:.4g} +- {error:.2g}, k_hat={self.k_hat:.2f})"


@checked
def importance_weights(log_target: Tensor, log_prob: Tensor, *, few: float = FEW) -> Weights:
    """Weights of samples x_i of a density p against an unnormalised target f.

    Warns if they cannot be relied on: an effective sample size below ``few`` (and half of the samples), or ``k_hat`` above 0.7.

    Args:
        log_target: log f(x_i), (n,) in nats; -inf where f is 0.
        log_prob: log p(x_i), (n,) in nats, finite; from ``sample(..., return_log_prob=True)``, with the exact trace: the noise of
            random traces makes exp(-log p) too large on average.
        few: effective samples that are enough.

    Raises:
        DTypeError, ShapeError: not two float tensors (n,), n >= 1.
        NonFiniteError: NaN; log_prob infinite, or log_target = +inf.
        ConfigError: a target that is 0 for all samples.

    >>> import scoresde as sd
    >>> model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
    >>> x, log_p = sd.sample(model, 400, return_log_prob=True)
    >>> weights = importance_weights(-0.5 * x.square().sum(1), log_p)  # Z = 2 pi
    >>> round(weights.log_normalizer, 2), round(weights.ess)
    (1.84, 400)
    """
    for name, value in (("log_target", log_target), ("log_prob", log_prob)):
        check_floating(value, name)
        if value.ndim != 1 or not len(value):
            raise ShapeError(f"{name} has shape {tuple(value.shape)}, expected (n,): one number a sample")
        bad = value.isnan() | (value == math.inf) | ((value == -math.inf) & (name == "log_prob"))
        if bool(bad.any()):
            which = bad.nonzero().flatten().tolist()
            raise NonFiniteError(
                f"{name} holds NaN or inf in {len(which)} of {len(value)} samples, the first at index {which[0]}: "
                "leave these samples out"
            )
    if len(log_target) != len(log_prob):
        raise ShapeError(f"log_target has {len(log_target)} samples, log_prob {len(log_prob)}: expected as many in both")
    log_weights = log_target.detach().double() - log_prob.detach().double().to(log_target.device)
    if not bool(log_weights.isfinite().any()):
        raise ConfigError("log_target is -inf for all samples: the target is 0 wherever the samples are")
    weights = Weights(log_weights)
    check_positive(few, "few")
    enough = min(few, EVEN_FEW * len(log_weights))  # nearly even weights of few samples are as good as these samples
    wrong = [f"{weights.ess:.3g} effective of {len(log_weights)} samples, expected {enough:g} or more"] if weights.ess < enough else []
    if weights.k_hat > HEAVY:
        wrong.append(f"k_hat = {weights.k_hat:.2f}, expected at most {HEAVY}: a few samples carry the weight")
    if wrong:
        warnings.warn(
            f"importance weights that cannot be relied on: {'; '.join(wrong)}. Take more samples, or a model nearer to the target",
            stacklevel=3,
        )
    return weights


def pareto_shape(excess: Any) -> float:
    """The k of a generalised Pareto distribution, of sorted positive numbers (m,): Zhang and Stephens 2009, shrunk to 0.5 as by 10
    more of them (1507.02646, appendix C)."""
    x = torch.as_tensor(excess, dtype=torch.float64, device="cpu")
    m = len(x)
    quartile, largest = x[int(m / 4 + 0.5) - 1], x[-1]
    grid = 30 + math.isqrt(m)
    j = torch.arange(1, grid + 1, dtype=torch.float64, device=x.device)
    theta = 1 / largest + (1 - (grid / (j - 0.5)).sqrt()) / (3 * quartile)
    k = (-theta[:, None] * x).log1p().mean(1)
    profile = m * ((-theta / k).log() - k - 1)
    theta_hat = (theta * profile.softmax(0)).sum()
    shape = float((-theta_hat * x).log1p().mean())
    return (m * shape + 10 * 0.5) / (m + 10)

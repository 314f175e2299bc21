"""How probable, and how sure: log p in nats, bits per dimension, the variational bound, each with its errors.

``ode.py`` integrates the probability-flow ODE, ``bound.py`` estimates the bound, ``report.py`` says what a figure means.
"""

from scoresde.likelihood.bits import bits_per_dim
from scoresde.likelihood.bound import elbo
from scoresde.likelihood.dequantize import Dequantizer
from scoresde.likelihood.gradients import differentiable_log_prob, log_prob_gradient
from scoresde.likelihood.ode import log_prob
from scoresde.likelihood.report import compare
from scoresde.likelihood.variational import VariationalDequantizer

__all__ = [
    "Dequantizer",
    "VariationalDequantizer",
    "bits_per_dim",
    "compare",
    "differentiable_log_prob",
    "elbo",
    "log_prob",
    "log_prob_gradient",
]

"""Score models: one method, E[x_0 | x_t], under one SDE.

``NetworkModel`` is a network under a parameterization; ``ExactModel`` knows the answer, for data that are a ``GaussianMixture``;
``GaussianReference`` is the mean and covariance of the data, in whose coordinates fast solvers work.
"""

from scoresde.models import parameterization
from scoresde.models.base import ScoreModel
from scoresde.models.counting import count_evaluations
from scoresde.models.exact import ExactModel
from scoresde.models.mixture import GaussianMixture
from scoresde.models.network import NetworkModel
from scoresde.models.reference import GaussianReference

__all__ = [
    "ExactModel",
    "GaussianMixture",
    "GaussianReference",
    "NetworkModel",
    "ScoreModel",
    "count_evaluations",
    "parameterization",
]

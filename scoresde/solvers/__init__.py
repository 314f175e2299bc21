"""Solvers: one small frozen dataclass a method; the loop that runs them all is in ``loop.py``.

``base.py`` declares everything that a solver may say of itself.
"""

from scoresde.solvers.adaptive import AdaptiveODE, AdaptiveSDE
from scoresde.solvers.base import Corrector, Solver
from scoresde.solvers.churn import EDMStochastic
from scoresde.solvers.corrector import Langevin, PredictorCorrector
from scoresde.solvers.foreign import TorchDiffEq, TorchSDE
from scoresde.solvers.multistep import DEIS, AdamsBashforth, DPMSolverPP, UniPC
from scoresde.solvers.one_step import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.picard import Picard
from scoresde.solvers.recipe import Recipe
from scoresde.solvers.reference import ReferenceScheme, ReferenceSolver
from scoresde.solvers.restart import Restart
from scoresde.solvers.runge_kutta import RK4, Euler, Heun
from scoresde.solvers.stochastic_adams import SASolver, StochasticExponential

__all__ = [
    "DDIM",
    "DEIS",
    "RK4",
    "AdamsBashforth",
    "AdaptiveODE",
    "AdaptiveSDE",
    "Ancestral",
    "Corrector",
    "DPMSolverPP",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "Picard",
    "PredictorCorrector",
    "Recipe",
    "ReferenceScheme",
    "ReferenceSolver",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "Solver",
    "StochasticExponential",
    "TorchDiffEq",
    "TorchSDE",
    "UniPC",
]

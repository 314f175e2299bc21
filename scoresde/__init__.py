"""scoresde: continuous-time score SDEs. Any SDE, any solver, likelihoods with error bars, quality against compute."""

from . import data, errors, frontier, grid, loss, metrics, nets, noise, parameterization, plot
from .adapters import TorchDiffEq, TorchSDE
from .check import check_sde
from .checkpoint import load, save
from .errors import ScoreSDEError
from .exact import ExactModel, GaussianMixture
from .likelihood import bits_per_dim, log_prob
from .model import NetworkModel, ScoreModel, count_evaluations
from .sampling import sample, trajectory
from .sde import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE
from .solvers import (
    DDIM,
    RK4,
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
)
from .train import fit
from .transform import Transform

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "EDMSDE",
    "RK4",
    "SDE",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "CosineSDE",
    "Euler",
    "EulerMaruyama",
    "ExactModel",
    "GaussianMixture",
    "Heun",
    "Langevin",
    "NetworkModel",
    "PredictorCorrector",
    "RectifiedFlow",
    "ReverseDiffusion",
    "ScoreModel",
    "ScoreSDEError",
    "Solver",
    "SubVPSDE",
    "TorchDiffEq",
    "TorchSDE",
    "Transform",
    "bits_per_dim",
    "check_sde",
    "count_evaluations",
    "data",
    "errors",
    "frontier",
    "fit",
    "grid",
    "load",
    "log_prob",
    "loss",
    "metrics",
    "nets",
    "noise",
    "parameterization",
    "plot",
    "sample",
    "save",
    "trajectory",
]

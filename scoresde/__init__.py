"""scoresde: continuous-time score SDEs. Any SDE, any solver, likelihoods with error bars, quality against compute."""

from . import data, errors, features, grid, loss, metrics, nets, noise, parameterization, plot
from .adapters import TorchDiffEq, TorchSDE
from .adaptive import AdaptiveODE, AdaptiveSDE
from .check import check_sde
from .checkpoint import load, save
from .elbo import elbo
from .errors import ScoreSDEError
from .exact import ExactModel, GaussianMixture
from .frontier import Frontier, frontier
from .latents import decode, encode, interpolate, round_trip_error
from .likelihood import bits_per_dim, compare, log_prob
from .model import NetworkModel, ScoreModel, count_evaluations
from .multistep import DEIS, AdamsBashforth, DPMSolverPP, UniPC
from .parallel import Picard
from .recipe import Recipe
from .reference import GaussianReference
from .reference_solver import ReferenceScheme, ReferenceSolver
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
from .stochastic import EDMStochastic, Restart, SASolver, StochasticExponential
from .train import fit
from .transform import Transform
from .tuning import tune

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DEIS",
    "EDMSDE",
    "EDMStochastic",
    "RK4",
    "SDE",
    "VESDE",
    "VPSDE",
    "AdamsBashforth",
    "AdaptiveODE",
    "AdaptiveSDE",
    "Ancestral",
    "CosineSDE",
    "DPMSolverPP",
    "Euler",
    "EulerMaruyama",
    "ExactModel",
    "Frontier",
    "GaussianMixture",
    "GaussianReference",
    "Heun",
    "Langevin",
    "NetworkModel",
    "Picard",
    "PredictorCorrector",
    "Recipe",
    "RectifiedFlow",
    "ReferenceScheme",
    "ReferenceSolver",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "ScoreModel",
    "ScoreSDEError",
    "Solver",
    "SubVPSDE",
    "StochasticExponential",
    "TorchDiffEq",
    "TorchSDE",
    "Transform",
    "UniPC",
    "bits_per_dim",
    "check_sde",
    "compare",
    "count_evaluations",
    "data",
    "decode",
    "elbo",
    "encode",
    "errors",
    "features",
    "frontier",
    "fit",
    "grid",
    "interpolate",
    "load",
    "log_prob",
    "loss",
    "metrics",
    "nets",
    "noise",
    "parameterization",
    "plot",
    "round_trip_error",
    "sample",
    "save",
    "trajectory",
    "tune",
]

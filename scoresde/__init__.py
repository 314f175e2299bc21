"""scoresde: continuous-time score SDEs. Any SDE, any solver, likelihoods with error bars, quality against compute."""

from . import augment, data, errors, features, grid, loss, metrics, nets, noise, parameterization, plot
from .adapters import TorchDiffEq, TorchSDE
from .adaptive import AdaptiveODE, AdaptiveSDE
from .check import check_sde
from .checkpoint import load, save
from .dequantize import Dequantizer
from .elbo import elbo
from .errors import ScoreSDEError
from .exact import ExactModel, GaussianMixture
from .frontier import Frontier, frontier
from .gradients import differentiable_log_prob, fine_tune, log_prob_gradient
from .importance import importance_weights
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
from .variational import VariationalDequantizer, fit_dequantizer

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
    "Dequantizer",
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
    "VariationalDequantizer",
    "augment",
    "bits_per_dim",
    "check_sde",
    "compare",
    "count_evaluations",
    "data",
    "decode",
    "differentiable_log_prob",
    "elbo",
    "encode",
    "errors",
    "features",
    "fine_tune",
    "fit",
    "fit_dequantizer",
    "frontier",
    "grid",
    "importance_weights",
    "interpolate",
    "load",
    "log_prob",
    "log_prob_gradient",
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

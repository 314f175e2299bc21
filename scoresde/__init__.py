"""scoresde: continuous-time score SDEs. Any SDE, any solver, likelihoods with error bars, quality against compute."""

# ruff: noqa: E402
import gc
from typing import TYPE_CHECKING, Any

# what an import makes is no garbage, but to look for some among torch's objects takes a tenth of a second, more than all of the rest
_collecting = gc.isenabled()
gc.disable()

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

if _collecting:
    gc.enable()

if TYPE_CHECKING:
    from .gradients import differentiable_log_prob, fine_tune, log_prob_gradient
    from .importance import importance_weights
    from .latents import decode, encode, interpolate, round_trip_error
    from .tuning import tune
    from .variational import VariationalDequantizer, fit_dequantizer

_LATER = {  # imported at their first use: what few programs need should cost none of them time
    *("differentiable_log_prob", "fine_tune", "log_prob_gradient", "importance_weights"),
    *("decode", "encode", "interpolate", "round_trip_error", "VariationalDequantizer", "fit_dequantizer", "tune"),
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from . import gradients, importance, latents, tuning, variational

        for module in (gradients, importance, latents, tuning, variational):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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

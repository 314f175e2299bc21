"""scoresde: continuous-time score SDEs. Any SDE, any solver, likelihoods with error bars, quality against compute.

The names below are the public ones. What most programs need is imported at once, the rest at its first use: a name is looked up in
the folder that ``_HOMES`` gives for it.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from scoresde import errors, nets
from scoresde.errors import ScoreSDEError
from scoresde.models import (
    ExactModel,
    GaussianMixture,
    GaussianReference,
    NetworkModel,
    ScoreModel,
    count_evaluations,
    parameterization,
)
from scoresde.sdes import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE, check_sde, grid
from scoresde.solvers import (
    DDIM,
    DEIS,
    RK4,
    AdamsBashforth,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    Corrector,
    DPMSolverPP,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    Picard,
    PredictorCorrector,
    Recipe,
    ReferenceScheme,
    ReferenceSolver,
    Restart,
    ReverseDiffusion,
    SASolver,
    Solver,
    StochasticExponential,
    TorchDiffEq,
    TorchSDE,
    UniPC,
)

if TYPE_CHECKING:
    from scoresde import data, plot
    from scoresde.checkpoints import load, save
    from scoresde.core import noise
    from scoresde.data import Transform, augment
    from scoresde.evaluation import features, metrics
    from scoresde.evaluation.frontier import Frontier, frontier
    from scoresde.likelihood import (
        Dequantizer,
        VariationalDequantizer,
        bits_per_dim,
        compare,
        differentiable_log_prob,
        elbo,
        log_prob,
        log_prob_gradient,
    )
    from scoresde.sampling import (
        decode,
        encode,
        fit_reference,
        importance_weights,
        interpolate,
        round_trip_error,
        sample,
        trajectory,
        tune,
    )
    from scoresde.training import fine_tune, fit, fit_dequantizer, loss

_HOMES = {  # imported at the first use of a name: what few programs need should cost none of them time
    "": ("data", "plot"),
    "checkpoints": ("load", "save"),
    "core": ("noise",),
    "data": ("Transform", "augment"),
    "evaluation": ("features", "metrics"),
    "evaluation.frontier": ("Frontier", "frontier"),
    "likelihood": (
        *("Dequantizer", "VariationalDequantizer", "bits_per_dim", "compare", "differentiable_log_prob"),
        *("elbo", "log_prob", "log_prob_gradient"),
    ),
    "sampling": (
        *("decode", "encode", "fit_reference", "importance_weights", "interpolate", "round_trip_error"),
        *("sample", "trajectory", "tune"),
    ),
    "training": ("fine_tune", "fit", "fit_dequantizer", "loss"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            folder = _import_module(f"{__name__}.{home}".rstrip("."))
            value = vars(folder)[name] if name in vars(folder) else _import_module(f"{folder.__name__}.{name}")
            globals()[name] = value  # the next look is an ordinary one
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "Corrector",
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
    "fit_reference",
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

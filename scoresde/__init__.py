from . import errors, grid, metrics, noise, parameterization
from .adapters import TorchDiffEq, TorchSDE
from .errors import ScoreSDEError
from .exact import ExactModel, GaussianMixture
from .likelihood import bits_per_dim, log_prob
from .model import NetworkModel, ScoreModel, count_evaluations
from .sampling import sample, trajectory
from .sde import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE, check_sde
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
from .transform import Transform
try:
    from . import nets, data
except ImportError:
    pass
try:
    from .checkpoint import load, save
    from .train import fit
except ImportError:
    pass
try:
    from . import plot
except ImportError:
    pass

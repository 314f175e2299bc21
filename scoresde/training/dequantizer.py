"""Training of a variational dequantizer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_integer, check_positive, check_positive_int, check_shape
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_seed, seeded
from scoresde.core.streams import DEQUANTIZER_DRAW, DEQUANTIZER_EPS, DEQUANTIZER_TIME
from scoresde.core.tensors import like
from scoresde.data.dataset import Data
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError
from scoresde.likelihood.bound_parts import Ends, bound_times, expected_error, prior_term, reference_error, reference_integral
from scoresde.likelihood.variational import BinFlow, VariationalDequantizer, unit_noise
from scoresde.models.base import check_model, frozen, inference
from scoresde.models.batches import batch_size_of, bind_conditions
from scoresde.models.conditions import check_conditions, check_lengths
from scoresde.training.batches import Source
from scoresde.training.loss import stratify
from scoresde.training.optimization import MOST_STEPS, Descent, descend
from scoresde.training.schedule import Schedule

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

LAST = 1 / 16  # share of a batch for the reconstruction at t_min

WARMUP, CLIP, LOOK, BLOCKS = 20, 1.0, 16, 100  # steps, gradient norm, steps between looks for NaN, entries of the history


@checked
def fit_dequantizer(
    model: ScoreModel,
    data: Data | Tensor,
    transform: Transform | None = None,
    *,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-2,
    width: int = 32,
    depth: int = 2,
    couplings: int = 0,
    seed: int = 0,
    progress: bool = True,
    **cond: Any,
) -> VariationalDequantizer:
    """Trains a dequantizer on a model, which stays as it is: minimizes E[log q(x|k) + bound on -log p(x/alpha)] by Adam.

    A step costs one network call of a batch and its derivative with respect to x. q never sees conditions. Models that were trained
    on the middles of the bins need none, and are refused: their q is "normal", within 0.001 bits per dimension of the best at an
    adapted t_min, and what training finds is worse (see the head of this module).

    Args:
        model: a ScoreModel; with a Gaussian reference gradients are less noisy.
        data: integer levels (N, *event), or a ``Data`` of them, of which the training set is meant. Not what is measured later, or
            the figure is no longer that of unseen data, if still a bound.
        transform: of the levels; None: that of the ``Data``, or of the model.
        steps: of Adam. The learning rate rises for 20 steps and then falls by half a cosine.
        batch_size: samples a step; which ones and their noise are functions of (seed, step).
        lr: largest learning rate.
        width, depth, couplings: of the flow, see ``BinFlow``. Couplings let q follow a p that is correlated within a bin, at
            the price of one small network each.
        seed: of everything drawn, the initial weights too.
        progress: show a bar, with the objective in bits per dimension.
        **cond: for the model; a tensor with first dimension N is per sample.

    Raises:
        ConfigError: no transform, levels outside 0..K-1, arguments outside their range; a model (without a transform of its own:
            data) of ``transform.dequantization`` "normal".
        DTypeError, ShapeError: levels that are no integers or not of the model's shape.
        TrainingDiverged: the objective or its gradient is not finite.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step; a second one is immediate.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, fit_dequantizer, dtype=model.dtype)
    levels = data.train if isinstance(data, Data) else data
    transform = transform or (data.transform if isinstance(data, Data) else None) or model.transform
    if not isinstance(transform, Transform):
        raise ConfigError(f"transform = {transform!r}: tell how many levels there are, scoresde.Transform(levels=256) say")
    if (model.transform or transform).dequantization == "normal":
        raise ConfigError(
            'this model is of the middles of the bins, transform.dequantization = "normal", expected "uniform": at t_min its own noise '
            'is the best q, and a fitted one is worse; give bits_per_dim(..., dequantization="normal")'
        )
    transform.check_levels(levels)
    check_shape(levels, model.event_shape, "data")
    check_positive(lr, "lr")
    n, size, D = len(levels), batch_size_of(model, check_positive_int(batch_size, "batch_size")), math.prod(model.event_shape)
    blocks = min(check_integer(steps, "steps", 1, MOST_STEPS), BLOCKS)
    check_seed(seed)
    check_lengths(cond, n)
    with seeded(seed % (1 << 63)):
        net = BinFlow(model.event_shape, transform.levels, width, depth, couplings).to(model.device, model.dtype)
    first, last = model.sde.levels([model.sde.t_min, model.sde.t_max])
    ends = Ends(first, last, model.reference, None)
    source, done = Source(levels, model.event_shape), list[Tensor]()

    def gradient(step: int) -> Tensor:
        ids = np.arange(step * size, (step + 1) * size)
        rows = source.order(ids, seed)
        k = levels[torch.from_numpy(rows).to(levels.device)].to(model.device)
        noise = Noise(seed, ids, model.event_shape, model.dtype, model.device)
        u, log_q = unit_noise(net, k, noise.normal(DEQUANTIZER_DRAW))
        x = transform.low + (k + u) * transform.bin_width
        share = stratify(Noise(seed, ids, (1,), torch.float64).uniform(DEQUANTIZER_TIME)[:, 0])
        bound = bound_by_one_call(bind_conditions(model, cond, rows, n, model.device), x, ends, noise, share)
        bits = (log_q - transform.log_det(D) + bound).mean() / (D * math.log(2))
        bits.backward()
        done.append(bits.detach().double())
        return bits.detach()

    def between(step: int) -> str:
        return f"{float(torch.stack(done[-LOOK:]).mean()):.4f} bits/dim" if step % LOOK == 0 or step == steps else ""

    def diverged(where: str) -> str:
        return (
            f"the objective of the dequantizer or its gradient is not finite at {where}: try a smaller lr than {lr:g}, and look at the "
            "model on its data"
        )

    adam, schedule = torch.optim.Adam(net.parameters(), lr=lr), Schedule(lr, steps, WARMUP)
    with inference(model, grad=True), frozen(model):
        descend(Descent(adam, schedule, diverged, clip=CLIP, every=LOOK), gradient, between, progress=progress, what="dequantizer")
    history = tuple(float(part.mean()) for part in torch.stack(done).cpu().tensor_split(blocks))
    return VariationalDequantizer(transform, net, history)


def bound_by_one_call(model: ScoreModel, x: Tensor, ends: Ends, noise: Noise, u: Tensor) -> Tensor:
    """An unbiased estimate of the bound of ``elbo`` on -log p(x), (B,) in nats, with gradients to x, by one network call.

    Args:
        u: (B,) in [0, 1), stratified: below ``LAST`` it is the reconstruction at t_min that is estimated, and the time t else.
    """
    at_end = u < LAST
    t, slope = bound_times(model.sde, ((u - LAST) / (1 - LAST)).clamp(min=0), ends)
    t = torch.where(at_end, float(ends.first), t).to(x.device)
    weight = torch.where(at_end, 1 / LAST, slope / (1 - LAST)).to(x.device)
    level: Any = model.sde.level(t, x)
    eps, s = noise.normal(DEQUANTIZER_EPS), level.s.flatten()
    guess = model.predict(like(level.alpha, x) * x + like(level.sigma, x) * eps, t)[1]
    error = (eps.double() - guess.double()).square().flatten(1).sum(1) - reference_error(x, eps, s, ends.reference)
    s_0 = ends.first.s
    reconstruction = 0.5 * (x[0].numel() * math.log(2 * math.pi * s_0**2) + expected_error(x, s_0, ends.reference))
    return prior_term(x, ends) + reference_integral(x, ends) + reconstruction + 0.5 * weight * error

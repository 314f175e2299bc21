r"""The variational bound on log p, of the generative process that runs the reverse SDE and then draws x from N(D(x_t), s^2 I) at t_min.

.. math:: -\log p(x) \le \mathrm{KL}(q(x_T|x)\,\|\,\mathrm{prior}) + \tfrac12 \int E|\varepsilon - \hat\varepsilon(x_t, t)|^2\, d\Lambda
          + E[-\log N(x; D, s^2 I)]_{t_\mathrm{min}}

with Lambda the log-SNR, s = sigma/alpha and D = E[x_0|x_t] (2107.00630, eq. 11-15; 2101.09258). It is the likelihood of the SDE, an upper
bound on -log p that holds for any network, and equal to -log p of the data for an exact one.

The integral is that of the Gaussian reference, which is known, plus that of the difference, which is estimated:

.. math:: \tfrac12 \int E|\varepsilon - \varepsilon_\mathrm{ref}|^2 d\Lambda
          = \tfrac12 \sum_i \Big[\log\frac{u}{c_i + u} + \frac{c_i - r_i^2}{c_i + u}\Big]_{u = s^2(t_\mathrm{min})}^{s^2(t_\mathrm{max})},
          \qquad r = U^T (x - m)

The difference fades at both ends, and times are stratified, uniform in the w of ``clock.Clock``. Without a reference it is
c = infinity, that is eps_ref = 0, and times are uniform in the log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer
from scoresde.core.digest import of_tensors
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_ids, check_seed
from scoresde.core.progress import bar
from scoresde.errors import ConfigError
from scoresde.likelihood.bound_parts import Ends, diffusion_term, last_term, prior_term
from scoresde.likelihood.budget import mean, mean_error, root_sum
from scoresde.likelihood.dequantize import as_levels, check_same_transform, dequantization_of
from scoresde.likelihood.method import check_data_scale
from scoresde.likelihood.report import settings_of
from scoresde.likelihood.results import Elbo
from scoresde.models.base import check_model, check_same_kind, inference
from scoresde.models.batches import batch_size_of, in_batches
from scoresde.models.conditions import check_conditions
from scoresde.models.counting import count_evaluations
from scoresde.solvers.reference import model_reference

if TYPE_CHECKING:
    from scoresde.data.transform import Transform
    from scoresde.models.base import ScoreModel


@checked
def elbo(
    model: ScoreModel,
    data: Tensor,
    transform: Transform | None = None,
    *,
    draws: int = 16,
    prior: str | None = None,
    reconstruction: str | None = None,
    t_min: float | None = None,
    seed: int = 0,
    ids: Iterable[int] | Tensor | None = None,
    batch_size: int | None = None,
    check_scale: bool = True,
    progress: bool = False,
    **cond: Any,
) -> Elbo:
    """The variational bound of integer levels (bits per dimension, with their ``transform``) or of floats (nats).

    Takes draws + 1 network calls a sample, no derivatives.

    Args:
        model: a ScoreModel.
        data: integers (B, *event_shape) in 0..K-1, for "density" dequantized once, by the uniform noise of ``bits_per_dim`` of the same
            seed; or model-space floats.
        transform: the data's ``Transform``, for integers; None: the model's own.
        draws: times and noises for each sample, one time in each of as many equal parts.
        prior: None for N(0, prior_std^2 I) at t_max; "reference" for the moments of the model's reference there.
        reconstruction: "density" is N(x; D, s^2 I) at the dequantized x; "levels" the probability that N(D, s^2 I) gives to the bin of
            each level, with x in its middle: a bound on discrete data without dequantization, for an s of about a third of a bin or
            less. None is what the model was trained for: "levels" for integers and a ``dequantization`` of "normal" of the model's
            transform (of the one given, for a model without), else "density"; ``settings`` tell which.
        t_min: where the process ends; None: the SDE's t_min.
        seed, ids: the draws of sample i are a function of (seed, ids[i]); ids None is 0..B-1.
        batch_size, check_scale, progress, **cond: as for ``log_prob``.

    Raises:
        ConfigError: integers without a transform, a wrong argument.
        DTypeError, ShapeError, NonFiniteError, DeviceError, ScaleError: wrong data.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, elbo, dtype=model.dtype)
    sde = model.sde
    data = as_levels(data)
    if transform is None and isinstance(data, Tensor) and not data.is_floating_point():
        transform = model.transform
    if transform is not None and check_scale:
        check_same_transform(model, transform)
    if transform is None and isinstance(data, Tensor) and not data.is_floating_point():
        raise ConfigError("integer levels need their transform, scoresde.Transform(levels=256) for 8-bit images; floats have none")
    id_array = check_ids(ids, len(data))
    check_seed(seed)
    check_integer(draws, "draws", 1, 1_000_000)
    if reconstruction is None:
        trained = dequantization_of(model.transform or transform)
        reconstruction = "levels" if trained == "normal" and transform is not None else "density"
    if reconstruction not in ("density", "levels") or (reconstruction == "levels" and transform is None):
        raise ConfigError(f"reconstruction = {reconstruction!r}, expected None, 'density', or 'levels' for integers with their transform")
    if prior not in (None, "reference"):
        raise ConfigError(f"prior = {prior!r}, expected None or 'reference'")
    if transform is None:
        x = data
    elif reconstruction == "levels":
        x = transform.center(data, model.dtype).to(model.device)
    else:
        x = transform.dequantize(data, seed, id_array, 0, model.dtype, model.device)
    check_data(x, model.event_shape)
    check_same_kind(model, x)
    if check_scale:
        check_data_scale(x, model.transform)
    first, last = sde.levels([sde.t_min if t_min is None else t_min, sde.t_max])
    if not sde.t_min <= first < last:
        raise ConfigError(f"t_min = {t_min}, expected from {sde.t_min:g} to below {sde.t_max:g}")
    ends = Ends(first, last, model.reference, model_reference(model) if prior == "reference" else None)
    size = batch_size_of(model, batch_size)
    n, D = len(x), x[0].numel()
    parts: list[Tensor] = []
    with inference(model), count_evaluations(model) as calls, bar(progress, -(-n // size), "bound") as advance:
        for batch in in_batches(model, cond, n, size, x.device):
            noise = Noise(seed, id_array[batch.rows], model.event_shape, x.dtype, x.device)
            bound, part = batch.model, x[batch.place]
            diffusion, error = diffusion_term(bound, part, ends, noise, draws)
            inside = None if reconstruction == "density" or transform is None else transform
            parts.append(torch.stack([prior_term(part, ends), diffusion, last_term(bound, part, ends, noise, inside), error]))
            advance()
    prior_part, diffusion, last_part, error = torch.cat(parts, 1).cpu()
    nats = prior_part + diffusion + last_part
    discrete = reconstruction == "levels"
    bits = 1 / (D * math.log(2))
    offset = 0.0 if transform is None or discrete else transform.bits_offset
    per_sample = -nats if transform is None else bits * nats + offset
    settings = settings_of(model, x) | {
        "bound": "variational",
        "draws": draws,
        "prior": "standard" if prior is None else prior,
        "reconstruction": reconstruction,
        "t_min": float(first),
        "t_max": sde.t_max,
        "seed": seed,
        "nfe": calls.a_sample(n),
    }
    if transform is not None:
        settings |= {"dequantization": "none" if discrete else "uniform", "levels": transform.levels, "data": of_tensors([data])}
    return Elbo(
        mean(per_sample),
        mean_error(per_sample),
        per_sample,
        mean(prior_part),
        mean(diffusion),
        mean(last_part),
        (1 if transform is None else bits) * root_sum(error),
        "nats" if transform is None else "bits/dim",
        calls.a_sample(n),
        settings,
    )

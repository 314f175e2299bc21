"""Densities and vector fields in the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoresde.core.checks import check_data, check_integer, check_positive, check_positive_int, theirs
from scoresde.core.doors import checked
from scoresde.errors import ConfigError, ShapeError
from scoresde.likelihood.ode import log_prob
from scoresde.models.base import ScoreModel, inference
from scoresde.models.exact import KnowsDensity
from scoresde.plot import figures
from scoresde.plot.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scoresde.plot.figures import PathLike


@checked
def vector_field(
    model: ScoreModel,
    t: float | Sequence[float],
    limits: Sequence[float],
    path: PathLike | None = None,
    *,
    field: str = "score",
    arrows: int = 22,
    resolution: int = 120,
) -> Figure:
    """Score or velocity of a model of the plane at a time, or at several, as arrows; over log p_t where it is known exactly.

    The longest twentieth of the arrows is cut to the length of the next; the key gives the scale. The velocity is dx/dt, towards
    noise: sampling runs against it.

    Args:
        model: with ``event_shape`` (2,).
        t: time, or times (one panel each).
        limits: (low, high) of both axes, or (left, right, bottom, top).
        path: file to write.
        field: "score" or "velocity".
        arrows: arrows a row.
        resolution: points a row for the density.

    Raises:
        ShapeError: a model that is not of the plane.
        ConfigError: an unknown field, or limits that are no range.
        TimeRangeError: t outside [t_min, t_max].
    """
    figures.check_plane(model)
    if field not in ("score", "velocity"):
        raise ConfigError(f"field = {field!r}, expected 'score' or 'velocity'")
    times = [float(t)] if isinstance(t, (int, float)) or (isinstance(t, Tensor) and t.ndim == 0) else [float(s) for s in t]
    if not times:
        raise ConfigError(f"t = {t!r}, expected a time, or times: one at least")
    check_integer(arrows, "arrows", 1, 1000)
    box = figures.box_of(limits)
    figure, axes = figures.panels(1, len(times), 3.8)
    if isinstance(model, KnowsDensity):
        points, shape = figures.mesh_points(model, box, resolution)
        maps = [model.log_prob(points, s).view(shape).cpu().double() for s in times]
        figures.density_map(figure, axes[0].tolist(), maps, box, "$p_t$", 10.0)
    for ax, s in zip(axes[0], times, strict=True):
        points, _ = figures.mesh_points(model, box, check_positive_int(arrows, "arrows"))
        with inference(model):
            v = getattr(model, field)(points, s).cpu().double()
        length = v.norm(dim=1, keepdim=True)
        longest = max(float(length.quantile(0.95)), 1e-300)
        v = v * (longest / length.clamp_min(longest))
        p = points.cpu()
        cell = (box[1] - box[0]) / arrows
        scale = longest / (1.3 * cell)
        quiver = ax.quiver(*p.T, *v.T, angles="xy", scale_units="x", scale=scale, width=0.004, color="#222222")
        unit = "1/length" if field == "score" else "length/time"
        ax.quiverkey(quiver, 0.86, 1.045, longest, f"{longest:.2g} {unit}", labelpos="W", fontproperties={"size": 8})
        figures.set_axes(ax, box, f"t = {s:.3g}")
        ax.title.set_horizontalalignment("left")
        ax.title.set_position((0.0, 1.0))
    figure.suptitle({"score": r"score $\nabla_x \log p_t(x)$", "velocity": r"velocity $dx/dt$ (towards noise)"}[field], fontsize=11)
    return figures.save(figure, path)


@checked
def density(
    model: ScoreModel | Callable[[Tensor], Tensor],
    limits: Sequence[float],
    path: PathLike | None = None,
    *,
    t: float | None = None,
    points: Tensor | None = None,
    resolution: int = 80,
    floor: float = 10.0,
    **arguments: Any,
) -> Figure:
    """log p in nats on a grid of the plane.

    Args:
        model: an exact model: its log p_t; another model: ``scoresde.log_prob`` by the probability-flow ODE with the exact trace
            (resolution^2 solves, seconds for a small network); or a function x (B, 2) -> log p (B,).
        limits: (low, high) of both axes, or (left, right, bottom, top).
        path: file to write.
        t: time of an exact model's density; None: t_min, which is also that of ``log_prob``.
        points: samples (N, 2) to draw over it.
        resolution: points a row.
        floor: values more than this below the maximum are shown as this, in nats.
        **arguments: for ``log_prob`` (solver, steps, divergence, ...).

    Raises:
        ShapeError: a model that is not of the plane.
        ConfigError: limits that are no range, t for a model whose density at t is not known.
    """
    box = figures.box_of(limits)
    check_positive(floor, "floor")
    if isinstance(model, ScoreModel):
        figures.check_plane(model)
        x, shape = figures.mesh_points(model, box, resolution)
        if isinstance(model, KnowsDensity):
            values = model.log_prob(x, model.sde.t_min if t is None else t)
        elif t is None:
            values = log_prob(model, x, **{"divergence": "exact", "batch_size": len(x), **arguments}).log_prob
        else:
            raise ConfigError(f"t = {t}, but only an exact model knows its density at any time: leave t out (it is t_min)")
    else:
        x, shape = figures.mesh_points(None, box, resolution)
        with theirs("your function of the plane"):
            values = model(x)
        if not isinstance(values, Tensor) or values.numel() != len(x):
            raise ShapeError(f"your function of the plane gave a {type(values).__name__}, expected log p, a tensor ({len(x)},)")
    log_p = values.detach().cpu().double().view(shape)
    figure, axes = figures.panels(1, 1, 4.4, 1.05)
    ax = axes[0][0]
    figures.density_map(figure, [ax], [log_p], box, "p", floor)
    if points is not None:
        p = check_data(points.float(), (2,), "points").cpu().numpy()
        ax.scatter(p[:, 0], p[:, 1], s=4, color=COLORS[1], edgecolors="none", alpha=0.7)
    figures.set_axes(ax, box, "")
    return figures.save(figure, path)

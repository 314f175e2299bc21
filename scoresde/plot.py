"""Pictures: each function returns a matplotlib ``Figure`` and writes it as PNG (or PDF, SVG) if ``path`` is given.

Figures are made with matplotlib's objects, never with pyplot: no window, no backend, no state is left behind. In a notebook the
last line of a cell shows the figure. Colours are those of Okabe and Ito, which colour-blind people can tell apart, and lines
have markers of their own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import _figures as figures
from ._curves import frontier as frontier  # a public name of this module
from ._curves import spread as spread
from ._figures import COLORS, DPI, PathLike
from ._tensor import check_data, check_positive_int
from .errors import ConfigError, DataError, ShapeError
from .likelihood import log_prob
from .model import ScoreModel, inference
from .transform import Transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def samples(
    x: Tensor | Mapping[str, Tensor],
    transform: Transform | None = None,
    columns: int | None = None,
    path: PathLike | None = None,
) -> Figure:
    """Images as a grid, points of the plane as a scatter plot.

    Args:
        x: images (N, C, H, W) with C = 1 or 3, or (N, H, W); or points (N, 2). Integers are levels, floats are in model space.
            Several sets in a dict {title: x} become panels side by side.
        transform: says which values are black and white; None: the smallest and the largest.
        columns: images a row; None: about as many as rows.
        path: file to write.

    Raises:
        ShapeError: neither images nor points, or no sample.
        NonFiniteError: NaN or infinity.
        ConfigError: columns below 1.
    """
    panels = dict(x) if isinstance(x, Mapping) else {"": x}
    if not panels:
        raise ShapeError("x is an empty dict: give at least one set of samples")
    if columns is not None:
        check_positive_int(columns, "columns")
    points = [figures.is_points(v) for v in panels.values()]
    if any(points) and not all(points):
        raise ShapeError("x mixes points (N, 2) with images: draw them in figures of their own")
    if points[0]:
        figure, axes = figures.panels(1, len(panels), 3.6)
        clouds = [check_data(v.float()).detach().cpu().numpy() for v in panels.values()]
        limits = figures.limits_of(np.concatenate(clouds))
        for ax, title, cloud in zip(axes[0], panels, clouds, strict=True):
            figures.scatter(ax, cloud, limits, title)
        return figures.save(figure, path)
    tiles = []
    for v in panels.values():
        images = figures.to_images(v, transform)
        tiles.append(figures.tile(images, columns or math.ceil(math.sqrt(len(images)))))
    scale = max(1, round(520 / max(tile.shape[0] for tile in tiles)))
    tiles = [tile.repeat(scale, 0).repeat(scale, 1) for tile in tiles]  # whole pixels: crisp at any size
    top, gap = (28 if any(panels) else 0), 24
    width, height = sum(t.shape[1] for t in tiles) + gap * (len(tiles) - 1), max(t.shape[0] for t in tiles) + top
    figure = figures.new_figure(width / DPI, height / DPI, constrained=False)
    left = 0
    for title, tile in zip(panels, tiles, strict=True):
        h, w = tile.shape[:2]
        ax = figure.add_axes((left / width, 1 - (h + top) / height, w / width, h / height))
        ax.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        ax.axis("off")
        ax.set_title(title, fontsize=11, pad=2)
        left += w + gap
    return figures.save(figure, path)


def trajectory(
    steps: Iterable[tuple[int, float, Tensor, Tensor]],
    path: PathLike | None = None,
    *,
    transform: Transform | None = None,
    rows: int = 4,
    columns: int = 9,
) -> Figure:
    """What ``scoresde.trajectory`` yields: the state x_t and the denoised estimate E[x_0 | x_t] at some of its times.

    Images: one row a sample, one column a time, for both. Points of the plane: one panel a time. The columns are evenly spaced
    over the steps, with the first and the last. States that are larger than the samples at the end (variance exploding) are
    shown scaled to their size.

    Args:
        steps: tuples (step, t, x, x0).
        path: file to write.
        transform: as for ``samples``.
        rows: samples to show (images only).
        columns: times to show.

    Raises:
        ShapeError: neither images nor points, or no steps.
        ConfigError: rows or columns below 1.
    """
    check_positive_int(rows, "rows")
    check_positive_int(columns, "columns")
    states = [(f"t = {float(t):.3g}\nstep {i}", x.detach().cpu().float(), x0.detach().cpu().float()) for i, t, x, x0 in steps]
    if not states:
        raise ShapeError("steps is empty: give what scoresde.trajectory(model, n, ...) yields")
    pick = np.unique(np.linspace(0, len(states) - 1, min(columns, len(states))).round().astype(int))
    labels, *both = zip(*(states[i] for i in pick), strict=True)
    if figures.is_points(both[0][-1]):
        return _point_trajectory(labels, both, path)
    size = max(float(both[0][-1].square().mean().sqrt()), 1e-12)
    low, high = (transform.low, transform.high) if transform else map(float, torch.aminmax(both[1][-1]))
    blocks = []
    for column in both:
        shown = [figures.to_images(x[:rows] / max(1.0, float(x.square().mean().sqrt()) / size), None, low, high) for x in column]
        stacked = np.stack(shown, 1)  # (rows, columns, ...)
        blocks.append(figures.tile(stacked.reshape(-1, *stacked.shape[2:]), len(labels)))
    h, w = blocks[0].shape[:2]
    scale = max(1, round(110 * len(labels) / w))
    blocks = [b.repeat(scale, 0).repeat(scale, 1) for b in blocks]
    width, height, left, top, gap = w * scale, h * scale, 34, 44, 14
    total = (width + left + 8, 2 * height + top + gap + 4)
    figure = figures.new_figure(total[0] / DPI, total[1] / DPI, constrained=False)
    for k, (block, name) in enumerate(zip(blocks, ("state $x_t$", "denoised $E[x_0 | x_t]$"), strict=True)):
        bottom = 1 - ((k + 1) * height + top + k * gap) / total[1]
        ax = figure.add_axes((left / total[0], bottom, width / total[0], height / total[1]))
        ax.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        ax.set_xticks([(j + 0.5) * width / len(labels) for j in range(len(labels))] if k == 0 else [])
        ax.set_xticklabels(labels if k == 0 else [], fontsize=9)
        ax.xaxis.tick_top()
        ax.set_yticks([])
        ax.set_ylabel(name, fontsize=11)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figures.save(figure, path)


def _point_trajectory(labels: Sequence[str], both: Sequence[Sequence[Tensor]], path: PathLike | None) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = figures.panels(2, len(labels), 1.9)
    own = [figures.limits_of(x.numpy()) for x in both[0]]
    limits = figures.limits_of(torch.cat([both[0][-1], both[1][-1]]).numpy())
    shared = max(bounds[1] for bounds in own) < 4 * limits[1]  # else each panel has its scale: variance exploding
    if shared:
        own = [max(own, key=lambda bounds: bounds[1])] * len(own)
    for i, column in enumerate(both):
        for j, values in enumerate(column):
            ax = axes[i][j]
            figures.scatter(ax, values.numpy(), limits if i else own[j], labels[j] if i == 0 else "")
            ax.set_xlabel("")
            ax.set_ylabel("" if j else ("state $x_t$", "denoised $E[x_0|x_t]$")[i])
            ax.tick_params(labelsize=7)
            ax.title.set_fontsize(9)
            ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
            ax.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))
            if j and (shared or i == 1):
                ax.set_yticklabels([])
    return figures.save(figure, path)


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
    box = figures.box_of(limits)
    figure, axes = figures.panels(1, len(times), 3.8)
    exact = getattr(model, "log_prob", None)
    if callable(exact):
        points, shape = figures.mesh_points(model, box, resolution)
        maps = [exact(points, s).view(shape).cpu().double() for s in times]
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
    if isinstance(model, ScoreModel):
        figures.check_plane(model)
        x, shape = figures.mesh_points(model, box, resolution)
        exact = getattr(model, "log_prob", None)
        if callable(exact):
            values = exact(x, model.sde.t_min if t is None else t)
        elif t is None:
            values = log_prob(model, x, **{"divergence": "exact", "batch_size": len(x), **arguments}).log_prob
        else:
            raise ConfigError(f"t = {t}, but only an exact model knows its density at any time: leave t out (it is t_min)")
    else:
        x, shape = figures.mesh_points(None, box, resolution)
        values = model(x)
    log_p = values.detach().cpu().double().view(shape)
    figure, axes = figures.panels(1, 1, 4.4, 1.05)
    ax = axes[0][0]
    figures.density_map(figure, [ax], [log_p], box, "p", floor)
    if points is not None:
        p = check_data(points.float(), (2,), "points").cpu().numpy()
        ax.scatter(p[:, 0], p[:, 1], s=4, color=COLORS[1], edgecolors="none", alpha=0.7)
    figures.set_axes(ax, box, "")
    return figures.save(figure, path)


def loss(history: Any, path: PathLike | None = None) -> Figure:
    """Training and validation loss against the step, on logarithmic axes.

    Args:
        history: the ``History`` that ``fit`` returned, the ``log.jsonl`` that it wrote, or the folder that it is in.
        path: file to write.

    Raises:
        DataError: no such file, a line that is not JSON, or no losses in it.
    """
    if isinstance(history, (str, os.PathLike)):
        training, validation = figures.read_log(Path(history))
    else:
        training = list(zip(history.steps, history.loss, strict=True))
        validation = list(zip(history.validation_steps, history.validation, strict=True))
    if not training and not validation:
        raise DataError("the history holds no losses: was `log_every` larger than the number of steps?")
    figure, axes = figures.panels(1, 1, 4.2, 1.5)
    ax = axes[0][0]
    for rows, label, color, marker in ((training, "training", COLORS[0], "o"), (validation, "validation", COLORS[1], "s")):
        rows = [(step, value) for step, value in rows if step > 0 and value > 0]  # what logarithmic axes can show
        if not rows:
            continue
        step, value = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        many = len(rows) > 60
        ax.plot(step, value, color=color, alpha=0.3 if many else 1, marker="" if many else marker, markersize=4, linewidth=1.2)
        if many:
            # over steps within 15 % either side: a window of constant length would lag behind on a logarithmic axis
            first, last = np.searchsorted(step, step / 1.15), np.searchsorted(step, step * 1.15, side="right")
            total = np.concatenate([[0.0], value.cumsum()])
            ax.plot(step, (total[last] - total[first]) / (last - first), color=color, linewidth=2)
        label += f", last {value[-1]:.4g}" + (" (thick: running mean)" if many else "")
        ax.plot([], [], color=color, marker=marker, markersize=4, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("training step")
    ax.set_ylabel("denoising loss (per dimension, weighted over time)")
    figures.plain_ticks(ax)
    ax.grid(True, which="both", color="#ececec", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figures.save(figure, path)

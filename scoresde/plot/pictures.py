"""Pictures: each function returns a matplotlib ``Figure`` and writes it as PNG (or PDF, SVG) if ``path`` is given.

Figures are made with matplotlib's objects, never with pyplot: no window, no backend, no state is left behind. In a notebook the
last line of a cell shows the figure. Colours are those of Okabe and Ito, which colour-blind people can tell apart, and lines
have markers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_positive_int
from scoresde.core.doors import checked
from scoresde.errors import ShapeError
from scoresde.plot import figures
from scoresde.plot.figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scoresde.data.transform import Transform
    from scoresde.plot.figures import PathLike


@checked
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
        transform: of the data: floats are quantized to its levels, so that samples are drawn as real images are, from level 0 in
            black to the last one in white; None: as they are, from the smallest value to the largest.
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


@checked
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
    steps = list(steps)
    if not all(isinstance(item, tuple) and len(item) == 4 for item in steps):
        raise ShapeError("steps hold no tuples (step, t, x, x0): give what scoresde.trajectory(model, n, ...) yields")
    states = [(f"t = {float(t):.3g}\nstep {i}", x.detach().cpu().float(), x0.detach().cpu().float()) for i, t, x, x0 in steps]
    if not states:
        raise ShapeError("steps is empty: give what scoresde.trajectory(model, n, ...) yields")
    pick = np.unique(np.linspace(0, len(states) - 1, min(columns, len(states))).round().astype(int))
    labels, *both = zip(*(states[i] for i in pick), strict=True)
    if figures.is_points(both[0][-1]):
        return _point_trajectory(labels, both, path)
    size = max(float(both[0][-1].square().mean().sqrt()), 1e-12)
    low, high = (float(v) for v in torch.aminmax(both[1][-1]))
    blocks = []
    for column in both:
        shown = [figures.to_images(x[:rows] / max(1.0, float(x.square().mean().sqrt()) / size), transform, low, high) for x in column]
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

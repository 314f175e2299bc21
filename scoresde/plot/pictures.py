"""Pictures: each function returns a matplotlib ``Figure`` and writes it as PNG (or PDF, SVG) if ``path`` is given.

Figures are made with matplotlib's objects, never with pyplot: no window, no backend, no state is left behind. In a notebook the
last line of a cell shows the figure. Colours are those of Okabe and Ito, which colour-blind people can tell apart, and lines
have markers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_positive_int
from scoresde.core.doors import checked
from scoresde.errors import ShapeError
from scoresde.plot import figures, grids, kinds
from scoresde.plot.figures import COLORS, DPI

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
    *,
    labels: Any = None,
) -> Figure:
    """Samples as what they are: images as a grid, signals as lines, points and sets of points as dots, volumes as slices.

    Args:
        x: images (N, C, H, W) with C = 1 or 3, or gray ones (N, H, W), H and W at least 4 and not longer than four times the other;
            points of the plane (N, 2); vectors (N, D), a line over the index each (D = 1: a histogram); signals (N, C, L) with C <= L,
            a panel each with one line a channel; sets of points (N, P, 2) or (N, P, 3), P > 3, a panel each, the third coordinate as
            colour; volumes (N, C, D, H, W), C = 1 or 3, a row of slices along D each. Integers are levels, floats are in model space.
            Several sets in a dict {title: x} become panels side by side. No more than the first 400 images, 64 signals or sets of
            points, 1,000 vectors and 16 volumes are drawn.
        transform: of the data: floats are quantized to its levels, so that samples are drawn as real images are, from level 0 in
            black to the last one in white; None: as they are, from the smallest value to the largest.
        columns: images or panels a row; None: about as many as rows, or ten with labels.
        path: file to write.
        labels: one a sample, numbers or names; for several sets in a dict of the same titles. Images and volumes are sorted by them, in
            rows that they are written beside; panels have them as titles; points and vectors have a colour each.

    Raises:
        ShapeError: samples of another shape, or none; channels that are last (the message has the transpose); labels not one a sample.
        NonFiniteError: NaN or infinity.
        ConfigError: columns below 1.
    """
    sets = dict(x) if isinstance(x, Mapping) else {"": x}
    if not sets:
        raise ShapeError("x is an empty dict: give at least one set of samples")
    if columns is not None:
        check_positive_int(columns, "columns")
    found = list(dict.fromkeys(kinds.kind_of_batch(v) for v in sets.values()))
    if len(found) > 1:
        raise ShapeError(f"x mixes {' with '.join(found)}: draw them in figures of their own")
    kind, texts = found[0], kinds.labels_of(labels, sets)
    if kind == kinds.PLANE:
        return figures.save(_plane(sets, texts), path)
    if kind in (kinds.IMAGES, kinds.VOLUMES):
        return figures.save(_sheet(sets, texts, transform, columns, kind), path)
    values = {name: kinds.values_of(v, transform) for name, v in sets.items()}
    word = "value" if transform is None else "level"
    if kind == kinds.VECTORS:
        return figures.save(grids.vectors(values, texts, word), path)
    axis = ("index", word) if kind == kinds.SIGNALS else ("$x_1$", "$x_2$")
    return figures.save(grids.small_panels(values, texts, columns, kind, axis), path)


def _plane(sets: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]]) -> Figure:
    figure, axes = figures.panels(1, len(sets), 3.6)
    clouds = [check_data(v.float()).detach().cpu().numpy() for v in sets.values()]
    limits = figures.limits_of(np.concatenate(clouds))
    colors: dict[str, str] = {}
    for ax, name, cloud in zip(axes[0], sets, clouds, strict=True):
        groups = kinds.by_label(labels[name]) if labels else {"": list(range(len(cloud)))}
        for text, members in groups.items():
            color = colors.setdefault(text, COLORS[len(colors) % len(COLORS)])
            figures.scatter(ax, cloud[members], limits, name, color, label=text)
        if any(groups):
            ax.legend(frameon=False, fontsize=8, title="label", markerscale=2)
    return figure


def _sheet(
    sets: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]], transform: Transform | None, columns: int | None, kind: str
) -> Figure:
    """Images, or a row of slices for each volume, a sheet a set; rows have their label at the left."""
    sheets, marks = [], []
    for name, v in sets.items():
        v, texts = v[: kinds.MOST[kind]], labels.get(name, [])[: kinds.MOST[kind]]
        slices = kinds.slices_of(v) if kind == kinds.VOLUMES else None
        images = figures.to_images(v if slices is None else slices.flatten(0, 1), transform)
        wide = columns or (min(10, max(map(len, kinds.by_label(texts).values()))) if texts else math.ceil(math.sqrt(len(images))))
        if slices is not None:
            wide = slices.shape[1]
        order, rows = _rows_of(texts, 1 if slices is not None else wide) if texts else (list(range(len(v))), {})
        if slices is not None:
            order = [i * wide + j for i in order for j in range(wide)]
        blank = np.ones((1, *images.shape[1:]), dtype=images.dtype)  # of which the empty places of a row are: -1, the last
        sheets.append(figures.tile(np.concatenate([images, blank])[order], wide))
        marks.append((rows, images.shape[1] + 1))
    scale = max(1, round(520 / max(sheet.shape[0] for sheet in sheets)))
    sheets = [sheet.repeat(scale, 0).repeat(scale, 1) for sheet in sheets]  # whole pixels: crisp at any size
    longest = max((len(text) for rows, _ in marks for text in rows.values()), default=0)
    top, gap, margin = (28 if any(sets) else 0), 24, (10 + 9 * longest if longest else 0)
    width, height = sum(t.shape[1] + margin for t in sheets) + gap * (len(sheets) - 1), max(t.shape[0] for t in sheets) + top
    figure = figures.new_figure(width / DPI, height / DPI, constrained=False)
    left = margin
    for name, sheet, (rows, pitch) in zip(sets, sheets, marks, strict=True):
        h, w = sheet.shape[:2]
        ax = figure.add_axes((left / width, 1 - (h + top) / height, w / width, h / height))
        ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        if rows:
            ax.set_yticks([(row + 0.5) * pitch * scale for row in rows], list(rows.values()), fontsize=9)
            ax.tick_params(length=0, pad=3)
            ax.set_xticks([])
            ax.spines[:].set_visible(False)
        else:
            ax.axis("off")
        ax.set_title(name, fontsize=11, pad=2)
        left += w + gap + margin
    return figure


def _rows_of(labels: Sequence[str], columns: int) -> tuple[list[int], dict[int, str]]:
    """The order of samples in rows of one label each, -1 for an empty place, and the label that is written beside a row."""
    order: list[int] = []
    rows: dict[int, str] = {}
    for text, members in kinds.by_label(labels).items():
        rows[len(order) // columns] = text
        order += members + [-1] * (-len(members) % columns)
    return order, rows


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

    Images, and the middle slice of volumes: one row a sample, one column a time, for both. Points of the plane: one panel a time.
    Vectors, signals and sets of points: one panel a time with the first samples, a colour each. The columns are evenly spaced
    over the steps, with the first and the last. States that are larger than the samples at the end (variance exploding) are
    shown scaled to their size.

    Args:
        steps: tuples (step, t, x, x0).
        path: file to write.
        transform: as for ``samples``.
        rows: samples to show (all points of the plane are shown).
        columns: times to show.

    Raises:
        ShapeError: samples that ``samples`` does not draw either, or no steps.
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
    kind = kinds.kind_of_batch(both[0][-1])
    if kind == kinds.PLANE:
        return _point_trajectory(labels, both, path)
    if kind == kinds.VOLUMES:
        both = [tuple(x[:, :, x.shape[2] // 2] for x in column) for column in both]
    elif kind != kinds.IMAGES:
        return _line_trajectory(labels, both, kind, rows, path)
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


def _line_trajectory(labels: Sequence[str], both: Sequence[Sequence[Tensor]], kind: str, rows: int, path: PathLike | None) -> Figure:
    figure, axes = figures.panels(2, len(labels), 1.6, 1.2)
    for i, column in enumerate(both):
        for j, x in enumerate(column):
            ax = axes[i][j]
            for k, values in enumerate(check_data(x[:rows]).numpy()):
                color = COLORS[k % len(COLORS)]
                if kind == kinds.SETS:
                    ax.scatter(values[:, 0], values[:, 1], s=float(np.clip(400 / len(values), 0.8, 10)), color=color, edgecolors="none")
                else:
                    ax.plot(np.atleast_2d(values).T, color=color, linewidth=0.9)
            # each panel has its own scale: variance exploding
            grids.dress(ax, ("$x_1$" if kind == kinds.SETS else "index") if i else "", " ")
            ax.set_ylabel("" if j else ("state $x_t$", "denoised $E[x_0|x_t]$")[i], fontsize=9)
            ax.set_title("" if i else labels[j], fontsize=9)
    return figures.save(figure, path)

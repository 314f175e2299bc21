"""Grids of small panels, one a sample: signals as lines, sets of points as dots; and vectors as lines over their index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scoresde.plot import figures, kinds
from scoresde.plot.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, SQUARE = (1.7, 0.95), (1.25, 1.25)  # inches of one panel

LEFT, BELOW, GAP, BETWEEN = 0.5, 0.42, 0.1, 0.1  # inches: before and below the panels of a set, between panels, between sets


def small_panels(
    sets: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]], columns: int | None, kind: str, axis: tuple[str, str]
) -> Figure:
    """A grid of panels for each set, side by side; all panels have the same limits, which only the outer ones write out.

    Args:
        sets: signals (N, C, L), or sets of points (N, P, 2 or 3), by their titles.
        labels: of the samples of each set, which become the titles of panels.
        columns: panels a row; None: about as many as rows.
        kind: kinds.SIGNALS or kinds.SETS.
        axis: words for both axes.
    """
    size = WIDE if kind == kinds.SIGNALS else SQUARE
    small = {name: x[: kinds.MOST[kind]] for name, x in sets.items()}
    counts = {name: min(len(x), columns or max(1, round(math.sqrt(len(x) * size[1] / size[0])))) for name, x in small.items()}
    rows = {name: -(-len(x) // counts[name]) for name, x in small.items()}
    label_height = 0.17 if any(any(texts) for texts in labels.values()) else 0.0
    pitch = size[0] + GAP, size[1] + GAP + label_height
    top = label_height + 0.08 + (0.28 if any(sets) else 0.0)
    width = sum(LEFT + counts[name] * pitch[0] for name in sets) + BETWEEN * (len(sets) - 1) + 0.08
    several = kind == kinds.SIGNALS and next(iter(small.values())).shape[1] > 1
    third = _spread(small) if kind == kinds.SETS else None
    height = top + max(rows.values()) * pitch[1] + BELOW + (0.25 if several or third else 0.0)
    figure = figures.new_figure(max(width, 2.6), height, constrained=False)
    full = figure.get_figwidth(), height
    box = _box(small, kind)
    left = LEFT
    for name, x in small.items():
        for k, values in enumerate(x):
            i, j = divmod(k, counts[name])
            corner = left + j * pitch[0], height - top - i * pitch[1] - size[1]
            ax = figure.add_axes((corner[0] / full[0], corner[1] / full[1], size[0] / full[0], size[1] / full[1]))
            if kind == kinds.SIGNALS:
                draw_lines(ax, values)
            else:
                draw_dots(ax, values, third)
            ax.set_xlim(*box[:2])
            ax.set_ylim(*box[2:])
            lowest = k + counts[name] >= len(x)
            dress(ax, axis[0] if lowest else "", axis[1] if j == 0 else "")
            if labels:
                ax.set_title(labels[name][k], fontsize=8, pad=2)
        middle = left + (counts[name] * pitch[0] - GAP) / 2
        if name:
            figure.text(middle / full[0], 1 - 0.05 / height, name, ha="center", va="top", fontsize=11)
        left += counts[name] * pitch[0] + LEFT + BETWEEN
    if several:
        handles = figure.axes[0].lines
        names = [f"channel {c}" for c in range(len(handles))]
        figure.legend(handles, names, loc="lower center", ncols=min(len(handles), 6), frameon=False, fontsize=8, borderaxespad=0.2)
    elif third is not None:
        words = f"colour: $x_3$, dark {third[0]:.3g} to light {third[1]:.3g}"
        figure.text(0.5, 0.05 / height, words, ha="center", va="bottom", fontsize=8)
    return figure


def draw_lines(ax: Axes, values: np.ndarray) -> None:
    """A line a channel of (C, L)."""
    for c, line in enumerate(values):
        ax.plot(np.arange(len(line)), line, color=COLORS[c % len(COLORS)], linewidth=0.9, marker="." * (len(line) < 12), markersize=3)


def draw_dots(ax: Axes, values: np.ndarray, third: tuple[float, float] | None) -> None:
    """A dot a point of (P, 2); of (P, 3) the third coordinate is its colour, dark for small values."""
    size = float(np.clip(400 / len(values), 0.8, 10))
    if third is None:
        ax.scatter(values[:, 0], values[:, 1], s=size, color=COLORS[0], edgecolors="none")
    else:
        low, high = third
        ax.scatter(values[:, 0], values[:, 1], s=size, c=values[:, 2], cmap="viridis", vmin=low, vmax=high, edgecolors="none")


def dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Few ticks; words and numbers only where there are some."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(3, integer=xlabel == "index"))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=7, length=2, labelbottom=bool(xlabel), labelleft=bool(ylabel))
    ax.set_xlabel(xlabel, fontsize=8, labelpad=1)
    ax.set_ylabel(ylabel, fontsize=8, labelpad=1)
    ax.spines[["top", "right"]].set_visible(False)


def _spread(sets: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """The range of the third coordinate over all sets, None if there is no third."""
    values = [x[..., 2] for x in sets.values() if x.shape[-1] == 3]
    return (min(float(v.min()) for v in values), max(float(v.max()) for v in values)) if values else None


def _box(sets: Mapping[str, np.ndarray], kind: str) -> tuple[float, float, float, float]:
    """Limits that hold everything: of signals over the index; of sets of points a square."""
    if kind == kinds.SIGNALS:
        low, high = min(float(x.min()) for x in sets.values()), max(float(x.max()) for x in sets.values())
        room = 0.05 * (high - low) or 1.0
        return -0.5, max(x.shape[2] for x in sets.values()) - 0.5, low - room, high + room
    points = np.concatenate([x[..., :2].reshape(-1, 2) for x in sets.values()])
    centre = (points.max(0) + points.min(0)) / 2
    r = 1.08 * float((points.max(0) - points.min(0)).max()) / 2 or 1.0
    return centre[0] - r, centre[0] + r, centre[1] - r, centre[1] + r


def vectors(sets: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]], ylabel: str) -> Figure:
    """Vectors (N, D) as a line each over the index, a panel a set; of D = 1 a histogram. Labels have colours."""
    figure, axes = figures.panels(1, len(sets), 2.9, 1.3)
    shown = {name: x[: kinds.MOST[kinds.VECTORS]] for name, x in sets.items()}
    everything = np.concatenate([x.ravel() for x in shown.values()])
    low, high = float(everything.min()), float(everything.max())
    room = 0.04 * (high - low) or 0.5
    groups = {name: kinds.by_label(labels[name]) if labels else {"": list(range(len(x)))} for name, x in sets.items()}
    names = list(dict.fromkeys(text for group in groups.values() for text in group))
    colors = {text: COLORS[i % len(COLORS)] for i, text in enumerate(names)}
    for ax, (name, x) in zip(axes[0], shown.items(), strict=True):
        for text, members in groups[name].items():
            own = x[[i for i in members if i < len(x)]]
            if x.shape[1] == 1:
                ax.hist(own[:, 0], bins=40, range=(low - room, high + room), color=colors[text], alpha=0.6)
                continue
            mark = "." if x.shape[1] < 25 else ""
            alpha = float(np.clip(30 / len(x), 0.08, 0.9))
            ax.plot(np.arange(x.shape[1]), own.T, color=colors[text], alpha=alpha, linewidth=0.9, marker=mark, markersize=4)
        ax.set_title(name, fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
        if x.shape[1] == 1:
            ax.set_xlabel(ylabel)
            ax.set_ylabel("samples")
        else:
            ax.set_ylim(low - room, high + room)
            ax.set_xlabel("index")
            ax.set_ylabel(ylabel if ax is axes[0][0] else "")
            ax.xaxis.get_major_locator().set_params(integer=True)
    if any(names):
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=colors[text], linewidth=2) for text in names]
        figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, title="label", ncols=1 + len(names) // 12)
    return figure


"""Lines of quality against network calls, with bands and floors, and the loss of a training run; public in ``scoresde.plot``."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from scoresde.core.doors import checked
from scoresde.errors import ConfigError, DataError
from scoresde.plot import figures
from scoresde.plot.figures import COLORS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scoresde.plot.figures import PathLike

DOTS = (":", (0, (1, 3)), (0, (4, 2, 1, 2)))  # of levels, which are no solvers' lines


@checked
def frontier(
    points: Mapping[str, Sequence[tuple[float, ...]]],
    floor: tuple[float, float] | None = None,
    path: PathLike | None = None,
    *,
    title: str = "",
    ylabel: str = "sliced Wasserstein distance to the test set",
    levels: Mapping[str, float] | None = None,
    share: bool = False,
) -> Figure:
    """Quality against network calls: one line a solver over the noise floor; and the Pareto front, the best of all lines up to each
    number of calls. Both axes are logarithmic. The legend beside them has the lines in the order of their ends, from the top down.

    Args:
        points: {label: [(network calls, distance), ...]}, or (network calls, distance, low, high), whose band is shaded; points that
            are not finite are left out.
        floor: mean and standard deviation of the distance between exact samples and the reference; a band of two standard
            deviations either side is shaded.
        path: file to write.
        title, ylabel: texts.
        levels: {label: distance} to compare with, as dotted lines; those far below all else, or above it, are left out.
        share: values are shares to be made large: on an even axis, without a Pareto front.

    Labels "solver, grid" that differ in the grid only have one colour.

    Raises:
        DataError: no finite point.
    """
    lines: dict[str, list[tuple[float, ...]]] = {}
    for label, values in points.items():
        finite = sorted(p for p in values if all(math.isfinite(v) and (v > 0 or share) for v in p[:2]))
        if finite:
            lines[label] = finite
    if not lines:
        raise DataError("no solver gave a finite point: there is nothing to draw")
    figure = figures.new_figure(8.4, max(5.0, 0.21 * (len(lines) + len(levels or {})) + 1.2))
    ax = figure.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("linear" if share else "log")
    every = [p for line in lines.values() for p in line]
    left, right = min(p[0] for p in every), max(p[0] for p in every)
    lowest, top = min(p[1] for p in every), max(p[1] for p in every)
    above = 0.0
    drawn: list[tuple[Any, str]] = []  # entries of the legend
    shade = min(0.16, 0.9 / len(lines))  # many bands that lie on each other must not hide the lines
    styles = _styles(lines)
    for label in sorted(lines, key=lambda label: -lines[label][-1][1]):  # as the lines end, from the top down
        line, (color, marker, dash) = lines[label], styles[label]
        x, y = [p[0] for p in line], [p[1] for p in line]
        size = 6 if len(lines) < 12 else 4.5
        (curve,) = ax.plot(x, y, color=color, marker=marker, linestyle=dash, markersize=size, linewidth=1.6, zorder=3)
        drawn.append((curve, label))
        band = [p for p in line if len(p) == 4 and math.isfinite(p[2]) and math.isfinite(p[3])]
        low, high = [p[2] if share else max(p[2], p[1] / 100) for p in band], [p[3] for p in band]
        if len(band) > 1:
            ax.fill_between([p[0] for p in band], low, high, color=color, alpha=shade, linewidth=0, zorder=2)
        elif band:
            ax.vlines(band[0][0], low, high, color=color, alpha=0.4, linewidth=2.5, zorder=2)
    if not share and len(lines) > 1 and right > left:  # at one number of calls the best is a point
        best: list[tuple[float, ...]] = []
        for p in sorted(every):
            if not best or p[1] < best[-1][1]:
                best.append(p)
        halo: dict[str, Any] = {"color": "#000000", "alpha": 0.14, "linewidth": 9, "solid_capstyle": "round", "marker": "None"}
        (front,) = ax.plot([p[0] for p in best], [p[1] for p in best], zorder=1.5, **halo)
        drawn.append((front, "Pareto front: the best so far"))
    if floor is not None and math.isfinite(floor[0]):
        mean, std = floor
        ax.axhspan(max(mean - 2 * std, mean / 100), mean + 2 * std, color="#999999", alpha=0.35, linewidth=0, zorder=0)
        middle = ax.axhline(mean, color="#777777", linewidth=0.8, linestyle="--", zorder=1)
        drawn.append((middle, "real samples" if share else "noise floor (real samples)"))
        lowest = min(lowest, mean)
        if not share:  # white is left on both sides of the band, or the panel would be gray where all points lie within
            lowest, above = min(lowest, max(mean - 2 * std, mean / 3)), mean + 2 * std
    # only what is seen among the lines: a level far below would squeeze them
    shown = {label: v for label, v in (levels or {}).items() if lowest / 5 < v < top}
    for (label, value), dash in zip(shown.items(), itertools.cycle(DOTS)):
        drawn.append((ax.axhline(value, color="#333333", linewidth=1.2, linestyle=dash, zorder=1), label))
    margin = (right / left) ** 0.06 if right > left else 1.2
    ax.set_xlim(left / margin, right * margin)
    ax.set_xlabel("network calls a sample (NFE, counted)")
    ax.set_ylabel(ylabel)
    ax.set_title(title, fontsize=11)
    ax.grid(True, which="both", color="#ececec", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    # of the points, not of their bands; a solver that fails at few steps must not squeeze all others: its line leaves at the top
    medium = sorted(p[1] for p in every)[int(0.75 * (len(every) - 1))]
    lowest, top = min([lowest, *shown.values()]), max(min(top, 60 * medium), above)
    room = 1.0 if share else max((top / lowest) ** 0.07, 1.15)
    ax.set_ylim(*((0.0, 1.04) if share else (lowest / room, top * room)))
    figures.plain_ticks(ax)
    figure.legend(*zip(*drawn, strict=True), loc="outside right center", frameon=False, fontsize=9, handlelength=2.6)
    return figures.save(figure, path)


def _styles(labels: Iterable[str]) -> dict[str, tuple[str, str, Any]]:
    """Colour, marker and dashes of each label; labels "solver, grid" of one solver share a colour."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(label.rpartition(", ")[0] or label, []).append(label)
    styles: dict[str, tuple[str, str, Any]] = {}
    for i, members in enumerate(groups.values()):
        for j, label in enumerate(members):
            again = i // len(COLORS)  # how often the colour was there before
            marker = MARKERS[(i + again + j) % len(MARKERS)]
            styles[label] = (COLORS[i % len(COLORS)], marker, ("-", "--", ":", "-.")[(again + j) % 4])
    return styles


@runtime_checkable
class Logged(Protocol):
    """A ``History``, which is in a folder beside this one."""

    steps: list[int]
    loss: list[float]
    validation_steps: list[int]
    validation: list[float]
    weighting: str
    data: str


@checked
def loss(history: Any, path: PathLike | None = None, *, title: str | None = None) -> Figure:
    """Training and validation loss against the step, on logarithmic axes; step 0, before training, at the left where there is one.

    Losses are in nats per dimension for the likelihood weighting, which is the default of ``fit``; other weightings have no unit.

    Args:
        history: the ``History`` that ``fit`` returned, the ``log.jsonl`` that it wrote, or the folder that it is in.
        path: file to write.
        title: text above; None: the name of the data, where the history knows it.

    Raises:
        DataError: no such file, a line that is not JSON, or no losses in it.
    """
    unit, name = "nats/dim with the likelihood weighting", ""  # a log does not say more
    if isinstance(history, (str, os.PathLike)):
        training, validation = figures.read_log(Path(history))
    elif not isinstance(history, Logged):
        raise ConfigError(f"history is a {type(history).__name__}, expected what fit returned, or the name of its log.jsonl or folder")
    else:
        training = list(zip(history.steps, history.loss, strict=True))
        validation = list(zip(history.validation_steps, history.validation, strict=True))
        name = history.data
        if history.weighting:
            unit = "nats/dim, likelihood weighting" if history.weighting == "likelihood" else f"weighting {history.weighting}"
    if not training and not validation:
        raise DataError("the history holds no losses: was `log_every` larger than the number of steps?")
    figure, axes = figures.panels(1, 1, 4.2, 1.5)
    ax = axes[0][0]
    for rows, label, color, marker in ((training, "training", COLORS[0], "o"), (validation, "validation", COLORS[1], "s")):
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
    _step_axis(ax, [step for step, _ in training + validation])
    ax.set_yscale("log" if min(value for _, value in training + validation) > 0 else "linear")
    ax.set_xlabel("training step")
    ax.set_ylabel(f"denoising loss ({unit})")
    ax.set_title(name if title is None else title, fontsize=11)
    figures.plain_ticks(ax)
    ax.grid(True, which="both", color="#ececec", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figures.save(figure, path)


def _step_axis(ax: Axes, steps: Sequence[int]) -> None:
    """Steps on a logarithmic axis; with a step 0 among them the axis is even from there to the first other one."""
    after = [step for step in steps if step > 0]
    if not after or min(steps) > 0:
        ax.set_xscale("log" if after else "linear")
        return
    first, last = min(after), max(after)
    ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    ticks = [k * 10**e for e in range(10) for k in ((1,) if last / first > 300 else (1, 2, 5)) if first <= k * 10**e <= last]
    near = [tick for tick in ticks if tick > 1.3 * first]  # room for the number of the first
    ax.set_xticks([0, first, *near], [f"{tick:g}" for tick in (0, first, *near)])
    ax.set_xticks([], minor=True)
    ax.set_xlim(-0.15 * first, 1.15 * last)

"""The parts that pictures are made of: figures without pyplot, panels, images as arrays, axes."""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_integer
from scoresde.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scoresde.data.transform import Transform
    from scoresde.models.base import ScoreModel

PathLike = str | os.PathLike[str]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D46")

MARKERS = "osD^vPX*"

DPI = 120


def new_figure(width: float, height: float, constrained: bool = True) -> Figure:
    return _picture_class()(figsize=(width, height), dpi=DPI, layout="constrained" if constrained else None)


@functools.cache
def _picture_class() -> type[Figure]:
    """A Figure that a notebook can show though pyplot, which would teach it to, is not there."""
    import matplotlib.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    class Picture(matplotlib.figure.Figure):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Picture


def panels(rows: int, columns: int, size: float, aspect: float = 1.0) -> tuple[Figure, Any]:
    figure = new_figure(max(size * aspect * columns + 0.9, 3.4), size * rows + 0.5)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: PathLike | None) -> Figure:
    if path is not None:
        kinds = figure.canvas.get_supported_filetypes()
        if Path(path).suffix[1:].lower() not in kinds:
            raise ConfigError(f"path = {os.fspath(path)!r}: expected a name that ends in .png (or .pdf, .svg, ...)")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def to_images(x: Tensor, transform: Transform | None, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Images (N, C, H, W) or (N, H, W) as (N, H, W) or (N, H, W, 3) in [0, 1]: from ``low`` to ``high``, or of their own range.

    With a transform floats are quantized to its levels, as data are, and level 0 is black whatever ``low`` says.
    """
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ShapeError(f"x has shape {tuple(x.shape)}, expected images (N, C, H, W) with C = 1 or 3, or points (N, 2)")
    if transform is not None:
        x = transform.quantize(check_data(x.detach())) if x.is_floating_point() else x
        low, high = 0, transform.levels - 1
    x = check_data(x.float().detach().cpu())
    if low is None or high is None:
        low, high = (float(v) for v in torch.aminmax(x))
    x = ((x - low) / max(high - low, 1e-12)).clamp(0, 1)
    return (x[:, 0] if x.shape[1] == 1 else x.movedim(1, -1)).numpy()


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W[, 3]) as one image with a white line of one pixel between them."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    h, w = images.shape[1:3]
    out = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1, *images.shape[3:]), dtype=np.float32)
    for k, image in enumerate(images):
        i, j = divmod(k, columns)
        out[i * (h + 1) + 1 : (i + 1) * (h + 1), j * (w + 1) + 1 : (j + 1) * (w + 1)] = image
    return out


def scatter(ax: Axes, v: np.ndarray, limits: tuple[float, ...], title: str, color: str = COLORS[0], label: str = "") -> None:
    ax.scatter(v[:, 0], v[:, 1], s=float(np.clip(4000 / len(v), 0.6, 14)), color=color, alpha=0.5, edgecolors="none", label=label)
    set_axes(ax, limits, title)


def density_map(figure: Figure, axes: list[Axes], maps: list[Tensor], box: Any, name: str, floor: float) -> None:
    """Draws log-densities on one scale, in light colours that arrows and points stand out from."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    top = max(float(log_p.max()) for log_p in maps)
    colors = ListedColormap(colormaps["Blues"](np.linspace(0, 0.72, 256)))
    for ax, log_p in zip(axes, maps, strict=True):
        mesh = ax.imshow(
            log_p, extent=box, origin="lower", cmap=colors, vmin=top - floor, vmax=top, interpolation="bilinear", aspect="equal"
        )
    label = f"log {name} in nats (cut {floor:g} below its maximum)"
    figure.colorbar(mesh, ax=axes, label=label, fraction=0.046 / len(axes), pad=0.02)


def set_axes(ax: Axes, box: tuple[float, ...], title: str) -> None:
    ax.set_xlim(box[0], box[1])
    ax.set_ylim(box[2], box[3])
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
    ax.set_title(title, fontsize=11)


def limits_of(v: np.ndarray) -> tuple[float, float, float, float]:
    """A square around the origin that holds 99.5 % of the points."""
    r = 1.15 * float(np.quantile(np.abs(v).max(1), 0.995)) + 1e-9
    return -r, r, -r, r


def box_of(limits: Sequence[float]) -> tuple[float, float, float, float]:
    values = [float(v) for v in limits]
    values = values * 2 if len(values) == 2 else values
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[1] or values[2] >= values[3]:
        raise ConfigError(f"limits = {tuple(limits)}, expected (low, high) or (left, right, bottom, top), finite and rising")
    return values[0], values[1], values[2], values[3]


def mesh_points(model: ScoreModel | None, box: tuple[float, ...], n: int) -> tuple[Tensor, tuple[int, int]]:
    """The centres of n x n cells, (n^2, 2), second axis slowest."""
    centres = (torch.arange(check_integer(n, "resolution", 1, 10_000), dtype=torch.float64, device="cpu") + 0.5) / n
    y, x = torch.meshgrid(box[2] + (box[3] - box[2]) * centres, box[0] + (box[1] - box[0]) * centres, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], 1)
    return (points.float() if model is None else points.to(model.device, model.dtype)), (n, n)


def check_plane(model: ScoreModel) -> None:
    if model.event_shape != (2,):
        raise ShapeError(f"the model's samples have shape {model.event_shape}: only models of the plane, (2,), can be drawn so")


def read_log(path: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) of training and of validation from a JSONL log."""
    path = path / "log.jsonl" if path.is_dir() else path
    training, validation, number = [], [], 0
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):  # noqa: B007 (for the error message)
            record = json.loads(line)
            if "loss" in record:
                training.append((int(record["step"]), float(record["loss"])))
            if "validation" in record:
                validation.append((int(record["step"]), float(record["validation"])))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected the log.jsonl of a training run, or its folder") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: line {number} is not a line of a training log ({error})") from None
    return training, validation


def plain_ticks(ax: Axes) -> None:
    """1, 2, 5, 10 as numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() != "log":
            continue
        low, high = axis.get_view_interval()
        many = low > 0 and high / low > 300
        axis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())

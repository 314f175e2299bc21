"""Pictures: what is drawn is what was given, and what cannot be drawn is refused."""

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.text import Text

import scoresde as sd
from scoresde import plot
from scoresde.errors import ConfigError, DataError, NonFiniteError, ShapeError, TimeRangeError
from scoresde.models.base import ScoreModel
from scoresde.plot import curves, fields, figures, pictures
from scoresde.training.history import History

torch.set_num_threads(1)
TRANSFORM = sd.Transform(levels=17)


@pytest.fixture(scope="module")
def gaussian():
    """A correlated Gaussian of the plane."""
    covariance = torch.tensor([[[0.5, 0.2], [0.2, 0.3]]], dtype=torch.float64)
    return sd.GaussianMixture(torch.tensor([[0.3, -0.2]], dtype=torch.float64), covariance)


@pytest.fixture(scope="module")
def exact(gaussian):
    return sd.ExactModel(gaussian, sd.VPSDE())


# ---- samples


def test_images_are_drawn_pixel_by_pixel(tmp_path):
    levels = (torch.arange(5 * 64).view(5, 1, 8, 8) * 7) % 17
    path = tmp_path / "new" / "grid.png"
    plot.samples(levels, TRANSFORM, columns=3, path=path)
    picture = imread(path)[..., 0]
    scale = picture.shape[1] // (3 * 9 + 1)
    assert picture.shape == (scale * (2 * 9 + 1), scale * (3 * 9 + 1))  # whole pixels
    assert scale >= 8
    small = picture[scale // 2 :: scale, scale // 2 :: scale]
    assert np.array_equal(small.repeat(scale, 0).repeat(scale, 1), picture)  # crisp: every block is of one colour
    for k in range(5):
        i, j = divmod(k, 3)
        image = small[9 * i + 1 : 9 * i + 9, 9 * j + 1 : 9 * j + 9]
        assert np.allclose(image, levels[k, 0].numpy() / 16, atol=1.01 / 255)  # 0 is black, 16 is white


def test_floats_use_the_range_of_the_transform(tmp_path):
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2)
    plot.samples(x, TRANSFORM, path=tmp_path / "a.png")
    plot.samples(x, path=tmp_path / "b.png")  # no transform: smallest to largest
    values = {}
    for name in "ab":
        picture = imread(tmp_path / f"{name}.png")[..., 0]
        scale = picture.shape[0] // 4
        values[name] = picture[scale // 2 :: scale, scale // 2 :: scale][1:3, 1:3].flatten()
    assert np.allclose(values["a"], [0, 0.5, 1, 1], atol=0.01)  # the levels 0, 8, 16 and 16 of 17
    assert np.allclose(values["b"], [0, 0.25, 0.5, 1], atol=0.01)


def test_samples_are_drawn_as_real_images_are(tmp_path):
    """Dequantized levels, the middles of their bins and the levels themselves are one picture: grain within a bin is not drawn."""
    levels = torch.randint(0, 17, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    shown = {"levels": levels, "middles": TRANSFORM.center(levels), "dequantized": TRANSFORM.dequantize(levels, seed=3)}
    figure = plot.samples(shown, TRANSFORM, path=tmp_path / "a.png")
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert {ax.images[0].get_clim() for ax in figure.axes} == {(0, 1)}
    assert len({round(ax.get_position().width, 9) for ax in figure.axes}) == 1
    raw = plot.samples({"dequantized": shown["dequantized"]}).axes[0].images[0].get_array()  # without a transform: as they are
    assert len(np.unique(raw)) > 100


def test_colour_images_and_panels(tmp_path):
    red = torch.zeros(4, 3, 6, 5)
    red[:, 0] = 1
    figure = plot.samples({"left": red, "right": red[:1]}, path=tmp_path / "c.png")
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"]
    left = figure.axes[0].images[0].get_array()
    assert left.shape[2] == 3
    assert np.allclose(left[left.shape[0] // 4, left.shape[1] // 4], [1, 0, 0])


def test_points_are_scattered():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    figure = plot.samples({"a": x, "b": 2 * x[:10]})
    drawn = [ax.collections[0].get_offsets() for ax in figure.axes]
    assert np.allclose(drawn[0], x.numpy())
    assert np.allclose(drawn[1], 2 * x[:10].numpy())
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()  # one scale, so that they can be compared
    assert figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 3), ShapeError, r"\(4, 3\).*two dimensions"),
        (torch.zeros(4, 2, 8, 8), ShapeError, r"\(4, 2, 8, 8\).*C = 1 or 3"),
        (torch.zeros(0, 1, 8, 8), ShapeError, r"\(0, 1, 8, 8\)"),
        (torch.zeros(8), ShapeError, r"\(8,\)"),
        ({}, ShapeError, "empty dict"),
        ({"a": torch.zeros(4, 2), "b": torch.zeros(4, 1, 8, 8)}, ShapeError, "mixes"),
        (torch.full((2, 1, 2, 2), torch.nan), NonFiniteError, "NaN"),
        ([1, 2], ShapeError, "list"),
    ],
)
def test_what_cannot_be_drawn(x, error, message):
    with pytest.raises(error, match=message):
        plot.samples(x)


def test_the_kind_of_file_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.xyz.*\.png"):
        plot.samples(torch.zeros(4, 2), path=tmp_path / "a.xyz")


def test_columns_are_checked():
    with pytest.raises(ConfigError, match="columns = 0"):
        plot.samples(torch.zeros(4, 1, 2, 2), columns=0)


# ---- trajectories


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.VESDE()])
def test_trajectory_of_images(sde, tmp_path):
    x = TRANSFORM.dequantize(torch.randint(0, 17, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0)))
    model = sd.ExactModel(sd.GaussianMixture.from_data(x, 0.05), sde)
    figure = plot.trajectory(sd.trajectory(model, 5, steps=20), tmp_path / "t.png", transform=TRANSFORM, rows=3, columns=6)
    top, bottom = figure.axes
    labels = [text.get_text() for text in top.get_xticklabels()]
    assert len(labels) == 6
    assert labels[0].endswith("step 0")
    assert labels[-1].endswith("step 20")
    assert f"t = {sde.t_max:.3g}" in labels[0]
    first, last = (np.asarray(ax.images[0].get_array()) for ax in (top, bottom))
    scale = first.shape[0] // (3 * 7 + 1)
    noise = first[scale // 2 :: scale, scale // 2 :: scale][1:7, 1:7]
    assert 0 < np.mean((noise > 0) & (noise < 1)) < 1  # shown at the size of the data: neither flat nor all clipped
    end = last[scale // 2 :: scale, scale // 2 :: scale][1:7, -7:-1]
    expected = TRANSFORM.quantize(sd.sample(model, 5, steps=20, denoise=True)[0, 0]) / 16
    assert np.allclose(end, expected, atol=1e-4)


def test_trajectory_of_points(exact):
    steps = list(sd.trajectory(exact, 50, steps=10))
    figure = plot.trajectory(steps, columns=4)
    assert len(figure.axes) == 8
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), steps[0][2])
    assert np.allclose(figure.axes[3].collections[0].get_offsets(), steps[-1][2])
    assert np.allclose(figure.axes[4].collections[0].get_offsets(), steps[0][3])  # below: the denoised estimates


def test_an_empty_trajectory():
    with pytest.raises(ShapeError, match="steps is empty"):
        plot.trajectory([])


# ---- fields and densities


@pytest.mark.parametrize("field", ["score", "velocity"])
def test_arrows_are_the_field(exact, field):
    figure = plot.vector_field(exact, 0.3, (-2, 2), field=field, arrows=9, resolution=10)
    quiver = next(c for c in figure.axes[0].collections if hasattr(c, "U"))
    points = torch.from_numpy(np.asarray(quiver.get_offsets()))
    expected = getattr(exact, field)(points, 0.3).double().numpy()
    drawn = np.stack([quiver.U, quiver.V], 1)
    cosine = (drawn * expected).sum(1) / np.linalg.norm(drawn, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-9
    short = np.linalg.norm(expected, axis=1) < np.quantile(np.linalg.norm(expected, axis=1), 0.9)
    assert np.allclose(drawn[short], expected[short])  # only the longest are cut
    assert len(points) == 81


def test_the_background_is_the_exact_log_density(exact):
    figure = plot.vector_field(exact, [0.1, 0.5], (-2, 2, -1, 3), resolution=8)
    centres = torch.arange(8, dtype=torch.float64) + 0.5
    point = torch.tensor([[-2 + 0.5 * float(centres[5]), -1 + 0.5 * float(centres[2])]], dtype=torch.float64)
    for ax, t in zip(figure.axes[:2], (0.1, 0.5), strict=True):
        assert float(ax.images[0].get_array()[2, 5]) == pytest.approx(float(exact.log_prob(point, t)), abs=1e-9)
        assert ax.images[0].get_extent() == [-2, 2, -1, 3]


def test_field_of_a_wrong_model_time_or_name(exact):
    images = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1, 4, 4), torch.ones(1)), sd.VPSDE())
    with pytest.raises(ShapeError, match=r"\(1, 4, 4\)"):
        plot.vector_field(images, 0.5, (-1, 1))
    with pytest.raises(TimeRangeError):
        plot.vector_field(exact, 2.0, (-1, 1))
    with pytest.raises(ConfigError, match="field = 'scor'"):
        plot.vector_field(exact, 0.5, (-1, 1), field="scor")
    with pytest.raises(ConfigError, match="limits"):
        plot.vector_field(exact, 0.5, (1, -1))


class Hidden(ScoreModel):
    """The exact model without its density, as a network has none."""

    def __init__(self, inner):
        super().__init__(inner.sde, inner.event_shape)
        self.inner = inner

    def predict(self, x, t, **cond):
        return self.inner.predict(x, t)


def test_density_of_a_network_is_that_of_its_flow(exact):
    solver = sd.TorchDiffEq(rtol=1e-5, atol=1e-5)
    by_flow = plot.density(Hidden(exact), (-1, 1), resolution=4, solver=solver).axes[0].images[0].get_array()
    in_closed_form = plot.density(exact, (-1, 1), resolution=4, points=torch.zeros(3, 2)).axes[0].images[0].get_array()
    assert np.abs(by_flow - in_closed_form).max() < 0.02  # what N(0, 1) for the law at t_max costs
    given_function = plot.density(lambda x: exact.log_prob(x.double(), exact.sde.t_min), (-1, 1), resolution=4)
    assert np.allclose(given_function.axes[0].images[0].get_array(), in_closed_form, atol=1e-4)
    with pytest.raises(ConfigError, match="only an exact model"):
        plot.density(Hidden(exact), (-1, 1), t=0.5)


# ---- losses


def test_loss_from_a_history_a_file_or_a_folder(tmp_path):
    history = History()
    with (tmp_path / "log.jsonl").open("w") as file:
        for k in range(1, 101):
            line = {"step": 10 * k, "loss": 5.0 / k, "lr": 1e-3, "grad_norm": 1.0, "seconds": k}
            file.write(json.dumps(line) + "\n")
            history.add(line)
        line = {"step": 1000, "validation": 0.07, "seconds": 100}
        file.write(json.dumps(line) + "\n")
        history.add(line)
    for source in (history, tmp_path / "log.jsonl", str(tmp_path)):
        ax = plot.loss(source).axes[0]
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert np.allclose(ax.lines[0].get_xdata(), 10 * np.arange(1, 101))
        assert np.allclose(ax.lines[0].get_ydata(), 5 / np.arange(1, 101))
        mean = ax.lines[1].get_ydata()  # over steps within 15 % either side
        assert mean[[0, -1]] == pytest.approx([5.0, np.mean(5 / np.arange(87, 101))])
        validation = next(line for line in ax.lines if len(line.get_xdata()) == 1)
        assert validation.get_ydata()[0] == 0.07
        assert [text.get_text() for text in ax.get_legend().get_texts()][1].startswith("validation, last 0.07")


def test_loss_of_what_is_no_log(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl.*log\.jsonl of a training run"):
        plot.loss(tmp_path / "no.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with pytest.raises(DataError, match="line 2"):
        plot.loss(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="no losses"):
        plot.loss(History())


# ---- quality against network calls


def test_frontier_draws_every_finite_point_over_the_floor():
    lines = {"Heun": [(10, 0.2), (4, 0.9), (20, float("nan"))], "never": [(5, float("nan"))], "DDIM": [(5, 0.5), (50, 0.11)]}
    ax = plot.frontier(lines, (0.1, 0.01), title="T").axes[0]
    drawn = {tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in ax.lines if line.get_marker() != "None"}
    assert drawn == {((4, 0.9), (10, 0.2)), ((5, 0.5), (50, 0.11))}
    names = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert names == ["Heun", "DDIM", "Pareto front: the best so far", "noise floor (real samples)"]  # as the lines end, from the top down
    assert not ax.texts  # nothing is written across the lines
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.y0, band.y1) == (pytest.approx(0.08), pytest.approx(0.12))
    with pytest.raises(DataError, match="no solver gave a finite point"):
        plot.frontier({"a": [(5, float("nan"))]})


def test_the_legend_stands_beside_the_lines(tmp_path):
    lines = {f"solver number {i}": [(5, 1.0), (100, 0.1 + 0.0001 * i)] for i in range(20)}
    lines["far"] = [(5, 1e5), (100, 2.0)]
    figure = plot.frontier(lines, (0.1, 0.01), tmp_path / "f.png", levels={"score error": 0.5})
    renderer = figure.canvas.get_renderer()
    (legend,) = figure.legends
    assert figure.axes[0].get_legend() is None
    assert figure.axes[0].get_window_extent(renderer).x1 < legend.get_window_extent(renderer).x0
    boxes = [Text.get_window_extent(text, renderer) for text in legend.get_texts()]
    assert len(boxes) == 21 + 3
    boxes.sort(key=lambda b: b.y0)
    assert all(a.y1 <= b.y0 + 1 for a, b in itertools.pairwise(boxes))
    assert all(min(b.x0, b.y0) >= 0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)
    looks = [(handle.get_color(), handle.get_marker(), handle.get_linestyle()) for handle in legend.get_lines()]
    assert len(set(looks)) == len(looks) == 21 + 3  # each can be told from the others


def test_frontier_bands_front_levels_and_colours():
    lines = {
        "A, u": [(5, 0.5, 0.4, 0.6), (10, 0.2, 0.15, 0.3)],
        "A, v": [(5, 0.4, 0.3, 0.5), (10, 0.3, 0.2, float("nan"))],
        "B": [(4, 0.45, 0.44, 0.47)],
    }
    ax = plot.frontier(lines, (0.1, 0.01), levels={"score error": 0.15, "prior error": 1e-9}).axes[0]
    (front,) = (line for line in ax.lines if line.get_linewidth() == 9)
    assert list(zip(*front.get_data(), strict=True)) == [(4, 0.45), (5, 0.4), (10, 0.2)]
    bands = [c for c in ax.collections if c.get_paths()]
    corners = bands[-1].get_paths()[0].vertices
    assert {(x, round(y, 3)) for x, y in corners} >= {(5, 0.4), (5, 0.6), (10, 0.15), (10, 0.3)}
    texts = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    b, v, u = (line for line in ax.lines if line.get_marker() != "None")
    assert texts[:3] == ["B", "A, v", "A, u"]
    assert u.get_color() == v.get_color() != b.get_color()  # one solver on two grids
    assert u.get_linestyle() != v.get_linestyle()
    assert "score error" in texts
    assert "prior error" not in texts  # far below: it would squeeze the lines
    assert any(list(line.get_ydata()) == [0.15, 0.15] for line in ax.lines)
    shares = plot.frontier({"A": [(5, 0.0, 0.0, 0.1), (10, 0.9, 0.8, 1.0)], "B": [(5, 0.5), (10, 0.7)]}, (0.9, 0.01), share=True).axes[0]
    assert (shares.get_yscale(), shares.get_ylim()) == ("linear", (0.0, 1.04))
    assert [text.get_text() for text in shares.figure.legends[0].get_texts()] == ["A", "B", "real samples"]


def test_frontier_shows_good_lines_though_one_fails():
    lines = {"good": [(5, 1e-3), (50, 1e-8)], "better": [(5, 1e-4), (50, 1e-9)], "lost": [(5, 1e9), (50, 1e-2)]}
    low, high = plot.frontier(lines).axes[0].get_ylim()
    assert low < 1e-9
    assert 1e-2 < high < 10


def test_notebooks_show_the_figure():
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.PNGFormatter()(plot.samples(torch.zeros(4, 2))).startswith(b"\x89PNG")


@pytest.mark.parametrize("module", [pictures, fields, figures, curves])
def test_no_pyplot_and_no_matplotlib_on_import(module):
    tree = ast.parse(Path(module.__file__).read_text())
    everywhere = [name for node in ast.walk(tree) for name in _imported(node)]
    assert any(name.startswith("matplotlib") for name in everywhere)
    assert not any("pyplot" in name for name in everywhere)
    assert not any(name.startswith("matplotlib") for node in tree.body for name in _imported(node))


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []

"""Pictures: what is drawn is what was given, and what cannot be drawn is refused."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import scoresde as sd
from scoresde import plot
from scoresde.errors import ConfigError, NonFiniteError, ShapeError
from scoresde.plot import curves, fields, figures, pictures

torch.set_num_threads(1)
TRANSFORM = sd.Transform(levels=17)


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
        ([1, 2], ConfigError, "list"),
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

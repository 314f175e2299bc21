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
from scoresde.plot import curves, fields, figures, grids, pictures

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
        (torch.zeros(4, 0), ShapeError, r"\(4, 0\)"),
        (torch.zeros(4, 128, 1), ShapeError, r"\(4, 128, 1\).*x\.transpose\(1, 2\)"),
        (torch.zeros(4, 2, 8, 8, 8), ShapeError, r"volumes with C = 1 or 3"),
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


@pytest.mark.parametrize("module", [pictures, grids, fields, figures, curves])
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


# ---- signals, sets of points, volumes, vectors


def test_signals_are_a_panel_each_with_a_line_a_channel():
    x = torch.randn(5, 2, 40, generator=torch.Generator().manual_seed(0))
    figure = plot.samples({"a": x, "b": 2 * x[:3]}, labels={"a": list("vwxyz"), "b": [3, 1, 2]})
    assert len(figure.axes) == 8
    for ax, values in zip(figure.axes, [*x, *2 * x[:3]], strict=True):
        assert [line.get_ydata().tolist() for line in ax.lines] == values.tolist()
    assert [ax.get_title() for ax in figure.axes] == [*"vwxyz", *"312"]  # in the order of the samples
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[1] >= max(float(x.max()), 2 * float(x[:3].max()))
    assert [text.get_text() for text in figure.texts] == ["a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["channel 0", "channel 1"]
    assert not plot.samples(x[:, :1]).legends  # one channel needs no name


@pytest.mark.parametrize("shape", [(64, 1, 128), (9, 100, 2), (70, 50, 3), (3, 1, 2)])
def test_panels_stay_on_a_page_and_do_not_overlap(shape):
    figure = plot.samples(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
    assert len(figure.axes) == min(shape[0], 64)
    assert max(figure.get_size_inches()) < 18  # of which 30,000 pixels once were
    boxes = [ax.get_position() for ax in figure.axes]
    assert all(0 <= b.x0 < b.x1 <= 1 and 0 <= b.y0 < b.y1 <= 1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_levels_of_signals_are_drawn_as_levels():
    levels = torch.randint(0, 17, (2, 1, 30), generator=torch.Generator().manual_seed(0))
    figure = plot.samples(TRANSFORM.dequantize(levels, seed=1), TRANSFORM)
    assert [ax.lines[0].get_ydata().tolist() for ax in figure.axes] == levels[:, 0].tolist()
    assert figure.axes[0].get_ylabel() == "level"


def test_sets_of_points_are_scattered_in_a_panel_each():
    x = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(0))
    flat, deep = plot.samples(x[..., :2]), plot.samples(x)
    for i in range(3):
        assert np.allclose(flat.axes[i].collections[0].get_offsets(), x[i, :, :2])
        assert np.allclose(deep.axes[i].collections[0].get_offsets(), x[i, :, :2])
        assert np.allclose(deep.axes[i].collections[0].get_array(), x[i, :, 2])  # the third coordinate is the colour, on one scale
    assert {ax.collections[0].get_clim() for ax in deep.axes} == {(float(x[..., 2].min()), float(x[..., 2].max()))}
    assert "x_3" in deep.texts[0].get_text()


def test_volumes_are_a_row_of_slices_each():
    x = torch.arange(2 * 12 * 5 * 6.0).view(2, 1, 12, 5, 6)
    picture = np.asarray(plot.samples(x).axes[0].images[0].get_array())
    scale = picture.shape[0] // (2 * 6 + 1)
    small = picture[scale // 2 :: scale, scale // 2 :: scale]
    assert small.shape == (2 * 6 + 1, 8 * 7 + 1)
    for i in range(2):
        for j, depth in enumerate((0, 2, 3, 5, 6, 8, 9, 11)):
            shown = small[6 * i + 1 : 6 * i + 6, 7 * j + 1 : 7 * j + 7]
            assert np.allclose(shown, x[i, 0, depth] / x.max(), atol=1e-6)


def test_vectors_are_a_line_each_over_the_index():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    figure = plot.samples(x, labels=[1, 0, 1, 0, 1, 0])
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert drawn == x[[1, 3, 5, 0, 2, 4]].tolist()
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [plot.COLORS[0]] * 3 + [plot.COLORS[1]] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1"]
    bars = plot.samples(torch.cat([torch.zeros(30, 1), torch.ones(10, 1)])).axes[0].patches
    assert sorted(bar.get_height() for bar in bars)[-2:] == [10, 30]


def test_images_stand_in_rows_of_their_labels():
    values = torch.arange(1, 6.0)
    x = values.view(5, 1, 1, 1).expand(5, 1, 4, 4)
    ax = plot.samples(x, labels=torch.tensor([10, 2, 10, 10, 2]), columns=2).axes[0]
    picture = np.asarray(ax.images[0].get_array())
    scale = picture.shape[0] // (3 * 5 + 1)
    found = picture[scale * 3 :: scale * 5, scale * 3 :: scale * 5]  # one pixel of each place
    assert np.allclose(found, [[1 / 4, 1], [0, 2 / 4], [3 / 4, 1]])  # 2: the second and the fifth; 10: first, third, fourth, none
    assert [text.get_text() for text in ax.get_yticklabels()] == ["2", "10"]
    assert np.allclose(ax.get_yticks(), [2.5 * scale, 7.5 * scale])


def test_points_have_the_colours_of_their_labels():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    ax = plot.samples(x, labels=["b", "a", "b", "a", "b", "a"]).axes[0]
    assert np.allclose(ax.collections[0].get_offsets(), x[1::2])
    assert np.allclose(ax.collections[1].get_offsets(), x[::2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    with pytest.raises(ShapeError, match="labels: 5 of them, expected 6"):
        plot.samples(x, labels=range(5))


@pytest.mark.parametrize(
    ("shape", "transpose"),
    [((2, 8, 9, 1), "(0, 3, 1, 2)"), ((2, 28, 28, 3), "(0, 3, 1, 2)"), ((2, 8, 8, 4), "(0, 3, 1, 2)"), ((2, 8, 9, 10, 1), "(0, 4, 1, 2, 3)")],
)
def test_channels_that_are_last(shape, transpose):
    x = torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ShapeError) as drawn:
        plot.samples(x)
    with pytest.raises(ShapeError) as kept:
        sd.data.Data(x, x[:0], TRANSFORM)
    assert torch.equal(x.permute(*map(int, transpose[1:-1].split(","))), x.movedim(-1, 1))  # what the message says
    assert f"x.permute{transpose}" in str(drawn.value)
    assert f"x.permute{transpose}" in str(kept.value)
    moved = x.movedim(-1, 1)
    sd.data.Data(moved, moved[:0], TRANSFORM)
    if shape[-1] != 4:
        assert plot.samples(moved, TRANSFORM).axes


@pytest.mark.parametrize("shape", [(1, 8, 3), (3, 28, 28), (1, 7, 7), (4, 4, 1), (16, 5, 4)])
def test_shapes_that_are_not_taken_for_channels_last(shape):
    sd.data.Data(torch.zeros(2, *shape, dtype=torch.int64), torch.zeros(0, *shape, dtype=torch.int64), TRANSFORM)


@pytest.mark.parametrize("shape", [(1, 40), (30, 2), (5,), (1, 6, 6, 6)])
def test_trajectories_of_other_samples(shape):
    means = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    steps = list(sd.trajectory(sd.ExactModel(sd.GaussianMixture(means, torch.tensor([0.2, 0.2])), sd.VPSDE()), 3, steps=6))
    figure = plot.trajectory(steps, rows=2, columns=3)
    if len(shape) == 4:
        middles = [(i, t, x[:, :, 3], x0[:, :, 3]) for i, t, x, x0 in steps]
        for ax, other in zip(figure.axes, plot.trajectory(middles, rows=2, columns=3).axes, strict=True):
            assert np.array_equal(ax.images[0].get_array(), other.images[0].get_array())
        return
    assert len(figure.axes) == 6
    for ax, values in ((figure.axes[0], steps[0][2]), (figure.axes[2], steps[-1][2]), (figure.axes[3], steps[0][3])):
        if shape == (30, 2):
            drawn = [c.get_offsets() for c in ax.collections]
        else:
            drawn = [line.get_ydata() for line in ax.lines]
        assert np.allclose(np.stack(drawn), values[:2].view(2, *np.shape(drawn[0])), atol=1e-6)

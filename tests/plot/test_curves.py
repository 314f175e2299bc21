"""Lines of figures: losses, and quality against network calls."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.text import Text

import scoresde as sd
from scoresde import plot
from scoresde.errors import DataError
from scoresde.training.history import History

torch.set_num_threads(1)

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


def test_step_0_unit_and_data_are_shown():
    history = History(weighting="likelihood", data="digits")
    for step, value in ((10, 5.0), (100, 2.0)):
        history.add({"step": step, "loss": value, "lr": 1e-3, "grad_norm": 1.0, "seconds": 1.0})
    for step, value in ((0, 9.0), (100, 2.5)):
        history.add({"step": step, "validation": value, "seconds": 1.0})
    figure = plot.loss(history)
    ax = figure.axes[0]
    assert (ax.get_title(), ax.get_ylabel()) == ("digits", "denoising loss (nats/dim, likelihood weighting)")
    validation = next(line for line in ax.lines if list(line.get_xdata()) == [0, 100])
    assert list(validation.get_ydata()) == [9.0, 2.5]
    figure.canvas.draw()
    places = [ax.transAxes.inverted().transform(ax.transData.transform((step, 5.0)))[0] for step in (0, 10, 100)]
    assert 0 < places[0] < places[1] < places[2] < 1  # step 0 is on the axis
    assert [text.get_text() for text in ax.get_xticklabels()][:2] == ["0", "10"]
    assert "weighting simple" in plot.loss(dataclasses.replace(history, weighting="simple"), title="mine").axes[0].get_ylabel()
    assert plot.loss(history, title="mine").axes[0].get_title() == "mine"


def test_losses_of_a_short_run_are_more_than_one_point():
    data = sd.data.Data(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(0, 2), name="cloud")
    history = sd.fit(sd.NetworkModel(sd.nets.MLP(2, width=8), sd.VPSDE(), (2,)), data, steps=40, batch_size=8, progress=False)
    assert history.steps == [1, 2, 5, 10, 20, 40]
    assert (history.weighting, history.data) == ("likelihood", "cloud")
    assert len(plot.loss(history).axes[0].lines[0].get_xdata()) == 6


# ---- quality against network calls


def test_one_budget_is_not_a_gray_panel():
    ax = plot.frontier({"A": [(10, 0.101, 0.09, 0.11)], "B": [(10, 0.105, 0.1, 0.11)]}, (0.1, 0.01)).axes[0]
    low, high = ax.get_ylim()
    assert low < 0.08  # the band is from 0.08 to 0.12, with white on both sides
    assert high > 0.12
    assert [list(line.get_xydata()[0]) for line in ax.lines[:2]] == [[10, 0.105], [10, 0.101]]
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["B", "A", "noise floor (real samples)"]  # a front of one point is none


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

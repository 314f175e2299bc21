"""What is kept in files and read again, and which solver is recommended."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest
import torch
from evaluation.frontier.cases import FEW, Broken, Nothing, made

import scoresde as sd
from scoresde import grid
from scoresde.errors import ConfigError
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.frontier import solve, work
from scoresde.evaluation.frontier.compare import frontier
from scoresde.evaluation.frontier.result import Frontier


def test_files_hold_what_was_measured(exact, moons, tmp_path):
    how = {"solvers": [sd.DDIM(eta=0.5), Broken(), sd.Heun()], "nfe": (3, 6), **FEW}
    result = frontier(exact, moons.sample(60, 1), pool=moons.sample(200, 2), **how)
    result.to_csv(tmp_path / "new" / "b.csv")
    lines = (tmp_path / "new" / "b.csv").read_text().splitlines()
    comments = dict(line[2:].split(" = ", 1) for line in lines if line.startswith("#"))
    assert comments["sde"] == repr(sd.VPSDE())
    assert (comments["samples"], comments["reference"], comments["seed"]) == ("60", "60", "0")
    assert comments["floor_energy"].startswith(repr(result.floors["energy"].mean))
    assert float(comments["error_prior"]) == result.decomposition["prior"].value
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(result.rows) == 6
    for read, row in zip(rows, result.rows, strict=True):
        assert (read["solver"], read["sde"], read["grid"]) == (row.solver, row.sde, row.grid)
        assert (int(read["steps"]), float(read["nfe"]), int(read["budget"])) == (row.steps, row.nfe, row.budget)
        for metric in ("sliced_wasserstein", "median"):
            m = row.metrics.get(metric, Interval(math.nan, math.nan, math.nan, math.nan))
            found = [float(read[f"{metric}{end}"]) for end in ("", "_low", "_high")]
            assert found == pytest.approx([m.value, m.low, m.high], nan_ok=True, rel=1e-15)
    assert eval(rows[0]["solver"], vars(sd)) == sd.DDIM(eta=0.5)  # the recipe
    result.to_json(tmp_path / "b.json")
    json.loads((tmp_path / "b.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    read = Frontier.from_json(tmp_path / "b.json")
    assert repr(read) == repr(result)
    assert read.table() == result.table()
    assert read.recommend(nfe=6).row == result.recommend(nfe=6).row
    with pytest.raises(ConfigError, match=r"read from a file: make the solver, Heun\(\)"):
        _ = read.recommend(nfe=6).arguments
    table = result.table().splitlines()
    assert table[0].split()[:4] == ["solver", "grid", "steps", "NFE"]
    assert table[2].split()[:4] == ["DDIM(eta=0.5)", result.rows[0].grid, "3", "3"]
    assert any(line.startswith("real samples") and f"{result.floors['energy'].mean:.3g} " in line for line in table)
    figure = result.plot(tmp_path / "b.png", "sliced_wasserstein")
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "DDIM(eta=0.5)" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not what Frontier\.to_json writes"):
        Frontier.from_json(tmp_path / "c.json")


def test_a_frontier_goes_on_from_its_file(exact, tmp_path, monkeypatch):
    out, made, true = tmp_path / "new" / "f.jsonl", [], solve.run

    monkeypatch.setattr(work, "run", lambda setting, job: made.append((job.label, job.budget)) or true(setting, job))
    how = {"nfe": (4, 8), "samples": 30, **FEW, "out": out}
    first = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4
    again = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4
    assert repr(again) == repr(first)  # times too: what was measured
    text = out.read_text()
    more = frontier(exact, solvers=[sd.DDIM(), sd.Heun()], **how)  # other solvers are no other settings
    assert made[4:] == [("DDIM", 4), ("DDIM", 8)]
    assert repr(more.rows[2:]) == repr(first.rows[:2])
    # killed while it wrote a line: that row is made again
    out.write_text(text[: text.index('"row"', text.index('"row"') + 1) + 30])
    cut = frontier(exact, solvers=[sd.Heun(), Broken()], **how)
    assert len(made) == 4 + 2 + 3
    assert [r.metrics for r in cut.rows] == [r.metrics for r in first.rows]
    assert (cut.floors, cut.decomposition) == (first.floors, first.decomposition)
    for change in ({"samples": 31}, {"seed": 1}, {"resamples": 21}, {"t_end": 0.01}, {"paths": 7}):
        key, value = next(iter(change.items()))
        with pytest.raises(ConfigError, match=rf"holds a frontier of other settings: .*{key} was .*, now {value}"):
            frontier(exact, solvers=[sd.Heun()], **{**how, **change})
    other = sd.ExactModel(sd.data.two_moons(std=0.2), sd.VPSDE())
    with pytest.raises(ConfigError, match="model was 'ExactModel"):
        frontier(other, solvers=[sd.Heun()], **how)
    for content in ("hello\n", '{"a": 1}\n'):
        (tmp_path / "x").write_text(content)
        with pytest.raises(ConfigError, match="give another file"):
            frontier(exact, solvers=[sd.Heun()], **{**how, "out": tmp_path / "x"})


def test_recommendations():
    f = made(("A", "u", 5, 0.5), ("A", "u", 10, 0.1), ("A", "v", 10, 0.2), ("B", "u", 9, 0.05), ("B", "u", 20, 0.06), ("C", "u", 20, 0.01))
    assert (f.recommend(nfe=10).row.label, f.recommend(nfe=8).row.label, f.recommend(nfe=50).row.label) == ("B", "A", "C")
    best = f.recommend(error=0.2)
    assert (best.row.label, best.row.nfe) == ("B", 9)
    assert [(r.label, r.grid) for r in best.others] == [("A", "u"), ("A", "v"), ("C", "u")]
    assert "B, 9 steps on the grid 'u': 9 network calls, median 0.05 [0.045, 0.055]" in str(best)
    assert "instead of A (u): 10 calls, median 0.1" in str(best)
    assert f.recommend(nfe=30, error=0.05).row.nfe == 9
    with pytest.raises(ConfigError, match=r"within 3 network calls: the closest is A \(u\) with 5"):
        f.recommend(nfe=3)
    with pytest.raises(ConfigError, match=r"median of 0.001: the closest is C \(u\) with 0.01 at 20 calls"):
        f.recommend(error=0.001)
    with pytest.raises(ConfigError, match=r"0.01 within 10 network calls: the closest is B \(u\) with 0.05 at 9"):
        f.recommend(nfe=10, error=0.01)
    with pytest.raises(ConfigError, match="neither"):
        f.recommend()
    with pytest.raises(ConfigError, match="metric = 'rms', expected one of median"):
        f.recommend(nfe=3, metric="rms")
    share = {"precision": Interval(0.8, 0.7, 0.9, 0.05)}
    g = Frontier((dataclasses.replace(f.rows[0], metrics=share), dataclasses.replace(f.rows[3], metrics={"precision": Interval(0.9, 0, 1, 0)})), {}, {}, {"t_end": 0})
    assert g.recommend(nfe=10, metric="precision").row.label == "B"
    assert g.recommend(error=0.75, metric="precision").row.label == "A"
    with pytest.raises(ConfigError, match="closest is B"):
        g.recommend(error=0.95, metric="precision")


def test_a_recommendation_can_be_sampled_with(exact):
    result = frontier(exact, solvers=[(sd.DDIM(), grid.log_snr), sd.Ancestral()], nfe=(6,), samples=30, **FEW)
    best = result.recommend(nfe=6)
    assert torch.equal(
        sd.sample(exact, 5, **best.arguments), sd.sample(exact, 5, solver=sd.DDIM(), times=grid.log_snr(exact.sde, 6, end=1e-3))
    )
    result = frontier(exact, solvers=[Nothing(), sd.Ancestral()], nfe=(6,), samples=30, t_end=0.01, **FEW)
    other = result.recommend(nfe=6, metric="energy")
    assert other.row.label == "Ancestral"
    assert torch.equal(sd.sample(exact, 5, **other.arguments), sd.sample(exact, 5, solver=sd.Ancestral(), steps=6, t_end=0.01))

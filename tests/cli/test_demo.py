"""The demo: everything at once, in the time that it was given."""

import re
import time

import pytest
import torch

import scoresde as sd
from scoresde.cli import demo, main

torch.set_num_threads(1)


def test_as_many_samples_as_there_is_time_for():
    per_call = 10.0 / demo.calls_of(demo.NFE)  # ten seconds for one batch
    assert demo.plan(per_call, 100.0, 64, 297) == 297
    assert demo.plan(per_call, 40.0, 64, 297) == 192  # a fifth is for judging
    assert demo.plan(per_call, -50.0, 64, 297) == 64  # never nothing


def test_calls_are_about_what_is_counted():
    """By the demo's own solvers on an exact model, one batch at two budgets."""
    model = sd.ExactModel(sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.3, 0.4])), sd.VPSDE())
    result = sd.frontier(model, solvers=demo.SOLVERS, nfe=(5, 10), samples=16, paths=0, resamples=2, progress=False)
    assert 0.5 < sum(row.calls for row in result.rows) / demo.calls_of((5, 10)) < 2


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    begun = time.monotonic()
    assert main(["demo", "--out", str(out), "--minutes", "0.05", "--progress", "off"]) == 0
    assert time.monotonic() - begun < 120  # a busy machine too: what there is no time for is left out
    captured = capsys.readouterr()
    for name in ("samples", "trajectory", "loss", "steps_vs_quality"):
        assert (out / f"{name}.png").stat().st_size > 5000
    text = captured.out
    assert text.splitlines()[0].split() == ["SDE", "solver", "steps", "NFE", "seconds", "quality", "bits/dim"]
    assert re.search(r"VPSDE +Heun +5 +10 ", text)
    assert re.search(r"log-likelihood +40 +40 .*\d\.\d{3} \+- \d\.\d{3}", text)
    assert "Try next" in text
    assert text.startswith((out / "table.txt").read_text())
    rows = [line for line in (out / "steps_vs_quality.csv").read_text().splitlines() if not line.startswith("#")]
    fixed = sum(not isinstance(solver, sd.TorchDiffEq) for solver in demo.SOLVERS)
    assert len(rows) == 1 + 2 * fixed + (len(demo.SOLVERS) - fixed)
    assert "up to 10 network calls only" in captured.err
    assert all(f"[{stage}/4]" in captured.err for stage in (1, 2, 3, 4))
    assert re.search(r"  \d\.\d{3} \+- \d\.\d{3} bits/dim", captured.err)  # results as they come
    assert len(re.findall(r"network calls, sliced_wasserstein", captured.err)) == 2
    assert sd.load(out / "run").event_shape == (1, 8, 8)
    assert main(["demo", "--out", str(out), "--minutes", "0.05"]) == 2
    assert "--overwrite" in capsys.readouterr().err

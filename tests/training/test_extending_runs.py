"""Runs that go on: with more steps, for more minutes, at another learning rate; and what may be left out of a run."""

from __future__ import annotations

import json
import time

import pytest
import torch
from training.runs import LEVELS, MOONS, QUICK, lines, make, weights

import scoresde as sd
from scoresde.errors import CheckpointMismatch, ConfigError
from scoresde.training.schedule import Schedule


def fit(out, steps, model=None, data=MOONS, **arguments):
    model = make() if model is None else model
    history = sd.fit(model, data, steps=steps, **{**QUICK, "lr": 1e-2, "log_every": 5, "out": out, **arguments})
    return weights(model), history


@pytest.mark.parametrize("schedule", ["constant", "inverse-sqrt"])
def test_more_steps_where_no_step_depends_on_their_number(tmp_path, schedule):
    """Exactly, though the default warm-up is a tenth of the steps: that of the run so far is kept."""
    fit(tmp_path / "run", 20, schedule=schedule)
    found, history = fit(tmp_path / "run", 60, schedule=schedule, resume=True)
    whole, _ = fit(tmp_path / "whole", 60, schedule=schedule, warmup=2)
    assert torch.equal(found, whole)
    assert history.steps == list(range(5, 61, 5))


def test_a_cosine_is_planned_anew_when_asked(tmp_path, capfd):
    fit(tmp_path / "run", 20)
    with pytest.raises(CheckpointMismatch, match=r"options.steps is 20 .* but 60 was requested.*resume='extend' plans it anew for 60 steps"):
        fit(tmp_path / "run", 60, resume=True)
    _, history = fit(tmp_path / "run", 60, resume="extend", progress=True)
    planned = Schedule(1e-2, 60, 2, 2)
    said = f"goes on from step 20 to step 60; the learning rate, cosine from 0.01, is planned anew and goes on at {planned(20):.3g}"
    assert said in capfd.readouterr().err
    assert history.lr[4:] == [planned(k - 1) for k in history.steps[4:]]
    # from then on it is a run like any other: killed, and gone on with to the bit
    whole = weights(sd.load(tmp_path / "run"))

    def stop(step, line):
        if step == 40:
            raise KeyboardInterrupt

    fit(tmp_path / "other", 20)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "other", 60, resume="extend", checkpoint_every=15, callback=stop)
    assert torch.equal(fit(tmp_path / "other", 60, resume=True)[0], whole)


def test_another_learning_rate(tmp_path):
    fit(tmp_path / "run", 20, schedule="constant")
    with pytest.raises(CheckpointMismatch, match=r"options.lr is 0.01 in the checkpoint, but 0.001 was requested"):
        fit(tmp_path / "run", 40, schedule="constant", lr=1e-3, resume=True)
    _, history = fit(tmp_path / "run", 40, schedule="constant", lr=1e-3, resume="extend")
    assert history.lr[4:] == [1e-3] * 4
    with pytest.raises(CheckpointMismatch, match=r"options.batch_size is 32 in the checkpoint, but 16"):
        fit(tmp_path / "run", 60, schedule="constant", lr=1e-3, batch_size=16, resume="extend")
    with pytest.raises(ConfigError, match="resume = 'extent', expected True, False or 'extend'"):
        fit(tmp_path / "run", 60, resume="extent")
    found, _ = fit(tmp_path / "new", 20, resume="extend")  # where there is nothing yet it starts
    assert torch.equal(found, fit(tmp_path / "newer", 20)[0])


def test_minutes_more(tmp_path):
    fit(tmp_path / "run", 20)
    begun = time.perf_counter()
    _, history = fit(tmp_path / "run", None, minutes=0.02, resume="extend")
    took = time.perf_counter() - begun
    assert history.steps[-1] >= 70  # the pace is taken from 50 steps
    assert took < 15
    assert max(history.lr[4:14]) == 1e-2  # the full learning rate while it is timed, then down to none
    assert history.lr[-1] < 2e-3 or history.steps[-1] == 70


def test_validation_can_be_switched_off(tmp_path):
    seen = []
    model = make()
    model.net.register_forward_hook(lambda net, args, out: seen.append(net.training))
    _, history = fit(tmp_path, 6, model, LEVELS, validate_every=None)
    assert history.validation == []
    assert seen == [True] * 6
    assert not any("validation" in line for line in lines(tmp_path))


def test_a_callback_of_three_arguments_sees_the_averaged_weights(tmp_path):
    model, seen = make(), []

    def callback(step, line, given):
        assert given is model
        assert not given.training
        assert not torch.is_grad_enabled()
        seen.append((weights(given), sd.sample(given, 2, steps=3)))

    found, _ = fit(tmp_path, 20, model, ema=0.5, callback=callback, validate_every=None)
    assert len(seen) == 4
    assert torch.equal(seen[-1][0], found)
    raw = weights(sd.load(tmp_path, ema=False))
    assert not torch.equal(seen[-1][0], raw)
    assert torch.equal(seen[-1][1], sd.sample(model, 2, steps=3))
    assert torch.equal(fit(None, 20, ema=0.5)[0], found)  # and nothing is changed by that
    for other in (lambda step, line: seen.append(step), lambda *both: seen.append(both), lambda step, line, extra=None: seen.append(extra)):
        fit(None, 5, callback=other, validate_every=None)
    assert (seen[-3], len(seen[-2]), seen[-1]) == (5, 2, None)
    with pytest.raises(ConfigError, match="callback = 3"):
        fit(None, 5, callback=3)


def test_a_foreign_log_is_not_replaced(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ConfigError, match=r"holds a log.jsonl of something else: overwrite=True"):
        fit(tmp_path, 5)
    assert (tmp_path / "log.jsonl").read_text() == '{"mine": 1}\n'
    fit(tmp_path, 5, overwrite=True)
    for file in (tmp_path / "run" / "log.jsonl",):  # of a run that was killed before its first checkpoint
        file.parent.mkdir()
        file.write_text(json.dumps({"step": 5, "loss": 1.0}) + "\n")
        fit(file.parent, 5)


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit("~/run", 2)
    assert (tmp_path / "run" / "log.jsonl").exists()


def test_two_lambdas_are_two_weightings(tmp_path):
    fit(tmp_path, 5, weighting=lambda sde, t: 1 + t, schedule="constant")
    fit(tmp_path, 10, weighting=lambda sde, t: 1 + t, schedule="constant", resume=True)
    with pytest.raises(CheckpointMismatch, match=r"options.weighting is '<lambda> .* was requested"):
        fit(tmp_path, 15, weighting=lambda sde, t: 2 + t, schedule="constant", resume=True)

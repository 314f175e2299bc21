"""What happens between steps: minutes that become steps once, and Ctrl-C without a folder."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from training.runs import MOONS, QUICK, lines, make, stop_at, weights

import scoresde as sd
from scoresde.checkpoints import format
from scoresde.training.options import TIMED


def test_ctrl_c_without_a_folder_and_a_second_one():
    model = make()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 10"):
        sd.fit(model, MOONS, steps=60, callback=stop_at(10, signal.SIGINT), **QUICK)
    assert not model.training

    def twice(step, line):
        if step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one must be immediate")

    with pytest.raises(KeyboardInterrupt) as caught:
        sd.fit(make(), MOONS, steps=60, callback=twice, **QUICK)
    assert "step" not in str(caught.value)


def test_minutes_become_steps_once(tmp_path):
    """In next to no time it is the timed steps and no more; a run that was interrupted before goes on to time some of its own."""
    no_time = {"minutes": 1e-9, "warmup": 60, **QUICK}
    model = make()
    h = sd.fit(model, MOONS, out=tmp_path, **no_time)
    training = format.read(tmp_path).config["training"]
    assert training["steps"] == training["step"] == h.steps[-1] == TIMED
    again = sd.fit(make(), MOONS, out=tmp_path, resume=True, **no_time)
    assert again.loss == h.loss
    for stop, steps in ((20, TIMED), (40, TIMED), (49, 59)):
        cut, root = make(), tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            sd.fit(make(), MOONS, out=root, callback=stop_at(stop, signal.SIGINT), **{**no_time, "log_every": 1})
        h = sd.fit(cut, MOONS, out=root, resume=True, **no_time)
        assert h.steps[-1] == steps
        assert torch.equal(weights(cut), weights(model)) == (steps == TIMED)
    other = make()
    sd.fit(other, MOONS, steps=59, warmup=60, **QUICK)  # as many steps, given
    assert torch.equal(weights(cut), weights(other))


def test_a_run_keeps_the_steps_that_its_minutes_became(tmp_path):
    """Interrupted and resumed after they are known it does what a run of as many given steps does, where the learning rate falls."""
    how = {"warmup": 60, **QUICK, "log_every": 2}
    with pytest.raises(KeyboardInterrupt):
        sd.fit(make(), MOONS, minutes=1.0, out=tmp_path, callback=stop_at(64, signal.SIGINT), **how)
    log = [line for line in lines(tmp_path) if "loss" in line]
    steps = format.read(tmp_path).config["training"]["steps"]
    pace = (log[-1]["seconds"] - log[4]["seconds"]) / 54
    assert 60 / 5 < steps * pace < 60 * 5  # a busy machine; seconds taken for minutes would be a factor of 60
    model, other = make(), make()
    with pytest.raises(KeyboardInterrupt):
        sd.fit(model, MOONS, minutes=1.0, out=tmp_path, resume=True, callback=stop_at(80, signal.SIGINT), **how)
    assert format.read(tmp_path).config["training"]["steps"] == steps
    with pytest.raises(KeyboardInterrupt):
        sd.fit(other, MOONS, steps=steps, callback=stop_at(80, signal.SIGINT), **how)
    assert torch.equal(weights(model), weights(other))

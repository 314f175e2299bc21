"""What a run remembers: by step, in memory, in the log, and for the callback."""

from __future__ import annotations

import json

from scoresde.training.history import History, Log


def line(step, **kwargs):
    return {"step": step, "loss": 1.0 / (step + 1), "lr": 0.1, "grad_norm": 2.0, "seconds": 0.5 * step, **kwargs}


def test_lines_go_where_they_belong():
    history = History()
    assert repr(history) == "History(no steps logged)"
    for entry in (
        {"step": 0, "validation": 3.0, "seconds": 0.0},
        line(1, samples_per_second=9.0),
        line(3),
        {"step": 3, "validation": 0.5, "seconds": 2.0},
    ):
        history.add(entry)
    assert (history.steps, history.loss, history.lr, history.grad_norm, history.seconds) == (
        [1, 3],
        [0.5, 0.25],
        [0.1] * 2,
        [2.0] * 2,
        [0.5, 1.5],
    )
    assert (history.validation_steps, history.validation) == ([0, 3], [3.0, 0.5])
    assert repr(history) == "History(3 steps, loss 0.25, validation 0.5, 2 s)"


def test_the_file_has_a_line_before_the_callback_is_called(tmp_path):
    seen = []

    def callback(step, given):
        assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1]) == given
        given.clear()  # is its own
        seen.append(step)

    history = History()
    log = Log(tmp_path, history, callback)
    first = line(1)
    log.line(first)
    assert first == line(1)
    log.line(line(2))
    assert seen == history.steps == [1, 2]
    Log(None, history, None).line(line(3))
    assert history.steps == [1, 2, 3]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2

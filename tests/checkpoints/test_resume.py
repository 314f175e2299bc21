"""Interrupted runs: signals, kills, damage and full disks, and the same weights to the bit after all."""

from __future__ import annotations

import os
import random
import resource
import signal
import time

import pytest
import torch
from training.runs import LEVELS, MOONS, QUICK, RUN, equal, lines, make, run, state_of, stop_at, weights

import scoresde as sd
from scoresde import data, loss, nets
from scoresde.checkpoints import folders, format
from scoresde.errors import CheckpointMismatch, CheckpointWriteError, ConfigError, LockError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    model, history = run(root)
    return root, model, history


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_the_run_goes_on_to_the_bit(tmp_path, uninterrupted, signum, capfd):
    error = KeyboardInterrupt if signum == signal.SIGINT else SystemExit
    with pytest.raises(error) as caught:
        run(tmp_path, callback=stop_at(30, signum))
    if error is SystemExit:
        assert caught.value.code == 143
        assert "saved step 30" in capfd.readouterr().err
    else:
        assert "saved step 30" in str(caught.value)
    assert format.read(tmp_path).config["training"]["step"] == 30
    model, history = run(tmp_path, resume=True)
    root, whole, other = uninterrupted
    assert torch.equal(weights(model), weights(whole))
    assert equal(state_of(tmp_path), state_of(root))
    assert (history.steps, history.loss, history.validation) == (other.steps, other.loss, other.validation)
    without_time = [
        [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines(r)] for r in (tmp_path, root)
    ]
    assert without_time[0] == without_time[1]
    assert all(a <= b for a, b in zip(history.seconds, history.seconds[1:], strict=False))
    # once more: nothing is left to do
    model, history = run(tmp_path, resume=True)
    assert torch.equal(weights(model), weights(whole))
    assert history.loss == other.loss


def test_fitted_times_go_on_to_the_bit(tmp_path):
    arguments = {"times": "fitted", "steps": 264, "checkpoint_every": 70}
    whole, history = run(tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callback=stop_at(140, signal.SIGINT), **arguments)  # between the fits of steps 128 and 256
    shares = format.read(tmp_path / "cut").config["training"]["shares"]
    assert len(shares) == 32
    assert max(shares) > 2 * min(shares)
    model, resumed = run(tmp_path / "cut", resume=True, **arguments)
    assert torch.equal(weights(model), weights(whole))
    assert equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))
    assert resumed.loss == history.loss
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "flat", callback=stop_at(140, signal.SIGINT), **{**arguments, "times": "importance"})
    flat = [line["loss"] for line in lines(tmp_path / "flat") if "loss" in line]
    assert flat[:12] == history.loss[:12]  # up to step 120
    assert all(a != b for a, b in zip(flat[12:], history.loss[12:14], strict=True))


def test_the_log_is_cut_where_the_run_goes_on(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop_at(20, signal.SIGINT))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 40, "validation": 1.0, "seconds": 1}\n{"step": 50, "loss"')
    _, history = run(tmp_path, resume=True)
    assert history.loss == uninterrupted[2].loss
    assert [line["step"] for line in lines(tmp_path)] == [line["step"] for line in lines(uninterrupted[0])]


def test_a_damaged_checkpoint_costs_some_steps_only(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop_at(30, signal.SIGINT))
    file = folders.folders(tmp_path)[-1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"truncated.*the previous checkpoint is used"):
        run(tmp_path, resume=True)
    assert equal(state_of(tmp_path), state_of(uninterrupted[0]))


def test_a_model_saved_in_between_does_not_harm_the_run(tmp_path, uninterrupted):
    model = make(5)

    def save(step, line):
        if step in (10, 20):
            sd.save(model, tmp_path)
        stop_at(30, signal.SIGINT)(step, line)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=save)
    for _ in range(4):
        sd.save(model, tmp_path)
    assert torch.equal(weights(sd.load(tmp_path)), weights(model))
    assert [format.is_training(folder) for folder in folders.folders(tmp_path)] == [True, True, False, False]
    run(tmp_path, resume=True)
    assert equal(state_of(tmp_path), state_of(uninterrupted[0]))


def test_a_constant_schedule_can_be_extended(tmp_path):
    constant = {"schedule": "constant", "warmup": 3}
    run(tmp_path, steps=20, **constant)
    run(tmp_path, steps=30, resume=True, **constant)
    run(tmp_path / "b", steps=30, **constant)
    assert equal(state_of(tmp_path), state_of(tmp_path / "b"))


# ---- what must be the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "options.seed is 0 in the checkpoint, but 1 was requested"),
        ({"batch_size": 16}, "options.batch_size is 32"),
        ({"lr": 1e-3}, "options.lr is 0.01"),
        ({"steps": 61}, "options.steps is 60 in the checkpoint, but 61"),
        ({"weighting": "simple"}, "options.(times|weighting)"),
        ({"model": make(dropout=0.1)}, "net.args.dropout is 0.2 in the checkpoint, but 0.1"),
    ],
)
def test_a_run_goes_on_with_the_same_arguments_only(uninterrupted, change, message):
    with pytest.raises(CheckpointMismatch, match=message):
        run(uninterrupted[0], resume=True, **change)


def test_labels_that_were_not_given_are_not_given_later(tmp_path):
    run(tmp_path, make(classes=3), steps=5, conditional=False)
    with pytest.raises(CheckpointMismatch, match="conditional is False in the checkpoint, but True"):
        run(tmp_path, make(classes=3), steps=5, resume=True)


def test_other_data_are_refused(uninterrupted):
    other = data.Data(LEVELS.train.flip(0), LEVELS.test, LEVELS.transform)
    with pytest.raises(CheckpointMismatch, match=r"data is '[0-9a-f]{64}'"):
        sd.fit(make(dropout=0.2), other, out=uninterrupted[0], resume=True, **RUN)


def test_resuming_with_other_times_of_ones_own_is_refused(tmp_path):
    arguments = {"steps": 20, **QUICK}
    sd.fit(make(), MOONS, out=tmp_path, times=loss.FittedTimes((0.9, 0.1)), **arguments)
    with pytest.raises(CheckpointMismatch, match=r"times is .*0\.9, 0\.1"):
        sd.fit(make(), MOONS, out=tmp_path, resume=True, times=loss.FittedTimes((0.1, 0.9)), **arguments)


def test_resuming_with_another_dequantization_names_it(tmp_path):
    model = lambda: sd.NetworkModel(nets.MLP(2, 16, 1), LEVELS.transform.adapt(sd.VPSDE()), (2,))
    sd.fit(model(), LEVELS, steps=10, out=tmp_path, dequantization="normal", **QUICK)
    with pytest.raises(CheckpointMismatch, match="dequantization is 'normal' in the checkpoint, but None"):
        sd.fit(model(), LEVELS, steps=10, out=tmp_path, resume=True, **QUICK)


def test_a_run_is_not_overwritten_unasked(tmp_path):
    short = {"steps": 5, "warmup": 0}
    run(tmp_path, **short, resume=True)  # nothing to resume: starts
    first = state_of(tmp_path)
    with pytest.raises(ConfigError, match=r"resume=True continues it, overwrite=True removes it"):
        run(tmp_path, **short)
    assert equal(state_of(tmp_path), first)
    run(tmp_path, **short, overwrite=True, seed=1)
    assert not equal(state_of(tmp_path), first)
    assert len(folders.folders(tmp_path)) == 1
    assert [line["step"] for line in lines(tmp_path)] == [0, 5, 5]


# ---- things go wrong


def test_a_full_disk_stops_the_run_and_keeps_the_last(tmp_path):
    """The disk is full from step 20 on: no file may grow beyond a hundred bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(step, line):
        if step == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(CheckpointWriteError, match=r"File too large.*previous checkpoint intact: \S+checkpoint-000014"):
            run(tmp_path, callback=fills)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert format.read(tmp_path).config["training"]["step"] == 14
    run(tmp_path, resume=True)
    assert format.read(tmp_path).config["training"]["step"] == 60


def test_two_runs_in_one_folder(tmp_path):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sd.fit(make(), MOONS, steps=10**6, out=tmp_path, callback=lambda step, line: os.write(go, b"1"), **QUICK)
        finally:
            os._exit(1)
    try:
        os.read(ready, 1)
        with pytest.raises(LockError, match=f"process {pid} "):
            sd.fit(make(), MOONS, steps=5, out=tmp_path, **QUICK)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sd.fit(make(), MOONS, steps=5, out=tmp_path, overwrite=True, **QUICK)


@pytest.mark.slow
def test_twenty_kills_and_the_same_weights_to_the_bit(tmp_path, uninterrupted):
    """kill -9 at random moments, of a run with shuffled levels, dropout, warm-up and an average."""
    rng, kills, longest = random.Random(0), 0, {"steps": 400, "checkpoint_every": 5}
    run(tmp_path / "whole", **longest)
    root = tmp_path / "killed"
    for attempt in range(400):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run(root, resume=True, **longest)
                code = 0
            finally:
                os._exit(code)
        if kills < 20:
            wait = rng.uniform(0.005, 0.12)
            time.sleep(wait)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kills += status == -signal.SIGKILL
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"attempt {attempt} ended with {status}"
    assert kills == 20
    assert equal(state_of(root), state_of(tmp_path / "whole"))
    assert not [name for name in os.listdir(root) if name.startswith(".tmp")]
    steps = [line["step"] for line in lines(root)]
    assert steps == [line["step"] for line in lines(tmp_path / "whole")]

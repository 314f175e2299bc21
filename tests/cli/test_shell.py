"""How the command line speaks: one line for what goes wrong, and signals."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

import scoresde as sd
from scoresde.cli import main

torch.set_num_threads(1)

ODD = """
import warnings
import scoresde as sd

class Broken(sd.VPSDE):
    def __init__(self): raise RuntimeError("first line\\n  second line")

class Loud(sd.VPSDE):
    def __init__(self):
        warnings.warn("blurred\\nover")
        raise sd.errors.ConfigError("enough")
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A module odd_classes in the folder that commands are given in."""
    (tmp_path / "odd_classes.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("odd")
def test_the_unexpected_is_one_line_too(capsys):
    assert main(shlex.split("train --data moons --out x --sde odd_classes:Broken")) == 1
    assert capsys.readouterr().err == "scoresde: error: RuntimeError: first line second line (--debug shows where)\n"


@pytest.mark.usefixtures("odd")
def test_warnings_are_one_line(capsys):
    assert main(shlex.split("train --data moons --out x --sde odd_classes:Loud")) == 2
    assert capsys.readouterr().err == "scoresde: warning: blurred over\nscoresde: error: enough\n"


def within(seconds, condition):
    """Whether it becomes true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def started(arguments, log):
    """The command in a process of its own, with its stderr in ``log``; it is over when this is."""
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "scoresde.cli", *arguments]
        # in a process group of its own: Ctrl-C to the tests is none to it
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["train", "sample"])
def test_signals(command, signum, code, runs, quick, tmp_path):
    out, log = tmp_path / "run", tmp_path / "err"
    if command == "train":
        line = f"train --data moons --steps 1000000 --net.width 8 --batch_size 8 --out {out} {quick}"
    else:
        line = f"sample {runs}/moons --steps 10000 --n 100000 --out {tmp_path}/x.npy --threads 1"
    with started(shlex.split(line), log) as process:
        sign = out / "log.jsonl" if command == "train" else log
        assert within(60, lambda: sign.exists() and sign.read_text()), f"it has not begun: {log.read_text()}"
        time.sleep(0.3)
        process.send_signal(signum)
        assert within(60, lambda: process.poll() is not None), f"it goes on: {log.read_text()}"
    assert process.returncode == code
    said = log.read_text()
    assert "Traceback" not in said
    assert ("interrupted" if signum == signal.SIGINT else "terminated") in said.splitlines()[-1]
    if command == "train":
        assert re.search(r"saved step \d+", said)
        assert "--resume" in said or signum == signal.SIGTERM
        assert sd.load(out).event_shape == (2,)

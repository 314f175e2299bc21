"""What the tests of the command line share: three short runs, and a way to give a command."""

from __future__ import annotations

import shlex

import pytest

from scoresde.cli import main


@pytest.fixture(scope="session")
def quick():
    """Options of every command in a test."""
    return "--progress off --threads 1"


@pytest.fixture(scope="session")
def runs(tmp_path_factory, quick):
    """A folder with three short runs: images, labelled images, points."""
    folder = tmp_path_factory.mktemp("runs")
    net = "--net UNet --net.width 8 --net.blocks 1 --batch_size 16"
    assert main(shlex.split(f"train --data digits --steps 3 --out {folder}/digits {net} {quick}")) == 0
    assert main(shlex.split(f"train --data digits --steps 3 --out {folder}/labels {net} --conditional {quick}")) == 0
    assert main(shlex.split(f"train --data moons --steps 3 --out {folder}/moons --sde VESDE --sde.sigma_max 20 {quick}")) == 0
    return folder


@pytest.fixture(scope="session")
def run(quick):
    """A command as text; its exit code."""
    return lambda line: main(shlex.split(f"{line} {quick}"))

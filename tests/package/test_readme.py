"""The README's Python blocks run as written, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 8
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["history"].steps
    assert torch.isfinite(names["gap"])


def test_the_two_commands_are_there():
    for command in (
        "python -m venv .venv && .venv/bin/pip install torch==2.13.0 -e . && .venv/bin/scoresde demo",
        'python -m venv .venv && .venv/bin/pip install torch==2.13.0 -e ".[dev]" && .venv/bin/python -m pytest',
    ):
        assert command in README


@pytest.mark.parametrize("path", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_pictures_exist(path):
    assert (ROOT / path).stat().st_size > 1000


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:benchmarks|notebooks|docs|tests)/[\w/.]+)`", README))))
def test_named_files_exist(path):
    assert (ROOT / path).exists()

"""The mutation gate: each planted mistake must fail a test (see ``mutations.py``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS


@pytest.mark.slow
def test_every_planted_mistake_fails_a_test():
    script = Path(__file__).parents[1] / "mutations.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count("fails") == len(MUTATIONS) >= 8

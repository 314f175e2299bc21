"""The mutation gate: each planted mistake must fail a test (see ``mutations.py``)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutations import MUTATIONS, ROOT


def test_every_folder_has_mistakes_of_its_own():
    """Thirty at least, two or more in each folder of the package; every one names tests that exist and text that is there, once."""
    assert len(MUTATIONS) >= 30
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    planted = Counter(m.file.split("/")[0] for m in MUTATIONS)
    folders = {path.parent.name for path in (ROOT / "scoresde").glob("*/__init__.py")}
    assert not {folder: planted[folder] for folder in folders if planted[folder] < 2}
    for m in MUTATIONS:
        assert (ROOT / "scoresde" / m.file).read_text().count(m.old) == 1, m.name
        for test in m.tests:
            file, _, function = test.partition("::")
            assert f"def {function.partition('[')[0]}" in (ROOT / "tests" / file).read_text(), m.name


@pytest.mark.slow
def test_every_planted_mistake_fails_a_test():
    script = Path(__file__).parents[1] / "mutations.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count("fails") == len(MUTATIONS)

"""The table of streams: no two purposes share one."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import scoresde as sd
from scoresde.core import streams


def test_all_streams_of_the_table_are_disjoint():
    """No two purposes share a stream: the ranges follow one another, and every name of the table is the start of its own."""
    ends = sorted((r.start, r.stop, name) for name, r in streams.RANGES.items())
    for (_, stop, name), (start, _, other) in pairwise(ends):
        assert stop <= start, f"{name} and {other}"
    assert all(0 <= start < stop <= 1 << 63 for start, stop, _ in ends)
    assert all(getattr(streams, name) == r.start for name, r in streams.RANGES.items())
    sizes = {"OFF_PATH", "FINE_TUNING_DRAW", "FINE_TUNING_VALIDATION_DRAW", "TRAINING_DRAW", "RANGES"}  # no streams, but limits and steps
    assert {name for name in vars(streams) if name.isupper() and not name.startswith("_")} - sizes == set(streams.RANGES)
    assert {streams.PRIOR, streams.STEP, streams.CORRECTOR} == {sd.noise.PRIOR, sd.noise.STEP, sd.noise.CORRECTOR}


def test_no_stream_is_written_as_a_number_elsewhere():
    """Where a draw is made, its stream is a name (or a parameter, or built on one): 1 is nobody's."""
    package = Path(sd.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("normal", "uniform", "rademacher"):
                assert not (node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, int)), f"{path}:{node.lineno}"

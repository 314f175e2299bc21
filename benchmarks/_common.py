"""What every benchmark shares: the machine's description, results as JSON, the exact targets of the tests."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scoresde.core.encoding import without_nan

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # problems.py holds the targets with known answers


def settings(**more: Any) -> dict[str, Any]:
    """Versions, threads and whatever else a reader needs to rerun it."""
    libraries = ("scoresde", "torch", "numpy", "torchdiffeq", "torchsde")
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in libraries},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **more,
    }


def write(name: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Writes rows and settings to results/name.json and prints where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(without_nan({"settings": settings(**more), "rows": rows}), indent=1, allow_nan=False) + "\n")
    print(f"written: {path}")
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a text table."""
    if not rows:
        return "(no rows)"
    head = list(rows[0])
    cells = [head] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)

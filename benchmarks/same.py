"""Whether two runs of a benchmark gave the same figures: `python benchmarks/same.py BEFORE/orders.json AFTER/orders.json ...`.

For changes of the code that must not change a number: pairs of files, before and after, are compared number by number. Seconds are left
out. Prints the largest difference, relative to the larger of the two and of 1e-9, and ends with 1 where one exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = 1e-9  # below this a figure is rounding: of errors near the last bit nothing stays


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of a result, by where it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "second" not in key and key not in ("overhead", "command"):
                yield from numbers(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{name}[{i}]")
    else:
        yield name, value


def difference(a: Any, b: Any) -> float:
    """Relative, of numbers; infinite for anything else that differs."""
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return 0.0 if a == b else math.inf
    return abs(a - b) / max(abs(a), abs(b), SMALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="before and after, in pairs")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    a = parser.parse_args()
    if len(a.files) % 2:
        parser.error(f"{len(a.files)} files, expected pairs: before and after")
    worst = 0.0
    for before, after in zip(a.files[::2], a.files[1::2], strict=True):
        old, new = (dict(numbers(json.loads(path.read_text())["rows"])) for path in (before, after))
        found = max(((difference(old.get(key), new.get(key)), key) for key in {**old, **new}), default=(0.0, ""))
        worst = max(worst, found[0])
        print(f"{after.name}: {len(new)} figures, largest difference {found[0]:.2g}{f' in {found[1]}' if found[0] else ''}")
    return int(worst > a.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())

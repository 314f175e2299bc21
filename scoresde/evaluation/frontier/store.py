"""The file of a frontier that can be resumed: one JSON object a line; the first holds the settings, each finished row has its own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.core import rows
from scoresde.core.encoding import without_nan
from scoresde.errors import ConfigError
from scoresde.evaluation.frontier.rows import Row, number, read_interval
from scoresde.evaluation.metrics import NoiseFloor

if TYPE_CHECKING:
    from scoresde.evaluation.bootstrap import Interval

KIND = "scoresde frontier"


class Store:
    """Rows that are finished, by key; None for a path keeps nothing.

    Raises:
        ConfigError: a file of something else, or of a frontier with other settings.
        CheckpointWriteError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        if path is not None and (not isinstance(path, (str, os.PathLike)) or Path(path).is_dir()):
            raise ConfigError(f"out = {path!r}, expected the name of a file, of JSON lines: rows.jsonl for instance")
        self.rows: dict[str, Row] = {}
        self.floors: dict[str, NoiseFloor] | None = None
        self.parts: dict[str, Any] | None = None
        self.file: rows.Rows | None = None
        if path is not None:
            wanted = without_nan({key: value for key, value in settings.items() if key != "machine"})
            self.file = rows.Rows(Path(path), KIND, "a frontier", wanted, "Remove it, or give another file")
            lines = self.file.read()
            self.file.write(self._taken(lines))

    def _taken(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Takes what an earlier run finished; the lines that are of a frontier, with a warning where some are not."""
        good, strange = [], []
        for line, entry in enumerate(lines, 2):
            try:
                if "row" in entry:
                    self.rows[entry["key"]] = Row.from_json(entry["row"])
                elif "floors" in entry:
                    self.floors = read_floors(entry["floors"])
                elif "parts" in entry:
                    read_intervals(entry["parts"]["decomposition"])
                    number(entry["parts"]["converged_error"])
                    self.parts = entry["parts"]
            except (KeyError, TypeError, ValueError, AttributeError):
                strange.append(line)
            else:
                good.append(entry)
        if self.file is not None:
            self.file.warn(strange)
        return good

    def add(self, **line: Any) -> None:
        """Appends one line."""
        if self.file is not None:
            self.file.add(without_nan(line))


def floors_to_json(floors: Mapping[str, NoiseFloor]) -> dict[str, Any]:
    return {name: dataclasses.asdict(floor) for name, floor in floors.items()}


def read_floors(content: Mapping[str, Any]) -> dict[str, NoiseFloor]:
    return {name: NoiseFloor(number(v["mean"]), number(v["std"])) for name, v in content.items()}


def read_intervals(content: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: read_interval(v) for name, v in content.items()}

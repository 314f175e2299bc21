"""The file of a frontier that can be resumed: one JSON object a line; the first holds the settings, each finished row has its own."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.core import files
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
        self.path = None if path is None else Path(path)
        self.rows: dict[str, Row] = {}
        self.floors: dict[str, NoiseFloor] | None = None
        self.parts: dict[str, Any] | None = None
        wanted = without_nan({key: value for key, value in settings.items() if key != "machine"})
        header = {"kind": KIND, "settings": json.loads(json.dumps(wanted))}
        if self.path is None:
            return
        lines = self._read(header)
        files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in [header, *lines]))

    def _read(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of an earlier run after its header; a last one that was cut off is dropped."""
        try:
            lines = files.read_lines(self.path) if self.path else []
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read ({error.strerror}): give another file") from None
        parsed: list[dict[str, Any]] = []
        for i, line in enumerate(lines):
            try:
                parsed.append(json.loads(line))
            except ValueError:
                if i < len(lines) - 1 or not parsed:
                    raise ConfigError(f"{self.path}: line {i + 1} is not JSON: give another file") from None
        if not parsed:
            return []
        if not isinstance(parsed[0], dict) or parsed[0].get("kind") != KIND:
            raise ConfigError(f"{self.path} is not the file of a frontier: give another file")
        old, new = parsed[0]["settings"], header["settings"]
        differ = [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)]
        if differ:
            raise ConfigError(f"{self.path} holds a frontier of other settings: {'; '.join(differ)}. Remove it, or give another file")
        try:
            for entry in parsed[1:]:
                if "row" in entry:
                    self.rows[entry["key"]] = Row.from_json(entry["row"])
                elif "floors" in entry:
                    self.floors = read_floors(entry["floors"])
                elif "parts" in entry:
                    self.parts = entry["parts"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{self.path}: a line is not what a frontier writes ({error!r}): give another file") from None
        return parsed[1:]

    def add(self, **line: Any) -> None:
        """Appends one line."""
        if self.path is not None:
            files.append_text(self.path, json.dumps(without_nan(line)) + "\n")


def floors_to_json(floors: Mapping[str, NoiseFloor]) -> dict[str, Any]:
    return {name: dataclasses.asdict(floor) for name, floor in floors.items()}


def read_floors(content: Mapping[str, Any]) -> dict[str, NoiseFloor]:
    return {name: NoiseFloor(number(v["mean"]), number(v["std"])) for name, v in content.items()}


def read_intervals(content: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: read_interval(v) for name, v in content.items()}

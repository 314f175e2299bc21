"""Finished work as JSON lines, gone on with after any interruption: the first line holds kind and settings, each other a finished part.

A process that is killed leaves what it finished; a last line that was cut off is not there. Numbers are read as the bits that they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.core import files
from scoresde.errors import ConfigError

Line = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The file of some work.

    Args:
        path: the file.
        kind: what its first line says that it is.
        what: the same for messages: "likelihoods", "a frontier".
        settings: plain JSON of all that the lines depend on; a file of others is refused.
        remedy: what to do then.
        strict: whether a line that is not JSON, and not the last, is an error; else that part is done again.
    """

    path: Path
    kind: str
    what: str
    settings: Mapping[str, Any]
    remedy: str = "Give another file"
    strict: bool = False

    def read(self, overwrite: bool = False) -> list[Line]:
        """The finished lines of an earlier run; none to overwrite it.

        Raises:
            ConfigError: a file of something else, or of other settings.
        """
        try:
            lines = files.read_lines(self.path)
        except OSError as error:
            raise ConfigError(f"out = {self.path} cannot be read ({error.strerror}): give another file") from None
        if not lines:
            return []
        header, *rest = parsed = [_parsed(line) for line in lines]
        if not isinstance(header, dict) or header.get("kind") != self.kind or not isinstance(header.get("settings"), dict):
            raise ConfigError(f"out = {self.path} is not the file of {self.what}: give another file")
        if self.strict and None in parsed[:-1]:
            raise ConfigError(f"out = {self.path}: line {parsed.index(None) + 1} is not JSON: give another file")
        if overwrite:
            return []
        old, new = header["settings"], json.loads(json.dumps(dict(self.settings)))
        changes = "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in different(old, new))
        if changes:
            raise ConfigError(f"out = {self.path} holds {self.what} of other settings: {changes}. {self.remedy}")
        return [line for line in rest if isinstance(line, dict)]

    def write(self, lines: Iterable[Line]) -> None:
        """Replaces the file by its first line and these. Raises CheckpointWriteError."""
        header = {"kind": self.kind, "settings": dict(self.settings)}
        files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in [header, *lines]))

    def add(self, line: Line) -> None:
        """One more finished line, on the disk when this returns. Raises CheckpointWriteError; ValueError for NaN or infinity."""
        files.append_text(self.path, json.dumps(line, allow_nan=False) + "\n")
        files.sync_file(self.path)


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # cut off by a crash or a full disk: it is done again
        return None

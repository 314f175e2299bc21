"""Finished work as JSON lines, gone on with after any interruption: the first line holds kind and settings, each other a finished part.

A process that is killed leaves what it finished; a last line that was cut off is not there, and a damaged one, which its sum tells, is
passed over with a warning: its part is done again. Numbers are read as the bits that they were.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.core import encoding, files
from scoresde.errors import CheckpointError, ConfigError

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
    """

    path: Path
    kind: str
    what: str
    settings: Mapping[str, Any]
    remedy: str = "Give another file"

    def read(self, overwrite: bool = False) -> list[Line]:
        """The finished lines of an earlier run; none to overwrite it. Warns of damaged ones.

        Raises:
            ConfigError: a file of something else, or of other settings; its first line is damaged.
        """
        try:
            lines = files.read_lines(self.path)
        except CheckpointError as error:
            raise ConfigError(f"out = {self.path} cannot be read ({error}): give another file") from None
        if not lines:
            return []
        header, *rest = (encoding.decode_line(line) for line in lines)
        old = header is None or encoding.is_old(header)
        has_sum = [old or encoding.has_sum(line) for line in lines]  # of a newer file every line has one
        if header is None or header.get("kind") != self.kind or not isinstance(header.get("settings"), dict) or not has_sum[0]:
            raise ConfigError(f"out = {self.path} is not the file of {self.what}, or its first line is damaged: give another file")
        if header.get("format", 1) not in (1, encoding.VERSION):
            raise ConfigError(f"out = {self.path} is of format {header['format']!r}, which a later version wrote: give another file")
        if overwrite:
            return []
        before, now = header["settings"], json.loads(json.dumps(dict(self.settings)))
        changes = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in different(before, now))
        if changes:
            raise ConfigError(f"out = {self.path} holds {self.what} of other settings: {changes}. {self.remedy}")
        rest = [line if good and line and line.keys() != header.keys() else None for line, good in zip(rest, has_sum[1:], strict=True)]
        finished = lines[-1].endswith("\n")  # or cut off by a crash or a full disk, which is nothing to warn of
        self.warn(number for number, line in enumerate(rest[: len(rest) - (not finished)], 2) if line is None)
        return [line for line in rest if line is not None]

    def warn(self, numbers: Iterable[int]) -> None:
        """Says that these lines are passed over."""
        if bad := list(numbers):
            which = f"line {', '.join(map(str, bad[:6]))}{'' if len(bad) < 7 else f', ... ({len(bad)} in all)'}"
            warnings.warn(f"{self.path}: {which} damaged and passed over: that part of {self.what} is computed anew", stacklevel=4)

    def write(self, lines: Iterable[Line]) -> None:
        """Replaces the file by its first line and these. Raises CheckpointWriteError."""
        header = {"format": encoding.VERSION, "kind": self.kind, "settings": dict(self.settings)}
        files.write_text(self.path, "".join(map(encoding.encode_line, [header, *lines])))

    def add(self, line: Line) -> None:
        """One more finished line, on the disk when this returns. Raises CheckpointWriteError; ValueError for NaN or infinity."""
        files.append_text(self.path, encoding.encode_line(line))
        files.sync_file(self.path)


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]

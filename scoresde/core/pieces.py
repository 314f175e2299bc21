"""Long work on many samples: in pieces, each done once by one of the processes, kept in a file when it is done, and gone on with.

The file is JSON lines: the first holds the settings, every other a finished piece. A process that is killed, at any point, leaves
the pieces that it finished; a last line that was cut off is no piece. Numbers are written so that the same bits are read again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.core import files
from scoresde.core.processes import Team
from scoresde.core.progress import bar
from scoresde.errors import ConfigError

KIND = "scoresde likelihood"

Record = dict[str, Any]  # of a piece: "piece", "ids" and what ``evaluate`` made, plain JSON


def run(
    evaluate: Callable[[np.ndarray], Record],
    ids: np.ndarray,
    size: int,
    settings: Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    share: bool = False,
    show: bool = False,
    values: Callable[[Record], Sequence[float]],
) -> list[Record]:
    """The records of the pieces rows 0..size-1, size..2 size-1, ..., in order, the same in all processes.

    Args:
        evaluate: (rows) -> plain JSON without non-finite numbers (see ``pack``): one piece, evaluated once, by one process.
        ids: of the samples, (n,).
        size: samples in a piece.
        settings: plain JSON of all that the records depend on.
        out: a file, or a folder, in which it is ``rows.jsonl``; None keeps nothing.
        overwrite: whether to replace what is there, be it of other settings or of these: such a call starts anew every time.
        share: whether to share the pieces with the other processes, all of which must then call this, or it waits for them.
        show: a progress bar, of the first process, with the mean so far.
        values: record -> the value of each sample, for that.

    Raises:
        ConfigError: ``out`` holds work of other settings; the processes were given different ones.
        CheckpointWriteError: it cannot be written.
        SolverError: another process failed.
    """
    team = Team.find() if share else Team()
    header = json.loads(json.dumps(dict(settings)))
    for rank, other in enumerate(team.gather(header)):
        if other != header:
            raise ConfigError(
                f"process {rank} has another {' and '.join(different(other, header))}: give all processes the same arguments, or "
                "share=False to each for work of its own"
            )
    pieces = [np.arange(start, min(start + size, len(ids))) for start in range(0, len(ids), size)]
    path = None if out is None else where(out)

    def begin() -> dict[int, Record]:
        return {} if team.rank or path is None else _open(path, header, overwrite, ids, pieces)

    found: dict[int, Record] = team.agree(begin)[0]
    todo = [i for i in range(len(pieces)) if i not in found][team.rank :: team.world]

    def work() -> list[Record]:
        made: list[Record] = []
        mean = _Mean()
        total = sum(len(pieces[i]) for i in [*found, *todo])
        with bar(show and team.rank == 0, total, "log-likelihood", "sample") as advance:
            for i, record in found.items():
                advance(len(pieces[i]), mean.add(values(record)))
            for i in todo:
                record = {"piece": i, "ids": ids[pieces[i]].tolist(), **evaluate(pieces[i])}
                if path is not None:
                    files.append_text(path, json.dumps(record, allow_nan=False) + "\n")
                    _sync(path)
                made.append(record)
                advance(len(pieces[i]), mean.add(values(record)))
        return made

    for made in team.agree(work):
        found |= {record["piece"]: record for record in made}
    return [found[i] for i in range(len(pieces))]


def where(out: str | os.PathLike[str]) -> Path:
    """The file of the rows: ``out``, or rows.jsonl in it if it is a folder, or a name without an ending."""
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise ConfigError(f"out = {out!r}, expected the name of a folder, or of a file of JSON lines: rows.jsonl for instance")
    path = Path(out)
    return path / "rows.jsonl" if path.is_dir() or not path.suffix else path


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def pack(values: Any) -> list[Any]:
    """Numbers as JSON has them: lists of floats, and "nan", "inf" and "-inf" as text."""
    return [pack(v) if isinstance(v, list) else v if math.isfinite(v) else str(v) for v in values]


def unpack(values: Any) -> list[Any]:
    """The floats that ``pack`` was given. Raises ValueError, TypeError for anything else."""
    return [unpack(v) if isinstance(v, list) else float(v) for v in values]


def _open(path: Path, header: Record, overwrite: bool, ids: np.ndarray, pieces: Sequence[np.ndarray]) -> dict[int, Record]:
    """The finished pieces of a file, which holds its header and these afterwards, and nothing half-written."""
    found = _read(path, header, overwrite)
    found = {i: r for i, r in found.items() if 0 <= i < len(pieces) and r.get("ids") == ids[pieces[i]].tolist()}
    lines = [{"kind": KIND, "settings": header}, *(found[i] for i in sorted(found))]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return found


def _read(path: Path, header: Record, overwrite: bool) -> dict[int, Record]:
    """The pieces of an earlier run, none to overwrite it. Raises ConfigError for one of other settings, and for no such file."""
    try:
        lines = files.read_lines(path)
    except OSError as error:
        raise ConfigError(f"out = {path} cannot be read ({error.strerror}): give another file") from None
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:  # cut off by a crash or a full disk: it is done again
            parsed.append(None)
    if not parsed:
        return {}
    first = parsed[0]
    if not isinstance(first, dict) or first.get("kind") != KIND or not isinstance(first.get("settings"), dict):
        raise ConfigError(f"out = {path} is not a file of likelihoods: give another one")
    old = first["settings"]
    names = different(old, header)
    if overwrite:
        return {}
    if names:
        changes = "; ".join(f"{key} was {old.get(key)!r}, now {header.get(key)!r}" for key in names)
        raise ConfigError(f"out = {path} holds likelihoods of other settings: {changes}. Give another file, or overwrite=True")
    rows = [line for line in parsed[1:] if isinstance(line, dict) and isinstance(line.get("piece"), int)]
    return {line["piece"]: line for line in rows}


def _sync(path: Path) -> None:
    """Has the system write a file to its disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Mean:
    """The mean of what was added so far, with its standard error, as text."""

    def __init__(self) -> None:
        self.sums = np.zeros(3)

    def add(self, values: Sequence[float]) -> str:
        x = np.asarray(values, dtype=np.float64)
        x = x[np.isfinite(x)]
        self.sums += (len(x), x.sum(), np.square(x).sum())
        n, first, second = self.sums
        return f"{first / n:.4f} +- {math.sqrt(max(second / n - (first / n) ** 2, 0) / (n - 1)):.4f}" if n > 1 else ""

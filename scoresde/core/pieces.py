"""Long work on many samples: in pieces, each done once by one of the processes, kept in a file (``rows.py``) and gone on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.core.processes import Team
from scoresde.core.progress import bar
from scoresde.core.rows import Rows, different
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
        values: record -> the value of each sample, for that. KeyError, TypeError and ValueError say that this is no such record: one
            that is found in a file is then passed over.

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
    remedy = "Give another file, or overwrite=True"
    store = None if out is None else Rows(where(out), KIND, "likelihoods", header, remedy)

    def begin() -> dict[int, Record]:
        return {} if team.rank or store is None else _open(store, overwrite, ids, pieces, values)

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
                if store is not None:
                    store.add(record)
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


def pack(values: Any) -> list[Any]:
    """Numbers as JSON has them: lists of floats, and "nan", "inf" and "-inf" as text."""
    return [pack(v) if isinstance(v, list) else v if math.isfinite(v) else str(v) for v in values]


def unpack(values: Any) -> list[Any]:
    """The floats that ``pack`` was given. Raises ValueError, TypeError for anything else."""
    return [unpack(v) if isinstance(v, list) else float(v) for v in values]


def _open(
    store: Rows, overwrite: bool, ids: np.ndarray, pieces: Sequence[np.ndarray], values: Callable[[Record], Sequence[float]]
) -> dict[int, Record]:
    """The finished pieces of a file, which holds its first line and these afterwards, and nothing half-written."""
    found: dict[int, Record] = {}
    strange = []
    for number, line in enumerate(store.read(overwrite), 2):
        i: Any = line.get("piece")
        try:
            good = i >= 0 and line["ids"] == ids[pieces[i]].tolist() and len(values(line)) == len(pieces[i])
        except (KeyError, IndexError, TypeError, ValueError):
            good = False
        if good:
            found[i] = line
        else:
            strange.append(number)
    store.warn(strange)
    store.write(found[i] for i in sorted(found))
    return found


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

"""A run and its command: what it was started with, for ``--resume`` alone, and which commands to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.core import encoding, files
from scoresde.data import catalog
from scoresde.errors import CheckpointCorrupt, ConfigError, ShapeError
from scoresde.plot.kinds import most_drawn

if TYPE_CHECKING:
    from scoresde.data.dataset import Data

COMMAND, KIND = "command.json", "command"

MOST = 1 << 20  # bytes of the file

LONGER = ("--steps", "--minutes")  # of which one is given, and the other one's earlier value is dropped

PLANNED = (*LONGER, "--lr", "--warmup", "--clip", "--schedule")  # what resume="extend" may change

ONCE = ("--resume", "--overwrite")  # flags of one command alone


def keep(arguments: Sequence[str], out: str) -> None:
    """Writes down what a run was started with."""
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / COMMAND, encoding.encode_document(KIND, {"arguments": [a for a in arguments if a not in ONCE]}))


def resumed(arguments: list[str]) -> tuple[list[str], bool]:
    """A command with --resume, with the options that the run was started with where they are not given again; and whether it asks for
    another end or another learning rate.

    Raises:
        CheckpointCorrupt: the file in which they are kept is damaged.
    """
    out = _value(arguments, "--out")
    path = None if out is None else Path(out).expanduser() / COMMAND
    if "--resume" not in arguments or path is None or not path.exists():
        return arguments, False
    try:
        earlier = encoding.decode_document(path, files.read_file(path, MOST), KIND)["arguments"]
    except CheckpointCorrupt as error:
        raise CheckpointCorrupt(f"{error}: remove it, and give all options of the run again") from error
    longer = any(_value(arguments, name) is not None for name in LONGER)
    kept = _without(earlier, [*(LONGER if longer else ()), "--out"])
    changed = any(_value(arguments, name) not in (None, _value(earlier, name)) for name in PLANNED)
    return [arguments[0], *kept[1:], *arguments[1:]], changed


def _value(arguments: Sequence[str], name: str) -> str | None:
    """The last value of an option, --name value or --name=value."""
    found = None
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif argument.startswith(f"{name}="):
            found = argument.removeprefix(f"{name}=")
    return found


def _without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Without some options and their values."""
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif argument.partition("=")[0] not in names:
            left.append(argument)
    return left


def data_of(a: Any) -> str:
    """--data, which only a run that goes on has from elsewhere. Raises ConfigError."""
    if a.data is None:
        known = "; --resume finds no command.json of a run in --out" if a.get("resume") else ""
        raise ConfigError(f"--data is required: {', '.join(catalog.NAMES)}, a folder with idx files, or a .npz file{known}")
    return str(a.data)


def next_commands(a: Any, data: Data) -> list[str]:
    """Commands that go on with a run that was trained, each as it can be typed."""
    own = []
    for kind in ("net", "sde"):
        name = a[kind]
        if name is not None and ("." in name or ":" in name):  # a class of the user's, which no checkpoint can name
            own += [f"--{kind}", name]
            for option, value in a.options[kind].items():
                own += [f"--{kind}.{option}", value]
    try:
        drawn = most_drawn(data.event_shape) > 0
    except ShapeError:
        drawn = False
    commands = [["sample", a.out, "--n", "64", "--out", "samples.png" if drawn else "samples.npz", *own]]
    commands += [["nll", a.out, "--data", a.data, *([] if len(data.test) else ["--split", "train"]), *own]]
    if len(data.test):
        commands += [["bench", a.out, "--data", a.data, *own]]
    commands += [["tune", a.out, "--nfe", "10", *own]]
    return [shlex.join(["scoresde", *command]) for command in commands]


def check_out(out: str) -> None:
    """Raises ConfigError if the folder of a run cannot be one: before anything is trained."""
    path = Path(out).expanduser()
    for folder in (path, *path.parents):
        if folder.exists():
            if not folder.is_dir():
                raise ConfigError(f"--out {out}: {folder} is a file, expected a folder, or a name for a new one")
            if not os.access(folder, os.W_OK):
                raise ConfigError(f"--out {out}: {folder} cannot be written to")
            return

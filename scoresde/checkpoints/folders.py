"""Checkpoints are folders that appear whole: written beside, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from scoresde.core.files import discard, sync_folder, write_error, write_file

_NAME = re.compile(r"checkpoint-(\d{6,12})")

_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")


def folder_name(n: int) -> str:
    """The name of checkpoint n."""
    return f"checkpoint-{n:06d}"


def folders(root: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    names = os.listdir(root) if root.is_dir() else []
    return [root / folder_name(n) for n in sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)]


def write_folder(root: Path, files: Mapping[str, bytes], number: int) -> Path:
    """Writes files into a new checkpoint of ``root``, atomically; its number is at least ``number`` and above all others.

    Raises:
        CheckpointWriteError: ``errno`` is kept, what was there before is intact, nothing half-written is left.
    """
    temporary = root / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.makedirs(root, exist_ok=True)
        before = folders(root)
        final = root / folder_name(max([number, *(int(f.name[11:]) + 1 for f in before[-1:])]))
        os.mkdir(temporary, 0o755)
        for name, content in files.items():
            write_file(temporary / name, content)
        sync_folder(temporary)
        os.rename(temporary, final)
        sync_folder(root)
    except OSError as error:
        discard(temporary)
        raise write_error(root, error) from error
    return final


def remove_folder(folder: Path) -> None:
    """Removes a checkpoint, as far as possible; a crash half-way leaves a temporary, not half a checkpoint."""
    temporary = folder.parent / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.rename(folder, temporary)
    except OSError:
        return  # one old checkpoint too many is no reason to stop a training run
    shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(root: Path) -> None:
    """Removes what processes that were killed while they wrote have left. Hold the lock."""
    for name in os.listdir(root) if root.is_dir() else []:
        if _TEMPORARY.fullmatch(name):
            discard(root / name)

"""Folders that are complete or not there, files that are what their sums say, and readers that run nothing.

A folder is written under a temporary name, every file and the folder itself are fsynced, and it is renamed: a crash at any
point leaves the old state or the new one. Files are opened so that neither links nor FIFOs nor devices are followed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUntrusted,
    CheckpointWriteError,
    LockError,
    NonFiniteError,
)

CONFIG_BYTES = HEADER_BYTES = 1 << 20
_TENSORS, _DEPTH = 10_000, 8
_NAME = re.compile(r"checkpoint-(\d{6,12})")
_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")
_PICKLE_NAMES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
_CLOEXEC, _NOFOLLOW, _NONBLOCK, _DIRECTORY = (
    getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY")
)


# ---- folders


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
            _write_file(temporary / name, content)
        _sync_folder(temporary)
        os.rename(temporary, final)
        _sync_folder(root)
    except OSError as error:
        _discard(temporary)
        raise _write_error(root, error) from error
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
            _discard(root / name)


def _discard(path: Path) -> None:
    """Removes a temporary file or folder, as far as possible."""
    try:
        os.unlink(path)
    except OSError:  # a folder
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Makes this process the only writer of a folder. The lock dies with its process: a stale one is nobody's.

    Raises:
        LockError: another process has it; names its pid.
        CheckpointWriteError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: nothing to lock with
        yield
        return
    fd = None
    try:
        try:
            os.makedirs(root, exist_ok=True)
            fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | _CLOEXEC | _NOFOLLOW, 0o644)
            held = _try_lock(fd, fcntl)
            if held:
                os.ftruncate(fd, 0)
                os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise _write_error(root, error) from error
        if not held:
            owner = os.read(fd, 32).decode("ascii", "replace").strip() or "of unknown pid"
            if owner != str(os.getpid()):  # ``save`` in a callback of ``fit`` is the same writer
                raise LockError(f"{root}: process {owner} is writing there: wait for it, stop it, or give another path")
        yield
        if held:
            os.ftruncate(fd, 0)
    finally:
        if fd is not None:
            os.close(fd)


def _try_lock(fd: int, fcntl: Any) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically, and makes the folders above it. Raises CheckpointWriteError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file atomically, and makes the folders above it. Raises CheckpointWriteError."""
    temporary = path.parent / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.makedirs(path.parent, exist_ok=True)
        _write_file(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise _write_error(path.parent, error) from error


def append_text(path: Path, text: str) -> None:
    """Adds all of a text to a file, or none of it. Raises CheckpointWriteError."""
    content = text.encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NOFOLLOW | _CLOEXEC, 0o644)
        try:
            written = os.write(fd, content)
            if written < len(content):  # the disk is full
                end = os.lseek(fd, 0, os.SEEK_CUR)
                if os.fstat(fd).st_size == end:  # else another process has added to it since
                    os.ftruncate(fd, end - written)
                raise OSError(errno.ENOSPC, f"{written} of {len(content)} bytes written")
        finally:
            os.close(fd)
    except OSError as error:
        raise _write_error(path.parent, error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, with their ends; none if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _write_error(root: Path, error: OSError) -> CheckpointWriteError:
    try:
        kept = folders(root)[-1:]
    except OSError:
        kept = []
    intact = f"previous checkpoint intact: {kept[0]}" if kept else "there is no previous checkpoint"
    code = error.errno or errno.EIO
    return CheckpointWriteError(code, f"{os.strerror(code)}: could not write to {root}; {intact}")


def _write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | _DIRECTORY | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- files


def read_file(path: Path, limit: int, partial: bool = False) -> bytes:
    """The content of a regular file of at most ``limit`` bytes, or with ``partial`` the first ones of a longer file.

    Raises:
        CheckpointCorrupt: missing, or longer.
        CheckpointError: a directory, a FIFO, a device, a link; not permitted.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _NONBLOCK | _NOFOLLOW | _CLOEXEC)
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: missing: 0 bytes, expected {limit} bytes at most") from None
    except OSError as error:
        kind = "not a regular file" if error.errno in (errno.ELOOP, errno.ENXIO) else error.strerror
        raise CheckpointError(f"{path}: {kind}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if info.st_size > limit and not partial:
            raise CheckpointCorrupt(f"{path}: {info.st_size} bytes, expected {limit} bytes at most")
        with open(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)


def refuse_pickle(path: Path, content: bytes) -> None:
    """Raises CheckpointUntrusted if a file looks like a pickle, or is named like one."""
    zipped = content.startswith((b"PK\x03\x04", b"\x1f\x8b"))  # torch.save, joblib
    # a safetensors file begins with the size of its header, which may look like a pickle's protocol but ends in zeros
    pickled = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5") and any(content[3:8])
    if zipped or pickled or path.suffix in _PICKLE_NAMES:
        raise CheckpointUntrusted(
            f"{path}: pickle refused; save with `scoresde.save`. Reading a pickle can run any code, so scoresde reads none"
        )


def read_verified(path: Path, size: int, sha256: str) -> bytes:
    """The content of a file, of which size and sha256 are known. Raises CheckpointCorrupt and as ``read_file``."""
    content = read_file(path, size)
    refuse_pickle(path, content)
    if len(content) != size:
        raise CheckpointCorrupt(f"{path}: {len(content)} bytes, expected {size} bytes: truncated")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointCorrupt(f"{path}: its {size} bytes are not those of its sha256 in config.json: {_damaged(content)}")
    return content


# ---- JSON whose first line is the sha256 of the rest


def encode_config(config: Mapping[str, Any]) -> bytes:
    """Plain JSON, one field a line, after a line with the sha256 of all that follows."""
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in config.items()]
    rest = (",\n".join(lines) + "}\n").encode()
    return _first_line(rest) + rest


def decode_config(path: Path, content: bytes) -> dict[str, Any]:
    """Raises CheckpointCorrupt: damaged, too deep, a number that is not finite."""
    refuse_pickle(path, content)
    rest = content.partition(b"\n")[2]
    if content != _first_line(rest) + rest:
        raise CheckpointCorrupt(
            f"{path}: truncated, damaged or edited: its {len(content)} bytes are not those of the sha256 on its first line "
            f"(expected bytes: those that were saved)"
        )
    return parse_json(path, content)


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, without NaN and infinity, at most 8 deep. Raises CheckpointCorrupt."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a key is there twice")
        return dict(items)

    def number(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"{text} is not a finite number")
        return float(text)

    try:
        value = json.loads(content, object_pairs_hook=pairs, parse_float=number, parse_constant=number)
        if not isinstance(value, dict) or _depth(value) > _DEPTH:
            raise ValueError(f"not an object of depth {_DEPTH} at most")
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path}: not the JSON of a checkpoint, in {len(content)} bytes: {error}") from None
    return value


def _first_line(rest: bytes) -> bytes:
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)


# ---- safetensors


def encode_tensors(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """safetensors, with a crc32 for each tensor. Raises NonFiniteError: NaN and infinity never reach a file."""
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    for key, tensor in plain.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{what} {key} holds NaN or infinity: not saved")
    sums = {key: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) for key, tensor in plain.items()}
    return save(plain, {"crc32": json.dumps(sums)})


def decode_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """Raises CheckpointCorrupt: not safetensors, duplicate names, too many tensors, NaN."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header, _ = _split(content)
        names = [key for key in parse_json(path, header) if key != "__metadata__"]
        if len(names) > _TENSORS:
            raise ValueError(f"{len(names)} tensors, expected at most {_TENSORS}")
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointCorrupt(f"{path}: not a safetensors file, in {len(content)} bytes: {error}") from None
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointCorrupt(f"{path}: tensor {key} holds NaN or infinity")
    return tensors


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and payload: 8 bytes of length, JSON, numbers."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < size <= min(HEADER_BYTES, len(content) - 8):
        raise ValueError(f"a header of {size} bytes")
    return content[8 : 8 + size], content[8 + size :]


def _damaged(content: bytes) -> str:
    """Which tensors of a damaged file are damaged, in words."""
    try:
        header, payload = _split(content)
        entries = json.loads(header)
        sums = json.loads(entries.pop("__metadata__")["crc32"])
        bad = [key for key, e in entries.items() if zlib.crc32(payload[slice(*e["data_offsets"])]) != sums[key]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad = []
    return f"tensor {', '.join(bad[:3])} damaged" if bad else "its header is damaged"

"""Folders that are complete or not there, files that are what their sums say, and readers that run nothing.

A folder is written under a temporary name, every file and the folder itself are fsynced, and it is renamed: a crash at any
point leaves the old state or the new one. Files are opened so that neither links nor FIFOs nor devices are followed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scoresde.errors import CheckpointCorrupt, CheckpointError, CheckpointUntrusted, CheckpointWriteError, LockError

_PICKLE_NAMES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")

_CLOEXEC, _NOFOLLOW, _NONBLOCK, _DIRECTORY = (
    getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY")
)


def discard(path: Path) -> None:
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
            raise write_error(root, error) from error
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
        write_file(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        discard(temporary)
        raise write_error(path.parent, error) from error


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
        raise write_error(path.parent, error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, with their ends; none if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []


def write_error(root: Path, error: OSError) -> CheckpointWriteError:
    try:
        kept = sorted(root.glob("checkpoint-*"))[-1:]
    except OSError:
        kept = []
    intact = f"previous checkpoint intact: {kept[0]}" if kept else "there is no previous checkpoint"
    code = error.errno or errno.EIO
    return CheckpointWriteError(code, f"{os.strerror(code)}: could not write to {root}; {intact}")


def write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Has the system write a file to its disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
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

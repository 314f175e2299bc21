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

from scoresde.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointNotFound,
    CheckpointUntrusted,
    CheckpointWriteError,
    ConfigError,
    LockError,
)

_PICKLE_NAMES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")

# what a system does not have is 0; without O_BINARY Windows would write other bytes than it is given
_CLOEXEC, _NOFOLLOW, _NONBLOCK, _DIRECTORY, _BINARY, _NOCTTY = (
    getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_BINARY", "O_NOCTTY")
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
            fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | _BINARY | _CLOEXEC | _NOFOLLOW, 0o644)
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
    """Replaces a file atomically, and makes the folders above it. Raises CheckpointWriteError; CheckpointError: no name of a file."""
    if "\0" in str(path):
        raise CheckpointError(f"{str(path)!r} is no name of a file: it holds a NUL")
    temporary = path.parent / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.makedirs(path.parent, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EISDIR if path.is_dir() else errno.EEXIST, f"{path} is no regular file")
        write_file(temporary, content)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        discard(temporary)
        raise write_error(path.parent, error) from error


def append_text(path: Path, text: str) -> None:
    """Adds all of a text to a file, or none of it. Raises CheckpointWriteError."""
    content = text.encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY | _NONBLOCK | _NOFOLLOW | _CLOEXEC, 0o644)
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
    """The lines of a text file, with their ends; none if it is not there. Raises CheckpointError as ``read_own``."""
    if not os.path.lexists(path):
        return []
    return read_own(path, None, "a file of lines").decode(errors="replace").splitlines(keepends=True)


def write_error(root: Path, error: OSError) -> CheckpointWriteError:
    try:
        kept = sorted(root.glob("checkpoint-*"))[-1:]
    except OSError:
        kept = []
    intact = f"previous checkpoint intact: {kept[0]}" if kept else "there is no previous checkpoint"
    code = error.errno or errno.EIO
    return CheckpointWriteError(code, f"{os.strerror(code)}: could not write to {root}; {intact}")


def write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _NOFOLLOW | _CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Has the system write a file to its disk."""
    fd = os.open(path, os.O_RDWR | _BINARY | _CLOEXEC)  # Windows writes out only what may be written to
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Has the system write the names in a folder to its disk; not on Windows, where no folder can be opened."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | _DIRECTORY | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- files
def read_file(path: Path, limit: int | None, partial: bool = False) -> bytes:
    """The content of a regular file of at most ``limit`` bytes (None: any), or with ``partial`` the first ones of a longer file.

    Raises:
        CheckpointCorrupt: missing, or longer.
        CheckpointError: a directory, a FIFO, a device, a link; not permitted.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _BINARY | _NONBLOCK | _NOFOLLOW | _NOCTTY | _CLOEXEC)
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path}: missing: 0 bytes, expected {limit} bytes at most") from None
    except (OSError, ValueError) as error:
        irregular = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO)
        raise CheckpointError(f"{path}: {'not a regular file' if irregular else error}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        most = info.st_size if limit is None else limit
        if info.st_size > most and not partial:
            raise CheckpointCorrupt(f"{path}: {info.st_size} bytes, expected {limit} bytes at most")
        with open(fd, "rb", closefd=False) as file:
            return file.read(min(most, info.st_size))  # as much as there is: ``read`` makes room for all that it is asked for
    finally:
        os.close(fd)


def read_own(path: str | os.PathLike[str], limit: int | None, what: str) -> bytes:
    """The content of a file that a user names, which may be a link. ``what`` says what is expected there.

    Raises:
        CheckpointNotFound: there is nothing, or a folder.
        CheckpointCorrupt, CheckpointError: as ``read_file``; ConfigError: not the name of a file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"path = {path!r}, expected the name of {what}")
    try:
        real = Path(path).resolve()
        there, folder = real.exists(), real.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, names that are too long, links in a circle
        raise CheckpointError(f"{path!r} is no name of a file ({error}), expected that of {what}") from None
    if not there or folder:
        raise CheckpointNotFound(f"{path}: {'a folder' if folder else 'no such file'}, expected {what}")
    try:
        return read_file(real, limit)
    except CheckpointError as error:
        if "regular" in str(error):
            raise CheckpointError(f"{path}: not a regular file, expected {what}") from error
        raise


def refuse_pickle(path: Path, content: bytes) -> None:
    """Raises CheckpointUntrusted if a file looks like a pickle, or is named like one."""
    zipped = content.startswith((b"PK\x03\x04", b"\x1f\x8b"))  # torch.save, joblib
    # a safetensors file begins with the size of its header, which may look like a pickle's protocol but ends in zeros
    pickled = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5") and any(content[3:8])
    if zipped or pickled or path.suffix in _PICKLE_NAMES:
        raise CheckpointUntrusted(
            f"{path}: pickle refused; save with `scoresde.save`. Reading a pickle can run any code, so scoresde reads none"
        )

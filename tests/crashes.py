"""A process that ends at any system call of a write, for tests of what it leaves."""

from __future__ import annotations

import os

WRITES = ["open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "ftruncate"]


def in_child(function):
    """Runs a function in a forked child; returns its exit code (0: returned, 77: raised)."""
    pid = os.fork()
    if pid == 0:
        code = 77
        try:
            function()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_or_crash(limit, half=False):
    """Hooks the system calls of a write: counts them, and ends the process at number ``limit``."""
    calls = []

    def hook(name, function):
        def hooked(*args, **kwargs):
            if len(calls) == limit:
                if half and name == "write":
                    function(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            calls.append(name)
            return function(*args, **kwargs)

        return hooked

    for name in WRITES:
        setattr(os, name, hook(name, getattr(os, name)))
    return calls


def calls_of(write, log):
    """The names of the system calls that ``write()`` makes, in order; ``log`` is a file to tell them by."""

    def count():
        calls = count_or_crash(10**9)
        write()
        names = list(calls)
        log.write_text(" ".join(names))

    if in_child(count):
        raise RuntimeError("the write failed")
    return log.read_text().split()

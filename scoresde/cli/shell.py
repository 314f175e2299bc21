"""How the command line speaks: errors in one line, warnings without source, signals."""

from __future__ import annotations

import re
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from scoresde.core import checks


def explain(message: str, names: Collection[str]) -> str:
    """jsonargparse's message in words of ours, with a suggestion."""
    message = re.sub(r"Parser key \"(?:\w+\.)?(\w+)\": ?", r"--\1: ", message)
    message = re.sub(r"Expected a <class '(\w+)'>\. Got value: (.*)", r"got \2, expected \1", message)
    message = message.replace("argument command: ", "")
    found = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']*)'", message)
    if found:
        wrong = (found[1] or found[2]).split("=")[0]
        message += checks.did_you_mean(wrong, names, 0.7)  # the two dashes are alike in all
    if "arguments are required" in message:
        head, _, missing = message.partition(": ")
        keys = [key.rpartition(".")[2] for key in missing.split(", ")]
        message = f"{head}: {', '.join(f'--{key}' if f'--{key}' in names else key for key in keys)}"
    return message


def for_shell(message: str) -> str:
    """Advice about Python arguments as advice about options."""
    return re.sub(r"\b(resume|overwrite)=True", r"--\1", message)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def say(text: str) -> None:
    print(f"scoresde: {text}", file=sys.stderr, flush=True)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings as one line, without the place in the source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {' '.join(str(message).split())}")
        yield


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the command with exit code 143, like Ctrl-C with 130."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def stop(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

"""The command line: ``scoresde demo | train | sample | nll | bench | tune``. ``scoresde COMMAND --help`` explains each.

Exit codes: 0; 2 for a command that makes no sense (unknown option, name or value); 1 for one that failed; 130 on Ctrl-C and 143
on SIGTERM. Errors are one line on stderr; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from scoresde.cli import classes, runs
from scoresde.cli.commands import run_bench, run_demo, run_nll, run_sample, run_train, run_tune
from scoresde.cli.options import COMMANDS, OPTIONS, make_parser
from scoresde.cli.shell import explain, for_shell, one_line, say, short_warnings, terminable
from scoresde.core.checks import check_positive_int
from scoresde.errors import ConfigError, ScoreSDEError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with terminable(), short_warnings():
            _run([a for a in arguments if a != "--debug"])
    except KeyboardInterrupt as stop:
        say(f"interrupted{f'; {for_shell(str(stop))}' if str(stop) else ''}")
        return 130
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            say("terminated")
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader of our output has gone, as in `scoresde nll ... | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on its way out)
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        expected = isinstance(error, (ScoreSDEError, OSError))
        kind, hint = ("", "") if expected else (f"{type(error).__name__}: ", " (--debug shows where)")
        say(f"error: {kind}{for_shell(one_line(error))}{hint}")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _run(arguments: list[str]) -> None:
    command, a = parse(arguments)
    if a.threads is not None:
        torch.set_num_threads(check_positive_int(a.threads, "threads"))
    commands = {"demo": run_demo, "train": run_train, "sample": run_sample, "nll": run_nll, "bench": run_bench, "tune": run_tune}
    commands[command](a)


def parse(arguments: list[str]) -> tuple[str, Any]:
    """The command, and its options by name; ``options`` are those of its classes, {"sde": {"sigma_max": "20"}} for instance.

    Raises:
        ConfigError: what makes no sense, with a suggestion.
        SystemExit: after --help or --version.
    """
    from jsonargparse import ArgumentError

    arguments = arguments or ["--help"]
    dotted: dict[str, dict[str, str]] = {}
    typed, extends = arguments, False
    if arguments[0] in COMMANDS:
        typed = [_underscored(a) for a in arguments]
        if arguments[0] == "train":
            typed, extends = runs.resumed(typed)
        arguments, dotted = _split_dotted(typed)
    try:
        parsed = make_parser().parse_args(arguments)
    except ArgumentError as error:
        names = [name for name, _ in OPTIONS[arguments[0]]] if arguments[0] in COMMANDS else COMMANDS
        raise ConfigError(explain(one_line(error), names)) from error
    a = parsed[parsed.command]
    for kind, given in dotted.items():
        if kind not in a:
            raise ConfigError(f"--{kind}.{next(iter(given))}: `scoresde {parsed.command}` takes no --{kind}")
    a.progress = a.progress != "off"
    a.options = {kind: dotted.get(kind, {}) for kind in classes.KINDS}
    a.typed, a.extends = typed, extends
    return parsed.command, a


def _split_dotted(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Takes --sde.sigma_max 20 and its like out: the other arguments, and {"sde": {"sigma_max": "20"}}."""
    rest: list[str] = []
    dotted: dict[str, dict[str, str]] = {}
    waiting = iter(arguments)
    for argument in waiting:
        found = re.fullmatch(r"--([a-z]+)\.([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if not found:
            rest.append(argument)
            continue
        kind, name, value = found.groups()
        if kind not in classes.KINDS:
            raise ConfigError(f"{argument} is unknown, expected --sde.NAME, --net.NAME or --solver.NAME")
        value = next(waiting, None) if value is None else value
        if value is None or (not found[3] and value.startswith("--")):
            raise ConfigError(f"{argument} needs a value: {argument} VALUE")
        dotted.setdefault(kind, {})[name] = value
    return rest, dotted


def _underscored(argument: str) -> str:
    """--batch-size as --batch_size."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value

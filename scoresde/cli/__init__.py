"""The command line: ``scoresde train``, ``sample``, ``nll``, ``bench``, ``tune``, ``demo``."""

from scoresde.cli.entry import main

__all__ = ["main"]

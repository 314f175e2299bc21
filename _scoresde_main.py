"""The ``scoresde`` command: sets what must be set before torch is imported, then runs ``scoresde.cli``."""

import os


def main() -> int:
    """Runs the command line."""
    # OpenMP threads spin at barriers by default; with another busy process on the machine that is 20 times slower than sleeping
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from scoresde.cli import main

    return main()

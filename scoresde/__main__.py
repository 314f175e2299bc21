"""``python -m scoresde``: the command line."""

import sys

from scoresde.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())

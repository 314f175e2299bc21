"""``python -m scoresde.cli``: what torchrun starts."""

import sys

from scoresde.cli.entry import main

sys.exit(main())

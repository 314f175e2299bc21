"""Step count against quality: many solvers at many numbers of network calls, judged in one run.

``compare.py`` is ``frontier``; jobs are solved (``solve.py``), judged (``judge.py``), kept in rows that are resumed (``store.py``) and
become a ``Frontier`` (``result.py``).
"""

from scoresde.evaluation.frontier.compare import frontier
from scoresde.evaluation.frontier.result import Frontier

__all__ = ["Frontier", "frontier"]

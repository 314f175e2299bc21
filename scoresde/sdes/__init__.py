"""The diffusions: noise levels as functions of time, and grids of times.

``SDE`` is the base (two functions of time), ``standard.py`` holds those of the literature, ``check_sde`` looks at one of your own.
"""

from scoresde.sdes import grid
from scoresde.sdes.base import SDE
from scoresde.sdes.check import check_sde
from scoresde.sdes.standard import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE

__all__ = ["EDMSDE", "SDE", "VESDE", "VPSDE", "CosineSDE", "RectifiedFlow", "SubVPSDE", "check_sde", "grid"]

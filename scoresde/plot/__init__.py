"""Pictures (``scoresde.plot``): samples, trajectories, densities and fields in the plane, curves of figures."""

from scoresde.plot.curves import frontier, loss
from scoresde.plot.fields import density, vector_field
from scoresde.plot.figures import COLORS
from scoresde.plot.pictures import samples, trajectory

__all__ = ["COLORS", "density", "frontier", "loss", "samples", "trajectory", "vector_field"]

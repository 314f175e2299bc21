"""How good: distances between sets of samples, features of images, and step count against quality (``frontier``)."""

from scoresde.evaluation import features, metrics

__all__ = ["features", "metrics"]

"""From a loss to weights: denoising score matching, and training on the likelihood.

``loss.py`` holds the weightings, ``fitting.py`` is ``fit``.
"""

from scoresde.training import loss
from scoresde.training.dequantizer import fit_dequantizer
from scoresde.training.fine_tuning import fine_tune
from scoresde.training.fitting import fit

__all__ = ["fine_tune", "fit", "fit_dequantizer", "loss"]

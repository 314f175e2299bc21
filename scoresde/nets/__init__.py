"""Networks, which know nothing of SDEs: plain modules, ``forward(x, c_noise, **cond)``.

A network of your own is any module with that method.
"""

from scoresde.nets.mlp import MLP
from scoresde.nets.unet import UNet
from scoresde.nets.waves import with_waves

__all__ = ["MLP", "UNet", "with_waves"]

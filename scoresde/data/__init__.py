"""Data sets (``scoresde.data``), and what their values mean.

``digits``, ``fashion_mnist`` and the toys are at hand, ``npz``, ``idx`` and ``from_dataset`` read yours; ``Transform`` takes integer
levels to the space of a model and back.
"""

from scoresde.data import augment
from scoresde.data.catalog import FASHION_MNIST, NAMES, digits, fashion_mnist, load
from scoresde.data.dataset import Data
from scoresde.data.readers import MAX_BYTES, from_dataset, idx, npz
from scoresde.data.toys import TOYS, toy, two_moons
from scoresde.data.transform import Transform

__all__ = [
    "FASHION_MNIST",
    "MAX_BYTES",
    "NAMES",
    "TOYS",
    "Data",
    "Transform",
    "augment",
    "digits",
    "fashion_mnist",
    "from_dataset",
    "idx",
    "load",
    "npz",
    "toy",
    "two_moons",
]

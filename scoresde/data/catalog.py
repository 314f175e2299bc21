"""Data sets: plain functions that return a ``Data``, which holds tensors and how their values are meant.

Images are integer levels (N, C, H, W) with a ``Transform`` that says how many levels there are and where model space
puts them; points in the plane are floats, used as they are. Nothing here downloads, unpickles or touches a global
random number generator.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from scoresde.core.checks import did_you_mean
from scoresde.core.doors import checked
from scoresde.data.dataset import Data
from scoresde.data.readers import idx, npz
from scoresde.data.toys import TOYS, toy
from scoresde.errors import ConfigError, DataError

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it


def digits() -> Data:
    """The 1,797 handwritten digits that come with scikit-learn: (1, 8, 8), 17 levels, 10 classes.

    The split is fixed: of the permutation by ``numpy.random.RandomState(0)`` the first 1,500 train, the last 297 test.
    """
    from sklearn.datasets import load_digits

    from scoresde.data.transform import Transform

    raw = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    x = torch.from_numpy(raw.images[order].astype(np.uint8))[:, None]
    y = torch.from_numpy(raw.target[order].astype(np.int64))
    return Data(x[:1500], x[1500:], Transform(levels=17), y[:1500], y[1500:], name="digits")


@checked
def fashion_mnist(folder: str | os.PathLike[str] = FASHION_MNIST) -> Data:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 and 10,000 images (1, 28, 28), 256 levels, 10 classes.

    Args:
        folder: holds the four files; the default is where Debian's package puts them.

    Raises:
        DataError: the files are not there, or are damaged.
    """
    if not Path(folder).is_dir():
        raise DataError(
            f"{folder}: no such folder, expected the four files of Fashion-MNIST; "
            "`apt-get install dataset-fashion-mnist` installs them, or give the folder that has them"
        )
    return idx(folder, name="fashion-mnist")


@checked
def load(source: str | os.PathLike[str]) -> Data:
    """What the command line's ``--data`` takes: a name, a folder of idx files, or a .npz file.

    Args:
        source: "digits", "fashion-mnist", a name that ``toy`` knows, or a path.

    Raises:
        ConfigError: neither a known name nor an existing path.
        DataError: a file that cannot be read as what it should be.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ConfigError(f"data = {source!r}, expected a name ({', '.join(NAMES)}) or a path")
    if source == "digits":
        return digits()
    if source == "fashion-mnist":
        return fashion_mnist()
    if source in TOYS:
        return toy(str(source))
    path = Path(source)
    if path.is_dir():
        return idx(path)
    if path.suffix == ".npz":
        return npz(path)
    if path.exists():
        raise DataError(f"{path}: expected a .npz file or a folder with idx files")
    raise ConfigError(
        f"data {str(source)!r} is unknown, and no such file exists: expected one of {', '.join(NAMES)}, a folder with "
        f"idx files, or a .npz file{did_you_mean(str(source), NAMES)}"
    )

NAMES = ("digits", "fashion-mnist", *TOYS)

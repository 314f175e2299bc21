"""Files as Fashion-MNIST has them, made small."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from data.files import idx_bytes


@pytest.fixture
def images():
    rng = np.random.Generator(np.random.Philox(key=5))
    return tuple(rng.integers(0, *a) for a in ((256, (6, 5, 4)), (3, 6), (256, (3, 5, 4)), (3, 3)))


@pytest.fixture
def folder(tmp_path, images):
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name, array in zip(names, images, strict=True):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return tmp_path

"""Data sets by name: digits, Fashion-MNIST, files."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from scoresde import data
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError, DataError, ScoreSDEError


def test_digits_split():
    d = data.digits()
    assert d.train.shape == (1500, 1, 8, 8)
    assert d.test.shape == (297, 1, 8, 8)
    assert d.train.dtype == torch.uint8
    # sums and labels computed once from scikit-learn's arrays under RandomState(0).permutation(1797)
    assert (int(d.train.long().sum()), int(d.test.long().sum())) == (469124, 92594)
    assert d.labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]
    assert d.test_labels[:10].tolist() == [2, 2, 9, 8, 8, 3, 6, 0, 4, 4]
    assert torch.bincount(d.test_labels).tolist() == [27, 25, 35, 28, 38, 25, 30, 31, 23, 35]
    assert d.transform == Transform(levels=17)
    assert (d.event_shape, d.classes, d.target) == ((1, 8, 8), 10, None)
    assert repr(d) == "Data(digits: 1500 train, 297 test, shape (1, 8, 8), 17 levels, 10 classes)"


def test_fashion_mnist(tmp_path):
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path / "nowhere")
    if not os.path.isdir(data.FASHION_MNIST):
        pytest.skip("dataset-fashion-mnist is not installed")
    d = data.fashion_mnist()
    assert d.train.shape == (60_000, 1, 28, 28)
    assert d.test.shape == (10_000, 1, 28, 28)
    assert torch.bincount(d.labels).tolist() == [6000] * 10
    assert d.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert repr(d).startswith("Data(fashion-mnist: 60000 train, 10000 test")


def test_load(folder, tmp_path):
    assert data.load("digits").name == "digits"
    assert len(data.load(folder).train) == 6
    np.savez(tmp_path / "x.npz", train=np.zeros((2, 2)))
    assert data.load(str(tmp_path / "x.npz")).train.shape == (2, 2)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(ConfigError, match="fashion-mnist, moons, pinwheel"):
        data.load("zzzz")
    with pytest.raises(DataError, match="No such file"):
        data.load(tmp_path / "y.npz")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"expected a \.npz file or a folder"):
        data.load(tmp_path / "x.csv")
    for bad in ("", None, 3):
        with pytest.raises(ScoreSDEError, match=r"expected (a|the) name"):
            data.load(bad)

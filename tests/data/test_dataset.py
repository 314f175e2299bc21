"""What a data set checks and what tells it from others."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import data
from scoresde.data.transform import Transform
from scoresde.errors import DataError, DTypeError, NonFiniteError, ShapeError


def test_hash_is_of_what_training_sees():
    x, y = torch.arange(8, dtype=torch.uint8).view(4, 2), torch.tensor([0, 1, 0, 1])
    base = data.Data(x, x, Transform(levels=8), y, y)
    assert len(base.hash()) == 64
    assert data.Data(x.clone(), x[:1], Transform(levels=8), y, y[:1], name="other").hash() == base.hash()
    others = [
        data.Data(x.flip(0), x, Transform(levels=8), y, y),
        data.Data(x.view(2, 4), x.view(2, 4), Transform(levels=8), y[:2], y[:2]),
        data.Data(x, x, Transform(levels=9), y, y),
        data.Data(x, x, Transform(levels=8), 1 - y, y),
        data.Data(x, x, Transform(levels=8)),
        data.Data(x.float(), x.float()),
    ]
    assert len({d.hash() for d in [base, *others]}) == 7
    # a view that is not contiguous hashes as the values that it shows
    copy = data.Data(x.t().contiguous(), x.t(), Transform(levels=8))
    assert data.Data(x.t(), x.t(), Transform(levels=8)).hash() == copy.hash()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": torch.zeros(0, 2)}, ShapeError, "empty batch"),
        ({"test": torch.zeros(3, 3)}, ShapeError, r"\(4, 2\).*\(3, 3\)"),
        ({"test": torch.zeros(3, 2).double()}, DTypeError, "float64"),
        ({"train": torch.zeros(4, 2).long(), "test": torch.zeros(3, 2).long()}, DTypeError, "Transform"),
        ({"transform": Transform(levels=4)}, DTypeError, "float32"),
        ({"train": torch.tensor([[0.0, 1], [2, math.nan]])}, NonFiniteError, r"NaN: 1 .*\(1, 1\)"),
        ({"test": torch.tensor([[0.0, math.inf]])}, NonFiniteError, r"test holds inf: 1 .*\(0, 1\)"),
        ({"labels": torch.zeros(3).long()}, ShapeError, r"\(3,\), expected \(4,\)"),
        ({"labels": torch.zeros(4)}, DTypeError, "float32"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, DataError, "-1"),
        ({"test_labels": torch.zeros(4).long()}, ShapeError, "test_labels"),
    ],
)
def test_data_is_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        data.Data(**{"train": torch.zeros(4, 2), "test": torch.zeros(3, 2), **arguments})


def test_levels_outside_are_counted():
    x = torch.tensor([[0, 3], [4, 9]], dtype=torch.uint8)
    with pytest.raises(DataError, match=r"from 0 to 9, expected 0..3: 2 are outside, the first at index \(1, 0\)"):
        data.Data(x, x[:0], Transform(levels=4))

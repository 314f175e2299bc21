"""The network for vectors."""

from __future__ import annotations

import pytest
from nets.cases import X3, C, L

from scoresde import nets
from scoresde.errors import ConfigError, ShapeError


def test_bad_input_of_an_mlp():
    net = nets.MLP((1, 3), 8, 1)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(B, 1, 3\)"):
        net(X3, C)
    with pytest.raises(ConfigError, match="made without classes"):
        net(X3[:, None], C, label=L)

"""What the tests of SDEs share."""

from __future__ import annotations

import math

import pytest
import torch

import scoresde as sd

SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]

by_name = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def times(sde, n=400, dtype=torch.float64):
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), n, dtype=torch.float64).clamp(sde.t_min, sde.t_max)
    late = torch.linspace(sde.t_min, sde.t_max, n, dtype=torch.float64)
    t = torch.cat([t, late]).sort().values
    return t[t.diff(prepend=t.new_zeros(1)) > 1e-9 * t].to(dtype)


def relative(a, b):
    return float(((a.double() - b.double()).abs() / b.double().abs().clamp_min(1e-300)).max())

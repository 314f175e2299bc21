"""Grids: where the steps of a solve are."""

from __future__ import annotations

import torch
from sdes.cases import by_name

import scoresde as sd


@by_name
def test_grids(sde):
    for grid in (sd.grid.uniform, sd.grid.quadratic, sd.grid.karras, sd.grid.log_snr):
        for n in (1, 2, 37):
            t = grid(sde, n)
            assert t.dtype == torch.float64
            assert t.shape == (n + 1,)
            assert bool((t.diff() < 0).all())
            assert float(t[0]) == sde.t_max
            assert float(t[-1]) == (sde.t_end or sde.t_min)
        t = grid(sde, 5, start=0.7, end=0.2)
        assert (float(t[0]), float(t[-1])) == (0.7, 0.2)
    n = 10
    t = sd.grid.uniform(sde, n)
    assert torch.allclose(t.diff(), (t[-1] - t[0]) / n)
    assert torch.allclose(sd.grid.quadratic(sde, n).sqrt().diff(), (t[-1].sqrt() - t[0].sqrt()) / n)
    ratio = (-sde.log_snr(sd.grid.karras(sde, n)) / 2).exp() ** (1 / 7)
    assert torch.allclose(ratio.diff(), (ratio[-1] - ratio[0]) / n, rtol=1e-6)
    log_snr = sde.log_snr(sd.grid.log_snr(sde, n))
    assert torch.allclose(log_snr.diff(), (log_snr[-1] - log_snr[0]) / n, rtol=1e-6)
    # EDM's own formula
    if isinstance(sde, sd.EDMSDE):
        i = torch.arange(n + 1, dtype=torch.float64) / n
        formula = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert torch.allclose(sd.grid.default(sde, n), formula, rtol=1e-12)


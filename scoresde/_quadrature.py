"""Quadrature on [0, 1] for integrands that may be singular at, or close to, an end."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@functools.cache
def graded_quadrature(panels: int = 16, order: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights and cumulative weights on [0, 1]: Gauss-Legendre on panels graded towards both ends.

    The grading copes with an f or g that is singular at, or close to, an end. Row i of the cumulative weights integrates from
    0 to node i (the integrals of the Legendre series that interpolates the integrand on a panel).
    """
    half = 2.0 ** -np.arange(panels, 0, -1)
    edges = np.concatenate([[0.0], half, 1 - half[-2::-1], [1.0]])
    x, w = np.polynomial.legendre.leggauss(order)
    values = np.polynomial.legendre.legvander(x, order - 1)
    to_series = np.linalg.inv(values)
    series_integrals = [np.polynomial.legendre.legint(np.eye(order)[k], lbnd=-1) for k in range(order)]
    integrals = np.stack([np.polynomial.legendre.legval(x, c) for c in series_integrals], 1) @ to_series
    nodes, weights, blocks = [], [], []
    for a, b in pairwise(edges):
        nodes.append((a + b) / 2 + (b - a) / 2 * x)
        weights.append((b - a) / 2 * w)
        blocks.append((b - a) / 2 * integrals)
    n = len(blocks) * order
    cumulative = np.zeros((n, n))
    for p, block in enumerate(blocks):
        rows = slice(p * order, (p + 1) * order)
        cumulative[rows, rows] = block
        cumulative[rows, : p * order] = np.concatenate(weights[:p] or [np.empty(0)])
    as_tensor = functools.partial(torch.tensor, dtype=torch.float64)
    return as_tensor(np.concatenate(nodes)), as_tensor(np.concatenate(weights)), as_tensor(cumulative)

"""Quadrature on panels of [0, 1], for integrands that may be singular at, or close to, an end."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


@functools.cache
def graded_edges() -> Tensor:
    """The edges of panels of [0, 1]: 16 equal ones, of which the first and the last are graded towards the ends."""
    near = 2.0 ** -np.arange(40, 4, -1)
    edges = np.concatenate([[0.0], near, np.arange(1, 16) / 16, 1 - near[: 15 : -1], [1.0]])
    return torch.tensor(edges, dtype=torch.float64, device="cpu")


@functools.cache
def legendre(order: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1], and weights (order, order) of which row i integrates from 0 to node i.

    The latter are the integrals of the Legendre series that interpolates the integrand.
    """
    x, w = np.polynomial.legendre.leggauss(order)
    to_series = np.linalg.inv(np.polynomial.legendre.legvander(x, order - 1))
    series_integrals = [np.polynomial.legendre.legint(np.eye(order)[k], lbnd=-1) for k in range(order)]
    cumulative = np.stack([np.polynomial.legendre.legval(x, c) for c in series_integrals], 1) @ to_series
    as_tensor = functools.partial(torch.tensor, dtype=torch.float64, device="cpu")
    return as_tensor((1 + x) / 2), as_tensor(w / 2), as_tensor(cumulative / 2)

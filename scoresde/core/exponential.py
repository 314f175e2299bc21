"""Weights of exponential integrators: integrals of an exponential times a polynomial through given nodes, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def moments(z: float, n: int) -> list[float]:
    """M_k = integral from 0 to 1 of e^(-z (1 - theta)) theta^k = k! phi_(k+1)(-z), for k < n, to rounding for any z.

    By parts, z M_k = 1 - k M_(k-1): upwards where |z| is large, and downwards, from a series for the last, where it is small.
    """
    if abs(z) >= 1:
        M = [-math.expm1(-z) / z]
        for k in range(1, n):
            M.append((1 - k * M[-1]) / z)
        return M
    term = last = 1 / n
    for i in range(1, 20):
        term *= -z / (n + i)
        last += term
    M = [last]
    for k in range(n - 1, 0, -1):
        M.append((1 - z * M[-1]) / k)
    return M[::-1]


def lagrange(nodes: Sequence[float], j: int) -> list[float]:
    """Coefficients, lowest first, of the polynomial that is 1 at nodes[j] and 0 at the others."""
    coefficients = [1.0]
    for m, node in enumerate(nodes):
        if m != j:
            scale = 1 / (nodes[j] - node)
            coefficients = [
                scale * (below - node * here)
                for below, here in zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
            ]
    return coefficients


def lagrange_at(nodes: Tensor, x: Tensor) -> Tensor:
    """The Lagrange basis of nodes (..., k) at points x (..., m): (..., k, m), differentiable in both."""
    below = nodes[..., :, None] - nodes[..., None, :]
    same = torch.eye(nodes.shape[-1], dtype=torch.bool, device=nodes.device)
    ratio = (x[..., None, None, :] - nodes[..., None, :, None]) / below.masked_fill(same, 1.0)[..., None]
    return ratio.masked_fill(same[..., None], 1.0).prod(-2)


def exponential_weights(nodes: Sequence[float], h: float, c: float = 0.0) -> list[float]:
    r"""w_j = \int_0^h e^{-c (h - tau)} l_j(tau) dtau, with l_j the Lagrange basis of the nodes (tau = 0 now, h at the end).

    The weights of an exponential Adams method, exact for polynomials of degree len(nodes) - 1; of a classical one for c = 0.
    Accurate to rounding for short and for long steps, and for either sign of h and of c h (2211.01095, 2302.04867: phi-functions).
    """
    theta = [tau / h for tau in nodes]  # nodes that are past are all <= 0: sums without cancellation
    M = moments(c * h, len(nodes))
    return [h * sum(a * m for a, m in zip(lagrange(theta, j), M, strict=True)) for j in range(len(nodes))]


def halved_weights(nodes: Sequence[float], h: float, c: float, variant: str = "bh2") -> list[float]:
    """As ``exponential_weights`` for 1 node or 3; for 2, the first at 0, the line's slope counts half of B(h) instead.

    B(h) = h ("bh1"), or the integral of e^(-c (h - tau)) ("bh2"). The order is the same, long steps are another matter
    (DPM-Solver++ 2M, and a_1 = 1/2 in 2302.04867, section 3.2).
    """
    if len(nodes) != 2:
        return exponential_weights(nodes, h, c)
    total = h * moments(c * h, 1)[0]
    slope = 0.5 * (h if variant == "bh1" else total) * h / nodes[1]
    return [total - slope, slope]

"""An exact model of the plane."""

import pytest
import torch

import scoresde as sd


@pytest.fixture(scope="module")
def gaussian():
    """A correlated Gaussian of the plane."""
    covariance = torch.tensor([[[0.5, 0.2], [0.2, 0.3]]], dtype=torch.float64)
    return sd.GaussianMixture(torch.tensor([[0.3, -0.2]], dtype=torch.float64), covariance)


@pytest.fixture(scope="module")
def exact(gaussian):
    return sd.ExactModel(gaussian, sd.VPSDE())

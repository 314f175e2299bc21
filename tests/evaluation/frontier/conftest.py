"""The model that most tests of the frontier look at."""

from __future__ import annotations

import pytest

import scoresde as sd


@pytest.fixture(scope="session")
def moons():
    return sd.data.two_moons()


@pytest.fixture
def exact(moons):
    return sd.ExactModel(moons, sd.VPSDE())

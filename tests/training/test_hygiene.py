"""Data that cannot be learned as they are: said aloud, with the figures and what to do."""

from __future__ import annotations

import warnings

import pytest
import torch
from training.runs import LEVELS, MOONS, QUICK

import scoresde as sd
from scoresde import nets
from scoresde.errors import ConfigError, ShapeError

NORMAL = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))


def fit(data, sde=None, **arguments):
    sd.fit(sd.NetworkModel(nets.MLP(2, 8, 1), sde or sd.VPSDE(), (2,)), data, steps=2, **{**QUICK, **arguments})


class Items(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


@pytest.mark.parametrize(
    ("data", "sde", "said"),
    [
        (128 + 60 * NORMAL, None, r"the data have means up to 13\d and standard deviations up to 6\d"),
        (1000 + NORMAL, None, r"means up to 1e\+03 and .*Standardize"),
        (1e6 * NORMAL, None, r"unit size"),
        (1e-3 * NORMAL, None, r"standard deviations up to 0.001"),
        (100 * NORMAL, sd.VESDE(), r"standard deviations up to"),
        (4 * NORMAL, sd.VESDE(sigma_max=5.0), r"at t_max = 1 of VESDE.* standard deviations of the noise are left.*samples.* will be wrong"),
        (torch.ones(40, 2), None, "the data do not vary"),
        (NORMAL[:1], None, "the data are one sample"),
        (Items(128 + 60 * NORMAL), None, r"the first 32 items of the Dataset have means up to 1\d\d"),
    ],
)
def test_said(data, sde, said):
    with pytest.warns(UserWarning, match=said):
        fit(data, sde, batch_size=32 if len(data) >= 32 else 1)


@pytest.mark.parametrize("data", [NORMAL, 0.5 * NORMAL, 3 + NORMAL, NORMAL * torch.tensor([1.0, 0.0]), MOONS, LEVELS, Items(NORMAL)], ids=["normal", "half", "shifted", "flat", "moons", "levels", "items"])
def test_not_said(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(data)


def test_more_samples_in_a_batch_than_there_are():
    with pytest.warns(UserWarning, match="batch_size = 41 for 40 samples"):
        fit(NORMAL[:40], batch_size=41)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weighting": lambda sde, t: 1.0}, r"your function weighting gave \(float\), expected a tensor of shape"),
        ({"weighting": lambda sde, t: torch.ones(())}, r"your function weighting gave \(\(\)\), expected"),
        ({"weighting": lambda sde, t: -t}, "expected finite numbers of at least 0"),
        ({"weighting": lambda sde, t: t / 0}, "expected finite numbers of at least 0"),
        ({"weighting": lambda sde, t: t.nothing}, "your function weighting raised AttributeError"),
        ({"times": lambda sde, u: u}, r"your function times gave .*, expected two tensors"),
        ({"times": lambda sde, u: (5 + u, u)}, r"times from 5.062 to 5.938"),
        ({"times": lambda sde, u: (u, 0 * u)}, "densities > 0"),
        ({"times": lambda sde, u: 1 / 0}, "your function times raised ZeroDivisionError"),
        ({"stratified": "x"}, "stratified = 'x', expected True or False"),
        ({"bf16": "x"}, "bf16 = 'x', expected True or False"),
        ({"overwrite": 1}, "overwrite = 1, expected True or False"),
        ({"progress": None}, "progress = None, expected True or False"),
        ({"validate_every": 0}, "validate_every = 0"),
    ],
)
def test_functions_and_flags_are_checked_at_the_door(given, message):
    with pytest.raises((ConfigError, ShapeError), match=message):
        fit(NORMAL, **given)


def test_numbers_are_no_samples():
    with pytest.raises(ShapeError, match=r"data has shape \(10,\), expected \(B, ...\), a batch of samples: data\[:, None\] for 10 samples"):
        fit(torch.zeros(10))

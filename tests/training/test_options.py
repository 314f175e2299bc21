"""Options of a run: what makes no sense is refused, what is left open filled in, and what decides about the weights is told."""

from __future__ import annotations

import math

import pytest
from training.runs import MOONS, make, options

import scoresde as sd
from scoresde import loss
from scoresde.errors import ConfigError
from scoresde.training.options import TIMED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "steps = None and minutes = None"),
        ({"steps": 3, "minutes": 1.0}, "steps = 3 and minutes = 1"),
        *[({"steps": bad}, "steps.*positive integer") for bad in (0, -1, 2.5, True)],
        ({"minutes": 0.0}, "minutes"),
        ({"steps": 3, "lr": math.nan}, "lr"),
        ({"steps": 3, "lr": 0.0}, "lr"),
        ({"steps": 3, "ema": 1.0}, "ema"),
        ({"steps": 3, "clip": -1.0}, "clip"),
        ({"steps": 3, "betas": (0.9,)}, "betas"),
        ({"steps": 3, "warmup": -1}, "warmup"),
        ({"steps": 3, "schedule": "cosin"}, "schedule"),
        ({"steps": 3, "weighting": "likelyhood"}, "did you mean 'likelihood'"),
        ({"steps": 3, "times": "importanc"}, "did you mean 'importance'"),
        ({"steps": 3, "batch_size": 2, "accumulate": 3}, "batch_size = 2"),
        ({"steps": 3, "seed": -1}, "seed"),
        ({"steps": 3, "resume": True}, "without out"),
    ],
)
def test_senseless_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sd.fit(make(), MOONS, progress=False, **arguments)


def test_what_is_left_open_is_filled_in():
    assert (options(steps=300).warmup, options(steps=300).hold) == (30, 30)
    assert options(steps=3000).warmup == 100
    timed = options(minutes=1.0)
    assert (timed.warmup, timed.hold) == (100, 100)
    timed = options(minutes=1.0, warmup=10)
    assert (timed.warmup, timed.hold) == (10, TIMED)
    for weighting, times in {"likelihood": "importance", "edm": "lognormal", "simple": "uniform", loss.likelihood: "uniform"}.items():
        assert options(steps=1, weighting=weighting).times == times
    assert options(steps=1, times="stratified", stratified=False).stratified
    assert not options(steps=1, stratified=False).stratified
    assert (options(steps=1, betas=[0, 0.5]).betas, options(steps=1, betas=[0, 0.5]).decisive()["betas"]) == ([0, 0.5], [0.0, 0.5])


def test_what_decides_is_what_version_0_1_wrote():
    """Byte for byte what its checkpoints hold, in its order: an old run goes on."""
    assert list(options(steps=40, augment=sd.augment.Flip(), dequantization="normal").decisive().items()) == [
        *(("steps", 40), ("minutes", None), ("batch_size", 128), ("lr", 0.002), ("betas", [0.9, 0.999]), ("weight_decay", 0.0)),
        *(("warmup", 4), ("hold", 4), ("schedule", "cosine"), ("clip", 1.0), ("ema", 0.999), ("weighting", "likelihood")),
        *(("times", "importance"), ("stratified", True), ("seed", 0), ("bf16", False), ("dequantization", "normal")),
        ("augment", "Flip(probability=0.5)"),
    ]
    own = options(steps=40, weighting=loss.min_snr, times=loss.FittedTimes((0.5, 0.5))).decisive()
    assert (own["weighting"], own["times"], own["augment"]) == ("min_snr", "FittedTimes(shares=(0.5, 0.5))", None)


def test_how_the_work_is_split_up_decides_nothing():
    other = {"accumulate": 3, "checkpoint_every": 7, "log_every": 3, "validate_every": 2, "out": "run", "overwrite": True}
    assert options(steps=40, **other).decisive() == options(steps=40).decisive()
    assert options(steps=40, seed=1).decisive() != options(steps=40).decisive()

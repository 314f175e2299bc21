"""Every stream of noise in one table: what a draw is for, so that no two purposes ever share one.

A draw is a function of (seed, stream, sample id, step), see ``noise.py``. The low half of the streams, below 2^62, is that of a
solve: a solver of your own may use any integer from ``OWN`` on, below 2^24, and as many more as it wraps restarts around. The high half
is that of everything else. ``RANGES`` lists them all.
"""

from __future__ import annotations

# ---- sampling and likelihood
PRIOR, STEP, PROBE, DEQUANTIZE, TARGET, TRAIN, PROJECTION = range(7)

# ---- training: unchanged since version 0.1, so that its runs go on to the same bits
_PART = 1 << 8
TRAIN_ORDER, TRAIN_TIMES, TRAIN_EPS, TRAIN_DROPOUT, VALIDATION, FIT_TIMES = (TRAIN + k * _PART for k in range(1, 7))
AUGMENT = TRAIN + 16 * _PART
FINE_TUNING = TRAIN + 32 * _PART

# ---- within a step of a solver
OWN = 1 << 20  # from here to OFF_PATH: for a solver of yours
OFF_PATH = 1 << 24  # streams from here on are never increments of a Brownian path
CORRECTOR = 1 << 32  # + i for the i-th corrector step at one time
SECOND = 1 << 33  # the second normal that a stochastic Runge-Kutta step needs
BLUR = 1 << 34  # takes real samples to t_end
TUNE = (1 << 34) + 1  # pilot paths start where no sample does
RESTART = 1 << 40  # the size of a block of streams: each restart, and each step inside of it, has a block with all of the above

# ---- the high half
_HIGH = 1 << 62
BOUND_NOISE, BOUND_TIMES, BOUND_LAST = (_HIGH + i for i in range(3))
DEQUANTIZER_DRAW, DEQUANTIZER_EPS, DEQUANTIZER_TIME = (_HIGH + _PART + i for i in range(3))
TOY = _HIGH + 2 * _PART  # + the number of the shape

RANGES: dict[str, range] = {
    **{name: range(first, first + 1) for name, first in (("PRIOR", PRIOR), ("STEP", STEP), ("PROBE", PROBE))},
    **{name: range(first, first + 1) for name, first in (("DEQUANTIZE", DEQUANTIZE), ("TARGET", TARGET), ("TRAIN", TRAIN))},
    "PROJECTION": range(PROJECTION, PROJECTION + 1),
    "TRAIN_ORDER": range(TRAIN_ORDER, TRAIN_ORDER + _PART),
    "TRAIN_TIMES": range(TRAIN_TIMES, TRAIN_TIMES + _PART),
    "TRAIN_EPS": range(TRAIN_EPS, TRAIN_EPS + _PART),
    "TRAIN_DROPOUT": range(TRAIN_DROPOUT, TRAIN_DROPOUT + _PART),
    "VALIDATION": range(VALIDATION, VALIDATION + _PART),
    "FIT_TIMES": range(FIT_TIMES, FIT_TIMES + _PART),
    "AUGMENT": range(AUGMENT, AUGMENT + _PART),
    "FINE_TUNING": range(FINE_TUNING, FINE_TUNING + _PART),
    "OWN": range(OWN, OFF_PATH),
    "CORRECTOR": range(CORRECTOR, SECOND),
    "SECOND": range(SECOND, SECOND + 1),
    "BLUR": range(BLUR, BLUR + 1),
    "TUNE": range(TUNE, TUNE + 1),
    "RESTART": range(RESTART, _HIGH),
    "BOUND_NOISE": range(BOUND_NOISE, BOUND_NOISE + 1),
    "BOUND_TIMES": range(BOUND_TIMES, BOUND_TIMES + 1),
    "BOUND_LAST": range(BOUND_LAST, BOUND_LAST + 1),
    "DEQUANTIZER_DRAW": range(DEQUANTIZER_DRAW, DEQUANTIZER_DRAW + 1),
    "DEQUANTIZER_EPS": range(DEQUANTIZER_EPS, DEQUANTIZER_EPS + 1),
    "DEQUANTIZER_TIME": range(DEQUANTIZER_TIME, DEQUANTIZER_TIME + 1),
    "TOY": range(TOY, TOY + _PART),
}

# ---- draws of one sample's dequantization (steps of the stream DEQUANTIZE): ``bits_per_dim`` counts from 0
TRAINING_DRAW = 1 << 32  # + the step
FINE_TUNING_DRAW = 3 << 32
FINE_TUNING_VALIDATION_DRAW = 4 << 32

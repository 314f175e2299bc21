"""Every stream of noise in one table."""

from __future__ import annotations

BLUR = 1 << 34  # the stream of the noise that takes real samples to t_end

TUNE = 1 << 34  # stream of noise: pilot paths start where no sample does

SECOND = 1 << 33  # the stream of the second normal that a stochastic Runge-Kutta step needs

NOISE, TIMES, LAST = (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3  # streams

# Streams: what a draw is for. A solver may use any other integer below 2^63 for its own.
PRIOR, STEP, PROBE, DEQUANTIZE, TARGET, TRAIN, PROJECTION = range(7)

CORRECTOR = 1 << 32  # + i for the i-th corrector step at one time

OFF_PATH = 1 << 24  # streams from here on are never increments of a Brownian path

RESTART = 1 << 40  # the size of a block of streams: each restart, and each step inside of it, has blocks of its own

DRAW, EPS, TIME = ((1 << 40) + 64 + i for i in range(3))  # streams of noise

"""Samples, and what is made of them: codes and back, importance weights, a reference, solvers tuned to a model."""

from scoresde.sampling.importance import importance_weights
from scoresde.sampling.latents import decode, encode, interpolate, round_trip_error
from scoresde.sampling.referencing import fit_reference
from scoresde.sampling.sampler import sample, trajectory
from scoresde.sampling.tuning import tune

__all__ = ["decode", "encode", "fit_reference", "importance_weights", "interpolate", "round_trip_error", "sample", "trajectory", "tune"]

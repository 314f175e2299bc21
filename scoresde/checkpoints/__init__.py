"""A model on disk: safetensors and JSON with sums, in folders that appear whole; never a pickle."""

from scoresde.checkpoints.saving import load, save

__all__ = ["load", "save"]

"""Errors: one family, so that ``except ScoreSDEError`` catches whatever a user can cause.

Each error is also a standard one (``ValueError``, ``TypeError``, ``OSError``, ...), and its message says what was got, what
was expected and what to do.
"""

from __future__ import annotations


class ScoreSDEError(Exception):
    """The base of every error that scoresde raises on purpose."""


class ConfigError(ScoreSDEError, ValueError):
    """An argument or a combination of arguments that makes no sense."""


class ShapeError(ScoreSDEError, ValueError):
    """A tensor of the wrong shape."""


class DTypeError(ScoreSDEError, TypeError):
    """A tensor of the wrong dtype, integers where floats are due for instance."""


class DeviceError(ScoreSDEError, ValueError):
    """Tensors on different devices."""


class ScaleError(ScoreSDEError, ValueError):
    """Data outside the range that the model was trained on, [0, 255] instead of [-1, 1] for instance."""


class NonFiniteError(ScoreSDEError, ValueError):
    """NaN or infinity in an input."""


class TimeRangeError(ScoreSDEError, ValueError):
    """A time outside [t_min, t_max]."""


class DataError(ScoreSDEError, ValueError):
    """A data file that cannot be read as what it claims to be."""


class SolverError(ScoreSDEError, RuntimeError):
    """A solve that failed: non-finite states, step size underflow, too many network calls."""


class TrainingDiverged(ScoreSDEError, RuntimeError):
    """A training loss that is not finite."""


class CheckpointError(ScoreSDEError):
    """A checkpoint that cannot be used."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """No checkpoint at this path."""


class CheckpointCorrupt(CheckpointError, ValueError):
    """A checkpoint that is truncated, damaged or does not match its sha256."""


class CheckpointUntrusted(CheckpointError, ValueError):
    """A file format that could run code when read (pickle)."""


class CheckpointMismatch(CheckpointError, ValueError):
    """A checkpoint of another model, SDE, data set or version."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint that could not be written; the previous one is intact."""


class LockError(CheckpointError):
    """Another process is writing to this run."""

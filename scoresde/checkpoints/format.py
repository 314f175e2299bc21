"""The files of a checkpoint: what is in them, how they are read and how they are found to be damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.checkpoints import folders as folders_module
from scoresde.core import encoding
from scoresde.core import files as files_module
from scoresde.core.encoding import some_of
from scoresde.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch, CheckpointNotFound

FORMAT = 1

_TENSOR_FILES = ("model", "ema", "optimizer", "reference")

_DTYPES = ("float32", "float64", "bfloat16", "float16")

MAX_SIZE = 100_000  # of anything in a network's arguments


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read: the folder, its config, and tensors by file, ``tensors["model"]`` for instance."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def root_of(path: Path) -> Path:
    """The folder of a run, of the run itself or of one checkpoint in it."""
    return path.absolute().parent if (path / "config.json").exists() else path.absolute()


def write(
    root: Path, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], step: int = 0, *, buffers: Collection[str] = ()
) -> Path:
    """Writes a checkpoint and removes those of its kind (of training, or of a model alone) before the last. Hold the lock.

    Args:
        root: the folder.
        tensors: the content of ``model.safetensors``, and of ``ema`` and ``optimizer`` in a training run.
        config: plain JSON for ``config.json``, which gets versions and sums too.
        buffers: names of tensors that may hold NaN and infinity.
        step: the number of the checkpoint, unless the folder has that one or a later one.

    Raises:
        CheckpointWriteError, NonFiniteError: as ``save``.
    """
    from importlib.metadata import version

    files = {f"{name}.safetensors": encoding.encode_tensors(content, name, free=buffers) for name, content in tensors.items()}
    sums = {name: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for name, b in files.items()}
    versions = {package: version(package) for package in ("scoresde", "torch", "safetensors")}
    files["config.json"] = encoding.encode_config({"format": FORMAT, "versions": versions, **config, "files": sums})
    before = folders_module.folders(root)
    written = folders_module.write_folder(root, files, step)
    for folder in [f for f in before if is_training(f) == is_training(written)][:-1]:
        folders_module.remove_folder(folder)
    return written


def is_training(folder: Path) -> bool:
    """Whether a checkpoint is of a training run, and can be resumed."""
    return (folder / "optimizer.safetensors").exists()


def read(
    path: str | os.PathLike[str], names: Sequence[str] = _TENSOR_FILES, *, first: bool = False, training: bool = False
) -> Checkpoint:
    """Reads the newest intact checkpoint, with a warning if a newer one is damaged.

    Args:
        path: the folder, or one checkpoint in it.
        names: the tensors to read.
        first: read the first of ``names`` that is there, not all of them, and the Gaussian reference.
        training: pass over checkpoints of a model alone.

    Raises:
        CheckpointNotFound, CheckpointCorrupt, CheckpointUntrusted, CheckpointMismatch, CheckpointError: as ``load``.
    """
    root = Path(path).absolute()
    try:
        mode = os.stat(root).st_mode
    except OSError:
        raise CheckpointNotFound(f"no checkpoint at {root}: expected a folder that fit(..., out=...) or save made") from None
    if stat.S_ISREG(mode):
        files_module.refuse_pickle(root, files_module.read_file(root, 8, partial=True))
        raise CheckpointCorrupt(
            f"{root}: a file of {os.path.getsize(root)} bytes; expected bytes: those of a folder that fit or save made"
        )
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{root}: not a regular file, expected a folder that fit or save made")
    damaged: CheckpointCorrupt | None = None
    for _ in range(3):  # a running fit may remove what we are about to read, once it has written a newer one
        folders = [root] if (root / "config.json").exists() else folders_module.folders(root)[::-1]
        damaged = None
        for folder in folders:
            if training and not is_training(folder):
                continue
            try:
                found = _read_checkpoint(folder, names, first)
            except CheckpointCorrupt as error:
                damaged = damaged or error
                continue
            if damaged is not None:
                warnings.warn(f"{damaged}; the previous checkpoint is used, {folder}", stacklevel=4)
            return found
        if folders == [root] or folders_module.folders(root)[::-1] == folders:
            break
    if damaged is not None:
        raise damaged
    raise CheckpointNotFound(f"no checkpoint in {root}: the folder holds {some_of(sorted(os.listdir(root)))}")


def _read_checkpoint(folder: Path, names: Sequence[str], first: bool) -> Checkpoint:
    path = folder / "config.json"
    config = encoding.decode_config(path, files_module.read_file(path, encoding.CONFIG_BYTES))
    if config.get("format") != FORMAT:
        raise CheckpointMismatch(f"{path}: format is {config.get('format')!r} in the checkpoint, but {FORMAT} is what is read")
    problem = _problem(config)
    if problem:
        raise CheckpointCorrupt(f"{path}: {problem}, in {os.path.getsize(path)} bytes, expected bytes that `save` wrote")
    there = [name for name in names if f"{name}.safetensors" in config["files"]]
    tensors = {}
    extra = ["reference"] if "reference.safetensors" in config["files"] and first else []
    for name in [*there[:1], *extra] if first else there:
        file, entry = folder / f"{name}.safetensors", config["files"][f"{name}.safetensors"]
        tensors[name] = encoding.decode_tensors(file, encoding.read_verified(file, entry["bytes"], entry["sha256"]))
    return Checkpoint(folder, config, tensors)


def _problem(config: Mapping[str, Any]) -> str:
    """What is wrong with a config, or nothing. Values that reach a constructor or a file name are checked here."""
    files, model = config.get("files"), config.get("model")
    names = {f"{name}.safetensors" for name in _TENSOR_FILES}
    if not isinstance(files, dict) or "model.safetensors" not in files or not names.issuperset(files):
        return "files are not those of a checkpoint"
    for entry in files.values():
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            return "files are without bytes and sha256"
    reference = config.get("reference")
    known = {"kind", "width", "detail", "typical"}
    if ("reference.safetensors" in files) != isinstance(reference, dict) or set(reference or ()) - known:
        return f"reference is not an object of {', '.join(sorted(known))}"
    if not isinstance(model, dict) or not isinstance(model.get("class"), str) or model.get("dtype") not in _DTYPES:
        return "model is without class or dtype"
    shape = model.get("event_shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n <= MAX_SIZE for n in shape) or len(shape) > 8:
        return "model.event_shape is not a list of sizes"
    for field in ("sde", "net") if model["class"] == "NetworkModel" else ("sde",):
        entry = model.get(field)
        if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
            return f"model.{field} is without class"
        if not isinstance(entry.get("args"), (dict, type(None))):
            return f"model.{field}.args is not an object"
    if model["class"] == "NetworkModel":
        if not isinstance(model.get("parameterization"), str):
            return "model.parameterization is not a name"
        if not isinstance(model.get("transform"), (dict, type(None))):
            return "model.transform is not an object"
    return ""

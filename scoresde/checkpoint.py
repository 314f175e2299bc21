"""Checkpoints: safetensors and JSON in a folder, complete or not there at all, and never a pickle.

``path/checkpoint-001500/`` holds ``model.safetensors`` and ``config.json``, and in a training run ``ema.safetensors`` and
``optimizer.safetensors`` too. It is written under a temporary name, fsynced and renamed, so that it exists only when complete;
the one before is kept. ``config.json`` says what the model is (class names and arguments, resolved among scoresde's own
classes only) and holds the sha256 of every file, its first line that of itself. The sums tell damage, not forgery.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _files, nets
from . import sde as sdes
from .errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    ConfigError,
)
from .model import NetworkModel, ScoreModel
from .parameterization import Parameterization
from .recipe import Recipe, fingerprint
from .reference import GaussianReference
from .sde import SDE
from .transform import Transform

FORMAT = 1
_TENSOR_FILES = ("model", "ema", "optimizer", "reference")
_PARAMETERIZATIONS = ("x0", "eps", "score", "v", "edm")
_DTYPES = ("float32", "float64", "bfloat16", "float16")
_MAX_SIZE = 100_000  # of anything in a network's arguments


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read: the folder, its config, and tensors by file, ``tensors["model"]`` for instance."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(model: ScoreModel, path: str | os.PathLike[str]) -> None:
    """Saves a model: its weights, and what ``load`` needs to build it again.

    Args:
        model: a ``NetworkModel``. Any other ScoreModel can be saved too, and is loaded by ``load(path, model=...)``.
        path: a folder, made if need be. The checkpoint that was there last is kept, those before it are removed.

    Raises:
        CheckpointWriteError: the disk is full, the folder read-only, ...; ``errno`` is kept, and so is the last checkpoint.
        NonFiniteError: a weight is NaN or infinite.
        LockError: a ``fit`` in another process is writing there.
    """
    root = Path(path).absolute()
    with _files.lock(root):
        _files.remove_temporaries(root)
        write(root, *with_reference(model, {"model": model.state_dict()}, {"model": describe(model)}))
    for recipe in model.recipes.values():
        recipe.save(root)


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    sde: SDE | None = None,
    parameterization: str | Parameterization | None = None,
    ema: bool = True,
    model: ScoreModel | None = None,
) -> ScoreModel:
    """Loads what ``save`` or ``fit(..., out=path)`` wrote, on the CPU and in evaluation mode. Reads no pickle, runs no code.

    If the newest checkpoint is damaged, the one before is used, with a warning.

    Args:
        path: the folder, or one ``checkpoint-...`` in it.
        net, sde, parameterization: your own ones, as they were when the model was saved. scoresde's own need not be given; any
            that is given is compared with what the checkpoint says.
        ema: the averaged weights, where there are any; False for the raw ones of a training run.
        model: a model to fill and return instead, for a ScoreModel of your own.

    Raises:
        CheckpointNotFound: there is none at this path.
        CheckpointCorrupt: truncated or damaged, and so is the one before.
        CheckpointMismatch: another network, SDE, parameterization or version; names the field, saved and requested.
        CheckpointUntrusted: a pickle.
        ConfigError: a class of your own was saved, and none was given.
    """
    found = read(path, ["ema", "model"] if ema else ["model"], first=True)
    reference = _reference(found)
    (weights,) = found.tensors.values()
    saved = found.config["model"]
    if model is None:
        model = _build(saved, net, sde, parameterization, weights, found.path)
    check_same(saved, describe(model), found.path)
    check_weights(weights, model.state_dict(), found.path)
    model.load_state_dict(weights)
    if reference is not None:
        model.reference = reference
    model.recipes = {**model.recipes, **_recipes(_root(Path(path)), model)}
    return model.eval()


def _root(path: Path) -> Path:
    """The folder of a run, of the run itself or of one checkpoint in it."""
    return path.absolute().parent if (path / "config.json").exists() else path.absolute()


def _recipes(root: Path, model: ScoreModel) -> dict[int, Recipe]:
    """The recipes beside a checkpoint that were made for this model; a damaged one is passed over, with a warning."""
    found: dict[int, Recipe] = {}
    files = sorted(root.glob("recipe-*.json"))
    weights = fingerprint(model) if files else ""
    for file in files:
        try:
            recipe = Recipe.load(file)
        except CheckpointError as error:
            warnings.warn(f"{error}; it is passed over, tune makes a new one", stacklevel=3)
            continue
        if not recipe.mismatch(model, weights):
            found[recipe.nfe] = recipe
    return found


def with_reference(
    model: ScoreModel, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """What ``write`` takes, and the model's Gaussian reference with it, if it has one of its own."""
    r = model.reference
    if r is None or r.exact:
        return dict(tensors), dict(config)
    how = {"kind": r.kind, "width": r.width} | ({} if r.detail is None else {"detail": r.detail})
    return {**tensors, "reference": r.tensors()}, {**config, "reference": how}


def _reference(found: Checkpoint) -> GaussianReference | None:
    """Takes the Gaussian reference out of what was read."""
    tensors: Any = found.tensors.pop("reference", None)  # type: ignore[arg-type]
    if tensors is None:
        return None
    try:
        return GaussianReference(**tensors, **found.config["reference"])
    except (TypeError, ValueError) as error:
        raise CheckpointMismatch(f"{found.path}: its reference cannot be made: {error}") from error


# ---- what a model is, as JSON


def describe(model: ScoreModel) -> dict[str, Any]:
    """What a model is, as JSON: class names and arguments."""
    out: dict[str, Any] = {
        "class": type(model).__name__,
        "event_shape": list(model.event_shape),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sde": {"class": type(model.sde).__name__, "args": arguments(model.sde)},
    }
    if isinstance(model, NetworkModel):
        config = getattr(model.net, "config", None)
        out["net"] = {"class": type(model.net).__name__, "args": plain(config) if isinstance(config, Mapping) else None}
        out["parameterization"] = name_of(model.parameterization)
        out["transform"] = arguments(model.transform)
    return out


def arguments(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass as JSON; None for anything else."""
    if not dataclasses.is_dataclass(value):
        return None
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}


def plain(value: Any) -> Any:
    """A value as JSON has it; what JSON cannot hold as its repr."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def name_of(function: Any) -> str:
    """The name that a function is known by in a config; a string is its own, and a dataclass tells its fields."""
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return repr(function)
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def check_same(saved: Mapping[str, Any], requested: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Compares two descriptions. Raises CheckpointMismatch with the first field that differs and both its values."""
    for key in sorted({*saved, *requested} - {"transform"}):
        a, b, name = saved.get(key), requested.get(key), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            check_same(a, b, path, f"{name}.")
        elif a != b:
            raise CheckpointMismatch(
                f"{path}: {name} is {a!r} in the checkpoint, but {b!r} was requested: give the same, or another path"
            )


def check_weights(saved: Mapping[str, Tensor], requested: Mapping[str, Tensor], path: Path) -> None:
    """Compares names, shapes and dtypes of weights. Raises CheckpointMismatch."""
    missing, unexpected = sorted(set(requested) - set(saved)), sorted(set(saved) - set(requested))
    if missing or unexpected:
        raise CheckpointMismatch(
            f"{path}: holds the weights of another network: missing keys {_some(missing)}, "
            f"unexpected keys {_some(unexpected)}; give the network that was saved"
        )
    for key, tensor in requested.items():
        a, b = (f"{str(w.dtype).removeprefix('torch.')}{tuple(w.shape)}" for w in (saved[key], tensor))
        if a != b:
            raise CheckpointMismatch(
                f"{path}: weight {key} is {a} in the checkpoint, but {b} in the network: give the network that was saved"
            )


def _build(
    saved: Mapping[str, Any],
    net: nn.Module | None,
    sde: SDE | None,
    parameterization: str | Parameterization | None,
    weights: Mapping[str, Tensor],
    path: Path,
) -> NetworkModel:
    """The NetworkModel that a config describes, with some weights. Names resolve among scoresde's own classes only."""
    if saved["class"] != "NetworkModel":
        raise ConfigError(
            f"{path}: holds a {saved['class']}, which scoresde cannot build: make one and give it, load(path, model=...)"
        )
    if sde is None:
        sde = _make(_own_class(saved["sde"], sdes, SDE, "sde", path), saved["sde"]["args"], "sde", path)
    if parameterization is None:
        parameterization = saved["parameterization"]
        if parameterization not in _PARAMETERIZATIONS:
            raise ConfigError(
                f"{path}: its parameterization {parameterization!r} is not one of scoresde's: "
                "give yours, load(path, parameterization=...)"
            )
    if net is None:
        cls, args, dtype = _own_class(saved["net"], nets, nn.Module, "net", path), saved["net"]["args"], saved["dtype"]
        _check_sizes(args, path)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
            with torch.device("meta"):  # shapes first: a few bytes of JSON must not make us allocate terabytes
                outline = _make(cls, args, "net", path).to(getattr(torch, dtype)).state_dict()
            check_weights(weights, {f"net.{key}": tensor for key, tensor in outline.items()}, path)
            net = _make(cls, args, "net", path).to(getattr(torch, dtype))
    transform = None if saved["transform"] is None else _make(Transform, saved["transform"], "transform", path)
    return NetworkModel(net, sde, tuple(saved["event_shape"]), parameterization, transform)  # type: ignore[arg-type]


def _own_class(entry: Mapping[str, Any], module: Any, base: type, field: str, path: Path) -> type:
    """A public and concrete class that a module of scoresde itself defines. Raises ConfigError."""
    name = entry["class"]
    cls = None if name.startswith("_") else vars(module).get(name)
    own = isinstance(cls, type) and issubclass(cls, base) and cls is not base and cls.__module__ == module.__name__
    if not own or entry["args"] is None:
        raise ConfigError(f"{path}: its {field} is a {name}, which is not one of scoresde's: give yours, load(path, {field}=...)")
    return cls  # type: ignore[return-value]


def _make(cls: type, args: Mapping[str, Any], field: str, path: Path) -> Any:
    try:
        return cls(**args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointMismatch(f"{path}: {field} = {cls.__name__}(**{args}) cannot be made: {error}") from error


def _check_sizes(value: Any, path: Path) -> None:
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_sizes(item, path)
    if isinstance(value, int) and abs(value) > _MAX_SIZE:
        raise CheckpointMismatch(f"{path}: a size of {value} in net.args, expected at most {_MAX_SIZE}")


def _some(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:6])}{f', ... {len(names)} in all' if len(names) > 6 else ''}]"


# ---- reading and writing


def write(root: Path, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], step: int = 0) -> Path:
    """Writes a checkpoint and removes those of its kind (of training, or of a model alone) before the last. Hold the lock.

    Args:
        root: the folder.
        tensors: the content of ``model.safetensors``, and of ``ema`` and ``optimizer`` in a training run.
        config: plain JSON for ``config.json``, which gets versions and sums too.
        step: the number of the checkpoint, unless the folder has that one or a later one.

    Raises:
        CheckpointWriteError, NonFiniteError: as ``save``.
    """
    from importlib.metadata import version

    files = {f"{name}.safetensors": _files.encode_tensors(content, name) for name, content in tensors.items()}
    sums = {name: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for name, b in files.items()}
    versions = {package: version(package) for package in ("scoresde", "torch", "safetensors")}
    files["config.json"] = _files.encode_config({"format": FORMAT, "versions": versions, **config, "files": sums})
    before = _files.folders(root)
    written = _files.write_folder(root, files, step)
    for folder in [f for f in before if is_training(f) == is_training(written)][:-1]:
        _files.remove_folder(folder)
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
        _files.refuse_pickle(root, _files.read_file(root, 8, partial=True))
        raise CheckpointCorrupt(
            f"{root}: a file of {os.path.getsize(root)} bytes; expected bytes: those of a folder that fit or save made"
        )
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{root}: not a regular file, expected a folder that fit or save made")
    damaged: CheckpointCorrupt | None = None
    for _ in range(3):  # a running fit may remove what we are about to read, once it has written a newer one
        folders = [root] if (root / "config.json").exists() else _files.folders(root)[::-1]
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
                warnings.warn(f"{damaged}; the previous checkpoint is used, {folder}", stacklevel=3)
            return found
        if folders == [root] or _files.folders(root)[::-1] == folders:
            break
    if damaged is not None:
        raise damaged
    raise CheckpointNotFound(f"no checkpoint in {root}: the folder holds {_some(sorted(os.listdir(root)))}")


def _read_checkpoint(folder: Path, names: Sequence[str], first: bool) -> Checkpoint:
    path = folder / "config.json"
    config = _files.decode_config(path, _files.read_file(path, _files.CONFIG_BYTES))
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
        tensors[name] = _files.decode_tensors(file, _files.read_verified(file, entry["bytes"], entry["sha256"]))
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
    if ("reference.safetensors" in files) != isinstance(reference, dict) or set(reference or ()) - {"kind", "width", "detail"}:
        return "reference is not an object with kind, width and detail"
    if not isinstance(model, dict) or not isinstance(model.get("class"), str) or model.get("dtype") not in _DTYPES:
        return "model is without class or dtype"
    shape = model.get("event_shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n <= _MAX_SIZE for n in shape) or len(shape) > 8:
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

"""Checkpoints: safetensors and JSON in a folder, complete or not there at all, and never a pickle.

``path/checkpoint-001500/`` holds ``model.safetensors`` and ``config.json``, and in a training run ``ema.safetensors`` and
``optimizer.safetensors`` too. It is written under a temporary name, fsynced and renamed, so that it exists only when complete;
the one before is kept. ``config.json`` says what the model is (class names and arguments, resolved among scoresde's own
classes only) and holds the sha256 of every file, its first line that of itself. The sums tell damage, not forgery.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from scoresde.checkpoints import folders
from scoresde.checkpoints.description import build_model, check_same, describe, names_of_buffers, read_reference, with_reference
from scoresde.checkpoints.format import read, root_of, write
from scoresde.core import files as files_module
from scoresde.core.checks import shown
from scoresde.core.doors import checked
from scoresde.core.encoding import check_weights
from scoresde.errors import ConfigError, ScoreSDEError
from scoresde.solvers.recipe import Recipe, fingerprint

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.models.parameterization import Parameterization
    from scoresde.sdes.base import SDE


@checked
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
    with files_module.lock(root):
        folders.remove_temporaries(root)
        write(root, *with_reference(model, {"model": model.state_dict()}, {"model": describe(model)}), buffers=names_of_buffers(model))
    for recipe in model.recipes.values():
        recipe.save(root)


@checked
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
    if parameterization is not None and not isinstance(parameterization, str) and not callable(parameterization):
        raise ConfigError(f"parameterization = {shown(parameterization)}, expected a name or a function (alpha, sigma) -> (c_skip, c_out)")
    found = read(path, ["ema", "model"] if ema else ["model"], first=True)
    reference = read_reference(found)
    (weights,) = found.tensors.values()
    saved = found.config["model"]
    if model is None:
        model = build_model(saved, net, sde, parameterization, weights, found.path)
    check_same(saved, describe(model), found.path)
    check_weights(weights, model.state_dict(), found.path)
    model.load_state_dict(weights)
    if reference is not None:
        model.reference = reference
    if "required" in found.config:
        model.conditions = model.conditions._replace(required=tuple(found.config["required"]))
    model.weights = "raw" if not ema and "training" in found.config else model.weights
    model.recipes = {**model.recipes, **_recipes(root_of(Path(path)), model)}
    return model.eval()


def _recipes(root: Path, model: ScoreModel) -> dict[int, Recipe]:
    """The recipes beside a checkpoint that were made for this model; a damaged one is passed over, with a warning."""
    found: dict[int, Recipe] = {}
    files = sorted(root.glob("recipe-*.json"))
    weights = fingerprint(model) if files else ""
    for file in files:
        try:
            recipe = Recipe.load(file)
        except ScoreSDEError as error:
            warnings.warn(f"{error}; it is passed over, tune makes a new one", stacklevel=4)
            continue
        if "weights" not in recipe.model:
            told = "does not say for which weights it was made, so that it fits none: it is passed over"
            warnings.warn(f"{file}: {told}; tune makes a new one, and Recipe.load gives this one for use by hand", stacklevel=4)
            continue
        if not recipe.mismatch(model, weights):
            found[recipe.nfe] = recipe
    return found

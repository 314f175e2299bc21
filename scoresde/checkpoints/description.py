"""What a checkpoint says of a model: class names and arguments, and how a model is built from them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scoresde import nets, sdes
from scoresde.checkpoints.format import MAX_SIZE
from scoresde.core import faces
from scoresde.core.digest import name_of
from scoresde.core.encoding import arguments, check_weights, plain
from scoresde.data.transform import Transform
from scoresde.errors import CheckpointMismatch, ConfigError
from scoresde.models import parameterization as parameterizations
from scoresde.models.network import NetworkModel, made_with
from scoresde.models.plain import clean_name
from scoresde.models.plain import plain as plain_net
from scoresde.models.reference import GaussianReference
from scoresde.sdes.base import SDE

if TYPE_CHECKING:
    from scoresde.checkpoints.format import Checkpoint
    from scoresde.models.base import ScoreModel
    from scoresde.models.parameterization import Parameterization

def with_reference(
    model: ScoreModel, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """What ``write`` takes, with what a model is known by beside its weights: the conditions that it cannot do without, and its Gaussian
    reference, if it has one of its own."""
    r, config = model.reference, {**config, "required": list(model.conditions.required)}
    if r is None or r.exact:
        return dict(tensors), config
    how = {"kind": r.kind, "width": r.width} | ({} if r.detail is None else {"detail": r.detail})
    how |= {} if r.typical == 1 else {"typical": r.typical}
    return {**tensors, "reference": r.tensors()}, {**config, "reference": how}


def read_reference(found: Checkpoint) -> GaussianReference | None:
    """Takes the Gaussian reference out of what was read."""
    tensors: Any = found.tensors.pop("reference", None)  # type: ignore[arg-type]
    if tensors is None:
        return None
    try:
        # copies: where a tensor lies in a file is where it lies in memory, and matrix products round differently there
        return GaussianReference(**{name: tensor.clone() for name, tensor in tensors.items()}, **found.config["reference"])
    except (TypeError, ValueError) as error:
        raise CheckpointMismatch(f"{found.path}: its reference cannot be made: {error}") from error


def describe(model: ScoreModel) -> dict[str, Any]:
    """What a model is, as JSON: class names and arguments."""
    out: dict[str, Any] = {
        "class": type(model).__name__,
        "event_shape": list(model.event_shape),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sde": {"class": type(model.sde).__name__, "args": arguments(model.sde), **_levels(model.sde)},
    }
    if isinstance(model, NetworkModel):
        config = made_with(model)
        out["net"] = {"class": type(plain_net(model.net)).__name__, "args": None if config is None else plain(config)}
        out["parameterization"] = name_of(model.parameterization)
        out["transform"] = arguments(model.transform)
    return out


def _levels(sde: SDE) -> dict[str, Any]:
    """alpha and sigma at nine times, of an SDE whose arguments do not say what it is: one of one's own that is no dataclass, or that has
    tables. None of a module, whose parameters are weights and are kept as such."""
    values = [getattr(sde, field.name) for field in dataclasses.fields(sde)] if dataclasses.is_dataclass(sde) else [sde]
    if isinstance(sde, nn.Module) or all(isinstance(v, (int, float, str, type(None))) for v in values):
        return {}
    times = torch.linspace(math.log(sde.t_min), math.log(sde.t_max), 9, dtype=torch.float64, device="cpu").exp().clamp(sde.t_min, sde.t_max)
    with torch.no_grad():
        return {"levels": {f"{float(t):.6g}": {"alpha": t.alpha, "sigma": t.sigma} for t in sde.levels(times)}}


def names_of_buffers(model: nn.Module) -> set[str]:
    """Which of the tensors of its state are no parameters: they may hold infinity, as the mask of a causal attention does."""
    clean = clean_name(model)
    return {clean(name) for name, _ in model.named_buffers(remove_duplicate=False)}


def check_same(saved: Mapping[str, Any], requested: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Compares two descriptions. Raises CheckpointMismatch with the first field that differs and both its values."""
    for key in sorted({*saved, *requested} - {"transform"}):
        a, b, name = saved.get(key), requested.get(key), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            check_same(a, b, path, f"{name}.")
        elif a is None and name == "sde.levels":
            continue  # a checkpoint from before they were kept
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-5)):
            raise CheckpointMismatch(
                f"{path}: {name} is {a!r} in the checkpoint, but {b!r} was requested: give the same, or another path"
            )


def build_model(
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
        parameterization = _parameterization(saved["parameterization"], path)
    if net is None:
        cls, args, dtype = _own_class(saved["net"], nets, nn.Module, "net", path), saved["net"]["args"], saved["dtype"]
        _check_sizes(args, path)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
            with torch.device("meta"):  # shapes first: a few bytes of JSON must not make us allocate terabytes
                outline = _make(cls, args, "net", path).to(getattr(torch, dtype)).state_dict()
            of_net = {key: tensor for key, tensor in weights.items() if key.startswith("net.")}  # an SDE may have some, too
            check_weights(of_net, {f"net.{key}": tensor for key, tensor in outline.items()}, path)
            net = _make(cls, args, "net", path).to(getattr(torch, dtype))
    transform = None if saved["transform"] is None else _make(Transform, saved["transform"], "transform", path)
    return NetworkModel(net, sde, tuple(saved["event_shape"]), parameterization, transform)  # type: ignore[arg-type]


def _parameterization(saved: str, path: Path) -> Parameterization:
    """The one of this name, or as it is written: EDM(sigma_data=5.0). Raises ConfigError."""
    if saved in parameterizations.NAMES:
        return parameterizations.NAMES[saved]
    for pattern, make in (
        (r"EDM\(sigma_data=([^,()]+)\)", lambda size: parameterizations.EDM(float(size))),
        (r"Scaled\(of='(\w+)', sigma_data=([^,()]+)\)", lambda of, size: parameterizations.Scaled(of, float(size))),
    ):
        found = re.fullmatch(pattern, saved)
        if found:
            try:
                return make(*found.groups())
            except ValueError:
                break
    raise ConfigError(
        f"{path}: its parameterization {saved!r} is not one of scoresde's: give yours, load(path, parameterization=...)"
    )


def _own_class(entry: Mapping[str, Any], package: ModuleType, base: type[Any], field: str, path: Path) -> type:
    """One of the classes that a folder of scoresde offers. Raises ConfigError."""
    cls = faces.own(package, base).get(entry["class"])
    if cls is None or entry["args"] is None:
        name = entry["class"]
        raise ConfigError(f"{path}: its {field} is a {name}, which is not one of scoresde's: give yours, load(path, {field}=...)")
    return cls


def _make(cls: type, args: Mapping[str, Any], field: str, path: Path) -> Any:
    try:
        return cls(**args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointMismatch(f"{path}: {field} = {cls.__name__}(**{args}) cannot be made: {error}") from error


def _check_sizes(value: Any, path: Path) -> None:
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_sizes(item, path)
    if isinstance(value, int) and abs(value) > MAX_SIZE:
        raise CheckpointMismatch(f"{path}: a size of {value} in net.args, expected at most {MAX_SIZE}")

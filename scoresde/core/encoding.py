"""Plain values as JSON and tensors as safetensors, with sizes and depths that are checked before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.core.files import read_file, refuse_pickle
from scoresde.errors import CheckpointCorrupt, CheckpointMismatch, NonFiniteError

CONFIG_BYTES = HEADER_BYTES = 1 << 20

_TENSORS, _DEPTH = 10_000, 8


def read_verified(path: Path, size: int, sha256: str) -> bytes:
    """The content of a file, of which size and sha256 are known. Raises CheckpointCorrupt and as ``read_file``."""
    content = read_file(path, size)
    refuse_pickle(path, content)
    if len(content) != size:
        raise CheckpointCorrupt(f"{path}: {len(content)} bytes, expected {size} bytes: truncated")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointCorrupt(f"{path}: its {size} bytes are not those of its sha256 in config.json: {_damaged(content)}")
    return content


def encode_config(config: Mapping[str, Any]) -> bytes:
    """Plain JSON, one field a line, after a line with the sha256 of all that follows."""
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in config.items()]
    rest = (",\n".join(lines) + "}\n").encode()
    return _first_line(rest) + rest


def decode_config(path: Path, content: bytes) -> dict[str, Any]:
    """Raises CheckpointCorrupt: damaged, too deep, a number that is not finite."""
    refuse_pickle(path, content)
    rest = content.partition(b"\n")[2]
    if content != _first_line(rest) + rest:
        raise CheckpointCorrupt(
            f"{path}: truncated, damaged or edited: its {len(content)} bytes are not those of the sha256 on its first line "
            f"(expected bytes: those that were saved)"
        )
    return parse_json(path, content)


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, without NaN and infinity, at most 8 deep. Raises CheckpointCorrupt."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a key is there twice")
        return dict(items)

    def number(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"{text} is not a finite number")
        return float(text)

    try:
        value = json.loads(content, object_pairs_hook=pairs, parse_float=number, parse_constant=number)
        if not isinstance(value, dict) or _depth(value) > _DEPTH:
            raise ValueError(f"not an object of depth {_DEPTH} at most")
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path}: not the JSON of a checkpoint, in {len(content)} bytes: {error}") from None
    return value


def _first_line(rest: bytes) -> bytes:
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)


def encode_tensors(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """safetensors, with a crc32 for each tensor. Raises NonFiniteError: NaN and infinity never reach a file."""
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    for key, tensor in plain.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{what} {key} holds NaN or infinity: not saved")
    sums = {key: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) for key, tensor in plain.items()}
    return save(plain, {"crc32": json.dumps(sums)})


def decode_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """Raises CheckpointCorrupt: not safetensors, duplicate names, too many tensors, NaN."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header, _ = _split(content)
        names = [key for key in parse_json(path, header) if key != "__metadata__"]
        if len(names) > _TENSORS:
            raise ValueError(f"{len(names)} tensors, expected at most {_TENSORS}")
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointCorrupt(f"{path}: not a safetensors file, in {len(content)} bytes: {error}") from None
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointCorrupt(f"{path}: tensor {key} holds NaN or infinity")
    return tensors


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and payload: 8 bytes of length, JSON, numbers."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < size <= min(HEADER_BYTES, len(content) - 8):
        raise ValueError(f"a header of {size} bytes")
    return content[8 : 8 + size], content[8 + size :]


def _damaged(content: bytes) -> str:
    """Which tensors of a damaged file are damaged, in words."""
    try:
        header, payload = _split(content)
        entries = json.loads(header)
        sums = json.loads(entries.pop("__metadata__")["crc32"])
        bad = [key for key, e in entries.items() if zlib.crc32(payload[slice(*e["data_offsets"])]) != sums[key]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad = []
    return f"tensor {', '.join(bad[:3])} damaged" if bad else "its header is damaged"


def without_nan(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def check_weights(saved: Mapping[str, Tensor], requested: Mapping[str, Tensor], path: Path) -> None:
    """Compares names, shapes and dtypes of weights. Raises CheckpointMismatch."""
    missing, unexpected = sorted(set(requested) - set(saved)), sorted(set(saved) - set(requested))
    if missing or unexpected:
        raise CheckpointMismatch(
            f"{path}: holds the weights of another network: missing keys {some_of(missing)}, "
            f"unexpected keys {some_of(unexpected)}; give the network that was saved"
        )
    for key, tensor in requested.items():
        a, b = (f"{str(w.dtype).removeprefix('torch.')}{tuple(w.shape)}" for w in (saved[key], tensor))
        if a != b:
            raise CheckpointMismatch(
                f"{path}: weight {key} is {a} in the checkpoint, but {b} in the network: give the network that was saved"
            )


def some_of(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:6])}{f', ... {len(names)} in all' if len(names) > 6 else ''}]"

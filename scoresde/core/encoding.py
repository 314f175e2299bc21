"""Plain values as JSON and tensors as safetensors, with sums of their own, and sizes and depths that are checked before anything is read.

All JSON of ours, a whole file or one line of many, begins with the sha256 of all that follows: {"sha256": "...", and the rest. A file
that says its version, 2 or later, has that sum or is refused; files of version 1 had neither. A safetensors file that stands alone has
the sha256 of itself, with zeros in its place, in its metadata. The sums tell damage, not forgery.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.core.files import read_file, refuse_pickle
from scoresde.errors import CheckpointCorrupt, CheckpointMismatch, NonFiniteError

CONFIG_BYTES = HEADER_BYTES = 1 << 20

VERSION = 2  # of files that stand alone: recipes, reports, frontiers, rows, features

_TENSORS, _DEPTH = 10_000, 8

_ZEROS = "0" * 64  # where the sum of a file will stand


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
    return _sum_of(rest) + b"\n" + rest


def decode_config(path: Path | str, content: bytes) -> dict[str, Any]:
    """Raises CheckpointCorrupt: damaged, too deep, a number that is not finite."""
    refuse_pickle(Path(path), content)
    rest = content.partition(b"\n")[2]
    if content != _sum_of(rest) + b"\n" + rest:
        raise CheckpointCorrupt(
            f"{path}: truncated, damaged or edited: its {len(content)} bytes are not those of the sha256 on its first line "
            f"(expected bytes: those that were saved)"
        )
    return parse_json(path, content)


def encode_document(kind: str, content: Mapping[str, Any]) -> bytes:
    """The JSON of a file that stands alone: its sum, version and kind ("recipe", "report", ...), then its content."""
    return encode_config({"format": VERSION, "kind": kind, **content})


def decode_document(name: Path | str, content: bytes | str, kind: str) -> dict[str, Any]:
    """Of what ``encode_document`` made, or of a file of version 1, which has neither sum nor kind.

    Raises:
        CheckpointCorrupt: damaged; a newer file without its sum.
        CheckpointMismatch: of another kind, or of another version.
    """
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    found = parse_json(name, content)
    if is_old(found):
        return found
    if found.get("format") != VERSION:
        raise CheckpointMismatch(f"{name}: format is {found.get('format')!r} in the file, but 1 and {VERSION} are what is read")
    found = decode_config(name, content.rstrip() + b"\n")
    if found.get("kind") != kind:
        raise CheckpointMismatch(f"{name}: holds a {found.get('kind')}, expected a {kind}")
    return found


def is_old(found: Mapping[str, Any]) -> bool:
    """Whether this is a file of version 1: two marks tell it from a newer one, so that no single flip makes one of the other."""
    return found.get("format", 1) == 1 and "sha256" not in found


def encode_line(content: Mapping[str, Any]) -> str:
    """One line of JSON that begins with the sha256 of its rest. Raises ValueError for NaN and infinity."""
    rest = json.dumps(dict(content), allow_nan=False)[1:].encode() + b"\n"
    return (_sum_of(rest) + b" " + rest).decode()


def has_sum(text: str) -> bool:
    """Whether this line begins with its sum."""
    return text.startswith('{"sha256": ')


def decode_line(text: str) -> dict[str, Any] | None:
    """Of a line with its end, or of one of version 1, which has no sum; None for a damaged or an unfinished one."""
    content = text.removesuffix("\n").encode(errors="surrogatepass") + b"\n"
    try:
        found = parse_json("line", content)
    except CheckpointCorrupt:
        return None
    if "sha256" not in found:
        return found
    head, _, rest = content.partition(b", ")
    if head + b"," != _sum_of(rest):
        return None
    del found["sha256"]
    return found


def parse_json(path: Path | str, content: bytes) -> dict[str, Any]:
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
    except (ValueError, RecursionError, OverflowError) as error:
        raise CheckpointCorrupt(f"{path}: not JSON that scoresde wrote, in {len(content)} bytes: {error}") from None
    return value


def _sum_of(rest: bytes) -> bytes:
    return b'{"sha256": "%s",' % hashlib.sha256(rest).hexdigest().encode()


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)


def encode_tensors(tensors: Mapping[str, Tensor], what: str, alone: bool = False, free: Collection[str] = ()) -> bytes:
    """safetensors, with a crc32 for each tensor. Raises NonFiniteError: NaN and infinity never reach a file, unless they belong there.

    Args:
        tensors: by name.
        what: what they are, for messages.
        free: names of those that may hold NaN and infinity: buffers, such as the mask of a causal attention.
        alone: with the sum of all: for a file of which no other file says its sha256.
    """
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    for key, tensor in plain.items():
        if key not in free and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{what} {key} holds NaN or infinity: not saved")
    crc32 = json.dumps({key: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) for key, tensor in plain.items()})
    infinite = [key for key in plain if key in free and not bool(torch.isfinite(plain[key]).all())]
    told = {"crc32": crc32} | ({"not finite": json.dumps(infinite)} if infinite else {})
    if not alone:
        return save(plain, told)
    content = save(plain, {**told, "format": str(VERSION), "sha256": _ZEROS})
    size = 8 + int.from_bytes(content[:8], "little")
    return content[:size].replace(_ZEROS.encode(), hashlib.sha256(content).hexdigest().encode()) + content[size:]


def decode_tensors(path: Path, content: bytes, alone: bool = False) -> dict[str, Tensor]:
    """Raises CheckpointCorrupt: not safetensors, duplicate names, too many tensors, NaN, and for ``alone`` a wrong sum."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header, _ = _split(content)
        entries = parse_json(path, header)
        if len(entries) > _TENSORS:
            raise ValueError(f"{len(entries)} tensors, expected at most {_TENSORS}")
        if alone:
            _check_alone(header, entries, content)
        tensors = load(content)
        free = json.loads(entries.get("__metadata__", {}).get("not finite", "[]"))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise CheckpointCorrupt(f"{path}: not a safetensors file, in {len(content)} bytes: {error}") from None
    for key, tensor in tensors.items():
        if key not in free and not torch.isfinite(tensor).all():
            raise CheckpointCorrupt(f"{path}: tensor {key} holds NaN or infinity")
    return tensors


def _check_alone(header: bytes, entries: Mapping[str, Any], content: bytes) -> None:
    """Raises ValueError unless the file is what its own sum says, or of version 1 and its tensors what their sums say."""
    told = entries.get("__metadata__", {})
    if is_old(told):
        if "crc32" not in told or (bad := _damaged_tensors(content)):
            raise ValueError(f"tensor {', '.join(bad[:3])} damaged" if "crc32" in told else "no sums of its tensors")
        return
    if told.get("format") != str(VERSION) or not isinstance(told.get("sha256"), str):
        raise ValueError(f"format {told.get('format')!r} with sha256 {told.get('sha256')!r}, expected {VERSION} and a sum")
    size = 8 + len(header)
    blank = content[:8] + header.replace(told["sha256"].encode(), _ZEROS.encode())
    if len(blank) != size or hashlib.sha256(blank + content[size:]).hexdigest() != told["sha256"]:
        raise ValueError("its bytes are not those of its sha256: truncated, damaged or edited")


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and payload: 8 bytes of length, JSON, numbers."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < size <= min(HEADER_BYTES, len(content) - 8):
        raise ValueError(f"a header of {size} bytes")
    return content[8 : 8 + size], content[8 + size :]


def _damaged(content: bytes) -> str:
    """Which tensors of a damaged file are damaged, in words."""
    try:
        bad = _damaged_tensors(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad = []
    return f"tensor {', '.join(bad[:3])} damaged" if bad else "its header is damaged"


def _damaged_tensors(content: bytes) -> list[str]:
    """The names of those that are not what their sums say. Raises ValueError, KeyError, TypeError, AttributeError: a damaged header."""
    header, payload = _split(content)
    entries = json.loads(header)
    sums = json.loads(entries.pop("__metadata__")["crc32"])
    return [key for key, e in entries.items() if zlib.crc32(payload[slice(*e["data_offsets"])]) != sums[key]]


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

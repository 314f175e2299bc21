"""Data from files and from data sets of others: idx, npz, torch data sets."""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_integer, theirs
from scoresde.core.doors import checked
from scoresde.data.dataset import Data
from scoresde.errors import ConfigError, DataError, DTypeError, ScoreSDEError, ShapeError

MAX_BYTES = 1 << 32  # of one file, decompressed


@checked
def idx(
    folder: str | os.PathLike[str],
    *,
    train: str = "train",
    test: str = "t10k",
    levels: int = 256,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Data:
    """Images in the idx format of MNIST (yann.lecun.com/exdb/mnist), gzip'ed or plain.

    Args:
        folder: holds {train,test}-images-idx3-ubyte[.gz] and, if there are labels, {train,test}-labels-idx1-ubyte[.gz].
        train, test: what the names of the files begin with.
        levels: number of values that a pixel can take.
        name: of the data set; the folder's by default.
        max_bytes: the largest file to read, decompressed.

    Returns:
        Data with images (N, 1, H, W).

    Raises:
        DataError: a file is missing, truncated, too long, not gzip, not of this format, or too large; labels do not
            match images; a pixel is not below ``levels``.
    """
    from scoresde.data.transform import Transform

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with {train}-images-idx3-ubyte.gz and its companions")
    images, labels = [], []
    for part in (train, test):
        path = _find_idx(folder, f"{part}-images", 3)
        if path is None:
            raise DataError(f"{folder}: no {part}-images-idx3-ubyte.gz there (nor without .gz); {_contents(folder)}")
        x = _read_idx(path, 3, max_bytes)
        label_path = _find_idx(folder, f"{part}-labels", 1)
        y = None if label_path is None else _read_idx(label_path, 1, max_bytes)
        if y is not None and len(y) != len(x):
            raise DataError(f"{label_path}: {len(y)} labels, expected {len(x)}, one for each image of {path}")
        images.append(torch.from_numpy(x)[:, None])
        labels.append(None if y is None else torch.from_numpy(y.astype(np.int64)))
    with _prefix(folder):
        name = folder.resolve().name if name is None else name
        return Data(images[0], images[1], Transform(levels=levels), labels[0], labels[1], name=name)


@checked
def npz(path: str | os.PathLike[str], *, levels: int | None = None, max_bytes: int = MAX_BYTES) -> Data:
    """Arrays of a numpy .npz file: ``train`` and, optionally, ``test``, ``labels``, ``test_labels`` and ``levels``.

    Args:
        path: of the file. Images are (N, C, H, W), channels first.
        levels: number of values that integers can take; by default the file's ``levels``, or 256 for uint8.
        max_bytes: the most to read, decompressed.

    Returns:
        Data with integers as they are and floats as float32.

    Raises:
        DataError: not a regular .npz file, damaged, too large, keys unknown or missing, pickled objects (refused),
            integers of an unknown number of levels or outside them.
        NonFiniteError, ShapeError, DTypeError: see ``Data``.
    """
    from scoresde.data.transform import Transform

    path = Path(path)
    arrays = _read_npz(path, max_bytes)
    known = ("train", "test", "labels", "test_labels", "levels")
    unknown = sorted(set(arrays) - set(known))
    if unknown or "train" not in arrays:
        raise DataError(f"{path}: holds {sorted(arrays)}, expected `train` and optionally {', '.join(known[1:])}")
    train = arrays["train"]
    if train.ndim < 2:
        raise ShapeError(f"{path}: `train` has shape {train.shape}, expected (N, *event), images (N, C, H, W)")
    if train.ndim == 4 and train.shape[3] in (1, 3, 4) and min(train.shape[1:3]) > 4:
        raise ShapeError(
            f"{path}: `train` has shape {train.shape}, images with the channels last: expected (N, C, H, W), "
            "train.transpose(0, 3, 1, 2), and the same of `test`"
        )
    if levels is None and "levels" in arrays:
        if arrays["levels"].shape != () or arrays["levels"].dtype.kind not in "iu":
            raise DataError(f"{path}: `levels` is not one integer but {arrays['levels'].dtype}{arrays['levels'].shape}")
        levels = int(arrays["levels"])
    if levels is None and train.dtype == np.uint8:
        levels = 256
    if train.dtype.kind in "iu" and levels is None:
        raise DataError(
            f"{path}: `train` holds integers of type {train.dtype}, of how many levels? Give levels=..., "
            "or an integer `levels` in the file"
        )
    with _prefix(path):
        x = _to_tensor(train, "train")
        test = _to_tensor(arrays["test"], "test") if "test" in arrays else x[:0]
        labels, test_labels = (_label_tensor(arrays[k], k) if k in arrays else None for k in ("labels", "test_labels"))
        transform = Transform(levels=levels) if levels is not None and not x.is_floating_point() else None
        return Data(x, test, transform, labels, test_labels, name=path.stem)


@checked
def from_dataset(dataset: Any, test: Any = None, *, levels: int | None = None, name: str | None = None) -> Data:
    """Reads a torch ``Dataset`` into memory.

    Args:
        dataset: of known length, with items x, (x,), (x, label) or (x, {"label": label}); x is a tensor of one shape.
        test: the same for testing, or None.
        levels: number of values that integers can take; 256 by default for uint8.
        name: of the data set; that of the dataset's class by default.

    Raises:
        ConfigError: a dataset without length, or conditions other than ``label`` (give such a one to ``fit`` itself).
        DTypeError: items that are not tensors; integers whose number of levels is not known.
        ShapeError, NonFiniteError, DataError: see ``Data``.
    """
    from scoresde.data.transform import Transform

    if levels is not None:
        check_integer(levels, "levels", 2)
    x, labels = _stack(dataset, "dataset")
    x_test, test_labels = (x[:0], None) if test is None else _stack(test, "test")
    if levels is None and x.dtype == torch.uint8:
        levels = 256
    transform = None if x.is_floating_point() or levels is None else Transform(levels=levels)
    return Data(x, x_test, transform, labels, test_labels, name=type(dataset).__name__ if name is None else name)


def _find_idx(folder: Path, stem: str, ndim: int) -> Path | None:
    """The idx file of that name, with either of the usual separators, gzip'ed or not; None if there is none."""
    for end in (f"-idx{ndim}-ubyte", f".idx{ndim}-ubyte"):
        for path in (folder / f"{stem}{end}.gz", folder / f"{stem}{end}"):
            if path.exists():
                return path
    return None


def _read_idx(path: Path, ndim: int, max_bytes: int) -> np.ndarray:
    """Reads an idx file of bytes: 0, 0, 8 (unsigned bytes), ndim, the sizes as big-endian uint32, the values."""
    import gzip
    import zlib

    stored = _regular_size(path)
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            head = file.read(4)
            expected = bytes([0, 0, 8, ndim])
            if head != expected:
                hint = "; it is gzip'ed: name it .gz" if head[:2] == b"\x1f\x8b" else ""
                raise DataError(f"{path}: begins with {head.hex()}, expected {expected.hex()} ({ndim}-D bytes){hint}")
            sizes = file.read(4 * ndim)
            if len(sizes) < 4 * ndim:
                raise DataError(f"{path}: truncated in its header, {4 + len(sizes)} bytes, expected {4 + 4 * ndim}")
            shape = struct.unpack(f">{ndim}I", sizes)
            count = math.prod(shape)
            # gzip cannot pack more than 1,032 bytes into one: a header that claims more is refused before any memory is
            room = stored * 1032 if zipped else stored - 4 - 4 * ndim
            if not 0 < count <= max_bytes or count > room:
                raise DataError(
                    f"{path}: its header claims {'x'.join(map(str, shape))} = {count} bytes, expected 1 to "
                    f"{min(max_bytes, room)} in a file of {stored} bytes"
                )
            values = _read_exactly(file, count)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or not gzip, in {stored} bytes ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(values) != count:
        more = "or more " if len(values) > count else ""
        raise DataError(f"{path}: {len(values)} {more}bytes of values, expected {count} from its header")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_exactly(file: Any, count: int) -> bytearray:
    """Up to count + 1 bytes, a piece at a time: one too many tells that the file is too long; the end checks its sum."""
    values = bytearray()
    while piece := file.read(min(count + 1 - len(values), 1 << 24)):
        values += piece
    return values


def _read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Sizes are checked against the headers before memory is asked for; no pickles."""
    import zipfile
    import zlib

    _regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > max_bytes:
                raise DataError(f"{path}: {total} bytes when decompressed, expected at most max_bytes = {max_bytes}")
            arrays = {}
            for entry in entries:
                key = entry.filename.removesuffix(".npy")
                if key in arrays or key == entry.filename:
                    raise DataError(f"{path}: entry {entry.filename!r} is no array, or is there twice")
                with archive.open(entry) as file:
                    arrays[key] = _read_npy(file, entry.file_size, f"{path}: `{key}`")
            return arrays
    except ScoreSDEError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: not a .npz file, or damaged ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _read_npy(file: Any, size: int, what: str) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(f"{what} has npy version {version}, expected (1, 0) or (2, 0)")
    if dtype.kind not in "iufb":
        raise DataError(f"{what} has dtype {dtype}, expected integers or floats (objects are pickles, and refused)")
    count, room = math.prod(shape) * dtype.itemsize, size - file.tell()
    if count != room or any(s < 0 for s in shape):
        raise DataError(f"{what}: its header claims {shape} of {dtype}, {count} bytes, but there are {room}")
    values = _read_exactly(file, count)
    if len(values) != count:
        raise DataError(f"{what}: {len(values)} bytes of values, expected {count}")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")


def _regular_size(path: Path) -> int:
    try:
        info = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(info.st_mode):  # a FIFO would wait for ever
        raise DataError(f"{path}: not a regular file")
    return info.st_size


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"the folder holds {shown}" if names else "the folder is empty"


@contextmanager
def _prefix(path: Path) -> Iterator[None]:
    """Puts the path before the message of an error of ours."""
    try:
        yield
    except ScoreSDEError as error:
        raise type(error)(f"{path}: {error}") from None


def _to_tensor(array: np.ndarray, name: str) -> Tensor:
    """Floats become float32; integers keep their kind, or take the smallest of torch's that holds their type."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        raise DTypeError(f"{name} has dtype bool, expected numbers: store it as uint8 and give levels=2")
    if kind == "f":
        dtype: Any = np.float32
    elif array.dtype == np.uint8:
        dtype = np.uint8
    else:
        dtype = {1: np.int16, 2: np.int16 if kind == "i" else np.int32, 4: np.int32 if kind == "i" else np.int64}.get(
            size, np.int64
        )
    with np.errstate(over="ignore"):  # becomes inf, which is then reported with its index
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _label_tensor(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected integers: class numbers from 0")
    return torch.from_numpy(array.astype(np.int64))


def _stack(dataset: Any, what: str) -> tuple[Tensor, Tensor | None]:
    """All items of a dataset as (x (N, *event), labels (N,) or None)."""
    try:
        n = len(dataset)
    except TypeError:
        raise ConfigError(
            f"{what} is a {type(dataset).__name__} without a length, expected a Dataset with __len__ and __getitem__"
        ) from None
    if n == 0:
        raise ShapeError(f"{what} has length 0: an empty data set")
    if isinstance(dataset, (set, frozenset, Mapping)) or (isinstance(dataset, Tensor) and dataset.layout is not torch.strided):
        raise ConfigError(f"{what} is a {type(dataset).__name__} without places, expected a Dataset with __len__ and __getitem__")
    samples: list[Tensor] = []
    labels: list[int] = []
    for i in range(n):
        with theirs(f"item {i} of {what}"):
            item = dataset[i]
        x, *rest = item if isinstance(item, (tuple, list)) else (item,)
        if not isinstance(x, Tensor):
            raise DTypeError(
                f"{what}[{i}] is a {type(x).__name__}, expected a tensor: give the dataset a transform that makes one"
            )
        if samples and (x.shape != samples[0].shape or x.dtype != samples[0].dtype):
            first = samples[0]
            raise ShapeError(
                f"{what}[{i}] is {x.dtype}{tuple(x.shape)}, but {what}[0] is {first.dtype}{tuple(first.shape)}"
            )
        samples.append(x)
        if rest:
            labels.append(_label_of(rest, f"{what}[{i}]"))
    if labels and len(labels) != n:
        raise ShapeError(f"{what} has {len(labels)} labels for {n} samples: give every item one, or none")
    return torch.stack(samples), torch.tensor(labels, device="cpu") if labels else None


def _label_of(rest: list[Any], what: str) -> int:
    value = rest[0]
    if len(rest) > 1 or (isinstance(value, dict) and set(value) != {"label"}):
        got = sorted(value) if isinstance(value, dict) else f"{len(rest) + 1} parts"
        raise ConfigError(f"{what} has {got}, expected (x, label) or (x, {{'label': label}}): give it to `fit` itself")
    value = value["label"] if isinstance(value, dict) else value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"{what} has a label of type {type(value).__name__}, expected an integer")
    return int(value)

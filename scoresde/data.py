"""Data sets: plain functions that return a ``Data``, which holds tensors and how their values are meant.

Images are integer levels (N, C, H, W) with a ``Transform`` that says how many levels there are and where model space
puts them; points in the plane are floats, used as they are. Nothing here downloads, unpickles or touches a global
random number generator.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._tensor import check_data, check_positive, check_positive_int
from .errors import ConfigError, DataError, DTypeError, ScoreSDEError, ShapeError
from .noise import Noise, check_seed

if TYPE_CHECKING:
    from .exact import GaussianMixture
    from .transform import Transform

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
MAX_BYTES = 1 << 32  # of one file, decompressed
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in memory.

    Args:
        train: (N, *event), integer levels with a transform, or floats without.
        test: (M, *event), the same kind; M = 0 if there is none.
        transform: how integer levels become floats; None for floats.
        labels: (N,) class numbers (int64) of the training samples, or None.
        test_labels: (M,) those of the test samples, or None.
        name: what error messages and logs call it.
        target: the exact density that the samples come from, where there is one.

    Raises:
        ShapeError: an empty training set, event shapes that differ, labels that are not one a sample.
        DTypeError: integers without a transform, floats with one, labels that are not integers.
        NonFiniteError: NaN or infinity, with their count and first index.
        DataError: levels outside 0..levels-1, negative labels.
    """

    train: Tensor
    test: Tensor
    transform: Transform | None = None
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    name: str = "data"
    target: GaussianMixture | None = None

    def __post_init__(self) -> None:
        _check_samples(self.train, self.transform, "train")
        if self.test.dtype != self.train.dtype:
            raise DTypeError(f"train has dtype {self.train.dtype} but test has {self.test.dtype}: give both the same")
        if self.test.shape[1:] != self.train.shape[1:]:
            raise ShapeError(
                f"train has shape {tuple(self.train.shape)} but test has {tuple(self.test.shape)}: "
                "their samples must have the same shape"
            )
        if len(self.test):
            _check_samples(self.test, self.transform, "test")
        _check_labels(self.labels, len(self.train), "labels")
        _check_labels(self.test_labels, len(self.test), "test_labels")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes, the largest label + 1, or None without labels: what ``nets.UNet(classes=...)`` takes."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def hash(self) -> str:
        """sha256, in hexadecimal, of what training sees: the training samples, their labels and the transform."""
        import hashlib

        digest = hashlib.sha256()
        for tensor in (self.train, self.labels):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        digest.update(repr(self.transform).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        values = "floats" if self.transform is None else f"{self.transform.levels} levels"
        classes = "" if self.classes is None else f", {self.classes} classes"
        return (
            f"Data({self.name}: {len(self.train)} train, {len(self.test)} test, shape {self.event_shape}, "
            f"{values}{classes})"
        )


def digits() -> Data:
    """The 1,797 handwritten digits that come with scikit-learn: (1, 8, 8), 17 levels, 10 classes.

    The split is fixed: of the permutation by ``numpy.random.RandomState(0)`` the first 1,500 train, the last 297 test.
    """
    from sklearn.datasets import load_digits

    from .transform import Transform

    raw = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    x = torch.from_numpy(raw.images[order].astype(np.uint8))[:, None]
    y = torch.from_numpy(raw.target[order].astype(np.int64))
    return Data(x[:1500], x[1500:], Transform(levels=17), y[:1500], y[1500:], name="digits")


def fashion_mnist(folder: str | os.PathLike[str] = FASHION_MNIST) -> Data:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 and 10,000 images (1, 28, 28), 256 levels, 10 classes.

    Args:
        folder: holds the four files; the default is where Debian's package puts them.

    Raises:
        DataError: the files are not there, or are damaged.
    """
    if not Path(folder).is_dir():
        raise DataError(
            f"{folder}: no such folder, expected the four files of Fashion-MNIST; "
            "`apt-get install dataset-fashion-mnist` installs them, or give the folder that has them"
        )
    return idx(folder, name="fashion-mnist")


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
    from .transform import Transform

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
    from .transform import Transform

    path = Path(path)
    arrays = _read_npz(path, max_bytes)
    known = ("train", "test", "labels", "test_labels", "levels")
    unknown = sorted(set(arrays) - set(known))
    if unknown or "train" not in arrays:
        raise DataError(f"{path}: holds {sorted(arrays)}, expected `train` and optionally {', '.join(known[1:])}")
    train = arrays["train"]
    if train.ndim < 2:
        raise ShapeError(f"{path}: `train` has shape {train.shape}, expected (N, *event), images (N, C, H, W)")
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
    from .transform import Transform

    x, labels = _stack(dataset, "dataset")
    x_test, test_labels = (x[:0], None) if test is None else _stack(test, "test")
    if levels is None and x.dtype == torch.uint8:
        levels = 256
    transform = None if x.is_floating_point() or levels is None else Transform(levels=levels)
    return Data(x, x_test, transform, labels, test_labels, name=type(dataset).__name__ if name is None else name)


def two_moons(std: float = 0.1, components: int = 64) -> GaussianMixture:
    """Two interleaved half circles of radius 1, blurred: an exact density for two-dimensional experiments.

    A mixture of ``components`` equal isotropic Gaussians, half of them along each arc, at the middles of equal pieces:
    (cos a - 1/2, sin a - 1/4) and (1/2 - cos a, 1/4 - sin a) for a in (0, pi). Centred, about one unit in size.

    Args:
        std: of each component.
        components: an even number. At the default spacing, of one std, the ripple along the arcs is 2 exp(-2 pi^2) = 5e-9.

    Raises:
        ConfigError: components not even, or spaced by more than 1.5 std: the density would be beads, not arcs.
    """
    from .exact import GaussianMixture

    check_positive(std, "std")
    half = check_positive_int(components, "components") // 2
    if components % 2 or math.pi / half > 1.5 * std:
        need = 2 * math.ceil(math.pi / (1.5 * std))
        raise ConfigError(
            f"components = {components}, expected an even number of {need} or more for std = {std}: "
            "the arcs would show the single components"
        )
    angle = (torch.arange(half, dtype=torch.float64) + 0.5) * (math.pi / half)
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    means = torch.cat([arc, -arc]).float()
    return GaussianMixture(means, torch.full((components,), float(std)), torch.full((components,), 1 / components))


def toy(name: str, n: int = 10_000, seed: int = 0) -> Data:
    """Points in the plane, float32 (n, 2), of about unit size: "moons", "pinwheel", "checkerboard", "spirals", "rings".

    Point i is a function of (name, seed, i), for training and for testing, whatever n is. The moons come from
    ``two_moons()``, which is then ``Data.target``.

    Args:
        name: of the shape.
        n: number of points to train, and as many to test.
        seed: an integer in [0, 2^63).

    Raises:
        ConfigError: an unknown name, n below 1, a seed out of range.
    """
    if name not in TOYS:
        raise ConfigError(f"toy {name!r} is unknown, expected one of {', '.join(TOYS)}{_did_you_mean(name, TOYS)}")
    check_positive_int(n, "n")
    if check_seed(seed) >= 1 << 63:
        raise ConfigError(f"seed = {seed}, expected an integer in [0, 2^63)")
    if name == "moons":
        target = two_moons()
        return Data(target.sample(n, 2 * seed), target.sample(n, 2 * seed + 1), name=name, target=target)
    # a stream of its own for each shape, apart from those of noise.py
    stream = (1 << 40) + TOYS.index(name)
    noise = Noise(seed, np.arange(n, dtype=np.int64), (4,))
    points = _SHAPES[name]
    train, test = (
        points(noise.uniform(stream, 2 * part).double(), noise.normal(stream, 2 * part + 1).double()).float()
        for part in (0, 1)
    )
    return Data(train, test, name=name)


def load(source: str | os.PathLike[str]) -> Data:
    """What the command line's ``--data`` takes: a name, a folder of idx files, or a .npz file.

    Args:
        source: "digits", "fashion-mnist", a name that ``toy`` knows, or a path.

    Raises:
        ConfigError: neither a known name nor an existing path.
        DataError: a file that cannot be read as what it should be.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ConfigError(f"data = {source!r}, expected a name ({', '.join(NAMES)}) or a path")
    if source == "digits":
        return digits()
    if source == "fashion-mnist":
        return fashion_mnist()
    if source in TOYS:
        return toy(str(source))
    path = Path(source)
    if path.is_dir():
        return idx(path)
    if path.suffix == ".npz":
        return npz(path)
    if path.exists():
        raise DataError(f"{path}: expected a .npz file or a folder with idx files")
    raise ConfigError(
        f"data {str(source)!r} is unknown, and no such file exists: expected one of {', '.join(NAMES)}, a folder with "
        f"idx files, or a .npz file{_did_you_mean(str(source), NAMES)}"
    )


# ---- shapes: (u (n, 4) uniform, z (n, 4) normal) -> (n, 2)


def _pinwheel(u: Tensor, z: Tensor) -> Tensor:
    """Five arms that bend with the radius (arXiv 1603.06277)."""
    radius, across = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    angle = (5 * u[:, 0]).floor() * (2 * math.pi / 5) + 0.25 * radius.exp()
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([radius * cos - across * sin, radius * sin + across * cos], dim=1)


def _checkerboard(u: Tensor, z: Tensor) -> Tensor:
    """The eight black unit squares of [-2, 2]^2."""
    x = 4 * u[:, 0] - 2
    y = u[:, 1] - 2 * (2 * u[:, 2]).floor() + x.floor() % 2
    return torch.stack([x, y], dim=1)


def _spirals(u: Tensor, z: Tensor) -> Tensor:
    """Two arms of one and a half turns."""
    angle = 3 * math.pi * u[:, 0].sqrt()
    sign = torch.where(u[:, 1] < 0.5, 1.0, -1.0)
    arm = torch.stack([-angle.cos(), angle.sin()], dim=1) * (angle * sign / 5)[:, None]
    return arm + 0.05 * z[:, :2]


def _rings(u: Tensor, z: Tensor) -> Tensor:
    """Four circles of radius 1/2, 1, 3/2 and 2, the outer ones with more points."""
    radius = ((u[:, 0] * 10).floor()[:, None] >= torch.tensor([1, 3, 6])).sum(1).double().add(1) / 2
    radius, angle = radius + 0.05 * z[:, 0], 2 * math.pi * u[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "rings": _rings,
}
TOYS = ("moons", *_SHAPES)
NAMES = ("digits", "fashion-mnist", *TOYS)


# ---- files


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


# ---- arrays and tensors


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
    samples: list[Tensor] = []
    labels: list[int] = []
    for i in range(n):
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
    return torch.stack(samples), torch.tensor(labels) if labels else None


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


def _check_samples(x: Tensor, transform: Transform | None, name: str) -> None:
    if transform is None:
        check_data(x, name=name)
        return
    if not isinstance(x, Tensor) or x.dtype not in _INTEGERS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DTypeError(f"{name} is of {got}, but a transform is for integer levels: give floats no transform")
    if x.ndim < 2 or not len(x):
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected a non-empty batch (N, *event)")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= transform.levels:
        bad = ((x < 0) | (x >= transform.levels)).nonzero()
        raise DataError(
            f"{name} holds levels from {low} to {high}, expected 0..{transform.levels - 1}: {len(bad)} are outside, "
            f"the first at index {tuple(bad[0].tolist())}; give the right number of levels"
        )


def _check_labels(labels: Tensor | None, n: int, name: str) -> None:
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise DTypeError(f"{name} has dtype {labels.dtype}, expected torch.int64: class numbers")
    if labels.shape != (n,):
        raise ShapeError(f"{name} has shape {tuple(labels.shape)}, expected ({n},): one a sample")
    if n and int(labels.min()) < 0:
        raise DataError(f"{name} holds {int(labels.min())}, expected class numbers from 0")


def _did_you_mean(name: str, names: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(name.lower(), names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""

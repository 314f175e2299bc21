"""Files of data: what was written is read, what is damaged or hostile is refused."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from data.files import idx_bytes
from torch.utils.data import Dataset, TensorDataset

from scoresde import data
from scoresde.data.transform import Transform
from scoresde.errors import ConfigError, DataError, DTypeError, NonFiniteError, ShapeError


def test_idx_reads_what_was_written(folder, images):
    d = data.idx(folder)
    assert torch.equal(d.train, torch.from_numpy(images[0].astype(np.uint8))[:, None])
    assert torch.equal(d.test, torch.from_numpy(images[2].astype(np.uint8))[:, None])
    assert d.labels.tolist() == images[1].tolist()
    assert d.test_labels.tolist() == images[3].tolist()
    assert d.transform == Transform(levels=256)
    assert d.name == folder.name


def test_idx_plain_and_dotted_names_and_no_labels(folder, images):
    for part in ("train", "t10k"):
        packed = folder / f"{part}-images-idx3-ubyte.gz"
        (folder / f"{part}-images.idx3-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
        (folder / f"{part}-labels-idx1-ubyte.gz").unlink()
    d = data.idx(folder, name="plain")
    assert torch.equal(d.train[:, 0], torch.from_numpy(images[0].astype(np.uint8)))
    assert (d.labels, d.test_labels, d.classes, d.name) == (None, None, None, "plain")

GOOD = idx_bytes(np.arange(120).reshape(6, 5, 4))


def _claims(n, h=5, w=4):
    return gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", n, h, w) + GOOD[16:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "begins with , expected 00000803", id="empty"),
        pytest.param(GOOD, "not gzip", id="not gzip"),
        pytest.param(gzip.compress(GOOD)[:-30], "damaged", id="truncated gzip"),
        pytest.param(gzip.compress(GOOD)[:-8] + bytes(8), "damaged", id="wrong gzip sum"),
        pytest.param(gzip.compress(GOOD)[:40] + b"\xff" * 20 + gzip.compress(GOOD)[60:], "damaged", id="garbled gzip"),
        pytest.param(gzip.compress(b"\x80\x04K\x05.pickle"), "begins with 80044b05, expected 00000803", id="pickle"),
        pytest.param(gzip.compress(bytes([0, 0, 13, 3]) + GOOD[4:]), "begins with 00000d03", id="floats"),
        pytest.param(gzip.compress(idx_bytes(np.zeros(9))), "begins with 00000801", id="labels for images"),
        pytest.param(gzip.compress(GOOD[:9]), "truncated in its header, 9 bytes, expected 16", id="short header"),
        pytest.param(gzip.compress(GOOD[:-1]), "119 bytes of values, expected 120", id="short"),
        pytest.param(gzip.compress(GOOD + b"x"), "121 or more bytes of values, expected 120", id="long"),
        pytest.param(_claims(0), "0x5x4 = 0 bytes", id="no images"),
        pytest.param(_claims(7), "120 bytes of values, expected 140", id="one image too few"),
        pytest.param(_claims(2**32 - 1, 2**32 - 1, 2**32 - 1), "its header claims", id="absurd sizes"),
        pytest.param(_claims(1000, 1000, 1000), "claims 1000x1000x1000 = 1000000000 bytes", id="1 GB in 150 B"),
    ],
)
def test_idx_refuses_a_damaged_file(folder, content, message):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.idx(folder)
    assert str(path) in str(caught.value)


def test_idx_plain_file_that_is_gzip_or_of_the_wrong_length(folder):
    plain = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").rename(plain)
    with pytest.raises(DataError, match=r"it is gzip'ed: name it \.gz"):
        data.idx(folder)
    plain.write_bytes(GOOD[:-1])
    with pytest.raises(DataError, match=r"claims 6x5x4 = 120 bytes, expected 1 to 119 in a file of 135 bytes"):
        data.idx(folder)
    plain.write_bytes(GOOD + b"x")
    with pytest.raises(DataError, match="121 or more bytes of values, expected 120"):
        data.idx(folder)


def test_idx_every_truncation_is_an_error(folder):
    path = folder / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match="t10k-labels"):
            data.idx(folder)


def test_idx_bomb_is_cut_off(folder):
    """A file that unpacks to far more than its header says is left after one byte too many."""
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(GOOD + bytes(50_000_000), 1))
    with pytest.raises(DataError, match="121 or more bytes"):
        data.idx(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((2, 5, 4)))))
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-images.* claims 3x5x4 = 60 bytes, expected 1 to 50"):
        data.idx(folder, max_bytes=50)


def test_idx_counts_and_sizes_must_match(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(5))))
    with pytest.raises(DataError, match="5 labels, expected 6"):
        data.idx(folder)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((3, 4, 4)))))
    with pytest.raises(ShapeError, match=r"\(6, 1, 5, 4\).*\(3, 1, 4, 4\)"):
        data.idx(folder)


def test_idx_missing(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        data.idx(tmp_path / "nowhere")
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte.gz .*the folder holds t10k-labels"):
        data.idx(folder)
    with pytest.raises(DataError, match=r"levels from 4 to 255, expected 0\.\.15: 107 are outside"):
        data.idx(folder, test="train", levels=16)
    os.mkfifo(folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match="not a regular file"):
        data.idx(folder)


def test_npz_round_trip(tmp_path):
    rng = np.random.Generator(np.random.Philox(key=6))
    x = rng.integers(0, 17, (5, 2, 3, 3)).astype(np.uint8)
    path = tmp_path / "faces.npz"
    np.savez_compressed(path, train=x, test=np.asfortranarray(x[:2]), labels=np.arange(5, dtype=np.int32), levels=17)
    d = data.npz(path)
    assert torch.equal(d.train, torch.from_numpy(x))
    assert torch.equal(d.test, torch.from_numpy(x[:2]))
    assert d.labels.tolist() == [0, 1, 2, 3, 4]
    assert (d.test_labels, d.transform, d.name) == (None, Transform(levels=17), "faces")
    assert data.npz(path, levels=20).transform == Transform(levels=20)
    # floats are used as they are, in the networks' precision; big-endian ones are values all the same
    y = rng.normal(size=(4, 7))
    np.savez(path, train=y.astype(">f8"))
    d = data.npz(path)
    assert torch.equal(d.train, torch.from_numpy(y).float())
    assert d.transform is None
    assert d.test.shape == (0, 7)


def test_npz_levels_of_integers(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, train=np.array([[0, 255]], np.uint8))
    assert data.npz(path).transform == Transform(levels=256)
    np.savez(path, train=np.array([[0, 40_000]], np.uint16))
    with pytest.raises(DataError, match="uint16, of how many levels"):
        data.npz(path)
    d = data.npz(path, levels=65_536)
    assert d.train.tolist() == [[0, 40_000]]
    with pytest.raises(DataError, match=r"0 to 40000, expected 0\.\.255"):
        data.npz(path, levels=256)


def npy_bytes(shape, descr="<f4", body=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + body


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class Canary:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("canary-was-unpickled",))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(b"", DataError, "not a .npz file", id="empty"),
        pytest.param(b"garbage" * 100, DataError, "not a .npz file", id="garbage"),
        pytest.param(saved(x=np.zeros((2, 2))), DataError, r"holds \['x'\], expected `train`", id="no train"),
        pytest.param(saved(train=np.zeros((2, 2)), y=1), DataError, r"\['train', 'y'\]", id="unknown key"),
        pytest.param(saved(train=np.array([[Canary()]])), DataError, "dtype object.*refused", id="pickle"),
        pytest.param(saved(train=np.array([["a"]])), DataError, "dtype <U1", id="text"),
        pytest.param(saved(train=np.zeros((2, 2), bool)), DTypeError, "dtype bool.*levels=2", id="bool"),
        pytest.param(saved(train=np.zeros(())), ShapeError, r"shape \(\)", id="scalar"),
        pytest.param(saved(train=np.zeros(3)), ShapeError, r"shape \(3,\)", id="1-D"),
        pytest.param(saved(train=np.zeros((0, 3))), ShapeError, "empty batch", id="no rows"),
        pytest.param(saved(train=np.array([[0, np.nan], [np.nan, 1]])), NonFiniteError, r"NaN: 2 .*\(0, 1\)", id="nan"),
        pytest.param(saved(train=np.full((1, 2), 1e300)), NonFiniteError, "inf: 2", id="overflow of float32"),
        pytest.param(saved(train=np.zeros((2, 2)), test=np.zeros((2, 3))), ShapeError, r"\(2, 3\)", id="other test"),
        pytest.param(saved(train=np.zeros((2, 2)), labels=np.zeros(2)), DTypeError, "labels", id="float labels"),
        pytest.param(saved(train=np.zeros((2, 2)), labels=np.zeros(3, int)), ShapeError, r"\(3,\)", id="label count"),
        pytest.param(saved(train=np.zeros((2, 2), int), levels=2.5), DataError, "not one integer", id="float levels"),
        pytest.param(saved(train=np.zeros((2, 2), int), levels=1), ConfigError, "at least 2", id="one level"),
        pytest.param(zipped(train=b"\x93NUMPY\x01\x00\xff"), DataError, "damaged", id="truncated npy header"),
        pytest.param(zipped(train=npy_bytes((2, 2), body=bytes(15))), DataError, "16 bytes, .* there are 15", id="short"),
        pytest.param(zipped(train=npy_bytes((2, 2), body=bytes(17))), DataError, "16 bytes, .* there are 17", id="long"),
        pytest.param(zipped(train=npy_bytes((1 << 40, 1))), DataError, "but there are 0", id="4 TB claimed"),
        pytest.param(zipped(train=npy_bytes((-1, -4), body=bytes(16))), DataError, "claims", id="negative sizes"),
        pytest.param(zipped(train=npy_bytes((2, 2), "|O", bytes(32))), DataError, "refused", id="object"),
    ],
)
def test_npz_refuses(tmp_path, monkeypatch, content, error, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        data.npz(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "canary-was-unpickled").exists()


def test_npz_caps_what_it_unpacks(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, train=np.zeros((1000, 1000), np.uint8))
    assert path.stat().st_size < 5000
    with pytest.raises(DataError, match="1000128 bytes when decompressed, expected at most max_bytes = 1000000"):
        data.npz(path, max_bytes=1_000_000)


def test_npz_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "x.npz"
    whole = saved(train=np.arange(12.0).reshape(4, 3))
    for n in range(0, len(whole), 3):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError):
            data.npz(path)
    with pytest.raises(DataError, match="No such file"):
        data.npz(tmp_path / "nowhere.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        data.npz(tmp_path / "folder.npz")


def test_npz_flipped_values_are_noticed(tmp_path):
    path = tmp_path / "x.npz"
    whole = bytearray(saved(train=np.arange(12.0).reshape(4, 3)))
    where = whole.index(np.float64(5.0).tobytes())
    whole[where] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="CRC"):
        data.npz(path)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_from_dataset():
    x = torch.arange(24, dtype=torch.uint8).view(4, 1, 2, 3)
    y = torch.tensor([2, 0, 1, 2])
    d = data.from_dataset(TensorDataset(x, y), TensorDataset(x[:2], y[:2]))
    assert torch.equal(d.train, x)
    assert torch.equal(d.labels, y)
    assert torch.equal(d.test_labels, y[:2])
    assert (d.transform, d.name) == (Transform(levels=256), "TensorDataset")
    d = data.from_dataset(Items([(x[i].float(), {"label": int(y[i])}) for i in range(4)]), name="mine")
    assert torch.equal(d.train, x.float())
    assert torch.equal(d.labels, y)
    assert (d.transform, d.name, len(d.test)) == (None, "mine", 0)
    d = data.from_dataset(Items([x[i].long() for i in range(4)]), levels=24)
    assert d.transform == Transform(levels=24)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ShapeError, "empty"),
        ([np.zeros(2)], DTypeError, r"dataset\[0\] is a ndarray"),
        ([torch.zeros(2), torch.zeros(3)], ShapeError, r"dataset\[1\].*\(3,\).*\(2,\)"),
        ([torch.zeros(2).long()], DTypeError, "Transform"),
        ([(torch.zeros(2), {"text": 1})], ConfigError, "text"),
        ([(torch.zeros(2), 1, 2)], ConfigError, "3 parts"),
        ([(torch.zeros(2), 0.5)], DTypeError, "float"),
        ([(torch.zeros(2), 0), torch.zeros(2)], ShapeError, "1 labels for 2"),
        ([torch.tensor([0.0, math.nan])], NonFiniteError, "NaN"),
    ],
)
def test_from_dataset_refuses(items, error, message):
    with pytest.raises(error, match=message):
        data.from_dataset(Items(items))


def test_from_dataset_needs_a_length():
    with pytest.raises(ConfigError, match="generator"):
        data.from_dataset(x for x in [torch.zeros(2)])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_channels_last_are_refused(tmp_path, channels):
    images = np.zeros((5, 16, 12, channels), dtype=np.uint8)
    np.savez(tmp_path / "last.npz", train=images)
    with pytest.raises(ShapeError, match=r"channels last: expected \(N, C, H, W\), train\.transpose\(0, 3, 1, 2\)"):
        data.npz(tmp_path / "last.npz")
    np.savez(tmp_path / "first.npz", train=images.transpose(0, 3, 1, 2))
    assert data.npz(tmp_path / "first.npz").event_shape == (channels, 16, 12)

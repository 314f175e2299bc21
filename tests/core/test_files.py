"""Files on a system without folders that can be opened and with text mode by default, as Windows is; simulated."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch

import scoresde as sd
from scoresde.core import files

BINARY = 1 << 29  # the flag of the pretended system; on this one it means nothing


def windows() -> types.ModuleType:
    """``os`` as Windows has it, as far as files are concerned."""
    fake = types.ModuleType("os")
    fake.__dict__.update({k: v for k, v in vars(os).items() if k not in ("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "O_NOCTTY")})
    text: set[int] = set()
    writable: set[int] = set()

    def open_(path, flags, mode=0o777):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        fd = os.open(path, flags & ~BINARY, mode)
        (text.discard if flags & BINARY else text.add)(fd)
        (writable.add if flags & (os.O_WRONLY | os.O_RDWR) else writable.discard)(fd)
        return fd

    def write(fd, content):
        os.write(fd, bytes(content).replace(b"\n", b"\r\n") if fd in text else content)
        return len(content)

    def fsync(fd):
        if fd not in writable:
            raise OSError(9, "Bad file descriptor")
        os.fsync(fd)

    fake.__dict__.update(name="nt", O_BINARY=BINARY, open=open_, write=write, fsync=fsync)
    return fake


@pytest.fixture
def on_windows(monkeypatch):
    """The module of files as it is there, in the place of ours, for those that have taken its functions too."""
    monkeypatch.setitem(sys.modules, "os", windows())
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("scoresde.core.files", files.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.undo()
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            for other in [m for n, m in sys.modules.items() if n.startswith("scoresde")]:
                if other is not files and vars(other).get(name) is vars(files)[name]:
                    monkeypatch.setitem(vars(other), name, value)
            monkeypatch.setitem(vars(files), name, value)
    return module


def test_a_checkpoint_is_saved_and_loaded_there(on_windows, tmp_path):
    """No folder is opened, and each byte is written as it is."""
    model = sd.NetworkModel(sd.nets.MLP(2, 4, 1), sd.VPSDE(), (2,))
    sd.save(model, tmp_path / "run")
    again = sd.load(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    (config,) = (tmp_path / "run").glob("checkpoint-*/config.json")
    assert b"\r" not in config.read_bytes()


def test_rows_and_reports_are_written_there(on_windows, tmp_path):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    exact = sd.ExactModel(sd.data.two_moons(), sd.VPSDE())
    how = {"steps": 4, "check": 0, "batch_size": 2, "out": tmp_path / "rows.jsonl"}
    found = sd.log_prob(exact, x, **how)
    assert b"\r" not in how["out"].read_bytes()
    with sd.count_evaluations(exact) as calls:
        assert torch.equal(sd.log_prob(exact, x, **how).log_prob, found.log_prob)
    assert calls.forward == 0
    report = found.report()
    report.to_json(tmp_path / "r.json")
    assert repr(type(report).from_json(tmp_path / "r.json")) == repr(report)


def test_the_pretended_system_is_strict(on_windows, tmp_path):
    """What the tests above would find: a folder that is opened, a file in text mode, a file that may only be read."""
    fake = windows()
    with pytest.raises(PermissionError):
        fake.open(tmp_path, os.O_RDONLY)
    fd = fake.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    fake.write(fd, b"a\nb")
    fake.close(fd)
    assert (tmp_path / "a").read_bytes() == b"a\r\nb"
    fd = fake.open(tmp_path / "a", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file"):
        fake.fsync(fd)
    fake.close(fd)
    assert on_windows.sync_folder(Path(tmp_path)) is None

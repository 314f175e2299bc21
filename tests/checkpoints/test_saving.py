"""Checkpoints: round trips, crashes at every write, damage, full disks, foreign files, other models."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from crashes import count_or_crash, in_child

import scoresde as sd
from scoresde import nets, sdes
from scoresde.checkpoints import description, saving
from scoresde.checkpoints import folders as checkpoints_folders
from scoresde.core import encoding, files
from scoresde.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointUntrusted,
    CheckpointWriteError,
    ConfigError,
    LockError,
    NonFiniteError,
)


def make(seed=0, net=None, sde=None, parameterization="v", **kwargs):
    """A small model with random weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    model = sd.NetworkModel(net or nets.MLP(2, 8, 1), sde or sd.VPSDE(), (2,), parameterization, **kwargs)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    return model


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def temporaries(path):
    return [name for name in os.listdir(path) if name.startswith(".tmp")]


def digest(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(Path(folder).iterdir())}


@dataclass(frozen=True)
class Trigonometric(sd.SDE):
    t_max: float = 1.5

    def alpha(self, t):
        return torch.cos(t)

    def sigma(self, t):
        return torch.sin(t)


class OwnNet(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(2, width)
        self.out = torch.nn.Linear(width, 2)

    def forward(self, x, c_noise):
        return self.out(self.layer(x).tanh() * c_noise[:, None])


def own_parameterization(alpha, sigma):
    return 1 / alpha, -sigma / alpha


# ---- round trips


@pytest.mark.parametrize("sde", [sd.VPSDE(beta_max=15.0), sd.VESDE(sigma_max=9.0), sd.EDMSDE(), sd.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("parameterization", ["x0", "eps", "score", "v", "edm"])
def test_what_is_loaded_is_what_was_saved(tmp_path, sde, parameterization):
    model = make(sde=sde, parameterization=parameterization, transform=sd.Transform(levels=17, low=0.0))
    before = torch.get_rng_state()
    saving.save(model, tmp_path / "new" / "run")
    loaded = saving.load(tmp_path / "new" / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, loaded)
    assert (loaded.sde, loaded.transform, loaded.event_shape) == (sde, model.transform, (2,))
    assert loaded.parameterization is model.parameterization
    assert not loaded.training
    x = torch.linspace(-1, 1, 6).view(3, 2)
    assert torch.equal(loaded.score(x, 0.5), model.eval().score(x, 0.5))


def test_images_labels_and_double_precision(tmp_path):
    net = nets.UNet(2, 8, (1, 2), blocks=1, classes=3)
    model = sd.NetworkModel(net, sd.SubVPSDE(), (2, 5, 6), "eps").double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    saving.save(model, tmp_path)
    loaded = saving.load(str(tmp_path))
    assert same(model, loaded)
    x, label = torch.ones(2, 2, 5, 6, dtype=torch.float64), torch.tensor([0, 2])
    assert torch.equal(loaded.eps(x, 0.5, label=label), model.eval().eps(x, 0.5, label=label))


def test_own_classes_are_given_and_checked(tmp_path):
    model = make(net=OwnNet(), sde=Trigonometric(), parameterization=own_parameterization)
    saving.save(model, tmp_path)
    own = {"net": OwnNet(), "sde": Trigonometric(), "parameterization": own_parameterization}
    assert same(model, saving.load(tmp_path, **own))
    for missing in own:
        with pytest.raises(ConfigError, match=rf"its {missing}.*load\(path, {missing}=\.\.\.\)"):
            saving.load(tmp_path, **{**own, missing: None})
    with pytest.raises(CheckpointMismatch, match=r"sde.args.t_max is 1.5 in the checkpoint, but 1.2 was requested"):
        saving.load(tmp_path, **{**own, "sde": Trigonometric(1.2)})
    with pytest.raises(CheckpointMismatch, match=r"parameterization is 'own_parameterization'.* 'v' was requested"):
        saving.load(tmp_path, **{**own, "parameterization": "v"})
    with pytest.raises(CheckpointMismatch, match=r"layer.weight is float32\(4, 2\) in the checkpoint, but float32\(5, 2\)"):
        saving.load(tmp_path, **{**own, "net": OwnNet(5)})


def test_a_class_that_is_only_visible_in_our_modules_is_not_ours(tmp_path, monkeypatch):
    saving.save(make(sde=Trigonometric()), tmp_path)
    monkeypatch.setattr(sdes, "Trigonometric", Trigonometric, raising=False)
    with pytest.raises(ConfigError, match="its sde is a Trigonometric, which is not one of scoresde's"):
        saving.load(tmp_path)


def test_own_score_model(tmp_path):
    class Own(sd.ScoreModel):
        def __init__(self):
            super().__init__(sd.VPSDE(), (2,))
            self.scale = torch.nn.Parameter(torch.rand(2))

        def denoise(self, x, t):
            return self.scale * x

    model, other = Own(), Own()
    saving.save(model, tmp_path)
    assert saving.load(tmp_path, model=other) is other
    assert same(model, other)
    with pytest.raises(ConfigError, match=r"holds a Own.*model=\.\.\."):
        saving.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": nets.MLP(2, 8, 2)}, r"net.args.depth is 1 in the checkpoint, but 2 was requested"),
        ({"net": OwnNet()}, r"net.(args|class)"),
        ({"sde": sd.VPSDE(beta_max=10.0)}, "sde.args.beta_max is 20.0 in the checkpoint, but 10.0"),
        ({"sde": sd.VESDE()}, r"sde\."),
        ({"parameterization": "eps"}, "parameterization is 'v' in the checkpoint, but 'eps'"),
    ],
)
def test_another_model_is_refused(tmp_path, arguments, message):
    saving.save(make(), tmp_path)
    with pytest.raises(CheckpointMismatch, match=message):
        saving.load(tmp_path, **arguments)


def test_missing_and_unexpected_keys_are_named(tmp_path):
    class Renamed(OwnNet):
        def __init__(self):
            super().__init__()
            self.extra = self.layer
            del self.layer

    saving.save(make(net=OwnNet()), tmp_path)
    renamed = Renamed()
    Renamed.__name__ = "OwnNet"
    with pytest.raises(CheckpointMismatch, match=r"missing keys \[net.extra.*unexpected keys \[net.layer"):
        saving.load(tmp_path, net=renamed)


# ---- two are kept


def test_the_last_two_are_kept(tmp_path):
    models = [make(seed) for seed in range(4)]
    for model in models:
        saving.save(model, tmp_path)
    folders = checkpoints_folders.folders(tmp_path)
    assert len(folders) == 2
    assert not temporaries(tmp_path)
    assert same(saving.load(tmp_path), models[3])
    assert same(saving.load(folders[0]), models[2])
    assert same(saving.load(folders[1]), models[3])


# ---- crashes


def test_a_crash_at_any_write_leaves_the_old_or_the_new(tmp_path):
    old, new = make(0), make(1)

    def prepare(root):
        for model in (make(5), make(6), old):  # so that the next save also removes one
            saving.save(model, root)

    root = tmp_path / "count"
    prepare(root)
    log = tmp_path / "calls"

    def count():
        calls = count_or_crash(10**9)
        saving.save(new, root)
        n = list(calls)
        log.write_text(json.dumps(n))

    assert in_child(count) == 0
    calls = json.loads(log.read_text())
    # payload is fsynced before the rename, and the folder after it
    assert calls.index("rename") > [i for i, c in enumerate(calls) if c == "fsync"][2]
    assert "fsync" in calls[calls.index("rename") :]
    seen = set()
    for half in (False, True):
        for k in range(len(calls)):
            if half and calls[k] != "write":
                continue
            root = tmp_path / f"{k}-{half}"
            prepare(root)
            assert in_child(lambda k=k, half=half, root=root: (count_or_crash(k, half), saving.save(new, root))) == 9
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what is there is intact: no falling back
                loaded = saving.load(root)
            assert same(loaded, old) or same(loaded, new)
            seen.add(same(loaded, new))
            saving.save(new, root)  # the next start cleans up
            assert not temporaries(root)
            assert same(saving.load(root), new)
            assert len(checkpoints_folders.folders(root)) in (2, 3)
    assert seen == {False, True}


def test_kill_in_a_loop_of_saves(tmp_path):
    models = [make(seed) for seed in range(3)]
    saving.save(models[0], tmp_path)

    def forever():
        while True:
            for model in models:
                saving.save(model, tmp_path)

    rng = random.Random(0)
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                forever()
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        loaded = saving.load(tmp_path)
        assert any(same(loaded, model) for model in models)
    saving.save(models[0], tmp_path)
    assert not temporaries(tmp_path)


# ---- damage


def test_damage_anywhere_is_found(tmp_path):
    """Truncation at 64 offsets and 256 flipped bits of each file."""
    model = make()
    saving.save(model, tmp_path)
    (folder,) = checkpoints_folders.folders(tmp_path)
    rng = random.Random(1)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        cuts = [0, 1, 7, 8, 9, len(content) - 1, *(rng.randrange(len(content)) for _ in range(58))]
        flips = [(rng.randrange(len(content)), 1 << rng.randrange(8)) for _ in range(256)]
        damaged = [content[:n] for n in cuts]
        damaged += [content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :] for i, bit in flips]
        damaged += [content + b"\0", b"", os.urandom(100)]
        for bad in damaged:
            file.write_bytes(bad)
            with pytest.raises(CheckpointCorrupt) as caught:
                saving.load(tmp_path)
            message = str(caught.value)
            assert str(file) in message
            assert f"{len(bad)} bytes" in message or "sha256" in message
        file.write_bytes(content)
        assert same(saving.load(tmp_path), model)


def test_damage_is_described(tmp_path):
    saving.save(make(), tmp_path)
    file = checkpoints_folders.folders(tmp_path)[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"sha256.*tensor net\.\S+ damaged"):
        saving.load(tmp_path)
    file.write_bytes(content[:100])
    with pytest.raises(CheckpointCorrupt, match=rf"100 bytes, expected {len(content)} bytes"):
        saving.load(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointCorrupt, match="missing"):
        saving.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_one_before_a_damaged_one_is_used(tmp_path, name):
    old, new = make(0), make(1)
    saving.save(old, tmp_path)
    saving.save(new, tmp_path)
    file = checkpoints_folders.folders(tmp_path)[1] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"sha256.*the previous checkpoint is used"):
        assert same(saving.load(tmp_path), old)
    for folder in checkpoints_folders.folders(tmp_path):
        (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointCorrupt, match="000001"):
        saving.load(tmp_path)


def sealed(folder, config):
    """Puts a config with a valid sum: damage it is not, but it may be an attack."""
    config = {key: value for key, value in config.items() if key != "sha256"}
    (folder / "config.json").write_bytes(encoding.encode_config(config))


def test_senseless_configs_are_refused(tmp_path):
    saving.save(make(), tmp_path)
    (folder,) = checkpoints_folders.folders(tmp_path)
    config = json.loads((folder / "config.json").read_bytes())
    deep: dict = {}
    for _ in range(50):
        deep = {"a": deep}

    def with_model(**fields):
        return {**config, "model": {**config["model"], **fields}}

    mlp = config["model"]["net"]
    cases = [
        ({**config, "format": 2}, CheckpointMismatch, "format is 2 in the checkpoint, but 1"),
        ({**config, "files": {}}, CheckpointCorrupt, "files"),
        ({**config, "files": {**config["files"], "../x.safetensors": {"bytes": 1, "sha256": ""}}}, CheckpointCorrupt, "files"),
        ({**config, "files": {"model.safetensors": 3}}, CheckpointCorrupt, "sha256"),
        ({**config, "extra": deep}, CheckpointCorrupt, "depth"),
        ({**config, "model": []}, CheckpointCorrupt, "model"),
        (with_model(event_shape=[10**9]), CheckpointCorrupt, "event_shape"),
        (with_model(event_shape=[2, -1]), CheckpointCorrupt, "event_shape"),
        (with_model(dtype="load"), CheckpointCorrupt, "dtype"),
        (with_model(sde={"class": "os.system", "args": {}}), ConfigError, "not one of scoresde's"),
        (with_model(sde={"class": "ABC", "args": {}}), ConfigError, "not one of scoresde's"),
        (with_model(sde={"class": "SDE", "args": {}}), ConfigError, "not one of scoresde's"),
        (with_model(sde={"class": "VPSDE", "args": {"beta": 1}}), CheckpointMismatch, "VPSDE.*cannot be made"),
        (with_model(sde={"class": "VPSDE", "args": {"beta_min": -1.0}}), CheckpointMismatch, "beta_min"),
        (with_model(net={"class": "Tensor", "args": {}}), ConfigError, "not one of scoresde's"),
        (with_model(net={"class": "_VectorBlock", "args": {}}), ConfigError, "not one of scoresde's"),
        (with_model(net={**mlp, "args": {**mlp["args"], "width": 10**9}}), CheckpointMismatch, "1000000000"),
        (with_model(net={**mlp, "args": {**mlp["args"], "width": 50_000}}), CheckpointMismatch, "weight|memory"),
        (with_model(net={**mlp, "args": {**mlp["args"], "depth": 3}}), CheckpointMismatch, "missing keys"),
        (with_model(parameterization="__import__"), ConfigError, "parameterization"),
        (with_model(transform={"levels": 1}), CheckpointMismatch, "transform"),
        (with_model(transform=[1]), CheckpointCorrupt, "transform"),
    ]
    for bad, error, message in cases:
        sealed(folder, bad)
        with pytest.raises(error, match=message):
            saving.load(tmp_path)
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', "[]", "[" * 100_000, '"\ud800"'):
        with pytest.raises(CheckpointCorrupt):
            encoding.parse_json(Path("x"), text.encode("utf-8", "surrogatepass"))


def test_senseless_tensors_are_refused(tmp_path):
    from safetensors.torch import save

    good = save({"a": torch.ones(3)})
    nan = save({"a": torch.tensor([1.0, float("nan")])})
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    twice = len(header).to_bytes(8, "little") + header + b"\0"
    huge = (1 << 62).to_bytes(8, "little") + b"{}"
    path = Path("x.safetensors")
    assert torch.equal(encoding.decode_tensors(path, good)["a"], torch.ones(3))
    for content, message in [(nan, "NaN"), (twice, "twice"), (huge, "header"), (b"", "header"), (good[:-1], "safetensors")]:
        with pytest.raises(CheckpointCorrupt, match=message):
            encoding.decode_tensors(path, content)
    rng = random.Random(2)
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            encoding.decode_tensors(path, bytes(bad))
        except CheckpointCorrupt:
            continue


# ---- files that are something else


class Evil:
    def __reduce__(self):
        return os.mkdir, (f"{tempfile.gettempdir()}/scoresde-canary-{os.getpid()}",)


def test_pickles_are_never_read(tmp_path):
    canary = Path(f"{tempfile.gettempdir()}/scoresde-canary-{os.getpid()}")
    saving.save(make(), tmp_path / "run")
    (folder,) = checkpoints_folders.folders(tmp_path / "run")
    for name in ("a.pt", "a.safetensors", "a.ckpt", "a.pth", "run"):
        for protocol in (2, 3, 4, 5):
            path = tmp_path / f"{protocol}-{name}"
            path.write_bytes(pickle.dumps(Evil(), protocol))
            with pytest.raises(CheckpointUntrusted, match=r"pickle refused; save with `scoresde\.save`"):
                saving.load(path)
    torch.save({"a": Evil()}, tmp_path / "zip")
    with pytest.raises(CheckpointUntrusted, match="pickle refused"):
        saving.load(tmp_path / "zip")
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointUntrusted, match="pickle refused"):
            saving.load(tmp_path / "run")
        file.write_bytes(content)
    assert not canary.exists()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointCorrupt, match="a file of 5 bytes"):
        saving.load(tmp_path / "text")


def test_a_header_of_640_bytes_is_no_pickle():
    """Its first two bytes, 0x80 0x02, are those of a pickle of protocol 2."""
    files.refuse_pickle(Path("model.safetensors"), (640).to_bytes(8, "little") + b'{"a"')
    with pytest.raises(CheckpointUntrusted):
        files.refuse_pickle(Path("model.safetensors"), pickle.dumps([1], 2))


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFound, match=str(tmp_path / "run")):  # the absolute path
        saving.load("run")
    with pytest.raises(FileNotFoundError, match="the folder holds"):
        saving.load(tmp_path)


def test_fifos_devices_links_and_directories(tmp_path):
    saving.save(make(), tmp_path / "run")
    (folder,) = checkpoints_folders.folders(tmp_path / "run")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            saving.load(path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)

    def put_directory():
        file.mkdir()

    for put in (lambda: os.mkfifo(file), put_directory, lambda: file.symlink_to(tmp_path / "elsewhere")):
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink()
        put()
        with pytest.raises(CheckpointError, match="not a regular file"):
            saving.load(tmp_path / "run")


# ---- disks


def test_a_full_disk_leaves_the_old_one(tmp_path):
    old = make(0)
    saving.save(old, tmp_path)
    before = digest(checkpoints_folders.folders(tmp_path)[0])
    size = (checkpoints_folders.folders(tmp_path)[0] / "model.safetensors").stat().st_size
    report = tmp_path.parent / "report"

    def save_with(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            saving.save(make(1), tmp_path)
            result = "saved"
        except CheckpointWriteError as error:
            result = f"{error.errno} {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report.write_text(result)

    for limit in (0, 1, size // 2, size * 99 // 100, size - 1):
        assert in_child(lambda limit=limit: save_with(limit)) == 0
        text = report.read_text()
        assert text.startswith(f"{errno.EFBIG} ")
        assert f"previous checkpoint intact: {checkpoints_folders.folders(tmp_path)[0]}" in text
        assert len(checkpoints_folders.folders(tmp_path)) == 1
        assert digest(checkpoints_folders.folders(tmp_path)[0]) == before
        assert not temporaries(tmp_path)
    assert same(saving.load(tmp_path), old)


@pytest.mark.parametrize("name", ["write", "fsync", "rename", "mkdir"])
def test_errno_is_kept(tmp_path, monkeypatch, name):
    saving.save(make(0), tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(CheckpointWriteError, match=r"No space left.*previous checkpoint intact") as caught:
            saving.save(make(1), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError)
    assert not temporaries(tmp_path)
    assert same(saving.load(tmp_path), make(0))
    saving.save(make(1), tmp_path)
    assert same(saving.load(tmp_path), make(1))


def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as folder:
        saving.save(make(0), folder)
        Path(folder).chmod(0o555)
        (Path(folder) / "lock").chmod(0o444)

        def as_nobody():
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                saving.save(make(1), folder)
            except CheckpointWriteError as error:
                text = str(error)
                if error.errno == errno.EACCES and folder in text and "previous checkpoint intact" in text:
                    return
                raise
            raise RuntimeError("saved")

        assert in_child(as_nobody) == 0
        Path(folder).chmod(0o700)
    with pytest.raises(CheckpointWriteError, match="no previous checkpoint"):
        saving.save(make(1), "/proc/nowhere/run")


def test_nan_never_reaches_a_file(tmp_path):
    model = make()
    saving.save(model, tmp_path)
    with torch.no_grad():
        model.net.output.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"net.output.bias holds NaN"):
        saving.save(model, tmp_path)
    assert len(checkpoints_folders.folders(tmp_path)) == 1


# ---- one writer


def test_a_second_writer_is_told_the_pid_of_the_first(tmp_path):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        with files.lock(tmp_path):
            os.write(go, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(LockError, match=rf"process {pid} is writing there"):
            saving.save(make(), tmp_path)
        assert not checkpoints_folders.folders(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / "lock").read_text() == f"{pid}\n"  # a stale lock
    saving.save(make(), tmp_path)
    assert same(saving.load(tmp_path), make())
    with files.lock(tmp_path):
        saving.save(make(1), tmp_path)  # the same writer
        with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
            raise ZeroDivisionError


class Table(sd.SDE):
    """No dataclass: what it is stands in a table."""

    t_min, t_max = 1e-3, 1.0

    def __init__(self, most):
        self.rates = torch.linspace(0.1, most, 5, dtype=torch.float64)

    def alpha(self, t):
        return torch.exp(-self.rates[-1] * t * t / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.rates[-1] * t * t))


@dataclass(frozen=True, eq=False)
class TableInAField(sd.SDE):
    table: torch.Tensor
    t_min: float = 1e-3
    t_max: float = 1.0

    def alpha(self, t):
        return torch.exp(-self.table[1500] * t * t / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.table[1500] * t * t))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Table(20.0), Table(10.0)),
        (TableInAField(torch.full((2000,), 20.0)), TableInAField(torch.full((2000,), 20.0).index_fill(0, torch.tensor(1500), 10.0))),
    ],
)
def test_sdes_with_other_tables_are_refused(tmp_path, one, other):
    model = make(sde=one)
    saving.save(model, tmp_path)
    assert same(model, saving.load(tmp_path, model=make(sde=one)))
    with pytest.raises(CheckpointMismatch, match=r"sde\.levels\..*sigma is .* was requested"):
        saving.load(tmp_path, model=make(sde=other))
    saved = description.describe(model)
    del saved["sde"]["levels"]  # as checkpoints were
    description.check_same(saved, description.describe(model), tmp_path)

"""Files that protect themselves: 1,000 flipped bits and every truncation of each kind are found, or the same numbers come out all the same."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import socket
import struct
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from crashes import calls_of, count_or_crash, in_child

import scoresde as sd
from scoresde.core import encoding
from scoresde.core.rows import Rows
from scoresde.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound, ConfigError, ScoreSDEError
from scoresde.evaluation.bootstrap import Interval
from scoresde.evaluation.features import FeatureExtractor
from scoresde.evaluation.frontier.result import Frontier
from scoresde.evaluation.frontier.rows import Row
from scoresde.evaluation.frontier.store import Store
from scoresde.evaluation.metrics import NoiseFloor
from scoresde.likelihood.report import Report, Term
from scoresde.likelihood.variational import BinFlow, VariationalDequantizer
from scoresde.solvers.recipe import Recipe, fingerprint

FLIPS = 1000
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact() -> sd.ExactModel:
    return sd.ExactModel(sd.data.two_moons(), sd.VPSDE())


def network(seed: int = 0) -> sd.NetworkModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = sd.NetworkModel(sd.nets.MLP(2, 4, 1), sd.VPSDE(), (2,))
        for p in model.parameters():
            torch.nn.init.normal_(p)
    model.reference = sd.GaussianReference.fit(X + seed)
    return model


def recipe(seed: int = 0) -> Recipe:
    model = network()
    made_for = {"sde": repr(model.sde), "t_min": 1e-5, "t_max": 1.0, "weights": fingerprint(model), "cond": []}
    scheme = sd.ReferenceScheme(((1.5 + seed,), (-0.7, 2.25), (0.1, 0.2, 0.3)), model.reference)
    return Recipe(scheme, (1.0, 0.4, 0.1, 1e-3), 3, made_for, {"median_error": 0.125})


def report(seed: int = 0) -> Report:
    return Report(3.25 + seed, 0.5, "nats", (Term("data", 0.25, "of the samples"), Term("cut", math.nan, "?")), {"steps": 4}, (3.0, 3.5 + seed))


ROW = {"sde": "VPSDE()", "solver": "Heun()", "label": "Heun", "grid": "own", "steps": 4, "budget": 8, "nfe": 8.0, "calls": 8.0, "message": ""}
TIMES = {"seconds": 0.5, "seconds_per_call": 0.0625, "overhead": math.nan, "deterministic": True}


def row(value: float) -> Row:
    return Row(**ROW, **TIMES, metrics={"median": Interval(value, 0.1, 0.3, 0.05)})


def result(seed: int = 0) -> Frontier:
    settings = {"samples": 30, "sde": "VPSDE()", "converged_error": 1e-6, "t_end": 1e-3}
    return Frontier((row(0.25 + seed), row(0.125)), {"energy": NoiseFloor(0.5, 0.25)}, {"score": Interval(0.0, 0.0, 1.0, 0.5)}, settings)


def extractor(seed: int = 0) -> FeatureExtractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureExtractor((2,), 2, features=2, width=1, name="dots", accuracy=0.75).eval().requires_grad_(False)


def dequantizer(seed: int = 0) -> VariationalDequantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = BinFlow((2,), 4, width=2)
        for p in flow.parameters():
            torch.nn.init.normal_(p)
    return VariationalDequantizer(sd.Transform(levels=4), flow, (2.0, 1.5))


SETTINGS = {"classes": 2, "features": 2, "width": 1, "name": "dots", "event_shape": [2], "accuracy": 0.75}  # of that extractor


class Kind:
    """A kind of file: ``write`` makes a folder with one or more files in it, ``read`` gives its numbers as text."""

    def __init__(self, write, read):
        self.write, self.read = write, read


KINDS = {
    "recipe": Kind(lambda p, i=0: recipe(i).save(p / "r.json"), lambda p: _recipe(Recipe.load(p / "r.json"))),
    "report": Kind(lambda p, i=0: report(i).to_json(p / "r.json"), lambda p: _report(Report.from_json(p / "r.json"))),
    "frontier": Kind(lambda p, i=0: result(i).to_json(p / "f.json"), lambda p: repr(Frontier.from_json(p / "f.json"))),
    "features": Kind(lambda p, i=0: extractor(i).save(p / "f.st"), lambda p: _features(FeatureExtractor.load(p / "f.st"))),
    "dequantizer": Kind(lambda p, i=0: dequantizer(i).save(p), lambda p: _dequantizer(VariationalDequantizer.load(p))),
    "checkpoint": Kind(lambda p, i=0: sd.save(network(i), p), lambda p: _model(sd.load(p))),
}


def _recipe(r: Recipe) -> str:
    tensors = {name: v.tolist() for name, v in r.solver.reference.tensors().items()}
    return repr((r.solver.weights, r.solver.first, tensors, r.times, r.nfe, r.model, r.report))


def _report(r: Report) -> str:
    return repr((r.value, r.std_error, r.unit, r.terms, r.settings, r.per_sample))


def _features(f: FeatureExtractor) -> str:
    return repr((f, f.event_shape, f.name, f.accuracy, f(X.float()).tolist()))


def _dequantizer(q: VariationalDequantizer) -> str:
    return repr((q.fingerprint, q.history, q.transform))


def _model(model: sd.NetworkModel) -> str:
    return repr(([v.tolist() for v in model.state_dict().values()], model.sde, model.reference))


def flipped(content: bytes, rng: random.Random) -> bytes:
    i = rng.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


def damages(content: bytes, cuts: int = 0) -> list[bytes]:
    """1,000 flips, and all truncations, or some."""
    rng = random.Random(len(content))
    lengths = range(len(content)) if not cuts else [0, 1, 7, 8, 9, *(rng.randrange(len(content)) for _ in range(cuts)), len(content) - 1]
    return [*(flipped(content, rng) for _ in range(FLIPS)), *(content[:n] for n in lengths), content + b"\0", content + content]


SLOW = [pytest.param(k, marks=pytest.mark.slow) if k in ("checkpoint", "dequantizer", "features") else k for k in KINDS]


@pytest.mark.parametrize("kind", SLOW)
def test_damage_of_any_file_is_found(kind, tmp_path):
    """No flip and no truncation gives other numbers: all end in an error of checkpoints, but for a line end at the end that is not there."""
    KINDS[kind].write(tmp_path)
    read = KINDS[kind].read
    true = read(tmp_path)
    accepted = 0
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"):
        content = file.read_bytes()
        for bad in damages(content, 0 if len(content) < 3000 else 400):
            file.write_bytes(bad)
            try:
                found = read(tmp_path)
            except CheckpointError:
                continue
            assert found == true, (file.name, bad)
            assert bad.strip() == content.strip()  # nothing but white space at the end
            accepted += 1
        file.write_bytes(content)
    assert accepted <= 2
    assert read(tmp_path) == true


def test_a_damaged_recipe_beside_a_checkpoint_is_passed_over(tmp_path):
    """Of its flips none changes the samples without a warning."""
    model = network()
    model.recipes[3] = recipe()
    sd.save(model, tmp_path)
    (file,) = tmp_path.glob("recipe-*.json")
    content = file.read_bytes()
    assert 3 in sd.load(tmp_path).recipes
    rng = random.Random(0)
    for _ in range(200):
        file.write_bytes(flipped(content, rng))
        with pytest.warns(UserWarning, match=r"recipe-3\.json.*passed over"):
            assert sd.load(tmp_path).recipes == {}


# ---- rows
LINES = [{"piece": i, "value": 0.1 * i, "name": "x" * i, "list": [i, 0.5]} for i in range(4)]


def rows(tmp_path) -> Rows:
    return Rows(tmp_path / "rows.jsonl", "numbers", "numbers", {"steps": 4, "end": 1e-3})


def test_damage_of_rows_is_passed_over(tmp_path):
    """Of a flip at most the two lines that it joins are lost, with a warning, of a truncation those after it; none has other numbers."""
    store = rows(tmp_path)
    store.write(LINES[:2])
    for line in LINES[2:]:
        store.add(line)
    content = store.path.read_bytes()
    head = content.index(b"\n") + 1
    assert store.read() == LINES
    for bad in damages(content):
        store.path.write_bytes(bad)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = store.read()
            except ConfigError:
                assert bad[:head] != content[:head]
                continue
        assert bad[:head].strip() == content[:head].strip() or not bad
        assert all(line in LINES for line in found)
        if len(bad) == len(content):
            assert len(found) >= 2
            lost = [i for i, line in enumerate(LINES) if line not in found]
            assert told or lost in ([], [3])  # the last without its end is taken for cut off
        else:
            assert found == LINES[: len(found)] or told


def test_a_line_without_its_sum_is_no_line_of_a_new_file(tmp_path):
    store = rows(tmp_path)
    store.write(LINES)
    texts = store.path.read_text().splitlines()
    bare = json.dumps({**LINES[1], "value": 7.0})
    store.path.write_text("\n".join([texts[0], texts[1], bare, *texts[3:]]) + "\n")
    with pytest.warns(UserWarning, match=r"rows\.jsonl: line 3 damaged and passed over: that part of numbers is computed anew"):
        assert store.read() == [LINES[0], *LINES[2:]]
    # a file of version 1 has no sums at all, and its lines are taken as they are
    old = [{"kind": "numbers", "settings": store.settings}, *LINES]
    store.path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert store.read() == LINES
    store.path.write_text("".join(encoding.encode_line(line) for line in [{**old[0], "format": 3}, *LINES]))
    with pytest.raises(ConfigError, match="format 3"):
        store.read()


def test_a_damaged_line_of_a_likelihood_is_computed_anew(tmp_path):
    """The same figures and the same file, whatever was flipped; network calls for the damaged piece alone."""
    how = {"steps": 4, "check": 2, "batch_size": 2, "divergence": "exact", "out": tmp_path / "rows.jsonl"}
    true = sd.log_prob(exact(), X.float(), **how)
    content = how["out"].read_bytes()
    head = content.index(b"\n") + 1
    rng = random.Random(3)
    for _ in range(40):
        bad = content[:head] + flipped(content[head:], rng)
        how["out"].write_bytes(bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = sd.log_prob(exact(), X.float(), **how)
        assert torch.equal(found.log_prob, true.log_prob)
        assert torch.equal(found.latent, true.latent)
        assert (str(found.terms()), found.nfe) == (str(true.terms()), true.nfe)
        assert sorted(how["out"].read_bytes().splitlines()) == sorted(content.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        {"log_prob": [0.5]},
        {"prior": [0.5]},
        {"delta": "xy"},
        {"cut": None},
        {"nfe": "1.5"},
        {"nfe": True},
        {"vjp": -1},
        {"latent": ""},
        {"latent": "AAA"},
        {"ids": [7, 8]},
        {"sums": [[1.0], [2.0]]},
        {"piece": -3},
        {"piece": 99},
        {"piece": [0]},
    ],
    ids=str,
)
def test_a_forged_or_short_record_is_computed_anew(tmp_path, change):
    """Lines with a good sum and other content: what is not a record of its samples is passed over with a warning."""
    how = {"steps": 4, "check": 2, "batch_size": 2, "out": tmp_path / "rows.jsonl"}
    true = sd.log_prob(exact(), X.float(), **how)
    texts = how["out"].read_text().splitlines(keepends=True)
    line = encoding.decode_line(texts[1])
    how["out"].write_text("".join([texts[0], encoding.encode_line({**line, **change}), *texts[2:]]))
    with pytest.warns(UserWarning, match="line 2 damaged and passed over"):
        found = sd.log_prob(exact(), X.float(), **how)
    assert torch.equal(found.log_prob, true.log_prob)
    assert found.nfe == true.nfe


def test_a_damaged_line_of_a_frontier_is_measured_anew(tmp_path):
    store = Store(tmp_path / "f.jsonl", {"samples": 30})
    for i in range(3):
        store.add(key=f"k{i}", row=row(0.25 * i).to_json())
    text = (tmp_path / "f.jsonl").read_text()
    (tmp_path / "f.jsonl").write_text(text.replace('"value": 0.25', '"value": 0.75'))
    with pytest.warns(UserWarning, match="line 3 damaged and passed over: that part of a frontier is computed anew"):
        again = Store(tmp_path / "f.jsonl", {"samples": 30})
    assert repr(again.rows) == repr({"k0": row(0.0), "k2": row(0.5)})
    again.add(key="k3", row={"label": "no row"})
    with pytest.warns(UserWarning, match="line 4 damaged"):
        assert list(Store(tmp_path / "f.jsonl", {"samples": 30}).rows) == ["k0", "k2"]


# ---- versions
@pytest.mark.parametrize("name", ["recipe", "report", "frontier"])
def test_a_new_file_without_its_sum_is_refused_and_an_old_one_is_read(name, tmp_path):
    KINDS[name].write(tmp_path)
    (file,) = tmp_path.iterdir()
    true = KINDS[name].read(tmp_path)
    content = json.loads(file.read_bytes())
    del content["sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointCorrupt, match="not those of the sha256"):
        KINDS[name].read(tmp_path)
    file.write_bytes(encoding.encode_config({**content, "format": 3}))
    with pytest.raises(CheckpointError, match="format is 3 in the file, but 1 and 2"):
        KINDS[name].read(tmp_path)
    file.write_bytes(encoding.encode_config({**content, "kind": "recipes"}))
    with pytest.raises(CheckpointError, match=f"holds a recipes, expected a {name}"):
        KINDS[name].read(tmp_path)
    del content["format"], content["kind"]
    file.write_text(json.dumps(content, indent=2))
    assert KINDS[name].read(tmp_path) == true


def test_features_of_the_version_before_are_read_and_their_sums_checked(tmp_path):
    old = extractor()
    settings = torch.frombuffer(bytearray(json.dumps({"args": SETTINGS}).encode()), dtype=torch.uint8)
    content = encoding.encode_tensors({**old.state_dict(), "settings": settings}, "weight")
    file = tmp_path / "f.st"
    file.write_bytes(content)
    assert _features(FeatureExtractor.load(file)) == _features(old)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointCorrupt, match=r"tensor .* damaged"):
        FeatureExtractor.load(file)
    old.save(file)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointCorrupt, match="not those of its sha256"):
        FeatureExtractor.load(file)


# ---- what is no file of ours
DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "x", DEEP, "[" * 10**5, '{"format": 1e999}', '{"format": NaN}', '{"format": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "\ud800"],
    ids=["empty", "list", "null", "word", "deep", "deep list", "huge", "nan", "digits", "twice", "surrogate"],
)
def test_strange_json_is_an_error_of_the_family(text, tmp_path):
    content = text.encode(errors="surrogatepass")
    for name in ("recipe", "report", "frontier"):
        KINDS[name].write(tmp_path / name)
        (file,) = (tmp_path / name).iterdir()
        file.write_bytes(content)
        with pytest.raises(ScoreSDEError):
            KINDS[name].read(tmp_path / name)
    with pytest.raises(ScoreSDEError):
        Recipe.from_json(text)
    with pytest.raises(ScoreSDEError):
        Report.from_json(text)
    store = rows(tmp_path)
    store.path.write_bytes(content + b"\n")
    with pytest.raises(ConfigError, match="give another file"):
        store.read()


@pytest.mark.parametrize("special", ["fifo", "folder", "socket", "device", "null", "loop", "name"])
def test_what_is_no_regular_file_is_refused_at_once(special, tmp_path):
    path = tmp_path / "it"
    if special == "fifo":
        os.mkfifo(path)
    elif special == "folder":
        path.mkdir()
    elif special == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
    elif special == "loop":
        path.symlink_to(path)
    else:
        path = Path({"device": "/dev/zero", "null": "/dev/null", "name": "a\0b"}[special])
    for read in (Recipe.load, Report.from_json, Frontier.from_json, FeatureExtractor.load):
        with pytest.raises(CheckpointError, match=r"not a regular file|no such file|a folder|no name of a file"):
            read(path)
    with pytest.raises((ConfigError, CheckpointError)):
        Store(path, {})
    if special != "folder":
        with pytest.raises((ConfigError, CheckpointError)):
            sd.log_prob(exact(), X.float(), out=str(path), steps=2)
    if special == "loop":
        return  # it is replaced
    for write in (report().to_json, result().to_json, extractor().save, result().to_csv):
        with pytest.raises(CheckpointError):
            write(path)


def test_a_link_to_a_file_is_followed(tmp_path):
    """Of what a user names; not in a checkpoint, see its tests."""
    report().to_json(tmp_path / "r.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "r.json")
    assert _report(Report.from_json(tmp_path / "link.json")) == _report(report())
    with pytest.raises(CheckpointNotFound, match=r"none\.json: no such file"):
        Report.from_json("none.json")


def test_a_forged_size_allocates_nothing(tmp_path):
    """A header, settings and shapes that ask for terabytes, with good sums."""
    file = tmp_path / "f.st"
    forged = [struct.pack("<Q", n) + b"{}" for n in (1 << 62, 1 << 40, (1 << 63) - 1)]
    header = json.dumps({"a": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}).encode()
    forged.append(struct.pack("<Q", len(header)) + header)
    for args in ({"width": 10**9}, {"features": 1 << 40}, {"classes": 10**30}, {"event_shape": [10**6, 10**6]}, {"event_shape": [3, 10**5, 10**5]}):
        settings = json.dumps({"args": {**SETTINGS, **args}}).encode()
        coded = torch.frombuffer(bytearray(settings), dtype=torch.uint8)
        forged.append(encoding.encode_tensors({**extractor().state_dict(), "settings": coded}, "weight", alone=True))
    tracemalloc.start()
    try:
        for content in forged:
            file.write_bytes(content)
            with pytest.raises(CheckpointError):
                FeatureExtractor.load(file)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 40)
    for read in (Recipe.load, Report.from_json, Frontier.from_json, FeatureExtractor.load):
        with pytest.raises(CheckpointCorrupt, match=rf"{1 << 40} bytes, expected \d+ bytes at most"):
            read(file)


# ---- crashes
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "checkpoint"])
def test_a_crash_at_any_system_call_leaves_the_old_or_the_new(kind, tmp_path):
    """Checkpoints have a test of their own, with several of them in a folder."""
    write, read = KINDS[kind].write, KINDS[kind].read

    def prepare(name):
        root = tmp_path / name
        root.mkdir()
        write(root, 0)
        return root

    (tmp_path / "new").mkdir()
    write(tmp_path / "new", 1)
    old, new = read(prepare("old")), read(tmp_path / "new")
    root = prepare("count")
    calls = calls_of(lambda: write(root, 1), tmp_path / "calls")
    assert calls.index("replace") > calls.index("fsync")
    seen = set()
    for k, call in enumerate(calls):
        for half in (False, True) if call == "write" else (False,):
            root = prepare(f"{k}-{half}")
            assert in_child(lambda k=k, half=half, root=root: (count_or_crash(k, half), write(root, 1))) == 9
            seen.add(read(root))
            write(root, 1)
            assert read(root) == new
            shutil.rmtree(root)
    assert seen == {old, new}


def test_a_crash_at_any_system_call_of_rows_leaves_whole_lines(tmp_path):
    def prepare(name):
        (tmp_path / name).mkdir()
        store = rows(tmp_path / name)
        store.write(LINES[:1])
        return store

    def work(store):
        store.add(LINES[1])
        store.write(LINES[:2])
        store.add(LINES[2])

    store = prepare("count")
    calls = calls_of(lambda: work(store), tmp_path / "calls")
    seen = set()
    for k, call in enumerate(calls):
        for half in (False, True) if call == "write" else (False,):
            store = prepare(f"{k}-{half}")
            assert in_child(lambda k=k, half=half, store=store: (count_or_crash(k, half), work(store))) == 9
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a last line that was cut off is nothing to warn of
                found = store.read()
            assert found == LINES[: len(found)]
            seen.add(len(found))
            store.write(found)
            store.add(LINES[3])
            assert store.read() == [*found, LINES[3]]
    assert seen == {1, 2, 3}

"""Long evaluations in pieces: the same figures as in one, gone on with after any crash, shared between processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from problems import correlated_mixture

import scoresde as sd
from scoresde.core import files, pieces, progress
from scoresde.core import pieces as core_pieces
from scoresde.likelihood import budget, method
from scoresde.likelihood import report as likelihood_report

ConfigError = sd.errors.ConfigError
T16 = sd.Transform(levels=16)
TARGET = correlated_mixture(3)
LEVELS = T16.quantize(TARGET.sample(10))
HOW = {"steps": 6, "probes": 2, "batch_size": 4, "check": 5, "dequantizations": 2}


def make(reference: bool = True) -> sd.ExactModel:
    model = sd.ExactModel(TARGET, sd.VPSDE())
    if not reference:
        model.reference = None
    return model


def bits(model: sd.ScoreModel | None = None, **more) -> object:
    return sd.bits_per_dim(make() if model is None else model, **{"levels": LEVELS, "transform": T16, **HOW, **more})


class Stop(Exception):
    """A crash."""


class Dies(sd.ExactModel):
    """Fails at the n-th call."""

    _n = 0  # private: no part of what the model computes

    def predict(self, x, t, **cond):
        return self.answer(x, t)

    def answer(self, x, t):
        self._n -= 1
        if self._n == 0:
            raise Stop
        level = self.sde.level(t, x)
        return self.target.posterior(x, level.alpha, level.sigma)


def same(a, b) -> None:
    """Two results are equal to the bit."""
    assert torch.equal(a.per_sample, b.per_sample)
    assert str(a.terms) == str(b.terms)  # NaN is NaN
    assert (a.mean, a.std_error, a.nfe, a.check_nfe, a.settings) == (b.mean, b.std_error, b.nfe, b.check_nfe, b.settings)


@pytest.mark.parametrize(
    ("reference", "more"),
    [(True, {}), (True, {"prior": "reference"}), (False, {"solver": sd.RK4(), "steps": 5})],
    ids=["own moments", "reference prior", "no reference"],
)
def test_pieces_are_the_whole(reference, more):
    """Mean and every term of the budget of 10 samples in pieces of 3 as in one piece, to 1e-9; the prior term too, which is of all."""
    whole, parts = (bits(make(reference), batch_size=size, **more) for size in (16, 3))
    assert torch.allclose(whole.per_sample, parts.per_sample, rtol=0, atol=1e-11)
    for a, b in zip(whole.terms, parts.terms, strict=True):
        assert (a.name, a.what) == (b.name, b.what)
        assert a.value == pytest.approx(b.value, abs=1e-9, rel=1e-9, nan_ok=True)
    assert not any(math.isnan(term.value) for term in parts.terms)
    assert parts.nfe == whole.nfe  # of a sample
    x = TARGET.sample(10)
    how = {"solver": more.get("solver"), "steps": 6, "check": 5, "prior": more.get("prior")}
    one, many = sd.log_prob(make(reference), x, **how), sd.log_prob(make(reference), x, batch_size=3, out=None, share=True, **how)
    for name in ("log_prob", "prior", "delta", "latent", "mismatch", "discretization", "cut"):
        assert torch.allclose(getattr(one, name), getattr(many, name), rtol=0, atol=1e-9, equal_nan=True), name
    assert {**one.settings, "nfe": 0, "vjp": 0} == {**many.settings, "nfe": 0, "vjp": 0}


def test_the_mismatch_from_sums_is_that_of_the_numbers():
    """log of N(m, v) less log of N(0, 1) at u, m and v the moments of all u, an offset among them; failed samples do not count."""
    u = 3 + 0.7 * torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal
    expected = (normal(u.mean(), u.std()).log_prob(u) - normal(0.0, 1.0).log_prob(u)).sum(1)
    sums = torch.stack([u.sum(1), u.square().sum(1)], 1)
    assert torch.allclose(budget.mismatch_of_all(sums, 8), expected, rtol=1e-10)
    found = budget.mismatch_of_all(torch.cat([sums, torch.full((1, 2), math.nan)]), 8)
    assert torch.allclose(found[:50], expected, rtol=1e-10)
    assert found[50].isnan()


def test_a_run_that_died_goes_on(tmp_path):
    """Dead within the second of three pieces: the first is not computed again, and all figures are those of a run that lived."""
    few = {"check_steps": 9}
    whole = bits(**few)
    dies = Dies(TARGET, sd.VPSDE())
    dies._n = 40  # a piece takes 2 x 6 calls, and 9 + 1 more where there are check samples, as in the first two
    with pytest.raises(Stop):
        bits(dies, out=tmp_path, **few)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    done = [json.loads(line)["piece"] for line in lines[1:]]
    assert done == list(range(len(done)))
    assert len(done) == 1
    model = Dies(TARGET, sd.VPSDE())
    with sd.count_evaluations(model) as calls:
        resumed = bits(model, out=tmp_path, **few)
    assert calls.rows == 10 * whole.nfe + 5 * whole.check_nfe - 4 * (2 * 6 + 10)
    same(resumed, bits(Dies(TARGET, sd.VPSDE()), **few))
    assert resumed.mean == whole.mean
    with sd.count_evaluations(model) as calls:
        same(bits(model, out=tmp_path / "rows.jsonl", **few), resumed)
    assert calls.forward == 0


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_line_that_was_cut_off_is_done_again(tmp_path, cut):
    path = tmp_path / "deep" / "r.jsonl"
    whole = bits(out=path)
    text = path.read_bytes()
    path.write_bytes(text[:-cut])
    model = make()
    with sd.count_evaluations(model) as calls:
        same(bits(model, out=path), whole)
    assert calls.forward == (12 if cut > 1 else 0)  # two draws of the last piece; without its line end alone it is whole
    assert path.read_bytes() == text
    assert not list(path.parent.glob(".tmp*"))


def test_other_arguments_are_refused_by_name(tmp_path):
    model = make()
    first = bits(model, out=tmp_path)
    other = sd.ExactModel(correlated_mixture(3, seed=5), sd.VPSDE())
    cases = [
        ({"steps": 7}, r"steps was 6, now 7"),
        ({"seed": 1}, r"seed was 0, now 1"),
        ({"divergence": "gaussian"}, r"divergence was 'hutchinson', now 'gaussian'"),
        ({"probes": 3}, "probes was 2, now 3"),
        ({"prior": "reference"}, "prior was 'standard', now 'reference'"),
        ({"prior": lambda z: model.log_prob(z, 1.0)}, "prior was 'standard', now 'custom'"),
        ({"check": 4}, "check was 5, now 4"),
        ({"batch_size": 5}, "batch_size was 4, now 5"),
        ({"dequantizations": 3}, "draws was 2, now 3"),
        ({"dequantization": "normal"}, "dequantization was 'uniform', now 'normal'"),
        ({"dequantizations": 2, "divergence": "exact", "importance_weighted": True}, "now 'uniform, importance-weighted, 2 draws'"),
        ({"ids": range(1, 11)}, "ids was"),
        ({"levels": LEVELS.flip(0)}, "data was"),
        ({"levels": LEVELS[:9]}, "samples was 10, now 9"),
        ({"transform": sd.Transform(levels=17)}, "levels was 16, now 17"),
        ({"solver": sd.ReferenceSolver(order=2)}, r"solver was 'ReferenceSolver\("),
        ({"solver": sd.ReferenceSolver(reference=sd.GaussianReference.fit(TARGET.sample(50)))}, "solver_fields was"),
        ({"model": other}, "model was"),
        ({"model": sd.ExactModel(TARGET, sd.VPSDE(beta_max=19.0))}, "sde was"),
    ]
    for more, message in cases:
        with pytest.raises(ConfigError, match=rf"holds likelihoods of other settings: .*{message}.*overwrite=True"):
            bits(out=tmp_path, **more)
    same(bits(model, out=tmp_path), first)  # still there
    replaced = bits(model, out=tmp_path, overwrite=True, steps=7)
    same(bits(model, out=tmp_path, steps=7), replaced)
    one, two = (lambda z, c=c: model.log_prob(z, 1.0) + c for c in (0.0, 1.0))
    bits(model, out=tmp_path / "p.jsonl", prior=one)
    with pytest.raises(ConfigError, match="prior_function was"):
        bits(model, out=tmp_path / "p.jsonl", prior=two)


def net_model(parameterization: str = "v") -> sd.NetworkModel:
    """An untrained network, of the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = sd.nets.MLP(3, width=8, depth=1)
        for weights in net.parameters():
            torch.nn.init.normal_(weights, std=0.2)  # the last layer starts as zero
    return sd.NetworkModel(net, sd.VPSDE(), (3,), parameterization)


def test_a_model_is_more_than_its_weights(tmp_path):
    """The same network as eps and as v is two models, whose figures differ; so is one with another public attribute."""
    how = {"solver": sd.Heun(), "steps": 3, "check": 0}
    first = bits(net_model("eps"), out=tmp_path, **how)
    with pytest.raises(ConfigError, match="model was"):
        bits(net_model("v"), out=tmp_path, **how)
    assert abs(bits(net_model("v"), **how).mean - first.mean) > 0.01
    same(bits(net_model("eps"), out=tmp_path, **how), first)
    other = net_model("eps")
    other.net.temperature = 2.0
    with pytest.raises(ConfigError, match="model was"):
        bits(other, out=tmp_path, **how)
    x = TARGET.sample(4).float()
    sd.log_prob(net_model("eps"), x, out=tmp_path / "p.jsonl", solver=sd.Heun(), steps=3)
    with pytest.raises(ConfigError, match="model was"):
        sd.log_prob(net_model("v"), x, out=tmp_path / "p.jsonl", solver=sd.Heun(), steps=3)


def test_another_version_does_not_go_on(tmp_path, monkeypatch):
    bits(out=tmp_path)
    monkeypatch.setattr(likelihood_report, "_version", lambda name: "0.0" if name == "scoresde" else "1")
    with pytest.raises(ConfigError, match=r"settings: scoresde was '[^']+', now '0.0'. Give"):
        bits(out=tmp_path)


def test_the_weights_are_hashed_once(tmp_path, monkeypatch):
    """However many pieces and draws there are."""
    calls, real = [], likelihood_report.settings_of
    monkeypatch.setattr(method, "settings_of", lambda *a: calls.append(1) or real(*a))
    bits()
    sd.log_prob(make(), TARGET.sample(10), out=tmp_path, steps=6, batch_size=4, check=5)
    assert len(calls) == 2


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """A write that comes short is an error and leaves nothing, but for what others have added since; then the same call goes on."""
    whole = bits()
    path, real, kept = tmp_path / "rows.jsonl", os.write, []

    def short(fd, content):
        if b'"piece": 1' in bytes(content) and not kept:
            kept.append(path.read_bytes())
            return real(fd, bytes(content)[:100])
        return real(fd, content)

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(sd.errors.CheckpointWriteError, match="No space left"):
        bits(out=path)
    assert path.read_bytes() == kept[0]
    assert kept[0].count(b"\n") == 2
    same(bits(out=path), whole)

    def raced(fd, content):
        written = real(fd, bytes(content)[:3])
        with path.open("ab") as other:
            other.write(b"of another\n")
        return written

    path.write_bytes(b"")
    monkeypatch.setattr(os, "write", raced)
    with pytest.raises(sd.errors.CheckpointWriteError):
        files.append_text(path, "abcdef\n")
    assert path.read_bytes() == b"abcof another\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_limit_on_the_size_of_files(tmp_path):
    """The system's own short write, at a limit of 1000 bytes."""
    code = "import resource, sys\nfrom pathlib import Path\nfrom scoresde.errors import CheckpointWriteError\nfrom scoresde.core import files\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nfiles.append_text(Path(sys.argv[1]), 'a' * 99 + '\\n')\n"
    code += "try: files.append_text(Path(sys.argv[1]), 'b' * 1000)\nexcept CheckpointWriteError: print('told')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True)
    assert done.stdout == "told\n", done.stderr
    assert (tmp_path / "x").read_text() == "a" * 99 + "\n"


def test_alone_by_default(monkeypatch):
    """One process of several that calls without share works, and does not look for the others."""
    alone = bits()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    same(bits(), alone)
    with pytest.raises(ConfigError, match="RANK is not set"):
        bits(share=True)


def test_what_is_no_file_of_ours_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for text in ("my notes\n", '{"kind": "other", "settings": {}}\n', "[1]\n"):
        path.write_text(text)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is not the file of likelihoods"):
                bits(out=path, overwrite=overwrite)
        assert path.read_text() == text
    with pytest.raises(ConfigError, match="out = 3, expected the name"):
        bits(out=3)
    with pytest.raises(ConfigError, match="divergence = 'exat'"):
        bits(out=tmp_path / "new", divergence="exat")
    assert not (tmp_path / "new").exists()  # a wrong argument leaves no file that the right one would be refused by


def test_numbers_survive():
    values = [[0.1, -1e-300, 1 / 3], [math.inf, -math.inf, math.nan]]
    found = core_pieces.unpack(json.loads(json.dumps(core_pieces.pack(values), allow_nan=False)))
    assert found[0] == values[0]
    assert found[1][:2] == values[1][:2]
    assert math.isnan(found[1][2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_prob_keeps_its_latents(tmp_path, dtype):
    """Floats of two bytes are no numbers of numpy's, and survive all the same."""
    model = sd.ExactModel(correlated_mixture(3).to(dtype), sd.VPSDE())
    x = TARGET.sample(7).to(dtype)
    how = {"steps": 5, "batch_size": 3, "probes": 2}
    a = sd.log_prob(model, x, out=tmp_path, **how)
    b, plain = sd.log_prob(model, x, out=tmp_path, **how), sd.log_prob(model, x, **how)
    for name in ("log_prob", "prior", "delta", "latent", "std_error", "mismatch"):
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(getattr(a, name), getattr(plain, name))
    assert a.latent.dtype == dtype
    assert a.settings == plain.settings == b.settings
    with pytest.raises(ConfigError, match="data was"):
        sd.log_prob(model, x + 0.01, out=tmp_path, **how)


def shifted(sde, x, t, label):
    level = sde.level(t, x)
    m, c = 0.5 * label[:, None].to(x), 0.04
    return m + level.alpha * c / (level.alpha**2 * c + level.sigma**2) * (x - level.alpha * m)


class Shifted(sd.ScoreModel):
    """One Gaussian a label: at 0 for 0, at 0.5 for 1."""

    def __init__(self):
        super().__init__(sd.VPSDE(), (3,))
        self.register_buffer("kind", torch.zeros(1, dtype=torch.float64))

    def denoise(self, x, t, label):
        return shifted(self.sde, x, t, label)


def test_conditions_go_with_their_samples(tmp_path):
    levels, label = LEVELS[:, :3], torch.arange(10) % 2
    how = {"solver": sd.Heun(), "steps": 6, "check": 0, "divergence": "exact"}
    whole = sd.bits_per_dim(Shifted(), levels, T16, label=label, batch_size=16, **how)
    parts = sd.bits_per_dim(Shifted(), levels, T16, label=label, batch_size=3, out=tmp_path, **how)
    assert torch.allclose(whole.per_sample, parts.per_sample, rtol=0, atol=1e-10)
    assert (sd.bits_per_dim(Shifted(), levels, T16, label=1 - label, batch_size=3, **how).per_sample - parts.per_sample).abs().min() > 1e-3
    with pytest.raises(ConfigError, match="conditions was"):
        sd.bits_per_dim(Shifted(), levels, T16, label=1 - label, batch_size=3, out=tmp_path, **how)
    with pytest.raises(sd.errors.ShapeError, match="condition 'label'"):
        sd.bits_per_dim(Shifted(), levels[:9], T16, label=label[:3], batch_size=3, **how)  # of the length of every piece, not of the whole


class Named(Shifted):
    """The same, of a label by another name."""

    def denoise(self, x, t, cond):
        return shifted(self.sde, x, t, cond)


def test_a_condition_may_have_any_name_that_is_no_options(tmp_path):
    """One that is called cond is a condition; x is an argument, and refused."""
    levels, label = LEVELS[:, :3], torch.arange(10) % 2
    how = {"solver": sd.Heun(), "steps": 6, "check": 0, "divergence": "exact", "batch_size": 3}
    expected = sd.bits_per_dim(Shifted(), levels, T16, label=label, **how).per_sample
    assert torch.equal(sd.bits_per_dim(Named(), levels, T16, cond=label, out=tmp_path, **how).per_sample, expected)
    with pytest.raises(ConfigError, match="conditions was"):
        sd.bits_per_dim(Named(), levels, T16, cond=1 - label, out=tmp_path, **how)
    with pytest.raises(ConfigError, match="a condition is called 'x'"):
        sd.bits_per_dim(Shifted(), levels, T16, x=label, **how)


def test_a_bar_with_the_mean_so_far(tmp_path, monkeypatch, capfd):
    b = bits(progress=True)
    assert "log-likelihood" in capfd.readouterr().err
    shown = []

    class Bar(progress.bar):
        def __enter__(self):
            return lambda amount=1, note="": shown.append((amount, note))

    monkeypatch.setattr(pieces, "bar", Bar)
    bits(out=tmp_path)
    first = b.per_sample[:4]
    assert [amount for amount, _ in shown] == [4, 4, 2]
    assert shown[0][1] == f"{first.mean():.4f} +- {first.std() / 2:.4f}"
    assert shown[-1][1] == f"{b.mean:.4f} +- {b.std_error:.4f}"
    bits(out=tmp_path)  # nothing to do: shown as done
    assert shown[3:] == shown[:3]


class Slow(Dies):
    def predict(self, x, t, **cond):
        time.sleep(0.002)
        return self.answer(x, t)


Slow.__qualname__ = "Dies"  # the same model, as far as the file can tell


@pytest.mark.slow
def test_kill_9_and_go_on(tmp_path):
    """Killed six times, at moments spread over the work on a piece; then it is through, nothing is left, and the figures are the same."""
    path, kills = tmp_path / "rows.jsonl", 0

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                bits(Slow(TARGET, sd.VPSDE()), batch_size=1, out=path)
                code = 0
            finally:
                os._exit(code)
        have, found = lines(), (0, 0)
        while kills < 6 and found[0] == 0 and lines() < have + 1:
            found = os.waitpid(pid, os.WNOHANG)
        if kills < 6 and found[0] == 0:
            time.sleep(0.007 * kills)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1] if found[0] == 0 else found[1])
        kills += status == -signal.SIGKILL
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert kills == 6
    pieces = [json.loads(line)["piece"] for line in path.read_text().splitlines()[1:]]
    assert sorted(pieces) == list(range(10))
    model = Dies(TARGET, sd.VPSDE())
    with sd.count_evaluations(model) as calls:
        found = bits(model, batch_size=1, out=path)
    assert calls.forward == 0
    same(found, bits(model, batch_size=1))


TWO = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from core.test_pieces import *
rank, out = int(os.environ["RANK"]), Path({out!r})

class Counted(Dies):
    seen = 0
    def predict(self, x, t, **cond):
        Counted.seen += 1
        return self.answer(x, t)
Counted.__qualname__, Counted.__module__ = "Dies", {module!r}

model = Counted(TARGET, sd.VPSDE())
b = bits(model, out=out / "rows.jsonl", prior="reference", share=True)
again = bits(model, prior="reference", share=True)
seen = Counted.seen
r = sd.log_prob(model, TARGET.sample(10), steps=6, batch_size=3, share=True)
alone = bits(model) if rank == 0 else None  # by default the other is not waited for
errors = []
for more in ({{"seed": rank}}, {{"levels": LEVELS.flip(0) if rank else LEVELS}}):
    try:
        bits(model, share=True, **more)
    except sd.errors.ConfigError as error:
        errors.append(str(error))
try:
    if rank == 1:
        model._n = 5
    bits(model, share=True)
except Exception as error:
    errors.append(type(error).__name__ + ": " + str(error))
found = dict(per_sample=b.per_sample.tolist(), again=again.per_sample.tolist(), terms=[t.value for t in b.terms], mean=b.mean, nfe=b.nfe)
found |= dict(check_nfe=b.check_nfe, seen=seen, log_prob=r.log_prob.tolist(), alone=alone and alone.mean, errors=errors)
(out / f"{{rank}}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    """Under torchrun: every sample evaluated once, by one of them; both know all of it, and it is what one process finds, to the bit."""
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path), module=Dies.__module__))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    model = Dies(TARGET, sd.VPSDE())
    with sd.count_evaluations(model) as calls:
        one = bits(model, prior="reference")
    r = sd.log_prob(model, TARGET.sample(10), steps=6, batch_size=3)
    for f in found:
        assert f["per_sample"] == f["again"] == one.per_sample.tolist()
        assert f["terms"] == pytest.approx([t.value for t in one.terms], abs=1e-9)
        assert (f["mean"], f["nfe"], f["check_nfe"]) == (one.mean, one.nfe, one.check_nfe)
        assert f["log_prob"] == r.log_prob.tolist()
        assert "another seed" in f["errors"][0]
        assert "another data" in f["errors"][1]
    assert (found[0]["alone"], found[1]["alone"]) == (bits(model).mean, None)
    # both passes, and each of them shared: together they make the calls of one process, neither makes all
    assert found[0]["seen"] + found[1]["seen"] == 2 * calls.forward
    assert all(0 < f["seen"] < 2 * calls.forward for f in found)
    assert found[1]["errors"][2].startswith("Stop")
    assert "process 1 of 2 failed: Stop" in found[0]["errors"][2]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(i for line in lines[1:] for i in line["ids"]) == list(range(10))
    assert bits(model, prior="reference", out=tmp_path / "rows.jsonl").mean == one.mean  # one process goes on with the file of two

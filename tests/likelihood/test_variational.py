"""Variational dequantization: q is a density, its draws have it, and its file is read as what it is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from problems import name

import scoresde as sd
from scoresde.core import encoding
from scoresde.likelihood import variational
from scoresde.likelihood.variational import BinFlow, VariationalDequantizer, unit_noise

E = sd.errors
T4 = sd.Transform(levels=4)


def random_flow(event_shape, levels=4, couplings=0, scale=0.5, width=8) -> BinFlow:
    """A flow that is far from the identity."""
    generator = torch.Generator().manual_seed(0)
    net = BinFlow(event_shape, levels, width=width, couplings=couplings).double()
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = scale * noise / max(parameter[0].numel(), 1) ** 0.5
    return net


@pytest.mark.parametrize("couplings", [0, 3])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (1, 2, 1, 2), (1, 1, 2, 1, 2)], ids=str)
def test_log_q_is_that_of_a_change_of_variables(shape, couplings):
    """log q(u) = log phi(e) - log |det du/de|, the Jacobian by automatic differentiation; each sample with its own."""
    net = random_flow(shape, couplings=couplings)
    generator = torch.Generator().manual_seed(1)
    k, e = torch.randint(0, 4, (3, *shape), generator=generator), torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    log_q = unit_noise(net, k, e)[1]
    D = e[0].numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: unit_noise(net, k, v)[0], e).reshape(3, D, 3, D)
    for i in range(3):
        normal = -0.5 * float(e[i].square().sum()) - 0.5 * D * math.log(2 * math.pi)
        assert float(log_q[i].detach()) == pytest.approx(normal - float(torch.linalg.slogdet(jacobian[i, :, i])[1]), abs=1e-9)
        assert abs(float(log_q[i].detach())) > 1e-3
    assert not jacobian[0, :, 1:].any()
    off = jacobian[0, :, 0] - jacobian[0, :, 0].diag().diag()
    assert (float(off.abs().max()) > 1e-4) == (couplings > 0)


@pytest.mark.parametrize("sde", [sd.VPSDE(), sd.EDMSDE(), sd.RectifiedFlow(t_min=0.05)], ids=name)
def test_draws_have_the_density_that_they_tell(sde):
    """4,000 draws in one bin: exp(log q) over the sorted draws integrates to 1, and to their empirical distribution (Kolmogorov and
    Smirnov at 1e-6: 0.0425; a shift of m by 0.15 moves it by 0.06)."""
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1).double(), torch.ones(1)), sde)
    alpha, n = float(sde.alpha(sde.t_min)), 4000
    for level in (0, 2):
        x, log_q = VariationalDequantizer(T4, random_flow((1,))).draw(torch.full((n, 1), level), model, 3, np.arange(n), 0)
        x, order = x[:, 0].sort()
        q = log_q[order].exp()
        F = torch.cat([q.new_zeros(1), (0.5 * (q[1:] + q[:-1]) * x.diff()).cumsum(0)])
        assert float(F[-1]) == pytest.approx(1, abs=0.01)
        assert float((F - torch.arange(n) / n).abs().max()) < 0.0425
        assert alpha * (-1 + level * 0.5) < float(x[0]) < float(x[-1]) < alpha * (-0.5 + level * 0.5)
        assert abs(float(((x / alpha + 1) / 0.5 - level).mean()) - 0.5) > 0.02  # it is not uniform


def test_levels_are_seen_as_plain_waves():
    """k on [-1, 1], and cos and sin of 2 pi f k for f of 1/4, 1/2 and 3/4, nothing faded, since levels carry no noise."""
    net, seen = random_flow((1, 2, 2)), []
    net.first[0].register_forward_hook(lambda _, inputs, answer: seen.append(inputs[0]))
    k = torch.arange(4)[:, None, None, None].expand(4, 1, 2, 2)
    net(k, torch.zeros(4, 1, 2, 2, dtype=torch.float64))
    x = (2 * k.double() + 1) / 4 - 1
    angles = [2 * math.pi * f * x for f in (0.25, 0.5, 0.75)]
    waves = torch.cat([x, *(wave for angle in angles for wave in (angle.cos(), angle.sin()))], 1)
    assert torch.allclose(seen[0], torch.cat([waves, torch.zeros_like(x)], 1), rtol=0, atol=1e-15)


def test_it_starts_as_uniform_noise():
    levels = torch.randint(0, 4, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    e = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, log_q = unit_noise(BinFlow((1, 4, 4), 4, couplings=2).double(), levels, e)
    assert torch.equal(u, torch.special.ndtr(e))
    assert not log_q.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_stay_in_their_bins_and_belong_to_their_samples(dtype):
    transform = sd.Transform(levels=256)
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1, 3, 3, dtype=dtype), torch.ones(1)), sd.EDMSDE())
    q = VariationalDequantizer(transform, random_flow((1, 3, 3), 256, couplings=1, scale=3.0))
    levels = torch.randint(0, 256, (500, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    x, log_q = q.draw(levels, model, 4, np.arange(500), 1)
    assert torch.equal(transform.quantize(x), levels)
    assert (x.dtype, log_q.dtype, log_q.shape, x.requires_grad) == (dtype, torch.float64, (500,), False)
    rows = [17, 5, 499]
    some, some_q = q.draw(levels[rows], model, 4, np.array(rows), 1)
    assert torch.allclose(some, x[rows], rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-7)
    assert torch.allclose(some_q, log_q[rows], rtol=0, atol=1e-9)
    for seed, draw in ((5, 1), (4, 2)):
        assert not torch.equal(q.draw(levels, model, seed, np.arange(500), draw)[0], x)


@pytest.fixture(scope="module")
def stored() -> VariationalDequantizer:
    return VariationalDequantizer(T4, random_flow((1,), width=16), (3.0, 2.0, 1.5))


def test_it_is_saved_and_loaded(stored, tmp_path):
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1), torch.ones(1)), sd.VPSDE())
    levels = torch.arange(4)[:, None]
    old = VariationalDequantizer(T4, random_flow((1,)), (1.0,))
    old.save(tmp_path / "run")
    assert VariationalDequantizer.load(tmp_path / "run").fingerprint == old.fingerprint
    parts = ("best", "0" * 15, "0" * 17, "backup-" + "0" * 16, "X" * 16)
    foreign = [tmp_path / "run" / f"dequantizer-{part}.safetensors" for part in parts]
    for file in foreign:
        file.write_bytes(b"")
    stored.save(tmp_path / "run")
    assert all(file.exists() for file in foreign)
    assert len(list((tmp_path / "run").iterdir())) == 2 + len(foreign)  # the old weights are gone
    found = VariationalDequantizer.load(tmp_path / "run")
    for a, b in zip(found.draw(levels, model, 0, np.arange(4), 0), stored.draw(levels, model, 0, np.arange(4), 0), strict=True):
        assert torch.equal(a, b)
    assert (found.fingerprint, found.history, found.transform) == (stored.fingerprint, stored.history, stored.transform)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("couplings", [0, 3])
def test_any_flow_is_saved_and_loaded(shape, couplings, tmp_path):
    q = VariationalDequantizer(T4, random_flow(shape, couplings=couplings))
    q.save(tmp_path)
    found = VariationalDequantizer.load(tmp_path)
    assert found.fingerprint == q.fingerprint
    assert torch.equal(found.net.keep, q.net.keep)
    parity = torch.from_numpy(np.indices(shape).sum(0) % 2)
    for j in range(couplings):
        assert torch.equal(found.net.keep[1 + j] == 1, parity == j % 2)


@pytest.mark.parametrize(("couplings", "shape"), [(0, [1 << 40]), (0, [1 << 20, 1 << 20]), (64, [60, 300]), (0, [10**9] * 20)], ids=str)
def test_a_damaged_file_makes_nothing_large(stored, tmp_path, monkeypatch, couplings, shape):
    """Its event_shape and couplings are held against the weights before any flow is made, even of shapes alone."""
    stored.save(tmp_path)
    config = tmp_path / "dequantizer.json"
    plain = {key: value for key, value in json.loads(config.read_bytes()).items() if key != "sha256"}
    config.write_bytes(encoding.encode_config({**plain, "net": {**plain["net"], "event_shape": shape, "couplings": couplings}}))
    monkeypatch.setattr(variational, "BinFlow", lambda **net: pytest.fail(f"made {net}"))
    with pytest.raises(E.CheckpointMismatch, match="expected at most 64 values a byte"):
        VariationalDequantizer.load(tmp_path)


def test_what_is_wrong_with_a_file_is_told(stored, tmp_path):
    load = VariationalDequantizer.load
    with pytest.raises(E.CheckpointNotFound, match="no dequantizer at"):
        load(tmp_path)
    stored.save(tmp_path)
    config, (weights,) = tmp_path / "dequantizer.json", tmp_path.glob("*.safetensors")
    text, content = config.read_bytes(), weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(E.CheckpointCorrupt, match="truncated"):
        load(tmp_path)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(E.CheckpointCorrupt, match="damaged"):
        load(tmp_path)
    weights.write_bytes(content)
    config.write_bytes(text.replace(b'"levels": 4', b'"levels": 5'))
    with pytest.raises(E.CheckpointCorrupt, match="edited"):
        load(tmp_path)
    plain = {key: value for key, value in json.loads(text).items() if key != "sha256"}
    for change, error, match in (
        ({"format": 2}, E.CheckpointMismatch, "format is 2"),
        ({"net": {**plain["net"], "width": 8}}, E.CheckpointMismatch, "weight"),
        ({"net": {**plain["net"], "width": 1 << 30}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"net": {**plain["net"], "event_shape": ["a"]}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"net": {**plain["net"], "event_shape": [-1]}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"net": {**plain["net"], "couplings": True}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"net": {**plain["net"], "depth": 0}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"file": {"bytes": 3, "sha256": "../../x"}}, E.CheckpointCorrupt, "not the JSON of a dequantizer"),
        ({"transform": {**plain["transform"], "levels": 8}}, E.CheckpointMismatch, "a flow of 4 levels"),
    ):
        config.write_bytes(encoding.encode_config({**plain, **change}))
        with pytest.raises(error, match=match):
            load(tmp_path)
    config.write_bytes(text)
    weights.unlink()
    with pytest.raises(E.CheckpointCorrupt, match="missing"):
        load(tmp_path)


def test_errors():
    model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1), torch.ones(1)), sd.VPSDE())
    with pytest.raises(E.ConfigError, match="a flow of 8 levels"):
        VariationalDequantizer(T4, BinFlow((1,), 8))
    q = VariationalDequantizer(T4, BinFlow((2,), 4))
    with pytest.raises(E.ShapeError, match=r"for events of shape \(2,\)"):
        sd.bits_per_dim(model, torch.zeros(4, 1, dtype=torch.int64), dequantization=q)

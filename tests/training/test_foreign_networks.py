"""Networks that others made: masks with infinities, complex weights, parts that cannot be copied, unused and half-precision weights."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from training.runs import MOONS, QUICK, run_script, weights

import scoresde as sd
from scoresde.errors import ConfigError
from scoresde.training.average import Average


class Attention(nn.Module):
    """Causal attention over the two coordinates, with its mask of minus infinities as a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((2, 2), -torch.inf), 1))
        self.qkv, self.out = nn.Linear(2, 12), nn.Linear(4, 1)

    def forward(self, x, c_noise):
        q, k, v = self.qkv(torch.stack([x, c_noise[:, None].expand_as(x)], -1)).chunk(3, -1)
        return self.out((q @ k.mT / 2 + self.mask).softmax(-1) @ v)[..., 0]


class Fourier(nn.Module):
    """Complex weights, as in Fourier neural operators."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
        self.linear = nn.Linear(1, 2)

    def forward(self, x, c_noise):
        return torch.fft.ifft(torch.fft.fft(x) @ self.w).real + self.linear(c_noise[:, None])


class Remembers(nn.Module):
    """Keeps its last activation and a lock: neither can be copied."""

    def __init__(self):
        super().__init__()
        self.linear, self.lock, self.last = nn.Linear(3, 2), threading.Lock(), None

    def forward(self, x, c_noise):
        self.last = self.linear(torch.cat([x, c_noise[:, None]], 1))
        return self.last.sin()


class OldNorm(Remembers):
    def __init__(self):
        super().__init__()
        with pytest.warns(FutureWarning):
            self.linear = nn.utils.weight_norm(self.linear)


class PartlyUnused(Remembers):
    """One part is never used, another one is frozen."""

    def __init__(self):
        super().__init__()
        self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x, c_noise):
        return self.frozen(super().forward(x, c_noise))


@pytest.mark.parametrize("make", [Attention, Fourier, Remembers, OldNorm, PartlyUnused])
def test_they_are_trained_saved_loaded_and_gone_on_with(make, tmp_path):
    torch.manual_seed(0)
    model = sd.NetworkModel(make(), sd.VPSDE(), (2,))
    start = weights(model)
    sd.fit(model, MOONS, steps=20, lr=1e-2, out=tmp_path / "run", checkpoint_every=7, **QUICK)
    assert not torch.equal(weights(model), start)
    torch.manual_seed(1)
    again = sd.load(tmp_path / "run", net=make())
    assert torch.equal(weights(again), weights(model))
    assert torch.equal(sd.sample(again, 3, steps=4), sd.sample(model, 3, steps=4))
    sd.save(model, tmp_path / "saved")
    assert torch.equal(weights(sd.load(tmp_path / "saved", net=make())), weights(model))
    sd.fit(model, MOONS, steps=2, **QUICK)  # a second time
    # stopped after 10 steps and gone on with: the same weights to the bit
    torch.manual_seed(0)
    parts, settings = sd.NetworkModel(make(), sd.VPSDE(), (2,)), {**QUICK, "checkpoint_every": 7, "out": tmp_path / "parts", "log_every": 10}

    def stop(step, line):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sd.fit(parts, MOONS, steps=20, lr=1e-2, callback=stop, **settings)
    sd.fit(parts, MOONS, steps=20, lr=1e-2, resume=True, **settings)
    assert torch.equal(weights(parts), weights(again))


def test_the_average_of_bfloat16_weights_is_finer_than_they_are(tmp_path):
    """In bfloat16 a step of the average, a thousandth of the way, is lost by rounding."""
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average, exact = Average({"w": w}, 0.999), 1.0
    average.update()
    w.data.fill_(1.5)
    for n in range(1, 20_000):
        average.update()
        exact += (1 - min(0.999, (1 + n) / (10 + n))) * (1.5 - exact)
        if n % 4000 == 0:
            assert average.tensors["w"].dtype == torch.float32
            assert float(average.tensors["w"][0]) == pytest.approx(exact, abs=1e-4)
    with average.in_place():
        assert w.dtype == torch.bfloat16
        assert float(w[0]) == pytest.approx(exact, abs=2**-8)

    def run(**arguments):
        torch.manual_seed(0)
        model = sd.NetworkModel(Attention(), sd.VPSDE(), (2,)).to(torch.bfloat16)
        sd.fit(model, MOONS.train.bfloat16(), steps=40, out=tmp_path, checkpoint_every=15, **QUICK, **arguments)
        return weights(model)

    def stop(step, line):
        if step == 30:
            raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(overwrite=True, callback=stop)
    assert torch.equal(run(resume=True), whole)


def test_other_optimizers(tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)

    def run(make, steps=20, **arguments):
        torch.manual_seed(0)
        model = sd.NetworkModel(Remembers(), sd.VPSDE(), (2,))
        sd.fit(model, MOONS, steps=steps, lr=1e-2, warmup=2, schedule="constant", optimizer=make, **QUICK, **arguments)
        return weights(model)

    makers = [sgd, torch.optim.Adam, lambda p: torch.optim.RMSprop(p, lr=1.0), lambda p: torch.optim.Adagrad(p, lr=1.0)]
    found = [run(make) for make in [None, *makers]]
    assert len({tuple(w.tolist()) for w in found[1:]}) == 4
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-6)  # AdamW without decay is Adam
    for i, make in enumerate(makers):
        run(make, steps=12, out=tmp_path / str(i))
        assert torch.equal(run(make, out=tmp_path / str(i), resume=True), found[i + 1])
    with pytest.raises(sd.errors.CheckpointMismatch, match=r"options.optimizer is 'sgd' in the checkpoint, but 'Adam'"):
        run(torch.optim.Adam, out=tmp_path / "0", resume=True)
    for wrong, message in ((3, r"optimizer = 3"), (lambda p: 3, "gave a int"), (lambda p: p.nothing, r"raised AttributeError")):
        with pytest.raises(ConfigError, match=message):
            run(wrong)


SCRIPT = """
import sys, torch
import scoresde as sd
from training.test_foreign_networks import PartlyUnused

torch.manual_seed(0)
model = sd.NetworkModel(PartlyUnused(), sd.VPSDE(), (2,))
sd.fit(model, sd.data.toy("moons", 200), steps=10, lr=1e-2, batch_size=32, progress=False)
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), f"{sys.argv[1]}/{sys.argv[2]}-{rank}")
"""


@pytest.mark.slow
def test_unused_parameters_under_torchrun(tmp_path):
    """Processes look for them; the result is that of one process."""
    run_script(SCRIPT, tmp_path, tmp_path, "two", processes=2)
    run_script(SCRIPT, tmp_path, tmp_path, "one")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"two-{rank}"), torch.load(tmp_path / "one-0"), rtol=0, atol=1e-5)


def test_fit_under_contexts_of_the_user():
    def run(*contexts):
        torch.manual_seed(0)
        model = sd.NetworkModel(Remembers(), sd.VPSDE(), (2,))
        if not contexts:
            sd.fit(model, MOONS, steps=5, **QUICK)
        for context in contexts:
            with context:
                sd.fit(model, MOONS, steps=5, **QUICK)
        return weights(model)

    expected = run()
    for context in (torch.no_grad(), torch.inference_mode()):
        assert torch.equal(run(context), expected)

"""Which samples and conditions a step sees: levels dequantized afresh, each sample once an epoch, data that make no sense."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from training.runs import LEVELS, MOONS, QUICK, make, trainer_for

import scoresde as sd
from scoresde import data, nets
from scoresde.core import noise
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError


class Recorder(torch.nn.Module):
    """A network that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(2)), []

    def forward(self, x, c_noise, **cond):
        self.seen.append((x.detach().clone(), cond))
        return x * self.w


def record(samples, steps=1, **kwargs):
    net = Recorder()
    model = sd.NetworkModel(net, sd.VPSDE(t_max=2e-5, t_end=1.5e-5), (2,), "v")  # hardly any noise: the data can be seen
    history = sd.fit(model, samples, steps=steps, **{**QUICK, "batch_size": 45, **kwargs})
    return net.seen, model, history


def test_levels_are_dequantized_afresh_each_step():
    seen, model, _ = record(LEVELS, steps=3, batch_size=45)
    first, second, third = [x for x, _ in seen]
    assert model.transform == LEVELS.transform
    for x in (first, second, third):
        rows = (((x + 1) / 0.4).floor().long()).tolist()  # noise of 0.003 hardly ever moves a level
        agree = sum(row in LEVELS.train.tolist() for row in rows)
        assert agree >= 40
    trainer, ids, draws = trainer_for(make(), LEVELS, batch_size=45), np.arange(45), []
    for k in range(3):
        x0 = trainer.batch(k, ids)[0]
        draws.append((x0 + 1) / 0.4 - LEVELS.train[trainer.source.order(k * 45 + ids, 0)])
        assert -1e-5 < draws[-1].min() < 0.1
        assert 0.9 < draws[-1].max() < 1 + 1e-5
    for i in range(3):
        assert (draws[i] - draws[i - 1]).abs().mean() > 0.2  # of independent draws: 1/3


def test_float_tensors_are_used_as_they_are():
    x = torch.randn(45, 2)
    seen, model, _ = record(x, steps=1)
    ((got, cond),) = seen
    assert cond == {}
    assert model.transform is None
    distance = torch.cdist(got, x).min(1)[0]
    assert distance.max() < 0.02


class Rows(torch.utils.data.Dataset):
    def __init__(self, kind, n=45):
        self.x, self.kind, self.used = torch.linspace(-1, 1, 2 * n).view(n, 2), kind, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.used.append(i)
        x = self.x[i]
        return {"x": x, "tuple": (x,), "label": (x, i % 3), "dict": (x, {"shift": torch.tensor(0.5), "k": i})}[self.kind]


@pytest.mark.parametrize("kind", ["x", "tuple", "label", "dict"])
def test_datasets(kind):
    rows = Rows(kind)
    seen, _, _ = record(rows, steps=1)
    ((x, cond),) = seen
    assert sorted(rows.used) == list(range(45))
    assert torch.cdist(x, rows.x[rows.used]).diagonal().max() < 0.02
    if kind == "dict":
        assert cond["k"].tolist() == rows.used
        assert cond["shift"].shape == (45,)
    else:
        assert cond == {}
    if kind == "label":
        rows.used.clear()
        ((_, cond),) = record(rows, steps=1, conditional=True)[0]
        assert cond["label"].tolist() == [i % 3 for i in rows.used]


def test_each_sample_once_an_epoch_in_an_order_of_its_own():
    """Also where an epoch ends inside a batch."""
    rows = Rows("x", 45)
    sd.fit(sd.NetworkModel(Recorder(), sd.VPSDE(), (2,)), rows, steps=9, **{**QUICK, "batch_size": 10})
    epochs = [rows.used[:45], rows.used[45:90]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(45))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(45))
    other = Rows("x", 45)
    sd.fit(sd.NetworkModel(Recorder(), sd.VPSDE(), (2,)), other, steps=9, seed=1, **{**QUICK, "batch_size": 10})
    assert other.used != rows.used


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.uint8), DTypeError, "give a `Transform`"),
        (torch.zeros(5, 2, dtype=torch.long), DTypeError, "give a `Transform`"),
        (torch.zeros(5, 2, dtype=torch.complex64), DTypeError, "complex64"),
        (torch.zeros(5, 2, dtype=torch.float64), DTypeError, "float64.*float32"),
        (np.zeros((5, 2), np.float32), DTypeError, "ndarray.*as_tensor"),
        ([[0.0, 1.0]], DTypeError, "list"),
        (torch.tensor([[0.0, math.nan]]), NonFiniteError, r"NaN.*\(0, 1\)"),
        (torch.tensor([[0.0, math.inf]]), NonFiniteError, "inf"),
        (torch.zeros(2), ShapeError, r"\(2,\)"),
        (torch.zeros(0, 2), ShapeError, "empty batch"),
        (torch.zeros(5, 3), ShapeError, r"\(5, 3\).*\(2,\)"),
        (data.digits(), ShapeError, r"\(1500, 1, 8, 8\).*\(2,\)"),
        (Rows("x", 0), ShapeError, "empty"),
        (3, ConfigError, "int"),
        (None, ConfigError, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_senseless_data(samples, error, message):
    with pytest.raises(error, match=message):
        sd.fit(make(), samples, steps=1, progress=False)


class Constant(Rows):
    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.value


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (torch.zeros(2, dtype=torch.uint8), DTypeError),
        (np.zeros(2), DTypeError),
        (torch.full((2,), math.nan), NonFiniteError),
        (torch.zeros(3), ShapeError),
    ],
    ids=["integers", "numpy", "NaN", "shape"],
)
def test_senseless_datasets(item, error):
    with pytest.raises(error):
        sd.fit(make(), Constant(item), steps=1, **QUICK)


def test_labels_are_given_to_those_who_ask():
    assert all("label" not in cond for _, cond in record(LEVELS)[0])
    seen = record(LEVELS, conditional=True)[0]
    assert all(len(cond["label"]) == len(x) for x, cond in seen)


# ---- conditions that the network does not take


class Shifted(torch.nn.Module):
    """A network with a condition of its own."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, c_noise, shift=0.0):
        return x * self.w


class Conditions(Rows):
    def __init__(self, *names):
        super().__init__("x")
        self.names = names

    def __getitem__(self, i):
        return super().__getitem__(i), {name: torch.tensor([0.5, 0.1]) for name in self.names}


def start(net, samples, **kwargs):
    sd.fit(sd.NetworkModel(net, sd.VPSDE(), (2,)), samples, steps=1, **QUICK, **kwargs)


@pytest.mark.parametrize(
    ("net", "samples", "arguments", "message"),
    [
        (Shifted(), Conditions("shfit"), {}, r"condition 'shfit', but the model takes shift as condition; did you mean 'shift'"),
        (Shifted(), Conditions("shift", "weather"), {}, r"condition 'weather', but the model takes shift as condition$"),
        (Shifted(), LEVELS, {"conditional": True}, "condition 'label', but the model takes shift"),
        (nets.MLP(2, 8, 1), LEVELS, {"conditional": True}, "condition 'label', but the model takes augment as condition"),
        (nets.MLP(2, 8, 1, classes=3), Conditions("lable"), {}, "condition 'lable'.*did you mean 'label'"),
    ],
    ids=["misspelled", "unknown", "labels", "without classes", "lable"],
)
def test_conditions_that_are_not_taken_are_refused_at_the_start(tmp_path, net, samples, arguments, message):
    """Before anything is seen of the run: another one's folder is as it was."""
    sd.fit(make(), MOONS, steps=2, out=tmp_path, **QUICK)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = []
    with pytest.raises(ConfigError, match=message):
        start(net, samples, out=tmp_path, overwrite=True, callback=lambda step, line: lines.append(line), **arguments)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert lines == []


def test_conditions_that_are_taken_are_not_refused():
    start(Shifted(), Conditions("shift"))
    start(Recorder(), Conditions("anything"))
    start(nets.MLP(2, 8, 1, classes=3), LEVELS)
    start(Shifted(), LEVELS)  # the labels are not asked for


def test_fine_tuning_refuses_them_too():
    with pytest.raises(ConfigError, match="condition 'label', but the model takes no condition"):
        sd.fine_tune(sd.NetworkModel(torch.nn.Linear(2, 2), sd.VPSDE(), (2,)), LEVELS, steps=1, conditional=True)


def test_what_augmentation_did_must_be_told():
    images, flip = data.digits(), sd.augment.Flip()
    with pytest.raises(ConfigError, match="takes no condition 'augment'"):
        sd.fit(sd.NetworkModel(torch.nn.Conv2d(1, 1, 1), sd.VPSDE(), (1, 8, 8)), images, steps=1, augment=flip, progress=False)


def test_the_first_look_at_a_dataset_draws_nothing():
    class Random(Rows):
        def __getitem__(self, i):
            return torch.randn(2)

    before = torch.get_rng_state()
    start(Shifted(), Random("x"))
    assert torch.equal(before, torch.get_rng_state())


# ---- orders


def test_orders_are_permutations_that_are_keyed():
    a = noise.permutation(1000, 0, 5)
    assert sorted(a.tolist()) == list(range(1000))
    others = [noise.permutation(1000, *key) for key in ((1, 5), (0, 6), (0, 5, 1))]
    assert all((a != b).any() for b in others)
    assert (a == noise.permutation(1000, 0, 5)).all()

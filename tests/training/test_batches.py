"""Which samples and conditions a step sees: levels dequantized afresh, each sample once an epoch, data that make no sense."""

from __future__ import annotations

import math
import warnings

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
    history = sd.fit(model, samples, steps=steps, **{**QUICK, "batch_size": 45, "validate_every": None, **kwargs})
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
    assert rows.used[0] == 0  # looked at before
    assert sorted(rows.used[1:]) == list(range(45))
    assert torch.cdist(x, rows.x[rows.used[1:]]).diagonal().max() < 0.02
    if kind == "dict":
        assert cond["k"].tolist() == rows.used[1:]
        assert cond["shift"].shape == (45,)
    elif kind == "label":
        assert cond["label"].tolist() == [i % 3 for i in rows.used[1:]]
        assert record(rows, steps=1, conditional=False)[0][0][1] == {}
    else:
        assert cond == {}


def test_each_sample_once_an_epoch_in_an_order_of_its_own():
    """Also where an epoch ends inside a batch."""
    rows = Rows("x", 45)
    sd.fit(sd.NetworkModel(Recorder(), sd.VPSDE(), (2,)), rows, steps=9, **{**QUICK, "batch_size": 10})
    epochs = [rows.used[1:46], rows.used[46:91]]
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


def test_labels_are_given_to_those_who_take_them():
    assert all("label" not in cond for _, cond in record(LEVELS, conditional=False)[0])
    for conditional in (None, True):
        seen = record(LEVELS, conditional=conditional)[0]
        assert all(len(cond["label"]) == len(x) for x, cond in seen)


class Passes(torch.nn.Module):
    """A wrapper that says nothing of what it passes on."""

    def __init__(self, net):
        super().__init__()
        self.inner = net

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Own(torch.nn.Module):
    """A network of one's own that takes a label."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, c_noise, label=None):
        return x * self.w


def compiled(net):
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [Passes, torch.nn.DataParallel, compiled, lambda net: Passes(torch.nn.DataParallel(net))])
@pytest.mark.parametrize(
    ("make", "given"),
    [(lambda: nets.MLP(2, 8, 1, classes=3), True), (lambda: nets.MLP(2, 8, 1), False), (Own, True)],
    ids=["classes", "no classes", "own"],
)
def test_labels_are_given_through_wrappers(wrap, make, given):
    net, seen = make(), []
    net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs.get("label")), with_kwargs=True)
    model = sd.NetworkModel(wrap(net), sd.VPSDE(), (2,))
    sd.fit(model, LEVELS, steps=2, **QUICK)
    assert seen
    assert all((label is not None) == given for label in seen)
    assert model.conditions.required == (("label",) if given and "classes" in str(make) else model.conditions.required)


class Pairs(torch.utils.data.Dataset):
    """Items and numbers that go with them."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.full((2,), i / 10), torch.tensor([0.5 * i])


def test_conditions_that_go_nowhere_or_are_missing_are_warned_of():
    with pytest.warns(UserWarning, match="items of this Pairs have a second part, and the network takes no label"):
        sd.fit(sd.NetworkModel(nets.MLP(2, 8, 1), sd.VPSDE(), (2,)), Pairs(), steps=1, **QUICK)
    floats = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    for unlabelled in (floats, data.Data(floats, floats[:0])):
        model = sd.NetworkModel(nets.MLP(2, 8, 1, classes=3), sd.VPSDE(), (2,))
        assert model.conditions.required == ("label",)
        with pytest.warns(UserWarning, match="made with classes, and the data have no labels"):
            sd.fit(model, unlabelled, steps=1, **QUICK)
        assert sd.sample(model, 2, steps=2).shape == (2, 2)  # what it was trained for
    for net, samples, arguments in (
        (nets.MLP(2, 8, 1), Pairs(), {"conditional": False}),
        (nets.MLP(2, 8, 1), LEVELS, {}),
        (nets.MLP(2, 8, 1, classes=3), LEVELS, {"conditional": False}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sd.fit(sd.NetworkModel(net, sd.VPSDE(), (2,)), samples, steps=1, **{**QUICK, "batch_size": 8}, **arguments)


def test_a_model_that_never_did_without_its_label_does_not_run_without(tmp_path):
    def made(**arguments):
        model = sd.NetworkModel(nets.MLP(2, 8, 1, classes=3, **arguments), sd.VPSDE(), (2,))
        sd.fit(model, LEVELS, steps=1, **QUICK)
        sd.save(model, tmp_path / str(arguments))
        return model, sd.load(tmp_path / str(arguments))

    x = torch.zeros(2, 2)
    for model in made():
        for call in (
            lambda m: sd.sample(m, 2, steps=2),
            lambda m: sd.sample(m, 2, steps=2, label=None),
            lambda m: sd.trajectory(m, 2, steps=2),
            lambda m: sd.log_prob(m, x, steps=2),
            lambda m: sd.bits_per_dim(m, LEVELS.train[:2], LEVELS.transform),
            lambda m: sd.elbo(m, x),
            lambda m: sd.encode(m, x),
            lambda m: sd.tune(m, 3),
        ):
            with pytest.raises(ConfigError, match=r"'label' is missing: this model was trained with that condition alone.*label_dropout"):
                call(model)
        assert sd.sample(model, 2, steps=2, label=1).shape == (2, 2)
    for model in made(label_dropout=0.3):
        assert sd.sample(model, 2, steps=2).shape == (2, 2)
    unconditional = sd.NetworkModel(nets.MLP(2, 8, 1, classes=3), sd.VPSDE(), (2,))
    sd.fit(unconditional, LEVELS, steps=1, conditional=False, **QUICK)
    sd.save(unconditional, tmp_path / "unconditional")
    assert sd.sample(sd.load(tmp_path / "unconditional"), 2, steps=2).shape == (2, 2)


class Nested(torch.utils.data.Dataset):
    """Conditions of all kinds."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        here = {"numpy": np.array([i, 2.0 * i]), "number": 0.5 * i, "tensor": torch.tensor(i)}
        return torch.full((2,), float(i)), {"text": f"item {i}", "parts": here}


def test_conditions_of_a_dataset_may_be_nested():
    seen, _, _ = record(Nested(), batch_size=8)
    ((x, cond),) = seen
    rows = ((x[:, 0] - x[:, 0].min()) / (x[:, 0].max() - x[:, 0].min())).tolist()
    parts, i = cond["parts"], cond["parts"]["tensor"]
    assert cond["text"] == [f"item {k}" for k in i.tolist()]
    assert parts["numpy"].dtype == parts["number"].dtype == torch.float32
    assert torch.equal(parts["numpy"], torch.stack([i, 2 * i], 1).float())
    assert torch.equal(parts["number"], 0.5 * i)
    assert rows == pytest.approx(((i - i.min()) / (i.max() - i.min())).tolist(), abs=1e-2)


class Shifted(torch.nn.Module):
    """A network with a condition of its own."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, c_noise, shift=0.0):
        return x * self.w


# ---- conditions that the network does not take


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


class Bad(torch.utils.data.Dataset):
    """Item 7 is not like the others."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return self.item if i == 7 else (torch.zeros(2), {"shift": torch.zeros(2)})


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((torch.tensor([0.0, float("nan")]), {"shift": torch.zeros(2)}), NonFiniteError, "item 7 of the Dataset holds NaN"),
        ((torch.zeros(3), {"shift": torch.zeros(2)}), ShapeError, r"item 7 of the Dataset has shape \(3,\)"),
        ((torch.zeros(2), {}), ConfigError, "item 7 of the Dataset has no condition 'shift'"),
        ((torch.zeros(2), {"shift": torch.zeros(3)}), ShapeError, "condition 'shift' of a Dataset: its items cannot be stacked"),
        ("text", DTypeError, "item 7 of the Dataset is a str"),
    ],
)
def test_the_item_is_named(item, error, message):
    with pytest.raises(error, match=message):
        start(Shifted(), Bad(item), **{"batch_size": 20} if "batch_size" not in QUICK else {})


def test_a_condition_called_like_an_argument_is_refused():
    with pytest.raises(ConfigError, match="the data give a condition 'x', as an argument of every model is called"):
        record(Conditions("x"))


class Needs(Shifted):
    def forward(self, x, c_noise, theta):
        return x * self.w


def test_a_condition_that_the_network_cannot_do_without_is_asked_for():
    with pytest.raises(ConfigError, match="cannot be called without 'theta', which the data do not give"):
        start(Needs(), LEVELS)
    with pytest.raises(ConfigError, match="'theta' is missing"):
        sd.sample(sd.NetworkModel(Needs(), sd.VPSDE(), (2,)), 2)


class Raises(Rows):
    def __getitem__(self, i):
        if i == 7:
            raise KeyError("no such picture")
        return super().__getitem__(i)


def test_an_item_that_raises_is_named():
    model = make()
    with pytest.raises(ConfigError, match="item 7 of the Dataset raised KeyError: 'no such picture'"):
        sd.fit(model, Raises("x"), **{**QUICK, "steps": 20})


def test_a_batch_that_no_machine_can_hold_is_refused_before_it_is_made():
    for call in (lambda n: sd.fit(make(), MOONS.train, **{**QUICK, "steps": 2, "batch_size": n}), lambda n: sd.sample(make(), 2, batch_size=n)):
        with pytest.raises(ConfigError, match=r"batch_size = 10{10} samples of shape \(2,\) would take .* GiB"):
            call(10**10)

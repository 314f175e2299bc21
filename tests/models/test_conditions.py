"""Conditions reach the network, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.models.conditions import Conditions, check_conditions, slice_cond


class Labelled(nn.Module):
    """Answers with its conditions, and remembers them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, c_noise, label=None, scale=1.0):
        self.seen.append((label, scale))
        return torch.zeros_like(x) if label is None else scale * label.to(x.dtype).view(-1, *[1] * (x.ndim - 1)).expand_as(x)


def test_conditions_reach_the_network():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    x, label = torch.zeros(3, 2), torch.tensor([1, 2, 3])
    expected = label[:, None].expand(3, 2).float()
    for function in (model.denoise, model.forward, model, lambda *a, **k: model.predict(*a, **k)[0]):
        assert torch.equal(function(x, 0.5, label=label), expected)
    for t in (0.5, torch.full((3,), 0.5)):
        alpha, sigma = float(model.sde.alpha(0.5)), float(model.sde.sigma(0.5))
        assert torch.allclose(model.eps(x, t, label=label, scale=2.0), -2 * alpha / sigma * expected)
        assert torch.allclose(model.score(x, t, label=label), alpha / sigma**2 * expected)
        model.velocity(x, t, label=label, scale=7.0)
        assert torch.equal(model.net.seen[-1][0], label)
        assert model.net.seen[-1][1] == 7.0


def test_conditions_reach_the_network_from_sample_and_log_prob():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    label = torch.arange(5)
    for solver in (sd.Heun(), sd.Ancestral(), sd.PredictorCorrector(), sd.TorchDiffEq(), sd.TorchSDE()):
        # data that are the label itself: the sample must find its own, in batches, padded, and whatever the order
        x = sd.sample(model, 5, solver=solver, steps=4, batch_size=2, denoise=True, label=label)
        assert torch.equal(x, label[:, None].expand(5, 2).float())
        x = sd.sample(model, 2, solver=solver, steps=4, denoise=True, ids=[1, 0], label=label[:2], scale=2.0)
        assert torch.equal(x, 2.0 * label[:2, None].expand(2, 2))
    for *_, x0 in sd.trajectory(model, 5, steps=2, label=label):
        assert torch.equal(x0, label[:, None].expand(5, 2).float())
    # log_prob: three samples in batches of two, one of them alone with its own label
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1, classes=5, label_dropout=0.5), sd.VPSDE(), (2,))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    whole = sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact", batch_size=2, label=label).log_prob
    for i in range(3):
        one = sd.log_prob(model, x[i : i + 1], solver=sd.Heun(), steps=8, divergence="exact", label=label[i : i + 1]).log_prob
        assert float(one) == pytest.approx(float(whole[i]), abs=1e-4)
    assert float((whole - sd.log_prob(model, x, solver=sd.Heun(), steps=8, divergence="exact").log_prob).abs().min()) > 1e-3


def test_conditions_of_the_wrong_length():
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    with pytest.raises(ShapeError, match=r"'label' has shape \(4,\) for 5 samples"):
        sd.sample(model, 5, steps=2, label=torch.arange(4))


def test_slice_cond():
    cond = {"label": torch.arange(4), "shared": torch.tensor(3.0), "one": torch.zeros(1, 2), "text": "a"}
    cut = slice_cond(cond, lambda v: v[:2], 4)
    assert cut["label"].tolist() == [0, 1]
    assert cut["shared"] is cond["shared"]
    assert torch.equal(cut["one"], torch.zeros(2, 2))
    assert cut["text"] == "a"


# ---- keywords that are no conditions


class Takes(nn.Module):
    """Answers with y, or with 0."""

    def forward(self, x, c_noise, **cond):
        return torch.zeros_like(x) + cond.get("y", 0.0)


def exact():
    return sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)), sd.VPSDE())


X = torch.zeros(2, 2, dtype=torch.float64)
MISSPELLED = [
    (lambda m, **k: sd.log_prob(m, X, **k), {"divergance": "exact"}, "divergence"),
    (lambda m, **k: sd.log_prob(m, X, **k), {"solvr": sd.Heun()}, "solver"),
    (lambda m, **k: sd.sample(m, 4, **k), {"setps": 3}, "steps"),
    (lambda m, **k: sd.sample(m, 4, **k), {"step": 3}, "steps"),
    (lambda m, **k: sd.sample(m, 4, **k), {"bach_size": 3}, "batch_size"),
    (lambda m, **k: sd.trajectory(m, 4, **k), {"t_nd": 0.1}, "t_end"),
    (lambda m, **k: sd.elbo(m, X, **k), {"drawz": 3}, "draws"),
]


@pytest.mark.parametrize(("function", "cond", "near"), MISSPELLED, ids=lambda v: str(v) if isinstance(v, (dict, str)) else "")
@pytest.mark.parametrize("make", [exact, lambda: sd.NetworkModel(Takes(), sd.VPSDE(), (2,), "x0").double()], ids=["exact", "any condition"])
def test_a_misspelled_option_is_no_condition(make, function, cond, near):
    """Not even where a network takes any name: the nearest option is named, and nothing was computed."""
    model = make()
    with sd.count_evaluations(model) as calls, pytest.raises(ConfigError, match=rf"{next(iter(cond))!r} is no option of .*did you mean '{near}'"):
        function(model, **cond)
    assert calls.forward == 0


def test_a_model_takes_the_conditions_that_it_names():
    with pytest.raises(ConfigError, match="'label' is no option of sample, and the model takes no condition"):
        sd.sample(exact(), 4, label=torch.zeros(4))
    model = sd.NetworkModel(Labelled(), sd.VPSDE(), (2,), "x0")
    assert (model.conditions.names, model.conditions.others) == (("label", "scale"), False)
    with pytest.raises(ConfigError, match="the model takes label, scale as condition; did you mean 'label'"):
        sd.sample(model, 4, lable=torch.arange(4))


def test_a_bare_cond_takes_any_name_that_is_not_near_to_an_option():
    model = sd.NetworkModel(Takes(), sd.VPSDE(), (2,), "x0")
    assert model.conditions.others
    for n, name in enumerate(("y", "context", "q")):
        x = sd.sample(model, 3, steps=2, denoise=True, **{name: torch.full((3, 1), 1.0 + n)})
        assert float(x.mean()) == (1.0 if name == "y" else 0.0)


class Options:
    @staticmethod
    def function(steps, ids, long_option_name, **cond): ...


def test_how_near_is_near():
    """Two letters, of a short option fewer than half of its own; a name that the model itself gives is always its condition."""
    anything = Conditions(others=True)
    check = lambda name, takes=anything: check_conditions(takes, {name: 1}, Options.function, dtype=torch.float32)
    for taken in ("sxxxs", "idx_", "ydz", "ab", "long_optixxxame"):
        check(taken)
    for near in ("stepz", "stxxs", "step", "id", "idz", "long_option_nxme", "lxng_xption_name"):
        with pytest.raises(ConfigError, match="did you mean"):
            check(near)
    check("stepz", Conditions(("stepz",)))
    check_conditions(Conditions(), {}, Options.function, dtype=torch.float32)
    with pytest.raises(ConfigError, match="takes y as condition"):
        check("label", Conditions(("y",)))


def test_conditions_of_a_signature():
    assert Conditions.of(lambda x, t, a, *, b=1: None, 2) == Conditions(("a", "b"), required=("a",))
    assert Conditions.of(lambda x, t, a, **rest: None, 2) == Conditions(("a",), True, ("a",))
    assert Conditions.of(lambda x, t: None, 2) == Conditions()
    assert Conditions.of(print, 5).others or not Conditions.of(print, 5).names


# ---- in whatever form they are given


class Shows(sd.ScoreModel):
    """Answers with a function of its conditions, (B, 2)."""

    def __init__(self, answer):
        super().__init__(sd.VPSDE(), (2,))
        self.answer = answer

    def denoise(self, x, t, **cond):
        return self.answer(len(x), **cond).to(x.dtype)


ROWS = torch.arange(6.0).view(3, 2)
FORMS = {
    "tensor": ({"c": ROWS}, lambda B, c: c),
    "array": ({"c": ROWS.double().numpy()}, lambda B, c: c),
    "list": ({"c": ROWS.tolist()}, lambda B, c: c),
    "dict": ({"c": {"a": ROWS[:, 0], "b": [ROWS[:, 1].numpy(), None]}}, lambda B, c: torch.stack([c["a"], c["b"][0]], 1)),
    "tuple": ({"c": (ROWS[:, 0], {"b": ROWS[:, 1]})}, lambda B, c: torch.stack([c[0], c[1]["b"]], 1)),
    "texts": ({"c": ["0 1", "2 3", "4 5"]}, lambda B, c: torch.tensor([[float(v) for v in text.split()] for text in c])),
    "label": ({"label": [0, 1, 2]}, lambda B, label: torch.stack([2 * label, 2 * label + 1], 1)),
}
SHARED = {
    "number": ({"c": 0.5}, lambda B, c: torch.full((B, 2), c)),
    "text": ({"c": "0.5"}, lambda B, c: torch.full((B, 2), float(c))),
    "class": ({"label": 3}, lambda B, label: label[:, None].expand(B, 2) - 2.5),
    "NumPy class": ({"label": np.int64(3)}, lambda B, label: label[:, None].expand(B, 2) - 2.5),
    "one row": ({"c": torch.full((1, 2), 0.5)}, lambda B, c: c),
    "scalar tensor": ({"c": torch.tensor(0.5)}, lambda B, c: c.expand(B, 2)),
}


@pytest.mark.parametrize("form", [*FORMS, *SHARED])
def test_conditions_in_any_form(form):
    """Row i goes with sample i, in batches of any size; and to the model itself."""
    cond, answer = {**FORMS, **SHARED}[form]
    model = Shows(answer)
    expected = ROWS if form in FORMS else torch.full((3, 2), 0.5)
    for size in (1, 2, 3, 5):
        assert torch.equal(sd.sample(model, 3, steps=2, denoise=True, batch_size=size, **cond), expected)
    *_, (_, _, _, x0) = sd.trajectory(model, 3, steps=2, **cond)
    assert torch.equal(x0, expected)
    assert torch.equal(model.denoise(torch.zeros(3, 2), 0.5, **cond), expected)


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        ({"c": torch.zeros(10, 2)}, ShapeError, r"condition 'c' has shape \(10, 2\) for 3 samples: expected \(3, ...\), a row each, or \(1, ...\)"),
        ({"c": {"a": [torch.zeros(4)]}}, ShapeError, r"condition \"c\['a'\]\[0\]\" has shape"),
        ({"c": ["a", "b"]}, ShapeError, "a list of 2 texts for 3 samples"),
        ({"label": "1"}, DTypeError, "label = '1', expected a class number"),
        ({"label": 1.5}, DTypeError, "label = 1.5"),
        ({"label": [0.0, 1.0, 2.0]}, DTypeError, "expected a class number"),
        ({"label": [[1], [2, 3]]}, DTypeError, "expected a class number"),
        ({"label": True}, DTypeError, "label = True"),
        ({"x": torch.zeros(3)}, ConfigError, "a condition is called 'x'"),
        ({"t": torch.zeros(3)}, ConfigError, "a condition is called 't'"),
    ],
)
def test_conditions_that_are_refused(cond, error, message):
    model = Shows(lambda B, **cond: torch.zeros(B, 2))
    with sd.count_evaluations(model) as calls, pytest.raises(error, match=message):
        sd.sample(model, 3, steps=2, **cond)
    assert calls.forward == 0

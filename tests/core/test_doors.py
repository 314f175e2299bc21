"""Doors: an argument is what its annotation says, numbers of any library are numbers, and sizes are refused before any work."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import Tensor

import scoresde as sd
from scoresde.core.checks import check_calls, check_integer, check_least, check_memory, check_positive, shown, theirs
from scoresde.core.doors import checked
from scoresde.errors import ConfigError, DTypeError, ScoreSDEError


@checked
def call(
    n: int, x: float = 1.0, flag: bool = False, name: str | None = None, t: Tensor | float = 0.5, f: Callable[[], int] | None = None,
    sizes: Sequence[int] = (), weights: tuple[tuple[float, ...], ...] = (), shift: int = 0, other: Unknown | int = 0, **more: int,  # noqa: F821
):  # fmt: skip
    return locals()


@checked
@dataclass(frozen=True)
class Point:
    """A class."""

    x: float
    n: int = 1

    def __post_init__(self):
        check_positive(self.x, "x")


INTEGERS = [4, np.int64(4), np.uint8(4), np.array(4), torch.tensor(4), torch.tensor(4, dtype=torch.uint8)]
FLOATS = [2.5, np.float32(2.5), np.float64(2.5), np.array(2.5), torch.tensor(2.5), torch.tensor(2.5, dtype=torch.bfloat16)]


@pytest.mark.parametrize("value", INTEGERS, ids=lambda v: f"{type(v).__name__} {getattr(v, 'dtype', '')}")
def test_integers_of_any_library_arrive_as_pythons(value):
    for found in (call(value)["n"], call(n=value)["n"], Point(1.0, value).n, check_integer(value, "n")):
        assert (type(found), found) == (int, 4)
    assert call(1, sizes=[value, 3])["sizes"] == (4, 3)


@pytest.mark.parametrize("value", FLOATS, ids=lambda v: f"{type(v).__name__} {getattr(v, 'dtype', '')}")
def test_floats_of_any_library_arrive_as_pythons(value):
    for found in (call(1, value)["x"], Point(value).x, check_positive(value, "x"), check_least(value, 0.0, "x")):
        assert (type(found), found) == (float, 2.5)
    assert call(1, weights=[[value], (1, 2)])["weights"] == ((2.5,), (1, 2))


@pytest.mark.parametrize("value", [True, False, np.True_, torch.tensor(True), 2.0, np.float64(2.0), torch.tensor([4]), "4", None, 1j, 10**400, -(1 << 64), math.nan])
def test_what_is_no_integer(value):
    with pytest.raises(ConfigError, match=r"n = .*, expected a positive integer, not a \w+"):
        call(value)
    with pytest.raises(ConfigError, match=r"n = .*, expected a positive integer"):
        check_integer(value, "n")
    with pytest.raises(ConfigError, match=r"shift = .*, expected an integer"):
        call(1, shift=value)


@pytest.mark.parametrize("value", [True, np.True_, "2.5", None, 1j, 10**400, [1.0], torch.ones(2), torch.ones(1)])
def test_what_is_no_number(value):
    with pytest.raises(ConfigError, match=r"x = .*, expected a number"):
        call(1, value)
    with pytest.raises(ConfigError, match=r"x = .*> 0"):
        check_positive(value, "x")


def test_nan_is_refused_where_the_range_is_known():
    with pytest.raises(ConfigError, match="x = nan, expected a positive finite number"):
        Point(math.nan)
    with pytest.raises(ConfigError, match="x = nan"):
        Point(torch.tensor(math.nan))


def test_other_kinds():
    assert call(1, flag=np.True_)["flag"] is True
    assert call(1, name=None)["name"] is None
    assert call(1, f=len)["f"] is len
    assert call(1, other="anything: the annotation is of a name that is not known")["other"][:8] == "anything"
    assert call(1, extra="passed on")["more"] == {"extra": "passed on"}
    x = torch.ones(3, 2)
    assert call(1, t=x)["t"] is x
    for given, message in (
        ({"flag": 1}, "flag = 1, expected True or False"),
        ({"name": 3}, "name = 3, expected a name"),
        ({"f": 3}, "f = 3, expected a function"),
        ({"sizes": 3}, "sizes = 3, expected a sequence"),
        ({"sizes": [1, 2.5]}, r"item 1 = 2\.5, expected a positive integer"),
        ({"weights": [1.0]}, r"item 0 = 1\.0, expected a tuple"),
        ({"t": x.to_sparse()}, r"sparse, expected a dense one, as x.to_dense\(\) gives"),
        ({"t": x.to("meta")}, "on the meta device"),
        ({"t": x + 1j}, r"t has dtype torch\.complex64: complex, expected real numbers"),
        ({"x": dict}, "x = dict is a class, expected an instance of a number"),
    ):
        with pytest.raises(ScoreSDEError, match=message):
            call(1, **given)


def test_a_door_is_not_seen():
    """Signature, name, docstring and the errors of Python for a wrong call are those of what is behind it."""
    assert list(inspect.signature(call).parameters)[:3] == ["n", "x", "flag"]
    assert call.__name__ == "call"
    assert list(inspect.signature(Point).parameters) == ["x", "n"]
    assert [f.name for f in fields(Point)] == ["x", "n"]
    assert repr(Point(2, 3)) == "Point(x=2, n=3)"  # an int stays one: what was written is what is shown
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        call()
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        Point(1.0, y=2)


def test_numbers_of_numpy_and_torch_do_what_pythons_do():
    """Sweeps over np.arange and np.logspace: samples, solvers, SDEs, networks and recipes are the same, and can be written."""
    model = sd.ExactModel(sd.data.two_moons(), sd.VPSDE())
    x = sd.sample(model, 4, steps=6, solver=sd.UniPC(3), batch_size=2, seed=3)
    n, steps, order, size, seed = (np.array([4, 6, 3, 2, 3], dtype=np.int32))
    assert torch.equal(sd.sample(model, n, steps=steps, solver=sd.UniPC(order), batch_size=size, seed=seed), x)
    assert torch.equal(sd.sample(model, torch.tensor(4), steps=torch.tensor(6), solver=sd.UniPC(torch.tensor(3)), batch_size=size, seed=3), x)
    assert sd.DDIM(eta=np.float32(0.5)) == sd.DDIM(eta=0.5)
    assert repr(sd.VESDE(sigma_max=np.float64(20.0))) == repr(sd.VESDE(sigma_max=20.0))
    assert sd.VPSDE(beta_max=torch.tensor(10.0)) == sd.VPSDE(beta_max=10.0)
    assert sd.Transform(np.int64(4)) == sd.Transform(4)
    net = sd.nets.MLP(np.int64(2), width=np.int64(8), depth=np.int32(1), classes=np.int64(3), dropout=np.float32(0.5))
    assert json.loads(json.dumps(net.config)) == sd.nets.MLP(2, width=8, depth=1, classes=3, dropout=0.5).config
    images = sd.nets.UNet(np.int64(1), width=np.int64(8), multipliers=(np.int64(1), 2), blocks=np.int8(1), attention=(np.int64(-1),))
    assert json.loads(json.dumps(images.config)) == sd.nets.UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(-1,)).config
    log_p = sd.log_prob(model, x, steps=np.int64(4), probes=np.int64(2), check=np.int64(0))
    assert torch.equal(log_p.log_prob, sd.log_prob(model, x, steps=4, probes=2).log_prob)
    recipe = sd.Recipe(sd.UniPC(np.int64(2)), np.array([1.0, 0.5, 1e-3]), np.int64(2))
    assert sd.Recipe.from_json(recipe.to_json()) == recipe
    for wrong in (True, 4.0, np.float64(4.0)):
        with pytest.raises(ConfigError, match=r"n = .*expected a positive integer"):
            sd.sample(model, wrong)


# ---- sizes
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda m: sd.sample(m, 10**12), r"n = 1000000000000 samples of shape \(2,\) would take .* GiB of memory, expected at most the .* GiB"),
        (lambda m: sd.sample(m, 2, steps=10**9), r"steps = 1e\+09, one after another: expected at most 1e\+07"),
        (lambda m: sd.sample(m, 2, batch_size=10**12), r"batch_size = 1000000000000 samples of shape \(2,\) would take"),
        (lambda m: sd.log_prob(m, torch.zeros(2, 2), probes=10**7), "probes = 10000000, expected an integer of at most 10000"),
        (lambda m: sd.tune(m, nfe=10**9), r"nfe = 1e\+09"),
        (lambda m: sd.data.toy("moons", n=10**13), "n = 10000000000000 points would take"),
        (lambda m: sd.nets.MLP(2, width=10**7), "width = 10000000, expected an integer of at most 100000"),
        (lambda m: sd.nets.MLP(2, width=10**5, depth=10**5), r"MLP\(features=2, width=100000, depth=100000\) would take"),
        (lambda m: sd.nets.UNet(blocks=10**5, width=10**5), r"UNet\(width=100000, multipliers=\(1, 2\), blocks=100000\) would take"),
        (lambda m: sd.fit(sd.NetworkModel(sd.nets.MLP(2, 4, 1), sd.VPSDE(), (2,)), torch.zeros(4, 2) + torch.arange(4.0)[:, None], steps=1, batch_size=10**12), "batch_size = "),
        (lambda m: sd.metrics.sliced_wasserstein(torch.zeros(4, 2), torch.ones(4, 2), projections=10**12), "projections = 1000000000000"),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_with_what_they_would_take(work, message):
    model = sd.ExactModel(sd.data.two_moons(), sd.VPSDE())
    with pytest.raises(ConfigError, match=message):
        work(model)


def test_sizes_that_are_sensible_pass():
    check_memory(1 << 20, "a megabyte")
    assert check_calls(10**6, "steps") == 10**6
    with pytest.raises(ConfigError, match=r"it would take 9\.31e\+08 GiB of memory"):
        check_memory(1e18, "it")


# ---- users' functions
def test_a_users_function_is_named(tmp_path):
    model = sd.ExactModel(sd.data.two_moons(), sd.VPSDE())
    net = sd.NetworkModel(sd.nets.MLP(2, 4, 1), sd.VPSDE(), (2,))
    x = torch.zeros(3, 2)

    def broken(*a):
        raise KeyError("mine")

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return broken() if i == 3 else torch.zeros(2)

    quiet = {"steps": 1, "batch_size": 2, "progress": False}
    for work, message in (
        (lambda: sd.log_prob(model, x, steps=2, prior=broken), "the prior that was given raised KeyError: 'mine'"),
        (lambda: sd.log_prob(model, x, steps=2, prior=lambda z: 0.5), r"the prior that was given answered a float, expected log p"),
        (lambda: sd.log_prob(model, x, steps=2, prior=lambda z: torch.full((len(z),), math.nan)), "the prior that was given answered NaN for 3 of 3"),
        (lambda: sd.fit(net, x, weighting=broken, **quiet), "your function weighting raised KeyError"),
        (lambda: sd.fit(net, x, weighting=lambda sde, t: t.sum(), **quiet), r"your function weighting gave \(\(\)\), expected a tensor"),
        (lambda: sd.fit(net, x, times=lambda sde, u: u, **quiet), "your function times gave .*, expected two tensors"),
        (lambda: sd.sample(model, 2, steps=3, solver=sd.SASolver(tau=broken)), "your function tau raised KeyError"),
        (lambda: sd.metrics.mmd(x + 1.0 * torch.randn(3, 2), x, kernel=broken), "your kernel raised KeyError"),
        (lambda: sd.metrics.bootstrap(broken, x, resamples=2), "your statistic raised KeyError"),
        (lambda: sd.NetworkModel(net.net, sd.VPSDE(), (2,), broken), "your parameterization raised KeyError"),
        (lambda: sd.data.from_dataset(Items()), "item 3 of dataset raised KeyError: 'mine'"),
    ):
        with warnings.catch_warnings(), pytest.raises(ScoreSDEError, match=message) as caught:
            warnings.simplefilter("ignore")
            work()
        assert "raised" not in message or isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DTypeError), theirs("yours"):
        raise DTypeError("of the family: it stays what it is")


def test_what_is_shown_is_a_line():
    class Odd:
        def __repr__(self):
            raise ValueError

    assert shown(3) == "3"
    assert len(shown("x" * 1000)) < 120
    assert shown(Odd()) == "a Odd"
    assert shown(1 << 20_000) == "an int of 20001 bits"

"""Networks inside torch.compile and DataParallel are saved as what they are: loaded plain, wrapped again, and gone on with either way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training.runs import MOONS, QUICK, weights

import scoresde as sd


def compiled(net):
    return torch.compile(net, backend="aot_eager")


WRAPS = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "both": lambda net: compiled(nn.DataParallel(net)),
    "in place": lambda net: net.compile(backend="aot_eager") or net,
}


class Around(nn.Module):
    """A network of one's own with a compiled part, and with parts that are called module and _orig_mod."""

    def __init__(self, wrap=lambda net: net):
        super().__init__()
        self.module, self._orig_mod = nn.Linear(3, 4), wrap(nn.Linear(4, 2))

    def forward(self, x, c_noise):
        return self._orig_mod(self.module(torch.cat([x, c_noise[:, None]], 1)).sin())


def model(wrap=lambda net: net, seed=0):
    torch.manual_seed(seed)
    return sd.NetworkModel(wrap(sd.nets.MLP(2, 16, 1)), sd.VPSDE(), (2,))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_saved_wrapped_and_loaded_plain(wrap, tmp_path):
    wrapped = model(wrap)
    sd.save(wrapped, tmp_path)
    loaded = sd.load(tmp_path)
    assert type(loaded.net) is sd.nets.MLP
    assert list(loaded.state_dict()) == list(wrapped.state_dict()) == list(model().state_dict())
    assert torch.equal(sd.sample(loaded, 3, steps=3, batch_size=3), sd.sample(wrapped, 3, steps=3, batch_size=3))
    other = sd.load(tmp_path, net=wrap(sd.nets.MLP(2, 16, 1)))
    assert torch.equal(weights(other), weights(wrapped))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_runs_go_on_wrapped_or_plain(wrap, tmp_path):
    def fit(model, steps, **arguments):
        sd.fit(model, MOONS, steps=steps, lr=1e-2, warmup=2, schedule="constant", **QUICK, **arguments)
        return weights(model)

    whole = fit(model(), 20)
    for first, second in ((wrap, lambda net: net), (lambda net: net, wrap), (wrap, wrap)):
        fit(model(first), 10, out=tmp_path, overwrite=True)
        found = fit(model(second, seed=1), 20, out=tmp_path, resume=True)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_parts_that_are_called_like_wrappers_keep_their_names(tmp_path):
    for wrap in (lambda net: net, compiled):
        net = Around(wrap)
        found = sd.NetworkModel(net, sd.VPSDE(), (2,))
        names = {"net.module.weight", "net.module.bias", "net._orig_mod.weight", "net._orig_mod.bias"}
        assert set(found.state_dict()) == names
        sd.save(found, tmp_path)
        assert torch.equal(weights(sd.load(tmp_path, net=Around())), weights(found))


def test_a_recipe_is_for_the_network_however_it_is_wrapped():
    plain, wrapped = model(), model(compiled)
    assert sd.core.digest.of_model(plain) == sd.core.digest.of_model(wrapped)

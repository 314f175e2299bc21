"""Networks inside torch.compile and DataParallel: their derivatives are those of the network itself."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import scoresde as sd
from scoresde.models.plain import eagerly, is_compiled, plain


def compiled(module):
    return torch.compile(module, backend="aot_eager")


class Around(nn.Module):
    """A user's own network around a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, c_noise):
        return self.part(x, c_noise) + 0.1 * x.sin()


def in_place(net):
    net.compile(backend="aot_eager")
    return net


WRAPPED = {
    "compile": lambda net: compiled(net),
    "DataParallel": nn.DataParallel,
    "compile of DataParallel": lambda net: compiled(nn.DataParallel(net)),
    "DataParallel of compile": lambda net: nn.DataParallel(compiled(net)),
}


def small():
    torch.manual_seed(0)
    net = sd.nets.MLP(2, width=8, depth=1).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net


def model_of(net):
    model = sd.NetworkModel(net, sd.VPSDE(), (2,))
    model.reference = sd.GaussianReference(torch.zeros(2), torch.ones(()), "isotropic")
    return model


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_plain_takes_everything_off(wrap):
    net = small()
    assert plain(wrap(net)) is net
    assert plain(net) is net
    inner = Around(nn.DataParallel(net))
    assert plain(inner) is inner  # the part of a network is its own business


X = torch.tensor([[0.3, -0.4], [1.0, 0.2], [-0.7, 0.9]], dtype=torch.float64)


def answers(model):
    """Every answer that takes derivatives of the network."""
    short = {"steps": 4}
    found = {
        "exact": sd.log_prob(model, X, divergence="exact", **short).log_prob,
        "one probe": sd.log_prob(model, X, divergence="hutchinson", **short).log_prob,
        "probes": sd.log_prob(model, X, divergence="hutchinson", probes=3, **short).log_prob,
        "hutch++": sd.log_prob(model, X, divergence="hutch++", probes=3, **short).log_prob,
        "while sampling": sd.sample(model, 3, return_log_prob=True, **short)[1],
    }
    for kind in ("exact", "hutchinson"):
        found[f"gradient, {kind}"] = sd.log_prob_gradient(model, X, divergence=kind, **short)[1]
    return found


@pytest.mark.parametrize("donated", [True, False], ids=["donated buffers", "none donated"])
@pytest.mark.parametrize("wrap", [*WRAPPED.values(), lambda n: Around(compiled(n)), in_place], ids=[*WRAPPED, "a part", "in place"])
def test_derivatives_are_those_of_the_network_itself(wrap, donated):
    import torch._functorch.config as functorch

    torch._dynamo.reset()
    net, wrapped = small(), wrap(small())
    truth = answers(model_of(Around(net) if isinstance(wrapped, Around) else net))
    with functorch.patch(donated_buffer=donated):  # False: what torch's own message advises, and wrong without a word
        found = answers(model_of(wrapped))
    for name, value in found.items():
        assert torch.allclose(value, truth[name], rtol=1e-9, atol=1e-9), name


def test_without_derivatives_the_compiled_network_is_called():
    calls = []

    def backend(graph, inputs):
        def run(*arguments):
            calls.append(1)
            return graph.forward(*arguments)

        return run

    torch._dynamo.reset()
    model = model_of(torch.compile(small(), backend=backend))
    sd.sample(model, 2, steps=3)
    assert len(calls) == 3
    sd.log_prob(model, X, steps=3)
    assert len(calls) == 3


def test_threads_leave_the_compiler_as_it_was():
    import torch._dynamo.eval_frame as frame

    net, both, inside = compiled(small()), threading.Barrier(2), []

    def first():
        with eagerly(net):
            both.wait()  # the second one is inside
            both.wait()
        both.wait()  # the first one is outside, the second one still inside

    def second():
        with eagerly(net):
            both.wait()
            both.wait()
            both.wait()
            inside.append(frame._stance.stance)

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == ["force_eager"]
    assert frame._stance.stance == "default"
    assert is_compiled(net)


def test_fine_tuning_a_compiled_network_is_that_of_the_network():
    torch._dynamo.reset()
    data = sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)).sample(32).double()
    after = []
    for net in (small(), compiled(small())):
        model = model_of(net)
        sd.fine_tune(model, data, steps=2, batch_size=8, solver_steps=4, anchor=0.0, progress=False)
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*after, rtol=1e-9, atol=1e-12)

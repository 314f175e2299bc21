"""The settings of a user's process: default device and dtype, autocast, threads and deterministic mode change no result."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import scoresde as sd

PACKAGE = Path(sd.__file__).parent

FACTORIES = {"arange", "zeros", "ones", "empty", "full", "tensor", "linspace", "as_tensor", "logspace", "eye", "rand", "randn", "randperm"}

PARAMETERS = {"nets/embedding.py", "likelihood/variational.py"}  # buffers and parameters of networks go where a user puts networks


def exact(dtype=torch.float64):
    return sd.ExactModel(sd.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=dtype), torch.tensor([0.3, 0.6], dtype=dtype)), sd.VPSDE())


def network():
    torch.manual_seed(0)
    model = sd.NetworkModel(sd.nets.MLP(2, 16, 1), sd.VPSDE(), (2,))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.reference = exact().reference
    return model


X = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-1.0, 0.1]])
LEVELS = torch.arange(12).view(6, 2) % 4
TRANSFORM = sd.data.Transform(4)


def fitted(device="cpu"):
    model = network()
    sd.fit(model, sd.data.toy("moons", 64), steps=3, batch_size=8, progress=False)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


WORK = {
    "sample": lambda: sd.sample(network(), 3, steps=4),
    "exact": lambda: sd.sample(exact(), 3, steps=4),
    "return_log_prob": lambda: sd.sample(exact(), 3, steps=4, return_log_prob=True)[1],
    "log_prob": lambda: sd.log_prob(network(), X, steps=4, check=2).log_prob,
    "bits_per_dim": lambda: sd.bits_per_dim(network(), LEVELS, TRANSFORM, steps=4, check=2).per_sample,
    "elbo": lambda: sd.elbo(network(), LEVELS, TRANSFORM).per_sample,
    "encode": lambda: sd.encode(network(), X),
    "fit": fitted,
    "tune": lambda: torch.tensor(sd.tune(exact(), 3, paths=16, iterations=2, progress=False).times, device="cpu"),
    "fit_reference": lambda: sd.fit_reference(network(), 32).variance,
    "frontier": lambda: torch.tensor([r.metrics["sliced_wasserstein"].value for r in frontier().rows], device="cpu"),
    "toys": lambda: torch.cat([sd.data.toy(name, 16).train for name in ("moons", "rings", "pinwheel")]),
    "check_sde": lambda: torch.tensor([len(sd.check_sde(sd.VPSDE()))], device="cpu"),
}
SOLVERS = [sd.Euler(), sd.DEIS(), sd.UniPC(), sd.DPMSolverPP(2, singlestep=True), sd.SASolver(), sd.StochasticExponential(), sd.EDMStochastic()]
SOLVERS += [sd.Restart(), sd.Picard(), sd.AdaptiveODE(), sd.AdaptiveSDE(), sd.TorchDiffEq("rk4"), sd.TorchSDE(), sd.PredictorCorrector(), sd.RK4()]


def frontier():
    data = torch.linspace(-1, 1, 80, dtype=torch.float64, device="cpu").sin().view(40, 2)
    return sd.frontier(exact(), data, solvers=[sd.Heun()], nfe=[4], samples=20, paths=4, progress=False)


@pytest.mark.parametrize("path", sorted(p for p in PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tensors_are_made_on_a_device_that_is_named(path):
    """Or ``torch.set_default_device("cuda")``, a common first line, mixes devices."""
    if str(path.relative_to(PACKAGE)) in PARAMETERS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            made = node.func.value.id == "torch" and node.func.attr in FACTORIES
            assert not made or any(k.arg == "device" for k in node.keywords), f"{path.name}:{node.lineno}: torch.{node.func.attr} without a device"


@pytest.fixture
def default_device():
    yield torch.set_default_device
    torch.set_default_device(None)


@pytest.mark.parametrize("name", WORK)
def test_another_default_device(name, default_device, monkeypatch):
    """Emulated: what is made on the default device, meta, has no numbers. Models and data are on the CPU."""
    expected = WORK[name]()
    real = torch.nn.Module.__init__

    def on_the_cpu(self, *args, **kwargs):
        real(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__init__", on_the_cpu)
    models = {"network": network(), "exact": exact()}
    monkeypatch.setitem(globals(), "network", lambda: models["network"])
    monkeypatch.setitem(globals(), "exact", lambda *a: models["exact"])
    default_device("meta")
    found = WORK[name]()
    assert found.device.type == "cpu"
    assert torch.equal(found, expected) or torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_another_default_device_for_solvers(solver, default_device):
    model = network()
    steps = {} if isinstance(solver, (sd.AdaptiveODE, sd.AdaptiveSDE)) else {"steps": 4}
    expected = sd.sample(model, 3, solver=solver, **steps)
    default_device("meta")
    assert torch.equal(sd.sample(model, 3, solver=solver, **steps), expected)


@pytest.mark.parametrize("name", [name for name in WORK if name not in ("toys", "fit")])
def test_another_default_dtype(name, monkeypatch):
    expected = WORK[name]()
    models = {"network": network(), "exact": exact()}
    monkeypatch.setitem(globals(), "network", lambda: models["network"])
    monkeypatch.setitem(globals(), "exact", lambda *a: models["exact"])
    torch.set_default_dtype(torch.float64)
    try:
        found = WORK[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == expected.dtype or not found.is_floating_point() or name in ("tune", "frontier", "check_sde")
    assert torch.allclose(found.double(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["full", "dct", "diagonal"])
def test_autocast_is_for_networks(kind):
    """Matrix products of the library's own are in full precision: samples of an exact model are the same to the bit."""
    shape = (1, 8, 8)
    data = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    model = sd.ExactModel(sd.GaussianMixture.from_data(data[:20], 0.3), sd.VPSDE())
    model.reference = sd.GaussianReference.fit(data, kind)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    expected = sd.sample(model, x_init=x, steps=8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(sd.sample(model, x_init=x, steps=8), expected)
            assert torch.equal(sd.decode(model, sd.encode(model, expected)), sd.decode(model, sd.encode(model, expected)))


def test_deterministic_mode_and_threads():
    expected = {name: WORK[name]() for name in ("sample", "log_prob", "tune", "frontier")}
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name, value in expected.items():
            assert torch.allclose(WORK[name](), value, rtol=1e-5, atol=1e-6), name
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)

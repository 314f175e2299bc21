"""Levels and model space: the round trip, the offset of bits per dimension, and dequantization as a function of its key."""

from __future__ import annotations

import math

import pytest
import torch

import scoresde as sd
from scoresde.errors import ConfigError, DTypeError, ScoreSDEError, ShapeError

CASES = [(256, -1.0, 1.0), (256, 0.0, 1.0), (17, -1.0, 1.0), (2, -1.0, 1.0), (3, -0.3, 2.9), (65536, -1.0, 1.0), (1000, 5.0, 6.0)]


def levels_of(K, n=64, shape=(1, 8, 8), seed=0):
    return torch.randint(0, K, (n, *shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("K", "low", "high"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(K, low, high, dtype):
    transform = sd.Transform(K, low, high)
    k = levels_of(K, 256)
    x = transform.dequantize(k, dtype=dtype)
    assert x.dtype == dtype
    assert float(x.min()) >= low
    assert float(x.max()) < high
    assert torch.equal(transform.quantize(x), k)
    assert torch.equal(transform.quantize(transform.center(k, dtype)), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("K", "low", "high"), CASES)
def test_round_trip_at_the_edges_of_bins(K, low, high, dtype, monkeypatch):
    """u = 0 and u = 1 - 2^-24, where float32 rounds into the bin next door."""
    transform = sd.Transform(K, low, high)
    k = torch.arange(K)[:, None]
    for u in (0.0, 2.0**-24, 1 - 2.0**-24):
        monkeypatch.setattr(sd.noise.Noise, "uniform", lambda self, *_, u=u: torch.full((K, 1), u, dtype=torch.float64))
        x = transform.dequantize(k, dtype=dtype)
        assert torch.equal(transform.quantize(x), k), u
        assert float((x.double() - (low + (k.double() + u) * (high - low) / K)).abs().max()) < 3e-7 * max(abs(low), abs(high))


def test_levels_of_every_integer_dtype():
    transform = sd.Transform(200)
    k = levels_of(200)
    x = transform.dequantize(k)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(transform.dequantize(k.to(dtype)), x)


def test_uniform_on_256_levels_is_exactly_8_bits():
    """A flat density 1/2 on [-1, 1] is log p = -D log 2 nats: bits per dimension of its levels are log2 256, to the bit."""
    for K, low, high in [(256, -1.0, 1.0), (256, 0.0, 1.0), (17, -1.0, 1.0), (1024, -3.0, 5.0)]:
        transform, D = sd.Transform(K, low, high), 64
        log_p = -D * math.log(high - low)
        bits = -log_p / (D * math.log(2)) + transform.bits_offset
        assert bits == pytest.approx(math.log2(K), abs=1e-14)
    assert sd.Transform(256).bits_offset == 7.0
    assert sd.Transform(256, 0.0, 1.0).bits_offset == 8.0


def test_offset_and_log_det_are_the_same_thing():
    for K, low, high in CASES:
        transform = sd.Transform(K, low, high)
        assert transform.bin_width == pytest.approx((high - low) / K, rel=1e-15)
        # bits of the levels = -(log p(x) + log |det dx/dk|)/(D ln 2)
        assert transform.bits_offset == pytest.approx(-transform.log_det(12) / (12 * math.log(2)), rel=1e-12)


def test_log_det_by_autograd():
    """The Jacobian of k + u -> x, measured."""
    transform = sd.Transform(17, -1.0, 1.0)
    a, b = transform.center(torch.tensor([[3]]), torch.float64), transform.center(torch.tensor([[4]]), torch.float64)
    assert math.log(float(b - a)) * 5 == pytest.approx(transform.log_det(5), rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_bits_per_dim_does_not_depend_on_the_range(low, high):
    """The same data and the same density seen through another affine map: the same bits, to 1e-6."""
    transform, reference = sd.Transform(16, low, high), sd.Transform(16)
    k = levels_of(16, 32, (4,))
    scale, middle = (high - low) / 2, (high + low) / 2

    def bits(transform, scale, middle):
        target = sd.GaussianMixture(torch.full((1, 4), middle, dtype=torch.float64), torch.full((1,), 0.5 * scale).double())
        log_p = target.log_prob(transform.dequantize(k, dtype=torch.float64))
        return -log_p / (4 * math.log(2)) + transform.bits_offset

    assert torch.allclose(bits(transform, scale, middle), bits(reference, 1.0, 0.0), rtol=1e-6, atol=0)


def test_dequantization_is_a_function_of_seed_id_and_draw():
    transform, k = sd.Transform(256), levels_of(256, 20, (3,))
    x = transform.dequantize(k, seed=4)
    assert torch.equal(x, transform.dequantize(k, seed=4))
    assert torch.equal(x[7:9], transform.dequantize(k[7:9], seed=4, ids=[7, 8]))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x[order], transform.dequantize(k[order], seed=4, ids=order))
    assert torch.equal(x.double().float(), transform.dequantize(k, seed=4, dtype=torch.float64).float())
    others = [transform.dequantize(k, seed=5), transform.dequantize(k, seed=4, draw=1)]
    others.append(transform.dequantize(k, seed=4, ids=range(20, 40)))
    assert len(torch.unique(torch.stack([x, *others]))) == 4 * x.numel()


def test_dequantization_is_uniform_in_the_bin():
    """Mean 1/2 and variance 1/12 of u; N = 200,000, z below 5: a bias of 0.2 % of a bin would be seen."""
    transform = sd.Transform(17)
    k = levels_of(17, 50_000, (4,))
    u = (transform.dequantize(k, dtype=torch.float64) + 1) / transform.bin_width - k
    n = u.numel()
    assert -1e-12 < float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1 + 1e-12
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(float(u.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / n)


def test_quantize_takes_the_nearest_level_outside():
    transform = sd.Transform(4)
    x = torch.tensor([[-7.0, -1.0, -0.5, -0.01, 0.0, 0.49, 0.5, 1.0, 9.0]])
    assert transform.quantize(x).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 3]]
    assert transform.quantize(x).dtype == torch.int64


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        (torch.zeros(2, 3), DTypeError, "integers 0..255"),
        (torch.zeros(2, 3, dtype=torch.bool), DTypeError, "bool"),
        (torch.zeros(2, 3, dtype=torch.complex64), DTypeError, "complex"),
        ([[1, 2]], DTypeError, "list"),
        (torch.zeros(3, dtype=torch.long), ShapeError, r"\(3,\)"),
        (torch.zeros(0, 3, dtype=torch.long), ShapeError, "empty batch"),
        (torch.tensor([[0, 256]]), ConfigError, r"0 to 256.*Transform\(levels="),
        (torch.tensor([[-1, 0]]), ConfigError, "-1 to 0"),
    ],
)
def test_bad_levels(levels, error, message):
    for method in (sd.Transform(256).dequantize, sd.Transform(256).center):
        with pytest.raises(error, match=message):
            method(levels)


@pytest.mark.parametrize(
    "arguments", [(1,), (0,), (2.5,), (True,), (256, 1.0, 1.0), (256, 1.0, -1.0), (256, math.nan, 1.0), (256, 0.0, math.inf)]
)
def test_bad_transforms(arguments):
    with pytest.raises(ConfigError, match=r"levels|low"):
        sd.Transform(*arguments)


def test_bad_keys():
    k = torch.zeros(2, 3, dtype=torch.long)
    for arguments in ({"seed": -1}, {"ids": [0]}, {"ids": [0.5, 1]}, {"seed": None}):
        with pytest.raises(ScoreSDEError, match=r"seed|ids"):
            sd.Transform(4).dequantize(k, **arguments)


SDES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.CosineSDE(), sd.EDMSDE(), sd.RectifiedFlow()]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("K", [2, 17, 256, 4096])
def test_an_adapted_sde_keeps_its_noise_within_a_bin(sde, K):
    transform = sd.Transform(levels=K, low=-0.5, high=1.0)
    adapted = transform.adapt(sde, tails=4.0)
    first = adapted.levels([adapted.t_min])[0]
    assert first.sigma / first.alpha == pytest.approx(1.5 / K / 8, rel=5e-4)  # VE's sigma(t_min) is sigma_min to 1e-4
    assert adapted.t_end is None or adapted.t_end >= adapted.t_min
    assert type(adapted) is type(sde)
    assert adapted.t_max == sde.t_max
    middle = 0.4 * sde.t_max
    if "sigma_min" not in vars(sde):
        assert adapted.levels([middle]) == sde.levels([middle])  # the process is the same


def test_adapting_what_cannot_be():
    class Own(sd.SDE):
        t_min, t_max = 1e-3, 1.0

        def alpha(self, t):
            return 1 - t / 2

        def sigma(self, t):
            return t

    with pytest.raises(ConfigError, match="no field t_min or sigma_min"):
        sd.Transform(levels=17).adapt(Own())
    with pytest.raises(ConfigError, match="tails"):
        sd.Transform(levels=17).adapt(sd.VPSDE(), tails=0)


def test_normal_dequantization_trains_on_the_middles_of_the_bins():
    levels = torch.tensor([[0, 3], [1, 2]])
    transform = sd.Transform(levels=4, dequantization="normal")
    assert transform == sd.Transform(levels=4)  # the data are the same
    assert repr(sd.Transform(levels=4)) == "Transform(levels=4, low=-1.0, high=1.0)"  # hashes are made of it
    assert eval(repr(transform), {"Transform": sd.Transform}).dequantization == "normal"
    expected = torch.tensor([[-0.75, 0.75], [-0.25, 0.25]])
    assert torch.equal(transform.training(levels), expected)
    uniform = sd.Transform(levels=4)
    assert torch.equal(uniform.training(levels, 3, [5, 6], 2), uniform.dequantize(levels, 3, [5, 6], 2))
    assert not torch.equal(uniform.training(levels), expected)
    with pytest.raises(ConfigError, match="'uniform' or 'normal'"):
        sd.Transform(levels=4, dequantization="gaussian")

"""Sines and cosines beside x."""

from __future__ import annotations

import math

import torch

from scoresde import nets


def test_waves_are_cosines_and_sines_of_each_channel_that_fade_in_noise():
    x = torch.tensor([[[0.25, 0.5]], [[1.0, -0.125]]])  # (B, C = 1, 2)
    clean = torch.full((2,), -5.0)  # s = e^-20
    expected = torch.tensor(
        [
            [[0.25, 0.5], [-1.0, 1.0], [0.0, 0.0]],
            [[1.0, -0.125], [1.0, 0.0], [0.0, -1.0]],
        ]
    )
    torch.testing.assert_close(nets.with_waves(x, clean, (2.0,)), expected, atol=1e-6, rtol=0)
    assert nets.with_waves(x, clean, ()) is x
    two = nets.with_waves(torch.rand(3, 2, 4, 4), torch.full((3,), -5.0), (1.0, 2.0))
    assert two.shape == (3, 10, 4, 4)
    torch.testing.assert_close(two[:, 2:4].square() + two[:, 4:6].square(), torch.ones(3, 2, 4, 4))


def test_a_wave_fades_as_noise_averages_it():
    """E cos(2 pi f (x + s e)) = exp(-(2 pi f s)^2/2) cos(2 pi f x), s = exp(4 c_noise), within four standard errors."""
    g = torch.Generator().manual_seed(0)
    n, x, f = 100_000, 0.3, 1.5
    for s in (0.02, 0.1, 0.3, 3.0, 1e30):
        noisy = 2 * math.pi * f * (x + min(s, 1e3) * torch.randn(n, dtype=torch.float64, generator=g))
        c_noise = torch.tensor([math.log(s) / 4], dtype=torch.float64)
        _, cos, sin = nets.with_waves(torch.tensor([[x]], dtype=torch.float64), c_noise, (f,))[0]
        for wave, seen in ((cos, noisy.cos()), (sin, noisy.sin())):
            assert abs(float(wave - seen.mean())) < 4 * float(seen.std()) / math.sqrt(n)


def test_a_wave_a_level_tells_where_in_a_level_a_value_is():
    """What they are for: the noise on one of 256 levels from a value, which a network cannot resolve without them."""
    g = torch.Generator().manual_seed(0)
    left = {}
    for frequencies in ((), (128,)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nets.MLP(4, 64, 2, frequencies=frequencies)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(300):
            level, noise = torch.randint(256, (512, 4), generator=g), torch.randn(512, 4, generator=g)
            x = (level + 0.5) / 128 - 1 + noise / (128 * 7)
            loss = (net(x, torch.full((512,), math.log(1 / 896) / 4)) - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[frequencies] = float(loss.detach())
    assert left[(128,)] < 0.05
    assert left[()] > 0.8


def test_a_network_without_waves_has_the_config_of_before():
    assert "frequencies" not in nets.UNet().config
    assert nets.MLP(2, frequencies=3).config["frequencies"] == [3.0]

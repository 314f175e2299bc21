"""Views: a model in whose place something else answers says what it changes, and all that is derived follows."""

from __future__ import annotations

import pytest
import torch
from problems import two_modes

import scoresde as sd
from scoresde.models.views import Conditioned, View


class Shifted(View):
    """Every denoised sample is moved by one."""

    def seen(self, x, t):
        x0, _ = super().seen(x, t)
        level = self.sde.level(t, x)
        return x0 + 1, (x - level.alpha * (x0 + 1)) / level.sigma


def test_all_answers_follow_from_what_is_seen():
    """eps, score, velocity and v of a view against their definitions from its x0; time as a number, and for each sample."""
    model = sd.ExactModel(two_modes(), sd.SubVPSDE())
    view = Shifted(model)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.3, torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)):
        level = model.sde.level(t, x)
        x0 = model.denoise(x, t) + 1
        eps = (x - level.alpha * x0) / level.sigma
        assert torch.allclose(view.denoise(x, t), x0, rtol=1e-12)
        assert torch.allclose(view.eps(x, t), eps, rtol=1e-12)
        assert torch.allclose(view.score(x, t), -eps / level.sigma, rtol=1e-12)
        assert torch.allclose(view.velocity(x, t), level.alpha_dot * x0 + level.sigma_dot * eps, rtol=1e-12)
    c = (level.alpha**2 + level.sigma**2).sqrt()
    x0 = model.denoise(c * x, t) + 1
    eps = (c * x - level.alpha * x0) / level.sigma
    assert torch.allclose(view.angular_velocity(x, t), level.alpha / c * eps - level.sigma / c * x0, rtol=1e-12)


def test_a_solver_sees_the_view():
    """DDIM through a view that is always at one point goes there."""

    class Fixed(View):
        def seen(self, x, t):
            level = self.sde.level(t, x)
            x0 = torch.full_like(x, 3.0)
            return x0, (x - level.alpha * x0) / level.sigma

    model = sd.ExactModel(two_modes(), sd.VPSDE())
    t, s = model.sde.levels([0.7, 1e-5])
    y, _ = sd.DDIM().step(Fixed(model), torch.ones(2, 2, dtype=torch.float64), t, s, None, None)
    assert torch.allclose(y, torch.full_like(y, 3.0), atol=2e-3)


def test_calls_are_counted_by_the_model_behind():
    model = sd.ExactModel(two_modes(), sd.VPSDE())
    x = torch.zeros(3, 2, dtype=torch.float64)
    with sd.count_evaluations(model) as calls:
        view = Shifted(Shifted(model))
        view.score(x, 0.5)
        view.count_vjp(4)
        view.count_samples([7, 9], torch.tensor([2, 5]))
    assert (calls.forward, calls.vjp, calls.rows, calls.per_sample) == (1, 4, 3, {7: 2, 9: 5})


def test_conditions_are_bound_once():
    class Net(torch.nn.Module):
        def forward(self, x, c_noise, gain):
            return gain * torch.ones_like(x)

    model = sd.NetworkModel(Net(), sd.VPSDE(), (2,), "x0")
    bound = Conditioned(model, {"gain": torch.tensor([[1.0], [2.0]])})
    assert bound.denoise(torch.zeros(2, 2), 0.5).tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert bound.repeated(3, 2).denoise(torch.zeros(6, 2), 0.5)[:, 0].tolist() == [1.0, 2.0] * 3  # one copy of all after the other
    with pytest.raises(sd.errors.ConfigError, match="gain given to a model whose conditions are bound"):
        bound.denoise(torch.zeros(2, 2), 0.5, gain=1.0)

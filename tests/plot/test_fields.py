"""Densities and vector fields of the plane: arrows and colours are what the model says."""

import numpy as np
import pytest
import torch

import scoresde as sd
from scoresde import plot
from scoresde.errors import ConfigError, ShapeError, TimeRangeError
from scoresde.models.base import ScoreModel

torch.set_num_threads(1)


@pytest.mark.parametrize("field", ["score", "velocity"])
def test_arrows_are_the_field(exact, field):
    figure = plot.vector_field(exact, 0.3, (-2, 2), field=field, arrows=9, resolution=10)
    quiver = next(c for c in figure.axes[0].collections if hasattr(c, "U"))
    points = torch.from_numpy(np.asarray(quiver.get_offsets()))
    expected = getattr(exact, field)(points, 0.3).double().numpy()
    drawn = np.stack([quiver.U, quiver.V], 1)
    cosine = (drawn * expected).sum(1) / np.linalg.norm(drawn, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-9
    short = np.linalg.norm(expected, axis=1) < np.quantile(np.linalg.norm(expected, axis=1), 0.9)
    assert np.allclose(drawn[short], expected[short])  # only the longest are cut
    assert len(points) == 81


def test_the_background_is_the_exact_log_density(exact):
    figure = plot.vector_field(exact, [0.1, 0.5], (-2, 2, -1, 3), resolution=8)
    centres = torch.arange(8, dtype=torch.float64) + 0.5
    point = torch.tensor([[-2 + 0.5 * float(centres[5]), -1 + 0.5 * float(centres[2])]], dtype=torch.float64)
    for ax, t in zip(figure.axes[:2], (0.1, 0.5), strict=True):
        assert float(ax.images[0].get_array()[2, 5]) == pytest.approx(float(exact.log_prob(point, t)), abs=1e-9)
        assert ax.images[0].get_extent() == [-2, 2, -1, 3]


def test_field_of_a_wrong_model_time_or_name(exact):
    images = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 1, 4, 4), torch.ones(1)), sd.VPSDE())
    with pytest.raises(ShapeError, match=r"\(1, 4, 4\)"):
        plot.vector_field(images, 0.5, (-1, 1))
    with pytest.raises(TimeRangeError):
        plot.vector_field(exact, 2.0, (-1, 1))
    with pytest.raises(ConfigError, match="field = 'scor'"):
        plot.vector_field(exact, 0.5, (-1, 1), field="scor")
    with pytest.raises(ConfigError, match="limits"):
        plot.vector_field(exact, 0.5, (1, -1))


class Hidden(ScoreModel):
    """The exact model without its density, as a network has none."""

    def __init__(self, inner):
        super().__init__(inner.sde, inner.event_shape)
        self.inner = inner

    def predict(self, x, t, **cond):
        return self.inner.predict(x, t)


def test_density_of_a_network_is_that_of_its_flow(exact):
    solver = sd.TorchDiffEq(rtol=1e-5, atol=1e-5)
    by_flow = plot.density(Hidden(exact), (-1, 1), resolution=4, solver=solver).axes[0].images[0].get_array()
    in_closed_form = plot.density(exact, (-1, 1), resolution=4, points=torch.zeros(3, 2)).axes[0].images[0].get_array()
    assert np.abs(by_flow - in_closed_form).max() < 0.02  # what N(0, 1) for the law at t_max costs
    given_function = plot.density(lambda x: exact.log_prob(x.double(), exact.sde.t_min), (-1, 1), resolution=4)
    assert np.allclose(given_function.axes[0].images[0].get_array(), in_closed_form, atol=1e-4)
    with pytest.raises(ConfigError, match="only an exact model"):
        plot.density(Hidden(exact), (-1, 1), t=0.5)

"""The default solver on data that it was not made for: its choices, and its errors beside those of all others in hindsight."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hard_targets import HARD, IndependentTails, Race, anisotropic, heavy_tails, random_fields
from problems import correlated_mixture, gaussian, image_mixture, name, two_modes

import scoresde as sd
from scoresde.solvers.untuned import assumed, choose

CALLS = (5, 10, 20, 50)
QUICK = [(anisotropic, sd.VPSDE()), (heavy_tails, sd.VESDE()), (IndependentTails, sd.RectifiedFlow())]


def ratios(race: Race, kinds: tuple[str, ...], calls=CALLS) -> dict[str, list[float]]:
    """The errors of "auto" over the best rival's, by what it knows of the data."""
    rivals = [race.best_rival(n)[0] for n in calls]
    found = {}
    for kind, reference in race.references().items():
        race.model.reference = reference
        if kind in kinds:
            found[kind] = [race.error(steps=n) / rival for n, rival in zip(calls, rivals, strict=True)]
    return found


@pytest.mark.parametrize(("make", "sde"), QUICK, ids=lambda p: getattr(p, "__name__", None) or name(p))
def test_with_any_reference_it_beats_the_best_of_forty_choices(make, sde):
    """Moments that are exact, of 600 samples, of these without correlations, and of the model's own samples: better at all budgets."""
    found = ratios(Race(make(), sde, 40), ("exact", "full", "diagonal", "made"))
    for kind, values in found.items():
        assert max(values) < 1.0, (kind, values)
        assert statistics.median(values) < 0.5, (kind, values)
        assert values[-1] < 0.25, (kind, values)


def test_without_a_reference_it_is_about_as_good_as_the_best_in_hindsight():
    values = [v for make, sde in QUICK for v in ratios(Race(make(), sde, 40), ("none",))["none"]]
    assert statistics.median(values) < 0.6
    assert max(values) < 3.5


@pytest.mark.slow
def test_the_whole_table():
    """All targets but the sharpest, three SDEs: the figures that ``benchmarks/untuned.py`` reports, held with a margin."""
    found: dict[str, list[list[float]]] = {}
    for target, make in HARD.items():
        if "remembered" not in target:
            for sde in (sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()):
                for kind, values in ratios(Race(make(), sde, 50), ("exact", "full", "diagonal", "made", "none")).items():
                    found.setdefault(kind, []).append(values)
    for kind, (middle, worst) in {
        "exact": (0.4, 1.5),
        "full": (0.45, 1.8),
        "diagonal": (0.55, 2.3),
        "made": (0.5, 3.0),
        "none": (1.25, 11.0),
    }.items():
        columns = list(zip(*found[kind], strict=True))  # by calls
        assert max(statistics.median(column) for column in columns) < middle, kind
        assert max(max(column) for column in columns) < worst, kind
        assert max(columns[-1]) < (1.0 if kind != "none" else 6.0), kind


# ---- what is measured of the data


def test_typical_is_one_for_gaussian_data_and_that_of_student_for_student():
    """(x - m)^T C^-1 (x - m) is chi^2 for Gaussian data, (d/3) F(d, 3) for Student's t of 3 degrees, with C = 3 Sigma."""
    x = gaussian(3).sample(4000, seed=1)
    for kind in ("full", "diagonal", "isotropic"):
        assert sd.GaussianReference.fit(x, kind).tail == 1.0
    assert sd.GaussianReference.fit(x).typical == pytest.approx(1.0, abs=0.06)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, 8, dtype=torch.float64, generator=generator)
    chi2 = torch.randn(400_000, 3, dtype=torch.float64, generator=generator).square().sum(1)
    square = z.square().sum(1) / chi2  # = (x - m)^T C^-1 (x - m) for C = 3 Sigma
    due = float(square.median()) / float(z.square().sum(1).median())
    student = sd.GaussianReference.of_moments(torch.zeros(8), 3 * torch.eye(8)).measured(z[:4000] * (3 / chi2[:4000, None]).sqrt())
    assert student.typical == pytest.approx(due, rel=0.08)
    assert 0.4 < due < 0.5
    assert student.tail == pytest.approx(student.typical / 0.8)
    inner = student.of_typical_sample()
    assert torch.allclose(inner.variance, student.variance * student.tail)
    assert (inner.tail, inner.exact) == (1.0, False)


def test_directions_without_variance_do_not_count():
    x = torch.zeros(500, 6, dtype=torch.float64)
    x[:, :4] = gaussian(4).sample(500)
    for kind in ("full", "diagonal"):
        assert sd.GaussianReference.fit(x, kind).typical == pytest.approx(1.0, abs=0.15)


def test_exact_models_know_their_tails():
    assert sd.ExactModel(heavy_tails(), sd.VPSDE()).reference.tail < 0.7
    assert sd.ExactModel(gaussian(2), sd.VPSDE()).reference.tail == 1.0
    assert sd.ExactModel(gaussian(1), sd.VPSDE()).reference.tail == 1.0
    for target in (two_modes(), correlated_mixture(8), image_mixture()):
        assert sd.ExactModel(target, sd.VPSDE()).reference.tail == 1.0


def test_spread_is_that_of_the_eigenvalues_by_their_share():
    c = torch.tensor([4.0, 1.0], dtype=torch.float64)
    expected = math.log(2) * math.sqrt(0.8 * 0.2)  # log sqrt(c) is log 2 with probability 0.8, else 0
    assert sd.GaussianReference.of_moments(torch.zeros(2), c).spread == pytest.approx(expected)
    assert sd.GaussianReference.of_moments(torch.zeros(3), 7 * torch.eye(3)).spread == pytest.approx(0.0, abs=1e-6)
    assert sd.ExactModel(random_fields(), sd.VPSDE()).reference.spread > 0.8


def test_an_old_reference_reads_as_it_was():
    """Saved before there were tails: a width of its own, no ``typical``."""
    old = sd.GaussianReference(torch.zeros(2), torch.ones(2), "diagonal", width=1.0)
    assert (old.tail, choose(old, 50, None).width, choose(old, 50, None).order) == (1.0, 1.0, 4)


# ---- what is chosen


def test_width_follows_spectrum_tails_and_order():
    """width^2 = (W^2 + 7/4 max(S^2 - 0.65^2, 0))/T, W = 1.4 for order 5 and 1 below."""
    compact = sd.GaussianReference.of_moments(torch.zeros(2), torch.tensor([1.0, 2.0]))
    assert [choose(compact, n, None).width for n in CALLS] == [1.0, 1.0, 1.0, 1.4]
    assert [choose(compact, n, None).order for n in (5, 16, 17, 29, 30, 44, 45)] == [2, 2, 3, 3, 4, 4, 5]
    wide = sd.GaussianReference.of_moments(torch.zeros(64), torch.arange(1, 65, dtype=torch.float64) ** -2.0)
    S = wide.spread
    assert S > 0.7
    assert choose(wide, 10, None).width == pytest.approx(math.sqrt(1 + 1.75 * (S**2 - 0.65**2)))
    heavy = sd.ExactModel(heavy_tails(), sd.VPSDE()).reference
    assert choose(heavy, 10, None).width == pytest.approx(heavy.tail**-0.5)
    fields = sd.ExactModel(random_fields(), sd.VPSDE()).reference
    assert [choose(fields, n, None).order for n in (50, 80)] == [4, 5]
    assert choose(fields, 50, None, 1.5)[:3] == (4, True, 1.5)  # a width that was given
    assert choose(compact, 50, None, order=3)[:3] == (3, True, 1.0)  # an order that was given, whose width is its own
    assert sd.ReferenceSolver(order=3).bind(sd.ExactModel(two_modes(), sd.VPSDE()), 50).width == 1.0


def test_the_free_node_is_for_few_calls_and_good_moments():
    vp, ve = (sd.ExactModel(two_modes(), sde) for sde in (sd.VPSDE(), sd.VESDE()))
    fitted = sd.GaussianReference.fit(two_modes().sample(500))
    free = {n: [sd.ReferenceSolver().bind(m, n).free for m in (vp, ve)] for n in (10, 16, 17, 44, 45)}
    assert free == {10: [True, True], 16: [True, True], 17: [True, False], 44: [True, False], 45: [False, False]}
    assert [sd.ReferenceSolver(reference=fitted).bind(vp, n).free for n in (10, 11)] == [True, False]
    tails = sd.ExactModel(heavy_tails(), sd.VPSDE())
    assert [sd.ReferenceSolver().bind(tails, n).free for n in (10, 11)] == [True, False]


def test_networks_have_a_wider_grid():
    """What networks know of fine details does not show in a covariance: width 2, whoever made the reference."""
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    model.reference = sd.GaussianReference.fit(two_modes().sample(100).float())
    assert sd.ReferenceSolver().bind(model, 20).width == 2.0
    assert sd.ReferenceSolver(width=1.2).bind(model, 20).width == 1.2


class Foreign(sd.ScoreModel):
    """A model from elsewhere: a rule, and nothing known of its data."""

    def __init__(self, target, sde):
        super().__init__(sde, target.event_shape)
        self.target = target

    def denoise(self, x, t, **cond):
        level = self.sde.level(t, x)
        return self.target.posterior(x, level.alpha, level.sigma)[0].to(x.dtype)


def test_without_a_reference_one_is_assumed():
    """Unit variance: isotropic for vectors, falling with the frequency for images; the unit is that of the parameterization."""
    model = Foreign(correlated_mixture(4), sd.VPSDE())
    r = assumed(model)
    assert (r.kind, r.scale, r.exact) == ("isotropic", 1.0, False)
    assert torch.equal(sd.sample(model, 4, steps=12), sd.sample(model, 4, solver=sd.ReferenceSolver(reference=r), steps=12))
    with pytest.raises(sd.errors.ConfigError, match=r"GaussianReference\.fit"):
        sd.sample(model, 4, solver=sd.ReferenceSolver(), steps=12)
    r = assumed(Foreign(image_mixture(), sd.VPSDE()))
    c = (1 + torch.tensor([0.0, 1.0, 2.0]).square()[:, None].add(torch.tensor([0.0, 1.0, 2.0]).square()).sqrt()) ** -2
    assert r.kind == "dct"
    assert torch.allclose(r.variance, (c / c.mean()).double().expand(2, 3, 3), rtol=1e-6)
    edm = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.EDMSDE(), (2,), parameterization="edm")
    assert assumed(edm).scale == pytest.approx(0.5)


# ---- a reference of the model's own samples


def test_a_reference_made_from_the_model_is_that_of_its_data():
    """Mean and covariance of 512 samples: within five standard errors of the truth; heavy tails are seen."""
    for sde in (sd.VPSDE(), sd.VESDE(), sd.RectifiedFlow()):
        target = correlated_mixture(4)
        r = sd.fit_reference(Foreign(target, sde))
        m, C = target.moments()
        assert (r.kind, r.exact, r.width) == ("full", False, None)
        assert float(((r.mean - m) / (C.diag() / 512).sqrt()).abs().max()) < 5
        found = r.basis @ r.variance.diag() @ r.basis.mT
        error = (found - C) / ((C**2 + C.diag()[:, None] * C.diag()) / 512).sqrt()
        assert float(error.abs().max()) < 5
    assert sd.fit_reference(Foreign(heavy_tails(), sd.VPSDE())).tail < 0.8
    assert sd.fit_reference(Foreign(image_mixture(), sd.VPSDE()), n=16).kind == "dct"


def test_it_is_the_same_every_time_and_leaves_the_model_alone():
    target = correlated_mixture(3)
    model = Foreign(target, sd.VPSDE())
    with sd.count_evaluations(model) as calls:
        first = sd.fit_reference(model, n=64)
    assert calls.forward * 64 == 20 * 64  # one batch of 20 calls
    assert model.reference is None
    model.reference = sd.GaussianReference.fit(target.sample(50))
    kept = model.reference
    assert sd.fit_reference(model, n=64).fingerprint() == first.fingerprint()  # whatever reference the model has
    assert model.reference is kept
    assert sd.fit_reference(model, n=64, seed=1).fingerprint() != first.fingerprint()


def test_it_makes_the_default_better_and_is_kept_with_the_model(tmp_path):
    race = Race(anisotropic(), sd.VPSDE(), 40)
    race.model.reference = None
    without = race.error(steps=10)
    race.model.reference = sd.fit_reference(race.model)
    assert race.error(steps=10) < 0.6 * without
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    model.reference = sd.GaussianReference.fit(heavy_tails(2).sample(400).float())
    assert model.reference.typical != 1
    sd.save(model, tmp_path / "model")
    again = sd.load(tmp_path / "model").reference
    assert (again.typical, again.width, again.fingerprint()) == (model.reference.typical, None, model.reference.fingerprint())


def test_conditions_reach_the_network_and_bad_input_is_named():
    class Shifted(sd.ScoreModel):
        conditions = sd.NetworkModel(sd.nets.MLP(1, width=4, depth=1, classes=2), sd.VPSDE(), (1,)).conditions

        def denoise(self, x, t, label=None):
            level = self.sde.level(t, x)
            m = 3.0 * label.view(-1, 1)
            return m + level.alpha * 0.25 * (x - level.alpha * m) / (level.alpha**2 * 0.25 + level.sigma**2)

    r = sd.fit_reference(Shifted(sd.VPSDE(), (1,)), n=64, label=torch.ones(64, dtype=torch.long))
    assert float(r.mean) == pytest.approx(3.0, abs=0.3)
    model = Foreign(two_modes(), sd.VPSDE())
    with pytest.raises(sd.errors.ConfigError, match="two samples"):
        sd.fit_reference(model, n=1)
    with pytest.raises(sd.errors.ConfigError, match="n = 0"):
        sd.fit_reference(model, n=0)
    with pytest.raises(sd.errors.ConfigError, match="ScoreModel"):
        sd.fit_reference("model")

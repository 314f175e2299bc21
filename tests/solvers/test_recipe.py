"""Recipes: JSON in and out, bound to the model that they were made for."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from problems import two_modes

import scoresde as sd
from scoresde.core import encoding
from scoresde.solvers.recipe import Recipe, fingerprint


def exact(sde=None):
    return sd.ExactModel(two_modes(), sde or sd.VPSDE())


def recipe_for(model, reference=None):
    """Adams-Bashforth of first order, three calls, in reference coordinates."""
    lam = [0.5 * float(model.sde.log_snr(t)) for t in (1.0, 0.5, 0.2, 1e-3)]
    h = [b - a for a, b in zip(lam, lam[1:], strict=False)]
    rows = tuple(tuple(h[: i + 1]) for i in range(3))
    made_for = {"sde": repr(model.sde), "event_shape": [2], "reference": model.reference.fingerprint()}
    return Recipe(sd.ReferenceScheme(rows, reference), (1.0, 0.5, 0.2, 1e-3), 3, made_for, {"median_error": 0.1})


def test_a_scheme_is_the_method_that_its_weights_say():
    """Weights of Euler's method in lam: the same steps written out by hand."""
    model = exact()
    r = model.reference
    x = 0.9 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = model.sde.levels([1.0, 0.5, 0.2, 1e-3])
    y = x.clone()
    for t, s in zip(levels, levels[1:], strict=False):
        s2 = [(level.sigma / level.alpha) ** 2 for level in (t, s)]
        v = [r.variance + value for value in s2]
        z = (y / t.alpha - r.mean) @ r.basis / v[0].sqrt()
        D = (model.denoise(y, t) - r.mean) @ r.basis
        lam = [-0.5 * torch.tensor(value, dtype=torch.float64).log() for value in s2]
        z = z + (lam[1] - lam[0]) * (D / v[0].sqrt() - r.variance / v[0] * z)
        y = s.alpha * (r.mean + (z * v[1].sqrt()) @ r.basis.mT)
    assert torch.allclose(sd.sample(model, x_init=x, solver=recipe_for(model)), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("with_reference", [False, True])
def test_json_gives_the_same_samples(tmp_path, with_reference):
    model = exact()
    recipe = recipe_for(model, model.reference if with_reference else None)
    file = recipe.save(tmp_path)
    assert file.name == "recipe-3.json"
    again = Recipe.load(file)
    assert again.times == recipe.times
    assert again.report == recipe.report
    with sd.count_evaluations(model) as calls:
        x = sd.sample(model, 6, solver=again)
    assert calls.forward == 3
    assert torch.equal(x, sd.sample(model, 6, solver=recipe))


def test_classic_solvers_are_recipes_too(tmp_path):
    model = exact()
    times = sd.grid.quadratic(model.sde, 6)
    recipe = Recipe(sd.UniPC(2), tuple(times.tolist()), 6, {}, {})
    again = Recipe.load(recipe.save(tmp_path / "r.json"))
    assert torch.equal(sd.sample(model, 4, solver=again), sd.sample(model, 4, solver=sd.UniPC(2), times=times))


def test_auto_uses_it_for_its_number_of_calls_and_end_alone():
    model = exact()
    recipe = recipe_for(model)
    model.recipes[3] = recipe
    assert torch.equal(sd.sample(model, 4, steps=3), sd.sample(model, 4, solver=recipe))
    plain = sd.ReferenceSolver()
    assert torch.equal(sd.sample(model, 4, steps=4), sd.sample(model, 4, solver=plain, steps=4))
    named = dataclasses.replace(recipe, model={**recipe.model, "cond": ["label"]})  # made for labels, and none are given
    model.recipes[3] = named
    assert torch.equal(sd.sample(model, 4, steps=3), sd.sample(model, 4, solver=plain, steps=3))
    model.recipes[3] = recipe
    assert torch.equal(sd.sample(model, 4, steps=3, t_end=0.01), sd.sample(model, 4, solver=plain, steps=3, t_end=0.01))


def test_it_is_kept_beside_the_checkpoint(tmp_path):
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    sd.fit(model, sd.data.toy("moons", 200), steps=2, batch_size=16, seed=0, progress=False)
    made_for = {"reference": model.reference.fingerprint(), "weights": fingerprint(model)}
    model.recipes[3] = dataclasses.replace(recipe_for(exact()), model=made_for)
    sd.save(model, tmp_path)
    again = sd.load(tmp_path)
    assert torch.equal(sd.sample(again, 4, steps=3), sd.sample(model, 4, steps=3))
    assert not torch.equal(sd.sample(again, 4, steps=3), sd.sample(model, 4, solver=sd.ReferenceSolver(), steps=3))
    # with other weights it is passed over
    other = dataclasses.replace(model.recipes[3], model={**model.recipes[3].model, "weights": "0" * 16})
    other.save(tmp_path)
    assert sd.load(tmp_path).recipes == {}
    # one that does not say for which it was made fits none: it would give other samples without a word
    dataclasses.replace(model.recipes[3], model={"reference": model.reference.fingerprint()}).save(tmp_path)
    with pytest.warns(UserWarning, match=r"recipe-3\.json: does not say for which weights"):
        assert sd.load(tmp_path).recipes == {}
    # trained on other data since: the recipe's coordinates are gone, and so is the recipe
    model.recipes[3].save(tmp_path)
    sd.fit(model, sd.data.toy("moons", 201), steps=2, batch_size=16, seed=0, progress=False)
    assert model.recipes == {}
    sd.save(model, tmp_path)
    assert sd.load(tmp_path).recipes == {}
    (tmp_path / "recipe-4.json").write_text("{")
    with pytest.warns(UserWarning, match=r"recipe-4\.json"):
        assert sd.load(tmp_path).recipes == {}


def test_bad_input(tmp_path):
    model = exact()
    recipe = recipe_for(model)
    with pytest.raises(sd.errors.ConfigError, match="leave steps out"):
        sd.sample(model, 2, solver=recipe, steps=5)
    with pytest.raises(sd.errors.ConfigError, match="times of its own"):
        sd.sample(model, 2, solver=recipe, times=[1.0, 0.1])
    with pytest.raises(sd.errors.ConfigError, match="t_end"):
        sd.sample(model, 2, solver=recipe, t_end=0.1)
    with pytest.raises(sd.errors.ConfigError, match="another model"):
        sd.sample(exact(sd.SubVPSDE()), 2, solver=recipe)
    other = exact()
    other.reference = sd.GaussianReference.fit(two_modes().sample(50))
    with pytest.raises(sd.errors.ConfigError, match="reference"):
        sd.sample(other, 2, solver=recipe)
    with pytest.raises(sd.errors.ConfigError, match="decreasing"):
        Recipe(sd.UniPC(2), (0.1, 1.0), 1)
    for given, word in ((("UniPC", (1.0, 0.1), 1), "solver"), ((sd.UniPC(2), (1.0, 0.1), "2"), "nfe"), ((sd.UniPC(2), "abc", 1), "times")):
        with pytest.raises(sd.errors.ConfigError, match=word):
            Recipe(*given)
    with pytest.raises(sd.errors.ConfigError, match="cannot be written"):
        Recipe(sd.Heun(), (1.0, 0.1), 2).to_json()
    with pytest.raises(sd.errors.CheckpointNotFound):
        Recipe.load(tmp_path / "none.json")
    content = json.loads(recipe.to_json())
    with pytest.raises(sd.errors.CheckpointCorrupt, match="not those of the sha256"):
        Recipe.from_json(json.dumps(content))
    del content["sha256"], content["kind"], content["format"]
    with pytest.raises(sd.errors.CheckpointMismatch, match="holds a report, expected a recipe"):
        Recipe.from_json(encoding.encode_document("report", content).decode())
    for change, word in (
        ({"times": [2.0, 0.5, 0.2, 1e-3]}, r"times run from 2 to 0\.001, expected within .* = \[1e-05, 1\]"),
        ({"times": [1.0, 0.5, 0.2, 1e-6]}, r"times run from 1 to 1e-06"),
        ({"times": [1.0, 0.5, 0.2, -1.0]}, "times run from 1 to -1"),
        ({"nfe": 4}, r"nfe = 4 of a Recipe of 4 times"),
        ({"nfe": 3.0}, r"nfe = 3\.0"),
        ({"times": [1.0, 0.5, 1e-3], "nfe": 2}, "has 3 rows of weights"),
        ({"model": {**content["model"], "t_max": None}}, "a Recipe for VPSDE"),
    ):
        bounds = {"t_min": 1e-5, "t_max": 1.0}
        changed = {**content, "model": {**content["model"], **bounds}, **change}
        with pytest.raises(sd.errors.ConfigError, match=word):
            Recipe.from_json(encoding.encode_document("recipe", changed).decode())
    with pytest.raises(sd.errors.ConfigError, match="times run from 2"):  # made without the bounds: found when it is used
        sd.sample(model, 2, solver=dataclasses.replace(recipe, times=(2.0, 0.5, 0.2, 1e-3)))
    content["solver"]["class"] = "os"
    with pytest.raises(sd.errors.CheckpointMismatch, match="os"):
        Recipe.from_json(json.dumps(content))
    content["format"] = 99
    with pytest.raises(sd.errors.CheckpointMismatch, match="99"):
        Recipe.from_json(json.dumps(content))
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "solver": {"class": "UniPC", "args": {"order": 77}}}'):
        with pytest.raises(sd.errors.CheckpointCorrupt):
            Recipe.from_json(text)


def test_a_recipe_is_for_one_parameterization():
    """The same weights under another sigma_data are another model."""
    torch.manual_seed(0)
    net, P = sd.nets.MLP(2, width=8, depth=1), sd.parameterization
    found = [fingerprint(sd.NetworkModel(net, sd.VPSDE(), (2,), given)) for given in ("edm", "v", P.EDM(5.0), P.EDM(2.0), P.Scaled("v", 5.0))]
    assert len(set(found)) == 5

"""The Gaussian reference: moments, bases, exactness, and the same after saving."""

from __future__ import annotations

import math

import pytest
import torch
from problems import SDES, correlated_mixture, gaussian, image_mixture, name, two_modes

import scoresde as sd


def test_moments_of_a_mixture_are_those_of_its_samples():
    """z-tests of every mean and (co)variance of 200,000 draws: a relative error of 2 % of a variance is found (z = 6)."""
    for target in (correlated_mixture(3), image_mixture(), two_modes(2)):
        m, C = target.moments()
        x = target.sample(200_000, seed=1).flatten(1)
        n, r = len(x), x - x.mean(0)
        z = (x.mean(0) - m.flatten()) / (C.diag() / n).sqrt()
        assert z.abs().max() < 5
        products = r[:, :, None] * r[:, None, :]
        z = (products.mean(0) - C) / (products.std(0) / math.sqrt(n))
        assert z.abs().max() < 5.5


def test_fit_finds_mean_and_covariance():
    target = correlated_mixture(4)
    x = target.sample(50_000, seed=2)
    full = sd.GaussianReference.fit(x)
    assert full.kind == "full"
    assert not full.exact
    C = full.basis @ full.variance.diag() @ full.basis.mT
    assert torch.allclose(C, torch.cov(x.T), rtol=1e-10, atol=1e-12)
    assert torch.allclose(full.mean, x.mean(0))
    assert torch.allclose(sd.GaussianReference.fit(x, "diagonal").variance, x.var(0), rtol=1e-10)
    isotropic = sd.GaussianReference.fit(x, "isotropic")
    assert isotropic.variance.shape == ()
    assert float(isotropic.variance) == pytest.approx(float(x.var(0).mean()), rel=1e-10)


def test_the_cosine_basis_is_orthonormal_and_compacts_smooth_images():
    """A random walk along rows is nearly uncorrelated in the cosine basis: the diagonal of its covariance there tells most."""
    x = torch.randn(4000, 2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    r = sd.GaussianReference.fit(x, "dct")
    c = r.analyse(x)
    assert torch.allclose(c.square().sum(), x.square().sum())
    assert torch.allclose(r.synthesize(c), x, atol=1e-12)
    assert torch.allclose(r.variance, c.var(0), rtol=1e-9)
    off = torch.cov(c[:, 0, 0].T)
    pixel = torch.cov(x[:, 0, 0].T)

    def correlation(C):
        R = C / (C.diag()[:, None] * C.diag()).sqrt()
        return float((R - torch.eye(len(R), dtype=R.dtype)).square().mean())

    assert correlation(off) < 0.02 * correlation(pixel)


def test_levels_are_dequantized():
    """Each bin adds its own variance: pixels that never change have that of a uniform bin, not zero."""
    digits = sd.data.digits()
    r = sd.GaussianReference.fit(digits, "diagonal")
    assert float(r.variance.min()) == pytest.approx(digits.transform.bin_width**2 / 12, rel=0.1)
    assert r.width == 2.0


@pytest.mark.parametrize("kind", ["full", "diagonal", "dct", "isotropic"])
def test_log_prob_is_that_of_a_normal_distribution(kind):
    x = image_mixture().sample(300, seed=4)
    r = sd.GaussianReference.fit(x, kind)
    alpha, sigma = 0.7, 0.4
    eye = torch.eye(18, dtype=torch.float64)
    U = r.analyse(eye.view(18, 2, 3, 3)).flatten(1).mT  # columns U^T e_i
    C = U.mT @ (r.variance.expand(18) if kind == "isotropic" else r.variance.flatten()).diag() @ U
    normal = torch.distributions.MultivariateNormal(alpha * r.mean.flatten(), alpha**2 * C + sigma**2 * eye)
    assert torch.allclose(r.log_prob(x, alpha, sigma), normal.log_prob(x.flatten(1)), rtol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_an_exact_model_knows_its_reference(sde):
    target = gaussian(3)
    r = sd.ExactModel(target, sde).reference
    m, C = target.moments()
    assert r.exact
    assert torch.allclose(r.mean, m)
    assert torch.allclose(r.basis @ r.variance.diag() @ r.basis.mT, C, atol=1e-12)


def test_fingerprints_tell_references_apart():
    x = correlated_mixture(3).sample(100)
    a, b, c = sd.GaussianReference.fit(x), sd.GaussianReference.fit(x.clone()), sd.GaussianReference.fit(x[:-1])
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert a.fingerprint() != sd.GaussianReference.fit(x, width=3.0).fingerprint()
    # two rotations of the same variances
    m, C = torch.zeros(2), torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    turned = C * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert sd.GaussianReference.of_moments(m, C).fingerprint() != sd.GaussianReference.of_moments(m, turned).fingerprint()


def test_fit_and_checkpoints_carry_it(tmp_path):
    """``fit`` sets it from its data, ``save`` and a training run keep it, ``load`` gives it back to the bit."""
    data = sd.data.toy("moons", 300)
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    sd.fit(model, data, steps=3, batch_size=16, seed=0, progress=False, out=tmp_path / "run")
    assert torch.allclose(model.reference.mean, data.train.double().mean(0), atol=1e-6)
    sd.save(model, tmp_path / "model")
    for path in ("run", "model"):
        r = sd.load(tmp_path / path).reference
        assert r.fingerprint() == model.reference.fingerprint()
        assert torch.equal(r.basis, model.reference.basis)
        assert (r.kind, r.width) == (model.reference.kind, model.reference.width)


def test_a_damaged_reference_is_found(tmp_path):
    model = sd.NetworkModel(sd.nets.MLP(2, width=8, depth=1), sd.VPSDE(), (2,))
    model.reference = sd.GaussianReference.fit(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    sd.save(model, tmp_path)
    (file,) = tmp_path.glob("*/reference.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(sd.errors.CheckpointCorrupt, match="sha256"):
        sd.load(tmp_path)


def test_bad_input():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(sd.errors.ConfigError, match="full, diagonal, dct, isotropic"):
        sd.GaussianReference.fit(x, "pca")
    with pytest.raises(sd.errors.ShapeError, match="two samples"):
        sd.GaussianReference.fit(x[:1])
    with pytest.raises(sd.errors.DTypeError):
        sd.GaussianReference.fit(torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(sd.errors.NonFiniteError):
        sd.GaussianReference.fit(x / 0)
    with pytest.raises(sd.errors.ShapeError, match="variance"):
        sd.GaussianReference(torch.zeros(3), torch.ones(2))
    with pytest.raises(sd.errors.ConfigError, match="> 0"):
        sd.GaussianReference(torch.zeros(3), torch.zeros(3))
    with pytest.raises(sd.errors.ConfigError, match="symmetric"):
        sd.GaussianReference.of_moments(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(sd.errors.ConfigError, match="eigenvalue"):
        sd.GaussianReference.of_moments(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(sd.errors.DTypeError, match=r"mean is a list, expected a torch\.Tensor"):
        sd.GaussianReference([0.0], [1.0])
    with pytest.raises(sd.errors.ConfigError, match="width"):
        sd.GaussianReference(torch.zeros(3), torch.ones(3), width=0.0)

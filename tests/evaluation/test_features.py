"""Features of a classifier: what it learns, that it is a function of its seed, and its file."""

import math

import pytest
import torch

import scoresde as sd
from scoresde.data.dataset import Data
from scoresde.errors import CheckpointCorrupt, CheckpointNotFound, ConfigError, NonFiniteError, ShapeError, TrainingDiverged
from scoresde.evaluation.features import FeatureExtractor, features_name, fit_features
from scoresde.evaluation.metrics import frechet_distance, precision_recall

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return sd.data.digits()


@pytest.fixture(scope="module")
def extractor(digits):
    return fit_features(digits, width=16, steps=150, progress=False)


def test_it_learns_the_digits(extractor, digits):
    """Of 297 test images at least 96 % right: guessing gets 10 %, a linear classifier of pixels about 95 %."""
    assert extractor.accuracy > 0.96
    x = digits.transform.dequantize(digits.test, 5)  # other noise
    right = float((extractor.classify(x) == digits.test_labels).double().mean())
    assert abs(right - extractor.accuracy) < 0.03
    assert f"{extractor.accuracy:.4f}" in repr(extractor)


def test_features_see_more_than_pixels(extractor, digits):
    """Two halves of the data are alike in them; one digit left out, or images upside down, are not."""
    f = extractor(digits.transform.dequantize(digits.train))
    assert f.shape == (1500, 64)
    half = frechet_distance(f[:750], f[750:])
    assert frechet_distance(f[:750], f[750:][digits.labels[750:] != 3]) > 2 * half
    assert frechet_distance(f[:750], extractor(digits.transform.dequantize(digits.train[750:]).flip(2))) > 5 * half
    assert precision_recall(f[:750], f[750:][digits.labels[750:] == 0]).recall > 0.9
    assert precision_recall(f[:750], f[750:][digits.labels[750:] == 0]).precision < 0.3


def test_it_is_a_function_of_its_seed(digits):
    before = torch.get_rng_state()
    a, b, c = (fit_features(digits, width=8, steps=12, seed=seed, progress=False) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    x = digits.transform.center(digits.test[:20])
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))
    assert features_name(a) == features_name(b) != features_name(c)


def test_the_generators_of_gpus_are_left_alone(digits, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fit_features(digits, width=4, steps=1, progress=False)
    assert seeded == []


def test_rows_do_not_depend_on_each_other(extractor, digits):
    x = digits.transform.center(digits.test)
    assert torch.allclose(extractor(x)[:7], extractor(x[:7]), atol=1e-5)
    assert not extractor(x).requires_grad
    assert not extractor.training


def test_its_file_gives_it_back(extractor, digits, tmp_path):
    path = tmp_path / "new" / "features.safetensors"
    extractor.save(path)
    read = FeatureExtractor.load(path)
    x = digits.transform.center(digits.test[:20])
    assert torch.equal(read(x), extractor(x))
    assert (read.accuracy, read.name, features_name(read)) == (extractor.accuracy, "digits", features_name(extractor))
    with pytest.raises(CheckpointNotFound, match="no such file"):
        FeatureExtractor.load(tmp_path / "other")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointCorrupt):
        FeatureExtractor.load(path)


def test_vectors_and_data_without_a_test_set():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 5, generator=generator) + 3 * torch.nn.functional.one_hot(labels, 5)
    data = Data(x, torch.empty(0, 5), labels=labels, name="blobs")
    extractor = fit_features(data, features=8, steps=60, progress=False)
    assert math.isnan(extractor.accuracy)
    assert extractor(x).shape == (300, 8)
    assert float((extractor.classify(x) == labels).double().mean()) > 0.9
    assert fit_features(Data(torch.rand(60, 3, 32, 32), torch.empty(0, 3, 32, 32), labels=labels[:60]), steps=1, width=4, progress=False)(
        torch.rand(2, 3, 32, 32)
    ).shape == (2, 64)


def test_it_says_what_is_wrong(extractor, digits):
    with pytest.raises(ConfigError, match="moons has no labels"):
        fit_features(sd.data.toy("moons"), progress=False)
    with pytest.raises(ConfigError, match="steps = 0"):
        fit_features(digits, steps=0, progress=False)
    with pytest.raises(TrainingDiverged, match=r"at one of the steps 1\.\.3: take a learning rate below 1e\+30"):
        fit_features(digits, steps=3, width=4, lr=1e30, progress=False)
    with pytest.raises(ShapeError, match="x has shape"):
        extractor(torch.zeros(3, 1, 9, 9))
    with pytest.raises(NonFiniteError):
        extractor(torch.full((1, 1, 8, 8), math.nan))
    assert features_name(None) == "none"
    assert features_name(fit_features) == "fit_features"

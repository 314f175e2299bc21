"""Features to compare images in: the last hidden layer of a small classifier, trained here on labelled data.

Distances of pixels do not see what an image is; features of a network that had to tell the classes apart do. A Frechet distance
in them is a Frechet distance in these features, named so: it is FID only in Inception's. Any function from samples (B, *event) to
features (B, F) is as good wherever features are asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.core import encoding, files
from scoresde.core.checks import check_data, check_integer, check_memory, check_positive, check_positive_int
from scoresde.core.doors import checked
from scoresde.core.noise import check_seed, permutation, seeded
from scoresde.core.streams import TRAIN
from scoresde.data.dataset import Data
from scoresde.errors import CheckpointCorrupt, ConfigError
from scoresde.models.base import inference
from scoresde.training.optimization import MOST_STEPS, Descent, descend
from scoresde.training.schedule import Schedule

BATCH = 512  # samples at a time for features

MOST = 1 << 30  # bytes of a file

LARGEST = 100_000  # of any size of the network

LOOK = 50  # steps between two looks at the loss


@checked
class FeatureExtractor(nn.Module):
    """The features of a classifier: samples (B, *event) in model space -> (B, features), in batches, without gradients.

    Args:
        event_shape: of a sample; images (C, H, W) go through convolutions, all else through a network on the flat sample.
        classes: number of classes.
        features: size of the last hidden layer.
        width: channels of the first convolution, or an eighth of the hidden units.
        name: of the data that it was trained on.
        accuracy: share of the test samples that it classifies rightly; NaN if there were none.

    Raises:
        ConfigError: sizes that are no positive integers.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        classes: int,
        features: int = 64,
        width: int = 32,
        name: str = "",
        accuracy: float = math.nan,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(check_positive_int(n, "event_shape") for n in event_shape)
        classes, features, width = (
            check_integer(n, name, 1, LARGEST) for n, name in ((classes, "classes"), (features, "features"), (width, "width"))
        )
        check_memory(32.0 * width * (math.prod(self.event_shape) + 8 * width + features), f"a classifier of width {width}")
        self.classes, self.features, self.width, self.name, self.accuracy = classes, features, width, name, float(accuracy)
        if len(self.event_shape) == 3 and min(self.event_shape[1:]) >= 4:
            body, size = _convolutions(self.event_shape, width)
        else:
            body = [nn.Flatten(), nn.Linear(math.prod(self.event_shape), 8 * width), nn.GELU(), nn.Linear(8 * width, 8 * width)]
            body, size = [*body, nn.GELU()], 8 * width
        self.body = nn.Sequential(*body, nn.Linear(size, features), nn.GELU())
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, features), in the dtype and on the device of the weights. Raises ShapeError, DTypeError, NonFiniteError."""
        check_data(x, self.event_shape)
        weight = self.head.weight
        with inference(self):
            return torch.cat([self.body(part.to(weight)) for part in x.split(BATCH)])

    def classify(self, x: Tensor) -> Tensor:
        """The most probable class of each sample, (B,)."""
        with inference(self):
            return self.head(self(x)).argmax(1)

    def __repr__(self) -> str:
        return (
            f"FeatureExtractor({self.name}: {self.features} features of a classifier of {self.classes} classes, "
            f"test accuracy {self.accuracy:.4f})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and sizes as one safetensors file, atomically. Raises CheckpointWriteError."""
        settings = json.dumps({"args": self._arguments()})
        coded = torch.frombuffer(bytearray(settings.encode()), dtype=torch.uint8)
        content = encoding.encode_tensors({**self.state_dict(), "settings": coded}, "weight", alone=True)
        files.write_bytes(Path(path), content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureExtractor:
        """Reads what ``save`` wrote. Raises CheckpointNotFound, CheckpointCorrupt."""
        content = files.read_own(path, MOST, "what FeatureExtractor.save wrote")
        tensors = encoding.decode_tensors(Path(path), content, alone=True)
        try:
            args = encoding.parse_json(str(path), bytes(tensors.pop("settings").tolist()))["args"]
            if not isinstance(args["name"], str) or not isinstance(args["accuracy"], (float, int, type(None))):
                raise ValueError("a name that is no text, or an accuracy that is no number")
            args["event_shape"] = tuple(args["event_shape"])
            args["accuracy"] = math.nan if args["accuracy"] is None else args["accuracy"]
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
                with torch.device("meta"):  # shapes first: a few bytes of JSON must not make us allocate terabytes
                    outline = cls(**args).state_dict()
                encoding.check_weights(tensors, outline, Path(path))
                extractor = cls(**args)
            extractor.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointCorrupt(f"{path}: not the features of a classifier: {error}") from None
        return extractor.eval()

    def _arguments(self) -> dict[str, Any]:
        names = ("classes", "features", "width", "name")
        accuracy = self.accuracy if math.isfinite(self.accuracy) else None
        return {name: getattr(self, name) for name in names} | {"event_shape": list(self.event_shape), "accuracy": accuracy}


def _convolutions(shape: tuple[int, ...], width: int) -> tuple[list[nn.Module], int]:
    """A convolution at full size (at half of it from 16 pixels on), then one each time the size is halved, down to about 4."""
    (c, h, w), out = shape, width
    layers: list[nn.Module] = []
    small = min(h, w) < 16
    for stage in range(max(1, min(4, round(math.log2(min(h, w) / 4)))) + small):
        stride = 1 if small and stage == 0 else 2
        layers += [nn.Conv2d(c, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.GELU()]
        h, w = -(-h // stride), -(-w // stride)
        c, out = out, min(2 * out, 4 * width)
    return [*layers, nn.Flatten()], c * h * w  # and the units that are left


@checked
def fit_features(
    data: Data,
    *,
    features: int = 64,
    width: int = 32,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> FeatureExtractor:
    """Trains a small classifier on labelled data, and returns it as the extractor of its last hidden layer.

    Cross entropy, AdamW, a learning rate that rises over a tenth of the steps and falls to 0 by a cosine. Integer levels are
    dequantized afresh in each epoch, so features are of samples as a model draws them. A function of the seed and of nothing
    else on one machine; the global generator is left alone. Digits and Fashion-MNIST take seconds to a minute on one core.

    Args:
        data: with ``labels``; its test samples and labels give the accuracy.
        features: size of the last hidden layer.
        width: channels of the first convolution.
        steps: of training; None: 20 passes over the data, but at least 200 and at most 600.
        batch_size: samples a step.
        lr: largest learning rate.
        seed: of weights, order and dequantization.
        progress: show a progress bar.

    Raises:
        ConfigError: data that are no ``Data``, without labels or with one class, sizes that are no positive integers.
        TrainingDiverged: the loss is not finite: a smaller learning rate is needed.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the step; a second one is immediate.
    """
    if not isinstance(data, Data):
        raise ConfigError(f"data is a {type(data).__name__}, expected a Data with labels: scoresde.data.Data(train, test, labels=...)")
    labels = data.labels
    if labels is None or (data.classes or 0) < 2:
        raise ConfigError(f"{data.name} has no labels of two classes at least: features are those of a classifier, give your own")
    n, check = len(data.train), check_positive_int(batch_size, "batch_size")
    size = min(check, n)
    total = max(200, min(600, 20 * n // size)) if steps is None else check_integer(steps, "steps", 1, MOST_STEPS)
    check_positive(lr, "lr")
    with seeded(check_seed(seed) % (1 << 63)):
        extractor = FeatureExtractor(data.event_shape, data.classes or 0, features, width, data.name)
    per_epoch = max(1, n // size)

    def gradient(k: int) -> Tensor:
        epoch, place = divmod(k, per_epoch)
        rows = torch.from_numpy(permutation(n, seed, TRAIN, epoch))[size * place :][:size]
        x, y = _floats(data, data.train[rows], seed, rows, epoch), labels[rows].long()
        loss = nn.functional.cross_entropy(extractor.head(extractor.body(x)), y, label_smoothing=0.05)
        loss.backward()
        return loss.detach()

    def between(k: int) -> str:
        if k % LOOK and k != total:
            return ""
        loss, count = descent.take()
        return f"loss={float(loss) / count:.3f}"

    def diverged(where: str) -> str:
        return f"the classifier's loss or its gradient is not finite at {where}: take a learning rate below {lr}"

    adam = torch.optim.AdamW(extractor.parameters(), lr=lr, weight_decay=1e-2)
    descent = Descent(adam, Schedule(lr, total, warmup=max(1, total // 10)), diverged, every=LOOK)
    with torch.inference_mode(False), torch.enable_grad():
        descend(descent, gradient, between, progress=progress, what="features")
    extractor.eval().requires_grad_(False)
    if len(data.test) and data.test_labels is not None:
        found = extractor.classify(_floats(data, data.test, seed, torch.arange(len(data.test), device="cpu"), 0))
        extractor.accuracy = float((found == data.test_labels).double().mean())
    return extractor


def _floats(data: Data, x: Tensor, seed: int, ids: Tensor, draw: int) -> Tensor:
    return x.float() if data.transform is None else data.transform.dequantize(x, seed, ids, draw)


def features_name(features: Any) -> str:
    """What a report calls features: their repr for ours, the function's or class's name for others; "none"."""
    if features is None:
        return "none"
    if isinstance(features, FeatureExtractor):
        digest = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in features.state_dict().values())).hexdigest()
        return f"{features!r}, {digest[:12]}"
    return str(getattr(features, "__qualname__", type(features).__qualname__))

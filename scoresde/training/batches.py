"""The batches of a training run: which samples step k sees, as a function of (seed, k)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_shape, did_you_mean
from scoresde.core.digest import sha256_of
from scoresde.core.noise import Noise, permutation, seeded
from scoresde.core.streams import AUGMENT, TRAIN_ORDER
from scoresde.data.augment import check_augmentation
from scoresde.data.dataset import Data
from scoresde.errors import ConfigError, DTypeError, ShapeError
from scoresde.models.network import made_with
from scoresde.models.reference import GaussianReference, detail_of

if TYPE_CHECKING:
    from scoresde.data.augment import Augmentation
    from scoresde.data.transform import Transform
    from scoresde.models.base import ScoreModel

_ASKS = {"label": "classes", "augment": "augmentations"}  # arguments of our networks without which they take no such condition


@runtime_checkable
class _Items(Protocol):
    """A map-style Dataset, of torch or not."""

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Source:
    """Samples to train on and to validate with; ``Source.make`` checks them.

    Args:
        samples: (N, *event) tensor, or a torch Dataset.
        transform: for integer levels.
        labels: (N,) or None.
        conditional: whether labels go to the model.
        test, test_labels: for validation, or None.
    """

    samples: Any
    event_shape: tuple[int, ...]
    transform: Transform | None = None
    labels: Tensor | None = None
    conditional: bool = False
    test: Tensor | None = None
    test_labels: Tensor | None = None

    @classmethod
    def make(cls, data: Any, model: ScoreModel, conditional: bool | None) -> Source:
        """Checks what ``fit`` was given. Raises ConfigError, DTypeError, ShapeError, NonFiniteError."""
        event, asked = model.event_shape, conditional
        if conditional is None:  # a network that was made with classes asks for labels
            conditional = bool((made_with(model) or {}).get("classes"))
        if isinstance(data, Data):
            check_shape(data.train, event, "data.train")
            if data.transform is None:
                _check_dtype(data.train, model, "data.train")
            conditional = conditional and data.labels is not None
            test = data.test if len(data.test) and (not conditional or data.test_labels is not None) else None
            source = cls(data.train, event, data.transform, data.labels, conditional, test, data.test_labels)
        elif isinstance(data, Tensor) or not isinstance(data, _Items) or isinstance(data, (np.ndarray, list, tuple, dict)):
            if not isinstance(data, (Tensor, np.ndarray, list, tuple)):
                raise ConfigError(f"data is a {type(data).__name__}, expected a Data, a float tensor or a torch Dataset")
            _check_dtype(check_data(data, event, "data"), model, "data")
            source = cls(data, event)
        else:
            try:
                n = len(data)  # type: ignore[arg-type]
            except TypeError:
                raise ConfigError(f"data is a {type(data).__name__} without a length, expected a map-style Dataset") from None
            if not n:
                raise ShapeError("data is an empty batch: a Dataset of length 0")
            source = cls(data, event, conditional=conditional)
        if asked and source.labels is None and isinstance(source.samples, Tensor):
            raise ConfigError("conditional=True, but the data have no labels: give a Data with labels, or a Dataset")
        source.check_conditions(model)
        return source

    def check_conditions(self, model: ScoreModel) -> None:
        """Checks that the model takes the conditions that the data give. Of a Dataset the first item is looked at.

        Raises:
            ConfigError: it does not take one; names that and the nearest that it takes.
        """
        given: list[str] = ["label"] if self.conditional else []
        if not isinstance(self.samples, Tensor) and not model.conditions.others:
            with seeded(0):  # items may be random, and nothing that is drawn here may be seen later
                given = list(self._collate([self.samples[0]])[1])
        for name in given:
            made = made_with(model) or {}
            takes = [other for other in model.conditions.names if made.get(_ASKS.get(other, ""), True)]
            if name not in takes and not (model.conditions.others and name not in model.conditions.names):
                conditions = f"takes {', '.join(takes)} as condition" if takes else "takes no condition"
                raise ConfigError(f"the data give the condition {name!r}, but the model {conditions}{did_you_mean(name, takes)}")

    def order(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """The samples at some positions of the endless sequence of epochs, each a permutation of all samples."""
        n = len(self.samples)
        epochs = positions // n
        index = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            there = epochs == epoch
            index[there] = permutation(n, seed, TRAIN_ORDER, epoch)[positions[there] % n]
        return index

    def batch(
        self,
        index: np.ndarray,
        ids: np.ndarray,
        seed: int,
        draw: int,
        model: ScoreModel,
        device: torch.device,
        test: bool = False,
        augment: Augmentation | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Samples in model space (B, *event) and their conditions.

        Args:
            index: which samples.
            ids, seed, draw: what their dequantization is a function of.
            model: gives the dtype.
            device: where to put them.
            test: from the test set.
            augment: what to do with them before; how is the condition ``augment``.
        """
        samples: Any = self.test if test else self.samples
        labels = self.test_labels if test else self.labels
        rows = torch.from_numpy(index)
        cond: dict[str, Any] = {}
        if not isinstance(samples, Tensor):
            x, cond = self._collate([samples[i] for i in index.tolist()])
            check_data(x, self.event_shape, "data")
            _check_dtype(x, model, "data")
        else:
            x = samples[rows.to(samples.device)]
            if self.conditional and labels is not None:
                cond = {"label": labels[rows.to(labels.device)]}
        if augment is not None:
            u = Noise(seed, ids, (augment.draws,), torch.float64).uniform(AUGMENT, draw)
            x, how = augment(x, u.to(x.device))
            cond["augment"] = how.to(model.dtype)
        if self.transform is not None:
            x = self.transform.training(x, seed, ids, draw, model.dtype, device)
        cond = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in cond.items()}
        return x.to(device), cond

    def reference(self, model: ScoreModel) -> GaussianReference | None:
        """Mean and covariance of the training samples (of a large set, of evenly spaced ones), dequantized as for training.

        Of a Dataset none is made (None): its items may be slow to make, random, or meant to be read once an epoch.
        """
        if not isinstance(self.samples, Tensor):
            return None
        n, most = len(self.samples), (1 << 26) // math.prod(self.event_shape)
        index = np.unique(np.linspace(0, n - 1, min(n, max(most, 2))).astype(np.int64))
        x, _ = self.batch(index, index, 0, 0, model, torch.device("cpu"))
        return replace(GaussianReference.fit(x if len(x) > 1 else torch.cat([x, x]), width=2.0), detail=detail_of(self.transform))

    def _collate(self, items: list[Any]) -> tuple[Tensor, dict[str, Any]]:
        """Items x, (x,), (x, label) or (x, dict of conditions) of a Dataset, stacked."""
        first, *rest = items[0] if isinstance(items[0], (tuple, list)) else (items[0],)
        if not isinstance(first, Tensor):
            raise DTypeError(f"the Dataset gives a {type(first).__name__}, expected tensors: x, (x, label) or (x, dict)")
        x = torch.stack([item[0] if isinstance(item, (tuple, list)) else item for item in items])
        if not rest:
            return x, {}
        if isinstance(rest[0], Mapping):
            return x, {key: torch.stack([torch.as_tensor(item[1][key]) for item in items]) for key in rest[0]}
        return x, {"label": torch.stack([torch.as_tensor(item[1]) for item in items])} if self.conditional else {}

    def hash(self) -> str:
        """sha256 of the training samples, labels and transform; of a Dataset its class and length only."""
        levels = None if self.transform is None else replace(self.transform, dequantization="uniform")  # which is no part of the data
        if not isinstance(self.samples, Tensor):
            return f"{type(self.samples).__name__} of {len(self.samples)}"
        seen = [x for x in (self.samples, self.labels if self.conditional else None) if x is not None]
        return sha256_of(repr(levels), *(part for x in seen for part in (f"{x.dtype} {tuple(x.shape)};", x)))


def check_told(model: ScoreModel, augment: Augmentation) -> None:
    """Checks that the network is told what was done to its samples. Raises ConfigError."""
    made = made_with(model)
    check_augmentation(augment)
    told = made.get("augmentations", 0) if made else augment.labels  # a network of one's own is taken on trust
    if told != augment.labels:
        raise ConfigError(
            f"augment = {augment}, but the network was made with augmentations={told}: make it with augmentations={augment.labels}. "
            "One that is not told would model the augmented data, and pay for them in bits per dimension"
        )
    if "augment" not in model.conditions.names and not model.conditions.others:
        raise ConfigError(f"augment = {augment}, but the model takes no condition 'augment': it must be told what was done to x")


def _check_dtype(x: Tensor, model: ScoreModel, name: str) -> None:
    if not x.dtype.is_floating_point:
        raise DTypeError(f"{name} has dtype {x.dtype}: give a `Transform`, as in scoresde.data.from_dataset(..., levels=K)")
    if x.dtype != model.dtype:
        raise DTypeError(f"{name} has dtype {x.dtype} but the model has {model.dtype}: use {name}.to({model.dtype})")

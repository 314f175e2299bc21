"""The batches of a training run: which samples step k sees, as a function of (seed, k)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scoresde.core.checks import check_data, check_shape, did_you_mean, theirs
from scoresde.core.digest import sha256_of
from scoresde.core.noise import Noise, permutation, seeded
from scoresde.core.streams import AUGMENT, TRAIN_ORDER
from scoresde.data.augment import check_augmentation
from scoresde.data.dataset import Data
from scoresde.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from scoresde.models.conditions import OURS, Conditions, slice_cond
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
        given: the names of the conditions that the model is given.
    """

    samples: Any
    event_shape: tuple[int, ...]
    transform: Transform | None = None
    labels: Tensor | None = None
    conditional: bool = False
    test: Tensor | None = None
    test_labels: Tensor | None = None
    given: tuple[str, ...] = ()

    @classmethod
    def make(cls, data: Any, model: ScoreModel, conditional: bool | None) -> Source:
        """Checks what ``fit`` was given, and warns of conditions that are dropped or missing.

        Raises:
            ConfigError, DTypeError, ShapeError, NonFiniteError: what makes no sense.
        """
        event, asked = model.event_shape, conditional
        conditional = takes_label(model) if conditional is None else conditional
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
            conditional = False
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
        given = source.check_conditions(model, dropped=asked is None)
        if asked is None and "label" not in given and model.conditions.required == ("label",):
            warnings.warn(
                "the network was made with classes, and the data have no labels: it is trained without them. Give a Data with labels, "
                "or make the network without classes",
                stacklevel=4,
            )
        return replace(source, given=tuple(given))

    def check_conditions(self, model: ScoreModel, dropped: bool) -> list[str]:
        """Checks that the model takes the conditions that the data give, and names them. Of a Dataset the first item is looked at.

        Args:
            model: the model.
            dropped: whether to warn of a second part of its items that goes nowhere.

        Raises:
            ConfigError: it does not take one; names that and the nearest that it takes; one is missing that it cannot be called
                without; one is called like an argument of every model.
        """
        given: list[str] = ["label"] if self.conditional else []
        if not isinstance(self.samples, Tensor):
            with seeded(0):  # items may be random, and nothing that is drawn here may be seen later
                first = self._item(self.samples, 0)
            given = list(self._collate([first], [0], model.dtype)[1])
            if dropped and not given and isinstance(first, (tuple, list)) and len(first) > 1:
                warnings.warn(
                    f"the items of this {type(self.samples).__name__} have a second part, and the network takes no label: it is trained "
                    "without. Give a dict of conditions as second part, {'vector': y}, to a network that takes them; conditional=False "
                    "says that this is meant",
                    stacklevel=5,
                )
        takes = [other for other in model.conditions.names if (made_with(model) or {}).get(_ASKS.get(other, ""), True)]
        conditions = f"takes {', '.join(takes)} as condition" if takes else "takes no condition"
        for name in given:
            if name in OURS:
                raise ConfigError(f"the data give a condition {name!r}, as an argument of every model is called: give it another name")
            if name not in takes and not (model.conditions.others and name not in model.conditions.names):
                raise ConfigError(f"the data give the condition {name!r}, but the model {conditions}{did_you_mean(name, takes)}")
        for name in model.conditions.required:
            if name not in given and (name not in _ASKS or name not in takes):
                raise ConfigError(f"the network cannot be called without {name!r}, which the data do not give: they give {given or 'none'}")
        return given

    def told(self, takes: Conditions) -> Conditions:
        """What a model takes after training on this: it can do without a label if it was trained without."""
        return takes._replace(required=tuple(name for name in takes.required if name in self.given or name not in _ASKS))

    def order(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """The samples at some positions of the endless sequence of epochs, each a permutation of all samples."""
        n = len(self.samples)
        if n == 1:  # an epoch each
            return np.zeros_like(positions)
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
            x, cond = self._collate([self._item(samples, i) for i in index.tolist()], index.tolist(), model.dtype)
            check_shape(x, self.event_shape, "data")
            _check_dtype(x, model, "data")
            finite = x.flatten(1).isfinite().all(1)
            if not bool(finite.all()):
                bad = index[int((~finite).nonzero()[0])]
                raise NonFiniteError(f"item {bad} of the Dataset holds NaN or infinity: repair it, or leave it out")
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
        return x.to(device), slice_cond(cond, lambda v: v.to(device), len(x))

    def reference(self, model: ScoreModel) -> GaussianReference | None:
        """Mean and covariance of the training samples (of a large set, of evenly spaced ones), dequantized as for training.

        Of a Dataset none is made (None): its items may be slow to make, random, or meant to be read once an epoch.
        """
        if not isinstance(self.samples, Tensor):
            return None
        index = self._evenly((1 << 26) // math.prod(self.event_shape))
        x, _ = self.batch(index, index, 0, 0, model, torch.device("cpu"))
        return replace(GaussianReference.fit(x if len(x) > 1 else torch.cat([x, x]), width=2.0), detail=detail_of(self.transform))

    def evenly(self, most: int) -> Tensor:
        """At most so many of the samples in memory, evenly spaced: all of a small set."""
        return self.samples[torch.from_numpy(self._evenly(most))]

    def _evenly(self, most: int) -> np.ndarray:
        n = len(self.samples)
        return np.unique(np.linspace(0, n - 1, min(n, max(most, 2))).astype(np.int64))

    def _item(self, samples: Any, i: int) -> Any:
        """Item i of a user's Dataset. Raises ConfigError that names the item, if their code raises."""
        with theirs(f"item {i} of the Dataset"):
            return samples[i]

    def _collate(self, items: list[Any], index: list[int], dtype: torch.dtype) -> tuple[Tensor, dict[str, Any]]:
        """Items x, (x,), (x, label) or (x, dict of conditions) of a Dataset, stacked; ``index`` says which they are."""
        parts = [tuple(item) if isinstance(item, (tuple, list)) else (item,) for item in items]
        for i, part in zip(index, parts, strict=True):
            if not part or not isinstance(part[0], Tensor):
                got = type(part[0]).__name__ if part else "nothing"
                raise DTypeError(f"item {i} of the Dataset is a {got}, expected a tensor: x, (x, label) or (x, dict of conditions)")
            if tuple(part[0].shape) != self.event_shape:
                raise ShapeError(f"item {i} of the Dataset has shape {tuple(part[0].shape)}, the model's samples {self.event_shape}")
        x = torch.stack([part[0] for part in parts])
        if len(parts[0]) == 1:
            return x, {}
        if isinstance(parts[0][1], Mapping):
            known = list(zip(index, parts, strict=True))
            return x, {key: _stacked([_entry(part, key, i) for i, part in known], key, dtype) for key in parts[0][1]}
        return x, {"label": _stacked([part[1] for part in parts], "label", dtype)} if self.conditional else {}

    def hash(self) -> str:
        """sha256 of the training samples, labels and transform; of a Dataset its class and length only."""
        levels = None if self.transform is None else replace(self.transform, dequantization="uniform")  # which is no part of the data
        if not isinstance(self.samples, Tensor):
            return f"{type(self.samples).__name__} of {len(self.samples)}"
        seen = [x for x in (self.samples, self.labels if self.conditional else None) if x is not None]
        return sha256_of(repr(levels), *(part for x in seen for part in (f"{x.dtype} {tuple(x.shape)};", x)))


def takes_label(model: ScoreModel) -> bool:
    """Whether a network takes ``label``: by its signature, or since it takes any condition; of ours if it was made with classes."""
    takes = "label" in model.conditions.names or model.conditions.others
    return takes and bool((made_with(model) or {}).get("classes", True))


def _entry(part: tuple[Any, ...], key: str, i: int) -> Any:
    if len(part) < 2 or not isinstance(part[1], Mapping) or key not in part[1]:
        raise ConfigError(f"item {i} of the Dataset has no condition {key!r}, but the first item has: give the same ones with each")
    return part[1][key]


def _stacked(values: list[Any], name: str, dtype: torch.dtype) -> Any:
    """The conditions of some items as those of a batch: tensors, arrays and numbers stacked, mappings entry by entry, texts as a list.
    Floats that are no tensors become ``dtype``."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _stacked([value[key] for value in values], f"{name}[{key!r}]", dtype) for key in first}
    if isinstance(first, str):
        return values
    try:
        stacked = torch.stack([value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu") for value in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"condition {name!r} of a Dataset: its items cannot be stacked, {error}") from error
    return stacked.to(dtype) if stacked.is_floating_point() and not isinstance(first, Tensor) else stacked


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

"""Score models: everything that samples, scores or is trained is one method, E[x_0 | x_t], under one SDE."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from scoresde.core.checks import check_floating, check_shape
from scoresde.core.tensors import affine
from scoresde.errors import ConfigError, DeviceError, DTypeError, ShapeError
from scoresde.models.answers import Answers
from scoresde.models.conditions import Conditions, as_tensors, check_conditions, slice_cond
from scoresde.models.counting import counted
from scoresde.models.plain import clean_name, eagerly
from scoresde.sdes.base import SDE, check_ends, check_range
from scoresde.sdes.levels import Level

if TYPE_CHECKING:
    from scoresde.models.counting import Calls


_AS_IT_IS: nullcontext[None] = nullcontext()


class ScoreModel(nn.Module, Answers):
    r"""A model of the score of x_t under an SDE.

    A subclass defines ``denoise(x, t, **cond)``, the estimate of E[x_0 | x_t = x] (or ``predict``, which gives the noise too,
    where that is more accurate than x = alpha x0 + sigma eps solved for eps). All else follows, with one call each (``Answers``).

    Attributes:
        sde, event_shape: the diffusion, and the shape of one sample.
        reference: mean and covariance of the data; None: not known.
        transform: how the data's levels map to the model's space; None: the data are the model's space.
        weights: "averaged" or "raw", which of a checkpoint's; ``fit`` leaves averaged ones.
        recipes: by number of network calls, what ``tune`` found, for ``sample``.
        conditions: what the model may be told beside x and t.

    The answers raise ShapeError (x, t or the network's answer of a wrong shape), DTypeError and DeviceError (x and the network
    do not match), TimeRangeError (t outside [t_min, t_max]) and NonFiniteError (t is NaN).
    """

    weights: str = "averaged"
    transform: Any = None  # a scoresde.Transform; data are above models
    recipes: dict[int, Any]
    conditions: Conditions
    _gives_noise: ClassVar[bool] = False  # whether it is predict that the subclass defines
    _own_denoise: Callable[..., Tensor]
    _own_predict: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, sde: SDE, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise ConfigError(f"sde = {sde!r}, expected an instance of an SDE, scoresde.VPSDE() for instance")
        check_range(sde)
        check_ends(sde)
        self.sde = sde
        try:
            self.event_shape = tuple(operator.index(n) for n in event_shape)
        except TypeError:  # no sequence, or not of integers
            self.event_shape = ()
        if not self.event_shape or min(self.event_shape) < 1:
            raise ConfigError(f"event_shape = {event_shape!r}, expected positive integers, (1, 28, 28) for instance")
        self.recipes = {}
        self.conditions = Conditions.of(self._own_predict if self._gives_noise else self._own_denoise, 2)
        self._calls: list[Calls] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Puts the checks and the counting of calls around the subclass's own denoise or predict."""
        super().__init_subclass__(**kwargs)
        for name in ("denoise", "predict"):
            if name in vars(cls):
                setattr(cls, f"_own_{name}", vars(cls)[name])
                setattr(cls, name, getattr(ScoreModel, name))
        cls._gives_noise = hasattr(cls, "_own_predict")
        if not (cls._gives_noise or hasattr(cls, "_own_denoise")):
            raise ConfigError(f"{cls.__name__} defines neither denoise(x, t, **cond) nor predict(x, t, **cond)")

    def _own(self, x: Tensor, t: Tensor | float, /, **cond: Any) -> tuple[Tensor, Tensor | None]:
        """(x0, eps) of the subclass's predict, or (x0, None) of its denoise."""
        return self._own_predict(x, t, **cond) if self._gives_noise else (self._own_denoise(x, t, **cond), None)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The same as ``denoise``."""
        return self.denoise(x, t, **cond)

    def _evaluate(self, x: Tensor, t: Tensor | float, cond: dict[str, Any], noise: bool = False) -> tuple[Any, Any, Any]:
        """One call of the model: (x0, eps or None, level), checked and counted."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            check_floating(x)
        if x.shape[1:] != self.event_shape or x.ndim < 2:
            check_shape(x, self.event_shape)
        if cond and not all(isinstance(value, Tensor) and value.ndim and len(value) == len(x) for value in cond.values()):
            cond = slice_cond(as_tensors(cond, self.dtype), lambda rows: rows.to(x.device), len(x))
        t = t if isinstance(t, Level) else self.sde._check_time(t)
        level = self.sde.level(t, x)
        t = level if isinstance(level, Level) else t
        try:
            with eagerly(self) if x.requires_grad else _AS_IT_IS:
                x0, eps = counted(self._calls, self._own, x, t, **cond)
        except (RuntimeError, TypeError):
            self._explain(x, cond)
            raise
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            got = f"shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
            raise ShapeError(f"the model answered {got} for x of shape {tuple(x.shape)}: both must have the same shape")
        if noise and eps is None:
            eps = affine(1 / level.sigma, x.to(x0.dtype), -level.alpha / level.sigma, x0)
        return x0, eps, level

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As of any module, with the names that parameters have without ``torch.compile``, ``DataParallel`` and the like around them."""
        found, clean, prefix = super().state_dict(*args, **kwargs), clean_name(self), kwargs.get("prefix", "")
        for name in [name for name in found if name.startswith(prefix)]:
            if (short := prefix + clean(name.removeprefix(prefix))) != name:
                found[short] = found.pop(name)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module, by the names of ``state_dict``."""
        clean = clean_name(self)
        long = {clean(name): name for name in super().state_dict()}
        return super().load_state_dict({long.get(name, name): value for name, value in state_dict.items()}, *args, **kwargs)

    def count_vjp(self, n: int) -> None:
        for calls in self._calls:
            calls.vjp += n

    def count_samples(self, ids: Iterable[int], n: Tensor) -> None:
        if self._calls:  # to read n waits for the device
            found = {int(i): int(count) for i, count in zip(ids, n.tolist(), strict=True)}
            for calls in self._calls:
                for i, count in found.items():
                    calls.per_sample[i] = calls.per_sample.get(i, 0) + count

    def _explain(self, x: Tensor, cond: dict[str, Any]) -> None:
        """Turns a network's failure on a foreign dtype, device or condition into the error that names them."""
        check_conditions(self.conditions._replace(required=()), cond, dtype=x.dtype)
        check_same_kind(self, x)

    @property
    def learned(self) -> bool:
        """Whether the model has parameters: a network, that is, and no formula."""
        return any(True for _ in self.parameters())

    @property
    def data_std(self) -> float:
        """The std of the data that the model is scaled for: what is assumed of data of which nothing is known. 1, if it says no other."""
        return 1.0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floating-point parameters or buffers; torch's default for a model without any."""
        first = self._first()
        return torch.get_default_dtype() if first is None else first.dtype

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters or buffers; the CPU for a model without any."""
        first = self._first()
        return torch.device("cpu") if first is None else first.device

    def _first(self) -> Tensor | None:
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor
        return None


def has_dtype(model: ScoreModel) -> bool:
    """Whether the model has parameters or buffers, whose dtype is the one that it is asked in."""
    return model._first() is not None


def check_same_kind(model: ScoreModel, x: Tensor, name: str = "x") -> None:
    """Checks that x has the dtype and device of the model, if it has any. Raises DTypeError, DeviceError."""
    if model._first() is None:
        return
    if x.dtype != model.dtype:
        raise DTypeError(
            f"{name} has dtype {x.dtype} but the model has {model.dtype}: use {name}.to(model.dtype), or model.to({x.dtype})"
        )
    if x.device != model.device:
        raise DeviceError(f"{name} is on {x.device} but the model is on {model.device}: use {name}.to(model.device)")


class _Together:
    """A change of a model that several threads may want at once: the first makes it, the last undoes it."""

    def __init__(self, change: Callable[[nn.Module], Callable[[], None]]) -> None:
        self.change = change
        self.lock = threading.Lock()
        self.within: WeakKeyDictionary[nn.Module, tuple[int, Callable[[], None]]] = WeakKeyDictionary()

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        with self.lock:
            n, undo = self.within.get(model) or (0, self.change(model))
            self.within[model] = n + 1, undo
        try:
            yield
        finally:
            with self.lock:
                n, undo = self.within.pop(model)
                if n > 1:
                    self.within[model] = n - 1, undo
                else:
                    undo()


def _evaluating(model: nn.Module) -> Callable[[], None]:
    """Evaluation mode; gives what puts the model back into its own."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False

    def undo() -> None:
        for module in training:
            module.training = True

    return undo


def _without_gradients(model: nn.Module) -> Callable[[], None]:
    """Parameters that ask for no gradient; gives what lets them ask again."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)

    def undo() -> None:
        for parameter in changed:
            parameter.requires_grad_(True)

    return undo


_evaluation, _freezing = _Together(_evaluating), _Together(_without_gradients)


@contextmanager
def inference(model: nn.Module, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless asked; the model is given back as it was, by the last of several threads."""
    # log_prob needs gradients inside, whatever is outside
    with _evaluation(model), torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients; given back as they were, by the last of several threads."""
    with _freezing(model):
        yield


def check_model(model: Any) -> None:
    if not isinstance(model, ScoreModel):
        raise ConfigError(
            f"model is a {type(model).__name__}, expected a ScoreModel: scoresde.NetworkModel(net, sde, event_shape) for a network"
        )

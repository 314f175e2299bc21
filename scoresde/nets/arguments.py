"""Networks: plain ``nn.Module``s with ``forward(x, c_noise, **cond)`` that know nothing of SDEs.

x is a batch (B, *event) scaled to about unit variance, c_noise (B,) says how noisy it is, as ln(sigma/alpha)/4 (about
-2..2), and the result has the shape of x. What the result means (x0, eps, v, ...) is the parameterization's business.

Every network here
    - starts as the zero function, so that training starts from the parameterization's skip connection;
    - treats each sample on its own (no batch statistics);
    - has neither in-place operations nor control flow that depends on data, so that it can be differentiated twice and
      under ``vmap`` (``torch.autograd.grad(..., is_grads_batched=True)``, which exact divergences use);
    - keeps its constructor's arguments in ``net.config``, a dict that JSON can hold: ``UNet(**net.config)`` is the same
      network with other weights;
    - reads x and writes its result in the precision of its weights even under autocast: bfloat16 has 8 bits, which is
      coarser than the noise that matters for likelihoods.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scoresde.core.checks import as_integer, as_number, check_integer, check_memory
from scoresde.errors import ConfigError, DTypeError, ShapeError

MOST = 100_000  # of any size in a network: more is a mistake


def check_size(value: Any, name: str) -> int:
    """An integer from 1 to MOST. Raises ConfigError."""
    return check_integer(value, name, 1, MOST)


def check_weights(count: float, what: str) -> None:
    """Raises ConfigError, before any is made, if this many weights are more than the machine has memory for."""
    check_memory(4.0 * count, what)


def check_count(augmentations: Any, config: dict[str, Any]) -> int:
    """Checks their number, and puts it into the config if there are any."""
    if as_integer(augmentations) != 0:
        config["augmentations"] = check_size(augmentations, "augmentations")
    return config.get("augmentations", check_integer(augmentations, "augmentations", 0, MOST))


def zeroed(layer: Any) -> Any:
    """The same layer with zero weights and biases."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_input(x: Tensor, c_noise: Tensor, weight: Tensor) -> None:
    """Checks what a network is given against its weights. Raises DTypeError, ShapeError."""
    if x.dtype != weight.dtype:
        raise DTypeError(
            f"x has dtype {x.dtype} but the network's weights have {weight.dtype}: "
            "convert one of them, x.to(dtype) or net.to(dtype)"
        )
    if c_noise.shape != x.shape[:1]:
        raise ShapeError(f"c_noise has shape {tuple(c_noise.shape)} for x of shape {tuple(x.shape)}, expected (B,)")
    if not c_noise.dtype.is_floating_point:
        raise DTypeError(f"c_noise has dtype {c_noise.dtype}, expected floating point: it is ln(sigma/alpha)/4")


def check_event_shape(value: Any, name: str, sequence: bool = False) -> tuple[int, ...]:
    """Checks a positive int or a non-empty sequence of them."""
    if as_integer(value) is not None and not sequence:
        return (check_size(value, name),)
    if not isinstance(value, (list, tuple)) or not value:
        kind = "a non-empty sequence of positive integers" + ("" if sequence else ", or one")
        raise ConfigError(f"{name} = {value!r}, expected {kind}")
    return tuple(check_size(v, f"{name}[{i}]") for i, v in enumerate(value))


def check_levels(attention: Any, levels: int) -> list[int]:
    found = [as_integer(a) for a in attention] if isinstance(attention, (list, tuple)) else [None]
    levels_of = [a for a in found if a is not None and -levels <= a < levels]
    if len(levels_of) < len(found):
        raise ConfigError(
            f"attention = {attention!r}, expected a sequence of levels in {-levels}..{levels - 1} "
            "(0 is the full resolution, -1 the lowest, () for none)"
        )
    return levels_of


def check_probability(value: Any, name: str) -> float:
    found = as_number(value)
    if found is None or not 0 <= found < 1:
        raise ConfigError(f"{name} = {value!r}, expected a probability in [0, 1)")
    return found

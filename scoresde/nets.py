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

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._tensor import check_positive_int
from .errors import ConfigError, DTypeError, ShapeError

_EMBEDDINGS = ("fourier", "sinusoidal")


class MLP(nn.Module):
    """Residual network for vectors, or for small events of any shape, which it flattens.

    Each block is h <- h + W2 silu(W1 silu((1 + a) norm(h) + b)), with a, b linear in an embedding of the noise level.

    Args:
        features: number of features D, or the event shape. x has shape (B, D) or (B, *features).
        width: hidden features.
        depth: number of residual blocks (two linear layers each).
        embedding: features of the noise level: "fourier" or "sinusoidal", see ``UNet``.
        classes: number of classes; None is an unconditional network.
        dropout: probability of dropout inside the blocks.
        label_dropout: probability that training replaces a label by "no label", as classifier-free guidance needs
            (arXiv 2207.12598).
        frequencies: of Fourier features of x, see ``UNet``.
        augmentations: length of the vector that says how a sample was augmented, see ``scoresde.augment``; 0: it takes none.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        width: int = 128,
        depth: int = 4,
        embedding: str = "fourier",
        classes: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        frequencies: Sequence[float] = (),
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = _shape(features, "features")
        self.config: dict[str, Any] = {
            "features": features if isinstance(features, int) else list(self.event_shape),
            "width": check_positive_int(width, "width"),
            "depth": check_positive_int(depth, "depth"),
            "embedding": embedding,
            "classes": classes,
            "dropout": _probability(dropout, "dropout"),
            "label_dropout": _probability(label_dropout, "label_dropout"),
        }
        self.frequencies = _frequencies(frequencies, self.config)
        size = math.prod(self.event_shape)
        self.embedding = _Embedding(width, width, embedding, classes, label_dropout, _count(augmentations, self.config))
        self.input = nn.Linear(size * (1 + 2 * len(self.frequencies)), width)
        self.blocks = nn.ModuleList(_VectorBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = _zero(nn.Linear(width, size))

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """x (B, *event), c_noise (B,), label (B,) of class numbers or None, augment (B, n) or None for 0 -> (B, *event).

        Raises:
            ShapeError, DTypeError, ConfigError: see ``UNet.forward``.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            event = ", ".join(map(str, self.event_shape))
            raise ShapeError(f"x has shape {tuple(x.shape)}, but this MLP was made for (B, {event})")
        _check_input(x, c_noise, cond, self.input.weight)
        emb = self.embedding(c_noise, label, augment, x)
        with _full_precision(x):
            h = self.input(with_waves(x, c_noise, self.frequencies).flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        h = F.silu(self.norm(h))
        with _full_precision(x):
            return self.output(h.to(x.dtype)).view(x.shape)


class UNet(nn.Module):
    """U-Net for images (B, C, H, W) of any size, after DDPM++ and EDM (arXiv 2011.13456, app. H; 2206.00364).

    Level i works on images of 1/2^i of the size (rounded up: 28, 14, 7, 4) with width * multipliers[i] channels, and has
    ``blocks`` residual blocks on the way down and as many on the way up. Each of the latter starts from the sum of what
    it is given and the result of its partner on the way down. (DDPM++ concatenates them, and has one block more: a
    training step then takes 1.5 times as long, with nothing gained that was seen on 8x8 images.) A residual block is

        h <- (h + conv silu((1 + a) norm(conv silu norm h) + b)) / sqrt 2

    with group norms, and a and b linear in an embedding of the noise level.

    Args:
        channels: image channels C, in and out.
        width: channels of the first level.
        multipliers: one per level.
        blocks: residual blocks per level and way.
        attention: levels whose blocks are followed by self-attention; 0 is the full resolution, -1 the lowest. The
            middle of the network has it in any case.
        classes: number of classes; None is an unconditional network.
        dropout: probability of dropout inside the blocks.
        embedding: features of the noise level c: "fourier", cos and sin of 2 pi f c with f the quantiles of a
            half-normal distribution (arXiv 2006.10739, without its random draw), or "sinusoidal", geometric frequencies
            as in transformers (arXiv 2006.11239).
        groups: groups of the group norms; a norm of n channels uses gcd(groups, n).
        heads: attention heads; they divide the channels of the levels with attention.
        label_dropout: probability that training replaces a label by "no label", as classifier-free guidance needs
            (arXiv 2207.12598).
        frequencies: f of Fourier features of x, cos and sin of 2 pi f x as further input channels, which fade where the noise hides
            them (``with_waves``). A network cannot see single levels of finely quantized data without them: K/2 levels a unit of
            x make f = K/2 a wave a level, for integer levels on [-1, 1] (2107.00630, app. C, has f = 64 and 128 for 256 levels).
            (x is what the network is given: where there is little noise the sample itself, but twice that under "edm".)
        augmentations: length of the vector that says how a sample was augmented, see ``scoresde.augment``; 0: it takes none.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        classes: int | None = None,
        dropout: float = 0.0,
        embedding: str = "fourier",
        groups: int = 8,
        heads: int = 1,
        label_dropout: float = 0.0,
        frequencies: Sequence[float] = (),
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        levels = len(_shape(multipliers, "multipliers", sequence=True))
        self.config: dict[str, Any] = {
            "channels": check_positive_int(channels, "channels"),
            "width": check_positive_int(width, "width"),
            "multipliers": list(multipliers),
            "blocks": check_positive_int(blocks, "blocks"),
            "attention": _levels(attention, levels),
            "classes": classes,
            "dropout": _probability(dropout, "dropout"),
            "embedding": embedding,
            "groups": check_positive_int(groups, "groups"),
            "heads": check_positive_int(heads, "heads"),
            "label_dropout": _probability(label_dropout, "label_dropout"),
        }
        self.frequencies = _frequencies(frequencies, self.config)
        attending = {level % levels for level in self.config["attention"]}
        widths = [width * m for m in multipliers]
        for level in attending | {levels - 1}:
            if widths[level] % heads:
                raise ConfigError(
                    f"heads = {heads} does not divide the {widths[level]} channels of level {level}: "
                    "change heads, width or multipliers"
                )
        size = 4 * width

        def stage(level: int) -> list[nn.Module]:
            h = heads if level in attending else 0
            return [_ImageBlock(widths[level], size, groups, dropout, h) for _ in range(blocks)]

        self.embedding = _Embedding(width, size, embedding, classes, label_dropout, _count(augmentations, self.config))
        self.input = nn.Conv2d(channels * (1 + 2 * len(self.frequencies)), widths[0], 3, padding=1)
        down, up = stage(0), stage(0)
        for level in range(1, levels):
            outer, inner = widths[level - 1], widths[level]
            # a strided convolution halves the size, rounding up; on the way up the channels shrink before the size grows
            down += [nn.Conv2d(outer, inner, 3, stride=2, padding=1), *stage(level)]
            up = [*stage(level), *([nn.Conv2d(inner, outer, 1)] if inner != outer else []), *up]
        n = widths[-1]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = nn.ModuleList(_ImageBlock(n, size, groups, dropout, h) for h in (heads, 0))
        self.norm = nn.GroupNorm(math.gcd(groups, widths[0]), widths[0])
        self.output = _zero(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """x (B, C, H, W), c_noise (B,), label (B,) of class numbers or None, augment (B, n) or None for 0 -> (B, C, H, W).

        A label of -1 is "no label" for one sample, None for all of them.

        Raises:
            ShapeError: x is not (B, channels, H, W); c_noise or label is not (B,).
            DTypeError: x is not of the dtype of the weights; c_noise is not floating point; label is not of integers.
            ConfigError: a label without ``classes``, or outside 0..classes-1 (seen on the CPU only); an unknown
                condition.
        """
        if x.ndim != 4 or x.shape[1] != self.config["channels"]:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, but this UNet was made for (B, {self.config['channels']}, H, W): "
                "images with the channels first"
            )
        _check_input(x, c_noise, cond, self.input.weight)
        emb = self.embedding(c_noise, label, augment, x)
        with _full_precision(x):
            h = self.input(with_waves(x, c_noise, self.frequencies))
        skips = []
        for layer in self.down:
            if isinstance(layer, _ImageBlock):
                h = layer(h, emb)
                skips.append(h)
            else:
                h = layer(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            if isinstance(layer, _ImageBlock):
                skip = skips.pop()
                h = layer((_upsample(h, skip) + skip) * 0.5**0.5, emb)
            else:
                h = layer(h)
        h = F.silu(self.norm(h))
        with _full_precision(x):
            return self.output(h.to(x.dtype))


class _Embedding(nn.Module):
    """(c_noise (B,), label (B,) or None) -> (B, size), ready for the linear layers of the blocks."""

    frequencies: Tensor

    def __init__(self, width: int, size: int, kind: str, classes: int | None, label_dropout: float, augmentations: int) -> None:
        super().__init__()
        if kind not in _EMBEDDINGS:
            raise ConfigError(f"embedding = {kind!r}, expected one of {', '.join(map(repr, _EMBEDDINGS))}")
        if label_dropout and classes is None:
            raise ConfigError(f"label_dropout = {label_dropout} without classes: give classes, or leave both out")
        n = max(width // 2, 1)
        grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        fourier, sinusoidal = 2 * math.pi * torch.special.ndtri((1 + grid) / 2), 100 * 10_000**-grid
        frequencies = (fourier if kind == "fourier" else sinusoidal).float()
        self.register_buffer("frequencies", frequencies, persistent=False)  # made from the arguments: nothing to save
        self.layers = nn.Sequential(nn.Linear(2 * n, size), nn.SiLU(), nn.Linear(size, size))
        self.augment = nn.Linear(augmentations, size, bias=False) if augmentations else None  # 0 for what was left as it is
        self.label_dropout = label_dropout
        # row 0 stands for "no label"
        self.label = None if classes is None else nn.Embedding(check_positive_int(classes, "classes") + 1, size)

    def forward(self, c_noise: Tensor, label: Tensor | None, augment: Tensor | None, x: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        emb = self.layers(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        if augment is not None:
            if self.augment is None or augment.shape != (len(x), self.augment.in_features):
                n = 0 if self.augment is None else self.augment.in_features
                raise ShapeError(f"augment has shape {tuple(augment.shape)}, but this network was made with augmentations={n}")
            emb = emb + self.augment(augment.to(x.dtype))
        if self.label is None:
            if label is not None:
                raise ConfigError("a label was given, but this network was made without classes: give classes=...")
            return F.silu(emb)
        if label is None:
            return F.silu(emb + self.label.weight[0])
        if not isinstance(label, Tensor) or label.dtype not in (torch.int64, torch.int32, torch.uint8):
            got = label.dtype if isinstance(label, Tensor) else type(label).__name__
            raise DTypeError(f"label is of {got}, expected integers: a LongTensor of class numbers")
        if label.shape != x.shape[:1]:
            raise ShapeError(f"label has shape {tuple(label.shape)} for x of shape {tuple(x.shape)}, expected (B,)")
        row = label.long() + 1
        if self.training and self.label_dropout:
            row = row * (torch.rand(row.shape, device=row.device) >= self.label_dropout)
        try:
            return F.silu(emb + self.label(row))
        except IndexError:  # raised by the look-up itself, on the CPU: no synchronisation for a check
            raise ConfigError(
                f"labels run from {int(label.min())} to {int(label.max())}, expected 0..{len(self.label.weight) - 2} "
                "(or -1 for no label)"
            ) from None


class _VectorBlock(nn.Module):
    def __init__(self, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the modulation has its own scale and shift
        self.modulation = nn.Linear(size, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.output = _zero(nn.Linear(width, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, 1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.output(self.dropout(F.silu(self.hidden(F.silu(h)))))


class _ImageBlock(nn.Module):
    """Residual block, with attention after it if heads > 0."""

    def __init__(self, channels: int, size: int, groups: int, dropout: float, heads: int) -> None:
        super().__init__()
        groups = math.gcd(groups, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(size, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels, affine=False)  # the modulation has its own scale and shift
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.attention = _Attention(channels, groups, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.conv2(self.dropout(h))
        return self.attention((x + h) * 0.5**0.5)  # keeps the variance


class _Attention(nn.Module):
    """Self-attention over the pixels, residual: softmax(q k^T / sqrt d) v."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = _zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = h.view(b, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Written out on purpose: F.scaled_dot_product_attention has no second derivative for its fused kernels and no
        # batching rule for their backward, and exact divergences and likelihood gradients need both.
        weights = torch.softmax(q @ k.transpose(2, 3) * (c // self.heads) ** -0.5, dim=3)
        h = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, height * width, c)
        return (x + self.output(h).transpose(1, 2).reshape(x.shape)) * 0.5**0.5


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    """Doubles x by repetition and crops it to the size of ``like`` if their sizes differ."""
    if x.shape[2:] == like.shape[2:]:
        return x
    b, c, h, w = x.shape
    x = x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    return x[:, :, : like.shape[2], : like.shape[3]]


def with_waves(x: Tensor, c_noise: Tensor, frequencies: Sequence[float]) -> Tensor:
    r"""x (B, C, ...) with Fourier features after it, exp(-(2 pi f s)^2/2) times cos(2 pi f x) and sin(2 pi f x): (B, (1 + 2 n) C, ...).

    s = exp(4 c_noise) = sigma/alpha, and the factor is what noise of that size leaves of a wave on average. Without it a wave is noise
    wherever s is not far below 1/f, and the network a rough function of x all along the path, whose ODE no solver follows.
    """
    if not frequencies:
        return x
    square = (8 * c_noise.clamp(max=4)).exp().to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    waves = [x]
    for f in frequencies:
        w = 2 * math.pi * f
        fade = (-0.5 * w * w * square).exp()
        waves += [fade * (w * x).cos(), fade * (w * x).sin()]
    return torch.cat(waves, 1)


def _frequencies(values: Any, config: dict[str, Any]) -> tuple[float, ...]:
    """Checks frequencies, and puts them into the config if there are any (older checkpoints know none)."""
    values = (values,) if isinstance(values, (int, float)) else values
    if not isinstance(values, (list, tuple)) or not all(isinstance(f, (int, float)) and 0 < f < math.inf for f in values):
        raise ConfigError(f"frequencies = {values!r}, expected positive numbers, [64, 128] for 256 levels on [-1, 1]; () for none")
    if values:
        config["frequencies"] = [float(f) for f in values]
    return tuple(float(f) for f in values)


def _count(augmentations: Any, config: dict[str, Any]) -> int:
    """Checks their number, and puts it into the config if there are any."""
    if augmentations:
        config["augmentations"] = check_positive_int(augmentations, "augmentations")
    return int(augmentations)


def _zero(layer: Any) -> Any:
    """The same layer with zero weights and biases."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _check_input(x: Tensor, c_noise: Tensor, cond: dict[str, Any], weight: Tensor) -> None:
    if cond:
        names = ", ".join(sorted(cond))
        raise ConfigError(f"unknown condition {names}: this network takes `label` only")
    if x.dtype != weight.dtype:
        raise DTypeError(
            f"x has dtype {x.dtype} but the network's weights have {weight.dtype}: "
            "convert one of them, x.to(dtype) or net.to(dtype)"
        )
    if c_noise.shape != x.shape[:1]:
        raise ShapeError(f"c_noise has shape {tuple(c_noise.shape)} for x of shape {tuple(x.shape)}, expected (B,)")
    if not c_noise.dtype.is_floating_point:
        raise DTypeError(f"c_noise has dtype {c_noise.dtype}, expected floating point: it is ln(sigma/alpha)/4")


def _shape(value: Any, name: str, sequence: bool = False) -> tuple[int, ...]:
    """Checks a positive int or a non-empty sequence of them."""
    if isinstance(value, int) and not sequence:
        return (check_positive_int(value, name),)
    if not isinstance(value, (list, tuple)) or not value:
        kind = "a non-empty sequence of positive integers" + ("" if sequence else ", or one")
        raise ConfigError(f"{name} = {value!r}, expected {kind}")
    return tuple(check_positive_int(v, f"{name}[{i}]") for i, v in enumerate(value))


def _levels(attention: Any, levels: int) -> list[int]:
    ok = isinstance(attention, (list, tuple)) and all(isinstance(a, int) and -levels <= a < levels for a in attention)
    if not ok:
        raise ConfigError(
            f"attention = {attention!r}, expected a sequence of levels in {-levels}..{levels - 1} "
            "(0 is the full resolution, -1 the lowest, () for none)"
        )
    return list(attention)


def _probability(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name} = {value!r}, expected a probability in [0, 1)")
    return float(value)

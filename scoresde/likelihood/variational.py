r"""Variational dequantization: a small conditional flow q(x|k) on the bins, trained on a model (1902.00275, section 3).

.. math:: u = \Phi(a), \quad a = m + s\, e, \quad e \sim N(0, I), \qquad
          x = \alpha\,(\mathrm{low} + (k + u)\,\mathrm{bin\_width}) \\
          \log q(x|k) = \sum [\log\phi(e) - \log s - \log\phi(a)] - D \log(\alpha\,\mathrm{bin\_width})

with Phi and phi the distribution and the density of N(0, 1), alpha at t_min, and m, log s of a small network of the levels. m = 0
and s = 1 are uniform noise exactly, from which training starts; the divergence from it is that of N(m, s^2) from N(0, 1). This q is
factorised: couplings (1605.08803) let the noise of one half of the dimensions depend on that of the other.

Training minimizes E[log q(x|k) + bound(x/alpha)], bound that of ``elbo`` on -log p, by the gradient through x. Of the bound nothing
is left out: its closed forms are exact, and the integral over time and the reconstruction at t_min are estimated without bias by a
single network call, of one time and noise for each sample. But it is a bound, of the likelihood of the reverse SDE: where a
network's probability-flow ODE has another density, the q that fits one best is not quite the best for the other.

And it is a bound on the density at t = 0, while q is measured with that at t_min. Where the density is smooth over the noise of
t_min, s = sigma/alpha, the two are the same: with data that fill their bins. Data in the middles of the bins have at t_min the
density N(center, s^2), and the q that the bound asks for is N(center, s^2/2), 0.14 bits per dimension worse even with an exact
score. For models of such data q is known without any fit, ``dequantization="normal"``; ``fit_dequantizer`` refuses them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.core import encoding, files
from scoresde.core.checks import check_integer, check_positive_int, check_shape
from scoresde.core.digest import digest
from scoresde.core.doors import checked
from scoresde.core.encoding import arguments, check_weights
from scoresde.core.noise import Noise
from scoresde.core.streams import DEQUANTIZER_DRAW
from scoresde.data.transform import Transform
from scoresde.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound, ConfigError, ShapeError
from scoresde.likelihood.dequantize import Dequantizer, first_level, warn_of_bare_levels
from scoresde.nets.waves import with_waves

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

LIMIT = 4.0  # of |m| and |log s|: within 3e-5 of the edges of a bin, and 1/140 of its width

FORMAT, FILE = 1, "dequantizer"

_MOST = {"levels": 1 << 16, "width": 4096, "depth": 64, "couplings": 64}

_PER_BYTE = 64  # values of ``keep`` a byte of weights: a flow of up to 512 channels, or of up to 12,288 places, has no more

_CONVOLUTIONS = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}


class BinFlow(nn.Module):
    """The flow from e to a given levels k: affine in each dimension, then ``couplings`` steps that change one half given the other.

    (C, *space) of one to three axes of space has convolutions over three points, each place with biases of its own; any other event
    is flattened for dense layers. Starts as the identity.

    Args:
        event_shape: of a sample.
        levels: K.
        width: hidden channels.
        depth: hidden layers.
        couplings: steps after the factorised one.

    Raises:
        ConfigError: an argument outside its range.
    """

    keep: Tensor  # (1 + couplings, *event), 1 where a step looks and 0 where it changes

    def __init__(self, event_shape: tuple[int, ...], levels: int, width: int = 32, depth: int = 2, couplings: int = 0) -> None:
        super().__init__()
        shape = tuple(check_positive_int(n, "event_shape") for n in event_shape)
        given = {"levels": levels, "width": width, "depth": depth, "couplings": couplings}
        checked_ = {name: check_integer(value, name, int(name != "couplings"), _MOST[name]) for name, value in given.items()}
        levels, width, depth, couplings = checked_.values()
        self.event_shape, self.levels = shape, levels
        self.config = {"event_shape": list(shape), "levels": levels, "width": width, "depth": depth, "couplings": couplings}
        # as many waves over the range of levels as tell them apart, and no more than are smooth in them
        self.frequencies = tuple(j / 4 for j in range(1, min(levels // 2 + 1, 8) + 1))
        self.axes = len(shape) - 1 if len(shape) in _CONVOLUTIONS else 0
        parity: Any = sum(torch.meshgrid(*map(torch.arange, shape), indexing="ij")) % 2  # by torch, so that ``load`` can on "meta"
        keep = torch.stack([torch.zeros(shape)] + [(parity == j % 2).float() for j in range(couplings)])
        self.register_buffer("keep", keep, persistent=False)
        channels, space = (shape[0], shape[1:]) if self.axes else (math.prod(shape), ())
        self.first = nn.ModuleList(self._layer(channels * (2 + 2 * len(self.frequencies)), width) for _ in keep)
        self.hidden = nn.ModuleList(
            nn.Sequential(*(part for _ in range(depth - 1) for part in (self._layer(width, width), nn.SiLU()))) for _ in keep
        )
        self.place = nn.Parameter(torch.zeros(len(keep), width, *space))
        self.last = nn.ModuleList(self._layer(width, 2 * channels) for _ in keep)
        for parameter in self.last.parameters():  # the identity
            nn.init.zeros_(parameter)

    def _layer(self, a: int, b: int) -> Any:
        return _CONVOLUTIONS[self.axes + 1](a, b, 3, padding=1) if self.axes else nn.Linear(a, b)

    def forward(self, levels: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """a and log |det da/de|, (B, *event) and (B,), of levels (B, *event) in 0..K-1 and e (B, *event)."""
        known = (2 * levels.to(e.dtype) + 1) / self.levels - 1
        clean = known.new_full((len(known),), -math.inf)  # c_noise: levels carry no noise, at which nothing fades
        known = with_waves(known if self.axes else known.flatten(1), clean, self.frequencies)
        a, log_det = e, e.new_zeros(len(e))
        for j, keep in enumerate(self.keep):
            seen = keep * a
            h = torch.cat([known, seen if self.axes else seen.flatten(1)], 1)
            h = F.silu(self.first[j](h) + self.place[j])
            m, log_s = (LIMIT * (self.last[j](self.hidden[j](h)) / LIMIT).tanh()).chunk(2, 1)
            m, log_s = ((1 - keep) * v.reshape(e.shape) for v in (m, log_s))
            a, log_det = m + log_s.exp() * a, log_det + log_s.flatten(1).sum(1)
        return a, log_det


@checked
@dataclass(frozen=True)
class VariationalDequantizer(Dequantizer):
    """A fitted q: ``fit_dequantizer`` makes one. ``bits_per_dim(model, levels, dequantization=...)`` takes it.

    Attributes:
        net: the flow on the unit bins, float64 so that no sample feels its batch mates; on any device.
        history: what was minimized, bits per dimension of the levels, means over up to 100 equal parts of the steps.
    """

    net: BinFlow = field(repr=False)
    history: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.net.levels != self.transform.levels:
            raise ConfigError(f"a flow of {self.net.levels} levels for {self.transform}: give one of as many")
        object.__setattr__(self, "net", self.net.double().eval().requires_grad_(False))

    @property
    def name(self) -> str:  # type: ignore[override]
        """Says "variational" and the fingerprint, so that figures of two different ones are not compared."""
        return f"variational {self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the flow and the transform."""
        return digest(self.net.config, self.net.state_dict(), self.transform)

    def check(self, model: ScoreModel) -> None:
        """Raises ShapeError for a model of other events, and warns of one of bare levels."""
        if self.net.event_shape != tuple(model.event_shape):
            raise ShapeError(f"a dequantizer for events of shape {self.net.event_shape}, but the model's is {model.event_shape}")
        warn_of_bare_levels(model)

    def draw(self, levels: Tensor, model: ScoreModel, seed: int, ids: np.ndarray, draw: int) -> tuple[Tensor, Tensor]:
        check_shape(levels, self.net.event_shape, "levels")
        k = levels.to(self.net.keep.device)
        e = Noise(seed, ids, self.net.event_shape, torch.float64, k.device).normal(DEQUANTIZER_DRAW, draw)
        alpha, transform = first_level(model).alpha, self.transform
        with torch.no_grad():
            u, log_q = unit_noise(self.net, k, e)
        margin = transform.margin(model.dtype)
        x = alpha * (transform.low + (k + u.clamp(margin, 1 - margin)) * transform.bin_width)
        log_q = log_q - levels[0].numel() * math.log(alpha * transform.bin_width)
        return x.to(model.device, model.dtype), log_q.to(model.device)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes ``dequantizer.json`` and the weights that it names into a folder, that of a model's checkpoints say; atomically.

        Raises:
            CheckpointWriteError: the disk is full, the folder read-only, ...; what was there before is intact.
            NonFiniteError: a weight is NaN or infinite.
        """
        from importlib.metadata import version

        root = Path(path).absolute()
        content = encoding.encode_tensors(self.net.state_dict(), FILE)
        sha256 = hashlib.sha256(content).hexdigest()
        config = {
            "format": FORMAT,
            "versions": {package: version(package) for package in ("scoresde", "torch", "safetensors")},
            "transform": arguments(self.transform),
            "net": self.net.config,
            "history": list(self.history),
            "file": {"bytes": len(content), "sha256": sha256},
        }
        old = set(root.glob(f"{FILE}-{'[0-9a-f]' * 16}.safetensors"))  # as ``save`` names them: others are not ours to remove
        files.write_bytes(_weights_file(root, sha256), content)  # beside the old ones, until the JSON names these
        files.write_bytes(root / f"{FILE}.json", encoding.encode_config(config))
        for file in old - {_weights_file(root, sha256)}:
            file.unlink(missing_ok=True)
        return root

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VariationalDequantizer:
        """Reads what ``save`` wrote into a folder, on the CPU. Reads no pickle, runs no code.

        Raises:
            CheckpointNotFound: there is none.
            CheckpointCorrupt: truncated, damaged or edited.
            CheckpointMismatch: of another version, or weights that are not those of its network.
        """
        root = Path(path).absolute()
        file = root / f"{FILE}.json"
        if not file.exists():
            raise CheckpointNotFound(f"no dequantizer at {root}: expected the folder that VariationalDequantizer.save wrote to")
        config = encoding.decode_config(file, files.read_file(file, encoding.CONFIG_BYTES))
        if config.get("format") != FORMAT:
            raise CheckpointMismatch(f"{file}: format is {config.get('format')!r} in the file, but {FORMAT} is what is read")
        size, sha256, net, history = _parts(file, config)
        weights_file = _weights_file(root, sha256)
        weights = encoding.decode_tensors(weights_file, encoding.read_verified(weights_file, size, sha256))
        values = (1 + net["couplings"]) * math.prod(net["event_shape"])
        if values > _PER_BYTE * size:
            raise CheckpointMismatch(
                f"{file}: events of shape {tuple(net['event_shape'])}, expected at most {_PER_BYTE} values a byte of the {size} "
                "bytes of weights: they are of another network"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
                with torch.device("meta"):  # shapes first: of what the JSON asks for only ``keep``, bounded above, is allocated
                    outline = BinFlow(**net).double().state_dict()
                check_weights(weights, outline, weights_file)
                flow = BinFlow(**net).double()
            transform = Transform(**config["transform"])
            flow.load_state_dict(weights)
            return cls(transform, flow, history)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointMismatch(f"{file}: its dequantizer cannot be made: {error}") from error


def _weights_file(root: Path, sha256: str) -> Path:
    return root / f"{FILE}-{sha256[:16]}.safetensors"


def _parts(file: Path, config: Mapping[str, Any]) -> tuple[int, str, dict[str, Any], tuple[float, ...]]:
    """Size and sha256 of the weights, arguments of the flow, history; checked. Raises CheckpointCorrupt."""
    entry, net, history = config.get("file"), config.get("net"), config.get("history")
    if (
        not (isinstance(entry, dict) and _is_size(entry.get("bytes"), 1 << 40))
        or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
        or not (isinstance(net, dict) and isinstance(net.get("event_shape"), list) and isinstance(config.get("transform"), dict))
        or not all(_is_size(n, 1 << 40) for n in net["event_shape"])
        or not all(_is_size(net.get(name), most, 0 if name == "couplings" else 1) for name, most in _MOST.items())
        or not (isinstance(history, list) and all(isinstance(v, float) for v in history))
    ):
        raise CheckpointCorrupt(f"{file}: not the JSON of a dequantizer, in {os.path.getsize(file)} bytes")
    return entry["bytes"], entry["sha256"], net, tuple(float(v) for v in history)


def _is_size(value: Any, most: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def unit_noise(net: BinFlow, levels: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """u = Phi(a) in the unit bins (B, *event), and log q(u|k) = sum of log phi(e) - log phi(a), less log |det da/de|, (B,)."""
    a, log_det = net(levels, e)
    return torch.special.ndtr(a), 0.5 * (a.square() - e.square()).flatten(1).sum(1) - log_det

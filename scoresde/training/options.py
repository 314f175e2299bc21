"""The options of `fit`, checked."""

from __future__ import annotations

import math
from typing import Any

from scoresde.core.checks import check_positive, check_positive_int
from scoresde.core.noise import check_seed
from scoresde.errors import ConfigError
from scoresde.training import loss

TIMED = 50  # steps that ``minutes`` is turned into a number of steps from


def check_options(o: dict[str, Any]) -> dict[str, Any]:
    """Checks fit's arguments, and completes them. Raises ConfigError."""
    if (o["steps"] is None) == (o["minutes"] is None):
        raise ConfigError(f"steps = {o['steps']} and minutes = {o['minutes']}: give one of them")
    for name in ("batch_size", "accumulate", "checkpoint_every", "log_every", "validate_every"):
        check_positive_int(o[name], name)
    for name in ("steps", "minutes", "clip"):
        if o[name] is not None:
            (check_positive_int if name == "steps" else check_positive)(o[name], name)
    check_positive(o["lr"], "lr")
    check_seed(o["seed"])
    for name in ("weight_decay", "ema"):
        value, top = o[name], 1 if name == "ema" else math.inf
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < top:
            raise ConfigError(f"{name} = {value!r}, expected a number in [0, {top})")
    betas = o["betas"]
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= b < 1 for b in betas)):
        raise ConfigError(f"betas = {betas!r}, expected two numbers in [0, 1)")
    o["betas"] = tuple(float(b) for b in betas)
    if o["schedule"] not in ("cosine", "constant"):
        raise ConfigError(f"schedule = {o['schedule']!r}, expected cosine or constant")
    if o["warmup"] is None:
        o["warmup"] = 100 if o["steps"] is None else min(100, o["steps"] // 10)
    if isinstance(o["warmup"], bool) or not isinstance(o["warmup"], int) or o["warmup"] < 0:
        raise ConfigError(f"warmup = {o['warmup']!r}, expected a number of steps, 0 or more")
    # the timed steps of minutes= are taken before the number of steps is known
    o["hold"] = max(o["warmup"], TIMED) if o["steps"] is None else o["warmup"]
    loss.resolve_weighting(o["weighting"])
    if o["times"] is None:
        o["times"] = {"likelihood": "importance", "edm": "lognormal"}.get(o["weighting"], "uniform")
    loss.resolve_times(o["times"])
    o["stratified"] = bool(o["stratified"]) or o["times"] == "stratified"
    if o["out"] is None and (o["resume"] or o["overwrite"]):
        raise ConfigError("resume or overwrite without out: give the folder of the run, out=...")
    if o["resume"] and o["overwrite"]:
        raise ConfigError("resume and overwrite exclude each other: give one of them")
    return o

"""What each command does."""

from __future__ import annotations

import inspect
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checkpoints import format, saving
from scoresde.cli import classes as classes_module
from scoresde.cli import demo, runs
from scoresde.cli.options import MINUTES, MOST_SAMPLES
from scoresde.cli.shell import one_line
from scoresde.core import checks, files
from scoresde.core.checks import check_positive_int
from scoresde.core.encoding import without_nan
from scoresde.core.noise import seeded
from scoresde.data import catalog, dataset
from scoresde.data.augment import named
from scoresde.errors import ConfigError, ShapeError
from scoresde.evaluation.features import fit_features
from scoresde.evaluation.frontier.compare import SOLVERS, frontier
from scoresde.evaluation.frontier.rows import format_table
from scoresde.likelihood import bits, ode
from scoresde.likelihood.bound import elbo
from scoresde.models.batches import default_batch_size
from scoresde.models.counting import count_evaluations
from scoresde.models.network import NetworkModel, made_with
from scoresde.models.reference import GaussianReference
from scoresde.plot import curves, pictures
from scoresde.plot.kinds import most_drawn
from scoresde.sampling import tuning
from scoresde.sampling.sampler import sample
from scoresde.training import fitting
from scoresde.training.fitting import fit
from scoresde.training.options import Options

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel

PICTURES, ARRAYS = (".png", ".pdf", ".svg"), (".npz", ".npy")


def run_demo(a: Any) -> None:
    demo.demo(Path(a.out), minutes=a.minutes, seed=a.seed, overwrite=a.overwrite, progress=a.progress)


def run_train(a: Any) -> None:
    runs.check_out(a.out)
    names = ["batch_size", "lr", "warmup", "ema", "weighting", "times", "schedule", "dequantization", "accumulate", "clip"]
    names += ["checkpoint_every", "validate_every"]
    given = {name: a[name] for name in names if a[name] is not None}
    given["validate_every"] = given.get("validate_every") or None  # 0: none
    _check_early(a, given)
    data = catalog.load(runs.data_of(a))
    if a.conditional and data.classes is None:
        raise ConfigError(f"--conditional, but {a.data} has no labels: leave it out")
    sde = classes_module.make("sde", a.sde, a.options["sde"])
    if a.dequantization == "normal":
        if data.transform is None:
            raise ConfigError(f"--dequantization normal, but {a.data} has no integer levels: leave it out")
        if not {"t_min", "sigma_min"} & set(a.options["sde"]):
            sde = data.transform.adapt(sde)
    augment = None if a.augment is None else named(a.augment)
    with seeded(a.seed):  # the seed is that of the initial weights too
        net = _network(a, data.event_shape, data.classes if a.conditional else None, augment.labels if augment else 0)
    model = NetworkModel(net, sde, data.event_shape, a.parameterization, data.transform)
    size = sum(p.numel() for p in net.parameters())
    first = os.environ.get("RANK", "0") == "0"
    if first:
        print(f"{data}\n{type(net).__name__} with {size:,} parameters, {sde}, parameterization {a.parameterization}", flush=True)
    started: list[str] = []

    def keep_once(step: int, line: dict[str, Any]) -> None:
        """When the run has begun: what a command that is refused asked for is not the run's."""
        if not started:
            runs.keep(a.typed, a.out)
            started.append(a.out)

    history = fitting.fit(
        model,
        data,
        steps=a.steps,
        minutes=MINUTES if a.minutes is None and a.steps is None else a.minutes,
        seed=a.seed,
        out=a.out,
        resume="extend" if a.extends else a.resume,
        overwrite=a.overwrite,
        conditional=a.conditional,
        augment=augment,
        bf16=a.bf16,
        progress=a.progress,
        callback=keep_once,
        **given,
    )
    if first:
        curves.loss(history, Path(a.out) / "loss.png")
        print(f"{history}\nin {a.out}: the weights, log.jsonl and loss.png. Next:")
        print("\n".join(f"  {command}" for command in runs.next_commands(a, data)))


def _check_early(a: Any, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that make no sense, before data are read and a network is made."""
    apart = ("conditional", "callback", "progress")
    parameters = [p for p in inspect.signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in apart]
    defaults = {p.name: p.default for p in parameters}
    minutes = MINUTES if a.minutes is None and a.steps is None else a.minutes
    fixed = {name: a[name] for name in ("steps", "seed", "out", "resume", "overwrite", "bf16")}
    Options.complete(**defaults | fixed | {"minutes": minutes} | dict(given))


def run_sample(a: Any) -> None:
    path, rank, world = Path(a.out), int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if path.suffix not in PICTURES + ARRAYS:
        raise ConfigError(f"--out {a.out}: expected a name that ends in {', '.join(PICTURES + ARRAYS)}")
    if world > 1:
        if path.suffix != ".npz":
            raise ConfigError(f"--out {a.out} under torchrun: expected .npz, in which each process writes its share of the samples")
        path = path.with_name(f"{path.stem}-{rank}-of-{world}.npz")
    if a.solver == "auto" and a.options["solver"]:
        raise ConfigError(f"--solver.{next(iter(a.options['solver']))} without --solver: which class is it of?")
    solver = _solver_of(a.solver, a.options["solver"])
    model = _load(a)
    shape, transform = model.event_shape, model.transform
    try:
        pictured = most_drawn(shape) if path.suffix in PICTURES else a.n
    except ShapeError as error:
        raise ConfigError(f"--out {a.out}: {error}; or write arrays, --out {path.stem}.npz") from None
    ids = torch.arange(check_positive_int(a.n, "n"), device="cpu")[rank::world]
    cond: dict[str, Any] = {} if a.label is None else {"label": _labels(a.label, a.n, model)[ids]}
    if a.label is None and (turns := _by_turns(model, a.n)):
        print(f"a conditional run, which does nothing without a label: the {_classes_of(model)} classes by turns (--label chooses)")
        cond = {"label": turns["label"][ids]}
    start = time.perf_counter()
    with count_evaluations(model) as calls:
        x = sample(
            model,
            len(ids),
            solver=solver,
            steps=a.steps,
            t_end=a.t_end,
            ids=ids,
            seed=a.seed,
            denoise=a.denoise,
            batch_size=a.batch_size,
            progress=a.progress,
            **cond,
        ).cpu()
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in PICTURES:
        pictures.samples(x[:pictured], transform, path=path, labels=cond["label"][:pictured] if cond else None)
    elif path.suffix == ".npy":
        np.save(path, x.numpy())
    else:
        arrays: dict[str, Any] = {"samples": x.numpy(), "ids": ids.numpy()}
        if transform is not None:
            arrays["levels"] = transform.quantize(x).numpy().astype(np.uint8 if transform.levels <= 256 else np.int64)
        np.savez(path, **arrays)
    some = f" (the first {pictured} of them)" if len(x) > pictured else ""
    nfe = calls.forward / -(-len(x) // (a.batch_size or default_batch_size(shape)))
    print(f"{path}{some}: {len(x)} samples by {solver}, {nfe:.4g} network calls each, {seconds:.1f} s")


def run_nll(a: Any) -> None:
    if a.out is not None and Path(a.out).suffix != ".json":
        raise ConfigError(f"--out {a.out}: the result and its settings are written as JSON, expected a name that ends in .json")
    tolerances = {"rtol": a.rtol, "atol": a.rtol if a.atol is None else a.atol}
    given = {name: repr(value) for name, value in tolerances.items() if value is not None}
    solver = None  # the best for the model
    if a.solver != "auto" or given or a.options["solver"]:
        solver = classes_module.make("solver", "TorchDiffEq" if a.solver == "auto" else a.solver, {**given, **a.options["solver"]})
    data = catalog.load(runs.data_of(a))
    first = os.environ.get("RANK", "0") == "0"
    if a.device == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        a.device = f"cuda:{os.environ['LOCAL_RANK']}"  # under torchrun, of which each process takes its share of the samples
    if data.transform is None and (a.dequantizations != 1 or a.dequantization is not None or a.importance_weighted):
        raise ConfigError(
            f"--dequantizations, --dequantization and --importance_weighted are for integer data, and {a.data} holds floats: leave them out"
        )
    model = _load(a, data)

    if model.reference is None:  # of a run from before there were references: any is right, this one is fast
        model.reference = GaussianReference.fit(data)
    x, labels = (data.test, data.test_labels) if a.split == "test" else (data.train, data.labels)
    if not len(x):
        raise ConfigError(f"--split {a.split}: {a.data} has no {a.split} samples")
    x = x if a.n is None else x[: check_positive_int(a.n, "n")]
    cond = {"label": labels[: len(x)]} if labels is not None and _classes_of(model) else {}
    how = {"solver": solver, "steps": a.steps, "divergence": a.divergence, "probes": a.probes, "seed": a.seed}
    how |= {"batch_size": a.batch_size, "progress": a.progress, "check": a.check, "check_steps": a.check_steps}
    how |= {"prior": None if a.prior == "standard" else a.prior}
    how |= {"out": None if a.out is None else Path(a.out).with_suffix(".rows.jsonl"), "overwrite": a.overwrite, "share": True}
    how |= cond
    start = time.perf_counter()
    if data.transform is not None:
        how |= {"dequantization": a.dequantization, "importance_weighted": a.importance_weighted}
        b = bits.bits_per_dim(model, x, data.transform, dequantizations=a.dequantizations, **how)
        result: dict[str, Any] = {"bits_per_dim": b.mean, "std_error": b.std_error, "dequantization_std": b.dequantization_std}
        result |= {"probe_std_error": b.probe_std_error, "network_calls": b.nfe}
        if a.check_steps is not None:
            result |= {"corrected": b.corrected, "corrected_std_error": b.corrected_std_error}
        report, line = b.report(), f"{b.mean:.4f} +- {b.std_error:.4f} bits/dim"
    else:
        r = ode.log_prob(model, x.to(model.device, model.dtype), **how)
        log_p = r.log_prob.cpu()
        error = float(log_p.std()) / math.sqrt(len(x)) if len(x) > 1 else math.nan
        result = {"log_prob": float(log_p.mean()), "std_error": error, "unit": "nats a sample", "network_calls": r.nfe}
        report, line = r.report(), f"{result['log_prob']:.4f} +- {error:.4f} nats, log-likelihood a sample"
    if not first:
        return
    if a.bound is not None:
        common = {"batch_size": a.batch_size, "progress": a.progress, "seed": a.seed, **cond}
        common |= {"prior": how["prior"], "draws": check_positive_int(a.bound, "bound")}
        points = x if data.transform is not None else x.to(model.device, model.dtype)
        below = elbo(model, points, data.transform, **common)
        result |= {"bound": below.mean, "bound_std_error": below.std_error, "bound_draw_std_error": below.draw_std_error}
        result["bound_reconstruction"] = below.settings["reconstruction"]
        line += f"; variational bound {below.mean:.4f} +- {below.std_error:.4f}"
    settings = dict(report.settings)
    settings["data_hash"] = settings.pop("data")
    result |= {**settings, "run": a.run, "data": a.data, "split": a.split, "samples": len(x)}
    result["seconds"] = round(time.perf_counter() - start, 2)
    shown = [(key, value) for key, value in result.items() if not isinstance(value, dict)]
    figures = [(key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in shown]
    print(f"{format_table(('quantity', 'value'), figures)}\n\n{report.table()}")
    print(f"\n{line} (mean and standard error over {len(x)} samples)")
    result["budget"] = {term.name: term.value for term in report.terms}
    if a.out is not None:
        files.write_text(Path(a.out), json.dumps(without_nan(result), indent=2) + "\n")
        print(f"written to {a.out}")


def run_bench(a: Any) -> None:
    budgets = _integers(a.nfe, "nfe")
    solvers = list(SOLVERS) if a.solvers is None else [_solver_of(name.strip()) for name in a.solvers.split(",")]
    name_of_data = runs.data_of(a)
    spaced = None if a.grids is None else {name.strip(): _grid_of(name.strip()) for name in a.grids.split(",")}
    data = catalog.load(name_of_data)
    model = _load(a, data)
    if not len(data.test):
        raise ConfigError(f"{a.data} has no test samples to compare with")
    if a.n is not None and a.samples is not None:
        raise ConfigError("--n and --samples are the same: give one of them")
    n = a.samples if a.n is None else a.n
    n = min(len(data.test), len(data.train) // 2, MOST_SAMPLES) if n is None else check_positive_int(n, "samples")
    cond: dict[str, Any] = {}
    if data.test_labels is not None and _classes_of(model):
        cond["label"] = data.test_labels[torch.arange(n, device="cpu") % len(data.test_labels)]
    folder = Path(a.run) / "bench" if a.out is None else Path(a.out)
    rows = folder / "rows.jsonl"
    if a.overwrite:
        rows.unlink(missing_ok=True)
    wanted = data.labels is not None and len(data.event_shape) == 3 if a.features == "auto" else a.features == "on"
    features = fit_features(data, seed=a.seed, progress=a.progress).to(model.device) if wanted else None
    try:
        result = frontier(
            model,
            data.test,
            pool=data.train,
            solvers=solvers,
            nfe=budgets,
            grids=spaced,
            samples=n,
            seed=a.seed,
            noise=a.noise,
            features=features,
            transform=data.transform,
            paths=a.paths,
            batch_size=a.batch_size,
            out=rows,
            progress=a.progress,
            **cond,
        )
    except ConfigError as error:
        if str(rows) in str(error):
            raise ConfigError(f"{error}: --overwrite replaces it, --out FOLDER puts this one elsewhere") from error
        raise
    print(f"{result.table()}\n\n{demo.recommendations(result, budgets)}")
    print(f"in {folder}: {', '.join(demo.write_bench(result, folder, data.name))}, and rows.jsonl, from which the same command goes on")


def _solver_of(name: str, options: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A solver by its class; "auto" is left to sample."""
    return name if name == "auto" else classes_module.make("solver", name, options)


def _grid_of(name: str) -> Any:
    """A function of scoresde.grid by name; "own" is the solver's own."""
    grids = classes_module.grids()
    if name != "own" and name not in grids:
        raise ConfigError(f"--grids {name}: expected own, {', '.join(grids)}{checks.did_you_mean(name, grids)}")
    return grids.get(name)


def run_tune(a: Any) -> None:
    budgets = _integers(a.nfe, "nfe")
    model = _load(a)
    cond: dict[str, Any] = _by_turns(model, tuning.default_paths(model) if a.paths is None else a.paths)
    if cond:
        print("the recipe is made on all classes by turns")
    elif _classes_of(model):
        print("the recipe is for samples without a label; with one it works too, but was not made for it")
    out = Path(a.run) if a.out is None else Path(a.out)
    rows = []
    for nfe in budgets:
        recipe = tuning.tune(
            model, nfe, t_end=a.t_end, paths=a.paths, iterations=a.iterations, seed=a.seed, out=out, progress=a.progress, **cond
        )
        r = recipe.report
        figures = (r["median_error"], r["built_in_median_error"], r["rms_error"], r["built_in_rms_error"])
        rows.append((str(nfe), type(recipe.solver).__name__, *(f"{v:.4g}" for v in figures)))
    header = ("NFE", "solver", "median error", "best untuned", "rms error", "best untuned")
    print(format_table(header, rows))
    print("\ndistances to the model's own converged ODE at t_end, on paths that the fit did not see")
    print(f"in {out}: {', '.join(f'recipe-{nfe}.json' for nfe in budgets)}. Next:")
    print(f"  scoresde sample {a.run} --steps {budgets[0]} --n 64 --out samples.png")


def _integers(text: str, name: str) -> list[int]:
    """Positive integers with commas between. Raises ConfigError."""
    try:
        return [check_positive_int(int(part), name) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{name} {text}: expected positive integers, 5,10,20 for instance") from None


def _network(a: Any, shape: tuple[int, ...], classes: int | None, augmentations: int = 0) -> torch.nn.Module:
    """The network that the options ask for; what the data decide (channels, features, classes) need not be given."""
    name = a.net or ("UNet" if len(shape) == 3 and min(shape[1:]) >= 4 else "MLP")
    known: dict[str, Any] = {"event_shape": shape, "features": shape[0] if len(shape) == 1 else shape, "channels": shape[0]}
    known |= ({} if classes is None else {"classes": classes}) | ({"augmentations": augmentations} if augmentations else {})
    return classes_module.make("net", name, a.options["net"], known)


def _load(a: Any, data: dataset.Data | None = None) -> ScoreModel:
    """The model of a run, on the device, checked against the data it is to be used with."""
    sde = None if a.sde is None else classes_module.make("sde", a.sde, a.options["sde"])
    net = None
    if a.net is not None:
        saved = format.read(a.run, ["ema", "model"], first=True).config["model"]
        args = (saved.get("net") or {}).get("args") or {}
        net = _network(a, tuple(saved["event_shape"]), args.get("classes"), args.get("augmentations") or 0)
    for kind in ("sde", "net"):
        if a.options[kind] and a[kind] is None:
            raise ConfigError(f"--{kind}.{next(iter(a.options[kind]))} without --{kind}: the run knows its own {kind}")
    model = saving.load(a.run, net=net, sde=sde, ema=not a.raw)
    if data is not None and model.event_shape != data.event_shape:
        raise ConfigError(f"{a.run} was trained on samples of shape {model.event_shape}, but {a.data} has {data.event_shape}")
    if data is not None and model.transform != data.transform:
        raise ConfigError(f"{a.run} was trained with {model.transform}, but {a.data} has {data.transform}: give the data of the run")
    if a.device != "auto":
        try:
            return model.to(torch.device(a.device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"--device {a.device}: {one_line(error)}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _classes_of(model: ScoreModel) -> int | None:
    """The number of classes that the model's network takes labels of."""
    return (made_with(model) or {}).get("classes")


def _by_turns(model: ScoreModel, n: int) -> dict[str, Any]:
    """Labels of n samples, all classes by turns, of a model that cannot do without; else none."""
    if "label" not in model.conditions.required:
        return {}
    return {"label": torch.arange(n, device="cpu") % (_classes_of(model) or 1)}


def _labels(text: str, n: int, model: ScoreModel) -> Tensor:
    """--label 3, or 0,1,2 by turns, as (n,)."""
    classes = _classes_of(model)
    if classes is None:
        raise ConfigError(f"--label {text}, but this model was trained without labels: leave it out, or train --conditional")
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if min(values) < 0 or max(values) >= classes:
        raise ConfigError(f"--label {text}: expected classes 0..{classes - 1}, one, or several with commas between")
    return torch.tensor(values, device="cpu")[torch.arange(n, device="cpu") % len(values)]

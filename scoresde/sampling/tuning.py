r"""``tune``: the best solver, time grid and multistep weights for one model and one budget of network calls.

Pilot paths of the model's own probability-flow ODE are solved accurately once. In the coordinates z of ``GaussianReference`` any
explicit scheme with one call a step is z_(i+1) = z_0 + sum_j A_ij F_j, linear in its weights A: along the scheme's own states each
row is a least-squares fit to the pilot paths, without any gradient (``fit_weights``). A search over the grid's centre and width
surrounds it; then nodes and weights are polished by Adam through the solver, on minus the log error, where memory allows. What
leaves ``tune`` is what does best on pilot paths that the fit did not see, the built-in solvers among the candidates.

Related: Align Your Steps (2404.14507), DPM-Solver-v3 (2310.13268), S4S (2502.17423), optimal stepsize (2503.21774).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scoresde.core.checks import check_calls, check_integer, check_memory, check_positive_int
from scoresde.core.doors import checked
from scoresde.core.noise import Noise, check_seed
from scoresde.core.progress import bar
from scoresde.errors import ConfigError, ScoreSDEError, SolverError
from scoresde.models.base import check_model, frozen, inference
from scoresde.models.batches import default_batch_size
from scoresde.models.conditions import check_conditions
from scoresde.sampling.pilots import Pilots
from scoresde.sampling.schemes import polish, search, untuned
from scoresde.sdes import grid
from scoresde.solvers.loop import solve
from scoresde.solvers.multistep import DPMSolverPP, UniPC
from scoresde.solvers.planning import bind_solver, make_times
from scoresde.solvers.recipe import Recipe, fingerprint
from scoresde.solvers.reference import ReferenceScheme, ReferenceSolver

if TYPE_CHECKING:
    from scoresde.models.base import ScoreModel
    from scoresde.solvers.base import Solver


SMALL = 32  # dimensions, up to which more paths and iterations cost little


def default_paths(model: ScoreModel) -> int:
    """Pilot paths, when not told how many."""
    return 768 if math.prod(model.event_shape) <= SMALL else 128


@checked
def tune(
    model: ScoreModel,
    nfe: int = 10,
    *,
    t_end: float | None = None,
    paths: int | None = None,
    iterations: int | None = None,
    seed: int = 0,
    memory: int = 4 << 30,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **cond: Any,
) -> Recipe:
    """Finds the solver, the time grid and the weights with which ``nfe`` network calls come closest to the model's own ODE.

    The recipe is a plain solver: ``sample(model, n, solver=recipe)`` makes nfe calls. The model keeps one for the SDE's own t_end in
    ``model.recipes``: with solver "auto", ``sample(model, n, steps=nfe)`` uses it from now on, where the same conditions are given.
    ``save`` writes a model's recipes beside its checkpoint, as JSON, ``out`` does so at once, and ``load`` finds them there.

    Args:
        model: a ScoreModel. Without a Gaussian reference it gets one from the ends of its pilot paths, kept in the recipe.
        nfe: network calls a sample.
        t_end: where samples stop; None: the SDE's t_end.
        paths: pilot paths, a half to fit and a half to judge; None: 768 for up to 32 dimensions, else 128.
        iterations: of Adam, from each of two starts; None: as many as keep the whole near two minutes for a small UNet on two cores;
            0: least squares only.
        seed: of the pilot paths.
        memory: bytes that gradients through the solver may take: network calls are recomputed, or the batch made smaller, to stay
            below; where not even that is enough the recipe is the least-squares one.
        out: file or folder to write the recipe to, as JSON.
        progress: show a bar.
        **cond: for the network; a tensor with first dimension ``paths`` is per path.

    Raises:
        ConfigError: arguments that make no sense.
        SolverError: a model whose own ODE cannot be solved.
    """
    check_model(model)
    cond = check_conditions(model.conditions, cond, tune, dtype=model.dtype)
    check_positive_int(nfe, "nfe")
    paths = default_paths(model) if paths is None else check_positive_int(paths, "paths")
    if paths < 16:
        raise ConfigError(f"paths = {paths}, expected 16 or more: half of them are for the judge")
    if iterations is None:
        iterations = 150 if math.prod(model.event_shape) <= SMALL else max(30, 600 // nfe)
    check_calls(check_integer(iterations, "iterations", 0), "iterations")
    check_memory(8.0 * paths * math.prod(model.event_shape), f"paths = {paths} of shape {model.event_shape}")
    check_calls(nfe, "nfe")
    start, end = model.sde.t_max, grid.default_end(model.sde) if t_end is None else t_end
    grid.log_snr(model.sde, 1, start, end)  # checks the range
    check_positive_int(memory, "memory")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)  # what is wrong with it should show before the work
    with inference(model), frozen(model), bar(progress, 100, f"tune for {nfe} calls") as advance:
        pilots = Pilots.make(model, paths, start, end, check_seed(seed), cond)
        advance(10)
        judged = Judged(pilots)
        for solver, times in _built_in(pilots, nfe):
            judged.add(solver, times)
        built_in = judged.best()
        advance(20)
        fitted = search(pilots, nfe)
        for scheme in fitted:
            judged.add(*scheme.solver(pilots))
        advance(30)
        # where Adam ends depends on where it starts: from the fitted scheme, and from the untuned one
        starts = (fitted[0], untuned(pilots, nfe)) if iterations else ()
        for scheme in starts:
            polished = polish(pilots, scheme, iterations, memory, lambda share: advance(20 * share))
            if polished is not None:
                judged.add(*polished.solver(pilots))
        recipe = judged.recipe(nfe, built_in, seed, iterations, cond)
    if math.isclose(end, grid.default_end(model.sde), rel_tol=1e-9):
        model.recipes[nfe] = recipe
    if out is not None:
        recipe.save(out)
    return recipe


class Error(NamedTuple):
    """Pathwise errors at t_end: Euclidean distances, their median, root mean square and mean logarithm."""

    median: float
    rms: float
    mean_log: float

    @classmethod
    def of(cls, distance: Tensor) -> Error:
        d = distance.double()
        return cls(float(d.median()), float(d.square().mean().sqrt()), float((d + 1e-12).log().mean()))


class Candidate(NamedTuple):
    """A solver, its times, and its errors on the judging paths."""

    solver: Solver
    times: Tensor
    error: Error


class Judged:
    """Candidates and their errors on the pilot paths that none of them was fitted to."""

    def __init__(self, pilots: Pilots) -> None:
        self.pilots, self.found = pilots, list[Candidate]()

    def add(self, solver: Solver, times: Tensor) -> None:
        """Runs a candidate on the judging paths; one that fails is out."""
        p = self.pilots
        try:
            x = _run(p, solver, times, p.judge)
        except ScoreSDEError:
            return
        distance = (x.double() - p.end[p.judge]).flatten(1).norm(dim=1)
        self.found.append(Candidate(solver, times, Error.of(distance)))

    def best(self) -> Candidate:
        """The candidate with the smallest mean log error on the judging paths."""
        if not self.found:
            raise SolverError("no solver gave finite samples of this model: check it between t_max and t_end")
        return min(self.found, key=lambda found: found.error.mean_log)

    def choice(self, built_in: Candidate) -> Candidate:
        """The best of those that are worse than the best built-in one neither in the median nor in the rms, itself at least."""
        allowed = [
            found
            for found in self.found
            if found.error.median <= built_in.error.median and found.error.rms <= max(built_in.error.rms, 1e-12)
        ]
        return min([built_in, *allowed], key=lambda found: found.error.mean_log)

    def recipe(self, nfe: int, built_in: Candidate, seed: int, iterations: int, cond: Iterable[str]) -> Recipe:
        solver, times, error = self.choice(built_in)
        p = self.pilots
        report = {
            "median_error": error.median,
            "rms_error": error.rms,
            "built_in": repr(built_in.solver),
            "built_in_median_error": built_in.error.median,
            "built_in_rms_error": built_in.error.rms,
            "error_of_the_reference_paths": p.error,
            "paths": len(p.x),
            "candidates": len(self.found),
            "iterations": iterations,
            "seed": seed,
        }
        model = {"sde": repr(p.model.sde), "t_min": float(p.model.sde.t_min), "t_max": float(p.model.sde.t_max)}
        model |= {"event_shape": list(p.model.event_shape), "reference": p.reference.fingerprint()}
        model |= {"weights": fingerprint(p.model), "cond": sorted(cond)}
        if p.own and isinstance(solver, (ReferenceSolver, ReferenceScheme)):
            solver = dataclasses.replace(solver, reference=None)  # type: ignore[type-var]
        return Recipe(solver, tuple(times.tolist()), nfe, model, report)


def _run(p: Pilots, solver: Solver, times: Tensor, rows: slice) -> Tensor:
    """The ends of some paths by a solver."""
    levels = p.model.sde.levels(times)
    index = torch.arange(len(p.x), device="cpu")[rows]
    size, out = max(default_batch_size(p.model.event_shape), 64), []
    for part in index.split(size):
        noise = Noise(0, part.numpy(), p.model.event_shape, p.x.dtype, p.x.device)
        *_, (_, _, x) = solve(p.rows(part), solver, p.x[part], levels, noise)
        out.append(x)
    return torch.cat(out)


def _built_in(p: Pilots, nfe: int) -> Iterator[tuple[Solver, Tensor]]:
    """The untuned choices."""
    candidates: list[Solver] = [ReferenceSolver(reference=p.reference)]
    for width in (1.0, 1.5, 2.0, 3.0):
        candidates += [ReferenceSolver(order=k, reference=p.reference, width=width) for k in ((2, 3) if nfe > 8 else (2,))]
    for candidate in candidates:
        solver, _ = bind_solver(candidate, p.model, nfe)
        yield solver, make_times(p.model.sde, solver, nfe, None, p.finish)
    for classic in (DPMSolverPP(2), DPMSolverPP(3), UniPC(2), UniPC(3)):
        for spaced in (grid.log_snr, grid.quadratic):
            yield classic, spaced(p.model.sde, nfe, p.start, p.finish)

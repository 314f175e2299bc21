"""The mutation gate: mistakes planted one at a time in a copy of the package, each of which must fail a test.

    python tests/mutations.py            # runs all of them, prints one line each, exit code 1 if one survives

torch is imported once; each mutation then runs its tests in a forked child that imports the mutated copy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """Replace ``old``, which occurs exactly once in ``file``, by ``new``; one of the tests must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # what pytest takes: files or node ids, relative to the folder of tests


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "derivatives of the coefficients have no graph",
        "sdes/completion.py",
        "graph = torch.is_grad_enabled() and (t.requires_grad or function(t).requires_grad)",
        "graph = False",
        ("sdes/test_derivatives.py::test_in_time",),
    ),
    Mutation(
        "a time of no dimension becomes a float",
        "sdes/base.py",
        "if t.ndim == 0 and not self._differentiated(t):",
        "if t.ndim == 0 and not transformed(t):",
        ("sdes/test_derivatives.py",),
    ),
    Mutation(
        "labels only for networks with a config",
        "training/batches.py",
        'return takes and bool((made_with(model) or {}).get("classes", True))',
        'return takes and bool((made_with(model) or {}).get("classes"))',
        ("training/test_batches.py::test_labels_are_given_through_wrappers",),
    ),
    Mutation(
        "a conditional model runs without its label",
        "models/network.py",
        'return found._replace(required=("label",))',
        "return found",
        ("training/test_batches.py::test_a_model_that_never_did_without_its_label_does_not_run_without",),
    ),
    Mutation(
        "averages in the dtype of the weights",
        "training/average.py",
        "return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype",
        "return p.dtype",
        ("training/test_foreign_networks.py::test_the_average_of_bfloat16_weights_is_finer_than_they_are",),
    ),
    Mutation(
        "an extended run keeps its old schedule",
        "training/trainer.py",
        "        self.descent.schedule = options.learning_rates()\n",
        "",
        ("training/test_extending_runs.py",),
    ),
    Mutation(
        "one row for all is not repeated",
        "models/conditions.py",
        "return rows(value.expand(n, *value.shape[1:]))",
        "return rows(value) if value.shape[0] == n else value",
        ("models/test_conditions.py::test_conditions_in_any_form",),
    ),
    Mutation(
        "autocast reaches the library's own products",
        "core/tensors.py",
        "return torch.autocast(x.device.type, enabled=False)",
        "return torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type))",
        ("package/test_contexts.py::test_autocast_is_for_networks",),
    ),
    Mutation(
        "flow matching under the name v",
        "models/parameterization.py",
        "return sigma_dot / d, -sigma / d",
        "return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)",
        ("models/test_parameterization.py::test_every_parameterization_of_an_exact_model_is_the_exact_model",),
    ),
    Mutation(
        "wrapped networks keep their prefixes",
        "models/plain.py",
        "            if path not in parts:\n                kept.append(part)",
        "            kept.append(part)",
        ("checkpoints/test_wrapped.py",),
    ),
    Mutation(
        "the first thread gives the model back",
        "models/base.py",
        "                if n > 1:\n                    self.within[model] = n - 1, undo\n                else:\n                    undo()",
        "                undo()",
        ("models/test_threads.py",),
    ),
    Mutation(
        "the prior does not need to hide the data",
        "training/hygiene.py",
        "    elif left > SEEN:",
        "    elif left > 1e300:",
        ("training/test_hygiene.py::test_said",),
    ),
    Mutation(
        "times may be as good as one",
        "solvers/planning.py",
        "    _check_evenness(sde, plan)\n",
        "",
        ("solvers/test_planning.py",),
    ),
    Mutation(
        "True is an integer",
        "core/checks.py",
        "found = None if isinstance(number, (bool, np.ndarray)) else operator.index(number)",
        "found = None if isinstance(number, np.ndarray) else operator.index(number)",
        ("core/test_doors.py",),
    ),
    Mutation(
        "a door lets everything in",
        "core/doors.py",
        "        values = [_check(v,",
        "        return function(*args, **given)\n        values = [_check(v,",
        ("core/test_doors.py",),
    ),
    Mutation(
        "memory is not looked at",
        "core/checks.py",
        "    if n_bytes > most:",
        "    if n_bytes > 1e300:",
        ("core/test_doors.py::test_sizes_that_are_sensible_pass",),
    ),
    Mutation(
        "a line of rows is taken whatever its sum says",
        "core/encoding.py",
        "    if head + b\",\" != _sum_of(rest):\n        return None\n    del",
        "    del",
        ("package/test_damaged_files.py::test_damage_of_rows_is_passed_over",),
    ),
    Mutation(
        "a new file without its sum is taken for an old one",
        "core/encoding.py",
        'return found.get("format", 1) == 1 and "sha256" not in found',
        'return "sha256" not in found',
        ("package/test_damaged_files.py::test_a_new_file_without_its_sum_is_refused_and_an_old_one_is_read",),
    ),
    Mutation(
        "the sum of a file of features leaves out its numbers",
        "core/encoding.py",
        "hashlib.sha256(blank + content[size:]).hexdigest() != told",
        "False and told",
        ("package/test_damaged_files.py::test_features_of_the_version_before_are_read_and_their_sums_checked",),
    ),
    Mutation(
        "a file is written where it will stand",
        "core/files.py",
        "        write_file(temporary, content)\n        os.replace(temporary, path)",
        "        discard(path)\n        write_file(path, content)",
        ("package/test_damaged_files.py::test_a_crash_at_any_system_call_leaves_the_old_or_the_new",),
    ),
    Mutation(
        "a folder is synced on Windows",
        "core/files.py",
        'if os.name == "nt":',
        'if os.name == "none":',
        ("core/test_files.py",),
    ),
    Mutation(
        "a recipe that does not say for which weights it was made is used",
        "checkpoints/saving.py",
        'if "weights" not in recipe.model:',
        "if False:",
        ("solvers/test_recipe.py::test_it_is_kept_beside_the_checkpoint",),
    ),
    Mutation(
        "the sign of the score",
        "models/answers.py",
        "return (like(-1 / level.sigma, eps) * eps)",
        "return (like(1 / level.sigma, eps) * eps)",
        ("solvers/test_corrector.py::test_langevin_step_is_the_formula", "models/test_exact.py", "models/test_base.py"),
    ),
    Mutation(
        "1/2 dropped in the probability-flow ODE",
        "models/answers.py",
        "return affine(level.alpha_dot, x0, level.sigma_dot, eps)",
        "return affine(level.alpha_dot, x0, 2 * level.sigma_dot, eps)",
        ("likelihood/test_ode.py::test_prior_mismatch_is_the_whole_gap",),
    ),
    Mutation(
        "1/2 dropped in the velocity of an SDE given by its coefficients",
        "sdes/base.py",
        "f * sigma + g2 / (2 * sigma)",
        "f * sigma + g2 / sigma",
        ("sdes/test_completion.py::test_alpha_and_sigma_by_quadrature[VPSDE]",),
    ),
    Mutation(
        "1/2 dropped in (1 + eta^2)/2 of the reverse SDE",
        "solvers/one_step.py",
        "g2 / (2 * t.sigma)",
        "g2 / t.sigma",
        ("solvers/test_one_step.py::test_equivalent_solvers[VPSDE]",),
    ),
    Mutation(
        "g for g^2",
        "sdes/levels.py",
        "return 2 * self.sigma * (self.sigma_dot - self.sigma * self.f)",
        "return (2 * self.sigma * (self.sigma_dot - self.sigma * self.f)) ** 0.5",
        ("solvers/test_laws.py::test_reverse_sde_marginals",),
    ),
    Mutation(
        "t_min and t_max swapped in the likelihood",
        "likelihood/method.py",
        "make_times(model.sde, solver, steps, None, model.sde.t_min).flip(0)",
        "make_times(model.sde, solver, steps, None, model.sde.t_min)",
        ("likelihood/test_ode.py::test_prior_mismatch_is_the_whole_gap",),
    ),
    Mutation(
        "a step of the loop at the time of the next",
        "solvers/loop.py",
        "solver.step(model, x, levels[i], levels[i + 1], state, noise.at(i))",
        "solver.step(model, x, levels[i + 1], levels[min(i + 2, last + 1)], state, noise.at(i))",
        ("solvers/test_orders.py::test_the_order_that_is_declared[Euler-VPSDE]",),
    ),
    Mutation(
        "N(0, 1) prior whatever the SDE",
        "solvers/loop.py",
        "        x = noise.normal(PRIOR) * levels[0].sigma\n",
        "        x = noise.normal(PRIOR)\n",
        ("sampling/test_sampler.py::test_where_a_sample_starts_and_ends", "solvers/test_laws.py::test_ode_samples_have_the_law_of_the_data"),
    ),
    Mutation(
        "prior_std 1 whatever the SDE",
        "sdes/base.py",
        "return float(self.sigma(float(self.t_max)))",
        "return 1.0",
        ("sdes/test_base.py::test_ends",),
    ),
    Mutation(
        "the average not applied after fit",
        "training/trainer.py",
        "self.average.take()",
        "pass",
        ("training/test_fitting.py::test_average_against_its_recursion",),
    ),
    Mutation(
        "the sign of log|det|",
        "data/transform.py",
        "return math.log2(self.levels) - math.log2(self.high - self.low)",
        "return math.log2(self.levels) + math.log2(self.high - self.low)",
        ("data/test_transform.py", "likelihood/test_ode.py::test_bits_per_dim_of_the_uniform_density"),
    ),
    Mutation(
        "the Gaussian part of F left in",
        "solvers/reference.py",
        "rows = (slope / v.sqrt(), slope * c / v, t.alpha * v.sqrt())",
        "rows = (slope / v.sqrt(), 0 * c, t.alpha * v.sqrt())",
        ("solvers/test_reference.py::test_gaussian_data_are_solved_exactly_in_any_number_of_steps[VPSDE-7]",),
    ),
    Mutation(
        "heavy tails measured, but C left as the tails made it",
        "models/reference.py",
        "return replace(self, variance=self.variance * self.tail, typical=1.0, exact=False)",
        "return replace(self, typical=1.0, exact=False)",
        ("solvers/test_auto.py::test_typical_is_one_for_gaussian_data_and_that_of_student_for_student",),
    ),
    Mutation(
        "one width for all spectra",
        "solvers/untuned.py",
        "1.75 * max(reference.spread**2 - NARROW**2, 0.0)",
        "0.0 * max(reference.spread**2 - NARROW**2, 0.0)",
        ("solvers/test_auto.py::test_width_follows_spectrum_tails_and_order",),
    ),
    Mutation(
        "states of a network of 16 bits rounded to its dtype",
        "sampling/sampler.py",
        "dtype = torch.promote_types(dtype, torch.float32) if has_dtype(model) else dtype",
        "dtype = dtype if has_dtype(model) else dtype",
        ("sampling/test_sampler.py::test_states_of_a_half_precision_network_are_float32",),
    ),
    Mutation(
        "the corrector integrates to the wrong end",
        "solvers/reference.py",
        "correct.append(exponential_weights(nodes, here - w[i - 1]))",
        "correct.append(exponential_weights(nodes, there - here))",
        ("sampling/test_tuning.py::test_the_differentiable_weights_are_those_of_the_solver",),
    ),
    Mutation(
        "candidates of tune judged on the paths that they were fitted to",
        "sampling/tuning.py",
        "distance = (x.double() - p.end[p.judge])",
        "distance = (x.double() - p.end[p.fit])",
        ("sampling/test_tuning.py::test_candidates_are_judged_on_paths_that_no_fit_saw",),
    ),
    Mutation(
        "a recipe for other weights is used",
        "checkpoints/saving.py",
        "if not recipe.mismatch(model, weights):",
        "if not recipe.mismatch(model):",
        ("solvers/test_recipe.py::test_it_is_kept_beside_the_checkpoint",),
    ),
    Mutation(
        "normal draws of too small a radius",
        "core/noise.py",
        "radius = u.log_().mul_(-2.0).sqrt_()",
        "radius = u.log_().mul_(-1.9).sqrt_()",
        ("core/test_noise.py::test_normal_law",),
    ),
    Mutation(
        "finished work of other settings is gone on with",
        "core/rows.py",
        "if changes:",
        "if changes and not self.settings:",
        ("core/test_pieces.py::test_other_arguments_are_refused_by_name",),
    ),
    Mutation(
        "the wrong Lagrange basis",
        "core/exponential.py",
        "ratio.masked_fill(same[..., None], 1.0).prod(-2)",
        "ratio.masked_fill(same[..., None], 1.0).prod(-3)",
        ("sampling/test_tuning.py::test_the_differentiable_weights_are_those_of_the_solver",),
    ),
    Mutation(
        "waves fade by half of what noise leaves of them",
        "nets/waves.py",
        "fade = (-0.5 * w * w * square).exp()",
        "fade = (-0.25 * w * w * square).exp()",
        ("nets/test_waves.py::test_a_wave_fades_as_noise_averages_it",),
    ),
    Mutation(
        "labels that dropout hides are seen",
        "nets/embedding.py",
        ">= self.label_dropout)",
        ">= 0 * self.label_dropout)",
        ("nets/test_networks.py::test_label_dropout_hides_labels_in_training_only",),
    ),
    Mutation(
        "conditions of other rows",
        "models/batches.py",
        "Conditioned(model, conditions_of_rows(cond, rows, n, device))",
        "Conditioned(model, conditions_of_rows(cond, rows[::-1].copy(), n, device))",
        ("models/test_conditions.py",),
    ),
    Mutation(
        "a misspelled option is a condition",
        "models/conditions.py",
        "if takes.others and not near:",
        "if takes.others:",
        ("models/test_conditions.py",),
    ),
    Mutation(
        "levels below the middle of a bin",
        "data/transform.py",
        "(self.low + (levels.double() + 0.5) * self.bin_width).to(dtype)",
        "(self.low + (levels.double() + 0.4) * self.bin_width).to(dtype)",
        ("data/test_transform.py",),
    ),
    Mutation(
        "test digits among the training digits",
        "data/catalog.py",
        "Data(x[:1500], x[1500:]",
        "Data(x[:1500], x[1203:1500]",
        ("data/test_catalog.py::test_digits_split",),
    ),
    Mutation(
        "half of the divergence at t_max",
        "likelihood/bound_parts.py",
        "return 0.5 * (ratio.log() + (1 + r.square()) / ratio - 1)",
        "return 0.25 * (ratio.log() + (1 + r.square()) / ratio - 1)",
        ("likelihood/test_bound.py::test_the_prior_part_is_the_divergence_of_normals",),
    ),
    Mutation(
        "errors of time steps extrapolated from a solve that errs as much",
        "likelihood/budget.py",
        "        if isinstance(model, ExactModel):\n            return",
        "        if False:\n            return",
        ("likelihood/test_budget.py::test_errors_of_fixed_steps_are_told_far_from_the_data",),
    ),
    Mutation(
        "the compiled network differentiated",
        "models/base.py",
        "with eagerly(self) if x.requires_grad else _AS_IT_IS:",
        "with _AS_IT_IS:",
        ("models/test_plain.py::test_derivatives_are_those_of_the_network_itself",),
    ),
    Mutation(
        "calls of batches, not of samples",
        "models/counting.py",
        "divmod(self.rows, max(n, 1))",
        "divmod(self.forward, 1)",
        ("likelihood/test_ode.py::test_bits_per_dim_counts_and_averages",),
    ),
    Mutation(
        "the mean of logs where the log of the mean is meant",
        "likelihood/results.py",
        "ratio.logsumexp(0) - math.log(len(ratio)) if importance_weighted else ratio.mean(0)",
        "ratio.mean(0)",
        ("likelihood/test_dequantize.py",),
    ),
    Mutation(
        "log Z of the sum of weights",
        "sampling/importance.py",
        "return float(self.log_weights.logsumexp(0)) - math.log(len(self.log_weights))",
        "return float(self.log_weights.logsumexp(0))",
        ("sampling/test_importance.py::test_formulas_by_hand",),
    ),
    Mutation(
        "a warm-up that starts a step late",
        "training/schedule.py",
        "rise = min(1.0, (k + 1) / self.warmup)",
        "rise = min(1.0, k / self.warmup)",
        ("training/test_schedule.py::test_learning_rates",),
    ),
    Mutation(
        "a damaged file is read",
        "core/encoding.py",
        "if hashlib.sha256(content).hexdigest() != sha256:",
        "if len(content) > size:",
        ("checkpoints/test_saving.py::test_damage_anywhere_is_found",),
    ),
    Mutation(
        "another network's weights are taken",
        "checkpoints/description.py",
        "elif a != b and not (isinstance(a, float)",
        "elif a != b and not key and not (isinstance(a, float)",
        ("checkpoints/test_saving.py::test_another_model_is_refused",),
    ),
    Mutation(
        "the MMD counts each point's kernel with itself",
        "evaluation/metrics.py",
        "total -= values[:, rows.start :].diagonal()",
        "total -= 0 * values[:, rows.start :].diagonal()",
        ("evaluation/test_metrics.py::test_mmd_is_its_definition",),
    ),
    Mutation(
        "a sliced Wasserstein distance that is not squared",
        "evaluation/metrics.py",
        "return (px - py).square().mean(0)",
        "return (px - py).abs().mean(0)",
        ("evaluation/test_metrics.py::test_a_shift_is_its_mean_square_over_directions",),
    ),
    Mutation(
        "a front of the worst",
        "plot/curves.py",
        "if not best or p[1] < best[-1][1]:",
        "if not best or p[1] > best[-1][1]:",
        ("plot/test_curves.py::test_frontier_bands_front_levels_and_colours",),
    ),
    Mutation(
        "channels that are last are taken for rows",
        "data/dataset.py",
        "    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4) or min(shape[:-1]) < 8:",
        "    if len(shape) != 3 or shape[-1] not in (1, 4) or min(shape[:-1]) < 8:",
        ("plot/test_pictures.py::test_channels_that_are_last",),
    ),
    Mutation(
        "rows of labels in the order of their letters",
        "plot/kinds.py",
        "return not number, float(label) if number else 0.0, label",
        "return True, 0.0, label",
        ("plot/test_pictures.py::test_images_stand_in_rows_of_their_labels",),
    ),
    Mutation(
        "step 0 falls off the axis",
        "plot/curves.py",
        'ax.set_xscale("symlog", linthresh=first, linscale=0.4)',
        'ax.set_xscale("log")',
        ("plot/test_curves.py::test_step_0_unit_and_data_are_shown",),
    ),
    Mutation(
        "arrows of the velocity where the score is asked for",
        "plot/fields.py",
        "getattr(model, field)(points, s)",
        "model.velocity(points, s)",
        ("plot/test_fields.py::test_arrows_are_the_field",),
    ),
    Mutation(
        "a command that makes no sense ends as one that failed",
        "cli/entry.py",
        "return 2 if isinstance(error, ConfigError) else 1",
        "return 1",
        ("cli/test_entry.py::test_errors_are_one_line[frobnicate-2-invalid choice: 'frobnicate']",),
    ),
    Mutation(
        "Python's arguments in advice for the shell",
        "cli/shell.py",
        "r\"--\\1\", message)\n\n\ndef one_line",
        "r\"\\1\", message)\n\n\ndef one_line",
        ("cli/test_commands.py::test_a_run_is_not_overwritten_by_accident",),
    ),
    Mutation(
        "a solver that declares an order less than it has",
        "solvers/multistep.py",
        "return self.order + self.corrector",
        "return self.order",
        ("solvers/test_orders.py::test_the_order_that_is_declared[UniPC-VPSDE]",),
    ),
    Mutation(
        "a second stage of another weight",
        "solvers/runge_kutta.py",
        "return x + (h / 2) * (v_t + v_s), state",
        "return x + h * (0.4 * v_t + 0.6 * v_s), state",
        ("solvers/test_orders.py::test_the_order_that_is_declared[Heun-VPSDE]",),
    ),
    Mutation(
        "what a solver says that it asks for is not looked at",
        "sampling/sampler.py",
        "(Augmented if solver.asks == \"velocity\" else Watched)",
        "(Watched)",
        ("sampling/test_log_prob_of_samples.py::test_a_solver_of_ones_own_says_what_it_asks_for",),
    ),
    Mutation(
        "calls back in time under log p of samples",
        "likelihood/augmented.py",
        "if self.notes and not t < self.notes[-1][0]:",
        "if False:",
        ("sampling/test_log_prob_of_samples.py::test_a_solver_of_x0_that_goes_back_in_time_is_told_so",),
    ),
    Mutation(
        "lam of a batch of levels twice as large",
        "sdes/levels.py",
        "return (self.alpha / self.sigma).log()",
        "return 2 * (self.alpha / self.sigma).log()",
        ("sdes/test_levels.py::test_levels_of_a_batch_are_the_same_numbers",),
    ),
    Mutation(
        "a copy of all samples beside one another",
        "models/views.py",
        "torch.cat([value] * times)",
        "value.repeat_interleave(times, 0)",
        ("models/test_views.py::test_conditions_are_bound_once",),
    ),
    Mutation(
        "calls that are free are made",
        "models/counting.py",
        "if any(calls.free for calls in listening):",
        "if False:",
        ("models/test_counting.py::test_free_calls_reach_no_network",),
    ),
    Mutation(
        "a swap of letters counts twice",
        "core/checks.py",
        "cost = min(cost, earlier[j - 2] + 1)",
        "cost = min(cost, earlier[j - 2] + 2)",
        ("core/test_checks.py::test_letters_apart",),
    ),
)


@dataclass(frozen=True)
class Result:
    name: str
    failed: bool
    seconds: float
    report: str


def run_all(mutations: Iterable[Mutation], baseline: bool = True, arguments: Sequence[str] = ("-m", "not slow")) -> list[Result]:
    """Runs each mutation's tests on the mutated copy, and first all of these tests on the copy as it is (named '')."""
    mutations = list(mutations)
    with tempfile.TemporaryDirectory(prefix="scoresde-mutations-") as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "scoresde", copy / "scoresde", ignore=ignore)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        results = []
        if baseline:
            tests = sorted({test for m in mutations for test in m.tests})
            results.append(_run("", copy, tests, arguments))
        for m in mutations:
            path = copy / "scoresde" / m.file
            text = path.read_text()
            if text.count(m.old) != 1:
                results.append(Result(m.name, False, 0.0, f"{m.old!r} occurs {text.count(m.old)} times in {m.file}, expected once"))
                continue
            path.write_text(text.replace(m.old, m.new))
            results.append(_run(m.name, copy, m.tests, arguments))
            path.write_text(text)
    return results


def _run(name: str, copy: Path, tests: Sequence[str], arguments: Sequence[str]) -> Result:
    """Runs pytest in a forked child, which imports scoresde from the copy."""
    start = time.monotonic()
    log = copy / "log"
    child = os.fork()
    if child == 0:
        code = 3
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            import pytest

            import scoresde

            if not str(scoresde.__file__).startswith(str(copy)):
                raise RuntimeError(f"tested {scoresde.__file__}, not the copy")
            code = pytest.main(["-x", "-p", "no:cacheprovider", "--durations=0", "--tb=line", *arguments,
                                *(f"tests/{t}" for t in tests)])  # fmt: skip
        except BaseException as error:
            print(repr(error))
        finally:
            sys.stdout.flush()
            os._exit(int(code))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    report = log.read_text(errors="replace")
    if code not in (0, 1):  # 1: tests ran and one failed; all else is no verdict
        report = f"pytest ended with code {code}\n{report}"
    return Result(name, code == 1, time.monotonic() - start, report)


def main() -> int:
    """Runs the gate. Returns the number of survivors."""
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401 (imported once, before the forks)
    import torch
    import torchdiffeq  # noqa: F401
    import torchsde  # noqa: F401

    torch.set_num_threads(1)
    survivors = 0
    for r in run_all(MUTATIONS):
        good = r.failed if r.name else (not r.failed and "pytest ended" not in r.report)
        survivors += not good
        what = (r.name or "the package as it is") + ": " + ("fails" if r.failed else "passes")
        print(f"{'ok ' if good else 'BAD'} {r.seconds:6.1f} s  {what}")
        if not good:
            print(r.report)
    return survivors


if __name__ == "__main__":
    sys.exit(1 if main() else 0)

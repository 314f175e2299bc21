"""The help: complete, understood when typed, and made of what the code says."""

import re
import shlex

import pytest

import scoresde as sd
from scoresde.cli import classes, entry, main, options
from scoresde.errors import ConfigError
from scoresde.evaluation.frontier.compare import SOLVERS
from scoresde.likelihood import flow
from scoresde.solvers.planning import AUTO_STEPS


def help_of(command, capsys):
    assert main([command, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", options.COMMANDS)
def test_help(command, capsys):
    text = help_of(command, capsys)
    assert f"scoresde {command} " in text.split("examples:")[1]
    assert "%(default)s" not in text
    for kind in options.SHOWN.get(command, ()):
        shown = classes.of_the_flow() if command == "nll" else classes.own(kind)
        assert all(classes.signature(cls) in text for cls in shown.values())
    if command == "nll":
        assert "ReferenceSolver(" in text
        assert "PredictorCorrector(" not in text


def test_no_arguments_explain_everything(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"scoresde {command}" in text for command in options.COMMANDS)
    assert main(["--version"]) == 0
    assert re.search(r"\d+\.\d+", capsys.readouterr().out)


def test_every_example_of_the_help_is_understood():
    """The examples are parsed, and their classes made."""
    lines = [line for text in (options.ABOUT, *options.EXAMPLES.values()) for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}", line.strip())[0])
        words = words[words.index("scoresde") + 1 :] if "scoresde" in words else words[words.index("scoresde.cli") + 1 :]
        command, a = entry.parse(words)
        assert command in options.COMMANDS
        for kind, given in a.options.items():
            if given and "my_module" not in a[kind]:
                classes.make(kind, a[kind], given, {"features": 2})
        if command == "bench" and a.grids:
            assert set(a.grids.split(",")) <= {"own", *classes.grids()}


def test_defaults_in_the_help_are_those_of_the_code(capsys):
    """Other wording may change; these numbers may not be copies."""
    text = help_of("train", capsys)
    for name, words in (("batch_size", "over all processes"), ("lr", "the largest"), ("clip", "of the gradient"), ("ema", "of the weights")):
        assert f"{words} ({options.default(sd.fit, name):g})" in text
    for name, words in (("checkpoint_every", "between checkpoints"), ("validate_every", "on the test data")):
        assert f"{words} ({options.default(sd.fit, name)})" in text
    assert f"({AUTO_STEPS} for auto, {sd.Solver.default_steps} for most others" in help_of("sample", capsys)
    text = help_of("nll", capsys)
    assert f"ReferenceSolver ({flow.STEPS})" in text
    assert f"steps and cut ({options.default(sd.bits_per_dim, 'check')})" in text
    assert f"auto and {len(SOLVERS) - 1} more" in help_of("bench", capsys)


@pytest.mark.parametrize(("option", "resolve"), [("weighting", sd.loss.resolve_weighting), ("times", sd.loss.resolve_times)])
def test_names_in_the_help_are_all_that_there_are(option, resolve, capsys):
    listed = re.search(rf"--{option} \w [^:]*: ([^(]*) \(", help_of("train", capsys))[1]
    with pytest.raises(ConfigError) as error:
        resolve("nothing of the kind")
    known = re.search("one of (.*) or a function", str(error.value))[1].split(", ")
    assert sorted(re.split(", | or ", listed)) == sorted(set(known) - {"stratified"})  # which is uniform: the strata are another option

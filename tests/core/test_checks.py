"""What checks are made of: how far names are apart, and what is proposed."""

from __future__ import annotations

import itertools

import pytest

from scoresde.core.checks import did_you_mean, letters_apart


@pytest.mark.parametrize(
    ("a", "b", "n"),
    [
        ("", "", 0), ("", "abc", 3), ("steps", "steps", 0), ("setps", "steps", 1), ("step", "steps", 1), ("stepss", "steps", 1), ("stops", "steps", 1),
        ("divergance", "divergence", 1), ("solvr", "solver", 1), ("sovler", "solver", 1), ("kitten", "sitting", 3), ("ids", "seed", 4), ("tsepz", "steps", 2),
    ],
)  # fmt: skip
def test_letters_apart(a, b, n):
    """A swap of neighbours is one change, as are a letter more, a letter less and another letter; either way round."""
    assert letters_apart(a, b) == letters_apart(b, a) == n


def test_letters_apart_is_the_fewest_changes():
    """Against a search by brute force: every word of up to four letters of {a, b} that one or two changes lead to."""

    def changed(word):
        for i in range(len(word) + 1):
            yield from (word[:i] + c + word[i:] for c in "ab")
        for i in range(len(word)):
            yield word[:i] + word[i + 1 :]
            yield from (word[:i] + c + word[i + 1 :] for c in "ab")
        for i in range(len(word) - 1):
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    words = ["".join(w) for n in range(5) for w in itertools.product("ab", repeat=n)]
    for a in words:
        one = set(changed(a))
        assert {b for b in words if b != a and letters_apart(a, b) == 1} == {b for b in words if b in one and b != a}


def test_what_is_proposed():
    assert did_you_mean("heun", ["Euler", "Heun"]) == "; did you mean 'Heun'?"
    assert did_you_mean("xyz", ["Euler", "Heun"]) == ""

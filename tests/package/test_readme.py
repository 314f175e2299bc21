"""The README and the pages of docs: their Python runs as written, what they name is there, and their tables are what the code says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))])
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
README = TEXTS["README.md"]


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXTS[page], re.S)


def links_of(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])


def run(page: str) -> dict:
    """The names after all blocks of a page, from top to bottom."""
    names: dict = {}
    for block in python_of(page):
        exec(compile(block, page, "exec"), names)
    return names


def test_python_of_the_readme_runs():
    names = run("README.md")
    assert len(python_of("README.md")) >= 2
    assert names["history"].steps
    assert torch.isfinite(names["gap"])
    assert 0 < names["b"].mean < 10


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and python_of(page)])
def test_python_of_the_pages_runs(page):
    """Each page by itself: it imports what it uses."""
    run(page)


def test_pages_with_examples_are_found():
    assert {"docs/your_own.md", "docs/how_many_steps.md", "docs/likelihoods.md", "docs/large_runs.md"} <= {page for page in PAGES if python_of(page)}
    assert len(python_of("docs/your_own.md")) >= 7


def test_the_two_commands_are_there():
    for command in (
        "python -m venv .venv && .venv/bin/pip install torch==2.13.0 -e . && .venv/bin/scoresde demo",
        'python -m venv .venv && .venv/bin/pip install torch==2.13.0 -e ".[dev]" && .venv/bin/python -m pytest',
    ):
        assert command in README


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 200
    linked = {link.partition("#")[0] for link in links_of("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= linked


@pytest.mark.parametrize(("page", "path"), [(page, path) for page in PAGES for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXTS[page])])
def test_pictures_exist(page, path):
    assert ((ROOT / page).parent / path).stat().st_size > 1000


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """Also those in commands, as in `python benchmarks/moons.py`."""
    folders = "benchmarks|notebooks|docs|tests|scoresde"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]*\w/?)", TEXTS[page]):
        assert (ROOT / path).exists(), path


def test_tables_of_solvers_are_what_the_solvers_say(tmp_path, monkeypatch):
    """As `python docs/solver_table.py --check` finds; and it finds a figure that is another, and mends it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import solver_table

    monkeypatch.setattr(sys, "argv", ["solver_table.py", "--check"])
    solver_table.main()
    (tmp_path / "docs").mkdir()
    for page in solver_table.PAGES:
        (tmp_path / page).write_text(TEXTS[page].replace("| `Heun` | velocity | 2 |", "| `Heun` | velocity | 3 |").replace("| `Heun` | 2 |", "| `Heun` | 3 |"))
        assert (tmp_path / page).read_text() != TEXTS[page]
    monkeypatch.setattr(solver_table, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="the table is not what the solvers say"):
        solver_table.main()
    monkeypatch.setattr(sys, "argv", ["solver_table.py"])
    solver_table.main()
    assert all((tmp_path / page).read_text() == TEXTS[page] for page in solver_table.PAGES)


def test_every_solver_has_its_advice():
    from scoresde import solvers
    from scoresde.core import faces

    advice = TEXTS["docs/which_solver.md"].partition("## When to take which")[2].partition("\n## ")[0]
    for name in faces.own(solvers, solvers.Solver):
        assert name in advice, name

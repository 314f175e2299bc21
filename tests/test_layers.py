"""The architecture, checked on the source: one total order of layers, nothing banned, nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scoresde"
LAYERS = [
    ["errors"],
    ["_tensor", "_quadrature"],
    ["noise", "nets"],
    ["sde"],
    ["check"],
    ["parameterization"],
    ["model"],
    ["exact", "loss", "grid", "transform"],
    ["solvers"],
    ["adapters"],
    ["sampling"],
    ["likelihood", "metrics"],
    ["data"],
    ["_files", "_figures"],
    ["checkpoint", "plot"],
    ["_batches"],
    ["_trainer"],
    ["train"],
    ["frontier"],
    ["_demo", "_classes"],
    ["_options"],
    ["cli"],
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(path: Path) -> set[str]:
    """Modules of scoresde that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("scoresde")):
            module = (node.module or "").removeprefix("scoresde").lstrip(".")
            found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("scoresde.")}
    return {module for module in found if (PACKAGE / f"{module}.py").exists()}


def test_every_module_has_its_place():
    assert {path.stem for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_imports_come_from_the_left(path):
    wrong = {module for module in imported(path) if RANK[module] >= RANK[path.stem]}
    assert not wrong, f"{path.stem} imports {wrong}, which do not stand to its left"


BANNED_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
BANNED_CALLS = {"eval", "exec", "compile", "yaml.load", "torch.load", "torch.manual_seed", "np.random.seed", "random.seed", "os.system"}


def dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_banned(path):
    """No assert (python -O drops it), nothing that could run what a file says, no touching of global random states."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            found.append(f"assert in line {node.lineno}")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"import of {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            seeds_in_a_fork = name == "torch.manual_seed" and path.stem in ("cli", "_demo")  # inside fork_rng: initial weights
            if name in BANNED_CALLS and not seeds_in_a_fork:
                found.append(f"{name} in line {node.lineno}")
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "shell") and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                    found.append(f"{keyword.arg} in line {node.lineno}")
    assert not found


def test_seeding_of_initial_weights_is_inside_a_fork():
    for name in ("cli", "_demo"):
        text = (PACKAGE / f"{name}.py").read_text()
        assert text.count("torch.manual_seed") == text.count("fork_rng")


def test_no_decision_by_the_type_of_the_sde():
    """Only that it is one at all is asked."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and dotted(node.func) == "isinstance":
                assert "sde" not in dotted(node.args[0]).lower() or dotted(node.args[1]) == "SDE", f"{path.name}:{node.lineno}"


def test_import_is_light():
    """Libraries are imported where they are used."""
    heavy = ["sklearn", "matplotlib", "accelerate", "torchdiffeq", "torchsde", "jsonargparse", "tqdm", "safetensors", "pandas", "scipy"]
    code = f"import torch, sys; before = set(sys.modules); import scoresde; print([m for m in {heavy} if m in set(sys.modules) - before])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"

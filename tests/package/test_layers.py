"""The shape of the package, read from its source: layers of folders, faces, what is not used at all, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import scoresde

PACKAGE = Path(scoresde.__file__).parent
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}

# A folder imports from those on the lines above its own only; nothing within a line imports its neighbour.
LAYERS = [
    ["errors"],
    ["core"],
    ["sdes", "nets"],
    ["models"],
    ["solvers", "data"],
    ["likelihood", "checkpoints", "guidance", "interop"],
    ["sampling", "training", "plot"],
    ["evaluation"],
    ["cli"],
]
FLOOR = {folder: i for i, line in enumerate(LAYERS) for folder in line}
LONGEST = 400  # lines of a file


def imported(tree: ast.Module, module: str = "") -> set[str]:
    """The modules of this package that a module imports, anywhere in it, as dotted names below scoresde."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ["scoresde", *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.removeprefix("scoresde.") for name in found if name.startswith("scoresde.")}


def file_of(name: str) -> str:
    """The module that a dotted name is, or is in: models.base for models.base.ScoreModel, models.__init__ for models.ScoreModel."""
    parts = name.split(".")
    for n in range(len(parts), -1, -1):
        for candidate in (".".join(parts[:n]), ".".join([*parts[:n], "__init__"])):
            if candidate in MODULES:
                return candidate
    raise AssertionError(f"scoresde.{name} is not in the package")


IMPORTS = {module: {file_of(name) for name in imported(tree, module)} - {module} for module, tree in MODULES.items()}


def folder_of(module: str) -> str:
    return module.split(".")[0]


def test_every_folder_has_its_floor():
    folders = {folder_of(module) for module in MODULES} - {"__init__"}
    assert folders - {"__main__"} <= set(FLOOR)  # which starts the command line
    assert len(LAYERS) <= 9
    for floor, line in reversed(list(enumerate(LAYERS, 1))):
        print(floor, " | ".join(f"{folder} ({sum(folder_of(m) == folder for m in MODULES)} files)" for folder in line if folder in folders))


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", "__main__"}))
def test_imports_come_from_below_only(module):
    up = {other for other in IMPORTS[module] if folder_of(other) != folder_of(module) and not FLOOR.get(folder_of(other), 99) < FLOOR[folder_of(module)]}
    assert not up, f"{module} imports {sorted(up)}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "__init__" and not m.endswith("__init__")))
def test_no_module_goes_by_its_own_face(module):
    """From inside of a folder one file is imported, not the face, which imports them all."""
    assert f"{module.rpartition('.')[0]}.__init__" not in IMPORTS[module]


def test_no_circle_of_files():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in IMPORTS[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_walk_sees_imports():
    tree = ast.parse("from . import a\nfrom .b import c\nimport scoresde.d\nfrom scoresde.e import f\ndef g():\n    from ..h import i")
    assert imported(tree, "folder.file") == {"folder.a", "folder.b.c", "d", "e.f", "h.i"}


def test_imports_in_random_order_work():
    """Each file can be the first that is imported: no order hides a circle."""
    modules = [f"scoresde.{m}".removesuffix(".__init__") for m in MODULES if not m.endswith("__main__")]
    code = """
import importlib, os, random, sys
import torch
names = sys.argv[2:]
random.Random(int(sys.argv[1])).shuffle(names)
# what others wrote is imported once, before the forks: it takes most of the time
there, here = os.pipe()
if not os.fork():
    for name in names:
        importlib.import_module(name)
    os.write(here, " ".join(m for m in sys.modules if m.split(".")[0] not in ("scoresde", "__main__")).encode())
    os._exit(0)
os.close(here)
others = os.fdopen(there).read().split()
os.wait()
for name in others:
    importlib.import_module(name)
assert not any(name.startswith("scoresde") for name in sys.modules)
for name in names:
    if not os.fork():
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
        os._exit(0)
    os.wait()
for name in names:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code, "0", *modules], capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("package", sorted(m for m in MODULES if m.endswith("__init__")))
def test_a_face_is_a_paragraph_and_a_list(package):
    """Its docstring says what the folder is for, __all__ what it offers, and no file of the folder has the name of something else offered."""
    tree = MODULES[package]
    assert len(ast.get_docstring(tree) or "") > 40
    name = f"scoresde.{package}".removesuffix(".__init__")
    face = importlib.import_module(name)
    assert sorted(face.__all__, key=str) == sorted(set(face.__all__), key=str)
    folder = Path(face.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    for offered in face.__all__:
        value = getattr(face, offered)
        assert offered not in files or isinstance(value, types.ModuleType), f"{name}.{offered} hides a file of that name"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_are_short(module):
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    assert len(path.read_text().splitlines()) <= LONGEST
    assert "util" not in module


def test_every_public_name_is_found():
    """Those that are imported at their first use too: in dir(scoresde), and where a type checker looks."""
    assert set(scoresde.__all__) <= set(dir(scoresde))
    later = {name for names in scoresde._HOMES.values() for name in names}
    typed = set()
    for node in MODULES["__init__"].body:
        if isinstance(node, ast.If):
            typed |= {alias.name for inner in node.body for alias in inner.names}
    assert later == typed
    assert later <= set(scoresde.__all__)
    for name in scoresde.__all__:
        assert getattr(scoresde, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        scoresde.smaple  # noqa: B018


# ---- what is not used

SDES = {"VPSDE", "SubVPSDE", "VESDE", "CosineSDE", "EDMSDE", "RectifiedFlow"}
RUNS_CODE = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like", "randint_like"}
SEEDS = {"manual_seed", "set_rng_state", "manual_seed_all", "set_state", "default_generator"}
NUMPY_OK = {"Philox", "Generator", "RandomState", "SeedSequence", "default_rng"}
INITS = {"nets"}  # networks draw their initial weights, and drop labels in training, from torch's generator like any nn.Module


def dotted(node: ast.AST) -> str:
    """torch.random.fork_rng of its syntax tree; "" for what is no dotted name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


def violations(tree: ast.Module, module: str = "") -> list[str]:
    """Everything in a module that is forbidden, in words."""
    found = []
    forked: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any("fork_rng" in ast.dump(item.context_expr) for item in node.items):
            forked |= {id(inner) for inner in ast.walk(node)}

    def bad(node, what):
        found.append(f"line {node.lineno}: {what}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            bad(node, "assert, which python -O drops")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            names += [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in RUNS_CODE:
                    bad(node, f"import of {name}")
                if name.split(".")[0] == "random" and not getattr(node, "level", 0):
                    bad(node, "the module random")
                if name in ("importlib", "importlib.import_module") and module not in ("cli.classes", "__init__"):
                    bad(node, "importlib: names are resolved among scoresde's own, dotted paths on the command line only")
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in ("torch.load", "torch.save", "yaml.load", "os.system", "os.popen", "torch.hub.load"):
                bad(node, name)
            if name.startswith(("np.random.", "numpy.random.")) and node.attr not in NUMPY_OK:
                bad(node, f"{name}: numpy's global generator")
            if name == "torch.manual_seed" and id(node) in forked:
                bad(node, "torch.manual_seed: the generators of all GPUs, which fork_rng leaves as they are")
            if (node.attr in SEEDS or name in ("torch.seed", "torch.random.seed")) and id(node) not in forked:
                bad(node, f"{name or node.attr}: the global generator, outside fork_rng")
            if name in {f"torch.{d}" for d in DRAWS} and id(node) not in forked and folder_of(module) not in INITS:
                bad(node, f"{name}: the global generator")
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("eval", "exec", "compile", "__import__", "breakpoint", "input"):
                bad(node, f"{function.id}()")
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("allow_pickle", "shell", "weights_only") and not off:
                    bad(node, f"{keyword.arg}={ast.unparse(keyword.value)}")
            if isinstance(function, ast.Name) and function.id in ("isinstance", "issubclass"):
                named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                named |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                if named & SDES:
                    bad(node, f"{function.id} of {sorted(named & SDES)}: everything is generic in alpha and sigma")
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_forbidden(name):
    assert violations(MODULES[name], name) == []


@pytest.mark.parametrize(
    "line",
    [
        "assert x",
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "torch.load(f)",
        "torch.load(f, weights_only=True)",
        "yaml.load(f)",
        "eval(s)",
        "exec(s)",
        "compile(s, '', 'exec')",
        "__import__('os')",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
        "import importlib",
        "import random",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "torch.manual_seed(0)",
        "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "torch.random.seed()",
        "torch.default_generator.manual_seed(0)",
        "torch.randn(3)",
        "torch.set_rng_state(s)",
        "isinstance(sde, VPSDE)",
        "isinstance(sde, (sd.VESDE, int))",
    ],
)
def test_the_walk_sees_what_is_forbidden(line):
    assert violations(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "np.load(f, allow_pickle=False)",
        "np.random.Generator(np.random.Philox(key=1))",
        "with torch.random.fork_rng():\n    torch.default_generator.manual_seed(0)\n    torch.randn(3)",
        "isinstance(sde, SDE)",
        "re.compile('a')",
        "self.load(f)",
    ],
)
def test_the_walk_lets_pass_what_is_allowed(line):
    assert violations(ast.parse(line)) == []


# ---- what tests may know


def private_uses(tree: ast.Module) -> list[str]:
    """Private names of the package that a file of tests uses, and attributes of its modules that it patches."""
    ours = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names if "scoresde" in (getattr(node, "module", None) or alias.name)}  # fmt: skip
    assigned = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {t.attr if isinstance(t, ast.Attribute) else getattr(t, "id", "") for t in assigned}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            foreign = dotted(node).split(".")[0] in {"self", "cls", "os", "torch"}
            found += [] if foreign or node.attr in own else [f"line {node.lineno}: {node.attr}"]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scoresde"):
            found += [f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
        patches = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr" and len(node.args) == 3
        if patches and dotted(node.args[0]).split(".")[0] in ours:
            found.append(f"line {node.lineno}: patches {ast.unparse(node.args[0])}.{ast.literal_eval(node.args[1])}")
    return found


def test_tests_know_little_of_the_inside():
    """At most 25 private names and patched modules in all tests."""
    tests = Path(__file__).parents[1]
    found = {str(path.relative_to(tests)): private_uses(ast.parse(path.read_text())) for path in sorted(tests.rglob("*.py"))}
    found = {path: uses for path, uses in found.items() if uses}
    assert sum(map(len, found.values())) <= 25, "\n".join(f"{path}: {uses}" for path, uses in found.items())


def test_the_count_sees_private_names():
    text = "import scoresde as sd\nfrom scoresde.core import noise\nfrom scoresde.core.noise import _f\n"
    text += "x = noise._g\nself._h\nobj._own = 1\nobj._own\nmonkeypatch.setattr(noise, 'K', 1)\nmonkeypatch.setattr(os, 'write', 1)\n"
    assert sorted(private_uses(ast.parse(text))) == ["line 3: _f", "line 4: _g", "line 8: patches noise.K"]


# ---- what an import costs

LATER = ["sklearn", "matplotlib", "accelerate", "torchdiffeq", "torchsde", "jsonargparse", "tqdm", "pandas", "scipy", "torchvision", "ot"]

IMPORT = f"""
import json, socket, sys, time
def refuse(*args, **kwargs): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
a = time.process_time(); import torch; b = time.process_time()
state, before, threads = torch.get_rng_state(), set(sys.modules), torch.get_num_threads()
import scoresde as sd
c = time.process_time()
loaded = [m for m in {LATER!r} if m in sys.modules and m not in before]
model = sd.ExactModel(sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), sd.VPSDE())
sd.sample(model, 2, steps=2)
same = torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads()
slow = [m for m in ("torch._dynamo", "sympy") if m in sys.modules and m not in before]
print(json.dumps(dict(loaded=loaded, slow=slow, same=same, ratio=(c - a) / (b - a))))
"""


def test_an_import_is_light():
    """Libraries are imported where they are used. The time is about 1.1 times that of torch; a busy machine reads 1.2, so the limit is wide."""
    ratios = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["loaded"] == []
        assert found["slow"] == []  # neither do drawing samples
        assert found["same"]
        ratios.append(found["ratio"])
        if ratios[-1] <= 1.5:
            return
    pytest.fail(f"import scoresde takes {min(ratios):.2f} times import torch")

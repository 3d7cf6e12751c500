"""The house rules that a machine can check, each with a proof that it finds what it looks for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "posttrain"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))

MAY_IMPORT = {
    "algo": {
        "torch",
        "posttrain.algo",
        "math",
        "collections",
        "dataclasses",
        "functools",
        "typing",
        "__future__",
    },
}
"""Pure maths: nothing that talks to the world. Other folders may import what they like, but for:"""
MAY_NOT_IMPORT = {
    "config": {"torch", "transformers", "numpy", "datasets", "pyarrow"},
    "records.py": {"transformers", "numpy"},
    "errors.py": {"torch", "transformers", "numpy"},
}
ONE_HOME = ("ray", "vllm", "wandb", "trackio", "tensorboard", "mlflow")
FORBIDDEN_FILES = {"utils", "util", "helpers", "helper", "misc", "common", "core", "base"}
FORBIDDEN_CLASSES = re.compile(r"(Manager|Handler|Wrapper|Helper|Utils?)$")
CATCHES_ALL = {"rewards/worker.py"}
"""Where any exception is an answer by design: a verifier's fault becomes the sample's score `error`."""
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in `tree`, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
            if node.module == "posttrain":
                names |= {f"posttrain.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def size_faults(source: str) -> Iterator[str]:
    if (lines := source.count("\n")) > 400:
        yield f"{lines} lines; split the file along its nouns"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > 60:
                yield f"{node.name} has {lines} lines; it does more than one thing"


def import_faults(where: str, source: str) -> Iterator[str]:
    found, folder = imports(ast.parse(source)), where.split("/")[0]
    if any(name.startswith(".") for name in found):
        yield "imports are absolute here"
    if (allowed := MAY_IMPORT.get(folder)) is not None:
        found.discard("posttrain")
        yield from (f"{folder}/ may not import {name}" for name in sorted(found) if not within(name, allowed))
    forbidden = MAY_NOT_IMPORT.get(folder, set())
    yield from (f"{folder} may not import {name}" for name in sorted(found) if within(name, forbidden))


def name_faults(where: str, source: str) -> Iterator[str]:
    if Path(where).stem in FORBIDDEN_FILES:
        yield f"{where} is named after nothing"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and FORBIDDEN_CLASSES.search(node.name):
            yield f"class {node.name} is named after nothing"


def habit_faults(where: str, source: str) -> Iterator[str]:
    """Broad excepts that do not raise again, prints, work left undone, a file without a docstring."""
    tree = ast.parse(source)
    if source.strip() and ast.get_docstring(tree) is None:
        yield "the file does not say what it is"
    if UNFINISHED.search(source):
        yield "work is left undone"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and where not in CATCHES_ALL:
            caught = {"bare"} if node.type is None else {ast.unparse(n) for n in ast.walk(node.type)}
            again = any(isinstance(last, ast.Raise) and last.exc is None for last in node.body[-1:])
            if caught & {"bare", "Exception", "BaseException"} and not again:
                yield f"line {node.lineno} catches everything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno} prints"


def source_faults(source: str) -> Iterator[str]:
    """Public functions of algo/ whose docstring names no paper, equation or rule."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node) or ""
            if not re.search(r"arXiv:|Source", text):
                yield f"{node.name} names no source"


def claim_faults(source: str) -> Iterator[str]:
    """Tests that cannot fail, and traps that do not exist."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            body = ast.unparse(node)
            if not re.search(r"\bassert|raises\(|check=True|\b(check|expect)_\w+\(", body):
                yield f"{node.name} cannot fail"
    for claim in re.findall(r"Closes [^.:]*", source):
        for number in re.findall(r"\bT(\d+)", claim):
            if not 1 <= int(number) <= 60:
                yield f"there is no trap T{number}"


def where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *SCRIPTS], ids=name_of)
def test_files_and_functions_are_short(path):
    assert list(size_faults(path.read_text())) == []


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_house_rules(path):
    source = path.read_text()
    faults = [*import_faults(where(path), source), *name_faults(where(path), source)]
    assert [*faults, *habit_faults(where(path), source)] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "algo").glob("*.py")), ids=where)
def test_every_loss_names_its_source(path):
    assert list(source_faults(path.read_text())) == []


@pytest.mark.parametrize("library", ONE_HOME)
def test_an_optional_library_has_one_home(library):
    homes = [
        where(path)
        for path in SOURCES
        if any(within(n, {library}) for n in imports(ast.parse(path.read_text())))
    ]
    assert len(homes) <= 1


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_tests_can_fail_and_close_real_traps(path):
    assert list(claim_faults(path.read_text())) == []


LIGHT = {
    "posttrain.config": {"torch", "transformers", "numpy", "datasets"},
    "posttrain.rewards": {"torch", "transformers", "sympy", "math_verify", "nltk", "langdetect"},
    "posttrain.cli": {"torch", "transformers", "numpy", "datasets", "matplotlib"},
    "posttrain.errors": {"torch", "numpy"},
    "posttrain.records": {"torch", "numpy"},
}
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
    importlib.import_module(f"{sys.argv[1]}.{module.name}")
heavy = set(sys.argv[2:]) & set(sys.modules)
assert not heavy, f"{sys.argv[1]} imports {heavy}"
"""


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_imports_nothing_heavy(module):
    subprocess.run([sys.executable, "-c", IMPORT_ALL, module, *LIGHT[module]], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=name_of)
def test_every_recipe_loads_and_is_named_after_its_file(path):
    from posttrain.config.load import load_recipe

    assert load_recipe(path).name == path.stem


LONG = "def f():\n" + "    x = 1\n" * 60
WRONG = {
    "long function": lambda: size_faults(LONG),
    "long file": lambda: size_faults("x = 1\n" * 401),
    "world in algo": lambda: import_faults("algo/x.py", "import requests"),
    "ours in algo": lambda: import_faults("algo/x.py", "def f():\n    from posttrain.data import rows"),
    "ours in algo by name": lambda: import_faults("algo/x.py", "from posttrain import records"),
    "torch in config": lambda: import_faults("config/x.py", "def f():\n    import torch.nn"),
    "relative": lambda: import_faults("train/x.py", "from .a import b"),
    "file name": lambda: name_faults("data/utils.py", ""),
    "class name": lambda: name_faults("data/x.py", "class RunManager: ..."),
    "no docstring": lambda: habit_faults("data/x.py", "x = 1"),
    "bare except": lambda: habit_faults("a.py", '"""D."""\ntry:\n    f()\nexcept:\n    pass'),
    "in a tuple": lambda: habit_faults(
        "a.py", '"""D."""\ntry:\n    f()\nexcept (OSError, Exception) as e:\n    pass'
    ),
    "print": lambda: habit_faults("a.py", '"""D."""\nprint(1)'),
    "undone": lambda: habit_faults("a.py", '"""D."""\n# TO' + "DO: later"),
    "no source": lambda: source_faults('def loss(x):\n    """A loss."""'),
    "no assertion": lambda: claim_faults("def test_a():\n    f()"),
    "trap 61": lambda: claim_faults(f'"""Closes T14, T{61}."""'),
}


@pytest.mark.parametrize("faults", WRONG.values(), ids=WRONG.keys())
def test_each_rule_finds_its_fault(faults):
    assert len(list(faults())) == 1


def test_what_is_allowed_is_let_through():
    assert list(size_faults("def f():\n" + "    x = 1\n" * 59)) == []
    assert list(import_faults("algo/x.py", "import torch.nn\nfrom posttrain.algo.kl import k3")) == []
    assert list(import_faults("data/x.py", "import torch")) == []
    assert (
        list(habit_faults("a.py", '"""D."""\ntry:\n    f()\nexcept BaseException:\n    g()\n    raise')) == []
    )
    assert list(source_faults('def loss(x):\n    """A loss (arXiv:2305.18290)."""\ndef _part(x): ...')) == []

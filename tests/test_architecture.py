"""Imports point downwards, and `import gossamer` stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = (
    "errors registry progress files batches numerics checkpoints program coupling plan apply train targets search report data pipeline cli __main__"
).split()
SRC = Path(__file__).parents[1] / "src" / "gossamer"
FILES = sorted(SRC.rglob("*.py"))
HEAVY = ("onnx", "onnxruntime", "accelerate", "rich", "typer", "matplotlib", "PIL", "jinja2.environment", "timm", "torchvision")


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all imported modules, those inside functions too: a lazy import is an import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_downwards(path):
    if layer(path) == "__init__":
        return
    for name in imported(ast.parse(path.read_text())):
        if name.startswith("gossamer."):
            other = name.split(".")[1]  # an unknown layer raises: new folders are put in LAYERS on purpose
            assert LAYERS.index(other) <= LAYERS.index(layer(path)), f"{path} imports {name}, which lies above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_own_modules_are_imported_at_the_top(path):
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    hidden = [name for function in functions for name in imported(function) if name.split(".")[0] == "gossamer"]
    assert not hidden


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_keep_to_the_house_rules(path):
    """No pickle, no torch.save or torch.load, no relics of torch, no bare except, no print; under 400 lines; a first line."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says in its first line what it is about"
    assert len(text.splitlines()) < 400
    names = set(imported(tree)) | {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    banned = ("pickle", "torch.save", "torch.load", "torch.jit", "torch.ao")
    assert not [name for name in names if name.startswith(banned)]
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")


def test_import_is_light():
    """`import gossamer` loads none of the packages that only some of its functions need."""
    code = f"import sys, gossamer; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_every_layer_exists():
    assert {layer(path) for path in FILES} - {"__init__"} <= set(LAYERS)


def test_no_file_imports_itself_through_others():
    """Imports that only type checkers see count, too."""
    modules = {
        "gossamer." + str(path.relative_to(SRC).with_suffix("")).replace("/", "."): path for path in FILES if path.name != "__init__.py"
    }
    left = {
        name: {other for other in map(_module(modules), imported(ast.parse(path.read_text()))) if other} for name, path in modules.items()
    }
    while free := [name for name, others in left.items() if not others & left.keys()]:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, "these import each other, or files that do"


def _module(modules):
    """The file that an imported name is, or is in; None for packages and what others made."""
    return lambda name: name if name in modules else name.rpartition(".")[0] if name.rpartition(".")[0] in modules else None

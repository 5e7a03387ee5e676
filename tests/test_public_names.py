"""The public names are exactly these; each is documented."""

import inspect
import subprocess
import sys

import gossamer

NAMES = {
    "Budget",
    "Constraints",
    "Data",
    "GossamerError",
    "Plan",
    "Program",
    "Recipe",
    "Result",
    "Scheme",
    "Settings",
    "apply",
    "capture",
    "compress",
    "export",
    "fit",
    "load",
    "plan_depth",
    "plan_dynamic_quantization",
    "plan_pruning",
    "plan_quantization",
    "plan_sparsity",
    "plan_weight_quantization",
    "prune",
    "prune_rounds",
    "repair",
    "save",
    "score",
    "simulate",
    "transplant",
    "verify",
}


def visible():
    return {name for name in dir(gossamer) if not name.startswith("_") and not inspect.ismodule(getattr(gossamer, name))}


def test_exactly_these_names_are_public():
    assert visible() == NAMES
    assert set(gossamer.__all__) == NAMES
    assert not hasattr(gossamer, "anything_else")


def test_each_is_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(gossamer, name)), name


def test_no_name_is_hidden_by_a_package_of_that_name():
    """Importing a submodule binds its package in ours, whatever name of ours was there."""
    code = """
import importlib, pkgutil, types, gossamer
for module in pkgutil.walk_packages(gossamer.__path__, "gossamer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in gossamer.__all__ if isinstance(getattr(gossamer, name), types.ModuleType)])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"

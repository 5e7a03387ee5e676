"""The public names are exactly these; each is documented."""

import inspect

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
    "tournament",
    "transplant",
    "verify",
}


def visible():
    return {name for name, value in vars(gossamer).items() if not name.startswith("_") and not inspect.ismodule(value)}


def test_exactly_these_names_are_public():
    assert visible() == NAMES
    assert set(gossamer.__all__) == NAMES


def test_each_is_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(gossamer, name)), name

"""Makes trained PyTorch networks small and fast, and proves it."""

import gc as _gc
import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

import torch as _torch  # first, so that its own import runs as it always does

# Every import makes objects, and each full collection on the way walks the million that torch holds: it was a fifth of the time.
_collecting = _gc.isenabled()
_gc.disable()

from gossamer.apply.engine import apply as apply  # before any lazy name, so that the package "apply" does not take its place
from gossamer.errors import GossamerError as GossamerError
from gossamer.plan.budget import Budget as Budget
from gossamer.plan.constraints import Constraints as Constraints
from gossamer.plan.plan import Plan as Plan
from gossamer.plan.pruning import plan_pruning as plan_pruning
from gossamer.plan.score import score as score
from gossamer.program.bundle import load as load
from gossamer.program.bundle import save as save
from gossamer.program.capture import capture as capture
from gossamer.program.program import Program as Program

if _collecting:
    _gc.enable()

if _TYPE_CHECKING:
    from gossamer.apply.eager import prune as prune
    from gossamer.apply.repair import repair as repair
    from gossamer.apply.transplant import transplant as transplant
    from gossamer.data.source import Data as Data
    from gossamer.pipeline.loop import compress as compress
    from gossamer.pipeline.result import Result as Result
    from gossamer.pipeline.rounds import prune_rounds as prune_rounds
    from gossamer.pipeline.settings import Settings as Settings
    from gossamer.plan.depth import plan_depth as plan_depth
    from gossamer.plan.dynamic import plan_dynamic_quantization as plan_dynamic_quantization
    from gossamer.plan.quantization import plan_quantization as plan_quantization
    from gossamer.plan.scheme import Scheme as Scheme
    from gossamer.plan.sparsity import plan_sparsity as plan_sparsity
    from gossamer.plan.weight_only import plan_weight_quantization as plan_weight_quantization
    from gossamer.targets.export import export as export
    from gossamer.targets.simulate import simulate as simulate
    from gossamer.targets.verify import verify as verify
    from gossamer.train.fit import fit as fit
    from gossamer.train.recipe import Recipe as Recipe

# Loaded when first asked for, so that importing this package takes little longer than importing torch.
_LAZY = {
    "Data": "data.source",
    "Recipe": "train.recipe",
    "Result": "pipeline.result",
    "Scheme": "plan.scheme",
    "Settings": "pipeline.settings",
    "compress": "pipeline.loop",
    "export": "targets.export",
    "fit": "train.fit",
    "plan_depth": "plan.depth",
    "plan_dynamic_quantization": "plan.dynamic",
    "plan_quantization": "plan.quantization",
    "plan_sparsity": "plan.sparsity",
    "plan_weight_quantization": "plan.weight_only",
    "prune": "apply.eager",
    "prune_rounds": "pipeline.rounds",
    "repair": "apply.repair",
    "simulate": "targets.simulate",
    "transplant": "apply.transplant",
    "verify": "targets.verify",
}

__all__ = [
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
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
    value: object = getattr(_importlib.import_module(f"gossamer.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

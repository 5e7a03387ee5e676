"""Makes trained PyTorch networks small and fast, and proves it."""

import gc as _gc

import torch as _torch  # first, so that its own import runs as it always does

# Every import makes objects, and each full collection on the way walks the million that torch holds: it was a fifth of the time.
_collecting = _gc.isenabled()
_gc.disable()

from gossamer.apply.eager import prune as prune
from gossamer.apply.engine import apply as apply
from gossamer.apply.repair import repair as repair
from gossamer.apply.transplant import transplant as transplant
from gossamer.compress.loop import compress as compress
from gossamer.compress.result import Result as Result
from gossamer.compress.rounds import prune_rounds as prune_rounds
from gossamer.compress.settings import Settings as Settings
from gossamer.data.source import Data as Data
from gossamer.errors import GossamerError as GossamerError
from gossamer.plan.budget import Budget as Budget
from gossamer.plan.constraints import Constraints as Constraints
from gossamer.plan.depth import plan_depth as plan_depth
from gossamer.plan.dynamic import plan_dynamic_quantization as plan_dynamic_quantization
from gossamer.plan.plan import Plan as Plan
from gossamer.plan.pruning import plan_pruning as plan_pruning
from gossamer.plan.quantization import plan_quantization as plan_quantization
from gossamer.plan.score import score as score
from gossamer.plan.sparsity import plan_sparsity as plan_sparsity
from gossamer.plan.weight_only import plan_weight_quantization as plan_weight_quantization
from gossamer.program.bundle import load as load
from gossamer.program.bundle import save as save
from gossamer.program.capture import capture as capture
from gossamer.program.program import Program as Program
from gossamer.search.tournament import tournament as tournament
from gossamer.targets.export import export as export
from gossamer.targets.simulate import simulate as simulate
from gossamer.targets.verify import verify as verify
from gossamer.train.fit import fit as fit
from gossamer.train.recipe import Recipe as Recipe

if _collecting:
    _gc.enable()

__all__ = [
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
]

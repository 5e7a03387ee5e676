"""Side by side with Torch-Pruning 1.6: seconds, memory and whether the result runs, half of the channels of every group removed.

    ours    analyse + score (l2) + plan + apply, with the proof that masked == removed; capture is told apart
    theirs  BasePruner (which builds the dependency graph) + step, MagnitudeImportance(p=2), set up as their timm example
            does: the classifier ignored, num_heads for attention, unfused attention, sizes set on the modules afterwards

Each run is a process of its own with one thread; the order alternates; below 5 s the median of --runs runs counts. Seconds are CPU
seconds of that thread, which other work on the machine hardly changes. Weights are random. Memory is the peak of the work above
what the process held with the model built and the packages loaded; for ours it is taken without capture in the figure "memory_mb"
and with it in "memory_with_capture_mb". Torch's export, which capture loads, is loaded before like their package: what it takes is
told apart as "modules_mb". A model is skipped when the file has it at this commit, so a run can be stopped.

    python benchmarks/beside_torch_pruning.py [--fresh] [--only NAME ...] [--seconds LIMIT]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import RESULTS, header, write

LIMIT_S = 300
SHORT_S = 5
SEED = 0
RATIO = 0.5
OURS, THEIRS, AGAIN, SECOND = "ours", "theirs", "theirs_again", "second_plan"
MODELS = """
tv:resnet18 tv:resnet50 tv:vgg11_bn tv:densenet121 tv:mobilenet_v2 tv:mobilenet_v3_small tv:regnet_x_400mf tv:resnext50_32x4d
tv:efficientnet_b0 tv:squeezenet1_0 tv:mnasnet0_5 tv:googlenet tv:alexnet tv:wide_resnet50_2 tv:shufflenet_v2_x0_5 tv:convnext_tiny
tv:swin_t tv:vit_b_32 resnet18 mobilenetv3_small_100 efficientnet_lite0 convnext_atto regnety_002 ghostnet_100 dla34
vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 mixer_s32_224 poolformer_s12 hrnet_w18_small
"""


# what torch.export loads when it is first called; the same of theirs is loaded with their package
CAPTURE_LOADS = "torch.export._trace torch._export.non_strict_utils torch._functorch.aot_autograd networkx sympy.tensor.tensor".split()


def status(key: str) -> float:
    """A figure of this process in MiB: VmRSS (now) or VmHWM (peak since `reset_peak`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def reset_peak() -> float:
    """Start the peak anew, without what was freed before; returns what the process holds now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


@contextmanager
def stopwatch(into: dict[str, float], key: str) -> Iterator[None]:
    start = time.process_time()
    yield
    into[key] = into.get(key, 0.0) + time.process_time() - start


def build(name: str) -> tuple[Any, tuple[int, ...]]:
    """The model with random weights and the shape of one input."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    zoo = importlib.import_module("zoo")
    model, size = zoo.torchvision_model(name[3:]) if name.startswith("tv:") else zoo.timm_model(name)
    return model, size


def ours(name: str) -> dict[str, Any]:
    """Figures of our side; the time of the proof is inside `seconds` and also told apart."""
    import torch

    from gossamer.apply import shrink
    from gossamer.apply.engine import apply
    from gossamer.plan.pruning import plan_pruning
    from gossamer.plan.score import score
    from gossamer.program.capture import capture

    model, size = build(name)
    times: dict[str, float] = {}
    for function in ("mask_channels", "check_removal"):
        setattr(shrink, function, _timed(getattr(shrink, function), times, "proof"))
    before = reset_peak()
    for module in CAPTURE_LOADS:
        importlib.import_module(module)
    at_start = reset_peak()
    with stopwatch(times, "capture"):
        program = capture(model, torch.randn(2, *size))
    capture_peak = status("VmHWM")
    held = reset_peak()
    for step in ("score", "plan", "apply"):
        with stopwatch(times, step):
            if step == "score":
                scores = score(program, "l2")
            elif step == "plan":
                plan = plan_pruning(program, scores, RATIO, mode="layerwise")
            else:
                small = apply(program, plan)
    peak = status("VmHWM")
    with torch.no_grad():
        small(torch.randn(1, *size))
    return {
        "seconds": times["score"] + times["plan"] + times["apply"],
        **{f"{step}_s": round(seconds, 3) for step, seconds in times.items()},
        "memory_mb": round(peak - held),
        "memory_with_capture_mb": round(max(peak, capture_peak) - at_start),
        "modules_mb": round(at_start - before),
        "runs": bool(plan.edits),
        "macs_ratio": round(small.cost().macs / program.cost().macs, 4),
    }


def _timed(function: Callable[..., Any], times: dict[str, float], key: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with stopwatch(times, key):
            return function(*args)

    return call


def theirs(name: str, macs: bool = True) -> dict[str, Any]:
    """Figures of Torch-Pruning, set up as its examples do for timm models; MACs take two captures."""
    os.environ["TIMM_FUSED_ATTN"] = "0"
    import torch
    import torch_pruning as tp
    from torch import nn

    from gossamer.program.capture import capture

    model, size = build(name)
    x = torch.randn(1, *size)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    heads = linears or [[module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]]
    num_heads = {}
    for module in model.modules():
        for part in ("qkv", "qkv_proj"):
            if hasattr(module, "num_heads") and hasattr(module, part):
                num_heads[getattr(module, part)] = module.num_heads
    times: dict[str, float] = {}
    held = reset_peak()
    with stopwatch(times, "seconds"):
        pruner = tp.pruner.BasePruner(
            model, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO, ignored_layers=heads, num_heads=num_heads
        )
        pruner.step()
    peak = status("VmHWM")
    _set_heads(model, pruner.num_heads)
    found = {"seconds": times["seconds"], "memory_mb": round(peak - held), "runs": True}
    try:
        with torch.no_grad():
            model(x)
        if not macs:
            return found
        whole, _ = build(name)
        costs = [capture(each, torch.randn(2, *size)).cost().macs for each in (model, whole)]
        return {**found, "macs_ratio": round(costs[0] / costs[1], 4)}
    except Exception as error:  # whatever a module with wrong sizes raises is the result here
        return {**found, "runs": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _set_heads(model: Any, num_heads: dict[Any, int]) -> None:
    """What their examples do after step(), and the same for the attribute that later versions of timm added."""
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):  # torchvision's ViT
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        for part in ("qkv", "qkv_proj"):
            layer = getattr(module, part, None)
            if layer in num_heads:
                module.num_heads = num_heads[layer]
                module.head_dim = layer.out_features // (3 * module.num_heads)
                if hasattr(module, "attn_dim"):
                    module.attn_dim = module.num_heads * module.head_dim


def theirs_again(name: str) -> dict[str, Any]:
    """The same without counting MACs."""
    return theirs(name, macs=False)


def second_plan(name: str) -> dict[str, Any]:
    """Seconds of planning alone at another ratio, and for a budget, when scores are there."""
    import torch

    from gossamer.plan.budget import Budget
    from gossamer.plan.pruning import plan_pruning
    from gossamer.plan.score import score
    from gossamer.program.capture import capture

    model, size = build(name)
    program = capture(model, torch.randn(2, *size))
    scores = score(program, "l2")
    times: dict[str, float] = {}
    plan_pruning(program, scores, RATIO)
    with stopwatch(times, "ratio_s"):
        plan_pruning(program, scores, 0.3)
    with stopwatch(times, "budget_s"):
        plan_pruning(program, scores, budget=Budget(macs=0.5))
    return {"model": name, **times}


def in_child(side: str, name: str) -> dict[str, Any]:
    """The figures of one side for one model, or why there are none."""
    command = [sys.executable, __file__, "--one", side, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"runs": False, "error": f"took more than {LIMIT_S} s"}
    if done.returncode == 0 and done.stdout.strip():
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    return {"runs": False, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}


def compare(name: str, first: int, count: int, theirs_before: dict[str, Any]) -> dict[str, Any]:
    """Both sides of one model, in turns, short ones `count` times. What their result costs does not change: it is kept."""
    kept = {key: theirs_before[key] for key in ("macs_ratio",) if key in theirs_before}
    sides = (OURS, THEIRS) if first % 2 == 0 else (THEIRS, OURS)
    runs: dict[str, list[dict[str, Any]]] = {side: [in_child(AGAIN if side == THEIRS and kept else side, name)] for side in sides}
    if runs[THEIRS][0]["runs"]:
        runs[THEIRS][0] |= kept
    again = [side for side in sides if runs[side][0].get("seconds", SHORT_S) < SHORT_S]
    for turn in range(count - 1):
        for side in again if turn % 2 else again[::-1]:
            runs[side].append(in_child(AGAIN if side == THEIRS else side, name))
    return {side: _median(runs[side]) for side in (OURS, THEIRS)}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle: dict[str, Any] = dict(runs[0], n=len(runs))
    for key, value in runs[0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            middle[key] = round(statistics.median(run[key] for run in runs if key in run), 4)
    return middle


def summary(models: dict[str, Any]) -> dict[str, Any]:
    """Medians of theirs / ours over the models where both give a result that runs, and how many run on each side."""
    both = [entry for entry in models.values() if entry[OURS]["runs"] and entry[THEIRS]["runs"]]
    finished = [entry for entry in models.values() if "seconds" in entry[OURS] and "seconds" in entry[THEIRS]]
    shares = [entry[OURS]["proof_s"] / entry[OURS]["seconds"] for entry in both]
    found = {"models": len(models), "ours_run": sum(e[OURS]["runs"] for e in models.values())}
    found |= {"theirs_run": sum(e[THEIRS]["runs"] for e in models.values()), "both_run": len(both)}
    if not both:
        return found
    speeds = [entry[THEIRS]["seconds"] / entry[OURS]["seconds"] for entry in both]
    total = [entry[THEIRS]["seconds"] / (entry[OURS]["seconds"] + entry[OURS]["capture_s"]) for entry in both]
    bare = [entry[THEIRS]["seconds"] / (entry[OURS]["seconds"] - entry[OURS]["proof_s"]) for entry in both]
    memory = [entry[THEIRS]["memory_mb"] / max(entry[OURS]["memory_mb"], 1) for entry in both]
    whole = [entry[THEIRS]["memory_mb"] / max(entry[OURS]["memory_with_capture_mb"], 1) for entry in both]
    loaded = [entry[THEIRS]["memory_mb"] / (entry[OURS]["memory_with_capture_mb"] + entry[OURS].get("modules_mb", 0)) for entry in both]
    return {
        **found,
        "finished": len(finished),
        "speedup": round(statistics.median(speeds), 2),
        "speedup_without_proof": round(statistics.median(bare), 2),
        "speedup_with_capture": round(statistics.median(total), 2),
        "memory_ratio": round(statistics.median(memory), 2),
        "memory_ratio_with_capture": round(statistics.median(whole), 2),
        "memory_ratio_with_capture_and_modules": round(statistics.median(loaded), 2),
        "proof_share": round(statistics.median(shares), 3),
    }


def main() -> None:
    """Measure what is missing in the results of this commit, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure all models again")
    parser.add_argument("--only", nargs="*", help="these models only; torchvision's are written tv:NAME")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further model after so many seconds")
    parser.add_argument("--runs", type=int, default=3, help="of each model that takes less than 5 s")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, name = options.one
        print(json.dumps({OURS: ours, THEIRS: theirs, AGAIN: theirs_again, SECOND: second_plan}[side](name)))
        return
    start = time.perf_counter()
    facts = header(("torch", "torch-pruning", "timm", "torchvision"), threads=1, seed=SEED, removed_ratio=RATIO, limit_s=LIMIT_S)
    path = RESULTS / "torch_pruning.json"
    old = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    models: dict[str, Any] = old.get("models", {})
    second = old.get("second_plan") or in_child(SECOND, "tv:resnet50")
    for number, name in enumerate(options.only or MODELS.split()):
        known = models.get(name, {})
        if known.get("commit") == facts["commit"] and known["runs"] >= options.runs:
            continue
        if time.perf_counter() - start > options.seconds:
            break
        models[name] = {"commit": facts["commit"], "runs": options.runs, **compare(name, number, options.runs, known.get(THEIRS, {}))}
        write("torch_pruning", {**facts, "summary": summary(models), "second_plan": second, "models": models})


if __name__ == "__main__":
    main()

"""Moving scale between channels before quantization: what each method gains on real networks and on one made to need it.

Fidelity is the signal-to-noise ratio of the outputs beside those in float; all files run on ONNX Runtime.

    minilm      MiniLM-L6 sentence vectors, int8 weights and values, ranges by min-max
    minilm-mse  the same with ranges by least error, which clip the few large channels that matter
    minilm-int4 the same, weights alone in blocks of 32
    lite0       EfficientNet-Lite0 with ImageNet weights, crops of photos; int8
    lite0-int4  the same with int4 weights
    vit         ViT-tiny with random weights whose norms have a few large channels (made: no small trained one comes as a package)

    python benchmarks/equalization.py minilm lite0:auto      # adds to, or replaces in, benchmarks/results/equalization.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from crops import OTHERS, SEEN, crops, network, photos
from minilm import Classifier, reviews
from torch import Tensor, nn

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.edits import ScaleChannels, ScaleInput
from gossamer.plan.scheme import BlockScheme
from gossamer.targets.measure import measure_latency
from gossamer.targets.onnx.run import open_session
from zoo import timm_model

CALIBRATION, EVALUATION, SEED = 32, 32, 0
Rows = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A network, its calibration and evaluation inputs, and how each method plans."""

    program: gs.Program
    calibration: Rows
    evaluation: Rows
    methods: Sequence[str]
    plan: Callable[[gs.Program, Any, str], gs.Plan]


def static(weights: str, ranges: str = "mse") -> Callable[[gs.Program, Any, str], gs.Plan]:
    """Static quantization by the defaults but for the equalization and ranges."""
    return lambda program, data, method: gs.plan_quantization(
        program, data, weights=weights, scheme=gs.Scheme(equalization=method, ranges=ranges)
    )


def blocks(program: gs.Program, data: Any, method: str) -> gs.Plan:
    """Weights alone; "nearest" is without data."""
    if method == "nearest":
        return gs.plan_weight_quantization(program)
    return gs.plan_weight_quantization(program, calibration=data, scheme=BlockScheme(equalization="none" if method == "gptq" else method))


def minilm(methods: Sequence[str], plan: Callable[[gs.Program, Any, str], gs.Plan]) -> Case:
    (ids, mask, _), (other_ids, other_mask, _) = reviews(SEED)
    model = Classifier()
    model.head = nn.Identity()  # type: ignore[assignment]
    program = gs.capture(model.eval(), (ids[:2], mask[:2]))
    return Case(program, (ids[:CALIBRATION], mask[:CALIBRATION]), (other_ids[:EVALUATION], other_mask[:EVALUATION]), methods, plan)


def lite0(weights: str) -> Case:
    images = photos()
    calibration, evaluation = crops(images, SEEN, CALIBRATION, SEED), crops(images, OTHERS, EVALUATION, SEED + 1)
    program = gs.capture(network(), calibration[:2])
    return Case(program, (calibration,), (evaluation,), ("none", "cross-layer", "smoothquant", "auto"), static(weights))


@torch.no_grad()
def vit() -> Case:
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    model, _ = timm_model("vit_tiny_patch16_224")
    for block in model.blocks:
        for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            place = torch.randperm(norm.weight.numel(), generator=generator)[:3]
            norm.weight[place] *= 40.0
            reader.weight[:, place] /= 40.0
    images = photos()
    calibration, evaluation = (crops(images, names, count, SEED) for names, count in ((SEEN, CALIBRATION), (OTHERS, EVALUATION)))
    return Case(gs.capture(model, calibration[:2]), (calibration,), (evaluation,), ("none", "smoothquant", "repq", "auto"), static("int8"))


CASES: dict[str, Callable[[], Case]] = {
    "minilm": lambda: minilm(("none", "smoothquant", "smoothquant-insert", "auto"), static("int8", "min-max")),
    "minilm-mse": lambda: minilm(("none", "smoothquant-insert"), static("int8")),
    "minilm-int4": lambda: minilm(("nearest", "gptq", "awq"), blocks),
    "lite0": lambda: lite0("int8"),
    "lite0-int4": lambda: lite0("int4"),
    "vit": vit,
}


def batches(rows: Rows, size: int = 16) -> list[tuple[Rows, None]]:
    return [(tuple(row[start : start + size] for row in rows), None) for start in range(0, len(rows[0]), size)]


def measure(name: str, case: Case, method: str) -> dict[str, Any]:
    """One row: fidelity on the runtime, latency beside float in turns, and what planning took."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float": Path(folder) / "float.onnx", "ours": Path(folder) / "ours.onnx"}
        gs.export(case.program, paths["float"])
        start = time.perf_counter()
        plan = case.plan(case.program, batches(case.calibration), method)
        seconds = time.perf_counter() - start
        gs.export(gs.apply(case.program, plan), paths["ours"])
        runners = {label: open_session(path, threads=1) for label, path in paths.items()}
        outputs = {
            label: torch.cat([torch.from_numpy(runner.run(*(row.numpy() for row in rows)).copy()) for rows, _ in batches(case.evaluation)])
            for label, runner in runners.items()
        }
        latency = measure_latency(runners, [row[:1].numpy() for row in case.evaluation], repeats=20).of
    kinds = [type(edit) for edit in plan.edits]
    return {
        "network": name,
        "method": method,
        "sqnr_db": round(sqnr_db(outputs["float"], outputs["ours"]), 2),
        "scaled_values": kinds.count(ScaleChannels),
        "scaled_inputs": kinds.count(ScaleInput),
        "plan_s": round(seconds, 1),
        "latency_ms": round(latency["ours"].median_ms, 2),
        "float_latency_ms": round(latency["float"].median_ms, 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    path = RESULTS / "equalization.json"
    for wanted in sys.argv[1:] or list(CASES):
        name, _, only = wanted.partition(":")
        case = CASES[name]()
        for method in (only,) if only else case.methods:
            row = measure(name, case, method)
            print(row, flush=True)
            known = json.loads(path.read_text())["rows"] if path.exists() else []
            rows = [*(old for old in known if (old["network"], old["method"]) != (name, method)), row]
            packages = ("torch", "onnxruntime", "transformers", "timm")
            facts = header(packages, threads=1, seed=SEED, calibration=CALIBRATION, evaluation=EVALUATION)
            write("equalization", {**facts, "rows": rows}, quiet=True)


main()

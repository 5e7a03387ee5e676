"""EfficientNet-Lite0 with fewer bits for weights, by calibration only: one format for all layers, and a format for each layer.

Same crops as efficientnet_lite0_int8.py. All files run in ONNX Runtime; figures are of these files on crops that nothing was chosen by.

    python benchmarks/mixed_precision.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import header, write
from crops import OTHERS, SEEN, crops, network, photos
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.plan import Plan
from gossamer.search.precision import PrecisionBudget, choose_precision
from gossamer.targets.measure import measure_latency
from gossamer.targets.onnx.run import open_session

THREADS, SEED, CALIBRATION, EVALUATION, TABLE_SAMPLES = 1, 0, 32, 48, 8
Planner = Callable[[gs.Program, Tensor], tuple[Plan, str]]


def uniform(weights: str, weight_ranges: str) -> Planner:
    """One format for all layers."""
    return lambda program, data: (
        gs.plan_quantization(program, data, weights=weights, scheme=gs.Scheme(weight_ranges=weight_ranges)),
        weights,
    )


def mixed(budget: PrecisionBudget, *formats: str) -> Planner:
    """Formats chosen within a budget."""

    def plan(program: gs.Program, data: Tensor) -> tuple[Plan, str]:
        scheme = gs.Scheme(weight_ranges="mse")
        found = choose_precision(program, data, budget=budget, formats=formats, scheme=scheme, samples=TABLE_SAMPLES)
        return gs.plan_quantization(program, data, rules=found.rules, scheme=scheme), str(found)

    return plan


PLANNERS: dict[str, Planner] = {
    "int8": uniform("int8", "min-max"),
    "int4, min-max ranges": uniform("int4", "min-max"),
    "int4, mse ranges": uniform("int4", "mse"),
    "mixed int4 int8, 5 bits": mixed(PrecisionBudget(max_bits=5), "int4", "int8"),
}


def main() -> None:
    torch.set_num_threads(THREADS)
    images = photos()
    calibration = crops(images, SEEN, CALIBRATION, SEED)
    evaluation = torch.cat([crops(images, OTHERS, EVALUATION, SEED + 1), crops(images, SEEN, EVALUATION, SEED + 2)])
    program = gs.capture(network(), calibration[:2])
    made: dict[str, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gs.export(program, folder / "fp32.onnx")
        for method, planner in PLANNERS.items():
            start = time.perf_counter()
            plan, choice = planner(program, calibration)
            gs.export(gs.apply(program, plan), folder / f"{method}.onnx")
            made[method] = choice, time.perf_counter() - start
            print(method, choice, round(made[method][1], 1), flush=True)
        runners = {path.stem: open_session(path, threads=THREADS) for path in sorted(folder.glob("*.onnx"))}
        logits = {method: outputs(runner, evaluation) for method, runner in runners.items()}
        latency = measure_latency(runners, [evaluation[:1].numpy()], repeats=30, seconds=30)
        rows = [row(method, logits, latency, folder, *made[method]) for method in PLANNERS]
    setting = (
        f"{CALIBRATION} crops of 5 photos to calibrate, {TABLE_SAMPLES} of them for damages; {2 * EVALUATION} crops of these and 5 other "
        "photos to evaluate; activations uint8; batch 1, median latency in turns."
    )
    facts = header(("torch", "onnxruntime", "numpy"), threads=THREADS, seed=SEED, n=2 * EVALUATION, setting=setting)
    write("mixed_precision", {**facts, "rows": rows})


def outputs(runner: Any, images: Tensor) -> Tensor:
    """Logits of all images, (n, 1000)."""
    return torch.cat([torch.from_numpy(runner.run(image[None].numpy())) for image in images])


def row(method: str, logits: dict[str, Tensor], latency: Any, folder: Path, choice: str, seconds: float) -> dict[str, Any]:
    """The figures of one method against FP32."""
    true, got = logits["fp32"], logits[method]
    return {
        "name": method,
        "choice": choice,
        "agreement": float((true.argmax(1) == got.argmax(1)).double().mean()),
        "sqnr_db": round(sqnr_db(true, got), 2),
        "speedup": round(latency.of["fp32"].median_ms / latency.of[method].median_ms, 3),
        "latency_ms": round(latency.of[method].median_ms, 3),
        "seconds": round(seconds, 1),
        "size_bytes": (folder / f"{method}.onnx").stat().st_size,
    }


main()

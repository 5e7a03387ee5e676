"""Diagnosing EfficientNet-Lite0 on photo crops: what hurts, what helps, and what looking costs. Minutes on one core.

The plain scheme (min-max ranges, nearest rounding, no correction) shows what there is to find; the default one what is left.
Cures are chosen on crops of five photographs and judged on crops of five others.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import header, write
from crops import OTHERS, SEEN, crops, network, photos
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.program.program import Program
from gossamer.search.diagnosis.diagnose import diagnose
from gossamer.search.diagnosis.findings import Diagnosis

SCHEMES = {
    "plain": Scheme(ranges="min-max", rounding="nearest", bias_correction=False),
    "default": Scheme(),
}


def main() -> None:
    """Diagnose both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--worst", type=int, default=3)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = photos()
    seen = crops(images, SEEN, options.calibration, seed=0)
    unseen = crops(images, OTHERS, options.samples, seed=1)
    program = capture(network(), seen[:2])
    rows = []
    for name in options.schemes:
        rows.append({"scheme": name, **one(program, SCHEMES[name], seen, unseen, options)})
        write("diagnosis", header(("torch", "gossamer"), threads=1, **vars(options)) | {"network": "EfficientNet-Lite0", "rows": rows})


def one(program: Program, scheme: Scheme, seen: Tensor, unseen: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """One scheme: quantize, diagnose, judge the cured plan on crops that nothing has seen."""
    plan = plan_quantization(program, seen, scheme=scheme)
    quantized = apply(program, plan)
    start = time.perf_counter()
    found = diagnose(quantized, program, seen, plan=plan, samples=options.samples, worst=options.worst)
    seconds = time.perf_counter() - start
    forward = run_seconds(program, seen[: options.samples])
    cured = quantized if found.plan is None else apply(program, found.plan)
    with torch.inference_mode():
        true = program(unseen)
        held_out = {"before": sqnr_db(true, quantized(unseen)), "after": sqnr_db(true, cured(unseen))}
    return {**summary(found), "seconds": seconds, "float_run_seconds": forward, "unseen_db": held_out}


def run_seconds(program: Program, inputs: Tensor) -> float:
    """One float run over the samples, 16 at a time."""
    start = time.perf_counter()
    with torch.inference_mode():
        for part in inputs.split(16):
            program(part)
    return time.perf_counter() - start


def summary(found: Diagnosis) -> dict[str, Any]:
    """The figures worth keeping."""
    return {
        "tensors": len(found.findings),
        "runs": found.runs,
        "quantized_db": found.quantized.output_db,
        "quantized_kl": found.quantized.kl,
        "cured_db": found.cured.output_db,
        "cured_kl": found.cured.kl,
        "chosen": [f"{cure.name} {cure.where}".strip() for cure in found.chosen],
        "network_cures": {cure.name: round(cure.gain_db, 2) for cure in found.network},
        "causes": {
            label: sum(finding.cause.label == label for finding in found.findings) for label in {f.cause.label for f in found.findings}
        },
        "worst": [
            {
                "name": finding.name,
                "format": finding.format,
                "alone_db": round(finding.isolated.output_db, 2),
                "clipping_share": round(finding.clipping_share, 3),
                "cause": finding.cause.label,
                "sentence": finding.cause.sentence,
                "cures": {cure.name: round(cure.gain_db, 2) for cure in finding.cures},
            }
            for finding in found.worst[:8]
        ],
    }


if __name__ == "__main__":
    main()

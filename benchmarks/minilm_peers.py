"""MiniLM in 8 bits by other quantizers, each on the runtime it is made for: accuracy beside its own FP32, speed in turns with it.

onnxruntime's two read our FP32 file, NNCF reads it as OpenVINO's form; torchao codes the linear layers of the network itself, which torch.compile
then makes as fast as its FP32 twin.
    pip install nncf==3.4.0 torchao==0.18.0 (and a C++ compiler)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import nncf_openvino, quantize_dynamic, quantize_static
from torch import Tensor, nn

import gossamer as gs
from gossamer.targets.measure import measure_latency
from gossamer.targets.metrics import compare_accuracy
from gossamer.targets.onnx.run import open_session
from gossamer.targets.openvino.run import OpenVinoRunner, compile_model

Samples = tuple[Tensor, Tensor]  # token ids and their mask


@dataclass(frozen=True)
class Pair:
    """A network before and after: two runners, and the bytes of both files, 0 where there is none."""

    runtime: str
    before: Any
    after: Any
    sizes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Job:
    """What a peer gets: the network, our float program, samples without labels, a folder, threads."""

    network: nn.Module
    program: gs.Program
    samples: Samples
    folder: Path
    threads: int

    def float_file(self) -> Path:
        """Our FP32 file."""
        path = self.folder / "peers-fp32.onnx"
        return path if path.exists() else gs.export(self.program, path).path

    def arrays(self) -> dict[str, np.ndarray]:
        """Samples by the names of inputs."""
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.program.inputs, self.samples, strict=True)}


def ort_dynamic(job: Job) -> Pair:
    """onnxruntime's dynamic ranges."""
    return _in_onnxruntime(job, lambda source, result: quantize_dynamic(source, result))


def ort_static(job: Job) -> Pair:
    """onnxruntime's static ranges."""
    return _in_onnxruntime(job, lambda source, result: quantize_static(source, job.arrays(), result, transformer=True))


def _in_onnxruntime(job: Job, make: Callable[[Path, Path], None]) -> Pair:
    source, result = job.float_file(), job.folder / "peers-int8.onnx"
    make(source, result)
    runners = [open_session(path, threads=job.threads) for path in (source, result)]
    return Pair("onnxruntime", *runners, (source.stat().st_size, result.stat().st_size))


def nncf(job: Job) -> Pair:
    """NNCF for OpenVINO, its settings for transformers."""
    import openvino

    source, result = job.float_file(), job.folder / "peers-int8.xml"
    nncf_openvino(source, job.arrays(), result, transformer=True)
    before = OpenVinoRunner(compile_model(source, source.read_bytes(), threads=job.threads), {})
    after = OpenVinoRunner(compile_model(result, openvino.Core().read_model(str(result)), threads=job.threads), {})
    return Pair("openvino", before, after, (source.stat().st_size, result.with_suffix(".bin").stat().st_size + result.stat().st_size))


@dataclass
class Compiled:
    """A network under torch.compile, run like a file."""

    network: Callable[..., Tensor]

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """Logits."""
        with torch.no_grad():
            return self.network(*map(torch.from_numpy, inputs)).numpy()


def torchao(job: Job) -> Pair:
    """torchao: int8 weights, values coded as int8 at run time, under torch.compile."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    coded = copy.deepcopy(job.network)
    quantize_(coded, Int8DynamicActivationInt8WeightConfig())
    before, after = (Compiled(torch.compile(network, dynamic=True)) for network in (job.network, coded))
    return Pair("torch.compile", before, after)


PEERS: dict[str, Callable[[Job], Pair]] = {
    "onnxruntime quantize_dynamic": ort_dynamic,
    "onnxruntime quantize_static": ort_static,
    "NNCF": nncf,
    "torchao dynamic": torchao,
}


def measured(pair: Pair, data: list[tuple[Samples, Tensor]]) -> dict[str, Any]:
    """Accuracy with an interval, speed of one sentence, size."""

    def outputs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for inputs, labels in data:
            before, after = (
                torch.from_numpy(np.array(runner.run(*(tensor.numpy() for tensor in inputs)))) for runner in (pair.before, pair.after)
            )
            yield before, after, labels

    found = compare_accuracy("top1", outputs(), what="held-out")
    one = [tensor[:1].numpy() for tensor in data[0][0]]
    times = measure_latency({"fp32": pair.before, "int8": pair.after}, one)
    before, after = pair.sizes
    return {
        "target": pair.runtime,
        "fp32_accuracy": found.original,
        "accuracy": found.compressed,
        "drop_points": found.drop_points,
        "drop_interval": list(found.drop_interval),
        "speedup": times.speedup("fp32", "int8"),
        "latency_ms": times.of["int8"].median_ms,
        "fp32_latency_ms": times.of["fp32"].median_ms,
        "size_ratio": before / after if after else None,
    }

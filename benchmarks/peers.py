"""Other quantizers, each as its documentation advises: from a float file and calibration samples to the file that a runtime reads.

    python benchmarks/peers.py NAME SOURCE SAMPLES.npy RESULT [--transformer]

runs one of them in a process of its own, so that it may live in an environment of its own; the last line is the seconds it took.
    pip install nncf==3.4.0 ai-edge-quantizer ai-edge-litert
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Samples = np.ndarray | Mapping[str, np.ndarray]  # of the only input, or of each by its name; all with samples on the first axis


def feeds(samples: Samples, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """One sample after the other, as what a session is fed. `names`: of the network's inputs, in order."""
    arrays = samples if isinstance(samples, Mapping) else {names[0]: samples}
    for row in range(len(next(iter(arrays.values())))):
        yield {name: arrays[name][row : row + 1] for name in arrays}


def quantize_dynamic(source: Path, result: Path) -> None:
    """onnxruntime: s8 weights per channel, values coded as u8 at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(result), per_channel=True, weight_type=QuantType.QInt8)


def quantize_static(source: Path, samples: Samples, result: Path, transformer: bool) -> None:
    """onnxruntime: preprocessed, min-max, per channel, u8 activations, s8 weights, QDQ. A transformer's products of values stay float."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [entry.name for entry in onnx.load(source, load_external_data=False).graph.input]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = feeds(samples, names)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    prepared = result.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=transformer)
    quantize_static(
        str(prepared), str(result), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True} if transformer else None,
    )  # fmt: skip


def nncf_openvino(source: Path, samples: Samples, result: Path, transformer: bool) -> None:
    """NNCF on OpenVINO's form of the network: mixed preset, fast bias correction."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(source))
    rows = list(feeds(samples, [entry.any_name for entry in model.inputs]))
    quantized = nncf.quantize(model, nncf.Dataset(rows), **_nncf_options(nncf, len(rows), transformer))
    openvino.save_model(quantized, str(result), compress_to_fp16=False)


def nncf_onnx(source: Path, samples: np.ndarray, result: Path, transformer: bool) -> None:
    """NNCF on the ONNX file, for ONNX Runtime."""
    import nncf
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(samples), lambda row: {name: row[None]})
    onnx.save(nncf.quantize(model, data, **_nncf_options(nncf, len(samples), transformer)), str(result))


def ai_edge(source: Path, samples: np.ndarray, result: Path, transformer: bool) -> None:
    """ai-edge-quantizer on a float .tflite: static w8a8 recipe, min-max over all samples. Samples (N, ...) in the file's own layout."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe

    runner = Interpreter(str(source)).get_signature_runner()
    (name,) = runner.get_input_details()
    tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # floats in and out, as in the other files
        tool.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    seen = tool.calibrate({next(iter(Interpreter(str(source)).get_signature_list())): [{name: row[None]} for row in samples]})
    tool.quantize(seen).export_model(str(result), overwrite=True)


def _nncf_options(nncf: Any, count: int, transformer: bool) -> dict[str, Any]:
    chosen: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": count}
    return {**chosen, "model_type": nncf.ModelType.TRANSFORMER} if transformer else chosen


PEERS: dict[str, Callable[[Path, np.ndarray, Path, bool], None]] = {
    "onnxruntime quantize_static": quantize_static,
    "NNCF, ONNX file": nncf_onnx,
    "NNCF, OpenVINO file": nncf_openvino,
    "ai-edge-quantizer": ai_edge,
}


def versions() -> Iterator[tuple[str, str]]:
    """What this environment has."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("onnxruntime", "openvino", "nncf", "ai-edge-quantizer", "ai-edge-litert", "torchao"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PEERS)
    for argument in ("source", "samples", "result"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--transformer", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    samples = np.load(options.samples)
    start = time.perf_counter()
    PEERS[options.name](options.source, samples, options.result, options.transformer)
    print(json.dumps({"seconds": time.perf_counter() - start, "versions": dict(versions())}))


if __name__ == "__main__":
    main()

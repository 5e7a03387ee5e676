"""Run by an emulated processor without VNNI, so without torch, which takes ten seconds to start there.

Arguments: gossamer's targets/onnx/cpu.py, a folder with NAME.onnx and NAME.npz (input "x", codes by tensor name). Prints JSON: whether
products saturate, and for each file and setting of session.x64quantprecision the farthest code of each tensor in steps.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

spec = importlib.util.spec_from_file_location("cpu", sys.argv[1])
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)


def farthest(file, precise):
    model, wanted = onnx.load(file), np.load(file.with_suffix(".npz"))
    names = [name for name in wanted.files if name != "x"]
    known = {port.name for port in model.graph.output}
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(cpu.PRECISE[0], cpu.PRECISE[1] if precise else "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(names, {session.get_inputs()[0].name: wanted["x"]})
    return {name: float(np.abs(result.astype(np.float64) - wanted[name]).max()) for name, result in zip(names, results, strict=True)}


found = {file.stem: [farthest(file, precise) for precise in (False, True)] for file in sorted(Path(sys.argv[2]).glob("*.onnx"))}
print(json.dumps({"saturates": cpu.saturates(), "files": found}))

"""Saving and loading programs: one safetensors file whose header holds the graph as JSON. Loading runs no code.

The header's key "gossamer" holds {"format": 1, "graph", "inputs", "quantizers", "target", "parameters", "tied"}.
Ops are named, looked up in the op table when the program runs, and refused when they are not pure tensor ops.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.errors import FileError, GossamerError
from gossamer.files import write_with
from gossamer.numerics.affine import Quantizer
from gossamer.program.graph import Graph
from gossamer.program.program import InputSpec, Program

FORMAT = 1
_KEY = "gossamer"


def save(program: Program, path: str | Path) -> Path:
    """Write a program to one file, atomically. Raises FileError when the place cannot be written."""
    path = Path(path)
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in program.state.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    header = {
        "format": FORMAT,
        "graph": program.graph.to_json(),
        "inputs": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")} for spec in program.inputs
        ],
        "quantizers": {name: quantizer.to_json() for name, quantizer in program.quantizers.items()},
        "target": program.target,
        "parameters": {name: tensor.requires_grad for name, tensor in program.state.items() if isinstance(tensor, nn.Parameter)},
        "tied": tied,
    }
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata={_KEY: json.dumps(header)}))
    return path


def load(path: str | Path) -> Program:
    """Read a program written by `save`: without the model's class, without executing anything from the file.

    Raises: FileError when the file is missing, truncated, foreign, or asks for an op that is not a pure tensor op.
    """
    path = Path(path)
    header, tensors = _read(path)
    try:
        if header["format"] != FORMAT:
            raise FileError(path, f"has format {header['format']}, this version reads {FORMAT}", "load it with the version that wrote it")
        graph = Graph.from_json(header["graph"])
        inputs = [InputSpec(item["name"], tuple(item["shape"]), _dtype(item["dtype"])) for item in header["inputs"]]
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            trainable = header["parameters"].get(name)
            state[name] = tensor if trainable is None else nn.Parameter(tensor, requires_grad=trainable)
        state |= {name: state[other] for name, other in header["tied"].items()}
        quantizers = {name: Quantizer.from_json(item) for name, item in header["quantizers"].items()}
        program = Program(graph, inputs, state, quantizers=quantizers, target=header["target"])
        _ = program.steps  # looks every op up now, so that a bad one is found while loading
    except FileError:
        raise
    except (GossamerError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"is damaged or hostile ({error})", "save the program again") from error
    return program


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileError(path, "does not exist", "name a file written by gossamer.save")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, ValueError) as error:
        raise FileError(path, f"is truncated or no program of ours ({error})", "save the program again") from error
    except KeyError as error:
        raise FileError(path, "is a safetensors file, but holds no program", "use a file written by gossamer.save") from error
    return header, tensors


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype

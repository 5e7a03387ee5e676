"""Saving and loading programs: one safetensors file whose header holds the graph as JSON. Loading runs no code.

The header's key "gossamer" holds {"format": 1, "graph", "inputs", "quantizers", "target", "parameters", "tied"}
and, for networks with masks, "masks": {name: bits as text}.
Ops are named, looked up in the op table when the program runs, and refused when they are not pure tensor ops.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.errors import FileError, GossamerError
from gossamer.files import read_tensors, write_tensors
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.packing import pack_mask, unpack_mask
from gossamer.program.graph import Graph
from gossamer.program.masks import check_zeros
from gossamer.program.network import InputSpec
from gossamer.program.program import Program, check_program

FORMAT = 1


def save(program: Program, path: str | Path) -> Path:
    """Write a program to one file, atomically.

    Raises: FileError when the place cannot be written; PlanError when a masked weight is not zero.
    """
    check_program(program)
    check_zeros(program)
    path = Path(path)
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in program.state.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
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
    if program.masks:
        header["masks"] = {name: pack_mask(mask) for name, mask in program.masks.items()}
    write_tensors(path, header, tensors)
    return path


def load(path: str | Path) -> Program:
    """Read a program written by `save`: without the model's class, without executing anything from the file.

    Raises: FileError when the file is missing, truncated, foreign, or asks for an op that is not a pure tensor op.
    """
    path = Path(path)
    header, tensors = read_tensors(path, "program")
    if not isinstance(header, dict) or "graph" not in header:
        raise FileError(path, "holds no program", "use a file written by gossamer.save")
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
        masks = {name: unpack_mask(text, tuple(state[name].shape)) for name, text in header.get("masks", {}).items()}
        program = Program(graph, inputs, state, quantizers=quantizers, target=header["target"], masks=masks)
        check_zeros(program)
        _ = program.steps  # looks every op up now, so that a bad one is found while loading
    except FileError:
        raise
    except (GossamerError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise FileError(path, f"is damaged or hostile ({error})", "save the program again") from error
    return program


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype

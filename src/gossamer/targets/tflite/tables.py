"""Tables of codes: of embeddings, of which only the rows that are picked become floats, and of functions of one code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from gossamer.numerics.affine import quantize
from gossamer.numerics.formats import FloatFormat
from gossamer.program.graph import Ref
from gossamer.targets import code_tables
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call


def gelu_in_codes(call: Call) -> Laid:
    """The table of the 256 results, from which each code picks its own: codes as places from 0 on, then a gather."""
    laid, quantizers = call.laid("self"), call.values.program.quantizers
    source, result = quantizers[call.args["self"].name], quantizers[call.result]  # type: ignore[union-attr]
    table = code_tables.gelu(torch.arange(-128, 128), source, result, call["approximate"]).numpy().astype(np.int8)
    draft, shape = call.values.draft, call.values.draft.tensors[laid.tensor].shape
    codes = call.step("CAST", (laid.tensor,), shape, "CastOptions")
    draft.tensors[codes] = replace(draft.tensors[codes], dtype="int32", quantizer=None)
    places = call.step("ADD", (codes, call.ints([128])), shape, "AddOptions", fusedActivationFunction=0)
    picked = call.op("GATHER", (draft.constant(table, "table", result), places), laid.order, "GatherOptions", axis=0)
    return Laid(picked.tensor, picked.order, laid.columns)


def coded_rows(call: Call) -> Laid | None:
    """Rows of a table with codes, by its kernel for vectors of places; None where the table has none."""
    table = call.args.get("weight")
    quantizer = call.values.program.quantizers.get(table.name) if isinstance(table, Ref) else None
    if not isinstance(table, Ref) or quantizer is None or table.name not in call.values.program.state:
        return None
    if isinstance(quantizer.format, FloatFormat):
        return None
    codes = quantize(call.values.program.state[table.name].detach().cpu(), quantizer).numpy().astype(np.int8)
    shape = call.shape("indices")
    laid = call.in_order(call.laid("indices"), shape, identity(len(shape)))
    places = call.cast(laid.tensor, "int32")
    rows = int(np.prod(shape))
    flat = call.step("RESHAPE", (places, call.ints([-1])), (rows,), "ReshapeOptions")
    picked = call.float_step("EMBEDDING_LOOKUP", (flat, call.values.draft.constant(codes, table.name, quantizer)), (rows, codes.shape[1]))
    result = call.result_tensor(identity(len(call.out_shape)))
    made = call.values.draft.tensors[result]
    call.values.draft.op("RESHAPE", (picked, call.shape_vector(made.shape, made.batched)), (result,), "ReshapeOptions")
    return Laid(result, identity(len(call.out_shape)))

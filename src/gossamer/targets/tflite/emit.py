"""From a program to a .tflite file: one walk over the graph writes float and quantized networks alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.errors import UnsupportedOp
from gossamer.files import write_bytes
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import FLOAT_FORMATS
from gossamer.plan.coded import coded_nodes
from gossamer.plan.site import inference_graph
from gossamer.program.clamps import clip_limits
from gossamer.program.fold import fold_batch_norms
from gossamer.program.forms import Form, find_forms
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Scalar
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes
from gossamer.targets.seal import sealed
from gossamer.targets.tflite import lower_compute as lower_compute
from gossamer.targets.tflite import lower_formulas as lower_formulas
from gossamer.targets.tflite import lower_indices as lower_indices
from gossamer.targets.tflite import lower_logic as lower_logic
from gossamer.targets.tflite import lower_movement as lower_movement
from gossamer.targets.tflite import lower_norm as lower_norm
from gossamer.targets.tflite import lower_pointwise as lower_pointwise
from gossamer.targets.tflite import lower_pool as lower_pool
from gossamer.targets.tflite import lower_products as lower_products
from gossamer.targets.tflite import lower_recurrent as lower_recurrent
from gossamer.targets.tflite.constants import Constants
from gossamer.targets.tflite.draft import Draft, DraftTensor, Written
from gossamer.targets.tflite.ends import code_ends
from gossamer.targets.tflite.flat import to_bytes
from gossamer.targets.tflite.fuse import clamp_result, fuse_activations
from gossamer.targets.tflite.layout import Laid, channels_last, identity, stored
from gossamer.targets.tflite.lowering import WAY_OUT, Call, codes_type, lowerings
from gossamer.targets.tflite.note import CODES, Note


def emit(program: Program, path: Path) -> None:
    """Write a program as .tflite; images (N, C, H, W) are taken and handed out as (N, H, W, C).

    Raises: UnsupportedOp for an op that has no form there; MissingRuntime without ai-edge-litert; FileError when the file cannot be written.
    """
    write_bytes(Path(path), sealed(to_tflite(program)))


def emit_coded(program: Program, path: Path, io: str) -> None:
    """Like `emit`, with "int8" or "uint8" codes instead of floats at the ends; check_ends says which programs have them."""
    write_bytes(Path(path), sealed(to_tflite(program, io=io)))


def to_tflite(program: Program, *, io: str = "float") -> bytes:
    """The bytes of the file. Batch norms of a float program are folded where possible."""
    return bytes_of(draft_of(program, fuse=True), program, io, lean=False)


def bytes_of(written: Written, program: Program, io: str, *, lean: bool) -> bytes:
    """The file of a network; `lean` leaves out what the interpreter for microcontrollers does not read."""
    written = written if io == "float" else code_ends(written, [spec.name for spec in program.inputs], io)
    return to_bytes(written.draft, written.inputs, written.outputs, written.note, lean=lean)


def draft_of(program: Program, *, fuse: bool = False, micro: bool = False, apart: bool = False) -> Written:
    """A program as operators of this format.

    fuse   join activations to the operators before them
    micro  take operators that the interpreter for microcontrollers has in place of some that it has not
    apart  samples are run one by one and joined along the first axis: leave out values that have them elsewhere from those handed out

    Raises: UnsupportedOp for an op that has no form there.
    """
    program = program if program.quantizers else fold_batch_norms(program)
    walk = Walk(program, micro)
    for node in walk.graph.nodes:
        walk.visit(node)
    walk.draft.module = ""
    results = [walk.handed_out(name) for name in walk.graph.outputs]
    if fuse:
        fuse_activations(walk.draft, [laid.tensor for laid in results])
    numbers = [walk.numbers[spec.name] for spec in program.inputs]
    codes = {name: laid for name, laid in walk.coded().items() if name in program.quantizers}
    for node in (node for node in walk.graph.nodes if node.op in ROUNDED):  # what the kernels round is compared, too
        name, laid = program.graph.by_name[node.name].uses[0], walk.real(node.uses[0])
        codes |= {} if laid.columns else {name: laid}
    if apart:
        codes = {name: laid for name, laid in codes.items() if _samples_first(walk.draft, laid)}
    # Ops that move nothing leave several values in one tensor: it is known by the first, whose maker says how exact the codes are.
    codes = dict(reversed(codes.items()))
    names = {number: spec.name for number, spec in zip(numbers, program.inputs, strict=True)}
    names |= {laid.tensor: name + CODES if name in walk.numbers else name for name, laid in codes.items() if laid.tensor not in numbers}
    live, kept = walk.draft.live([*numbers, *(laid.tensor for laid in results)], names)
    values = {kept[laid.tensor]: laid.order for laid in codes.values() if laid.tensor in kept}
    note = Note(walk.input_orders, tuple(laid.order for laid in results), values)
    return Written(live, tuple(kept[number] for number in numbers), tuple(kept[laid.tensor] for laid in results), note)


def _samples_first(draft: Draft, laid: Laid) -> bool:
    batched = draft.tensors[laid.tensor].batched
    return batched is None or laid.order[batched] == 0


class Walk:
    """The state of one walk: what was emitted so far, and where each value lies."""

    def __init__(self, program: Program, micro: bool = False) -> None:
        self.program, self.micro = program, micro
        self.graph = inference_graph(program.graph)
        self.draft = Draft()
        self.metas: Mapping[str, Meta] = infer_shapes(program)
        self.forms = find_forms(program)
        self.input_orders: dict[str, tuple[int, ...]] = {}
        self.numbers: dict[str, int] = {}
        self._integer = coded_nodes(program)
        self.constants = Constants(program, self.graph, self.metas, self.forms)
        self._real: dict[str, Laid] = {}
        self._codes: dict[str, Laid] = {}
        for spec in program.inputs:
            self._add_input(spec.name)

    def visit(self, node: Node) -> None:
        """Emit one node. Raises UnsupportedOp naming the op and its layer."""
        if node.name in self._codes or isinstance(op_of(node).kind, Scalar) or not isinstance(self.metas[node.name], (TensorMeta, tuple)):
            return
        if self.constants.take(node):
            return
        row = op_of(node)
        if row.onnx not in lowerings:
            raise UnsupportedOp(node.op, node.where, needed="LiteRT", way_out=WAY_OUT)
        self.draft.module = node.module
        results = self._integer.get(node.name)
        name = results[0] if results else node.name
        laid = lowerings[row.onnx](Call(node, bind(node), self, results is not None, name))
        if results and name != node.name and isinstance(laid, Laid) and self.draft.tensors[laid.tensor].dtype == "int16":
            clamp_result(self.draft, clip_limits(self.graph.by_name[name]))
        if isinstance(laid, tuple):
            for position, part in enumerate(laid):
                for user in self.graph.users.get(node.name, ()):
                    if user.args[1] == position:
                        (self._codes if results else self._real)[user.name] = part
        else:
            (self._codes if results else self._real)[name] = laid

    def users(self, name: str) -> tuple[Node, ...]:
        """Nodes that read a value."""
        return tuple(self.graph.users.get(name, ()))

    def real(self, name: str) -> Laid:
        """The numbers of a value; where it has a quantizer, of what its codes stand for."""
        if name in self.program.quantizers and name not in self.program.state:
            return self._decoded(name)
        return self._float(name)

    def one_row(self, name: str) -> Laid:
        """Like `real`; of a value that is the same for every sample, whatever the batch size, that one row."""
        if not self.constants.follows_batch(name) or name in self.program.quantizers:
            return self.real(name)
        found = self.constants.row(name)
        if found is None:
            return self.real(name)
        return Laid(self.draft.constant(found.numpy(), name), identity(found.dim()))

    def _float(self, name: str) -> Laid:
        if name not in self._real and name in self.constants:
            numbers = self.constants.numbers(name).numpy()
            quantizer = self.program.quantizers.get(name)
            half = quantizer is not None and quantizer.format == FLOAT_FORMATS["fp16"]
            laid = Laid(self.draft.constant(numbers.astype(np.float16) if half else numbers, name), identity(numbers.ndim))
            self._real[name] = self._converted("DEQUANTIZE", laid, f"{name}/real", None, "DequantizeOptions") if half else laid
        if name not in self._real:
            self._real[name] = self._repeated(name)
        return self._real[name]

    def _repeated(self, name: str) -> Laid:
        """A row for every sample."""
        row, node = self.constants.row(name), self.graph.by_name[name]
        if row is None and op_of(node).onnx in lowerings:
            found = lowerings[op_of(node).onnx](Call(node, bind(node), self, False, name))
            assert isinstance(found, Laid)
            return found
        if row is None or row.dtype not in (torch.float32, torch.int32, torch.int64):
            what = f"{node.op} with numbers that differ along the batch"
            raise UnsupportedOp(what, node.where, needed="LiteRT", way_out=WAY_OUT)
        number, rank = self.draft.constant(row.numpy(), name), row.dim()
        dtype = str(row.dtype).removeprefix("torch.")
        zeros = self.batch_of_zeros(rank)
        zeros = zeros if dtype == "float32" else self._step("CAST", (zeros,), (1,) * rank, dtype, "CastOptions")
        return Laid(self._step("ADD", (number, zeros), tuple(row.shape), dtype, "AddOptions", fusedActivationFunction=0), identity(rank))

    def codes(self, name: str) -> Laid:
        """The codes of a value; of one computed in float, coded once."""
        if name not in self._codes:
            self._codes[name] = self._converted("QUANTIZE", self._float(name), name, self.program.quantizers[name], "QuantizeOptions")
        return self._codes[name]

    def batch_of_zeros(self, rank: int) -> int:
        """A float tensor (N, 1, ..., 1) of zeros, made from the first input: files of this format have no other batch size to read."""
        name = next(name for name, number in self.numbers.items() if self.draft.tensors[number].batched == 0)
        tensor = self.draft.tensors[self.numbers[name]]
        number = self.numbers[name]
        ones = (1,) * len(tensor.shape)
        ends = [
            self.draft.constant(np.asarray(values, np.int32), "ints")
            for values in ([0] * len(ones), [-1, *ones[1:]], [-1] + [1] * (rank - 1))
        ]
        number = self._step("SLICE", (number, ends[0], ends[1]), ones, tensor.dtype, "SliceOptions")
        if tensor.dtype != "float32":
            number = self._step("CAST", (number,), ones, "float32", "CastOptions")
        zero = self.draft.constant(np.asarray(0, np.float32), "number")
        number = self._step("MUL", (number, zero), ones, "float32", "MulOptions", fusedActivationFunction=0)
        return self._step("RESHAPE", (number, ends[2]), (1,) * rank, "float32", "ReshapeOptions")

    def _step(self, code: str, inputs: tuple[int, ...], shape: tuple[int, ...], dtype: str, options: str, **fields: Any) -> int:
        number = self.draft.add(DraftTensor(f"zeros/{code.lower()}", shape, dtype, None, None, 0))
        self.draft.op(code, inputs, (number,), options, **fields)
        return number

    def coded(self) -> dict[str, Laid]:
        """Values that have codes in the file, stored as the network has them but for the order of their axes."""
        return {name: laid for name, laid in self._codes.items() if not laid.columns}

    def handed_out(self, name: str) -> Laid:
        """An output of the network, in float."""
        laid = self.real(name)
        if laid.columns:
            raise UnsupportedOp(
                "flattened channels", "the output", needed="LiteRT", way_out="return the features before they are flattened"
            )
        return laid

    def _decoded(self, name: str) -> Laid:
        key = f"{name}/real"
        if key not in self._real:
            self._real[key] = self._converted("DEQUANTIZE", self.codes(name), key, None, "DequantizeOptions")
        return self._real[key]

    def _converted(self, code: str, laid: Laid, name: str, quantizer: Quantizer | None, options: str) -> Laid:
        have = self.draft.tensors[laid.tensor]
        made = DraftTensor(name, have.shape, "float32" if quantizer is None else codes_type(quantizer), quantizer, None, have.batched)
        number = self.draft.add(made)
        self.draft.op(code, (laid.tensor,), (number,), options)
        return Laid(number, laid.order, laid.columns)

    def _add_input(self, name: str) -> None:
        form, meta = self.forms[name], self.metas[name]
        assert isinstance(form, Form) and isinstance(meta, TensorMeta)
        order = channels_last(4) if form.rank == 4 else identity(form.rank)
        batched = None if isinstance(form.sizes[0], int) else 0
        dtype = str(form.dtype).removeprefix("torch.")
        number = self.draft.add(DraftTensor(name, stored(meta.shape, order), dtype, None, None, batched))
        self.input_orders[name], self.numbers[name] = order, number
        self._real[name] = Laid(number, order)

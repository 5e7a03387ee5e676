"""From a program to an ONNX file: one walk over the graph writes float and quantized networks alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gossamer.errors import UnsupportedOp
from gossamer.files import write_bytes
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import FloatFormat, IntFormat
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.clamps import clip_limits
from gossamer.program.fold import fold_batch_norms
from gossamer.program.forms import AnyForm, BatchSize, Form, Size, find_forms
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution
from gossamer.program.program import Program
from gossamer.targets.onnx import lower_activation as lower_activation
from gossamer.targets.onnx import lower_conv as lower_conv
from gossamer.targets.onnx import lower_factory as lower_factory
from gossamer.targets.onnx import lower_index as lower_index
from gossamer.targets.onnx import lower_movement as lower_movement
from gossamer.targets.onnx import lower_norm as lower_norm
from gossamer.targets.onnx import lower_pointwise as lower_pointwise
from gossamer.targets.onnx import lower_pool as lower_pool
from gossamer.targets.onnx import lower_recurrent as lower_recurrent
from gossamer.targets.onnx import lower_reduce as lower_reduce
from gossamer.targets.onnx import lower_resize as lower_resize
from gossamer.targets.onnx.coding import clips_like, code_weight, copy_codes, emit_codes, emit_real, emit_real_by_position, store_floats
from gossamer.targets.onnx.cpu import EXACT
from gossamer.targets.onnx.draft import Array, Draft
from gossamer.targets.onnx.ends import code_ends, ends_metadata
from gossamer.targets.onnx.lowering import WAY_OUT, Call, lowerings
from gossamer.targets.onnx.order import clamps_behind_pools, keeps_pool_and_codes_apart
from gossamer.targets.onnx.proto import Port, to_bytes
from gossamer.targets.onnx.saturation import can_saturate
from gossamer.targets.onnx.spec import SPEC
from gossamer.targets.onnx.tidy import join_reshapes


def emit(program: Program, path: Path) -> None:
    """Write a program as ONNX, with QuantizeLinear and DequantizeLinear pairs where it has quantizers.

    Raises: UnsupportedOp for an op that has no ONNX form; FileError when the file cannot be written.
    """
    write_bytes(Path(path), to_onnx(program))


def emit_coded(program: Program, path: Path, io: str) -> None:
    """Like emit, with inputs and outputs that are "uint8" or "int8" codes; both need quantizers."""
    write_bytes(Path(path), to_onnx(program, io))


def to_onnx(program: Program, io: str = "float", spec: TargetSpec | None = None) -> bytes:
    """The bytes of the ONNX file for a runtime, without `spec` for that of the program. Batch norms of a float program are folded where possible."""
    spec = spec or _spec_of(program)
    if not program.quantizers:
        program = fold_batch_norms(program)
    if spec.guarded:
        program = clamps_behind_pools(program)
    walk = Walk(program, spec)
    for node in program.graph.nodes:
        walk.visit(node)
    outputs = [walk.output(name, position) for position, name in enumerate(program.graph.outputs)]
    inputs = [Port(given.name, given.dtype, tuple("batch" if size is None else size for size in given.shape)) for given in program.inputs]
    metadata: Mapping[str, str] = {EXACT: "1"} if program.quantizers and not can_saturate(program) else {}
    if io != "float":
        inputs, outputs = code_ends(walk.draft, program, inputs, outputs, io)
        metadata = {**metadata, **ends_metadata(program, inputs, outputs, io)}
    join_reshapes(walk.draft)
    walk.draft.without_dead_code([port.name for port in outputs])
    return to_bytes(walk.draft, inputs, outputs, metadata)


def _spec_of(program: Program) -> TargetSpec:
    """What the file's runtime can do; ONNX Runtime's where the program names none."""
    if program.target not in specs:
        return SPEC
    return specs[program.target]


class Walk:
    """The state of one walk: what was emitted so far, and which ONNX tensor stands for which value."""

    def __init__(self, program: Program, spec: TargetSpec) -> None:
        self.program = program
        self.spec = spec
        self.state = program.state
        self.draft = Draft()
        self.forms: dict[str, AnyForm] = dict(find_forms(program))
        self.coded: dict[str, Quantizer] = {}
        self.codes: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.twins: dict[object, int] = {}
        self._tensors: dict[str | tuple[str, str], str | tuple[str, ...]] = {}
        self._current = ""  # name of the node that is being emitted
        self._readers: dict[str, list[str]] = {}  # weight -> nodes that read its codes
        self._batch = ""
        count = len(program.graph.outputs)
        inputs = {given.name for given in program.inputs}
        wishes = ["output"] if count == 1 else [f"output{position}" for position in range(count)]
        for given in program.inputs:
            self.draft.fresh(given.name)
        self._output_names = [self.draft.fresh(wish) for wish in wishes]
        self._input_names = inputs
        for given in program.inputs:
            self._define(given.name, given.name)

    def visit(self, node: Node) -> None:
        """Emit one node. Raises UnsupportedOp naming the op and its layer."""
        if node.op == "scalar.getitem" and isinstance(self.forms[node.name], Form):
            source, position = node.args
            results = self._tensors[source.name]
            assert isinstance(results, tuple)
            return self._define(node.name, results[position])
        if not isinstance(self.forms[node.name], (Form, tuple)):
            return None  # a size: its form says all
        start, self._current = len(self.draft.nodes), node.name
        result = self._absorbed(node) or self._lower(node)
        made = self.draft.made_since(start)
        if isinstance(result, str) and result in made and result not in self.coded:
            name = self.draft.fresh(node.name)
            self.draft.rename(result, name, since=start)
            result = name
        return self._define(node.name, result)

    def tensor(self, name: str) -> str:
        """The ONNX tensor that readers of a value read; state is emitted when first read."""
        key = self._own(name)
        if key not in self._tensors:
            self._tensors[key] = self._state_tensor(name)
        found = self._tensors[key]
        assert isinstance(found, str), f"{name} is several tensors"
        return found

    def weight(self, numbers: Tensor, name: str, quantizer: Quantizer, spread: Callable[[str], str] | None = None) -> str:
        """What the layer that is being emitted reads for its float weight: codes of `numbers`, behind the operators that `spread` emits on them."""

        def codes_of(stored: str) -> str:
            own = self.for_reader(stored, len(numbers), name)
            return own if spread is None else spread(own)

        result = code_weight(self.draft, numbers, name, quantizer, spread=codes_of, integer=self._is_integer())
        self.coded[result] = quantizer
        return result

    def for_reader(self, codes: str, rows: int, name: str) -> str:
        """Codes of a weight, which has so many rows, as the layer that is being emitted reads them, see copy_codes."""
        readers = self._readers.setdefault(name, [])
        if self._current not in readers:
            readers.append(self._current)
        reader = readers.index(self._current)
        return copy_codes(self.draft, codes, rows, name, reader) if reader and self.spec.guarded else codes

    def _is_integer(self) -> bool:
        """Whether the layer is an integer kernel, or the runtime does not mind: ONNX Runtime makes one of a convolution that reads and gives codes."""
        node = self.program.graph.by_name[self._current]
        if not self.spec.guarded or op_of(node).kind != Convolution():
            return not self.spec.guarded
        source = bind(node).get("input")
        return isinstance(source, Ref) and self.tensor(source.name) in self.coded and self.result_quantizer(node) is not None

    def _own(self, name: str) -> str | tuple[str, str]:
        """The key of a tensor: integer weights have one for each layer where the runtime needs that."""
        quantizer = self.program.quantizers.get(name) if self.spec.guarded and name in self.state else None
        return (name, self._current) if quantizer is not None and isinstance(quantizer.format, IntFormat) else name

    def result_quantizer(self, node: Node) -> Quantizer | None:
        """The quantizer of a node's result, or of the clamp behind it that its codes replace."""
        user = self.program.graph.sole_user(node.name)
        if node.name not in self.program.quantizers and user is not None and self._absorbs(user):
            node = user
        return self.program.quantizers.get(node.name)

    def define_codes(self, name: str, codes: str, quantizer: Quantizer) -> str:
        """Note that `codes` are a value's codes; return the tensor that readers of the value read."""
        result = emit_real(self.draft, codes, name, quantizer)
        self.coded[result], self.codes[result] = quantizer, codes
        return result

    def state_array(self, name: str) -> Array | None:
        """The numbers of a float parameter or buffer; None for a computed value or a quantized parameter."""
        if name not in self.state or name in self.program.quantizers:
            return None
        array: Array = self.state[name].detach().cpu().numpy()
        return array

    def batch(self) -> str:
        """An int64 tensor (1,) holding the batch size."""
        if not self._batch:
            spec = next(spec for spec in self.program.inputs if None in spec.shape)
            axis = spec.shape.index(None)
            (self._batch,) = self.draft.emit("Shape", (spec.name,), name="batch", start=axis, end=axis + 1)
        return self._batch

    def output(self, name: str, position: int) -> Port:
        """Declare a value an output of the graph."""
        form = self.forms[name]
        assert isinstance(form, Form)
        tensor, wish = self.tensor(name), self._output_names[position]
        if tensor in self._input_names or tensor in self.draft.initializers or tensor in self._output_names:
            self.draft.append("Identity", (tensor,), (wish,))
        else:
            self.draft.rename(tensor, wish)
        names: dict[Size, str] = {BatchSize(1, 0): "batch"}
        return Port(wish, form.dtype, tuple(size if isinstance(size, int) else names.get(size) for size in form.sizes))

    def _state_tensor(self, name: str) -> str:
        tensor = self.state[name].detach().cpu()
        quantizer = self.program.quantizers.get(name)
        if quantizer is None:
            return self.draft.constant(tensor.numpy(), name=name)
        if isinstance(quantizer.format, FloatFormat):
            return store_floats(self.draft, tensor, name, quantizer, quantizer.format)
        return self.weight(tensor, name, quantizer)

    def _define(self, name: str, result: str | tuple[str, ...]) -> None:
        """Note the tensor of a value, with its codes where it has a quantizer."""
        quantizer = self.program.quantizers.get(name)
        if quantizer is not None and isinstance(result, str) and self._passes_codes_on(name, quantizer):
            self.coded[result] = quantizer
        if quantizer is not None and isinstance(result, str) and self.coded.get(result) != quantizer:
            result = self._real_again(name, result)
            result = self.define_codes(name, emit_codes(self.draft, result, name, quantizer), quantizer)
        self._tensors[name] = result

    def _passes_codes_on(self, name: str, quantizer: Quantizer) -> bool:
        """Whether a value is a moved one with the same codes, and the runtime moves codes on its own."""
        node = self.program.graph.by_name.get(name)
        moved = node is not None and op_of(node).onnx in self.spec.transparent_ops
        return moved and node is not None and self.program.quantizers.get(node.uses[0]) == quantizer

    def _real_again(self, name: str, result: str) -> str:
        """What is to be coded; where it has other codes already, in the form in which the runtime keeps those."""
        form = self.forms[name]
        if result not in self.codes or not isinstance(form, Form) or not self.spec.guarded:
            return result
        return emit_real_by_position(self.draft, self.codes[result], name + "/in", self.coded[result], form.sizes) or result

    def _absorbed(self, node: Node) -> str | None:
        """The input of a clamp that codes replace: nothing needs to be computed."""
        if not self._absorbs(node):
            return None
        source = node.args[0]
        assert isinstance(source, Ref)
        return self.tensor(source.name)

    def _absorbs(self, node: Node) -> bool:
        """Whether a node clamps a float value and its result's codes clip just like it."""
        quantizer = self.program.quantizers.get(node.name)
        limits = clip_limits(node)
        if quantizer is None or limits is None or not clips_like(quantizer, *limits):
            return False
        if self.spec.guarded and keeps_pool_and_codes_apart(node, self.program):
            return False
        form = self.forms[node.uses[0]]
        return isinstance(form, Form) and form.dtype == torch.float32

    def _lower(self, node: Node) -> str | tuple[str, ...]:
        row = op_of(node)
        if not row.onnx or row.onnx not in lowerings:
            raise UnsupportedOp(node.op, node.where, needed="ONNX", way_out=WAY_OUT)
        return lowerings[row.onnx](Call(node, bind(node), self))

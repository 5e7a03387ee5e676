"""What a network costs, counted on the graph so that functional ops count too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from gossamer.errors import UnsupportedOp
from gossamer.program.graph import Node, Ref
from gossamer.program.network import Network
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Attention, Convolution, Einsum, Linear, MatMul, Opaque, Recurrent
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes, tensor_meta


@dataclass(frozen=True, slots=True)
class Cost:
    """params: elements of parameters. macs: multiply-accumulates for one input. size_bytes: parameters and buffers
    as stored, codes for quantized ones. peak_memory_bytes: the most that inputs and results take at once, for one
    input, when each is freed after its last use and results of in-place and view ops share memory. masked: how many of
    the params masks hold at zero; macs and size_bytes count those like any other, as dense kernels and files do."""

    params: int
    macs: int
    size_bytes: int
    peak_memory_bytes: int
    masked: int = 0

    @property
    def sparsity(self) -> float:
        """Share of params that masks hold at zero."""
        return self.masked / max(self.params, 1)


def count_cost(program: Network) -> Cost:
    """Count one network. Raises UnsupportedOp for an op whose cost is not known, unless it computes a weight from others: that
    is done once, not for each input."""
    metas = infer_shapes(program, batch=1)
    stored = {node.name for node in program.graph.nodes if node.name in program.graph.from_state and isinstance(op_of(node).kind, Opaque)}
    return Cost(
        params=count_params(program),
        macs=sum(node_macs(node, metas) for node in program.graph.nodes if node.name not in stored),
        size_bytes=_size_bytes(program),
        peak_memory_bytes=peak_memory_bytes(program, metas),
        masked=_masked(program),
    )


def _masked(program: Network) -> int:
    state = program.state if program.masks else {}
    return sum({id(state[name]): int((~mask).sum()) for name, mask in program.masks.items()}.values())


def count_params(program: Network) -> int:
    """Elements of all parameters, tied ones once."""
    unique = {id(tensor): tensor.numel() for tensor in program.state.values() if isinstance(tensor, nn.Parameter)}
    return sum(unique.values())


def node_macs(node: Node, metas: Mapping[str, Meta]) -> int:
    """Multiply-accumulates of one node. Raises UnsupportedOp for an op without a row in the table."""

    def shape(argument: str) -> tuple[int, ...]:
        ref = bind(node)[argument]
        assert isinstance(ref, Ref)
        return tensor_meta(metas, ref.name).shape

    match op_of(node).kind:
        case Opaque():
            raise UnsupportedOp(node.op, node.source or node.name, needed="cost", way_out="add a row with gossamer.program.ops.add")
        case Convolution(transposed=True):
            return torch.Size(shape("input")).numel() * torch.Size(shape("weight")[1:]).numel()
        case Convolution():
            return tensor_meta(metas, node.name).numel * torch.Size(shape("weight")[1:]).numel()
        case Linear():
            return tensor_meta(metas, node.name).numel * shape("weight")[1]
        case MatMul(left=left):
            return tensor_meta(metas, node.name).numel * shape(left)[-1]
        case Einsum():
            return _einsum_macs(node, metas)
        case Attention():
            query, key, value = shape("query"), shape("key"), shape("value")
            scores = torch.Size(query[:-1]).numel() * key[-2]
            return scores * (query[-1] + value[-1])
        case Recurrent():
            weights = [tensor_meta(metas, ref.name) for ref in bind(node)["params"]]
            return torch.Size(shape("input")[:-1]).numel() * sum(weight.numel for weight in weights if len(weight.shape) == 2)
    return 0


def _einsum_macs(node: Node, metas: Mapping[str, Meta]) -> int:
    """The product of the sizes of all letters; an ellipsis stands for the leading axes of the operand that has most."""
    bound = bind(node)
    sizes: dict[str, int] = {}
    leading = 1
    for term, ref in zip(bound["equation"].replace(" ", "").split("->")[0].split(","), bound["tensors"], strict=True):
        shape = tensor_meta(metas, ref.name).shape
        letters = term.replace("...", "")
        if "..." in term:
            leading = max(leading, torch.Size(shape[: len(shape) - len(letters)]).numel())
            shape = shape[len(shape) - len(letters) :]
        sizes |= {letter: max(size, sizes.get(letter, 1)) for letter, size in zip(letters, shape, strict=True)}
    return leading * torch.Size(sizes.values()).numel()


def _size_bytes(program: Network) -> int:
    total, seen = 0, set()
    for name, tensor in program.state.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        quantizer = program.quantizers.get(name)
        if quantizer is None:
            total += tensor.numel() * tensor.element_size()
        else:
            total += (tensor.numel() * quantizer.format.bits + 7) // 8 + 4 * len(quantizer.scale)
    return total


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that results share (views, in-place ops): alive from node number `start` to `end`, both included. `values` are
    names with their place in the result (0 unless it is a tuple)."""

    start: int
    end: int
    values: tuple[tuple[str, int], ...]


def buffers(program: Network, metas: Mapping[str, Meta]) -> tuple[Buffer, ...]:
    """The memory of the inputs and results of all nodes. State is not in it."""
    start: dict[int, int] = {}
    end: dict[int, int] = {}
    values: dict[int, dict[tuple[str, int], None]] = {}
    state = {tensor_meta(metas, name).storage for name in program.graph.state_names}
    graph = program.graph

    def touch(name: str, time: int) -> None:
        for place, meta in enumerate(flat_metas(metas[name])):
            if meta.storage not in state:
                start.setdefault(meta.storage, time)
                end[meta.storage] = max(end.get(meta.storage, 0), time)
                values.setdefault(meta.storage, {})[name, place] = None

    for name in graph.inputs:
        touch(name, 0)
    for time, node in enumerate(graph.nodes):
        for name in (*node.uses, node.name):
            touch(name, time)
    for name in graph.outputs:
        touch(name, len(graph.nodes))
    return tuple(Buffer(start[storage], end[storage], tuple(values[storage])) for storage in start)


def peak_of(memory: Sequence[Buffer], sizes: Sequence[int]) -> int:
    """The most bytes alive at once, given the size of each buffer."""
    change = [0] * (max((buffer.end for buffer in memory), default=0) + 2)
    for buffer, size in zip(memory, sizes, strict=True):
        change[buffer.start] += size
        change[buffer.end + 1] -= size
    return max(accumulate(change))


def peak_memory_bytes(program: Network, metas: Mapping[str, Meta]) -> int:
    """The most bytes alive at once over the inputs and results of all nodes."""
    flat = {name: flat_metas(meta) for name, meta in metas.items()}
    memory = buffers(program, metas)
    return peak_of(memory, [max(_bytes_as_coded(program, name, flat[name][place]) for name, place in buffer.values) for buffer in memory])


def _bytes_as_coded(program: Network, name: str, meta: TensorMeta) -> int:
    quantizer = program.quantizers.get(name)
    return meta.size_bytes if quantizer is None else (meta.numel * quantizer.format.bits + 7) // 8


def flat_metas(meta: Meta) -> list[TensorMeta]:
    """The tensors in a result, in order."""
    if isinstance(meta, TensorMeta):
        return [meta]
    return [inner for item in meta for inner in flat_metas(item)] if isinstance(meta, tuple) else []

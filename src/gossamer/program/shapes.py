"""Shapes, dtypes and storages of all values of a program, found without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from gossamer.errors import UnsupportedOp
from gossamer.program.execute import DEVICE, TRAINING, Step, run_steps
from gossamer.program.graph import Graph
from gossamer.program.network import Network
from gossamer.program.ops import function


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What is known of a value without its numbers; values of the same `storage` share memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


Meta = TensorMeta | tuple[Any, ...] | int | float | bool | None


# capture, analysis and cost look at the same program: its shapes are kept as long as it lives
_KNOWN: WeakKeyDictionary[Network, dict[int, tuple[Graph, tuple[Any, ...], Mapping[str, Meta]]]] = WeakKeyDictionary()


def infer_shapes(program: Network, batch: int = 1) -> Mapping[str, Meta]:
    """Meta of every input, state tensor and node result at a batch size. Results that are numbers stay numbers.

    Raises: UnsupportedOp for an op whose result's size, or number, depends on values.
    """
    mark = tuple((tensor.shape, tensor.dtype) for tensor in program.state.values())
    known = _KNOWN.setdefault(program, {}).get(batch)
    if known is not None and known[0] is program.graph and known[1] == mark:
        return known[2]
    found = MappingProxyType(_infer(program, batch))
    _KNOWN[program][batch] = (program.graph, mark, found)
    return found


def _infer(program: Network, batch: int) -> dict[str, Meta]:
    try:  # tensors without memory know their shapes in a tenth of the time of fake ones, but not for every op
        return _infer_on_meta(program, batch)
    except (RuntimeError, NotImplementedError):
        return _infer_on_fakes(program, batch)


def _infer_on_meta(program: Network, batch: int) -> dict[str, Meta]:
    device = torch.device("meta")
    with torch.no_grad():
        made: dict[int, Tensor] = {}  # a tied tensor is one tensor here, too
        for tensor in program.state.values():
            if id(tensor) not in made:
                made[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        state = {name: made[id(tensor)] for name, tensor in program.state.items()}
        values: dict[str, Any] = {**state, **_inputs(program, batch, device), TRAINING: False, DEVICE: device}
        return _run(program, values, tuple(replace(step, call=partial(_remembered, step.call)) for step in program.steps))


# (op, arguments without numbers) -> shape, stride and dtype of a new tensor: networks repeat themselves
_RESULTS: dict[tuple[Any, ...], tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
_MOST = 20_000


def _remembered(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an op on tensors without memory, or give what it gave for the same shapes before."""
    storages: set[int] = set()
    key = (call, _describe(args, storages), _describe(tuple(kwargs.items()), storages))
    if call in _RECURRENT:
        return _recurrent(*args, **kwargs)
    if call in _LIKE_INPUT and args[0].dtype.is_floating_point:
        return torch.empty_like(args[0])
    known = _RESULTS.get(key)
    if known is not None:
        shape, stride, dtype = known
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    result = call(*args, **kwargs)
    if isinstance(result, Tensor) and result.untyped_storage()._cdata not in storages and result.storage_offset() == 0:
        if len(_RESULTS) >= _MOST:
            _RESULTS.clear()
        _RESULTS[key] = (result.shape, result.stride(), result.dtype)
    return result


# decomposed into many steps by torch, though what they give has the form of what they get
_LIKE_INPUT = frozenset(
    function(f"aten.{name}.default")
    for name in "batch_norm relu relu6 hardtanh silu hardswish hardsigmoid sigmoid gelu tanh elu leaky_relu".split()
)

# decomposed into every step of the sequence by torch, though their shapes are plain
_RECURRENT = tuple(function(f"aten.{name}.input") for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))


def _recurrent(
    data: Tensor, states: Any, params: Any, _biases: bool, _layers: int, _dropout: float, _train: bool, bidirectional: bool, _first: bool
) -> tuple[Tensor, ...]:
    """Outputs (*, directions * H) and final states like the initial ones."""
    initial = states if isinstance(states, (tuple, list)) else (states,)
    width = initial[0].shape[-1] * (1 + bidirectional)
    return data.new_empty((*data.shape[:-1], width)), *(torch.empty_like(state) for state in initial)


def _describe(arg: Any, storages: set[int]) -> Any:
    """An argument as a key: tensors by shape, stride and dtype, numbers with their type, since 1 equals True and 1.0."""
    if isinstance(arg, Tensor):
        storages.add(arg.untyped_storage()._cdata)
        return ("tensor", arg.shape, arg.stride(), arg.dtype)
    if isinstance(arg, (tuple, list)):
        return tuple(_describe(item, storages) for item in arg)
    return (type(arg), arg)


def _infer_on_fakes(program: Network, batch: int) -> dict[str, Meta]:
    with FakeTensorMode() as mode, torch.no_grad():
        state = {name: mode.from_tensor(tensor) for name, tensor in program.state.items()}
        values: dict[str, Any] = {**state, **_inputs(program, batch, program.device), TRAINING: False, DEVICE: program.device}
        return _run(program, values, program.steps)


def _inputs(program: Network, batch: int, device: torch.device) -> dict[str, Tensor]:
    shapes = {spec.name: ([batch if size is None else size for size in spec.shape], spec.dtype) for spec in program.inputs}
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}


def _run(program: Network, values: dict[str, Any], steps: tuple[Step, ...]) -> dict[str, Meta]:
    metas: dict[str, Meta] = {name: _meta(value) for name, value in values.items() if name not in (TRAINING, DEVICE)}
    keep: list[Any] = list(values.values())  # storages are told apart by address, so none may be freed meanwhile

    def note(name: str, value: Any) -> None:
        keep.append(value)
        metas[name] = _meta(value)

    try:
        run_steps(steps, values, note)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        node = next(node for node in program.graph.nodes if node.name not in metas)
        raise UnsupportedOp(
            node.op, node.source or node.name, needed="shape", way_out="its result depends on values; use operations with known shapes"
        ) from error
    return metas


def _meta(value: Any) -> Meta:
    if isinstance(value, Tensor):
        return TensorMeta(tuple(int(size) for size in value.shape), value.dtype, value.untyped_storage()._cdata)
    if isinstance(value, (tuple, list)):
        return tuple(_meta(item) for item in value)
    return value  # type: ignore[no-any-return]


def tensor_meta(metas: Mapping[str, Meta], name: str) -> TensorMeta:
    """Meta of a value that must be one tensor."""
    meta = metas[name]
    assert isinstance(meta, TensorMeta), f"{name} is not a tensor"
    return meta

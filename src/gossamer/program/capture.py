"""From an eager module to a program: torch.export, then the normal form, then proof that both agree."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from gossamer.errors import CaptureError, ParityError
from gossamer.program.graph import Arg, Graph, Node, Ref
from gossamer.program.normal_form import normalize
from gossamer.program.ops.table import SCALAR_FUNCTIONS
from gossamer.program.program import InputSpec, Program

Adapter = Callable[[Any], Tensor] | str | int
_TORCH_FOLDER = str(Path(torch.__file__).parent)
_OWN_FOLDER = str(Path(__file__).parents[1])
_SCALAR_NAMES = {function: name for name, function in SCALAR_FUNCTIONS.items()}


def capture(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    output: Adapter | None = None,
    dynamic_batch: bool = True,
) -> Program:
    """Turn a network into a Program with a dynamic batch axis (axis 0 of every tensor input).

    model           any nn.Module; it is left as it was, mode and weights included
    example_inputs  a tensor, a sequence of positional arguments, or a mapping of keyword arguments
    output          for a model that does not return one tensor: a key, an index, or a function from what it
                    returns to the tensor that counts
    dynamic_batch   False for a model whose code needs the example's batch size

    Raises: CaptureError when torch.export refuses the model (with its reason and the line), when the output is no
    tensor, or a weight is not finite; ParityError when the program computes something else than the model.
    """
    args, kwargs = _split_example(example_inputs)
    _check_finite(model)
    was_training = [module for module in model.modules() if module.training]
    wrapper = _Adapted(model, output).eval()
    try:
        with torch.no_grad():
            expected = _run_eager(wrapper, args, kwargs)
            exported = _export(wrapper, args, kwargs, dynamic_batch)
    finally:
        for module in was_training:
            module.training = True
    program = _to_program(exported, _argument_names(model), dynamic_batch)
    _check_parity(program, args, kwargs, expected)
    return program


class _Adapted(nn.Module):
    """The user's model with its output reduced to one tensor."""

    def __init__(self, model: nn.Module, output: Adapter | None) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.model(*args, **kwargs)
        match self.output:
            case None:
                return result
            case str() | int():
                return result[self.output]
            case _:
                return self.output(result)


def _split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; a batch of one is doubled, since export takes 1 for a constant."""

    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
            return torch.cat([value, value])
        return value

    if isinstance(example, Tensor):
        return (widen(example),), {}
    if isinstance(example, Mapping):
        return (), {key: widen(value) for key, value in example.items()}
    return tuple(widen(value) for value in example), {}


def _check_finite(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise CaptureError(f"the weight {name!r} holds {count} NaN or infinite values", way_out="load weights that are finite")


def _run_eager(wrapper: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    try:
        result = wrapper(*args, **kwargs)
    except Exception as error:
        reason = f"it fails on the example inputs ({type(error).__name__}: {_first_line(error)})"
        raise CaptureError(reason, line=_user_line(error), way_out="pass example_inputs of the shape and type it takes") from error
    if not isinstance(result, Tensor):
        keys = f" with the keys {sorted(map(str, result))}" if isinstance(result, Mapping) else ""
        raise CaptureError(
            f"it returns a {type(result).__name__}{keys}, not one tensor",
            way_out="pass output= a key, an index, or a function that picks the tensor",
        )
    return result


def _export(wrapper: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_batch: bool) -> ExportedProgram:
    shapes = ShapesCollection()
    for value in (*args, *kwargs.values()):
        if dynamic_batch and isinstance(value, Tensor) and value.dim():
            shapes[value] = {0: Dim.DYNAMIC}
    try:
        return torch.export.export(wrapper, args, kwargs, dynamic_shapes=shapes if len(shapes) else None, strict=False)
    except Exception as error:
        if dynamic_batch and ("constraint" in str(error).lower() or "specialized" in str(error).lower()):
            reason = f"its code fixes the batch size ({_first_line(error)})"
            raise CaptureError(
                reason, line=_user_line(error), way_out="compute sizes from x.shape[0], or pass dynamic_batch=False"
            ) from error
        reason = f"torch.export refuses it ({type(error).__name__}: {_first_line(error)})"
        raise CaptureError(
            reason, line=_user_line(error), way_out="write that line with tensor operations whose control flow does not depend on values"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")


def _user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((_TORCH_FOLDER, _OWN_FOLDER, "<")):
            found = f"{frame.filename}:{frame.lineno} ({frame.line})"
    return found


def _to_program(exported: ExportedProgram, argument_names: Mapping[str, str], dynamic_batch: bool) -> Program:
    signature = exported.graph_signature
    source = {
        spec.arg.name: spec.target for spec in signature.input_specs if spec.kind is not InputKind.USER_INPUT and spec.target is not None
    }
    constants = [spec.arg.name for spec in signature.input_specs if isinstance(spec.arg, ConstantArgument)]
    mutated = [spec.target for spec in signature.output_specs if spec.kind is not OutputKind.USER_OUTPUT]
    if mutated:
        raise CaptureError(f"its forward writes to {mutated[0]!r} while evaluating", way_out="write to buffers only while training")
    names = _value_names(exported.graph, source, argument_names)
    nodes = tuple(_to_node(node, names) for node in exported.graph.nodes if node.op == "call_function")
    inputs = _input_specs(exported.graph, set(source) | set(constants), names, dynamic_batch)
    (result,) = exported.graph.output_node().args
    outputs = tuple(names[node.name] for node in result)  # type: ignore[union-attr]
    state = {_strip(name): tensor for name, tensor in {**exported.state_dict, **exported.constants}.items() if isinstance(tensor, Tensor)}
    graph = normalize(Graph(tuple(spec.name for spec in inputs), nodes, outputs))
    return Program(graph, inputs, state)


def _strip(name: str) -> str:
    return name.removeprefix("model.")


def _argument_names(model: nn.Module) -> dict[str, str]:
    """Names that export gives to positional arguments of the wrapper -> names in the user's forward."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {f"args_{position}": name for position, name in enumerate(positional)}


def _value_names(graph: fx.Graph, source: Mapping[str, str], argument_names: Mapping[str, str]) -> dict[str, str]:
    """Graph name -> value name: state_dict keys for state, the user's argument names for inputs.

    Any other value whose name is already taken so gets underscores.
    """
    names = {node.name: _strip(source[node.name]) for node in graph.nodes if node.name in source}
    taken = set(names.values())
    for node in graph.nodes:
        if node.name in names:
            continue
        name = argument_names.get(node.name, node.name) if node.op == "placeholder" else node.name
        while name in taken:
            name += "_"
        names[node.name] = name
        taken.add(name)
    return names


def _input_specs(graph: fx.Graph, skip: set[str], names: Mapping[str, str], dynamic_batch: bool) -> tuple[InputSpec, ...]:
    specs = []
    for node in graph.nodes:
        if node.op != "placeholder" or node.name in skip:
            continue
        value = node.meta["val"]
        sizes = [None if dynamic_batch and axis == 0 else int(size) for axis, size in enumerate(value.shape)]
        specs.append(InputSpec(names[node.name], tuple(sizes), value.dtype))
    return tuple(specs)


def _to_node(node: fx.Node, names: Mapping[str, str]) -> Node:
    def convert(arg: Any) -> Arg:
        if isinstance(arg, fx.Node):
            return Ref(names[arg.name])
        if isinstance(arg, (list, tuple)):
            return tuple(convert(item) for item in arg)
        return arg

    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return Node(
        name=names[node.name],
        op=_op_name(node.target),
        args=convert(node.args),
        kwargs=tuple((key, convert(value)) for key, value in node.kwargs.items()),
        module=_module_path(stack[-1][0]) if stack else "",
        source=_source_line(node.meta.get("stack_trace") or ""),
    )


def _module_path(path: str) -> str:
    """ "L['self'].model.layer1" or "model.layer1" -> "layer1"."""
    return path.split("L['self']")[-1].lstrip(".").removeprefix("model").lstrip(".")


def _op_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if target in _SCALAR_NAMES:
        return _SCALAR_NAMES[target]
    name = getattr(target, "__name__", str(target))
    raise CaptureError(f"its graph calls {name!r}, which is no tensor operation", way_out="move that call out of forward")


def _source_line(stack_trace: str) -> str:
    """ "model.py:12" from the innermost frame of an export stack trace."""
    files = [line.strip() for line in stack_trace.splitlines() if line.strip().startswith("File ")]
    user = [line for line in files if _TORCH_FOLDER not in line] or files
    if not user:
        return ""
    _, path, rest = user[-1].split('"', 2)
    return f"{Path(path).name}:{rest.split('line ')[1].split(',')[0]}"


def _check_parity(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Tensor) -> None:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    with torch.no_grad():
        got = program(*tensors[: len(program.inputs)])
    error = relative_error(got, expected)
    if not error <= 1e-5:
        raise ParityError("outputs of the captured program and of the model", error, 1e-5)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| in float64; 0 when both are zero."""
    if got.shape != expected.shape:
        return float("inf")
    difference = float(torch.linalg.vector_norm((got - expected).to(torch.float64)))
    size = float(torch.linalg.vector_norm(expected.to(torch.float64)))
    return difference / size if size else difference

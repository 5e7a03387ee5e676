"""From an eager module to a program: torch.export, then the normal form, then proof that both agree."""

from __future__ import annotations

import contextlib
import io
import operator
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from gossamer.errors import CaptureError, ParityError, UnsupportedOp, first_line
from gossamer.program.adapt import OWN_FOLDER, TORCH_FOLDER, Adapter, adapt, fresh, user_line
from gossamer.program.graph import Arg, Graph, Node, Ref
from gossamer.program.inline import inline_subgraphs
from gossamer.program.network import InputSpec
from gossamer.program.normal_form import normalize, written_values
from gossamer.program.ops.table import SCALAR_FUNCTIONS
from gossamer.program.products import with_plain_products
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes
from gossamer.program.transformers import has_fast_path, plain_transformers

_SCALAR_NAMES = {function: name for name, function in SCALAR_FUNCTIONS.items()}
_COMPARISONS = (operator.ge, operator.gt, operator.le, operator.lt, operator.eq, operator.ne)
_TOLERANCE = 1e-5  # relative
_MANY = 2**20  # no code means a batch limit as large as this


def capture(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    output: Adapter | None = None,
    dynamic_batch: bool = True,
    copy_weights: bool = True,
) -> Program:
    """Turn a network into a Program with a dynamic batch axis (axis 0 of every tensor input).

        model           any nn.Module; it is left as it was, mode and weights included
        example_inputs  a tensor, a sequence of positional arguments, or a mapping of keyword arguments
        output          for a model that does not return one tensor: a key, an index, or a function from what it
                        returns to the tensor that counts
        dynamic_batch   False for a model whose code needs the example's batch size, and for files of exactly that size
        copy_weights    False to share the weights with the model, for one too large to be held twice: training the program
                        then trains the model

        Raises: CaptureError when torch.export refuses the model (with its reason and the line), when the output is no
    tensor, or a weight is not finite; ParityError when the program computes something else than the model.
        Warns: UserWarning where torch's fast path for transformer layers gives other outputs, see program.transformers.
    """
    wrapper, args = adapt(model, example_inputs, output, dynamic_batch=dynamic_batch)
    _check_finite(model)
    _check_norms(model)
    was_training = [module for module in model.modules() if module.training]
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    wrapper.eval()
    try:
        with torch.no_grad(), plain_transformers(wrapper):
            expected = _run_eager(wrapper, args)
            exported = _export(wrapper, args, dynamic_batch)
            program = _to_program(exported, wrapper.input_names, dynamic_batch, copy_weights)
            _check_parity(program, wrapper, args, expected)
            if dynamic_batch:
                _check_batch_of_one(program, wrapper, args)
        with torch.no_grad():
            _compare_fast_path(wrapper, args, expected)
    finally:
        for module in was_training:
            module.training = True
        with torch.no_grad():
            for buffer, before in buffers.items():
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
    with contextlib.suppress(UnsupportedOp):  # shapes are part of what is captured; where one depends on values, who needs it says so
        infer_shapes(program)
    return program


def _check_finite(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise CaptureError(f"the weight {name!r} has no shape yet", way_out="run the model once on real data before")
        if not tensor.is_floating_point():
            continue
        limit = not isinstance(tensor, nn.Parameter) and not name.endswith(("running_mean", "running_var"))
        wrong = torch.isnan(tensor) if limit else ~torch.isfinite(tensor)  # buffers hold masks and limits: infinite is a value there
        if bool(wrong.any()):
            count = int(wrong.sum())
            raise CaptureError(f"the weight {name!r} holds {count} NaN or infinite values", way_out="load weights that are finite")


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None and module.track_running_stats:
            raise CaptureError(
                f"the norm {name!r} averages over all batches (momentum=None), which its graph does not show",
                way_out="set its momentum to a number such as 0.1",
            )


def _run_eager(wrapper: nn.Module, args: tuple[Any, ...]) -> Tensor:
    try:
        result = wrapper(*fresh(args))
    except Exception as error:  # the user's code may raise anything
        reason = f"it fails on the example inputs ({type(error).__name__}: {first_line(error)})"
        raise CaptureError(reason, line=user_line(error), way_out=_way_in(wrapper, args)) from error
    if not isinstance(result, Tensor):
        keys = f" with the keys {sorted(map(str, result))}" if isinstance(result, Mapping) else ""
        raise CaptureError(
            f"it returns a {type(result).__name__}{keys}, not one tensor",
            way_out="pass output= a key, an index, or a function that picks the tensor",
        )
    return result


def _way_in(wrapper: nn.Module, args: tuple[Any, ...]) -> str:
    """What makes a model run that fails on its example inputs."""
    given = {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    own = {parameter.dtype for parameter in wrapper.parameters() if parameter.is_floating_point()}
    if given == {torch.float32} and own and torch.float32 not in own:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
        return f"call model.float() first, since its weights are {names} and the inputs float32"
    return "pass example_inputs of the shape and type it takes"


def _export(wrapper: nn.Module, args: tuple[Any, ...], dynamic_batch: bool) -> ExportedProgram:
    args = fresh(args)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for value in tree_leaves(args):
        if dynamic_batch and isinstance(value, Tensor) and value.dim():
            shapes[value] = {0: Dim.DYNAMIC}
    printed = io.StringIO()
    try:
        # a refusal prints the whole graph so far; our sentence says what matters
        with contextlib.redirect_stderr(printed), warnings.catch_warnings():
            # torch's recurrent layers list their weights anew, which changes nothing
            warnings.filterwarnings("ignore", r"The tensor attributes? .*_flat_weights.* assigned during export", UserWarning)
            exported = torch.export.export(
                wrapper,
                args,
                dynamic_shapes=shapes if len(shapes) else None,  # type: ignore[arg-type]
                strict=False,
            )
        sys.stderr.write(printed.getvalue())
    except Exception as error:  # whatever the user's code or torch.export itself raises: each becomes one sentence
        if dynamic_batch and ("constraint" in str(error).lower() or "specialized" in str(error).lower()):
            fixed = re.search(r"constant \((\d+)\)", str(error))
            reason = f"its code fixes the batch size to {fixed[1]}" if fixed else f"its code fixes the batch size ({first_line(error)})"
            raise CaptureError(
                reason, line=user_line(error), way_out="compute sizes from x.shape[0], or pass dynamic_batch=False"
            ) from error
        reason = f"torch.export refuses it ({type(error).__name__}: {first_line(error)})"
        raise CaptureError(
            reason, line=user_line(error), way_out="write that line with tensor operations whose control flow does not depend on values"
        ) from error
    for limits in exported.range_constraints.values():
        if limits.lower > 2 or limits.upper < _MANY:
            reason = f"its code takes another path for batches outside [{limits.lower}, {limits.upper}]"
            raise CaptureError(reason, way_out="let the code not depend on x.shape[0], or pass dynamic_batch=False")
    return exported


def _to_program(exported: ExportedProgram, argument_names: Mapping[str, str], dynamic_batch: bool, copy_weights: bool) -> Program:
    inline_subgraphs(exported)
    signature = exported.graph_signature
    source = {
        spec.arg.name: spec.target for spec in signature.input_specs if spec.kind is not InputKind.USER_INPUT and spec.target is not None
    }
    constants = [spec.arg.name for spec in signature.input_specs if isinstance(spec.arg, ConstantArgument)]
    mutated = {spec.target: "" for spec in signature.output_specs if spec.kind is not OutputKind.USER_OUTPUT and spec.target}
    names = _value_names(exported.graph, source, argument_names)
    nodes = tuple(_to_node(node, names) for node in exported.graph.nodes if node.op == "call_function")
    inputs = _input_specs(exported.graph, set(source) | set(constants), names, dynamic_batch)
    (result,) = exported.graph.output_node().args
    outputs = tuple(names[node.name] for node in result)  # type: ignore[union-attr]
    raw = Graph(tuple(spec.name for spec in inputs), nodes, outputs)
    mutated |= {name: line for name, line in written_values(raw).items() if name in raw.state_names}
    for name, line in mutated.items():
        raise CaptureError(
            f"its forward writes to {_strip(name)!r} while evaluating", line=line, way_out="write to buffers only while training"
        )
    ranks = {_strip(name): tensor.dim() for name, tensor in {**exported.state_dict, **exported.constants}.items() if _is_float(tensor)}
    graph = with_plain_products(normalize(raw), ranks).without_dead_code()
    return Program(graph, inputs, _own_state(exported, graph.state_names, copy_weights))


def _own_state(exported: ExportedProgram, wanted: Sequence[str], copy: bool) -> dict[str, Tensor]:
    """Parameters, buffers and constants; as copies, since export shares them with the user's model. Tied ones stay tied."""
    found = {_strip(name): tensor for name, tensor in {**exported.state_dict, **exported.constants}.items()}
    if not copy:
        return {name: found[name] for name in wanted}
    copies: dict[int, Tensor] = {}
    for tensor in (found[name] for name in wanted):
        own = tensor.detach().clone()
        copies.setdefault(id(tensor), nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own)
    return {name: copies[id(found[name])] for name in wanted}


def _is_float(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


def _strip(name: str) -> str:
    return name.removeprefix("model.")


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
    source = _source_line(node.meta.get("stack_trace") or "")
    return Node(
        name=names[node.name],
        op=_op_name(node.target, source),
        args=convert(node.args),
        kwargs=tuple((key, convert(value)) for key, value in node.kwargs.items()),
        module=_module_path(stack[-1][0]) if stack else "",
        source=source,
    )


def _module_path(path: str) -> str:
    """ "L['self'].model.layer1" or "model.layer1" -> "layer1"."""
    return path.split("L['self']")[-1].lstrip(".").removeprefix("model").lstrip(".")


def _op_name(target: Any, line: str) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if target in _SCALAR_NAMES:
        return _SCALAR_NAMES[target]
    if target in _COMPARISONS:
        raise CaptureError(
            "the shape of a result depends on values",
            line=line,
            way_out="use operations whose result has a known shape, such as torch.where",
        )
    name = getattr(target, "__name__", str(target))
    raise CaptureError(f"its graph calls {name!r}, which is no tensor operation", line=line, way_out="move that call out of forward")


def _source_line(stack_trace: str) -> str:
    """ "model.py:12" from the innermost frame of an export stack trace."""
    files = [line.strip() for line in stack_trace.splitlines() if line.strip().startswith("File ")]
    user = [line for line in files if TORCH_FOLDER not in line and OWN_FOLDER not in line]
    if not user:
        return ""
    _, path, rest = user[-1].split('"', 2)
    return f"{Path(path).name}:{rest.split('line ')[1].split(',')[0]}"


def _check_parity(program: Program, wrapper: nn.Module, args: tuple[Any, ...], expected: Tensor) -> None:
    error = relative_error(_run_program(program, args), expected)
    if not error <= _TOLERANCE:
        if bool(expected.isnan().any()) or bool(expected.isinf().all()):
            raise CaptureError(
                "its output for the example inputs is NaN or infinite, so nothing can be compared with it",
                way_out="pass example inputs for which it computes numbers",
            )
        if not relative_error(_run_eager(wrapper, args), expected) <= _TOLERANCE:
            raise CaptureError(
                "it gives another output for the same input each time",
                way_out="let randomness such as dropout depend on self.training, and keep no state between calls",
            )
        raise ParityError("outputs of the captured program and of the model", error, _TOLERANCE)


def _compare_fast_path(wrapper: nn.Module, args: tuple[Any, ...], expected: Tensor) -> None:
    if has_fast_path(wrapper) and not relative_error(_run_eager(wrapper, args), expected) <= _TOLERANCE:
        warnings.warn(
            "while it evaluates, torch's fast path for transformer layers gives other outputs than the layers do step by step, as in training: "
            "zeros at padded positions, or a mask of numbers taken for one of yes and no; the program computes step by step (to see that "
            "in the model, call torch.backends.mha.set_fastpath_enabled(False)).",
            stacklevel=3,
        )


def _check_batch_of_one(program: Program, wrapper: nn.Module, args: tuple[Any, ...]) -> None:
    """Export takes the batch to be 2 or more: a branch for a single sample would go unseen."""
    one = tree_map(lambda value: value[:1] if isinstance(value, Tensor) and value.dim() else value, args)
    try:
        expected = _run_eager(wrapper, one)
    except CaptureError:
        return  # the model itself cannot run a single sample
    if not relative_error(_run_program(program, one), expected) <= _TOLERANCE:
        raise CaptureError(
            "its code treats a single sample differently", way_out="let the code not depend on x.shape[0], or pass dynamic_batch=False"
        )


def _run_program(program: Program, args: tuple[Any, ...]) -> Tensor:
    tensors = [value for value in tree_leaves(fresh(args)) if isinstance(value, Tensor)]
    result: Tensor = program(*tensors)
    return result


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| in float64; 0 when both are zero. Infinite where both are does not count, unless all is."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().to(torch.float64), expected.detach().to(torch.float64)
    counted = ~(expected.isinf() & (got == expected))  # scores of what a mask forbids
    if not bool(counted.any()) and expected.numel():
        return float("nan")
    difference = float(torch.linalg.vector_norm((got - expected)[counted]))
    size = float(torch.linalg.vector_norm(expected[counted]))
    return difference / size if size else difference

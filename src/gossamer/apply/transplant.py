"""Putting the weights of a pruned program back into the user's own module, checked by running both.

Sizes come from the weights and the graph; what the user's class keeps in attributes is tried, and kept only when the
module then computes what the program computes. Code that fixes a size in another way cannot be changed from outside: the
error names its line.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gossamer.apply.attributes import Change, Setting, changes, fold_scales, put, same_ops, settings
from gossamer.apply.layer_sizes import fit_layers
from gossamer.coupling import analyse
from gossamer.coupling import labels as lab
from gossamer.errors import CaptureError, GossamerError, TransplantError, first_line
from gossamer.program.adapt import Adapter, adapt, fresh, user_line
from gossamer.program.capture import capture, relative_error
from gossamer.program.program import Program, check_program

TOLERANCE = 1e-5  # relative error of the check, float32
_USE_PROGRAM = "use the program itself, which is an nn.Module, or change that line to take the size from its input"
_EARLIER = "transplant the program as it was before folding, quantization and other changes of its graph"


def transplant(program: Program, model: nn.Module, example_inputs: Any = None, *, output: Adapter | None = None) -> nn.Module:
    """Return a copy of the user's module with the weights and sizes of a pruned program. Both arguments stay as they are.

    program         captured from `model` and pruned, trained or repaired since
    model           the module it was captured from; hooks, training mode and requires_grad are kept, gradients are not
    example_inputs  as for `capture`; needed only by a model whose inputs are more than tensors
    output          as for `capture`

    The copy is run beside the program on two batch sizes and must agree within 1e-5 (relative).
    Raises: TransplantError for a program whose graph has other operations than the model (folded, quantized), and for a
    module whose code hard-codes a size that the removal changed: it names the module, the line, and the groups to skip.
    """
    check_program(program)
    return graft(program, model, example_inputs, output=output)


def graft(
    program: Program, model: nn.Module, example_inputs: Any = None, *, output: Adapter | None = None, original: Program | None = None
) -> nn.Module:
    """`transplant` for a caller who has the program that the model was captured as, and need not capture it again."""
    if program.quantizers:
        raise TransplantError("the program is quantized, and the module has no place for that", way_out=_EARLIER)
    cases = _cases(program, model, example_inputs)
    twin = _twin(program, model)
    fit_layers(twin, program)
    check = _Check(program, twin, cases, output)
    failure = check.fails()
    if failure is None:
        return twin
    original = original if original is not None else _original(program, model, example_inputs, cases, output)
    differs = same_ops(original.graph, program.graph)
    if differs:
        raise TransplantError(f"its graph has other operations than the module, first at {differs!r}", way_out=_EARLIER)
    found = changes(original.graph, program.graph)
    attempts = dict.fromkeys(settings(twin, found, named=named) for named in (True, False))
    folded = False
    undo: list[Setting] = []
    for chosen in attempts:
        for setting in undo:
            put(setting)
        undo = [replace(setting, new=put(setting)) for setting in chosen]
        failure = check.fails()
        if failure is not None and failure.error is None and not folded:
            folded = fold_scales(twin, original, program)
            failure = check.fails()
        if failure is None:
            return twin
    raise _blame(failure, twin, original, program)


def _twin(program: Program, model: nn.Module) -> nn.Module:
    """A copy of the module that holds the program's tensors; its own are never copied."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    fresh_tensors: dict[int, Tensor] = {}
    memo: dict[int, Any] = {}
    added: dict[str, Tensor] = {}
    for name, tensor in program.state.items():
        old = own.get(name)
        old = old if old is not None else _constant(model, name)
        if old is None:
            if _has_place(model, name):
                added[name] = tensor
            elif not name.rpartition(".")[2].startswith("lifted_tensor"):  # a constant in the text of a forward
                raise TransplantError(f"the program has the weight {name!r}, which the module does not have", way_out=_EARLIER)
            continue
        if old.dim() != tensor.dim():
            raise TransplantError(
                f"{name!r} has the shape {tuple(tensor.shape)} in the program and {tuple(old.shape)} in the module", way_out=_EARLIER
            )
        if id(tensor) not in fresh_tensors:
            value = tensor.detach().to(old.device, copy=True)
            fresh_tensors[id(tensor)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        if memo.setdefault(id(old), fresh_tensors[id(tensor)]) is not fresh_tensors[id(tensor)]:
            raise TransplantError(f"{name!r} is tied to another weight in the module and is not in the program", way_out=_EARLIER)
    try:
        twin = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise TransplantError(f"the module cannot be copied ({first_line(error)})", way_out="let copy.deepcopy(model) work") from error
    for name, tensor in added.items():
        path, _, leaf = name.rpartition(".")
        twin.get_submodule(path).register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
    return twin


def _constant(model: nn.Module, name: str) -> Tensor | None:
    """A tensor that is a plain attribute of a module."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def _has_place(model: nn.Module, name: str) -> bool:
    """Whether the module can take a parameter of that name: a bias that it was made without."""
    path, _, leaf = name.rpartition(".")
    owner = dict(model.named_modules(remove_duplicate=False)).get(path)
    return owner is not None and leaf in owner._parameters


@dataclass(frozen=True, slots=True)
class _Case:
    """One call of the module: arguments, and the names by which the last of them are passed."""

    keywords: tuple[str, ...]
    args: tuple[Any, ...]


def _cases(program: Program, model: nn.Module, example_inputs: Any) -> tuple[_Case, ...]:
    """Inputs of two batch sizes (of two seeds where the batch is fixed)."""
    if example_inputs is None:
        names = tuple(spec.name for spec in program.inputs)
        return tuple(_Case(names if _takes(model, names) else (), program.example_inputs(2 + seed, seed)) for seed in (0, 1))
    wrapper, args = adapt(model, example_inputs, None)
    free = any(None in spec.shape for spec in program.inputs)
    more = tree_map(lambda value: torch.cat([value, value[:1]]) if free and isinstance(value, Tensor) and value.dim() else value, args)
    return _Case(wrapper.keywords, args), _Case(wrapper.keywords, more)


def _takes(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the module's forward takes all these by name."""
    parameters = inspect.signature(model.forward).parameters.values()
    return set(names) <= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a check failed: the error that the module's forward raised, or none when it only computes something else."""

    error: Exception | None
    difference: float = float("inf")


class _Check:
    """The module beside the program on every case."""

    def __init__(self, program: Program, twin: nn.Module, cases: Sequence[_Case], output: Adapter | None) -> None:
        self._twin = twin
        self._output = output
        self._cases = cases
        was = program.training
        with torch.no_grad():
            program.eval()
            self._expected = [program(*(leaf for leaf in tree_leaves(fresh(case.args)) if isinstance(leaf, Tensor))) for case in cases]
        program.train(was)

    def fails(self) -> _Failure | None:
        """None when the module agrees with the program."""
        training = [module for module in self._twin.modules() if module.training]
        self._twin.eval()
        try:
            for case, expected in zip(self._cases, self._expected, strict=True):
                with torch.no_grad():
                    wrapper, _ = adapt(self._twin, dict.fromkeys(case.keywords) if case.keywords else (), self._output)
                    got = wrapper(*fresh(case.args))
                if not isinstance(got, Tensor):
                    raise TransplantError(f"it returns a {type(got).__name__}, not one tensor", way_out="pass output= as for capture")
                difference = relative_error(got, expected)
                if not difference <= TOLERANCE:
                    return _Failure(None, difference)
        except GossamerError:
            raise
        except Exception as error:  # whatever the user's code raises on sizes that it does not expect
            return _Failure(error)
        finally:
            for module in training:
                module.training = True
        return None


def _original(program: Program, model: nn.Module, example_inputs: Any, cases: Sequence[_Case], output: Adapter | None) -> Program:
    """The program of the module itself."""
    first = cases[0]
    examples = example_inputs
    if examples is None:
        examples = dict(zip(first.keywords, first.args, strict=True)) if first.keywords else first.args
    free = any(None in spec.shape for spec in program.inputs)
    return capture(model, examples, output=output, dynamic_batch=free)


def _blame(failure: _Failure, twin: nn.Module, original: Program, program: Program) -> TransplantError:
    """The error that names the line whose size is wrong, and the groups that it carries."""
    if failure.error is not None:
        module, line = _innermost_module(failure.error, twin), user_line(failure.error)
        reason = f"with the new sizes it fails ({first_line(failure.error)})"
        found = re.match(r"(.*:\d+)(?: |$)", line)
        source = Path(found[1]).name if found else ""
        cause = _cause(source, module, twin, original, program)
        if cause is not None:
            reason = f"with the new sizes {line or module} fails ({first_line(failure.error)}), since this line keeps an old size"
            module, line = cause.module, cause.source
            source = line
    else:
        module, source = _first_difference(twin, original, program)
        line, reason = source, f"its code keeps an old size, and its output differs by {failure.difference:.2g} (relative)"
    groups = _groups_at(original, program, module, source)
    listed = f"{groups[:3]!r}{' and others (see .groups)' if len(groups) > 3 else ''}"
    hint = f"; or plan with Constraints(skip=...) of {listed}" if groups else ""
    error = TransplantError(reason, module=module, line=line, groups=groups, way_out=_USE_PROGRAM + hint)
    error.__cause__ = failure.error
    return error


def _cause(source: str, module: str, twin: nn.Module, original: Program, program: Program) -> Change | None:
    """The last size in the user's own code that changed before the line that fails; None when it is that line."""
    modules = dict(twin.named_modules(remove_duplicate=False))
    found = [change for change in changes(original.graph, program.graph) if change.source and not _is_layer(modules.get(change.module))]
    if any(change.source == source for change in found):
        return None
    places = [place for place, node in enumerate(program.graph.nodes) if node.source == source]
    inside = [place for place in places if f"{program.graph.nodes[place].module}.".startswith(f"{module}.")]
    failing = min(inside or places, default=len(program.graph.nodes))
    return next((change for change in reversed(found) if change.place < failing), None)


def _is_layer(module: nn.Module | None) -> bool:
    """Whether it is a layer of torch or made from one: its sizes have been fitted."""
    folders = ("torch.nn.modules.module", "torch.nn.modules.container")
    return any(cls.__module__.startswith("torch.nn.modules.") and cls.__module__ not in folders for cls in type(module).__mro__)


def _innermost_module(error: BaseException, twin: nn.Module) -> str:
    """Path of the module whose forward was running deepest in the traceback."""
    paths = {id(module): path for path, module in twin.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def _first_difference(twin: nn.Module, original: Program, program: Program) -> tuple[str, str]:
    """Module and line of the first argument that the module's own graph still has otherwise than the program's."""
    try:
        graph = capture(twin, program.example_inputs(2)).graph
    except CaptureError:
        graph = original.graph
    if same_ops(graph, program.graph):
        graph = original.graph
    left = changes(graph, program.graph)
    if left:
        return left[0].module, left[0].source
    for before, after in zip(graph.nodes, program.graph.nodes, strict=True):
        if before.op == after.op and (before.args, before.kwargs) != (after.args, after.kwargs):
            return after.module, after.source
    return "", ""


def _groups_at(original: Program, program: Program, module: str, source: str) -> tuple[str, ...]:
    """Groups that lost channels and are carried by what a line computes; by what its module reads, when there are none."""
    analysis = analyse(original)
    old, new = original.state, program.state
    shrunk = {name for name, tensor in new.items() if old[name].shape != tensor.shape}
    group_of = {int(unit): group.name for group in analysis.groups for unit in group.units}
    changed = {
        name
        for state in shrunk
        for factor in analysis.factors.get(state, ())
        for axis in lab.varying(factor)
        if old[state].shape[axis] != new[state].shape[axis]
        for name in _named(lab.vector(factor, axis), group_of)
    }

    def carried(names: Sequence[str], values: Mapping[str, Any]) -> set[str]:
        tensors = [labels for name in names for labels in tree_leaves(values.get(name)) if isinstance(labels, Tensor)]
        return {group for labels in tensors for group in _named(lab.essence(labels).reshape(-1), group_of)} & changed

    at_line = [node for node in original.graph.nodes if node.source == source]
    inside = [node for node in original.graph.nodes if node.module == module or node.module.startswith(f"{module}.")]
    steps: list[Callable[[], set[str]]] = [
        lambda: carried([node.name for node in at_line], analysis.values),
        lambda: carried([name for node in at_line for name in node.uses], analysis.values),
        lambda: carried([node.name for node in inside], analysis.values),
    ]
    found = next((groups for step in steps if (groups := step())), set())
    return tuple(group.name for group in analysis.groups if group.name in found)


def _named(units: Any, group_of: Mapping[int, str]) -> set[str]:
    return {group_of[unit] for unit in set(units.tolist()) if unit in group_of}

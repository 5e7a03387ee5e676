"""Running a graph: one loop serves inference, training, observation and shape inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.program.graph import Arg, Graph, Node, Ref, map_refs
from gossamer.program.ops import bind, function, op_of, with_arguments

TRAINING = "<training>"  # reserved values that the caller puts into the environment
DEVICE = "<device>"

Observe = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One call, ready to run: `frees` are the values that nothing reads afterwards."""

    name: str
    call: Callable[..., Any]
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    frees: tuple[str, ...]


def schedule(graph: Graph) -> tuple[Step, ...]:
    """Prepare all nodes of a graph. Raises UnsupportedOp for an op that may not run."""
    last_use: dict[str, str] = {}
    for node in graph.nodes:
        last_use[node.name] = node.name
        for name in node.uses:
            last_use[name] = node.name
    dies: dict[str, list[str]] = {}
    for name, at in last_use.items():
        if name not in graph.outputs:
            dies.setdefault(at, []).append(name)
    steps = []
    for node in graph.nodes:
        ready = _with_switches(node)
        kwargs = tuple((key, _with_device(value)) for key, value in ready.kwargs)
        frees = tuple(dies.get(node.name, ()))
        steps.append(Step(node.name, function(node.op), _with_device(ready.args), kwargs, frees))
    return tuple(steps)


def _with_switches(node: Node) -> Node:
    """Let the literal training flag of batch norm and dropout follow the program's mode."""
    flag = op_of(node).training
    if not flag:
        return node
    if "running_mean" in (bound := bind(node)) and bound["running_mean"] is None:
        return node  # a norm without running statistics uses the batch's in both modes
    return with_arguments(node, **{flag: Ref(TRAINING)})


def _with_device(arg: Arg) -> Arg:
    """Let tensors be made where the program lives now, not where it was captured."""
    if isinstance(arg, torch.device):
        return Ref(DEVICE)
    return tuple(_with_device(item) for item in arg) if isinstance(arg, tuple) else arg


def run_steps(steps: tuple[Step, ...], values: MutableMapping[str, Any], observe: Mapping[str, Observe] | Observe | None = None) -> None:
    """Run steps over `values`, adding each result and dropping it after its last use.

    `observe` sees every (name, result), or only those it has as a key, and may return a replacement (None keeps it).
    """

    def get(arg: Arg) -> Any:
        if type(arg) is Ref:
            return values[arg.name]
        return map_refs(arg, values.__getitem__) if type(arg) is tuple else arg

    for step in steps:
        result = step.call(*[get(arg) for arg in step.args], **{key: get(value) for key, value in step.kwargs})
        watcher = observe.get(step.name) if isinstance(observe, Mapping) else observe
        if watcher is not None:
            replacement = watcher(step.name, result)
            result = result if replacement is None else replacement
        values[step.name] = result
        for name in step.frees:
            values.pop(name, None)

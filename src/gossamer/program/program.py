"""A captured network: a graph with its weights, an ordinary nn.Module that trains, saves and runs anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.program.cost import Cost, count_cost
from gossamer.program.execute import DEVICE, TRAINING, Observe, Step, run_steps, schedule
from gossamer.program.graph import Graph
from gossamer.program.masks import checked_masks, through_mask
from gossamer.program.network import InputSpec

Coder = Callable[[str, Any], Any]


class Program(nn.Module):
    """A network as a graph. Parameters keep the names that they have in the user's model.

    graph       the nodes; change it only by making a new Program with `with_graph`
    inputs      what the network takes, in order
    quantizers  how values and parameters are coded; empty for a float program. Calling a quantized program rounds in
                float (fast, differentiable); `gossamer.simulate` computes with the target's integers.
    target      the runtime that quantizers were chosen for, or ""
    masks       weights of which some are zero and stay zero: name -> bool tensor, False where the weight is zero
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Iterable[InputSpec],
        state: Mapping[str, Tensor],
        *,
        quantizers: Mapping[str, Quantizer] | None = None,
        target: str = "",
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        graph.check_order()
        self.graph = graph
        self.inputs = tuple(inputs)
        self.quantizers = dict(quantizers or {})
        self.target = target
        self._holders: dict[str, tuple[nn.Module, str]] = {}  # where each state tensor lives
        for name in graph.state_names:
            if name not in state:
                raise ConfigError("state", name, "present, since the graph reads it")
            self._holders[name] = _attach(self, name, state[name])
        self.masks = checked_masks(masks or {}, self.state)
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Run the network. Inputs go by position or by name. Raises DataError for a wrong shape or dtype."""
        return self._run(inputs, named, None, self._coded)

    def run(
        self, *inputs: Tensor, observe: Mapping[str, Observe] | Observe | None = None, coder: Coder | None = None, **named: Tensor
    ) -> Any:
        """Run the network; `observe(name, value)` sees the inputs and every node's result and may replace it.

        coder  rounds values and parameters in place of `quantizers`: (name, value) -> value, called for those that have one
        """
        return self._run(inputs, named, observe, coder or self._coded)

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        named: Mapping[str, Tensor],
        observe: Mapping[str, Observe] | Observe | None,
        coder: Coder,
    ) -> Any:
        values = self._environment(self._match(inputs, named), coder)
        watch = self._watchers(observe, coder)
        for spec in self.inputs:
            watcher = watch.get(spec.name) if isinstance(watch, Mapping) else watch
            replacement = watcher(spec.name, values[spec.name]) if watcher is not None else None
            if replacement is not None:
                values[spec.name] = replacement
        run_steps(self.steps, values, watch)
        results = tuple(values[name] for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The prepared calls of the graph."""
        return schedule(self.graph)

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers that the graph reads, by name; a tied one appears under each name."""
        found: dict[str, Tensor] = {}
        for name, (module, leaf) in self._holders.items():
            parameter = module._parameters.get(leaf)
            found[name] = module._buffers[leaf] if parameter is None else parameter  # type: ignore[assignment]
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in self.state.values()), torch.device("cpu"))

    @property
    def digest(self) -> str:
        """Hash of the structure: graph, inputs, and the shapes and dtypes of the state, not its values."""
        shapes = [f"{name}{tuple(tensor.shape)}{tensor.dtype}" for name, tensor in sorted(self.state.items())]
        text = "\n".join([self.graph.digest, *map(str, self.inputs), *shapes])
        return hashlib.sha256(text.encode()).hexdigest()

    def at_once(self, samples: int = 64) -> int:
        """How many samples a call can take where `samples` are wanted: those, or the batch size that was captured as fixed."""
        return self.inputs[0].shape[0] or samples

    def cost(self) -> Cost:
        """Parameters, MACs, bytes and peak activation memory. Raises UnsupportedOp for an op with no cost rule."""
        return count_cost(self)

    def weights_digest(self) -> str:
        """Hash of the values of all weights and buffers."""
        hashed = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            hashed.update(name.encode())
            hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hashed.hexdigest()

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of the right shapes, on the program's device; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(spec.example(batch, generator).to(self.device) for spec in self.inputs)

    def copy(self) -> Program:
        """An independent copy: weights, mode and device are kept, hooks are not."""
        state = self.state
        copies = {id(tensor): tensor.detach().clone() for tensor in state.values()}
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return self.with_graph(self.graph, {name: copies[id(tensor)] for name, tensor in state.items()}, masks=masks)

    def with_graph(
        self,
        graph: Graph,
        state: Mapping[str, Tensor] | None = None,
        *,
        quantizers: Mapping[str, Quantizer] | None = None,
        target: str = "",
        masks: Mapping[str, Tensor] | None = None,
    ) -> Program:
        """A new Program of the same inputs with another graph and, where given, other state.

        Tensors are shared with `state`; parameters stay parameters, so that training can go on. Masks of weights that the
        graph still reads go along; give `masks` where shapes or zeros change. Raises ConfigError for masks that do not fit.
        """
        old = self.state
        fresh: dict[str, Tensor] = {}
        shared: dict[int, Tensor] = {}
        for name in graph.state_names:
            tensor = state[name] if state is not None and name in state else old[name]
            was = old.get(name)
            if isinstance(was, nn.Parameter) and not isinstance(tensor, nn.Parameter):
                tied = shared.get(id(was))  # a tied parameter stays one parameter
                tensor = tied if tied is not None else nn.Parameter(tensor, requires_grad=was.requires_grad)
                shared[id(was)] = tensor
            fresh[name] = tensor
        return Program(
            graph,
            self.inputs,
            fresh,
            quantizers=self.quantizers if quantizers is None else quantizers,
            target=target or self.target,
            masks={name: mask for name, mask in self.masks.items() if name in fresh} if masks is None else masks,
        ).train(self.training)

    def extra_repr(self) -> str:
        """Shown by print()."""
        shown = ", ".join(map(str, self.inputs))
        quantized = f", {len(self.quantizers)} quantizers for {self.target}" if self.quantizers else ""
        masked = f", {len(self.masks)} masks" if self.masks else ""
        return f"{shown} -> {', '.join(self.graph.outputs)}, {len(self.graph.nodes)} nodes{quantized}{masked}"

    def __repr__(self) -> str:
        return f"Program({self.extra_repr()})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        fresh = self.copy()
        memo[id(self)] = fresh
        return fresh

    def _match(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> list[Tensor]:
        names = [spec.name for spec in self.inputs]
        given = dict(zip(names, inputs, strict=False)) | dict(named)
        if len(inputs) > len(names) or set(given) != set(names):
            raise DataError(
                f"the network takes the inputs {', '.join(map(str, self.inputs))}; got {len(inputs)} by position and {sorted(named)} by name."
            )
        return [spec.check(given[spec.name]) for spec in self.inputs]

    def _environment(self, inputs: list[Tensor], coder: Coder) -> dict[str, Any]:
        values: dict[str, Any] = {name: self._masked(name, tensor) for name, tensor in self.state.items()}
        values |= {name: coder(name, values[name]) for name in self.quantizers if name in values}
        values |= {spec.name: value for spec, value in zip(self.inputs, inputs, strict=True)}
        values |= {TRAINING: self.training, DEVICE: self.device}
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Program:
        """Masks go where the weights go, such as to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.masks = checked_masks(self.masks, self.state)
        return self

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        """Gradients go through the mask; without them there is nothing to do, since masked weights are zero in memory."""
        learns = name in self.masks and tensor.requires_grad and torch.is_grad_enabled()
        return through_mask(tensor, self.masks[name]) if learns else tensor

    def _coded(self, name: str, value: Any) -> Any:
        return fake_quantize(value, self.quantizers[name])

    def _watchers(self, observe: Mapping[str, Observe] | Observe | None, coder: Coder) -> Mapping[str, Observe] | Observe | None:
        """Put rounding in front of what the caller watches."""
        if not self.quantizers:
            return observe

        def watch(name: str, value: Any) -> Any:
            if name in self.quantizers:
                value = coder(name, value)
            watcher = observe.get(name) if isinstance(observe, Mapping) else observe
            replacement = watcher(name, value) if watcher is not None else None
            return value if replacement is None else replacement

        return watch


def check_program(value: object) -> None:
    """Raise ConfigError, which says how to get one, for anything but a Program."""
    if not isinstance(value, Program):
        raise ConfigError("program", type(value).__name__, "a Program, which gossamer.capture(model, example_inputs) makes")


def check_float(program: Program) -> None:
    """Raise like check_program, and PlanError for a program whose weights or values have codes."""
    check_program(program)
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); plan from the float network.")


def _attach(root: nn.Module, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
    """Register a parameter or buffer under a dotted name, with plain modules on the way; returns its module and its name there.

    Written into the tables of nn.Module, whose methods refuse names such as "graph" or "state" that Program uses itself.
    """
    *path, leaf = name.split(".")
    module = root
    for part in path:
        inner = module._modules.get(part)
        if inner is None:
            inner = module._modules[part] = nn.Module()
        module = inner
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor
    return module, leaf

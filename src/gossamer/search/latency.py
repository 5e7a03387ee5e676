"""What a format costs in time on the target's own runtime: each layer as a small file of its own, and whole networks beside the float one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.numerics.formats import IntFormat
from gossamer.plan.site import Site, inference_graph
from gossamer.plan.spec import specs
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.network import InputSpec
from gossamer.program.ops import op_of
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes
from gossamer.progress import Progress
from gossamer.search.sensitivity import Candidates, Evidence
from gossamer.targets.coded_ends import as_bare, open_artifact
from gossamer.targets.export import export
from gossamer.targets.measure import measure_latency
from gossamer.targets.target import Runner, targets

LAYER_REPEATS, LAYER_SECONDS = 30, 0.5  # of one layer at all its formats
REPEATS, SECONDS = 40, 4.0  # of a whole network
_FLOAT = "float"


class Stopwatch:
    """Measures a float network and what is made of it, on a target with a batch and threads. Files live in a temporary folder."""

    def __init__(self, program: Program, target: str, inputs: Sequence[np.ndarray], threads: int, folder: Path) -> None:
        self._target, self._inputs, self._threads, self._folder = target, inputs, threads, folder
        self._count = 0
        self._float = self._open(program, "float")
        self._known: dict[Any, dict[str, float]] = {}
        self.float_ms = measure_latency({_FLOAT: self._float}, inputs, repeats=REPEATS, seconds=SECONDS).of[_FLOAT].median_ms

    def network_ms(self, program: Program) -> float:
        """Latency of a network's file: that of the float one times their ratio when they take turns, so that drift cancels."""
        runners = {_FLOAT: self._float, "other": self._open(program, "float")}
        found = measure_latency(runners, self._inputs, repeats=REPEATS, seconds=SECONDS)
        return self.float_ms / found.speedup(_FLOAT, "other")

    def layers_ms(self, found: Candidates, batch: int, evidence: Evidence) -> list[float]:
        """Latency of each trial's layers alone, in milliseconds. Layers alike are measured once.

        Integer layers take and give codes where the target's files can, so that no conversion counts; formats for storage cost what
        float costs.
        """
        times: list[float] = []
        cost: dict[str, dict[str, float]] = {}
        for place, trial in enumerate(found.trials):
            evidence.on_progress(Progress("layer latencies", place, len(found.trials), trial.unit.layers[0]))
            name = trial.format if trial.format in found.planned else _FLOAT
            for node in trial.unit.nodes:
                if node.name not in cost:
                    cost[node.name] = self._layer_ms(node.name, {_FLOAT: found.twin, **found.planned}, batch)
            times.append(sum(cost[node.name][name] for node in trial.unit.nodes))
        return times

    def _layer_ms(self, name: str, networks: Mapping[str, Program], batch: int) -> dict[str, float]:
        layers = {form: isolated(network, name, self._target, batch) for form, network in networks.items()}
        key = tuple((form, _likeness(layer)) for form, layer in layers.items())
        if key not in self._known:
            shape = next(iter(layers.values())).inputs[0].shape
            array = np.random.default_rng(0).standard_normal([size or batch for size in shape]).astype(np.float32)
            runners = {form: as_bare(self._open(layer, self._io(layer)), array) for form, layer in layers.items()}
            found = measure_latency(runners, [array], repeats=LAYER_REPEATS, seconds=LAYER_SECONDS)
            self._known[key] = {form: found.of[form].median_ms for form in layers}
        return self._known[key]

    def _io(self, layer: Program) -> str:
        """ "uint8" where the layer's file can take and give codes."""
        ends = [layer.quantizers.get(name) for name in (*layer.graph.inputs, *layer.graph.outputs)]
        coded = all(end is not None and isinstance(end.format, IntFormat) and end.format.bits <= 8 for end in ends)
        return "uint8" if coded and targets[self._target].emit_coded is not None else "float"

    def _open(self, program: Program, io: str) -> Runner:
        self._count += 1
        path = self._folder / f"{self._count}{targets[self._target].suffix}"
        return open_artifact(export(program, path, self._target, io=io), threads=self._threads)


@contextmanager
def stopwatch(program: Program, target: str, batch: int, threads: int) -> Iterator[Stopwatch]:
    """A stopwatch for a float network, on random inputs. Raises: like Target.open, for a runtime that is not installed."""
    inputs = [tensor.numpy() for tensor in program.copy().to("cpu").example_inputs(batch)]
    with tempfile.TemporaryDirectory() as folder:
        yield Stopwatch(program, target, inputs, threads, Path(folder))


def isolated(network: Program, name: str, target: str, batch: int) -> Program:
    """A layer as a network of its own, with the activation behind it where that is free; coded as it is there."""
    metas = infer_shapes(network, batch=batch)
    site = Site(inference_graph(network.graph), metas, specs[target])
    node = site.graph.by_name[name]
    nodes = [node]
    if network.quantizers:
        (result,) = site.results(node)
        nodes += [] if result == name else [site.graph.by_name[result]]
    source = node.uses[0]
    graph = Graph((source,), tuple(nodes), (nodes[-1].name,))
    spec = InputSpec(source, site.shape(source), metas[source].dtype)  # type: ignore[union-attr]
    names = {source, *graph.state_names, nodes[-1].name}
    quantizers = {key: quantizer for key, quantizer in network.quantizers.items() if key in names}
    state = {key: network.state[key].detach() for key in graph.state_names}
    return Program(graph, (spec,), state, quantizers=quantizers, target=network.target if quantizers else "")


def _likeness(layer: Program) -> tuple[Any, ...]:
    """What decides about a layer's time."""
    nodes = tuple(_form(node) for node in layer.graph.nodes)
    shapes = tuple(tuple(tensor.shape) for tensor in layer.state.values())
    formats = tuple(sorted(quantizer.format.name for quantizer in layer.quantizers.values()))
    return nodes, layer.inputs[0].shape, shapes, formats


def _form(node: Node) -> tuple[Any, ...]:
    literals = tuple("value" if isinstance(arg, Ref) else str(arg) for arg in node.args)
    return op_of(node).onnx, literals, str([pair for pair in node.kwargs if not isinstance(pair[1], Ref)])

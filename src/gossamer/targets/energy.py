"""Energy of one inference: an estimate from counted operations and moved bytes, and a measurement where the machine has a counter.

The two are different fields with different labels; neither ever stands for the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gossamer.errors import ConfigError
from gossamer.plan.coded import coded_nodes, has_codes
from gossamer.plan.spec import specs
from gossamer.program.cost import flat_metas, node_macs
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import BatchNorm, Pointwise
from gossamer.program.ops.own import DYNAMIC
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, infer_shapes

POWERCAP = Path("/sys/class/powercap")
SECONDS, IDLE_SECONDS = 1.0, 0.5  # of each network, and of nothing; the counters move about once a millisecond
_MJ = 1e-9  # millijoules of one picojoule


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Picojoules of one multiply-accumulate by what it computes with, and of one byte read or written, with their source."""

    mac_pj: Mapping[str, float]
    weight_byte_pj: float
    value_byte_pj: float
    source: str


HOROWITZ = Coefficients(
    mac_pj={"float32": 3.7 + 0.9, "float16": 1.1 + 0.4, "int8": 0.2 + 0.1},  # multiplication and addition; codes add up in 32 bits
    weight_byte_pj=1300 / 8,  # DRAM, 64 bits for 1.3 to 2.6 nJ; the lower end
    value_byte_pj=100 / 8,  # a memory of 1 MB on the chip, 64 bits for 100 pJ
    source="Horowitz 2014, Computing's energy problem, ISSCC, 45 nm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Of one inference, in millijoules.

    estimated_compute_mj, estimated_memory_mj  from counts and coefficients; 0 where nothing was estimated
    measured_mj                                by the machine's counter, without what it takes when idle; None without a counter
    counter                                    what counted
    """

    estimated_compute_mj: float = 0.0
    estimated_memory_mj: float = 0.0
    measured_mj: float | None = None
    counter: str = ""

    @property
    def estimated_mj(self) -> float:
        """The estimate's two parts together."""
        return self.estimated_compute_mj + self.estimated_memory_mj

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Energy:
        """Inverse of dataclasses.asdict; an empty mapping is an Energy of which nothing is known."""
        measured = data.get("measured_mj")
        return Energy(
            estimated_compute_mj=float(data.get("estimated_compute_mj", 0.0)),
            estimated_memory_mj=float(data.get("estimated_memory_mj", 0.0)),
            measured_mj=None if measured is None else float(measured),
            counter=str(data.get("counter", "")),
        )


def energy_facts(before: Energy, after: Energy) -> tuple[str, ...]:
    """The estimate, then the measurement, each in a sentence of its own that says what it is."""
    found = []
    if after.estimated_mj:
        found.append(
            f"Energy of one inference, estimate (not measured): {before.estimated_mj:.3g} mJ before, {after.estimated_mj:.3g} mJ after, of these "
            f"{after.estimated_memory_mj:.3g} for moving bytes; coefficients of {HOROWITZ.source}, weights read once from DRAM."
        )
    if before.measured_mj is not None and after.measured_mj is not None:
        found.append(
            f"Energy of one inference, measured: {before.measured_mj:.3g} mJ before, {after.measured_mj:.3g} mJ after "
            f"({after.counter}, idle power subtracted; other programs count, too)."
        )
    return tuple(found)


def estimate_energy(program: Program, coefficients: Coefficients = HOROWITZ) -> Energy:
    """Estimate one inference for one input: MACs by what they compute with, and bytes moved.

    Every weight is read once, from DRAM. Every value is written once and read once by each reader, in a memory on the chip; views cost
    nothing, and element-wise steps with one input run where that input is made. Codes of fewer than 8 bits compute as int8, and those
    of targets that compute them as floats like floats.
    Raises: UnsupportedOp for an op whose cost is not known.
    """
    if program.quantizers and specs[program.target].codes_as_floats:
        program = program.with_graph(program.graph, quantizers={})
    metas = infer_shapes(program, batch=1)
    coded = coded_nodes(program)
    compute = sum(node_macs(node, metas) * coefficients.mac_pj[_arithmetic(program, node, metas, coded)] for node in program.graph.nodes)
    memory = program.cost().size_bytes * coefficients.weight_byte_pj + _value_bytes(program, metas) * coefficients.value_byte_pj
    return Energy(estimated_compute_mj=compute * _MJ, estimated_memory_mj=memory * _MJ)


def _arithmetic(program: Program, node: Node, metas: Mapping[str, Meta], coded: Mapping[str, object]) -> str:
    if node.name in coded:
        return "int8"
    weight = bind(node).get("weight") if op_of(node).onnx else None
    makers = [program.graph.by_name[name].op for name in node.uses if name in program.graph.by_name]
    if DYNAMIC in makers and isinstance(weight, Ref) and has_codes(program.quantizers, weight.name):
        return "int8"
    narrow = all(meta.dtype in (torch.float16, torch.bfloat16) for meta in flat_metas(metas[node.name]))
    return "float16" if narrow else "float32"


def _value_bytes(program: Program, metas: Mapping[str, Meta]) -> float:
    """Bytes written and read of all values that exist in a memory."""
    graph = program.graph
    state = set(graph.state_names)
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in set(node.uses) - state:
            readers.setdefault(name, []).append(node)
    total = 0.0
    for name in (*graph.inputs, *(node.name for node in graph.nodes)):
        using = readers.get(name, [])
        if name not in graph.outputs and len(using) == 1 and _runs_where_made(using[0], state):
            continue
        for meta in flat_metas(metas[name]):
            view = name in graph.by_name and any(
                meta.storage == other.storage for source in graph.by_name[name].uses for other in flat_metas(metas[source])
            )
            quantizer = program.quantizers.get(name)
            size = meta.size_bytes if quantizer is None else meta.numel * quantizer.format.bits / 8
            total += size * ((0 if view else 1) + len(using))
    return total


def _runs_where_made(node: Node, state: set[str]) -> bool:
    return isinstance(op_of(node).kind, (Pointwise, BatchNorm)) and len(set(node.uses) - state) == 1


@dataclass(frozen=True, slots=True)
class Counter:
    """The energy counters of the machine's processor packages (RAPL). `name` says which."""

    folders: tuple[Path, ...]
    name: str

    def read_uj(self) -> tuple[int, ...]:
        """Microjoules of each package since some start."""
        return tuple(int((folder / "energy_uj").read_text()) for folder in self.folders)

    def spent_uj(self, before: Sequence[int], after: Sequence[int]) -> int:
        """Between two readings; a counter that started again in between is made up for."""
        spent = 0
        for folder, start, end in zip(self.folders, before, after, strict=True):
            spent += end - start if end >= start else end - start + int((folder / "max_energy_range_uj").read_text())
        return spent


def find_counter(root: Path = POWERCAP) -> Counter | None:
    """The counters that this process may read; None where there are none."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:  # a whole package; its parts are below it
            try:
                int((folder / "energy_uj").read_text())
            except (OSError, ValueError):
                return None
            found.append(folder)
    return Counter(tuple(found), f"RAPL, {', '.join(folder.name for folder in found)}") if found else None


@dataclass(frozen=True, slots=True)
class Clock:
    """How time passes; tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


def measure_energy(
    runs: Mapping[str, Callable[[], object]], counter: Counter, inputs: int, *, seconds: float = SECONDS, clock: Clock = Clock()
) -> dict[str, float]:
    """Millijoules that one input costs each of `runs`, which work through `inputs` inputs a call: repeated for `seconds`, less idle power.

    The counters see all programs on the machine, so only an idle machine gives the network's own figure.
    Raises: ConfigError for no inputs or no time.
    """
    if inputs < 1 or seconds <= 0:
        raise ConfigError("measure_energy", (inputs, seconds), "given at least 1 input and a positive time")
    idle, passed = _spent(counter, lambda: clock.sleep(IDLE_SECONDS), clock)
    idle_uw = idle / max(passed, 1e-9)
    found = {}
    for name, run in runs.items():
        calls = 0

        def repeat(run: Callable[[], object] = run) -> None:
            nonlocal calls
            start = clock.now()
            while calls == 0 or clock.now() - start < seconds:
                run()
                calls += 1

        used, passed = _spent(counter, repeat, clock)
        found[name] = max(used - idle_uw * passed, 0.0) / (calls * inputs) / 1000
    return found


def _spent(counter: Counter, work: Callable[[], object], clock: Clock) -> tuple[int, float]:
    """Microjoules and seconds of some work."""
    before, start = counter.read_uj(), clock.now()
    work()
    passed, after = clock.now() - start, counter.read_uj()
    return counter.spent_uj(before, after), passed

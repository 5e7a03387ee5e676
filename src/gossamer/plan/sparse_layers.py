"""What sparsity planning looks at: weights of layers, second moments of their inputs, the damage that zeros in one do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.batches import Batches
from gossamer.errors import DataError, PlanError, nearest
from gossamer.numerics.moments import Moments, add_moments, moments_of
from gossamer.numerics.sparsity import keep_largest
from gossamer.plan.calibrate import chunks
from gossamer.plan.columns import columns_at, has_columns
from gossamer.plan.plan import Frozen
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear, Recurrent
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress

SAMPLES_PER_COLUMN = 4  # input vectors that second moments are taken from, for each number in one
FEWEST_SAMPLES = 4096
WIDEST = 8192  # inputs of a layer up to which second moments are collected: memory grows with the square
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # shares of zeros at which damage is measured
DAMAGE_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Site:
    """One weight that can hold zeros: `names` are its names (several where it is tied), `nodes` the layers that read it."""

    names: tuple[str, ...]
    nodes: tuple[Node, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def transposed(self) -> bool:
        """Whether axis 1 is no input axis for some reader."""
        return any(isinstance(kind := op_of(node).kind, Convolution) and kind.transposed for node in self.nodes)

    @property
    def aliases(self) -> set[str]:
        """What a user may call it: the weight, its layer, a node."""
        return {
            alias
            for name in (*self.names, *(node.name for node in self.nodes), *(node.module for node in self.nodes if node.module))
            for alias in (name, name.removesuffix(".weight"))
        }


def find_sites(program: Program) -> tuple[list[Site], list[Frozen]]:
    """Weights of convolutions, linear and recurrent layers, in order of use; and what else is large and stays dense."""
    state = program.state
    readers: dict[int, list[Node]] = {}
    frozen: list[Frozen] = []
    for node in program.graph.nodes:
        for argument in _weights(node):
            tensor = state.get(argument.name) if isinstance(argument, Ref) else None
            if isinstance(tensor, nn.Parameter) and tensor.dim() >= 2:
                readers.setdefault(id(tensor), []).append(node)
            elif tensor is None:
                frozen.append(Frozen(node.module or node.name, "its weight is computed from others; zeros would not stay zero"))
    sites = []
    for key, nodes in readers.items():
        names = tuple(name for name, tensor in state.items() if id(tensor) == key)
        sites.append(Site(names, tuple(nodes), tuple(state[names[0]].shape)))
    for name, tensor in state.items():
        if isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and id(tensor) not in readers:
            frozen.append(Frozen(name, "is no weight of a convolution, linear or recurrent layer"))
    return sites, frozen


def _weights(node: Node) -> Iterable[Any]:
    match op_of(node).kind:
        case Convolution() | Linear():
            return (bind(node)["weight"],)
        case Recurrent():
            return tuple(bind(node)["params"])
    return ()


def pick_sites(sites: Sequence[Site], skip: Collection[str], only: Collection[str]) -> tuple[list[Site], list[Frozen]]:
    """The sites that the user wants, each named by weight, layer, or a module that holds it.

    Raises: PlanError for a name that does not exist (suggests the nearest).
    """
    known = {alias for site in sites for alias in site.aliases}
    matched: dict[str, set[str]] = {}
    for what, names in (("skip", skip), ("only", only)):
        for name in names:
            matched[name] = {site.name for site in sites if any(alias == name or alias.startswith(f"{name}.") for alias in site.aliases)}
            if not matched[name]:
                raise PlanError(f"{what} names {name!r}, which is no layer that can hold zeros; {nearest(name, known)}")
    skipped = {site: name for name in skip for site in matched[name]}
    wanted = {site for name in only for site in matched[name]} or {site.name for site in sites}
    frozen = [Frozen(site.name, f"skipped as asked ({skipped[site.name]})") for site in sites if site.name in skipped]
    frozen += [Frozen(site.name, "not among only=") for site in sites if site.name not in wanted and site.name not in skipped]
    return [site for site in sites if site.name in wanted and site.name not in skipped], frozen


def input_moments(
    program: Program, sites: Sequence[Site], batches: Batches, on_progress: OnProgress
) -> tuple[dict[str, Tensor], list[Frozen]]:
    """E[x xᵀ] (G, K, K) of what each weight is multiplied with; and the sites that have no such thing.

    Raises: DataError for data that is empty, or makes NaN or infinite values; PlanError for a layer that is too wide.
    """
    measured = [site for site in sites if all(has_columns(node) for node in site.nodes)]
    frozen = [Frozen(site.name, "its inputs are not gathered (transposed or recurrent)") for site in sites if site not in measured]
    readers: dict[str, list[tuple[Site, Node]]] = {}
    for site in measured:
        columns = math.prod(site.shape[1:])
        if columns > WIDEST:
            raise PlanError(f"{site.name!r} has {columns:,} inputs, more than the {WIDEST:,} that are solved for; skip it.")
        for node in site.nodes:
            readers.setdefault(bind(node)["input"].name, []).append((site, node))
    state, random = program.state, torch.Generator().manual_seed(0)
    total = len(batches)
    expected = total * batches.first()[0][0].shape[0] or 128
    found: dict[str, Moments] = {}

    def watch(name: str, value: Any) -> None:
        for site, node in readers[name]:
            columns = math.prod(site.shape[1:])
            limit = math.ceil(max(FEWEST_SAMPLES, SAMPLES_PER_COLUMN * columns) * value.shape[0] / expected)
            sample = columns_at(node, state[site.name].detach(), value, limit, random)
            seen = moments_of(sample.to(torch.float64 if columns <= 1024 else torch.float32), second=True)
            found[site.name] = add_moments(found[site.name], seen) if site.name in found else seen

    copy = program.copy().eval()
    with torch.inference_mode():
        for done, (inputs, _) in enumerate(batches):
            on_progress(Progress("moments", done, total))
            for chunk in chunks(copy, inputs):
                copy.run(*chunk, observe=dict.fromkeys(readers, watch))
    on_progress(Progress("moments", total, total))
    moments = {name: _checked(name, seen) for name, seen in found.items()}
    return moments, frozen


def _checked(name: str, seen: Moments) -> Tensor:
    second = seen.covariance(centred=False)
    if not bool(torch.isfinite(second).all()):
        raise DataError(f"the calibration data makes NaN or infinite inputs of {name!r}; clean the data or the weights.")
    return second.clone()


def measure_damage(program: Program, sites: Sequence[Site], batches: Batches, on_progress: OnProgress) -> Mapping[str, list[float]]:
    """Relative squared error of the outputs when one weight alone has its smallest numbers zero, at each of RATIOS.

    Uses the first 256 samples or so. Raises: DataError for data that is empty or does not fit.
    """
    copy = program.copy().eval()
    state = copy.state
    data: list[tuple[Tensor, ...]] = []
    for inputs, _ in batches:
        data += list(chunks(copy, inputs))
        if sum(len(part[0]) for part in data) >= DAMAGE_SAMPLES:
            break
    damages: dict[str, list[float]] = {}
    with torch.inference_mode():
        wanted = [_outputs(copy, part) for part in data]
        size = sum(float(out.square().sum()) for out in wanted) or 1.0
        for done, site in enumerate(sites):
            on_progress(Progress("sensitivity", done, len(sites), site.name))
            weight = state[site.name].data
            whole = weight.clone()
            damages[site.name] = []
            for ratio in RATIOS:
                weight.copy_(torch.where(keep_largest([whole.abs()], round(ratio * site.size))[0], whole, 0.0))
                error = sum(float((_outputs(copy, part) - out).square().sum()) for part, out in zip(data, wanted, strict=True))
                damages[site.name].append(error / size)
            weight.copy_(whole)
    on_progress(Progress("sensitivity", len(sites), len(sites)))
    return damages


def _outputs(program: Program, inputs: tuple[Tensor, ...]) -> Tensor:
    outputs = program(*inputs)
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.cat([part.to(torch.float64).reshape(-1) for part in parts if isinstance(part, Tensor) and part.is_floating_point()])

"""Linear layers on an NVIDIA GPU by torch's own kernels: INT8 (torch._int_mm), FP8 (torch._scaled_mm) and 2:4 sparse weights.

Why: the target "torch" computes codes in float32, so it cannot show what a GPU's integer, FP8 and sparse units give. This does, layer by
layer. Each kernel's result is first compared with the same codes multiplied in float64; only then is it timed, with CUDA events, in turns
with float16 and float32 layers of the same size. Without a GPU nothing is measured and nothing is written.
(A file called cuda.py beside other benchmarks would hide the package `cuda`, which torch imports.)

    python benchmarks/cuda_linears.py    writes benchmarks/results/cuda.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from common import header, write
from torch import Tensor

from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import FLOAT_FORMATS, FloatFormat, IntFormat, PerAxis
from gossamer.numerics.sparsity import keep_n_of_m

SEED, REPEATS, WARMUP = 0, 100, 10
SIZES = ((128, 1024, 1024), (1024, 1024, 4096), (1024, 4096, 4096), (4096, 4096, 4096), (4096, 4096, 16384))  # rows, inputs, outputs
INT8, FP8 = IntFormat(bits=8, narrow=True), FLOAT_FORMATS["fp8_e4m3"]
TOLERANCE = 4e-3  # relative, root mean square: results are rounded to float16 or bfloat16


@dataclass(frozen=True, eq=False)
class Layer:
    """One way to compute a linear layer: `call(x)` gives (rows, outputs) for x (rows, inputs), `exact(x)` the same codes in float64."""

    name: str
    call: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Checked:
    """error: of the kernel against float64, relative; sqnr_db: of the layer against the float64 layer without codes or zeros."""

    error: float
    sqnr_db: float


def codes_of_rows(x: Tensor, fmt: IntFormat | FloatFormat) -> tuple[Tensor, Tensor]:
    """Symmetric codes with one scale for each row, as layers quantize their input while they run. Shapes: (N, K) -> (N, K), (N, 1)."""
    scale = x.detach().float().abs().amax(1, keepdim=True) / fmt.hi
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled = x.float() / scale
    codes = scaled.round().clamp(fmt.lo, fmt.hi).to(torch.int8) if isinstance(fmt, IntFormat) else scaled.clamp(fmt.lo, fmt.hi)
    return (codes if isinstance(fmt, IntFormat) else codes.to(torch.float8_e4m3fn)), scale


def codes_of_weight(weight: Tensor, fmt: IntFormat | FloatFormat) -> tuple[Tensor, Tensor]:
    """Codes of a weight by this package's own rounding, one scale for each output. Shapes: (O, I) -> (O, I), (1, O)."""
    bound = weight.detach().float().abs().amax(1)
    scale = torch.where(bound > 0, bound / fmt.hi, torch.ones_like(bound))
    quantizer = Quantizer(fmt, PerAxis(0), tuple(scale.tolist()), (0,) * len(scale))
    codes = quantize(weight.detach().float(), quantizer)
    return codes.to(torch.int8 if isinstance(fmt, IntFormat) else torch.float8_e4m3fn), scale.reshape(1, -1)


def int8_layer(weight: Tensor, out: torch.dtype) -> Layer:
    """Codes of both sides multiplied and added up in int32. Needs more than 16 rows, and inputs and outputs in eights, on CUDA."""
    codes, scale = codes_of_weight(weight, INT8)
    turned = codes.t()

    def call(x: Tensor) -> Tensor:
        rows, row_scale = codes_of_rows(x, INT8)
        return (torch._int_mm(rows, turned).float() * row_scale * scale).to(out)

    def exact(x: Tensor) -> Tensor:
        rows, row_scale = codes_of_rows(x, INT8)
        return rows.double() @ codes.double().t() * row_scale.double() * scale.double()

    return Layer("int8", call, exact)


def fp8_layer(weight: Tensor, out: torch.dtype) -> Layer:
    """e4m3 codes of both sides, one scale for each row and each output. On CUDA: compute capability 9.0 and bfloat16 results."""
    codes, scale = codes_of_weight(weight, FP8)
    turned = codes.t()

    def call(x: Tensor) -> Tensor:
        rows, row_scale = codes_of_rows(x, FP8)
        return torch._scaled_mm(rows, turned, scale_a=row_scale, scale_b=scale, out_dtype=out)

    def exact(x: Tensor) -> Tensor:
        rows, row_scale = codes_of_rows(x, FP8)
        return rows.double() @ codes.double().t() * row_scale.double() * scale.double()

    return Layer("fp8", call, exact)


def sparse_weight(weight: Tensor) -> Tensor:
    """The weight with the two smallest of every four inputs at zero. Shape: (O, I), I a multiple of 4."""
    return weight * keep_n_of_m(weight.abs(), 2, 4)


def sparse_layer(weight: Tensor, out: torch.dtype) -> Layer:
    """2:4 sparse float16 weights, held packed. CUDA only."""
    from torch.sparse import to_sparse_semi_structured

    dense = sparse_weight(weight).to(out)
    packed = to_sparse_semi_structured(dense)
    return Layer("2:4", lambda x: F.linear(x.to(out), packed), lambda x: x.to(out).double() @ dense.double().t())


def plain_layer(weight: Tensor, out: torch.dtype) -> Layer:
    """The layer in float16 or float32."""
    dense = weight.to(out)
    name = str(out).removeprefix("torch.")
    return Layer(name, lambda x: F.linear(x.to(out), dense), lambda x: x.to(out).double() @ dense.double().t())


def check(layer: Layer, x: Tensor, weight: Tensor) -> Checked:
    """Compare a layer with float64. Raises RuntimeError for one whose kernel computes something else."""
    got, exact, truth = layer.call(x).double(), layer.exact(x), x.double() @ weight.double().t()
    error = float((got - exact).norm() / exact.norm())
    if not error <= TOLERANCE:
        raise RuntimeError(f"{layer.name} is {error:.2g} from its float64 reference at {tuple(x.shape)} x {tuple(weight.shape)}")
    return Checked(error, float(20 * torch.log10(truth.norm() / (got - truth).norm())))


def timed(calls: Mapping[str, Callable[[], Any]], event: Callable[[], Any], wait: Callable[[], None]) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turns between two events. `event()` makes one; `wait()` until all work is done."""
    for _ in range(WARMUP):
        for call in calls.values():
            call()
    wait()
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start, end = event(), event()
            start.record()
            call()
            end.record()
            marks[name].append((start, end))
    wait()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in marks.items()}


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, and the range of the middle 80 %."""
    tenths = statistics.quantiles(times, n=10)
    return {"median_ms": statistics.median(times), "p10_ms": tenths[0], "p90_ms": tenths[-1]}


def layers_for(weight: Tensor, capability: tuple[int, int]) -> tuple[list[Layer], dict[str, str]]:
    """The layers that a GPU of this compute capability has kernels for, plain ones first, and why it has not the others."""
    layers = [plain_layer(weight, torch.float32), plain_layer(weight, torch.float16), int8_layer(weight, torch.float16)]
    missing = {}
    if capability >= (9, 0):
        layers.append(fp8_layer(weight, torch.bfloat16))
    else:
        missing["fp8"] = f"scales by row need compute capability 9.0, this GPU has {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        layers.append(sparse_layer(weight, torch.float16))
    else:
        missing["2:4"] = f"sparse units need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return layers, missing


def measure(size: tuple[int, int, int], capability: tuple[int, int]) -> dict[str, Any]:
    """Check and time all layers of one size on the GPU, quantizing the input included; compiled, so that it costs one kernel."""
    rows, inputs, outputs = size
    generator = torch.Generator().manual_seed(SEED)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).cuda()
    x = torch.randn(rows, inputs, generator=generator).cuda()
    layers, missing = layers_for(weight, capability)
    checked = {layer.name: check(layer, x, weight) for layer in layers}
    given = {layer.name: x if layer.name == "float32" else x.half() for layer in layers}
    compiled = {layer.name: layer.call if layer.name == "2:4" else torch.compile(layer.call, dynamic=False) for layer in layers}
    calls = {name: (lambda call=call, name=name: call(given[name])) for name, call in compiled.items()}
    times = timed(calls, lambda: torch.cuda.Event(enable_timing=True), torch.cuda.synchronize)
    base = statistics.median(times["float16"])
    found = {
        name: {**asdict(checked[name]), **summary(each), "speedup_over_float16": base / statistics.median(each)}
        for name, each in times.items()
    }
    return {"rows": rows, "inputs": inputs, "outputs": outputs, "layers": found, "missing": missing}


def main() -> None:
    """Measure on a GPU, or say that there is none."""
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    capability = torch.cuda.get_device_capability()
    with torch.inference_mode():
        results = [measure(size, capability) for size in SIZES]
    facts = {"gpu": torch.cuda.get_device_name(), "capability": list(capability), "cuda": torch.version.cuda}
    write("cuda", header(("torch",), **facts, seed=SEED, repeats=REPEATS, warmup=WARMUP) | {"results": results})


if __name__ == "__main__":
    main()

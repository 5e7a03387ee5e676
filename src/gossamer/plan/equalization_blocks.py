"""What moving scale does to weights that get one scale for each block of a row, while values stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gossamer.batches import Batches, as_batches
from gossamer.errors import ConfigError
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import IntFormat
from gossamer.numerics.ranges import choose_block_quantizer
from gossamer.plan.equalization import EqualizationJob, Move, equalizations, equalized
from gossamer.plan.equalization_sites import few_samples
from gossamer.plan.equalization_trial import Trial
from gossamer.plan.site import Layer
from gossamer.program.ops.own import dynamic_quantize
from gossamer.program.program import Program


@dataclass(frozen=True, eq=False)
class BlockCoding:
    """How weights in blocks round: formats by node, weights per block, range method, and bits to which inputs are rounded, 0 for none."""

    formats: Mapping[str, IntFormat]
    block: int
    ranges: str
    input_bits: int

    def quantizer(self, node: str, weight: Tensor) -> Quantizer:
        """Scales of the blocks of each row."""
        return choose_block_quantizer(weight, self.formats[node], self.ranges, size=self.block)

    def weight(self, node: str, weight: Tensor) -> Tensor:
        """Nearest codes, one scale for each block of a row."""
        return fake_quantize(weight, self.quantizer(node, weight))

    def columns(self, columns: Tensor) -> Tensor:
        """Rounded as the kernels round what they read while they run."""
        if not self.input_bits:
            return columns
        return dynamic_quantize(columns.transpose(1, 2), self.input_bits, self.block).transpose(1, 2)

    def quantized(self, program: Program, layers: Sequence[Layer]) -> Program:
        """The program with codes for the weights of these layers; inputs are not rounded."""
        coded = {layer.weight: self.quantizer(layer.node, program.state[layer.weight].detach()) for layer in layers}
        return program.with_graph(program.graph, quantizers=coded)


def equalize_blocks(
    program: Program, layers: Sequence[Layer], calibration: object, coding: BlockCoding, name: str
) -> tuple[Program, tuple[Move, ...]]:
    """The program with scale moved by the named method, and the edits that do it.

    Raises: ConfigError for an unknown method, and for one that needs data where there is none; DataError for data that cannot be used.
    """
    method = equalizations[name]
    if method.data and calibration is None:
        raise ConfigError("calibration", None, f"given for equalization={name!r}, which looks at values")
    samples: Batches | None = None
    if calibration is not None and name != "none":
        samples = few_samples(program, as_batches(calibration, what="calibration", batch_size=program.at_once()))
    trial = None if samples is None else Trial(program, samples, lambda changed, _: coding.quantized(changed, layers)).error
    coded = frozenset(layer.node for layer in layers)
    return equalized(EqualizationJob(program, coded=coded, samples=samples, coder=coding, trial=trial), name)

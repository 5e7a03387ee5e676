"""What a target can run, as data: the quantization planner and the simulator read it, nobody guesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gossamer.numerics.formats import FloatFormat, IntFormat
from gossamer.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """Capabilities of one runtime; with a name alone, of one that computes in float only. Ops are named as in the op table's `onnx` column.

    weight_formats      formats of weights it computes with, best first
    activation_formats  formats of activations it computes with, best first
    float_formats       formats in which it stores weights that it computes with in float32
    packed_bits         bits that its files spend on a code of a weight: a code of any width takes the next of these
    packed_ops          ops whose weights are packed so, where that fills whole bytes of each row; others take a byte a code. Empty: all, without gaps
    integer_ops         ops it runs on integer codes when inputs, weights and result have quantizers
    same_scale_ops      ops that only pass codes on: inputs and result share one quantizer
    absorbed_ops        activations that cost nothing after an integer op: the result's code range clips
    float_result_ops    integer ops that can hand out a float result without a quantizer of their own
    gate_ops            integer ops with results in [0, 1] that need codes of scale 2^-bits from the lowest code on
    signed_gate_ops     integer ops with results in [-1, 1] that need codes of scale 2^(1 - bits) with their zero point at 0
    channel_slopes      a PReLU on codes may have a slope for each channel, not only one for all
    number_ops          integer ops that may have a plain number in place of a second value
    parameter_ops       integer ops that may have a parameter in place of a second value: files hold it as codes of 8 bits with one scale
    requantization      name of the rounding from accumulator to code, as the simulator computes it
    add_tolerance_steps how far an integer Add may be from the simulator, in code steps
    tolerance_steps     likewise for every other op on integers
    exposed_as_run      whether a file that hands out inner codes runs the same kernels as one that does not; where not, parity
                        of outputs is that of such a file, and the user's file must be as near to it as its own rounding noise
    one_sample          it runs one sample at a time, so that its values are compared sample by sample
    least_channels      convolutions that read fewer channels (depthwise ones aside) are faster in float,
    least_products      unless they multiply at least as many numbers for each pixel
    group_channels      convolutions of several groups (depthwise ones aside) are written with groups of about so many channels, merged; 0 as they are
    least_group_channels  convolutions of several groups (depthwise ones aside) that read fewer channels in each are faster in float
    dynamic_formats     formats of weights whose matrix products quantize their input while they run, to unsigned codes of
                        input_bits; () for none
    block_formats       formats of weights that its matrix products take with one scale per block, best first; () for none
    table_formats       formats of embedding tables of which it reads only the rows that are picked, best first; () for float
    block_sizes         weights per block, the usual one first
    input_bits          of the codes to which those products can round their input while they run; 0 when they cannot
    input_rows          whether dynamic products find a scale and zero point for each row of the input, not for all of it
    rounded_only        formats among block_formats that are slower than float unless the input is rounded
    width_multiple      channel counts that its kernels like
    symmetric_values    codes of values have their zero point in the middle, at 0 where they are signed
    float_biases        layers add their biases in float, so that files hold them as they are
    guarded             its files are written so that ONNX Runtime's optimizer keeps what is meant: one scale repeated for each channel
                        where a float layer reads codes, clamps behind pools
    coded_residuals     where a layer's float result is only added to another value, and the sum gets codes, that value needs codes, too
    fused_ops           float ops that run inside the kernel of the integer layer before them, so that nothing is lost there
    transparent_ops     ops that only move numbers, past which the target moves codes on its own
    codes_as_floats     it computes codes as floats rounded to what codes can hold: nothing gets smaller, faster or cheaper by them
    rows_only           linear layers on codes read matrices: inputs of more axes are made two around them
    floats_beside_codes what a float op makes is read as floats by float ops, also where others read its codes
    code_products       products of two values get codes even where no layer is next to them, and attention is split for their sake;
                        what they read has its zero point at 0
    wide_ops            ops that it runs on codes of values of more than 8 bits,
    wide_requantization and the name of their rounding
    wrong_cases         cases of integer ops (gossamer.plan.integer_cases) that it computes wrongly on codes, or not at all: they stay float
    float_weights       cases of layers (likewise) whose weights have no codes of their own in its files, so that they stay float where values do
    written_otherwise   what it computes wrongly, or slowly, as it is usually written: "steps" of 1 x 1 convolutions behind padding (the pixels that they
                        read are picked in front of them), codes of "extremes" (made behind a reshape), convolutions of "few channels", depthwise ones of
                        "partial blocks" of channels, "twins": equal layers that read one value (made to differ)
    fused_clamps        integer ops clamp their result at 0, or at 0 and 6, whatever its codes reach
    """

    name: str
    weight_formats: tuple[IntFormat, ...] = ()
    activation_formats: tuple[IntFormat, ...] = ()
    integer_ops: frozenset[str] = frozenset()
    same_scale_ops: frozenset[str] = frozenset()
    absorbed_ops: frozenset[str] = frozenset()
    float_result_ops: frozenset[str] = frozenset()
    requantization: str = "float32-half-even"
    float_formats: tuple[FloatFormat, ...] = ()
    packed_bits: tuple[int, ...] = (8,)
    packed_ops: frozenset[str] = frozenset()
    gate_ops: frozenset[str] = frozenset()
    signed_gate_ops: frozenset[str] = frozenset()
    number_ops: frozenset[str] = frozenset()
    parameter_ops: frozenset[str] = frozenset()
    channel_slopes: bool = False
    add_tolerance_steps: int = 0
    tolerance_steps: int = 0
    exposed_as_run: bool = True
    one_sample: bool = False
    least_channels: int = 1
    least_products: int = 2**31
    group_channels: int = 0
    least_group_channels: int = 1
    dynamic_formats: tuple[IntFormat, ...] = ()
    block_formats: tuple[IntFormat, ...] = ()
    table_formats: tuple[IntFormat, ...] = ()
    block_sizes: tuple[int, ...] = ()
    input_bits: int = 0
    input_rows: bool = False
    rounded_only: frozenset[str] = frozenset()
    width_multiple: int = 1
    symmetric_values: bool = False
    float_biases: bool = False
    guarded: bool = True
    coded_residuals: bool = False
    fused_ops: frozenset[str] = frozenset()
    transparent_ops: frozenset[str] = frozenset()
    codes_as_floats: bool = False
    rows_only: bool = True
    code_products: bool = False
    floats_beside_codes: bool = False
    wide_ops: frozenset[str] = frozenset()
    wide_requantization: str = ""
    wrong_cases: frozenset[str] = frozenset()
    float_weights: frozenset[str] = frozenset()
    written_otherwise: frozenset[str] = frozenset()
    fused_clamps: bool = False

    def for_values(self, bits: int) -> TargetSpec:
        """What it can run when values have codes of so many bits: kernels of more than 8 are fewer, and their codes are symmetric."""
        formats = tuple(fmt for fmt in self.activation_formats if (fmt.bits > 8) == (bits > 8))
        if bits <= 8:
            return replace(self, activation_formats=formats)
        return replace(
            self,
            activation_formats=formats,
            integer_ops=self.wide_ops,
            same_scale_ops=self.same_scale_ops & self.wide_ops,
            requantization=self.wide_requantization,
            gate_ops=frozenset(),
            signed_gate_ops=frozenset(),
            number_ops=frozenset(),
            parameter_ops=frozenset(),
            code_products=False,
            symmetric_values=True,
            fused_clamps=True,
        )


specs: Registry[TargetSpec] = Registry("target", home="gossamer.targets")


def able_targets(able: Callable[[TargetSpec], bool]) -> str:
    """Names of the targets that can do something, for errors of one that cannot."""
    return ", ".join(sorted(entry.name for entry in specs if able(entry.value)))

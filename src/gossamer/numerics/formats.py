"""Number formats and how many of them a tensor gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossamer.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class IntFormat:
    """An integer code range. `narrow` gives up the lowest code so that lo == -hi."""

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ConfigError("IntFormat.bits", self.bits, "an int in [2, 32]")
        if self.narrow and not self.signed:
            raise ConfigError("IntFormat.narrow", True, "False for an unsigned format")

    @property
    def lo(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def hi(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def name(self) -> str:
        """The usual short name, such as int8 or uint8."""
        return f"{'' if self.signed else 'u'}int{self.bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """Floating-point numbers of a sign, `exponent_bits` and `mantissa_bits`; a code is such a number.

    Rounding is to nearest, half to even, with subnormal numbers, and saturates: what lies beyond the largest finite number, infinity
    included, becomes that number (hardware differs in this; NaN stays NaN). `top_is_finite`: the highest exponent holds numbers,
    too, all but the highest, as in e4m3fn.
    Source: IEEE 754-2019; Micikevicius et al. 2022, arXiv:2209.05433 (e4m3, e5m2).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    top_is_finite: bool = False

    @property
    def bits(self) -> int:
        """Of one number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def signed(self) -> bool:
        """Always; an IntFormat may be unsigned."""
        return True

    @property
    def least_exponent(self) -> int:
        """Of a normal number; smaller ones have the steps of this exponent."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def hi(self) -> float:
        """The largest finite number."""
        highest = (1 << (self.exponent_bits - 1)) - 1 + self.top_is_finite
        return math.ldexp(2 - math.ldexp(1.0, self.top_is_finite - self.mantissa_bits), highest)

    @property
    def lo(self) -> float:
        """The lowest finite number."""
        return -self.hi


FLOAT_FORMATS = {
    fmt.name: fmt
    for fmt in (
        FloatFormat(name="fp16", exponent_bits=5, mantissa_bits=10),
        FloatFormat(name="bf16", exponent_bits=8, mantissa_bits=7),
        FloatFormat(name="fp8_e4m3", exponent_bits=4, mantissa_bits=3, top_is_finite=True),
        FloatFormat(name="fp8_e5m2", exponent_bits=5, mantissa_bits=2),
    )
}

Format = IntFormat | FloatFormat


def parse_any_format(name: str) -> Format:
    """Turn "int8", "uint4", "fp16" ... into a format. Raises ConfigError for other text."""
    if isinstance(name, str) and name in FLOAT_FORMATS:
        return FLOAT_FORMATS[name]
    if isinstance(name, str) and name.startswith(("fp", "bf", "float")):
        raise ConfigError("format", name, f"one of {', '.join(FLOAT_FORMATS)}, or intN or uintN")
    return parse_format(name)


def parse_format(name: str) -> IntFormat:
    """Turn "int8" or "uint4" into an IntFormat. Raises ConfigError for other text."""
    text = name.removeprefix("u") if isinstance(name, str) else ""
    if not text.startswith("int") or not text[3:].isdigit():
        raise ConfigError("format", name, "intN or uintN, such as 'int8' or 'uint8'")
    return IntFormat(bits=int(text[3:]), signed=not name.startswith("u"))


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: scale has shape ()."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per position of `axis`: for x (O, I, *K) and axis 0 the scale broadcasts as (O, 1, ...)."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per run of `size` positions along `axis`, for each position of the other axes; the last run may be shorter.

    For x (O, I) and axis 1 there are O * ceil(I / size) scales, those of a row next to each other.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("PerBlock.size", self.size, "at least 1")

    def count(self, length: int) -> int:
        """Blocks along an axis of that length."""
        return -(-length // self.size)


Granularity = PerTensor | PerAxis | PerBlock

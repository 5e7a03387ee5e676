"""Number formats and how many of them a tensor gets."""

from __future__ import annotations

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


def parse_format(name: str) -> IntFormat:
    """Turn "int8" or "uint4" into an IntFormat. Raises ConfigError for other text."""
    text = name.removeprefix("u")
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

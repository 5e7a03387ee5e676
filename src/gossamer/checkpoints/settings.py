"""What a compression does, as data: the format, the blocks, and which tensors get codes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gossamer.checkpoints.tensor_file import BITS, StoredTensor
from gossamer.errors import ConfigError, nearest
from gossamer.numerics.formats import IntFormat, parse_format
from gossamer.numerics.packing import packed_size
from gossamer.numerics.ranges import weight_range_methods

FLOATS = ("F32", "F16", "BF16")
LARGEST_BLOCK = 16_384
SCALES = {"float32": "F32", "bfloat16": "BF16"}  # no float16: scales of small weights would vanish in it
_EMBEDDING = re.compile(
    r"(^|_)(embs?|embeds?|[a-z]*embeddings?|wte|wpe)(_|$)|^(shared|relative_attention_bias)$", re.IGNORECASE
)  # of modules


@dataclass(frozen=True, slots=True)
class CodeSettings:
    """How weights are coded.

    weights   "int2" to "int8": symmetric; "uint2" to "uint8": with a zero point for each block
    block     weights of a row that share a scale
    ranges    a name in numerics.ranges.weight_range_methods
    only      patterns of the tensors that may get codes; empty for all that are two-dimensional and no embedding
    skip      patterns of tensors that stay as they are
    scales    "float32", or "bfloat16", which takes half the bytes; codes are chosen for the rounded scale
    """

    weights: str = "int4"
    block: int = 32
    ranges: str = "mse"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    scales: str = "float32"

    def __post_init__(self) -> None:
        if parse_format(self.weights).bits > 8:
            raise ConfigError("weights", self.weights, "a format of at most 8 bits, such as 'int4' or 'uint3'")
        if not 1 <= self.block <= LARGEST_BLOCK:
            raise ConfigError("block", self.block, f"in [1, {LARGEST_BLOCK}]")
        weight_range_methods.entry(self.ranges)
        if self.scales not in SCALES:
            raise ConfigError("scales", self.scales, f"one of {', '.join(SCALES)}")

    @property
    def format(self) -> IntFormat:
        """The format of the codes."""
        return parse_format(self.weights)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "weights": self.weights,
            "block": self.block,
            "ranges": self.ranges,
            "only": list(self.only),
            "skip": list(self.skip),
            "scales": self.scales,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tensors that stand for a coded weight."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


def parts_of(shape: tuple[int, ...], settings: CodeSettings) -> tuple[Part, ...]:
    """Codes, scales and, for unsigned formats, zero points of a weight (*, K): codes and zero points packed, row by row."""
    *leading, length = shape
    bits, blocks = settings.format.bits, -(-length // settings.block)
    parts = [Part("codes", "U8", (*leading, packed_size(length, bits))), Part("scale", SCALES[settings.scales], (*leading, blocks))]
    if not settings.format.signed:
        parts.append(Part("zero_point", "U8", (*leading, packed_size(blocks, bits))))
    return tuple(parts)


def choose_coded(tensors: Mapping[str, StoredTensor], settings: CodeSettings) -> dict[str, str]:
    """Why each tensor stays as it is; "" for those that get codes.

    Raises: ConfigError for a pattern that matches no tensor (suggests the nearest), and when no tensor would get codes.
    """
    for option, patterns in (("only", settings.only), ("skip", settings.skip)):
        for pattern in patterns:
            if not any(_matches(name, [pattern]) for name in tensors):
                raise ConfigError(option, pattern, f"the name of a tensor or a pattern that matches one ({nearest(pattern, tensors)})")
    reasons = {name: _why_float(tensor, settings) for name, tensor in tensors.items()}
    if all(reasons.values()):
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        raise ConfigError("only", settings.only, f"such that a tensor gets codes, but all {len(reasons)} stay as they are ({shown})")
    return reasons


def _matches(name: str, patterns: Collection[str]) -> str:
    """The first pattern that fits the tensor's name, or its module's; or ""."""
    module = name.rpartition(".")[0]
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern) or fnmatchcase(module, pattern)), "")


def _why_float(tensor: StoredTensor, settings: CodeSettings) -> str:
    skipped = _matches(tensor.name, settings.skip)
    if skipped:
        return f"skipped as asked ({skipped})"
    named = _matches(tensor.name, settings.only)
    if settings.only and not named:
        return "not among those asked for"
    if tensor.dtype not in FLOATS:
        return f"stored as {tensor.dtype}, no float of 16 or 32 bits"
    axes = len(tensor.shape)
    if axes < 2:
        return "a bias, a norm or a number: small, and errors in it reach every position"
    if axes > 2 and not named:
        return f"has {axes} axes: which of them is summed over is not known; name it in `only` to code blocks of its last axis"
    if not named and _EMBEDDING.search(tensor.name.removesuffix(".weight").rpartition(".")[2]):
        return "an embedding: its rows are looked up, not multiplied; name it in `only` to code it"
    if _coded_bytes(tensor.shape, settings) >= tensor.size_bytes:
        return "its codes and scales would take no fewer bytes"
    return ""


def _coded_bytes(shape: tuple[int, ...], settings: CodeSettings) -> int:
    total = 0
    for part in parts_of(shape, settings):
        size = BITS[part.dtype] // 8
        for length in part.shape:
            size *= length
        total += size
    return total

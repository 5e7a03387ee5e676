"""What static quantization can choose, as frozen data, and the formats that a target computes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from gossamer.errors import ConfigError
from gossamer.numerics.formats import Format, parse_any_format
from gossamer.numerics.ranges import range_methods, weight_range_methods


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How plan_quantization finds scales and codes. The defaults need no tuning.

    ranges           which range of each value the codes cover: a name in numerics.ranges.range_methods; "auto" is "mse", but for what
                     linear layers read token by token the range that changes their outputs least (plan.token_ranges)
    weight_ranges    likewise for weights: a name in numerics.ranges.weight_range_methods
    rounding         how weights get codes: a name in plan.rounding.roundings, such as "nearest" (one by one) or "second-order"
                     (so that the layer's output changes least)
    bias_correction  take the mean error that rounded weights make out of the bias
    equalization     how scale moves between channels before that: a name in plan.equalization.equalizations, such as "none",
                     "cross-layer", "smoothquant", "smoothquant-insert" (with multiplications of their own where nothing else can take
                     scale), "repq", or "auto" (whichever leaves the least error on the calibration data)
    code_ends        float inputs and outputs of the network get codes, too, so that export(..., io="uint8") can hand them out

    Raises: ConfigError for a method that does not exist (suggests the nearest).
    """

    ranges: str = "auto"
    weight_ranges: str = "min-max"
    rounding: str = "second-order"
    bias_correction: bool = True
    equalization: str = "none"
    code_ends: bool = False

    def __post_init__(self) -> None:
        range_methods.entry(self.ranges)
        weight_range_methods.entry(self.weight_ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScheme:
    """How plan_weight_quantization finds scales and codes.

    ranges        how the range of a block is chosen, a name in numerics.ranges.weight_range_methods: "mse" (least error, norm 2.4),
                  "hqq" (most errors small, a few may be large; Badri & Shaji 2023) or "min-max"
    equalization  how scale moves between channels first, a name in plan.equalization.equalizations: "awq" (weights that meet large
                  values become larger, so that they lose less; needs calibration), "auto" or "none"

    Raises: ConfigError for a range method that does not exist (suggests the nearest).
    """

    ranges: str = "mse"
    equalization: str = "none"

    def __post_init__(self) -> None:
        weight_range_methods.entry(self.ranges)


def check_scheme(scheme: object, kind: type[Scheme] | type[BlockScheme]) -> None:
    """Raise ConfigError for anything but a scheme of the kind that a planner takes."""
    if not isinstance(scheme, kind):
        raise ConfigError("scheme", type(scheme).__name__, f"a {kind.__name__}, such as {kind.__name__}(equalization='auto')")


F = TypeVar("F", bound=Format)


def pick_format(name: str, known: tuple[F, ...], what: str, target: str) -> F:
    """The target's form of a named format. Raises ConfigError naming the nearest that it runs, and for a target that has none of the kind."""
    wanted = parse_any_format(name)
    for fmt in known:
        if fmt.name == wanted.name:
            return fmt
    if not known:
        raise ConfigError("target", target, f"one that has formats like {name!r} for {what}, which this one has not")
    near = min(known, key=lambda fmt: (type(fmt) is not type(wanted), abs(fmt.bits - wanted.bits), fmt.signed != wanted.signed))
    raise ConfigError(what, name, f"a format that {target} computes with (the nearest is {near.name!r})")

"""Formats by layer: the user's rules, and which layer gets what by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from gossamer.errors import ConfigError, PlanError, nearest
from gossamer.numerics.formats import FloatFormat, Format, IntFormat, parse_any_format
from gossamer.plan.scheme import pick_format
from gossamer.plan.spec import TargetSpec
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Embedding, Linear
from gossamer.program.program import Program

FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Choice:
    """The format that a layer gets, and the rule that said so; "" where none did.

    values  the format of the value that the layer reads; "" where the rule does not say
    """

    format: str
    rule: str = ""
    values: str = ""

    @property
    def what(self) -> str:
        """What asks for the format, for messages."""
        return f"the format of {self.rule!r}" if self.rule else "weights"

    @property
    def why_float(self) -> str:
        """Why the layer must not run on codes; "" where it may."""
        if self.format == FLOAT:
            return f"kept float as asked ({self.rule})"
        if isinstance(parse_any_format(self.format), FloatFormat):
            return f"stored as {self.format} as asked ({self.rule}), computed in float32"
        return ""


@dataclass(frozen=True, slots=True)
class LayerFormats:
    """Formats by layer, each by its node.

    codes       formats of the weights of layers that may run on codes
    stored      formats in which the weights of float layers are stored; they are computed with in float32
    kept_float  why the other layers must not run on codes
    """

    codes: Mapping[str, IntFormat]
    stored: Mapping[str, FloatFormat]
    kept_float: Mapping[str, str]

    def renamed(self, names: Mapping[str, str]) -> LayerFormats:
        """The same for layers that others have taken the place of: old name -> new one."""
        return replace(self, codes={names.get(node, node): fmt for node, fmt in self.codes.items()})

    def joined(self, names: Iterable[str], fmt: IntFormat) -> LayerFormats:
        """The same with more layers, that rules do not name."""
        return replace(self, codes={**self.codes, **dict.fromkeys(names, fmt)})


def layer_formats(program: Program, rules: Mapping[str, str], weights: str, spec: TargetSpec) -> LayerFormats:
    """What each layer of a program gets: what the first rule that matches it says, `weights` where none does.

    Raises: PlanError like layer_choices; ConfigError for a format that the target does not run (names the nearest).
    """
    pick_format(weights, spec.weight_formats, "weights", spec.name)
    codes: dict[str, IntFormat] = {}
    stored: dict[str, FloatFormat] = {}
    kept_float: dict[str, str] = {}
    for name, choice in layer_choices(program, rules, weights).items():
        if choice.format == FLOAT:
            kept_float[name] = choice.why_float
            continue
        known: tuple[Format, ...] = (*spec.weight_formats, *spec.float_formats)
        fmt = pick_format(choice.format, known, choice.what, spec.name)
        if isinstance(fmt, FloatFormat):
            stored[name] = fmt
            kept_float[name] = choice.why_float
        else:
            codes[name] = fmt
    return LayerFormats(codes, stored, kept_float)


def layer_choices(program: Program, rules: Mapping[str, str], default: str, *, tables: bool = False) -> dict[str, Choice]:
    """The choice for each convolution and linear layer, by node; with `tables` for each embedding, too.

    rules  format by name of a layer, "*" in a name matches anything; the first rule that matches a layer decides.

    Raises: PlanError for a rule that no layer matches (suggests the nearest), for one that earlier rules leave nothing to, and for
    rules that give layers with one weight different formats; ConfigError for rules of another form.
    """
    if not isinstance(rules, Mapping) or not all(isinstance(item, str) for pair in rules.items() for item in pair):
        raise ConfigError("rules", rules, "formats by name of a layer, such as {'head': 'float', 'features.*': 'int4'}")
    used: dict[str, bool] = {}
    choices: dict[str, Choice] = {}
    kinds = (Linear, Convolution, Embedding) if tables else (Linear, Convolution)
    layers = [node for node in program.graph.nodes if isinstance(op_of(node).kind, kinds)]
    for node in layers:
        matching = [pattern for pattern in rules if fnmatchcase(layer_name(node), pattern)]
        for place, pattern in enumerate(matching):
            used[pattern] = used.get(pattern, False) or place == 0
        choices[node.name] = _choice(rules[matching[0]], matching[0], default) if matching else Choice(default)
    for pattern in rules:
        if pattern not in used:
            raise PlanError(f"rules name {pattern!r}, which is no layer of this network; {nearest(pattern, map(layer_name, layers))}")
        if not used[pattern]:
            raise PlanError(f"the rule for {pattern!r} decides nothing, since earlier rules match all its layers; put it before them.")
    _check_shared(program, layers, choices)
    return choices


def _choice(text: str, rule: str, default: str) -> Choice:
    """Of a rule such as "int4", "int4/uint4" or "/uint4"."""
    weights, slash, values = text.partition("/")
    found = Choice(weights or (default if slash else weights), rule, values)
    if slash and (not values or found.why_float):
        raise ConfigError(f"the format of {rule!r}", text, "one such as 'int4', 'int4/uint4' or '/uint4'; floats read floats")
    return found


def value_formats(program: Program, rules: Mapping[str, str], weights: str, default: IntFormat, spec: TargetSpec) -> dict[str, IntFormat]:
    """Formats of what layers read, by the layer's node, where a rule says so.

    Raises: ConfigError for a format that the target does not run (names the nearest), or whose codes `default` cannot stand beside.
    """
    found: dict[str, IntFormat] = {}
    for name, choice in layer_choices(program, rules, weights).items():
        if choice.values:
            fmt = pick_format(choice.values, spec.activation_formats, f"the format of what {choice.rule!r} reads", spec.name)
            if fmt.signed != default.signed or (fmt.bits > 8) != (default.bits > 8):
                raise ConfigError(
                    f"the format of what {choice.rule!r} reads", fmt.name, f"one that is stored like {default.name}, the others'"
                )
            found[name] = fmt
    return found


def no_values(choices: Mapping[str, Choice], what: str) -> None:
    """Raise ConfigError for a rule about values where none have codes."""
    for choice in choices.values():
        if choice.values:
            raise ConfigError(f"the format of {choice.rule!r}", f"{choice.format}/{choice.values}", f"one of weights alone, since {what}")


def layer_name(node: Node) -> str:
    """What rules call a layer."""
    return node.module or node.name


def _check_shared(program: Program, layers: list[Node], choices: Mapping[str, Choice]) -> None:
    first: dict[str, Node] = {}
    for node in layers:
        weight = bind(node)["weight"]
        if isinstance(weight, Ref) and weight.name in program.state:
            other = first.setdefault(weight.name, node)
            if choices[other.name].format != choices[node.name].format:
                raise PlanError(
                    f"rules give {layer_name(other)!r} and {layer_name(node)!r}, which share one weight, different formats; name both alike."
                )

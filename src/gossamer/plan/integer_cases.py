"""Which nodes a target has a kernel on codes for: why a node must stay float, or ""; for some ops that depends on the case."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, prod

from gossamer.plan.merged_groups import merged_groups
from gossamer.plan.site import Site, has_weight
from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Embedding
from gossamer.program.transposed import is_transposed, why_whole


def why_float(site: Site, node: Node) -> str:
    """Why a node cannot run on codes, or "" when it can."""
    name = op_of(node).onnx
    if name in site.spec.absorbed_ops - site.spec.integer_ops:
        return "it is free only right behind an op on integers that nothing else reads"
    if name not in site.spec.integer_ops:
        if is_transposed(node) and "Pixels" in site.spec.integer_ops and (reason := why_whole(site.graph, node)):
            return reason
        return f"{site.spec.name} has no integer kernel for {name or node.op}"
    if not all(site.is_float(result) for result in site.results(node)):
        return f"the result of {name} is not float32, so there is nothing to code"
    wrong = _why_wrong(site, node, site.spec.wrong_cases)
    if wrong:
        return wrong
    if has_weight(node):
        return _why_float_layer(site, node)
    names = site.inputs(node)
    if isinstance(op_of(node).kind, Embedding):
        return "it picks rows of a table: the table can have codes, the rows are float"
    if any(used in site.graph.state_names for used in names):
        return f"{name} reads a parameter, which only layers can in integers"
    check = _CHECKS.get(name)
    return "" if check is None or not names else check(site, node)


def why_float_weight(site: Site, node: Node) -> str:
    """Why the weight of a layer that reads and makes floats cannot have codes of its own in the target's files, or ""."""
    return _why_wrong(site, node, site.spec.float_weights)


def _why_wrong(site: Site, node: Node, cases: frozenset[str]) -> str:
    for is_case, reason in map(_WRONG.__getitem__, sorted(cases)):
        if is_case(site, node):
            return reason.format(target=site.spec.name)
    return ""


def _why_float_layer(site: Site, node: Node) -> str:
    bound = bind(node)
    if not site.is_state(bound["weight"]) or not (bound["bias"] is None or site.is_state(bound["bias"])):
        return "its weight or bias is computed, not stored"
    if bound["weight"].name in site.graph.outputs:
        return "its weight is an output of the network"
    slow = _why_slow(site, node) if isinstance(op_of(node).kind, Convolution) else ""
    if slow:
        return f"{site.spec.name} is faster in float when a convolution {slow}"
    for user in site.graph.users[bound["weight"].name]:
        if not has_weight(user) or bind(user)["weight"] != bound["weight"] or user.uses.count(bound["weight"].name) > 1:
            return f"its weight is also used by {user.name}, which needs the float numbers"
    return "" if site.is_float(bound["weight"].name) else "its weight is not float32"


def _why_slow(site: Site, node: Node) -> str:
    """What integer kernels for convolutions take longer for than float ones, or ""."""
    bound = bind(node)
    outputs, channels, *window = site.shape(bound["weight"].name)
    read = f"{channels} channel{'s' if channels > 1 else ''}"
    if bound["groups"] == 1:
        few = channels < site.spec.least_channels and outputs * channels * prod(window) < site.spec.least_products
        return f"reads only {read}" if few else ""
    if bound["groups"] == outputs and channels == 1:
        return ""  # depthwise
    merged = merged_groups(channels, bound["groups"], site.spec.group_channels) if site.spec.group_channels else 1
    return f"has groups that read only {read}" if channels * merged < site.spec.least_group_channels else ""


def _why_float_pair(site: Site, node: Node) -> str:
    names = [name for name in node.uses if site.is_float(name)]
    bound = bind(node)
    number = next((bound[name] for name in ("self", "other") if isinstance(bound.get(name), (int, float))), None)
    coded = op_of(node).onnx in site.spec.number_ops and number is not None and number != 0 and isfinite(number)
    if len(names) != (1 if coded else 2):
        return f"{op_of(node).onnx} with a number has no integer kernel"
    alpha = bound.get("alpha", 1)
    return "" if alpha == 1 else f"it multiplies the second value by {alpha} first"


def _why_float_quotient(site: Site, node: Node) -> str:
    if not isinstance(bind(node)["other"], (int, float)):
        return "only by a number has it an integer kernel"
    return _why_float_pair(site, node)


def _why_float_mean(site: Site, node: Node) -> str:
    bound = bind(node)
    shape, axes = site.shape(node.uses[0]), bound.get("dim")
    axes = [axes] if isinstance(axes, int) else axes
    fits = len(shape) == 4 and axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]
    return "" if fits else "only the mean over height and width has an integer kernel"


def _why_float_adaptive(site: Site, node: Node) -> str:
    have, want = site.shape(node.uses[0]), site.shape(node.name)
    even = len(have) == 4 and all(h % w == 0 for h, w in zip(have[2:], want[2:], strict=True)) and have != want
    windows = "AveragePool" in site.spec.integer_ops - site.spec.same_scale_ops  # its kernel scales the means of windows anew
    if even and want[2:] != (1, 1) and not windows:
        return "its kernel takes windows, as those of AvgPool2d"
    return "" if even else "its bins overlap, or it pools nothing"


def _why_float_average(site: Site, node: Node) -> str:
    bound = bind(node)
    if bound.get("divisor_override") is not None:
        return "it divides by a number of its own"
    if bound["ceil_mode"] and any(bound["padding"]):
        return "ceil mode with padding is computed in float"
    return _why_float_pool(site, node)


def _why_float_clamp(site: Site, node: Node) -> str:
    limits = clip_limits(node)
    around = limits is not None and (limits[0] is None or limits[0] <= 0) and (limits[1] is None or limits[1] >= 0)
    return "" if around else "only a clamp to numbers around 0 is the same as a range of codes"


def _why_float_elu(site: Site, node: Node) -> str:
    bound = bind(node)
    plain = (bound["alpha"], bound["scale"], bound["input_scale"]) == (1, 1, 1)
    return "" if plain else "its kernel has no factors"


def _why_float_prelu(site: Site, node: Node) -> str:
    slopes = bind(node)["weight"]
    if not site.is_state(slopes):
        return "its slopes are computed, not stored"
    if site.shape(slopes.name) != (1,) and not site.spec.channel_slopes:
        return "its kernel has one slope for all channels"
    return ""


def _why_float_resize(site: Site, node: Node) -> str:
    known = "nearest2d" in node.op or ("bilinear2d" in node.op and "aa" not in node.op)
    return "" if known else "only resizing an image to the nearest pixel or between two has an integer kernel"


def _why_float_pool(site: Site, node: Node) -> str:
    return "" if len(site.shape(node.uses[0])) == 4 else "only pooling over height and width has an integer kernel"


def _why_float_pad(site: Site, node: Node) -> str:
    bound = bind(node)
    constant = bound.get("mode", "constant") == "constant"
    return "it pads with a number other than 0" if constant and bound["value"] else ""


_CHECKS: dict[str, Callable[[Site, Node], str]] = {
    "Add": _why_float_pair,
    "Sub": _why_float_pair,
    "Rsub": _why_float_pair,
    "Div": _why_float_quotient,
    "Mul": _why_float_pair,
    "MatMul": _why_float_pair,
    "ReduceMean": _why_float_mean,
    "AdaptiveAveragePool": _why_float_adaptive,
    "AveragePool": _why_float_average,
    "MaxPool": _why_float_pool,
    "Pad": _why_float_pad,
    "Relu": _why_float_clamp,
    "Clip": _why_float_clamp,
    "Elu": _why_float_elu,
    "PRelu": _why_float_prelu,
    "Resize": _why_float_resize,
}


def _is_counted_border(site: Site, node: Node) -> bool:
    bound = bind(node)
    return op_of(node).onnx == "AveragePool" and bool(bound["count_include_pad"]) and any(bound["padding"])


def _is_join_before_transposed(site: Site, node: Node) -> bool:
    return op_of(node).onnx == "Concat" and any(op_of(user).onnx == "ConvTranspose" for user in site.graph.users.get(node.name, ()))


def _is_over_three_axes(site: Site, node: Node) -> bool:
    return isinstance(op_of(node).kind, Convolution) and len(site.shape(node.name)) == 5


def _is_grouped_transposed(site: Site, node: Node) -> bool:
    return is_transposed(node) and bind(node)["groups"] > 1


_WRONG: dict[str, tuple[Callable[[Site, Node], bool], str]] = {
    "counted border": (_is_counted_border, "{target} counts a border of codes as another number than 0"),
    "join before transposed": (_is_join_before_transposed, "{target} refuses a transposed convolution that reads joined codes"),
    "three axes": (_is_over_three_axes, "{target} has no integer kernel for a convolution over three axes"),
    "grouped transposed": (_is_grouped_transposed, "{target} has no codes for the weight of a transposed convolution with groups"),
}

"""gossamer inspect: what a network is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Group
from rich.text import Text

from gossamer.batches import as_batches
from gossamer.cli.check import checked_file
from gossamer.cli.command import DATA_HELP, MODEL_HELP, DebugOption, JsonOption, PickOption, WeightsOption, command, picked, show, show_json
from gossamer.data.models import NamedModel, load_model
from gossamer.data.named import load_data
from gossamer.errors import ConfigError
from gossamer.program.capture import capture
from gossamer.program.program import Program
from gossamer.report.structure import Structure, describe
from gossamer.report.tables import FittingTable

MOST_ROWS = 200


@command
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    weights: WeightsOption = None,
    data: Annotated[str | None, typer.Option(help=f"Where the input's shape comes from: {DATA_HELP}")] = None,
    shape: Annotated[str | None, typer.Option("--input", help="Shape of one input without the batch, such as 3x224x224.")] = None,
    output: PickOption = None,
    target: Annotated[str | None, typer.Option(help="Check MODEL, a file that this target reads, against its documented rules.")] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Show layers, costs, and the groups of channels that can only be removed together.

    Nothing is run on data and nothing is changed. With --target, MODEL is a file such as model.onnx, and what is shown is where it
    breaks the rules of that target (tensorrt); exit code 1 if it does.
    """
    if target is not None:
        return checked_file(Path(model), target, json=json)
    torch.manual_seed(0)
    named = load_model(model, weights)
    if isinstance(named.module, Program):
        program = named.module
    else:
        program = capture(named.module, example_inputs(named, data, shape), output=picked(output))
    structure = describe(program)

    def report() -> bool:
        if json:
            show_json({"model": model, **structure.to_dict()})
        else:
            show(structure_view(model, structure))
        return True

    return report


def example_inputs(named: NamedModel, data: str | None, shape: str | None) -> Any:
    """Inputs to capture with: of a stated shape, from data, or of the shape that the model's maker states.

    Raises: ConfigError when none of them is known.
    """
    if shape is not None:
        return torch.randn(2, *_sizes(shape))
    if data is not None:
        inputs, _ = as_batches(load_data(data).validation, what="validation", batch_size=2).first()
        return inputs
    if named.input_shape is not None:
        return torch.randn(2, *named.input_shape)
    raise ConfigError("--input", None, f"given for {named.name}, such as --input 3x224x224 (or name the data with --data)")


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError("--input", text, "sizes joined by x without the batch, such as 3x224x224")
    return tuple(map(int, parts))


def structure_view(name: str, structure: Structure) -> Group:
    """Tables for the console."""
    cost = structure.cost
    quantized = f", quantized for {structure.target}" if structure.target else ""
    lines = [
        Text(f"{name}: {', '.join(structure.inputs)}{quantized}", style="bold"),
        Text(
            f"{cost.params:,} params, {cost.macs:,} macs, size_bytes {cost.size_bytes:,}, "
            f"peak_memory_bytes {cost.peak_memory_bytes:,} (one input)"
        ),
        Text(
            f"{sum(group.removable for group in structure.groups):,} of {sum(group.channels for group in structure.groups):,} channels can be removed"
        ),
    ]
    return Group(*lines, _layer_table(structure), _group_table(structure))


def _layer_table(structure: Structure) -> FittingTable:
    rows = []
    for layer in structure.layers[:MOST_ROWS]:
        output = "x".join(map(str, layer.output_shape[1:]))
        share = f"{layer.macs / max(structure.cost.macs, 1):.1%}"
        rows.append((layer.name, layer.op, output, layer.weight_format, f"{layer.params:,}", f"{layer.macs:,}", share))
    header = ("layer", "op", "output", "weights", "params", "macs", "share of macs")
    return FittingTable("layers", header, rows, left=4, note=_rest(len(structure.layers)))


def _group_table(structure: Structure) -> FittingTable:
    rows = []
    for group in structure.groups[:MOST_ROWS]:
        others = [layer for layer in group.layers if layer != group.name]
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        rows.append((group.name, shown or "-", f"{group.channels:,}", f"{group.removable:,}", group.reason))
    header = ("group", "layers in it", "channels", "removable", "why the rest must stay")
    title = "groups: channels that go together"
    return FittingTable(title, header, rows, left=2, last_left=True, note=_rest(len(structure.groups)))


def _rest(count: int) -> str:
    return f"... and {count - MOST_ROWS} more; --json shows all" if count > MOST_ROWS else ""

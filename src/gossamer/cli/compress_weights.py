"""gossamer compress-weights: codes of a few bits for the weights of a checkpoint that may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from gossamer.checkpoints.report import CompressionReport
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import MANIFEST, compress_checkpoint
from gossamer.cli.command import DebugOption, JsonOption, command, messages, show, show_json
from gossamer.cli.progress_view import shown_progress
from gossamer.report.tables import FittingTable

MEGABYTE = 1 << 20
SHOWN = 12  # rows of the table; a large model has hundreds


@command
def compress_weights(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a checkpoint, its index, or one .safetensors file; only read.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder for the compressed checkpoint.")],
    weights: Annotated[str, typer.Option(help="int2 to int8, or uint2 to uint8 with zero points.")] = "int4",
    block: Annotated[int, typer.Option(help="Weights of a row that share a scale.")] = 32,
    ranges: Annotated[str, typer.Option(help="mse (least error), hqq (most errors small) or min-max (fastest).")] = "mse",
    only: Annotated[list[str] | None, typer.Option(help="Only tensors that match; * matches anything. Can be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Tensors that stay as they are. Can be repeated.")] = None,
    scales: Annotated[str, typer.Option(help="float32, or bfloat16 for half their bytes.")] = "float32",
    memory: Annotated[int, typer.Option(min=1, help="Working memory in megabytes.")] = 256,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Give the weights of a safetensors checkpoint codes of a few bits, tensor by tensor, within little memory.

    Embeddings, biases and norms stay as they are; DST/compression.json says what each tensor is and why. Interrupted or killed, the same
    command goes on where it was, and ends with the same bytes.
    """
    settings = CodeSettings(weights, block, ranges, tuple(only or ()), tuple(skip or ()), scales)
    with shown_progress(messages()) as on_progress:
        report = compress_checkpoint(source, destination, settings, memory_bytes=memory * MEGABYTE, on_progress=on_progress)

    def shown() -> bool:
        if json:
            show_json(report.to_dict())
        else:
            show(Group(_worst(report), *(Text(fact) for fact in report.facts()), Text(f"Written: {destination / MANIFEST}")))
        return True

    return shown


def _worst(report: CompressionReport) -> FittingTable:
    """The coded tensors with the largest errors."""
    rows = []
    for tensor in sorted(report.coded, key=lambda tensor: tensor.sqnr_db)[:SHOWN]:
        shape = " x ".join(map(str, tensor.shape))
        rows.append((tensor.name, shape, f"{tensor.sqnr_db:.1f}", f"{tensor.bytes_before / tensor.bytes_after:.2f}"))
    return FittingTable("Weights with the largest errors", ("tensor", "shape", "SQNR dB", "smaller"), rows)

"""gossamer targets: which runtimes there are, and what each computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.text import Text

from gossamer.cli.command import DebugOption, JsonOption, command, show, show_json
from gossamer.numerics.formats import IntFormat
from gossamer.report.tables import FittingTable
from gossamer.targets.target import Target, targets


@command
def targets_command(json: JsonOption = False, debug: DebugOption = False) -> Callable[[], bool]:
    """List the targets: their files, whether their runtime is installed (or the command to install it), and what they can run."""
    rows = [_row(entry.value) for entry in sorted(targets, key=lambda entry: entry.name)]

    def shown() -> bool:
        if json:
            show_json({"targets": rows})
        else:
            show(_table(rows))
            for row in rows:
                if row["stand_in"]:
                    show(Text(f"{row['name']}: {row['stand_in']} To run it: {row['install']}"))
                elif not row["version"]:
                    show(Text(f"{row['name']} is missing; install it: {row['install']}"))
        return True

    return shown


def _row(target: Target) -> dict[str, Any]:
    spec = target.spec
    return {
        "name": spec.name,
        "file": f"*{target.suffix}",
        "runtime": target.runtime,
        "version": target.runtime_version,
        "stand_in": target.stand_in,
        "install": target.install_command,
        "weights": _names(spec.weight_formats),
        "activations": _names(spec.activation_formats),
        "dynamic_range": _names(spec.dynamic_formats),
        "weight_only": _names(spec.block_formats),
        "float_weights": [fmt.name for fmt in spec.float_formats],
        "requantization": spec.requantization,
        "integer_ops": sorted(spec.integer_ops),
    }


def _names(formats: Iterable[IntFormat]) -> list[str]:
    return [fmt.name for fmt in formats]


def _spans(names: Iterable[str]) -> str:
    """Formats in a few letters: int8, int7, int6 ... int2 as int2-8."""
    widths: dict[str, list[int]] = {}
    for name in names:
        kind = name.rstrip("0123456789")
        widths.setdefault(kind, []).append(int(name.removeprefix(kind)))
    parts = []
    for kind, bits in widths.items():
        low, high = min(bits), max(bits)
        whole = len(bits) > 2 and len(bits) == high - low + 1
        parts += [f"{kind}{low}-{high}"] if whole else [f"{kind}{width}" for width in bits]
    return ", ".join(parts)


def _table(rows: Iterable[dict[str, Any]]) -> FittingTable:
    header = ("target", "file", "runtime", "static: weights", "values", "dynamic range", "weights only", "integer ops")
    cells = []
    for row in rows:
        runtime = f"{row['runtime']} {row['version']}" if row["version"] else "checked, not run" if row["stand_in"] else "missing"
        lists = [_spans(row[key]) or "-" for key in ("weights", "activations", "dynamic_range", "weight_only")]
        cells.append((row["name"], row["file"], runtime, *lists, str(len(row["integer_ops"]))))
    return FittingTable("Targets", header, cells, left=len(header) - 1)

"""The tables of benchmarks/results/targets.json."""

from __future__ import annotations

from typing import Any

CHIPS = ("tflm", "cortex_m")


def targets(result: dict[str, Any]) -> str:
    """Runtimes of CPUs, then chips."""
    lines = [
        "| network | runtime | INT8 over FP32 | codes apart, at most | values compared | file over weights | file written in |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        for target, one in row.items():
            if isinstance(one, dict) and target not in CHIPS:
                lines.append(
                    f"| {name} | {target} | {one['speedup']:.2f}x | {one['max_steps']} ({one['values_apart']} values) | "
                    f"{one['values_compared']:,} | {one['size_bytes'] - one['weight_bytes']:+,} ({one['over_weights']:+.1%}) | "
                    f"{one['export_int8_s']:.2f} s |"
                )
    lines += [
        "",
        "| network | flash, interpreter's file | flash, C | arena, interpreter | arena, C | instructions, emulated Cortex-M4 | for each MAC | codes apart |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        if "cortex_m" in row:
            micro, own = row["tflm"], row["cortex_m"]
            lines.append(
                f"| {name} | {micro['size_bytes']:,} | {own['size_bytes']:,} | {micro['arena_bytes']:,} | {own['arena_bytes']:,} | "
                f"{own['instructions_m4']:,} | {own['instructions_m4'] / row['macs']:.1f} | {max(micro['max_steps'], own['max_steps'])} |"
            )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines += ["", f"Random weights, batch 1, 1 thread, sizes in bytes. ({result['machine']}; {versions}; commit {result['commit']})"]
    return "\n".join(lines)

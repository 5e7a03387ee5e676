"""The tables of benchmarks/results/targets.json."""

from __future__ import annotations

from typing import Any

CHIPS = ("tflm", "cortex_m", "cmsis_nn", "bakenn", "bakenn_cmsis_nn")
CODE = {"cortex_m": "our kernels", "cmsis_nn": "ours with CMSIS-NN", "bakenn": "bakenn", "bakenn_cmsis_nn": "bakenn with CMSIS-NN"}


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
        "| network | code | flash | arena | instructions, emulated Cortex-M4 | for each MAC | Cortex-M55 | codes apart |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        if "cortex_m" not in row:
            continue
        micro = row["tflm"]
        lines.append(f"| {name} | interpreter (file) | {micro['size_bytes']:,} | {micro['arena_bytes']:,} | | | | {micro['max_steps']} |")
        lines += [_chip_line(title, row[kind], row["macs"]) for kind, title in CODE.items() if kind in row]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    sizes = f", sizes {result['sizes']['commit']}" if "sizes" in result else ""
    counted = f"; chips counted at {result['counted_at']}" if result.get("counted_at", result["commit"]) != result["commit"] else ""
    apart: dict[str, list[str]] = {}
    for name, row in result["rows"].items():
        for target, one in row.items():
            if isinstance(one, dict) and "measured_at" in one:
                apart.setdefault(one["measured_at"], []).append(f"{name} on {target}")
    lines += [
        "",
        "Random weights, batch 1, 1 thread, sizes in bytes. Weights are what Program.cost says: codes, 4 bytes for each number of a bias and of what stays "
        "float, and one float32 scale for each channel of a weight. bakenn quantizes by itself. "
        f"({result['machine']}; {versions}; commit {result['commit']}{sizes}{counted})"
        + "".join(f" Measured apart ({where}): {', '.join(rows)}." for where, rows in apart.items()),
    ]
    return "\n".join(lines)


def _chip_line(title: str, one: dict[str, Any], macs: int) -> str:
    if "failed" in one:
        return f"| | {title} | not taken: {one['failed']} | | | | | |"
    wide = f"{one['instructions_m55']:,}" if "instructions_m55" in one else ""
    steps = one.get("max_steps", "")
    count = one["instructions_m4"]
    return f"| | {title} | {one['size_bytes']:,} | {one['arena_bytes']:,} | {count:,} | {count / macs:.2f} | {wide} | {steps} |"


def export_time(result: dict[str, Any]) -> str:
    """Both exporters, network by network."""
    lines = ["| network | gossamer | litert-torch | file, gossamer | file, litert-torch |", "|---|---:|---:|---:|---:|"]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['gossamer_s']:.2f} s | {row['litert_torch_s']:.1f} s | {row['gossamer_bytes']:,} | {row['litert_torch_bytes']:,} |"
        )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    error = max(row[f"{way}_error"] for row in result["rows"].values() for way in ("gossamer", "litert_torch"))
    lines += [
        "",
        f"From the eager network to a float file, medians of {result['repeats']} in turns, one thread; each file's output is within {error:.0e} of the "
        f"network's. ({result['machine']}; {versions}; commit {result['commit']})",
    ]
    return "\n".join(lines)

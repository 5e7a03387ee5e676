"""Tables on codes for weights alone: ranges by name, and checkpoints that grow."""

from __future__ import annotations

from typing import Any


def half_quadratic(result: dict[str, Any]) -> str:
    """Ranges side by side, for each format."""
    lines = ["| format | range | sum of abs(error)^0.75 | weights over errors | cosine | CPU s |", "|---|---|---:|---:|---:|---:|"]
    shown = ""
    for row in result["results"]:
        name, shown = ("" if row["weights"] == shown else row["weights"]), row["weights"]
        lines.append(
            f"| {name} | {row['ranges']} | {row['lp_error']:,.0f} | {row['weight_sqnr_db']:.1f} dB | "
            f"{row['embedding_cosine']:.3f} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join([*lines, "", _place(result)])


def streaming(result: dict[str, Any]) -> str:
    """Memory and speed as the checkpoint grows, then under a limit, then by method."""
    lines = ["| checkpoint | streamed: memory | MB per CPU second | at once: memory | MB per CPU second |", "|---:|---:|---:|---:|---:|"]
    runs = {(row["source_mb"], row["way"]): row for row in result["growing"]}
    for size in sorted({size for size, _ in runs}):
        cells = [_cells(runs.get((size, way))) for way in ("streamed", "at once")]
        lines.append(f"| {size:,} MB | {cells[0]} | {cells[1]} |")
    lines += ["", f"Memory is the peak beyond what the process held before. With {result['room_mb']} MB of room for the address space:", ""]
    for row in result["limited"]:
        what = "one weight" if row["one_tensor"] else "many weights"
        outcome = f"fails ({row['failed'].split(':')[0]})" if "failed" in row else f"done, {row['more_mb']:.0f} MB more"
        lines.append(f"- {row['source_mb']:,} MB in {what}, {row['way']}: {outcome}")
    speeds = ", ".join(f"{row['weights']} {row['ranges']} {row['mb_per_cpu_second']:.0f}" for row in result["methods"])
    return "\n".join([*lines, "", f"Megabytes of bfloat16 per CPU second by method: {speeds}. {_place(result)}"])


def _cells(row: dict[str, Any] | None) -> str:
    return f"{row['more_mb']:,.0f} MB | {row['mb_per_cpu_second']:.0f}" if row else "- | -"


def _place(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"({result['machine']}, one thread; {versions}; commit {result['commit']})"

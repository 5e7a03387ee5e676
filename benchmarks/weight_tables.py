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


def mixed_precision(result: dict[str, Any]) -> str:
    """Points of bytes against fidelity, smallest first; a star for those that no other beats in both."""
    lines = []
    for name, points in result["networks"].items():
        rows = sorted(points.items(), key=lambda pair: (pair[1]["size_bytes"], pair[1]["kl"]))
        labelled = "accuracy" in rows[0][1]
        last = "accuracy" if labelled else "agreement with float32"
        lines += [
            "",
            f"{name}:",
            "",
            f"| weights | layers at 2, 4, 8 bits | file | SQNR of logits | KL, nats | {last} |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for point, row in rows:
            beaten = any(other["size_bytes"] <= row["size_bytes"] and other["kl"] < row["kl"] for other in points.values())
            counts = row.get("layers", {})
            layers = ", ".join(str(counts.get(key, 0)) for key in ("int2", "int4", "int8")) if counts else "all"
            sqnr = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
            share = row["accuracy" if labelled else "agreement"]
            cells = f"{row['size_bytes']:,} | {sqnr} | {row['kl']:.2g} | {share:.2%}"
            star = "" if beaten else " \\*"
            lines.append(f"| {point}{star} | {layers if point != 'float' else '-'} | {cells} |")
    if result.get("times"):
        lines += ["", *_times(result["times"])]
    return "\n".join([*lines[1:], "", "\\* no other point has fewer bytes and less KL. " + _place(result)])


def _times(rows: dict[str, Any]) -> list[str]:
    """EfficientNet-Lite0 within a speed-up."""
    lines = [
        "EfficientNet-Lite0 within a speed-up over float32, batch 1 (layers at 8 bits, the others float):",
        "",
        "| budget | layers at 8 bits, float | predicted | file | speed-up | SQNR of logits | KL, nats |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for budget, row in rows.items():
        if "problem" in row:
            lines.append(f"| {budget} | {row['problem']} | | | | | |")
            continue
        layers = ", ".join(str(count) for count in row["layers"].values())
        time = f"{row['predicted_ms']:.2f} ms | {row['latency_ms']:.2f} ms | {row['speedup']:.2f}x"
        lines.append(f"| {budget} | {layers} | {time} | {row['sqnr_db']:.1f} dB | {row['kl']:.2g} |")
    return lines


def _cells(row: dict[str, Any] | None) -> str:
    return f"{row['more_mb']:,.0f} MB | {row['mb_per_cpu_second']:.0f}" if row else "- | -"


def _place(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"({result['machine']}, one thread; {versions}; commit {result['commit']})"

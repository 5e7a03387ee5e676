"""The table on weights of 4 bits in EfficientNet-Lite0."""

from __future__ import annotations

from typing import Any


def efficientnet_lite0_w4a8(result: dict[str, Any]) -> str:
    """Fidelity by method and calibration data."""
    lines = [
        "| | samples | SQNR of logits | other crops | other photos | agreement with FP32 top-1 | MB | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['calibration']} | {row['sqnr_db, both']:.1f} dB | {row['sqnr_db, other crops']:.1f} dB | "
            f"{row['sqnr_db, other photos']:.1f} dB | {row['agreement, both']:.1%} | {row['size_bytes'] / 1e6:.2f} | {row['cpu_seconds']:.0f} |"
        )
    chosen = ", ".join(
        f"{row['bits']:.2f} bits a weight from {row['calibration']} in {row['cpu_seconds']:.0f} s" for row in result["choices"]
    )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    setting = " ".join(result["setting"].split())
    return "\n".join([*lines, "", f"{setting} Formats: {chosen}. ({result['machine']}; {versions}; commit {result['commit']})"])

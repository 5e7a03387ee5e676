"""What every benchmark writes beside its figures: commit, machine, versions, so that a result can be judged later."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]


def header(packages: tuple[str, ...], **facts: Any) -> dict[str, Any]:
    """Facts about this run: commit, time, machine, versions of `packages`, and what the benchmark adds (threads, seed, n)."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "--", "src") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": _machine(),
        "versions": {name: _version(name) for name in ("python", *packages)},
        **facts,
    }


def write(name: str, document: dict[str, Any], *, quiet: bool = False) -> Path:
    """Write benchmarks/results/NAME.json and, unless quiet, print it as the last line."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    if not quiet:
        print(json.dumps(document))
    return path


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = sum(line.startswith("processor") for line in lines)
    extras = [
        flag
        for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8")
        if any(flag in line.split() for line in lines if line.startswith("flags"))
    ]
    return f"{model}, {cores} cores, {' '.join(extras)}"

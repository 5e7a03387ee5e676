"""The demo as a user runs it: `gossamer demo`, timed from outside, its report read back.

python benchmarks/demo.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import header, write


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "gossamer", "demo", "-o", folder, "--json"], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode not in (0, 1):
            sys.exit(done.stderr)
        report = json.loads((Path(folder) / "report.json").read_text())
    keys = ("original", "compressed", "size_ratio", "speedup", "drop_points", "drop_interval", "parity", "budget", "budget_met")
    figures = {key: report[key] for key in keys}
    figures["parity"] = {key: report["parity"][key] for key in ("max_steps", "values_compared", "output_error")}
    facts = {key: report[key] for key in ("target", "threads", "batch", "seed", "samples", "metric", "candidates")}
    write("demo", {**header(("torch", "onnxruntime", "numpy"), **facts), "seconds": round(seconds, 1), **figures})


main()

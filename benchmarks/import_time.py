"""How long `import gossamer` takes beside `import torch`, each in fresh processes, in turns.

python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import header, write

RUNS = 9


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {"import torch": [], "import gossamer": []}
    for run in range(RUNS + 1):
        for statement, taken in times.items():
            value = seconds(statement)
            if run:  # the first of each warms the disk cache
                taken.append(value)
    torch_s, own_s = (statistics.median(times[name]) for name in times)
    pairs = [own / torch for torch, own in zip(*times.values(), strict=True)]
    ratio = statistics.median(pairs)
    write(
        "import_time",
        {
            **header(("torch",), runs=RUNS),
            "torch_s": round(torch_s, 3),
            "gossamer_s": round(own_s, 3),
            "ratio": round(ratio, 3),
            "limit": 1.2,
        },
    )


main()

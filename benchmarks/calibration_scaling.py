"""Time and memory of planning INT8 as the number of samples and the network grow: linear in samples, memory flat.

python benchmarks/calibration_scaling.py      each point runs in a process of its own, so that its peak memory is its own
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from common import header, write
from torch import Tensor, nn

THREADS, SEED, SIZE, BATCH = 1, 0, 64, 16
SAMPLES, WIDTHS = (64, 128, 256, 512), (16, 32, 64)
TYPICAL_WIDTH, TYPICAL_SAMPLES = 32, 128


def network(width: int) -> nn.Module:
    """A ResNet-like chain of 12 convolutions; parameters grow with the square of the width."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for stage in range(3):
        wide = width * 2**stage
        for _ in range(3):
            layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(wide, 2 * wide, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 100)).eval()


def batches(samples: int) -> Iterator[Tensor]:
    """Batches that are made when they are asked for, so that only the planner's own memory is seen."""
    for start in range(0, samples, BATCH):
        yield torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(start))


class Stream:
    """Batches that can be read again."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Tensor]:
        return batches(self.samples)

    def __len__(self) -> int:
        return self.samples // BATCH


def point(width: int, samples: int) -> None:
    """One measurement, printed as JSON: CPU seconds, and memory above what capture needed."""
    import gossamer as gs

    torch.set_num_threads(THREADS)
    program = gs.capture(network(width), next(batches(BATCH))[:2])
    gs.plan_quantization(program, Stream(BATCH))  # what is imported and allocated once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, worked = time.perf_counter(), time.process_time()
    gs.plan_quantization(program, Stream(samples))
    print(
        json.dumps(
            {
                "width": width,
                "samples": samples,
                "params": program.cost().params,
                "macs": program.cost().macs,
                "cpu_seconds": round(time.process_time() - worked, 3),
                "seconds": round(time.perf_counter() - start, 3),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "more_memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
            }
        )
    )


def main() -> None:
    if len(sys.argv) == 3:
        point(int(sys.argv[1]), int(sys.argv[2]))
        return
    settings = dict.fromkeys([*((TYPICAL_WIDTH, samples) for samples in SAMPLES), *((width, TYPICAL_SAMPLES) for width in WIDTHS)])
    rows = []
    for width, samples in settings:
        done = subprocess.run([sys.executable, __file__, str(width), str(samples)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    by_samples = [row for row in rows if row["width"] == TYPICAL_WIDTH]
    low, high = min(by_samples, key=lambda row: row["samples"]), max(by_samples, key=lambda row: row["samples"])
    per_sample = (high["cpu_seconds"] - low["cpu_seconds"]) / (high["samples"] - low["samples"])
    facts = header(
        ("torch",), threads=THREADS, seed=SEED, setting=f"images of {SIZE} x {SIZE}, batches of {BATCH}, CPU seconds of one thread"
    )
    write("calibration_scaling", {**facts, "rows": rows, "cpu_seconds_per_sample": round(per_sample, 5)})


if __name__ == "__main__":
    main()

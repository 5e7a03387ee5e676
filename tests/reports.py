"""A whole report document, for the tests of every view."""

from gossamer.plan.budget import Budget
from gossamer.targets.measurement import Measurement
from gossamer.targets.results import LayerParity, Parity, Report

HOSTILE = "<script>alert('x')</script>$\\frac{a}&amp;\"[red]boo[/red]"


def a_report(**changes):
    fields = {
        "original": Measurement(
            accuracy=0.987,
            accuracy_interval=(0.978, 0.9924),
            latency_ms=12.5,
            latency_p10_ms=12.0,
            latency_p90_ms=14.0,
            size_bytes=421_000,
            macs=3_800_000,
            params=105_000,
            peak_memory_bytes=200_704,
        ),
        "compressed": Measurement(
            accuracy=0.985,
            accuracy_interval=(0.9754, 0.9909),
            latency_ms=1.25,
            latency_p10_ms=1.2,
            latency_p90_ms=1.5,
            size_bytes=42_100,
            macs=1_900_000,
            params=52_500,
            peak_memory_bytes=50_176,
        ),
        "size_ratio": 10.0,
        "speedup": 10.0,
        "paired_speedup": 9.9,
        "drop_points": 0.2,
        "drop_interval": (-0.31, 0.78),
        "parity": Parity(
            max_steps=1, values_compared=12345, output_error=2.5e-7, layers=(LayerParity("conv1", 0, 12000), LayerParity(HOSTILE, 1, 345))
        ),
        "budget": Budget(max_drop_points=0.5, min_speedup=2.5),
        "budget_met": True,
        "problems": (),
        "target": "onnxruntime",
        "threads": 1,
        "batch": 64,
        "seed": 0,
        "seconds": 4.2,
        "samples": 1000,
        "metric": "top1",
        "repeats": 100,
        "machine": "a machine",
        "versions": {"onnxruntime": "1.2.3"},
    }
    return Report(**{**fields, **changes})


def a_document(**changes):
    extra = {
        "model": "my.module:factory",
        "statement": "The budget is met.",
        "candidates": [
            {
                "name": f"int8, step {step}",
                "removed_ratio": step / 10,
                "accuracy": 0.987 - step / 500,
                "latency_ms": 5.0 - step,
                "size_bytes": 100_000 - 10_000 * step,
                "drop_points": step / 5,
                "speedup": 12.5 / (5.0 - step),
                "size_ratio": 4.21 + step,
                "budget_met": step == 2,
                "chosen": step == 2,
            }
            for step in range(4)
        ],
        "layers": [
            {"name": "conv1", "channels_before": 32, "channels_after": 8, "error_db": 35.5},
            {"name": HOSTILE, "channels_before": 64, "channels_after": 64, "error_db": None},
        ],
        "frozen": [
            {"where": "fc", "reason": "it makes the output"},
            {"where": HOSTILE, "reason": "it makes the output"},
            {"where": "conv9", "reason": HOSTILE},
        ],
    }
    return {**a_report().to_dict(), **extra, **changes}

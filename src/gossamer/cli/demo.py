"""gossamer demo: train a small network on 4,000 digits, compress it, show what came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gossamer.cli.command import DebugOption, JsonOption, SeedOption, ThreadsOption, command, messages
from gossamer.cli.compress import compress_into, report_result
from gossamer.cli.compress_options import OutOption
from gossamer.cli.progress_view import shown_progress
from gossamer.data.digits_cnn import train_digits
from gossamer.data.mnist import mnist
from gossamer.data.models import NamedModel
from gossamer.pipeline.settings import Settings
from gossamer.plan.budget import Budget

BUDGET = Budget(max_drop_points=0.5, min_speedup=2.5, min_size_ratio=8)


@command
def demo(
    out: OutOption = Path("demo-out"),
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Train a small CNN on the digits of this package and compress it for ONNX Runtime, in about two minutes.

    The budget: at most 0.5 points of accuracy lost on 1,000 other digits, at least 2.5 times as fast, at least 8 times as
    small. Exit code 1 when it is missed.
    """
    torch.set_num_threads(threads)  # so small a network gains little from more, and loses much beside a busy neighbour
    data = mnist()
    with shown_progress(messages()) as on_progress:
        model = train_digits(data, seed=seed, on_progress=on_progress)
    result = compress_into(out, NamedModel("DigitsCNN", model), data, BUDGET, Settings(seed=seed, threads=threads), fresh=True)
    return lambda: report_result(result, out, json=json)

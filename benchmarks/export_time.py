"""Seconds from an eager network to a float .tflite file: ours beside litert-torch's, in turns in one process, one thread.

    pip install litert-torch timm torchvision
    python benchmarks/export_time.py [NAME ...]

Ours is capture and export together; what either imports is loaded before. Each file is run once and compared with the eager network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import header, write
from quantization_peers import random_network
from tiny_networks import NETWORKS
from torch import Tensor, nn

import gossamer as gs
from targets import tiny_model

LARGE = ("resnet18", "mobilenet_v2", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
REPEATS = 3


def ours(model: nn.Module, image: Tensor, path: Path) -> None:
    """gossamer, for a fixed batch of 1 as litert-torch has it."""
    gs.export(gs.capture(model, image, dynamic_batch=False), path, target="litert")


def litert_torch_convert(model: nn.Module, image: Tensor, path: Path) -> None:
    """litert-torch, as its documentation shows."""
    import litert_torch

    litert_torch.convert(model, (image,)).export(str(path))


def timed(write_file: Callable[[nn.Module, Tensor, Path], None], model: nn.Module, image: Tensor, path: Path) -> float:
    """Seconds of one export."""
    started = time.perf_counter()
    write_file(model, image, path)
    return round(time.perf_counter() - started, 3)


def error(model: nn.Module, image: Tensor, path: Path) -> float:
    """Of the file's output, relative to the eager network's; the layout of the file's input is found by its shape."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    array = image.numpy() if tuple(given["shape"]) == tuple(image.shape) else image.permute(0, *range(2, image.ndim), 1).numpy()
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], np.ascontiguousarray(array))
    interpreter.invoke()
    with torch.no_grad():
        wanted = model(image).numpy()
    return float(np.abs(interpreter.get_tensor(found["index"]).reshape(wanted.shape) - wanted).max() / np.abs(wanted).max())


def row(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """Both exporters in turns."""
    ways = {"gossamer": ours, "litert_torch": litert_torch_convert}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.tflite" for name in ways}
        seconds = [{name: timed(way, model, image, paths[name]) for name, way in ways.items()} for _ in range(REPEATS)]
        found: dict[str, Any] = {}
        for name, path in paths.items():
            found[f"{name}_s"] = median(turn[name] for turn in seconds)
            found[f"{name}_bytes"] = path.stat().st_size
            found[f"{name}_error"] = error(model, image, path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NETWORKS, *LARGE, []])
    names = parser.parse_args().names or [*NETWORKS, *LARGE]
    if find_spec("litert_torch") is None:
        print("skipped: litert-torch is not installed: pip install litert-torch")
        return
    torch.set_num_threads(1)
    first = tiny_model(next(iter(NETWORKS)))
    row(first[0], first[1][:1])  # loads what both import on first use
    rows = {}
    for name in names:
        model, images = tiny_model(name) if name in NETWORKS else (random_network(name).eval(), torch.randn(1, 3, 224, 224))
        rows[name] = row(model, images[:1])
        print(name, rows[name], flush=True)
    packages = ("torch", "litert-torch", "ai-edge-litert")
    write("export_time", {**header(packages, threads=1, batch=1, repeats=REPEATS), "rows": rows}, quiet=True)


if __name__ == "__main__":
    main()

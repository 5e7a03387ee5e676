"""Compressing checkpoints that grow: speed, peak memory, and the same done in memory at once, each in a process of its own.

Shards of 64 MB of bfloat16 weights (a megabyte of normal numbers, over and over), one thread. "at once" reads a shard whole with safetensors
and codes each weight whole with the same function. The last run is under a limit on the address space that its source is six times of.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from safetensors.torch import load_file, save_file

from gossamer.checkpoints.blocks import code
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import compress_checkpoint

SHARD_MB = 64
COLUMNS = 4096
MEMORY_MB = 64
ROOM_MB = 256
AT_ONCE_MB = 512  # larger ones are not done at once: the trend is plain
METHODS = (("int4", "min-max"), ("uint4", "min-max"), ("int3", "min-max"), ("int8", "min-max"), ("uint4", "hqq"), ("uint4", "mse"))


def make(folder: Path, megabytes: int, *, one_tensor: bool = False) -> None:
    """A sharded checkpoint; with one_tensor, a single weight."""
    folder.mkdir()
    pattern = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    places = {}
    size = megabytes if one_tensor else SHARD_MB
    for number in range(megabytes // size):
        name, tensor = f"model-{number:05d}.safetensors", f"layers.{number}.weight"
        shape = [size * (1 << 20) // 2 // COLUMNS, COLUMNS]
        text = json.dumps({tensor: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size << 20]}}).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _ in range(size):
                file.write(pattern)
        places[tensor] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def at_once(source: Path, destination: Path, settings: CodeSettings) -> None:
    """The plain way: a whole file in memory, each weight coded whole, all files kept until they are written."""
    destination.mkdir()
    made: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            coded = code(tensor.float(), settings)
            made |= {f"{name}.codes": torch.from_numpy(coded.codes), f"{name}.scale": torch.from_numpy(coded.scale)}
    save_file(made, destination / "model.safetensors")


def child(way: str, source: str, destination: str, weights: str, ranges: str, room_mb: int) -> None:
    """One measured run; prints its figures."""
    torch.set_num_threads(1)
    settings = CodeSettings(weights, 32, ranges)
    code(torch.randn(2, 64), settings)  # what is loaded lazily counts as there before
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    if room_mb:
        resource.setrlimit(resource.RLIMIT_AS, (held + (room_mb << 20),) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    extra = {}
    if way == "streamed":
        report = compress_checkpoint(source, destination, settings, memory_bytes=MEMORY_MB << 20)
        extra = {"sqnr_db": report.sqnr_db}
    else:
        at_once(Path(source), Path(destination), settings)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    more_mb = (after.ru_maxrss - before.ru_maxrss) / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_rss_mb": after.ru_maxrss / 1024, "more_mb": more_mb, **extra}))


def measure(way: str, source: Path, weights: str, ranges: str, *, room_mb: int = 0) -> dict[str, Any]:
    """Figures of a run in a process of its own; "failed" with the last line of its error when it did not end well."""
    destination = source.with_name("out")
    shutil.rmtree(destination, ignore_errors=True)
    words = [sys.executable, __file__, "--child", way, str(source), str(destination), weights, ranges, str(room_mb)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    source_mb = sum(path.stat().st_size for path in source.glob("*.safetensors")) / (1 << 20)
    found: dict[str, Any] = {"way": way, "weights": weights, "ranges": ranges, "source_mb": round(source_mb)}
    if done.returncode:
        return {**found, "failed": done.stderr.strip().splitlines()[-1][:200]}
    figures = json.loads(done.stdout)
    found["compressed_mb"] = round(sum(path.stat().st_size for path in destination.glob("*.safetensors")) / (1 << 20), 1)
    shutil.rmtree(destination)
    return {
        **found,
        **{key: round(value, 2) for key, value in figures.items()},
        "mb_per_cpu_second": round(source_mb / figures["cpu_seconds"], 1),
    }


def growing(folder: Path, sizes_mb: list[int]) -> list[dict[str, Any]]:
    """Speed and memory as the checkpoint grows."""
    found = []
    for size in sizes_mb:
        make(source := folder / "in", size)
        found += [measure(way, source, "int4", "min-max") for way in ("streamed", "at once") if way == "streamed" or size <= AT_ONCE_MB]
        shutil.rmtree(source)
    return found


def limited(folder: Path, sizes_mb: list[int]) -> list[dict[str, Any]]:
    """The largest checkpoint, and a single weight of its size, under a limit on the address space."""
    found = []
    for one_tensor in (False, True):
        make(source := folder / "in", sizes_mb[-1], one_tensor=one_tensor)
        runs = [measure(way, source, "int4", "min-max", room_mb=ROOM_MB) for way in ("streamed", "at once")]
        found += [{"one_tensor": one_tensor, **figures} for figures in runs]
        shutil.rmtree(source)
    return found


def methods(folder: Path, sizes_mb: list[int]) -> list[dict[str, Any]]:
    """One shard by each method."""
    make(source := folder / "in", SHARD_MB)
    return [measure("streamed", source, weights, ranges) for weights, ranges in METHODS]


PARTS = {"growing": growing, "limited": limited, "methods": methods}


def run(parts: list[str], sizes_mb: list[int]) -> None:
    """Measure some parts; the others stay as the results have them."""
    before = json.loads(path.read_text()) if (path := RESULTS / "streaming.json").exists() else {}
    found = {name: before[name] for name in PARTS if name in before}
    for name in parts:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = PARTS[name](Path(folder), sizes_mb)
    facts = {"threads": 1, "block": 32, "memory_mb": MEMORY_MB, "room_mb": ROOM_MB, "dtype": "bfloat16"}
    write("streaming", {**header(("torch", "numpy", "safetensors"), **facts), **found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--sizes-mb", type=int, nargs="+", default=[128, 256, 512, 1024, 1536])
    parser.add_argument("--child", nargs=6)
    given = parser.parse_args()
    if given.child:
        way, source, destination, weights, ranges, room = given.child
        child(way, source, destination, weights, ranges, int(room))
    else:
        run(given.parts, given.sizes_mb)

"""C code of the package bakenn for a network, run as ours is: the same compiler, options, emulated Cortex-M4 and counter of instructions.

It quantizes by itself, with ranges from one image: its calibration takes up to a minute for each, and speed does not depend on them.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.targets.cortex_m.boards import boards, linker_script
from gossamer.targets.cortex_m.kernels import runtime_file
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, OPTIONS, SIZE

BOARD = boards["cortex-m4"]
_SHIM = """#include "bknn_net.h"
#define GS_IN_BYTES BKNN_NET_INPUT_BYTES
#define GS_OUT_BYTES BKNN_NET_OUTPUT_BYTES
#define GS_STEPS 1
void gs_step(int step);
static uint8_t arena[BKNN_NET_ARENA_SIZE] __attribute__((aligned(16)));
static inline int gs_run(const char *in, char *out) {
  bknn_net_infer(arena, (const int8_t *)in, (int8_t *)out);
  gs_step(1);
  return 0;
}
"""


def rows(model: nn.Module, images: Tensor) -> dict[str, dict[str, Any]]:
    """Arena, flash and instructions, with its own kernels and with those of CMSIS-NN; {"failed": reason} where it cannot take the network."""
    import bakenn
    from bakenn.frontends.torch_export import capture_torch_export
    from bakenn.quantization import quantize_float_graph_with_report

    found: dict[str, dict[str, Any]] = {}
    choices = {
        "bakenn": bakenn.CBackendOptions(target=bakenn.CORTEX_M4),
        "bakenn_cmsis_nn": bakenn.CBackendOptions(
            kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True, target=bakenn.CORTEX_M4
        ),
    }
    try:
        graph = capture_torch_export(model, images[:1], name="net")
        coded = quantize_float_graph_with_report(graph, [images[:1]], name="net").graph
    except bakenn.CompileError as error:
        return {name: {"failed": str(error)} for name in choices}
    for name, options in choices.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                bakenn.compile(coded, folder, model_name="net", backend_options=options)
            except bakenn.CompileError as error:
                found[name] = {"failed": str(error)}
                continue
            found[name] = _run(Path(folder), model, images[:1])
    return found


def _run(folder: Path, model: nn.Module, image: Tensor) -> dict[str, Any]:
    (folder / "shim.h").write_text(_SHIM)
    (folder / "board.ld").write_text(linker_script(BOARD))
    for name in ("harness.c", "startup.c"):
        (folder / name).write_bytes(runtime_file(name))
    sources = [str(path) for path in folder.rglob("*.c") if path.name not in ("harness.c", "startup.c")]
    includes = [f"-I{path}" for path in {folder, *(found.parent for found in folder.rglob("*.h"))}]
    flags = [*BOARD.flags, *OPTIONS, "-std=gnu11", *includes, '-DGS_HEADER="shim.h"', "-DGS_COUNT", "-Wl,--gc-sections"]
    start = ["--specs=rdimon.specs", "-nostartfiles", "-T", str(folder / "board.ld")]
    built = str(folder / "net.elf")
    _call([COMPILER, *flags, *start, *sources, str(folder / "harness.c"), str(folder / "startup.c"), "-lm", "-o", built])
    library = str(folder / "all.o")
    _call([COMPILER, *flags, "-nostdlib", "-r", "-Wl,-u,bknn_net_infer", "-Wl,-e,bknn_net_infer", *sources, "-o", library])
    values = _constants(folder / "bknn_net.h")
    stored = image.permute(0, 2, 3, 1) if image.ndim == 4 else image
    codes = np.clip(np.round(stored.numpy() / values["INPUT_SCALE"]) + values["INPUT_ZERO_POINT"], -128, 127)
    (folder / "in.bin").write_bytes(codes.astype(np.int8).tobytes())
    machine = ["-M", BOARD.machine, "-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    _call([EMULATOR, *machine, "-icount", "shift=6", "-kernel", built], cwd=folder)
    ticks = np.fromfile(folder / "ticks.bin", np.uint64).astype(np.int64)
    outputs = np.fromfile(folder / "out.bin", np.int8).astype(np.float32)
    real = (outputs - values["OUTPUT_ZERO_POINT"]) * values["OUTPUT_SCALE"]
    with torch.no_grad():
        expected = model(image).numpy().reshape(-1)
    text, data, _ = map(int, _call([SIZE, library]).splitlines()[1].split()[:3])
    return {
        "arena_bytes": int(values["ARENA_SIZE"]),
        "size_bytes": text + data,
        "instructions_m4": int((ticks[1] - ticks[0]) * 40 >> 6),
        "sqnr_db": round(float(10 * np.log10((expected**2).sum() / ((expected - real) ** 2).sum())), 1),
    }


def _constants(header: Path) -> dict[str, float]:
    found = {}
    for line in header.read_text().splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[0] == "#define" and parts[1].startswith("BKNN_NET_"):
            text = parts[2].rstrip("uf")
            try:
                found[parts[1].removeprefix("BKNN_NET_")] = float.fromhex(text) if "0x" in text else float(text)
            except ValueError:
                continue
    return found


def _call(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-800:]}")
    return done.stdout

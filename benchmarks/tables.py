"""Write the tables of README.md and the pages in docs from benchmarks/results/*.json.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    fail when one is not up to date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from common import RESULTS, ROOT
from mnist_table import mnist_pruning
from rounding_tables import efficientnet_lite0_w4a8
from target_tables import export_time, targets
from weight_tables import half_quadratic, mixed_precision, streaming

OWN = ("dynamic range", "static", "static, W4A8", "mixed, 6 bits", "QAT, W4A8", "QAT, W4A4")  # rows of MiniLM that are no peer's, in order


def demo(result: dict[str, Any]) -> str:
    """Before and after of the demo."""
    before, after = result["original"], result["compressed"]
    low, high = result["drop_interval"]
    lines = [
        "| | before | after | ratio |",
        "|---|---:|---:|---:|",
        f"| accuracy (n = {result['samples']:,}) | {before['accuracy']:.2%} | {after['accuracy']:.2%} | "
        f"{-result['drop_points']:+.2f} points, 95 % [{-high:+.2f}, {-low:+.2f}] |",
        f"| latency_ms, batch {result['batch']} | {before['latency_ms']:.2f} | {after['latency_ms']:.2f} | {result['speedup']:.2f}x |",
        f"| size_bytes | {before['size_bytes']:,} | {after['size_bytes']:,} | {result['size_ratio']:.2f}x |",
        f"| macs | {before['macs']:,} | {after['macs']:,} | {before['macs'] / after['macs']:.2f}x |",
        f"| params | {before['params']:,} | {after['params']:,} | {before['params'] / after['params']:.2f}x |",
        "",
        f"`gossamer demo`, {result['seconds']:.0f} s in all; {result['parity']['values_compared']:,} inner values of the file compared with the "
        f"simulation, at most {result['parity']['max_steps']} steps apart. {_machine(result)}",
    ]
    return "\n".join(lines)


def import_time(result: dict[str, Any]) -> str:
    """One sentence."""
    return (
        f"`import gossamer` takes {result['ratio']:.2f}x of `import torch` alone ({result['gossamer_s']:.2f} s against "
        f"{result['torch_s']:.2f} s, medians of {result['runs']} fresh processes)."
    )


def efficientnet_lite0_int8(result: dict[str, Any]) -> str:
    """Side by side with onnxruntime's own quantizer."""
    lines = [
        "EfficientNet-Lite0, INT8 by calibration only, side by side in one run:",
        "",
        "| | agreement with FP32 top-1 | SQNR of logits | speed-up | calibration |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['agreement']:.1%} | {row['sqnr_db']:.1f} dB | {row['speedup']:.2f}x | {row['seconds']:.1f} s |"
        )
    return "\n".join([*lines, "", f"{result['setting']} {_machine(result)}"])


def minilm_reviews(result: dict[str, Any]) -> str:
    """Accuracy, speed and size of a transformer."""
    lines = [
        "MiniLM fine-tuned on film reviews, quantized; only QAT sees labels:",
        "",
        "| | runtime | FP32 | quantized | drop in points, 95 % | speed-up | smaller |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    rows = sorted(result["rows"], key=lambda row: OWN.index(row["name"]) if row["name"] in OWN else len(OWN))
    for row in rows:
        low, high = row["drop_interval"]
        smaller = f"{row['size_ratio']:.2f}x" if row["size_ratio"] else "no file"
        lines.append(
            f"| {row['name']} | {row['target']} | {row['fp32_accuracy']:.2%} | {row['accuracy']:.2%} | "
            f"{row['drop_points']:+.2f} [{low:+.2f}, {high:+.2f}] | {row['speedup']:.2f}x | {smaller} |"
        )
    later: dict[str, list[str]] = {}
    for row in result["rows"]:
        if "commit" in row:
            later.setdefault(f"{row['machine']}; commit {row['commit']}", []).append(f"{row['name']} on {row['target']}")
    apart = "".join(f" Measured apart ({where}): {', '.join(names)}." for where, names in later.items())
    return "\n".join([*lines, "", f"n = {result['n']:,}; {result['setting']} {_machine(result)}{apart}"])


def quantization_peers(result: dict[str, Any]) -> str:
    """Fidelity and speed beside other quantizers."""
    parts: Mapping[str, dict[str, Any]] = result["parts"]
    lines: list[str] = []
    if "fidelity" in parts:
        lines += ["EfficientNet-Lite0, INT8 by calibration only, each file on its own runtime:", ""]
        lines += ["| | runtime | agreement with FP32 top-1 | SQNR of logits | speed-up | seconds |", "|---|---|---:|---:|---:|---:|"]
        for row in parts["fidelity"]["rows"]:
            lines.append(
                f"| {row['name']} | {row['target']} | {row['agreement']:.1%} | {row['sqnr_db']:.1f} dB | {row['speedup']:.2f}x | {row['seconds']:.1f} |"
            )
        lines += [""]
    speeds = {name.partition(":")[2]: part for name, part in parts.items() if name.startswith("speed:")}
    if speeds:
        lines += ["FP32/INT8 latency, random weights:", "", "| | runtime | gossamer | others |", "|---|---|---:|---|"]
        for network, part in speeds.items():
            for runtime, found in part["runtimes"].items():
                others = ", ".join(f"{name} {row['speedup']:.2f}x" for name, row in found.items() if name not in ("fp32", "gossamer"))
                lines.append(f"| {network} | {runtime} | {found['gossamer']['speedup']:.2f}x | {others} |")
        lines += [""]
    missing = [f"{name}: {why}" for part in parts.values() for name, why in part["failed"].items()]
    missing += [f"{name}: {why}" for name, why in result["not_run"].items()]
    lines += [f"Not run: {'; '.join(missing)}.", ""] if missing else []
    versions = {name: version for part in parts.values() for name, version in part["versions"].items()}
    return "\n".join([*lines, f"{result['setting']} {_machine({**next(iter(parts.values())), 'versions': versions})}"])


def calibration_scaling(result: dict[str, Any]) -> str:
    """One line for each point."""
    lines = [
        "Planning INT8 as samples and networks grow:",
        "",
        "| parameters | samples | CPU seconds | more memory |",
        "|---:|---:|---:|---:|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["params"], row["samples"])):
        lines.append(f"| {row['params']:,} | {row['samples']} | {row['cpu_seconds']:.2f} | {row['more_memory_mb']:.0f} MB |")
    return "\n".join([*lines, "", f"{result['setting']}. {_machine(result)}"])


_LISTS = {"tv": "torchvision classifiers", "hf": "transformers", "own": "U-Net, detector backbone with FPN, LSTM, GRU"}


def coverage(result: dict[str, Any]) -> str:
    """Counts and extremes per list of models, and what could not be reached."""
    models: Mapping[str, dict[str, Any]] = result["models"]
    lists: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in models.items():
        lists.setdefault(_LISTS.get(name.rpartition(":")[0], "timm model families"), {})[name] = found
    lines = [
        f"Half of the channels of every group removed, from {len(models)} architectures:",
        "",
        "| | passed | seconds: median, most | MB: median, most | prunable MACs: median, least | ONNX Runtime differs at most by |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, entries in lists.items():
        measured = [found for found in entries.values() if "macs_ratio" in found]
        times = [sum(found[stage] for stage in ("capture_s", "score_s", "plan_s", "apply_s")) for found in measured]
        memory = [found["peak_memory_mb"] for found in measured]
        shares = [found["prunable_macs_share"] for found in measured]
        lines.append(
            f"| {title} | {sum(found['ok'] for found in entries.values())} of {len(entries)} | {median(times):.1f}, {max(times):.0f} "
            f"| {median(memory):,.0f}, {max(memory):,} | {median(shares):.0%}, {min(shares):.0%} "
            f"| {max(found['onnx_relative_error'] for found in measured):.1e} |"
        )
    failed = [f"{name} ({found['error']})" for name, found in models.items() if not found["ok"]]
    lines += ["", f"Not passed: {'; '.join(failed)}."] if failed else []
    if result.get("not_measured"):
        lines += ["", f"Not measured yet: {', '.join(result['not_measured'])}."]
    commits = sorted({found["commit"] for found in models.values()})
    return "\n".join(
        [
            *lines,
            "",
            "Passed: what is left equals the original with those channels masked (relative error of at most 1e-5), has fewer parameters and "
            "MACs, trains one step with all gradients, and ONNX Runtime computes the same from its file (1e-4); from eager module to pruned "
            f"network in at most {result['limit_s']} s and {result['limit_mb']:,} MB. Prunable MACs are those of layers of which at least one axis "
            f"can shrink. Random weights, one run each. {_machine({**result, 'commit': ', '.join(commits)})}",
        ]
    )


def efficientnet_lite0_pruning(result: dict[str, Any]) -> str:
    """Every criterion before and after repair, best first within each mode."""
    lines = [
        "EfficientNet-Lite0, channels removed and weights repaired on crops of five photos, no labels:",
        "",
        "| criterion | mode | agreement, other crops: removed, repaired | SQNR of logits | agreement, other photos | SQNR of logits | speed-up |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["mode"] != "layerwise", -row["repaired"]["seen"]["sqnr_db"])):
        cells = []
        for crops in ("seen", "others"):
            cells.append(f"{row['removed'][crops]['agreement']:.0%}, {row['repaired'][crops]['agreement']:.0%}")
            cells.append(f"{row['removed'][crops]['sqnr_db']:.1f}, {row['repaired'][crops]['sqnr_db']:.1f} dB")
        lines.append(f"| `{row['criterion']}` | {row['mode']} | {' | '.join(cells)} | {row['speedup']:.2f}x |")
    return "\n".join([*lines, "", f"{result['setting']} {_machine(result)}"])


def torch_pruning(result: dict[str, Any]) -> str:
    """Side by side with Torch-Pruning: medians, then one row a model."""
    found, second = result["summary"], result["second_plan"]
    fresh = sum(entry["commit"] == result["commit"] for entry in result["models"].values())
    lines = [
        f"Half of the channels of every group removed from {found['models']} models: {found['ours_run']} of ours run, {found['theirs_run']} of "
        f"Torch-Pruning's. Where both do, its median time is {found['speedup']:.1f}x ours with the proof that nothing else changed "
        f"({found['proof_share']:.0%} of our time), {found['speedup_without_proof']:.1f}x without, {found['speedup_with_capture']:.1f}x when the "
        f"capture, once per model, is counted, too; its working memory is {found['memory_ratio']:.1f}x ours "
        f"({found['memory_ratio_with_capture']:.1f}x with capture, {found['memory_ratio_with_capture_and_modules']:.1f}x when torch's export, "
        f"which capture loads, is counted as well). A second plan for ResNet-50 takes {second['ratio_s']:.3f} s, one for a "
        f"budget {second['budget_s']:.2f} s.",
        "",
        "| | ours (capture) | of it proof | Torch-Pruning | memory, ours | Torch-Pruning | MACs left, ours | Torch-Pruning |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, entry in result["models"].items():
        ours, theirs = entry["ours"], entry["theirs"]
        lines.append(
            f"| {name} | {_number(ours, 'seconds', '.2f')} s ({_number(ours, 'capture_s', '.1f')} s) | {_number(ours, 'proof_s', '.2f')} s | "
            f"{_number(theirs, 'seconds', '.2f')} s | {_number(ours, 'memory_mb', '.0f')} MB | {_number(theirs, 'memory_mb', '.0f')} MB | "
            f"{_left(ours)} | {_left(theirs)} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"CPU seconds of one thread, {min(entry['runs'] for entry in result['models'].values())} or more runs of each; {fresh} of the "
            f"models at this commit, the others at earlier ones. {_machine(result)}",
        ]
    )


def _number(side: dict[str, Any], key: str, form: str) -> str:
    return format(side[key], form) if key in side else "-"


def _left(side: dict[str, Any]) -> str:
    return f"{side['macs_ratio']:.0%}" if side["runs"] and "macs_ratio" in side else "does not run"


def _machine(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    threads = f", {result['threads']} thread{'s' if result['threads'] > 1 else ''}" if "threads" in result else ""
    return f"({result['machine']}{threads}; {versions}; commit {result['commit']})"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": demo,
    "import_time": import_time,
    "coverage": coverage,
    "efficientnet_lite0_int8": efficientnet_lite0_int8,
    "efficientnet_lite0_w4a8": efficientnet_lite0_w4a8,
    "efficientnet_lite0_pruning": efficientnet_lite0_pruning,
    "mnist_pruning": mnist_pruning,
    "torch_pruning": torch_pruning,
    "half_quadratic": half_quadratic,
    "mixed_precision": mixed_precision,
    "streaming": streaming,
    "targets": targets,
    "export_time": export_time,
    "quantization_peers": quantization_peers,
    "quantization_peers_avx2": quantization_peers,
    "minilm_reviews": minilm_reviews,
    "calibration_scaling": calibration_scaling,
}


def fill(text: str) -> str:
    """The page with every block between `<!-- results:NAME -->` and `<!-- /results -->` written anew."""

    def block(match: re.Match[str]) -> str:
        path = RESULTS / f"{match[1]}.json"
        table = TABLES[match[1]](json.loads(path.read_text())) if path.exists() else "*(not measured yet)*"
        return f"<!-- results:{match[1]} -->\n{table}\n<!-- /results -->"

    return re.sub(r"<!-- results:(\w+) -->\n(?:.*?\n)??<!-- /results -->", block, text, flags=re.DOTALL)


def main() -> None:
    pages = {page: fill(page.read_text()) for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
    behind = [page for page, filled in pages.items() if filled != page.read_text()]
    if "--check" in sys.argv[1:]:
        sys.exit(f"{behind[0].relative_to(ROOT)} is not up to date: python benchmarks/tables.py" if behind else 0)
    for page in behind:
        page.write_text(pages[page])


if __name__ == "__main__":
    main()

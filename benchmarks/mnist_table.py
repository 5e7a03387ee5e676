"""The README's tables of benchmarks/results/mnist_pruning.json."""

from __future__ import annotations

from typing import Any

WAYS = ("one_shot", "repaired", "plain", "distilled_same", "distilled_all")


def mnist_pruning(result: dict[str, Any]) -> str:
    """By criterion one-shot and repaired; fine-tuned; in rounds."""
    cells = {tuple(key.split(" ")): cell for key, cell in result["cells"].items()}
    lines = []
    for name, network in result["networks"].items():
        lines += _by_criterion(name, network, {key[1:]: cell for key, cell in cells.items() if key[0] == name}, result)
    lines += _tuned({key: cell for key, cell in cells.items() if "plain" in cell}, result)
    lines += [line for name, entry in result["rounds"].items() for line in _in_rounds(name, entry)]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines.append(f"({result['machine']}, 1 thread; {versions}; commit {result['commit']}; {result['seconds'] / 60:.0f} minutes)")
    return "\n".join(lines)


def _by_criterion(name: str, network: dict[str, Any], cells: dict[tuple[str, ...], Any], result: dict[str, Any]) -> list[str]:
    shares = sorted({key[1] for key in cells})
    lines = [
        f"{name} ({network['params']:,} parameters, {network['accuracy']:.2%} of {result['samples']:,}): one-shot → repaired from "
        f"{result['calibration']} images without labels, by share of parameters removed (n = {result['untrained_samples']:,})",
        "",
        f"| criterion | {' | '.join(shares)} |",
        f"|---|{'---:|' * len(shares)}",
    ]
    for criterion in dict.fromkeys(key[0] for key in cells):
        row = [_pair(cells.get((criterion, share), {})) for share in shares]
        lines.append(f"| {criterion} | {' | '.join(row)} |")
    return [*lines, ""]


def _pair(cell: dict[str, Any]) -> str:
    return (
        f"{cell['one_shot']['accuracy']:.1%} → {cell['repaired']['accuracy']:.1%}"
        if "repaired" in cell
        else "cannot be reached"
        if cell
        else ""
    )


def _tuned(cells: dict[tuple[str, ...], Any], result: dict[str, Any]) -> list[str]:
    lines = [
        f"Fine-tuned from the repaired network, {result['steps']} updates each: plain and distilled (same) on {result['labels']:,} labelled images, "
        f"distilled (all) on as many batches of unlabelled images out of all {result['train_samples']:,}; "
        f"the better of the learning rates {', '.join(map(str, result['learning_rates']))} on 2,000 further training images; n = {result['samples']:,}",
        "",
        "| network, criterion | removed | plain | distilled (same) | distilled (all) | same - plain, points, 95 % | all - plain, points, 95 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, criterion, share), cell in cells.items():
        shown = [f"{cell[way]['accuracy']:.2%}" if way in cell else "" for way in WAYS[2:]]
        gained = [_gain(cell.get(f"{way}_minus_plain_points")) for way in WAYS[3:]]
        lines.append(f"| {name}, {criterion} | {share} | {' | '.join([*shown, *gained])} |")
    return [*lines, ""]


def _gain(interval: list[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _in_rounds(name: str, entry: dict[str, Any]) -> list[str]:
    before, after = entry["original"], entry["compressed"]
    low, high = entry["drop_interval"]
    return [
        f"{name} in {len(entry['rounds'])} rounds on all training images, verified in ONNX Runtime: "
        f"{1 - after['params'] / before['params']:.1%} fewer parameters, {1 - after['macs'] / before['macs']:.1%} fewer MACs, "
        f"{entry['speedup']:.2f}x faster (batch {entry['batch']}), accuracy {before['accuracy']:.2%} → {after['accuracy']:.2%} "
        f"({-entry['drop_points']:+.2f} points, 95 % [{-high:+.2f}, {-low:+.2f}]).",
        "",
    ]

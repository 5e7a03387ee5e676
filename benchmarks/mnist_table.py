"""The README's tables of benchmarks/results/mnist_pruning.json."""

from __future__ import annotations

from typing import Any


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
    shares = sorted({share for _, _, share in cells})
    past = [cell for (_, _, share), cell in cells.items() if float(share[:-1]) >= 70]
    won = sum(cell["distilled_all_minus_plain_points"][0] > 0 for cell in past)
    lost = sum(cell["distilled_all_minus_plain_points"][1] < 0 for cell in past)
    lines = [
        f"Fine-tuned from the repaired network, {result['steps']} updates each: by {result['labels']:,} labelled images → by the original as teacher on as "
        f"many batches of unlabelled images out of all {result['train_samples']:,}; the better of the learning rates "
        f"{', '.join(map(str, result['learning_rates']))} on 2,000 further training images; n = {result['samples']:,}. Bold: better with its whole 95 % "
        f"interval. From 70 % on, the teacher's is better in {won} of {len(past)} cells, worse in {lost}.",
        "",
        f"| network, criterion | {' | '.join(shares)} |",
        f"|---|{'---:|' * len(shares)}",
    ]
    for row in dict.fromkeys((name, criterion) for name, criterion, _ in cells):
        lines.append(f"| {', '.join(row)} | {' | '.join(_won(cells.get((*row, share))) for share in shares)} |")
    return [*lines, "", *_on_the_same(cells, result)]


def _won(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    plain, distilled = (f"{cell[way]['accuracy']:.2%}" for way in ("plain", "distilled_all"))
    low, high = cell["distilled_all_minus_plain_points"]
    return f"{'**' * (high < 0)}{plain}{'**' * (high < 0)} → {'**' * (low > 0)}{distilled}{'**' * (low > 0)}"


def _on_the_same(cells: dict[tuple[str, ...], Any], result: dict[str, Any]) -> list[str]:
    """What the teacher gives without more images."""
    gains = [cell["distilled_same_minus_plain_points"] for cell in cells.values() if "distilled_same_minus_plain_points" in cell]
    better, worse = sum(low > 0 for low, _ in gains), sum(high < 0 for _, high in gains)
    return [
        f"Labels and teacher on the same {result['labels']:,} images ({', '.join(result['fully_tuned'])}): better than labels alone in {better} of {len(gains)} "
        f"cells, worse in {worse}.",
        "",
    ]


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

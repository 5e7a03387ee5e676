"""What verifying found, as data: one Report, its JSON form, and the one table that text, console and HTML show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from gossamer.errors import DataError, GossamerError
from gossamer.numerics.intervals import Interval
from gossamer.plan.budget import Budget
from gossamer.targets.chip import ChipReport
from gossamer.targets.energy import energy_facts
from gossamer.targets.limits import Limit, check_limits
from gossamer.targets.measurement import Measurement, interval, number

FORMAT = 1
SPARSE = 0.15  # zeros more than in the original, as a share, from which on they are shown


@dataclass(frozen=True, slots=True)
class LayerParity:
    """One quantized value: `values` codes compared with the simulation, the farthest `max_steps` code steps away."""

    name: str
    max_steps: int
    values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How close the file's own numbers are to the simulation.

    max_steps        farthest code in code steps, over all quantized values, each computed from the runtime's own inputs
    values_compared  codes and outputs compared
    output_error     relative error of the float outputs, against the same simulation or the float program
    """

    max_steps: int
    values_compared: int
    output_error: float
    layers: tuple[LayerParity, ...] = ()


NOT_FASTER = "Dense kernels multiply zeros like any number, so zeros make the file pack smaller and nothing faster."


class Row(NamedTuple):
    """One line of the table, as text."""

    name: str
    before: str
    after: str
    ratio: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Original against compressed, both measured in one run from their files on the target's runtime.

    size_ratio, speedup  original / compressed: above 1 is better (speedup: of the medians)
    paired_speedup       median of the ratios of neighbouring calls; far from speedup where the machine was busy
    drop_points          accuracy lost in percentage points, with the 95 % interval of the paired difference
    budget_met           whether every limit of the budget holds (True without a budget)
    problems             what failed, one sentence each; empty when everything holds
    threads, batch       of the latency; accuracy does not depend on them
    seconds              what verifying took
    samples              of the validation data
    repeats, steady      calls of each network that the latency is the median of; steady: none of them was disturbed by
                         other programs
    layer_sparsity       share of zeros of each weight in the compressed file
    notes                what users of the compressed file must know, one sentence each
    chip                 what a chip will make of the compressed file, for targets that write for chips
    """

    original: Measurement
    compressed: Measurement
    size_ratio: float
    speedup: float
    paired_speedup: float
    drop_points: float
    drop_interval: Interval
    parity: Parity
    budget: Budget | None
    budget_met: bool
    problems: tuple[str, ...]
    target: str
    threads: int
    batch: int
    seed: int
    seconds: float
    samples: int
    metric: str
    repeats: int = 0
    steady: bool = True
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    layer_sparsity: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chip: ChipReport | None = None

    @property
    def sparse(self) -> bool:
        """Whether so many weights are zero that the report speaks of it; rounding to codes alone makes a few per cent."""
        return self.compressed.sparsity - self.original.sparsity >= SPARSE

    @property
    def timed(self) -> bool:
        """Whether latency was measured: not where something else had to run the file in place of the target's runtime."""
        return not math.isnan(self.compressed.latency_ms)

    @property
    def passed(self) -> bool:
        """Parity within the target's tolerance, and the budget met."""
        return not self.problems

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, which tables show as per cent; another one is shown as it is."""
        values = (*self.original.accuracy_interval, *self.compressed.accuracy_interval)
        return min(values) >= 0 and max(values) <= 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as `--json` prints it and report.json holds it."""
        data = asdict(self)
        data["budget"] = None if self.budget is None else self.budget.to_json()
        data["versions"] = dict(self.versions)
        data["layer_sparsity"] = dict(self.layer_sparsity)
        return {"format": FORMAT, **_lists(data)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Report:
        """Inverse of to_dict; keys of other parts of a report document are passed over.

        Raises: DataError for data of another form.
        """
        try:
            return _report(data)
        except (KeyError, TypeError, ValueError, AttributeError, GossamerError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"this is no report of ours ({reason}); write it with result.save.") from error

    def limits(self) -> tuple[Limit, ...]:
        """The budget's limits against what was measured."""
        return check_limits(self.budget, self.original, self.compressed, self.drop_points)

    def rows(self) -> tuple[Row, ...]:
        """The table: name, before, after, ratio, all as text. Ratios are original / compressed."""
        before, after = self.original, self.compressed
        low, high = self.drop_interval
        return (
            Row(
                "accuracy",
                _accuracy(before, self.percent),
                _accuracy(after, self.percent),
                f"{round(-self.drop_points, 2) + 0.0:+.2f} points",
            ),
            Row(
                "latency_ms",
                _milliseconds(before.latency_ms),
                _milliseconds(after.latency_ms),
                f"{self.speedup:.2f}x" if self.timed else "-",
            ),
            Row("size_bytes", f"{before.size_bytes:,}", f"{after.size_bytes:,}", f"{self.size_ratio:.2f}x"),
            Row("macs", f"{before.macs:,}", f"{after.macs:,}", _ratio(before.macs, after.macs)),
            Row("params", f"{before.params:,}", f"{after.params:,}", _ratio(before.params, after.params)),
            Row(
                "peak_memory_bytes",
                f"{before.peak_memory_bytes:,}",
                f"{after.peak_memory_bytes:,}",
                _ratio(before.peak_memory_bytes, after.peak_memory_bytes),
            ),
            *self._ram_rows(),
            *self._sparsity_rows(),
            Row("drop", "", f"{self.drop_points:.2f} points [{low:.2f}, {high:.2f}]", ""),
        )

    def _ram_rows(self) -> tuple[Row, ...]:
        before, after = self.original.ram_bytes, self.compressed.ram_bytes
        return (Row("ram_bytes", f"{before:,}", f"{after:,}", _ratio(before, after)),) if after else ()

    def _sparsity_rows(self) -> tuple[Row, ...]:
        before, after = self.original, self.compressed
        if not self.sparse:
            return ()
        return (
            Row("sparsity", f"{100 * before.sparsity:.2f} %", f"{100 * after.sparsity:.2f} %", ""),
            Row(
                "download_bytes",
                f"{before.download_bytes:,}",
                f"{after.download_bytes:,}",
                _ratio(before.download_bytes, after.download_bytes),
            ),
        )

    def facts(self) -> tuple[str, ...]:
        """How it was measured, one sentence each; whatever failed comes last."""
        parity = self.parity
        return (
            f"{self.target}, batch {self.batch}, {count(self.threads, 'thread')}, {count(self.samples, 'sample')}, metric {self.metric}, "
            f"95 % intervals, {self.seconds:.1f} s.",
            f"Parity: {parity.values_compared:,} values compared, at most {count(parity.max_steps, 'step')} apart, "
            f"output error {parity.output_error:.1e}.",
            *([f"{100 * self.compressed.sparsity:.0f} % of the weights are zero. {NOT_FASTER}"] if self.sparse else []),
            *([] if self.steady else ["The machine was too busy for steady times; measure latency again when it is idle."]),
            *self.notes,
            *energy_facts(self.original.energy, self.compressed.energy),
            *(() if self.chip is None else self.chip.facts()),
            *(["The budget is met."] if self.budget is not None and self.budget_met else []),
            *self.problems,
        )

    def __str__(self) -> str:
        table = aligned([Row("", "before", "after", "ratio"), *self.rows()])
        return "\n".join([*table, "", *self.facts()])


def aligned(rows: Sequence[Row]) -> list[str]:
    """Lines of a plain table: names to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip() for row in rows]


def count(number: int, noun: str) -> str:
    """ "1 thread", "2 threads", "1,000 samples"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _accuracy(measured: Measurement, percent: bool) -> str:
    values = (measured.accuracy, *measured.accuracy_interval)
    if percent:
        return "{:.2f} % [{:.2f}, {:.2f}]".format(*(100 * value for value in values))
    return "{:.4g} [{:.4g}, {:.4g}]".format(*values)


def _milliseconds(value: float) -> str:
    if math.isnan(value):
        return "not measured"
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}x" if after else "-"


def _lists(value: Any) -> Any:
    """Tuples as lists, so that to_dict equals what comes back from JSON."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (tuple, list)) else value


def _report(data: Mapping[str, Any]) -> Report:
    if data["format"] != FORMAT:
        raise DataError(f"it has format {data['format']!r}, this version reads {FORMAT}")
    parity, timed = data["parity"], data["compressed"]["latency_ms"] is not None
    return Report(
        original=Measurement.from_dict(data["original"]),
        compressed=Measurement.from_dict(data["compressed"]),
        size_ratio=number(data["size_ratio"]),
        speedup=number(data["speedup"]) if timed else math.nan,
        paired_speedup=number(data["paired_speedup"]) if timed else math.nan,
        drop_points=number(data["drop_points"]),
        drop_interval=interval(data["drop_interval"]),
        parity=Parity(
            max_steps=int(parity["max_steps"]),
            values_compared=int(parity["values_compared"]),
            output_error=number(parity["output_error"]),
            layers=tuple(LayerParity(str(layer["name"]), int(layer["max_steps"]), int(layer["values"])) for layer in parity["layers"]),
        ),
        budget=None if data["budget"] is None else Budget(**data["budget"]),
        budget_met=bool(data["budget_met"]),
        problems=tuple(map(str, data["problems"])),
        target=str(data["target"]),
        threads=int(data["threads"]),
        batch=int(data["batch"]),
        seed=int(data["seed"]),
        seconds=number(data["seconds"]),
        samples=int(data["samples"]),
        metric=str(data["metric"]),
        repeats=int(data.get("repeats", 0)),
        steady=bool(data.get("steady", True)),
        machine=str(data.get("machine", "")),
        versions={str(key): str(value) for key, value in data.get("versions", {}).items()},
        layer_sparsity={str(key): number(value) for key, value in data.get("layer_sparsity", {}).items()},
        notes=tuple(map(str, data.get("notes", ()))),
        chip=None if data.get("chip") is None else ChipReport.from_dict(data["chip"]),
    )

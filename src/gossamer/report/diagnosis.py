"""A diagnosis for people: rows of its tables, its page, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gossamer.files import write_json, write_text
from gossamer.report.diagnosis_charts import depth_chart
from gossamer.report.templates import render
from gossamer.search.diagnosis.findings import Cure, Damage, Diagnosis, Finding, decibels_text

JSON_NAME, PAGE_NAME, PLAN_NAME = "diagnosis.json", "diagnosis.html", "cured-plan.json"


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One tensor as text. number: its place in order of execution; cells: isolated dB, KL, gathered dB, own dB, clipping, beyond codes."""

    number: int
    name: str
    where: str
    cells: tuple[str, ...]
    cause: str
    sentence: str
    cures: tuple[CureRow, ...]


@dataclass(frozen=True, slots=True)
class CureRow:
    """One cure as text."""

    name: str
    gain: str
    after: str
    kl: str
    cost: str
    chosen: bool
    helps: bool


def finding_rows(diagnosis: Diagnosis) -> list[FindingRow]:
    """All tensors, most damage first."""
    numbers = {finding.name: place for place, finding in enumerate(diagnosis.findings, start=1)}
    return [_finding_row(finding, numbers[finding.name]) for finding in diagnosis.worst]


def _finding_row(finding: Finding, number: int) -> FindingRow:
    cells = (
        decibels_text(finding.isolated.output_db),
        kl_text(finding.isolated),
        decibels_text(finding.cumulative_db),
        decibels_text(finding.own_db),
        f"{100 * finding.clipping_share:.0f} %",
        f"{100 * finding.clipped_share:.2g} %",
    )
    where = f"{finding.kind}, {finding.format}" + (f", of {finding.layer}" if finding.layer != finding.name else "")
    return FindingRow(
        number, finding.name, where, cells, finding.cause.label, finding.cause.sentence, tuple(cure_row(cure) for cure in finding.cures)
    )


def cure_row(cure: Cure) -> CureRow:
    """One cure as text: gain in dB of the outputs' SQNR."""
    cost = f"{100 * cure.float_share:.2g} % of the MACs in float" if cure.float_share else "none" if cure.name != "keep float" else "little"
    return CureRow(
        cure.name,
        f"{round(cure.gain_db, 1) + 0.0:+.1f} dB",
        decibels_text(cure.after.output_db),
        kl_text(cure.after),
        cost,
        cure.chosen,
        cure.gain_db >= 0.1,
    )


def kl_text(damage: Damage) -> str:
    """Two digits; a dash where outputs have no classes."""
    return "-" if damage.kl is None else f"{damage.kl:.2g}"


def facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Names and values of what decides what the figures mean."""
    rows = [
        ("outputs, quantized", f"{decibels_text(diagnosis.quantized.output_db)} dB, KL {kl_text(diagnosis.quantized)}"),
        ("outputs, cured", f"{decibels_text(diagnosis.cured.output_db)} dB, KL {kl_text(diagnosis.cured)}"),
        ("cures chosen", ", ".join(f"{cure.name}{' of ' + cure.where if cure.where else ''}" for cure in diagnosis.chosen) or "none"),
        ("samples", f"{diagnosis.samples:,}, without labels; cures are measured on the same ones"),
        ("cost", f"{diagnosis.runs:.0f} runs of the network over them, {diagnosis.seconds:.1f} s"),
    ]
    return rows + [("note", note) for note in diagnosis.notes]


def render_diagnosis(diagnosis: Diagnosis, title: str) -> str:
    """The HTML of a diagnosis: one file that needs no network and no script. Same diagnosis, same text."""
    return render("diagnosis.html", title=title or "Quantized network", **section(diagnosis))


def section(diagnosis: Diagnosis) -> dict[str, object]:
    """What the template of the section needs."""
    from markupsafe import Markup

    return {
        "diagnosis": diagnosis,
        "diagnosis_chart": Markup(depth_chart(diagnosis.findings)),
        "finding_rows": finding_rows(diagnosis),
        "network_cures": [cure_row(cure) for cure in diagnosis.network],
        "diagnosis_facts": facts(diagnosis),
    }


def write_diagnosis(diagnosis: Diagnosis, folder: str | Path, title: str) -> tuple[Path, ...]:
    """Write diagnosis.json, diagnosis.html and, where cures were chosen, cured-plan.json; each atomically. Returns their paths.

    Raises: FileError when the folder cannot be written.
    """
    folder = Path(folder)
    write_json(folder / JSON_NAME, {"model": title, **diagnosis.to_dict()})
    write_text(folder / PAGE_NAME, render_diagnosis(diagnosis, title))
    if diagnosis.plan is None:
        (folder / PLAN_NAME).unlink(missing_ok=True)
        return folder / JSON_NAME, folder / PAGE_NAME
    return folder / JSON_NAME, folder / PAGE_NAME, diagnosis.plan.save(folder / PLAN_NAME)

"""A plan: edits for one network, and what was left alone and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.errors import FileError, GossamerError, PlanError
from gossamer.files import read_json, write_json
from gossamer.plan.edits import Edit, edit_from_json, edit_to_json
from gossamer.program.program import Program

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Frozen:
    """Something that was left as it is: where, and why in plain words."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Edits to one network, as data. Apply it with `gossamer.apply`.

    model_digest    structure of the network it was made for; another one is refused
    weights_digest  set when the edits hold numbers read from the weights; then other weights are refused, too
    target          runtime that quantizers were chosen for, or ""
    frozen          what was not touched, and why; reports show it
    notes           what to know about how it was made, in sentences
    """

    edits: tuple[Edit, ...]
    model_digest: str
    weights_digest: str = ""
    target: str = ""
    frozen: tuple[Frozen, ...] = ()
    notes: tuple[str, ...] = ()

    def check_fits(self, program: Program) -> None:
        """Raise PlanError when the plan was made for another network."""
        if self.model_digest != program.digest:
            raise PlanError("the plan was made for another network (its structure differs); make a plan for this one.")
        if self.weights_digest and self.weights_digest != program.weights_digest():
            raise PlanError("the plan was made for other weights of this network (it was trained since); make the plan again.")

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "model_digest": self.model_digest,
            "weights_digest": self.weights_digest,
            "target": self.target,
            "frozen": [{"where": item.where, "reason": item.reason} for item in self.frozen],
            **({"notes": list(self.notes)} if self.notes else {}),
            "edits": [edit_to_json(edit) for edit in self.edits],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Inverse of to_json. Raises PlanError for data of another form."""
        try:
            if data["format"] != FORMAT:
                raise PlanError(
                    f"the plan has format {data['format']}, this version reads {FORMAT}; load it with the version that wrote it."
                )
            return Plan(
                edits=tuple(edit_from_json(item) for item in data["edits"]),
                model_digest=data["model_digest"],
                weights_digest=data["weights_digest"],
                target=data["target"],
                frozen=tuple(Frozen(item["where"], item["reason"]) for item in data["frozen"]),
                notes=tuple(map(str, data.get("notes", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"this is no plan of ours (missing or wrong: {error}); write it with plan.save.") from error

    def save(self, path: str | Path) -> Path:
        """Write plan.json, atomically."""
        write_json(Path(path), self.to_json())
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan. Raises FileError when the file is missing, truncated or no plan."""
        data = read_json(Path(path), "plan")
        try:
            return Plan.from_json(data)
        except FileError:
            raise
        except GossamerError as error:
            raise FileError(path, f"is no plan ({error})", "write it with plan.save") from error

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for edit in self.edits:
            kinds[type(edit).__name__] = kinds.get(type(edit).__name__, 0) + 1
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no edits"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"Plan({counted}; {len(self.frozen)} frozen{notes})"

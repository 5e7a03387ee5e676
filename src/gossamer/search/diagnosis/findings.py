"""What a diagnosis found, as data, with its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gossamer.errors import DataError
from gossamer.plan.plan import Plan

FORMAT = 1
VALUE, WEIGHT = "value", "weight"


@dataclass(frozen=True, slots=True)
class Damage:
    """What a change does to the network's outputs.

    output_db  signal-to-quantization-noise ratio of the outputs in dB, against the float network; infinite where they are equal
    kl         mean of KL(softmax(float) || softmax(changed)) in nats over samples and positions; None for outputs without classes
    """

    output_db: float
    kl: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why coding one tensor hurts: a name in causes.rules, a sentence with the figures, and the figures."""

    label: str
    sentence: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """One change of the plan that was made and measured.

    where        the tensor that it is about; "" where it is about the whole network
    before       of the quantized network as it is; after: with this cure alone
    float_share  share of the network's MACs that are computed in float because of it: what it costs in speed
    chosen       whether it is part of Diagnosis.plan
    """

    where: str
    name: str
    before: Damage
    after: Damage
    float_share: float = 0.0
    chosen: bool = False

    @property
    def gain_db(self) -> float:
        """How much the outputs' SQNR rises, in dB."""
        return 0.0 if self.after.output_db == self.before.output_db else self.after.output_db - self.before.output_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One quantized tensor.

    name, kind       of the value or weight; kind is "value" or "weight"
    layer            the user's module that makes the value or holds the weight
    format           of its codes, with "per channel" or "per block"
    isolated         what it does to the outputs when it alone is quantized
    own_db           SQNR of the tensor itself, when it alone is quantized
    cumulative_db    SQNR of the value (a weight: of its layer's result) with all quantizers at work
    clipping_share   share of the tensor's error energy that clipping makes; the rest is rounding
    clipped_share    share of its numbers beyond the codes
    """

    name: str
    kind: str
    layer: str
    format: str
    isolated: Damage
    own_db: float
    cumulative_db: float
    clipping_share: float
    clipped_share: float
    cause: Cause
    cures: tuple[Cure, ...] = ()

    @property
    def rounding_share(self) -> float:
        """Share of the error energy that rounding makes."""
        return 1.0 - self.clipping_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Findings in order of execution, and what helps.

    quantized  damage of the quantized network as it is; cured: with the chosen cures
    network    cures of the whole network that were tried
    plan       the plan with the chosen cures, for the same float network; None where none helped or none was tried
    samples    of the data that damage was measured on
    runs       what measuring cost, in runs of the whole network over these samples
    notes      what was not looked at, and why
    """

    findings: tuple[Finding, ...]
    quantized: Damage
    cured: Damage
    network: tuple[Cure, ...]
    plan: Plan | None
    samples: int
    runs: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> tuple[Finding, ...]:
        """The findings, most damage first."""
        return tuple(sorted(self.findings, key=lambda finding: finding.isolated.output_db))

    @property
    def chosen(self) -> tuple[Cure, ...]:
        """The cures that are in `plan`."""
        cures = (*self.network, *(cure for finding in self.worst for cure in finding.cures))
        return tuple(cure for cure in cures if cure.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the plan, which is saved by itself. Infinite figures become None."""
        data = {name: value for name, value in asdict(_without_plan(self)).items() if name != "plan"}
        return {"format": FORMAT, **finite(data)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Diagnosis:
        """Inverse of to_dict but for the plan. Raises: DataError for data of another form."""
        try:
            if data["format"] != FORMAT:
                raise DataError(f"it has format {data['format']!r}, this version reads {FORMAT}")
            return Diagnosis(
                findings=tuple(map(_finding, data["findings"])),
                quantized=_damage(data["quantized"]),
                cured=_damage(data["cured"]),
                network=tuple(map(_cure, data["network"])),
                plan=None,
                samples=int(data["samples"]),
                runs=float(data["runs"]),
                seconds=float(data["seconds"]),
                notes=tuple(map(str, data["notes"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"this is no diagnosis of ours ({reason}); make it again.") from error

    def __str__(self) -> str:
        lines = [f"outputs: {decibels_text(self.quantized.output_db)} dB quantized, {decibels_text(self.cured.output_db)} dB cured"]
        for finding in self.worst:
            lines.append(f"{decibels_text(finding.isolated.output_db):>6} dB  {finding.kind:6}  {finding.name}: {finding.cause.label}")
        return "\n".join(lines)


def decibels_text(value: float) -> str:
    """One decimal; "exact" for no error at all."""
    return "exact" if value == math.inf else f"{value:.1f}"


def _without_plan(diagnosis: Diagnosis) -> Diagnosis:
    return replace(diagnosis, plan=None)


def finite(value: Any) -> Any:
    """Plain data in which infinite figures are None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finding(data: Mapping[str, Any]) -> Finding:
    cause = data["cause"]
    return Finding(
        name=str(data["name"]),
        kind=str(data["kind"]),
        layer=str(data["layer"]),
        format=str(data["format"]),
        isolated=_damage(data["isolated"]),
        own_db=_decibels(data["own_db"]),
        cumulative_db=_decibels(data["cumulative_db"]),
        clipping_share=float(data["clipping_share"]),
        clipped_share=float(data["clipped_share"]),
        cause=Cause(str(cause["label"]), str(cause["sentence"]), {str(key): _decibels(item) for key, item in cause["evidence"].items()}),
        cures=tuple(map(_cure, data["cures"])),
    )


def _cure(data: Mapping[str, Any]) -> Cure:
    return Cure(
        where=str(data["where"]),
        name=str(data["name"]),
        before=_damage(data["before"]),
        after=_damage(data["after"]),
        float_share=float(data["float_share"]),
        chosen=bool(data["chosen"]),
    )


def _damage(data: Mapping[str, Any]) -> Damage:
    return Damage(_decibels(data["output_db"]), None if data["kl"] is None else float(data["kl"]))


def _decibels(value: Any) -> float:
    """What is not finite was written as None: of a ratio of signal to noise, no noise at all."""
    return math.inf if value is None else float(value)

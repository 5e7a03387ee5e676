"""What a run of `compress` was asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gossamer.errors import ConfigError
from gossamer.numerics.formats import parse_any_format
from gossamer.numerics.saliency import criteria
from gossamer.pipeline.quantized_training import Qat
from gossamer.plan.constraints import Constraints
from gossamer.plan.equalization import equalizations
from gossamer.plan.pruning import MODES
from gossamer.plan.rounding import roundings
from gossamer.plan.scheme import Scheme
from gossamer.search.precision_settings import PrecisionSearch
from gossamer.train.recipe import Recipe

TOURNAMENT, MIXED, AUTO = "tournament", "mixed", "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything but the model, the data and the budget.

    target      runtime that runs the artifact
    epochs      of fine-tuning with the original as teacher after channels were removed; 0 for none
    criterion   how channels are ranked, "" to choose: "taylor" with labelled training data, else "l2"; "tournament" to let
                calibration data decide, see gossamer.search.tournament
    recipe      how to fine-tune, None for the defaults of Recipe; its loss ranks channels and counts in training through the rounding, too.
                Networks that do not give class scores need Recipe(loss=..., alpha=0), or training data without targets
    mode        how groups are compared, see plan_pruning: "global", "layerwise" or "isomorphic"
    constraints what pruning must leave; with multiple 1, widths are rounded to what the target's kernels like
    weights     format of weights in codes, such as "int8" or "int4"; "mixed" for a format for each layer; "auto" for the widest that the
                target's kernels compute exactly on this processor: "int8", but "int7" for OpenVINO without VNNI
    precision   what formats by layer keep to and are chosen from, where weights is "mixed"; None for the defaults of PrecisionSearch.
                Latency is measured with `batch` and `threads`
    activations format of values, such as "uint4"; None for the one that the target likes best
    scheme      how ranges, scales and codes are found, see plan_quantization
    qat         when and how candidates are trained through their rounding
    batch       inputs per call when latency is measured
    threads     of the runtime
    trials      how many ratios are tried at most
    """

    target: str = "onnxruntime"
    epochs: int = 4
    recipe: Recipe | None = None
    criterion: str = ""
    mode: str = "global"
    constraints: Constraints = field(default_factory=Constraints)
    weights: str = AUTO
    precision: PrecisionSearch | None = None
    activations: str | None = None
    scheme: Scheme = field(default_factory=Scheme)
    qat: Qat = field(default_factory=Qat)
    batch: int = 64
    threads: int = 1
    seed: int = 0
    trials: int = 6

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch", 1), ("threads", 1), ("trials", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(name, value, f"an int of at least {least}")
        if self.mode not in MODES:
            raise ConfigError("mode", self.mode, f"one of {', '.join(MODES)}")
        if self.criterion and self.criterion != TOURNAMENT:
            criteria.entry(self.criterion)
        if self.weights != MIXED:
            if self.weights != AUTO:
                parse_any_format(self.weights)
            if self.precision is not None:
                raise ConfigError("precision", self.precision.to_json(), f"None unless weights is {MIXED!r}")
        if self.activations is not None:
            parse_any_format(self.activations)
        roundings.entry(self.scheme.rounding)
        equalizations.entry(self.scheme.equalization)

    @property
    def precision_search(self) -> PrecisionSearch:
        """What formats by layer are chosen by."""
        return replace(self.precision or PrecisionSearch(), batch=self.batch, threads=self.threads)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(replace(self, qat=Qat(), precision=None, recipe=None))
        del plain["recipe"]
        plain |= {} if self.recipe is None else {"recipe": self.recipe.to_json()}
        precision = self.precision_search.to_json() if self.weights == MIXED else None
        return {**plain, "constraints": self.constraints.to_json(), "qat": self.qat.to_json(), "precision": precision}

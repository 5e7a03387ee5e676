"""What a run of `prune_rounds` was asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gossamer.errors import ConfigError
from gossamer.numerics.saliency import criteria
from gossamer.plan.constraints import Constraints
from gossamer.plan.pruning import MODES
from gossamer.train.recipe import Recipe

SCHEDULES = ("cubic", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """Everything but the network, the data and the goal.

    rounds       how many times to score, remove and fine-tune
    schedule     how the share that has gone rises: "cubic", much at first and little at the end (Zhu and Gupta 2017,
                 arXiv:1710.01878), or "linear"
    criterion    how channels are ranked, anew in each round
    mode         "global", "layerwise" or "isomorphic", see plan_pruning
    constraints  what must stay, relative to the network at the start
    repair       refit weights on a few inputs after each removal, before fine-tuning
    samples      of the training data that criteria and repair see
    epochs       of fine-tuning per round, with the network at the start as teacher
    recipe       how to fine-tune; a small learning rate by default
    fade_epochs  before each removal: epochs in which a growing penalty presses the channels that will go towards zero, its
                 strength reaching `fade_ceiling` half-way (see train.penalty.GrowingPenalty); 0 for none

    Raises: ConfigError for a setting outside its rule.
    """

    rounds: int = 4
    schedule: str = "cubic"
    criterion: str = "taylor"
    mode: str = "global"
    constraints: Constraints = field(default_factory=Constraints)
    repair: bool = True
    samples: int = 512
    epochs: int = 1
    recipe: Recipe = field(default_factory=Recipe)
    fade_epochs: int = 0
    fade_ceiling: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("samples", 1), ("epochs", 1), ("fade_epochs", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"RoundSettings.{name}", value, f"a whole number, at least {least}")
        for name, known in (("schedule", SCHEDULES), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"RoundSettings.{name}", getattr(self, name), f"one of {', '.join(known)}")
        if (
            isinstance(self.fade_ceiling, bool)
            or not isinstance(self.fade_ceiling, (int, float))
            or not 0 < self.fade_ceiling < float("inf")
        ):
            raise ConfigError("RoundSettings.fade_ceiling", self.fade_ceiling, "a positive number")
        if self.fade_epochs and self.recipe.penalty is not None:
            raise ConfigError("RoundSettings.recipe", self.recipe.penalty, "one without a penalty of its own when fade_epochs is set")
        criteria.entry(self.criterion)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = ("rounds", "schedule", "criterion", "mode", "repair", "samples", "epochs", "fade_epochs", "fade_ceiling", "seed")
        plain = {name: getattr(self, name) for name in own}
        return {**plain, "constraints": self.constraints.to_json(), "recipe": self.recipe.to_json()}

    def progress(self, number: int) -> float:
        """Share of the whole removal that has been done after round `number` (1 is the first); 1 after the last."""
        left = 1 - number / self.rounds
        return 1 - (left**3 if self.schedule == "cubic" else left)

"""Training through the rounding, where planned codes alone lose too much: starts from them, taught by the float network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gossamer.batches import as_batches
from gossamer.errors import ConfigError
from gossamer.numerics.formats import IntFormat
from gossamer.program.program import Program
from gossamer.progress import OnProgress
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe

WHEN = ("auto", "always", "never")
FEW_BITS, FEW_BITS_RATE, RATE = 4, 0.01, 0.001  # of scales and zero points, see Recipe.quantizer_learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Qat:
    """When and how a candidate is trained through its rounding (quantization-aware training).

    when    "auto": where the file with planned codes loses more accuracy than the budget allows, and there is training data;
            "always"; "never"
    epochs  of the training data
    recipe  how to train; None for the default one, in which scales and zero points learn, too, the faster the fewer the bits

    Raises: ConfigError for a setting outside its rule.
    """

    when: str = "auto"
    epochs: int = 2
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        if self.when not in WHEN:
            raise ConfigError("Qat.when", self.when, f"one of {', '.join(WHEN)}")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise ConfigError("Qat.epochs", self.epochs, "a whole number, at least 1")

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"when": self.when, "epochs": self.epochs, "recipe": None if self.recipe is None else self.recipe.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class QatOutcome:
    """What training through the rounding did to a candidate's file.

    planned_drop_points  accuracy that the file lost with planned codes, in percentage points
    trained_drop_points  that it loses with trained ones; None where it could not be trained
    kept                 whether the trained network is the candidate: it is where it loses less
    problem              why it could not be trained, in a sentence; "" where it was
    """

    epochs: int
    planned_drop_points: float
    trained_drop_points: float | None = None
    kept: bool = False
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> QatOutcome:
        """Inverse of to_json."""
        return QatOutcome(**data)

    @property
    def sentence(self) -> str:
        """What happened, for the report."""
        before = f"with planned codes the file loses {self.planned_drop_points:.2f} points"
        if self.trained_drop_points is None:
            return f"quantization-aware training was not possible ({self.problem.rstrip('.')}); {before}."
        after = f"after {self.epochs} epoch{'s' if self.epochs > 1 else ''} {self.trained_drop_points:.2f}"
        return f"{before}, {after} of quantization-aware training{'' if self.kept else ', so that it was not kept'}."


def train_quantized(
    planned: Program,
    teacher: Program,
    train_data: Any,
    qat: Qat,
    *,
    tuned: Recipe | None = None,
    checkpoint: Path,
    seed: int,
    on_progress: OnProgress,
) -> Program:
    """Train a planned network through its rounding, taught by the float network; masks stay. Resumes from its checkpoint.

    tuned  how the float network was fine-tuned; its loss is used here, too, unless `qat` has a recipe of its own

    Raises: like fit.
    """
    recipe = qat.recipe or default_recipe(planned, tuned)
    batches = as_batches(train_data, what="training", batch_size=recipe.batch_size, shuffle=True)
    return fit(
        planned, batches, teacher=teacher, epochs=qat.epochs, recipe=recipe, checkpoint=checkpoint, seed=seed, on_progress=on_progress
    )


def default_recipe(planned: Program, tuned: Recipe | None = None) -> Recipe:
    """Scales and zero points learn, too: with formats of few bits in larger steps. What is learned is as in `tuned`."""
    bits = [quantizer.format.bits for quantizer in planned.quantizers.values() if isinstance(quantizer.format, IntFormat)]
    few = min(bits, default=8) <= FEW_BITS
    like = tuned or Recipe()
    return Recipe(
        quantizer_learning_rate=FEW_BITS_RATE if few else RATE,
        loss=like.loss,
        alpha=like.alpha,
        temperature=like.temperature,
        batch_size=like.batch_size,
    )

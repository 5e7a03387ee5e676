"""The options of `gossamer compress`, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.command import DATA_HELP, MODEL_HELP
from gossamer.numerics.ranges import range_methods
from gossamer.numerics.saliency import criteria
from gossamer.pipeline.quantized_training import WHEN
from gossamer.plan.chips import chips
from gossamer.plan.equalization import equalizations
from gossamer.plan.rounding import roundings
from gossamer.search.sensitivity import sensitivities

CRITERION_HELP = (
    f"How channels are ranked: {', '.join(criteria.names())}, or tournament (the best of them). "
    "Default: taylor with labelled training data, else l2."
)
WEIGHT_BUDGET_HELP = (
    'What mixed must keep to: a cost ("5 bits" a weight, "300 kB", "1.8x" as fast as float, "2 ms", or several: "300 kB, 1.8x") or a damage '
    '("40 dB", "0.01 nats" of KL). Default: 6 bits.'
)
QAT_HELP = (
    f"Train through the rounding: {', '.join(WHEN)}; auto: where the file with planned codes loses more accuracy than --max-drop "
    "and the data has a training part."
)
LOSS_HELP = (
    "What fine-tuning lowers: package.module:function (outputs, targets) -> one number, for targets that are no class numbers. "
    "Default: cross-entropy, with the original as teacher."
)
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP, show_default=False)]
DataOption = Annotated[str, typer.Option(help=DATA_HELP, show_default=False)]
TargetOption = Annotated[str, typer.Option(help="Runtime that will run the artifact.")]
MaxDropOption = Annotated[float | None, typer.Option(help="Accuracy that may be lost, in percentage points.")]
MinSpeedupOption = Annotated[float | None, typer.Option(help="Latency of the original / latency of the artifact.")]
MinSizeRatioOption = Annotated[float | None, typer.Option(help="Size of the original's file / size of the artifact.")]
MaxLatencyOption = Annotated[float | None, typer.Option(help="Latency of a batch on this machine.")]
BoardOption = Annotated[str, typer.Option(help=f"A chip whose flash and RAM must suffice: {', '.join(chips.names())}.", show_default=False)]
MetricOption = Annotated[str, typer.Option(help="top1, top5, or package.module:function of (outputs, targets); higher is better.")]
LossOption = Annotated[str | None, typer.Option(help=LOSS_HELP, show_default=False)]
CriterionOption = Annotated[str, typer.Option(help=CRITERION_HELP, show_default=False)]
ModeOption = Annotated[str, typer.Option(help="How layers are compared: global, layerwise, or isomorphic.")]
SkipOption = Annotated[list[str] | None, typer.Option(help='A layer that stays whole, or several ("features.*"); may be repeated.')]
OnlyOption = Annotated[list[str] | None, typer.Option(help="Remove channels of these layers only; may be repeated.")]
WeightFormatOption = Annotated[
    str,
    typer.Option(
        help="Format of weights in codes: int8, int7, int4 ...; mixed: by layer; auto: int8, or the widest that is exact on this processor."
    ),
]
WeightBudgetOption = Annotated[str | None, typer.Option(help=WEIGHT_BUDGET_HELP, show_default=False)]
WeightChoicesOption = Annotated[
    str | None,
    typer.Option(help="Formats that mixed takes from. Default: those of int4, int8 and float that the target has.", show_default=False),
]
SensitivityOption = Annotated[
    str | None, typer.Option(help=f"How mixed finds what a format damages: {', '.join(sensitivities.names())}.", show_default=False)
]
ActivationFormatOption = Annotated[
    str | None,
    typer.Option(help="Format of values in codes: uint8, uint4 ... Default: what the target likes best.", show_default=False),
]
RoundingOption = Annotated[str, typer.Option(help=f"How weights get codes: {', '.join(roundings.names())}.")]
RangesOption = Annotated[str, typer.Option(help=f"Which range codes cover: {', '.join(range_methods.names())}.")]
EqualizationOption = Annotated[str, typer.Option(help=f"How scale moves between channels first: {', '.join(equalizations.names())}.")]
EpochsOption = Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning after channels are removed; 0 for none.")]
QatOption = Annotated[str, typer.Option(help=QAT_HELP)]
QatEpochsOption = Annotated[int, typer.Option(min=1, help="Epochs of training through the rounding.")]
TrialsOption = Annotated[int, typer.Option(min=1, help="How many candidates are tried at most.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples per call when latency is measured.")]
OutOption = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for the artifact, the bundle, and the report.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run kept in OUT and start anew.")]

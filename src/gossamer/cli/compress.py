"""gossamer compress: the whole way from a trained network to a proven artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.text import Text

from gossamer.cli.command import (
    DATA_HELP,
    MODEL_HELP,
    DebugOption,
    JsonOption,
    PickOption,
    SeedOption,
    ThreadsOption,
    command,
    messages,
    picked,
    show,
    show_json,
)
from gossamer.cli.progress_view import shown_progress
from gossamer.data.models import NamedModel, load_model
from gossamer.data.named import load_data
from gossamer.data.source import Data
from gossamer.data.user_code import resolve
from gossamer.errors import ConfigError
from gossamer.numerics.ranges import range_methods
from gossamer.numerics.saliency import criteria
from gossamer.pipeline.loop import compress as run_compress
from gossamer.pipeline.quantized_training import WHEN, Qat
from gossamer.pipeline.result import Result
from gossamer.pipeline.settings import Settings
from gossamer.plan.budget import Budget
from gossamer.plan.chips import chips
from gossamer.plan.constraints import Constraints
from gossamer.plan.equalization import equalizations
from gossamer.plan.rounding import roundings
from gossamer.plan.scheme import Scheme
from gossamer.report.console import console_view
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import sensitivities

WORK = "work"
_DEFAULT = Settings()
EPILOG = (
    "Example: gossamer compress --model my.nets:make --weights w.safetensors --data my.data:loaders --max-drop 0.5 --min-speedup 2.5 -o out/ "
    "  Exit code 1 when the budget is missed or the file differs from its simulation; the best found is written all the same."
)
OutOption = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for the artifact, the bundle, and the report.")]
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
LayersOption = Annotated[list[str] | None, typer.Option(help='A layer that stays whole, or several ("features.*"); may be repeated.')]
MetricOption = Annotated[str, typer.Option(help="top1, top5, or package.module:function of (outputs, targets); higher is better.")]


@command
def compress(
    model: Annotated[str, typer.Option(help=MODEL_HELP, show_default=False)],
    data: Annotated[str, typer.Option(help=DATA_HELP, show_default=False)],
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file with the model's weights.")] = None,
    target: Annotated[str, typer.Option(help="Runtime that will run the artifact.")] = "onnxruntime",
    max_drop: Annotated[float | None, typer.Option(help="Accuracy that may be lost, in percentage points.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Latency of the original / latency of the artifact.")] = None,
    min_size_ratio: Annotated[float | None, typer.Option(help="Size of the original's file / size of the artifact.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Latency of a batch on this machine.")] = None,
    board: Annotated[
        str, typer.Option(help=f"A chip whose flash and RAM must suffice: {', '.join(chips.names())}.", show_default=False)
    ] = "",
    metric: MetricOption = "top1",
    output: PickOption = None,
    criterion: Annotated[str, typer.Option(help=CRITERION_HELP, show_default=False)] = _DEFAULT.criterion,
    mode: Annotated[str, typer.Option(help="How layers are compared: global, layerwise, or isomorphic.")] = _DEFAULT.mode,
    skip: LayersOption = None,
    only: Annotated[list[str] | None, typer.Option(help="Remove channels of these layers only; may be repeated.")] = None,
    weight_format: Annotated[
        str, typer.Option(help="Format of weights in codes: int8, int7 (for processors without VNNI), int4 ... or mixed: by layer.")
    ] = _DEFAULT.weights,
    weight_budget: Annotated[str | None, typer.Option(help=WEIGHT_BUDGET_HELP, show_default=False)] = None,
    weight_choices: Annotated[
        str | None, typer.Option(help="Formats that mixed takes from. Default: int4,int8,float.", show_default=False)
    ] = None,
    sensitivity: Annotated[
        str | None, typer.Option(help=f"How mixed finds what a format damages: {', '.join(sensitivities.names())}.", show_default=False)
    ] = None,
    activation_format: Annotated[
        str | None,
        typer.Option(help="Format of values in codes: uint8, uint4 ... Default: what the target likes best.", show_default=False),
    ] = None,
    rounding: Annotated[str, typer.Option(help=f"How weights get codes: {', '.join(roundings.names())}.")] = _DEFAULT.scheme.rounding,
    ranges: Annotated[str, typer.Option(help=f"Which range codes cover: {', '.join(range_methods.names())}.")] = _DEFAULT.scheme.ranges,
    equalization: Annotated[
        str, typer.Option(help=f"How scale moves between channels first: {', '.join(equalizations.names())}.")
    ] = _DEFAULT.scheme.equalization,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning after channels are removed; 0 for none.")] = _DEFAULT.epochs,
    qat: Annotated[str, typer.Option(help=QAT_HELP)] = _DEFAULT.qat.when,
    qat_epochs: Annotated[int, typer.Option(min=1, help="Epochs of training through the rounding.")] = _DEFAULT.qat.epochs,
    trials: Annotated[int, typer.Option(min=1, help="How many candidates are tried at most.")] = _DEFAULT.trials,
    batch: Annotated[int, typer.Option(min=1, help="Samples per call when latency is measured.")] = _DEFAULT.batch,
    threads: ThreadsOption = _DEFAULT.threads,
    seed: SeedOption = _DEFAULT.seed,
    out: OutOption = Path("out"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run kept in OUT and start anew.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Make a trained network small and fast, and prove it on the target's own runtime.

    Without a budget (--max-drop, --min-speedup, ...) the network is only quantized. An interrupted run goes on where it
    was when the same command is run again.
    """
    budget = Budget(
        max_drop_points=max_drop, min_speedup=min_speedup, min_size_ratio=min_size_ratio, max_latency_ms=max_latency_ms, board=board
    )
    settings = Settings(
        target=target,
        epochs=epochs,
        criterion=criterion,
        mode=mode,
        constraints=Constraints(skip=tuple(skip or ()), only=tuple(only or ())),
        weights=weight_format,
        precision=_precision(weight_budget, weight_choices, sensitivity),
        activations=activation_format,
        qat=Qat(when=qat, epochs=qat_epochs),
        scheme=Scheme(rounding=rounding, ranges=ranges, equalization=equalization),
        trials=trials,
        batch=batch,
        threads=threads,
        seed=seed,
    )
    torch.manual_seed(seed)
    named = load_model(model, weights)
    for note in named.notes:
        messages().print(Text(f"Note: {note}.", style="yellow"), soft_wrap=True)
    source = load_data(data)
    source = replace(source, notes=(*source.notes, *named.notes))
    result = compress_into(out, named, source, budget, settings, metric=find_metric(metric), output=picked(output), fresh=fresh)
    return lambda: report_result(result, out, json=json)


def _precision(budget: str | None, formats: str | None, sensitivity: str | None) -> PrecisionSearch | None:
    """What formats by layer are chosen by; None where nothing is said about it."""
    given: dict[str, Any] = {} if sensitivity is None else {"sensitivity": sensitivity}
    if budget is not None:
        given["budget"] = PrecisionBudget.parse(budget)
    if formats is not None:
        given["formats"] = tuple(name.strip() for name in formats.split(","))
    return PrecisionSearch(**given) if given else None


def compress_into(
    out: Path,
    model: NamedModel,
    data: Data,
    budget: Budget,
    settings: Settings,
    *,
    metric: Any = "top1",
    output: str | int | None = None,
    fresh: bool = False,
) -> Result:
    """Compress with progress on standard error, keep trials in OUT/work, and save everything in OUT."""
    work = out / WORK
    if fresh and (work / "run.json").exists():
        shutil.rmtree(work)
    options: dict[str, Any] = {"metric": metric, "output": output, "work_dir": work, "settings": settings}
    with shown_progress(messages()) as on_progress:
        try:
            result = run_compress(model.module, data, settings.target, budget, on_progress=on_progress, **options)
        except ConfigError as error:
            if error.name == "work_dir":
                rule = "a folder of the same run, or a new one; add --fresh to throw away what is kept there"
                raise ConfigError("OUT", str(out), rule) from error
            raise
    result = replace(result, model=model.name)
    result.save(out)
    return result


def report_result(result: Result, out: Path, *, json: bool) -> bool:
    """Print the outcome; says whether everything asked for holds."""
    if json:
        show_json(result.to_dict())
    else:
        show(console_view(result.to_dict()))
        show(Text(f"\nWritten to {out}: {result.artifact.path.name} (the artifact), model.gossamer, plan.json, report.json, report.html"))
    return result.report.passed


def find_metric(text: str) -> Any:
    """A metric's name as it is; for package.module:function, the function."""
    return resolve(text, "metric") if ":" in text else text

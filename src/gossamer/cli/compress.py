"""gossamer compress: the whole way from a trained network to a proven artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from gossamer.cli.command import (
    DebugOption,
    JsonOption,
    PickOption,
    SeedOption,
    ThreadsOption,
    WeightsOption,
    command,
    messages,
    picked,
    show,
    show_json,
)
from gossamer.cli.compress_options import (
    ActivationFormatOption,
    BatchOption,
    BoardOption,
    CriterionOption,
    DataOption,
    EpochsOption,
    EqualizationOption,
    FreshOption,
    LossOption,
    MaxDropOption,
    MaxLatencyOption,
    MetricOption,
    MinSizeRatioOption,
    MinSpeedupOption,
    ModelOption,
    ModeOption,
    OnlyOption,
    OutOption,
    QatEpochsOption,
    QatOption,
    RangesOption,
    RoundingOption,
    SensitivityOption,
    SkipOption,
    TargetOption,
    TrialsOption,
    WeightBudgetOption,
    WeightChoicesOption,
    WeightFormatOption,
)
from gossamer.cli.progress_view import shown_progress
from gossamer.data.models import NamedModel, load_model
from gossamer.data.named import load_data
from gossamer.data.source import Data
from gossamer.data.user_code import resolve
from gossamer.errors import ConfigError
from gossamer.pipeline.loop import compress as run_compress
from gossamer.pipeline.quantized_training import Qat
from gossamer.pipeline.result import Result
from gossamer.pipeline.settings import MIXED, Settings
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.scheme import Scheme
from gossamer.report.console import console_view
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.train.recipe import Recipe

WORK = "work"
_DEFAULT = Settings()
EPILOG = (
    "Example: gossamer compress --model my.nets:make --weights w.safetensors --data my.data:loaders --max-drop 0.5 --min-speedup 2.5 -o out/ "
    "  Exit code 1 when the budget is missed or the file differs from its simulation; the best found is written all the same."
)


@command
def compress(
    model: ModelOption,
    data: DataOption,
    weights: WeightsOption = None,
    target: TargetOption = "onnxruntime",
    max_drop: MaxDropOption = None,
    min_speedup: MinSpeedupOption = None,
    min_size_ratio: MinSizeRatioOption = None,
    max_latency_ms: MaxLatencyOption = None,
    board: BoardOption = "",
    metric: MetricOption = "top1",
    output: PickOption = None,
    loss: LossOption = None,
    criterion: CriterionOption = _DEFAULT.criterion,
    mode: ModeOption = _DEFAULT.mode,
    skip: SkipOption = None,
    only: OnlyOption = None,
    weight_format: WeightFormatOption = _DEFAULT.weights,
    weight_budget: WeightBudgetOption = None,
    weight_choices: WeightChoicesOption = None,
    sensitivity: SensitivityOption = None,
    activation_format: ActivationFormatOption = None,
    rounding: RoundingOption = _DEFAULT.scheme.rounding,
    ranges: RangesOption = _DEFAULT.scheme.ranges,
    equalization: EqualizationOption = _DEFAULT.scheme.equalization,
    epochs: EpochsOption = _DEFAULT.epochs,
    qat: QatOption = _DEFAULT.qat.when,
    qat_epochs: QatEpochsOption = _DEFAULT.qat.epochs,
    trials: TrialsOption = _DEFAULT.trials,
    batch: BatchOption = _DEFAULT.batch,
    threads: ThreadsOption = _DEFAULT.threads,
    seed: SeedOption = _DEFAULT.seed,
    out: OutOption = Path("out"),
    fresh: FreshOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Make a trained network small and fast, and prove it on the target's own runtime.

    Without a budget (--max-drop, --min-speedup, ...) the network is only quantized. An interrupted run goes on where it
    was when the same command is run again.
    """
    budget = Budget(max_drop_points=max_drop, min_speedup=min_speedup, min_size_ratio=min_size_ratio, max_latency_ms=max_latency_ms)
    budget = replace(budget, board=board)
    settings = Settings(target=target, epochs=epochs, trials=trials, batch=batch, threads=threads, seed=seed)
    settings = replace(settings, criterion=criterion, mode=mode, constraints=Constraints(skip=tuple(skip or ()), only=tuple(only or ())))
    settings = replace(settings, weights=weight_format, precision=_precision(weight_format, weight_budget, weight_choices, sensitivity))
    settings = replace(settings, activations=activation_format, scheme=Scheme(rounding=rounding, ranges=ranges, equalization=equalization))
    settings = replace(settings, qat=Qat(when=qat, epochs=qat_epochs), recipe=_recipe(loss))
    torch.manual_seed(seed)
    named, source = _load(model, weights, data)
    result = compress_into(out, named, source, budget, settings, metric=find_metric(metric), output=picked(output), fresh=fresh)
    return lambda: report_result(result, out, json=json)


def _recipe(loss: str | None) -> Recipe | None:
    """How to fine-tune by a loss of the user's: by nothing else, since the original's outputs need not be class scores."""
    return None if loss is None else Recipe(loss=resolve(loss, "loss"), alpha=0.0)


def _load(model: str, weights: Path | None, data: str) -> tuple[NamedModel, Data]:
    """The model and the data, which gets the notes on both; tells those on the model."""
    named = load_model(model, weights)
    for note in named.notes:
        messages().print(Text(f"Note: {note}.", style="yellow"), soft_wrap=True)
    source = load_data(data)
    return named, replace(source, notes=(*source.notes, *named.notes))


def _precision(weights: str, budget: str | None, formats: str | None, sensitivity: str | None) -> PrecisionSearch | None:
    """What formats by layer are chosen by; None where nothing is said about it. Raises ConfigError where all layers get one format."""
    for name, value in (("--weight-budget", budget), ("--weight-choices", formats), ("--sensitivity", sensitivity)):
        if value is not None and weights != MIXED:
            raise ConfigError(name, value, f"left out, or --weight-format be {MIXED!r} (it is {weights!r})")
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
                rule = f"{error.rule.rpartition(';')[0]}; choose another one, or add --fresh to throw away what is kept there"
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

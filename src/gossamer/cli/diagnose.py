"""gossamer diagnose: why a quantized network lost accuracy, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Group
from rich.text import Text

from gossamer.apply.engine import apply
from gossamer.batches import as_batches
from gossamer.cli.command import (
    MODEL_HELP,
    DebugOption,
    JsonOption,
    PickOption,
    RunDataOption,
    WeightsOption,
    command,
    messages,
    picked,
    show,
    show_json,
)
from gossamer.cli.progress_view import shown_progress
from gossamer.cli.report import load_finished
from gossamer.cli.verify import find_data
from gossamer.data.models import load_model
from gossamer.data.named import load_data
from gossamer.data.source import Data
from gossamer.errors import ConfigError
from gossamer.files import read_json
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.program.bundle import load
from gossamer.program.capture import capture
from gossamer.program.program import Program
from gossamer.progress import OnProgress
from gossamer.report.diagnosis import write_diagnosis
from gossamer.report.diagnosis_console import diagnosis_view
from gossamer.search.diagnosis.diagnose import SAMPLES, WORST
from gossamer.search.diagnosis.diagnose import diagnose as run_diagnose

TARGET = "onnxruntime"
WHAT_HELP = f"Folder of `gossamer compress -o`, or a model to quantize and diagnose: {MODEL_HELP}"


@dataclass(frozen=True, slots=True)
class Case:
    """What is diagnosed: both networks, the data, the plan, and where files go unless that is said."""

    quantized: Program
    original: Program
    data: Data
    plan: Plan | None
    folder: Path


@command
def diagnose(
    what: Annotated[str, typer.Argument(metavar="RUN_FOLDER_OR_MODEL", help=WHAT_HELP, show_default=False)],
    data: RunDataOption = None,
    weights: WeightsOption = None,
    target: Annotated[str | None, typer.Option(help="Runtime to quantize a model for.", show_default=TARGET)] = None,
    output: PickOption = None,
    float_network: Annotated[
        Path | None, typer.Option("--float", metavar="FILE", help="The float network of a quantized .gossamer file.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples that damage is measured on.")] = SAMPLES,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst tensors get cures; 0 for none.")] = WORST,
    keep_float: Annotated[
        bool, typer.Option("--keep-float", help="Also choose cures that leave layers in float, which costs speed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="Folder for diagnosis.html, diagnosis.json and cured-plan.json.")
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Show which coded tensors hurt the outputs, why, and which cures help, each one tried.

    Needs no labels. Nothing but the files of the diagnosis is written.
    """
    torch.manual_seed(0)
    with shown_progress(messages()) as on_progress:
        if Path(what).is_dir():
            _check_run_options({"--weights": weights, "--target": target, "--output": output, "--float": float_network})
            case = _run_folder(Path(what), data)
        else:
            case = _model(what, data, weights, target or TARGET, output, float_network, on_progress)
        found = run_diagnose(
            case.quantized,
            case.original,
            case.data.calibration,
            plan=case.plan,
            samples=samples,
            worst=worst,
            keep_float=keep_float,
            on_progress=on_progress,
        )
    written = write_diagnosis(found, out or case.folder, what)

    def report() -> bool:
        if json:
            show_json({"model": what, **found.to_dict()})
        else:
            show(Group(diagnosis_view(found), Text(f"\nWritten: {', '.join(map(str, written))}")))
        return True

    return report


def _check_run_options(options: Mapping[str, object]) -> None:
    """Raise ConfigError for an option that a finished run has decided already."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(name, str(value), "left out for the folder of a run, which has its own")


def _run_folder(folder: Path, data: str | None) -> Case:
    """The networks of a finished run: what was quantized is the pruned network."""
    document = load_finished(folder)
    plans = read_json(folder / "plan.json", "plan of a run")
    return Case(
        quantized=load(folder / "model.gossamer"),
        original=load(folder / "pruned.gossamer"),
        data=find_data(data, document),
        plan=Plan.from_json(plans["quantization"]),
        folder=folder,
    )


def _model(
    what: str, data: str | None, weights: Path | None, target: str, output: str | None, float_network: Path | None, on_progress: OnProgress
) -> Case:
    """A quantized bundle with its float network, or a float model that is quantized first."""
    if data is None:
        raise ConfigError("--data", data, "given for a model: diagnosing needs samples")
    source = load_data(data)
    named = load_model(what, weights)
    folder = Path("diagnosis")
    if isinstance(named.module, Program) and named.module.quantizers:
        if float_network is None:
            raise ConfigError("--float", None, f"the .gossamer file of the float network that {what} was quantized from")
        return Case(named.module, load(float_network), source, None, folder)
    batches = as_batches(source.calibration, what="calibration")
    inputs, _ = batches.first()
    original = named.module if isinstance(named.module, Program) else capture(named.module, inputs, output=picked(output))
    plan = plan_quantization(original, batches, target, on_progress=on_progress)
    return Case(apply(original, plan), original, source, plan, folder)

"""gossamer verify: run the artifact again and hold it against the original and the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from gossamer.cli.command import DebugOption, FolderArgument, JsonOption, RunDataOption, command, messages, show, show_json
from gossamer.cli.compress import find_metric
from gossamer.cli.progress_view import shown_progress
from gossamer.cli.report import load_finished
from gossamer.data.named import load_data
from gossamer.data.source import Data
from gossamer.errors import ConfigError
from gossamer.pipeline.trial import artifact_name
from gossamer.program.bundle import load
from gossamer.report.console import result_table
from gossamer.targets.metrics import metrics
from gossamer.targets.results import Report
from gossamer.targets.target import Artifact
from gossamer.targets.verify import verify as run_verify


@command
def verify(
    out: FolderArgument,
    data: RunDataOption = None,
    metric: Annotated[str | None, typer.Option(help="As in compress; the metric of the compress run when left out.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; those of the compress run when left out.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per call for latency; as in the compress run when left out.")] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> Callable[[], bool]:
    """Run the artifact again on its runtime: parity, accuracy, latency, size, and the budget it was made for.

    Exit code 1 when verifying fails or the budget is missed on this machine. Nothing in OUT is changed.
    """
    document = load_finished(out)
    before = Report.from_dict(document)
    folder = out if out.is_dir() else out.parent
    source = find_data(data, document)
    with shown_progress(messages()) as on_progress:
        found = run_verify(
            Artifact(folder / artifact_name(before.target), before.target, load(folder / "model.gossamer")),
            reference=original(folder, before.target),
            data=source.validation,
            metric=_metric(metric, before.metric),
            budget=before.budget,
            threads=threads or before.threads,
            batch=batch or before.batch,
            seed=before.seed,
            on_progress=on_progress,
        )

    def report() -> bool:
        if json:
            show_json(found.to_dict())
        else:
            facts = [Text(fact, style="bold red" if fact in found.problems else "") for fact in found.facts()]
            show(Group(result_table(found), *facts, Text("Verified." if found.passed else "Not verified.")))
        return found.passed

    return report


def find_data(text: str | None, document: dict[str, Any]) -> Data:
    """The data that is named, or that the report names. Raises ConfigError when neither does."""
    name = text or document.get("data", "")
    if not name:
        raise ConfigError("--data", text, "given: the report does not name the data that it was made with")
    return load_data(name)


def original(out: Path, target: str) -> Artifact:
    """The uncompressed network's file and program."""
    return Artifact(out / f"original-{artifact_name(target)}", target, load(out / "original.gossamer"))


def _metric(text: str | None, recorded: str) -> Any:
    if text is None and recorded not in metrics:
        raise ConfigError("--metric", None, f"given as package.module:function: the run used a function of its own ({recorded})")
    return find_metric(text or recorded)

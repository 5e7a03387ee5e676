"""What all commands share: options, consoles, and how errors, --json and Ctrl-C end."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from gossamer.errors import GossamerError

P = ParamSpec("P")
MISSED, FAILED, INTERRUPTED = 1, 2, 130
PIPE_COLUMNS = 120

DATA_HELP = "mnist (5,000 digits of this package), mnist:DIR, images:DIR?size=224, or package.module:loaders."
MODEL_HELP = "package.module:factory, timm:NAME, torchvision:NAME, or a .gossamer file."
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random; same seed, same machine, same result.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the runtime when latency is measured.")]
PickOption = Annotated[
    str | None,
    typer.Option("--output", help="Key or index of the tensor that counts, for a model that returns more than one.", show_default=False),
]
WeightsOption = Annotated[Path | None, typer.Option(help="A .safetensors file with the model's weights.")]
RunDataOption = Annotated[str | None, typer.Option(help=f"{DATA_HELP} The data of the compress run when left out.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `gossamer compress -o OUT` wrote.", show_default=False)]


def messages() -> Console:
    """The console for people while something runs: standard error."""
    return Console(stderr=True)


def picked(output: str | None) -> str | int | None:
    """The key or index that --output names."""
    return int(output) if output is not None and output.removeprefix("-").isdigit() else output


def show(view: Any) -> None:
    """Print a table or text on standard output; a pipe, whose width nobody knows, gets 120 columns unless COLUMNS says another."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(width=PIPE_COLUMNS)
    console.print(view)


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line on standard output. JSON has no NaN and no infinity: they become null."""
    sys.stdout.write(json.dumps(_finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def command(function: Callable[P, Callable[[], bool]]) -> Callable[P, None]:
    """Wrap the body of a command: it works, then returns a function that prints the outcome and says whether all is well.

    While it works, standard output is redirected to standard error, so that whatever the user's own code prints cannot
    get between the lines of --json. Exit codes: 0 all is well; 1 the budget is missed or verifying failed; 2 an error
    that the user can mend, told in one sentence; 130 interrupted.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                report = function(*args, **kwargs)
            well = report()
        except GossamerError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            messages().print(Text(f"Error: {error}", style="red"), soft_wrap=True)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            messages().print(Text(f"Interrupted. {_resume_hint(kwargs)}", style="yellow"), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from error
        if not well:
            raise typer.Exit(MISSED)

    return run


def _resume_hint(options: Mapping[str, Any]) -> str:
    kept = options.get("destination", options["out"] if "fresh" in options else None)
    if kept is None:
        return "Run the same command again to start anew."
    return f"Run the same command again: it goes on from what is kept in {kept}."

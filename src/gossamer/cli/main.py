"""The program `gossamer`."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from gossamer.cli.compress import EPILOG, compress
from gossamer.cli.compress_weights import compress_weights
from gossamer.cli.demo import demo
from gossamer.cli.diagnose import diagnose
from gossamer.cli.inspect import inspect
from gossamer.cli.report import report
from gossamer.cli.targets import targets_command
from gossamer.cli.verify import verify

DEFECT = 3
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 the budget is missed or verifying failed; 2 a mistake in what was asked, told in one sentence; "
    "3 a defect in gossamer; 130 interrupted."
)

app = typer.Typer(
    name="gossamer",
    help="Makes trained PyTorch networks small and fast, and proves it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=EPILOG)(compress)
app.command()(compress_weights)
app.command()(inspect)
app.command()(verify)
app.command()(diagnose)
app.command()(report)
app.command("targets")(targets_command)
app.command()(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gossamer {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return version("gossamer")
    except PackageNotFoundError:
        return "(not installed)"


@app.callback()
def _options(
    _version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line. A defect of ours shows its traceback and exits with 3, so that scripts can tell it from a missed budget."""
    try:
        app()
    except Exception:  # the outermost boundary: nothing else would look at it
        traceback.print_exc()
        sys.stderr.write("This is a defect in gossamer; please report it with the lines above.\n")
        sys.exit(DEFECT)


if __name__ == "__main__":
    main()

"""gossamer report: show what a run found, and write report.html anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from gossamer.cli.command import DebugOption, FolderArgument, JsonOption, command, show, show_json
from gossamer.cli.compress import WORK
from gossamer.errors import FileError
from gossamer.report.console import console_view
from gossamer.report.document import JSON_NAME, load_report, write_report


def load_finished(out: Path) -> dict[str, Any]:
    """The report document of a finished run. Raises FileError saying what is there instead."""
    if not out.exists():
        raise FileError(out, "does not exist", "name the folder that `gossamer compress -o` wrote")
    if out.is_dir() and not (out / JSON_NAME).exists():
        unfinished = (out / WORK).is_dir()
        what = "holds a run that is not finished" if unfinished else "holds no finished run"
        raise FileError(
            out,
            what,
            "run the same compress command again, it goes on" if unfinished else "name the folder that `gossamer compress -o` wrote",
        )
    return load_report(out)


@command
def report(out: FolderArgument, json: JsonOption = False, debug: DebugOption = False) -> Callable[[], bool]:
    """Print the tables of a finished run and write its report.html anew from report.json.

    Nothing is measured again; `gossamer verify` does that.
    """
    document = load_finished(out)
    _, page = write_report(document, out if out.is_dir() else out.parent)

    def shown() -> bool:
        if json:
            show_json(document)
        else:
            show(console_view(document))
            show(Text(f"\nWritten: {page}"))
        return True

    return shown

"""gossamer report: show what a run found, and write report.html anew."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text

from gossamer.cli.command import DebugOption, FolderArgument, JsonOption, command, show, show_json
from gossamer.report.console import console_view
from gossamer.report.document import load_report, write_report


@command
def report(out: FolderArgument, json: JsonOption = False, debug: DebugOption = False) -> Callable[[], bool]:
    """Print the tables of a finished run and write its report.html anew from report.json.

    Nothing is measured again; `gossamer verify` does that.
    """
    document = load_report(out)
    _, page = write_report(document, out if out.is_dir() else out.parent)

    def shown() -> bool:
        if json:
            show_json(document)
        else:
            show(console_view(document))
            show(Text(f"\nWritten: {page}"))
        return True

    return shown

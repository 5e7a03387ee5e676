"""gossamer inspect FILE --target NAME: where a file breaks the documented rules of a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from gossamer.cli.command import show, show_json
from gossamer.errors import ConfigError
from gossamer.report.tables import FittingTable
from gossamer.targets.target import targets

MOST_ROWS = 50


def checked_file(path: Path, target: str, *, json: bool) -> Callable[[], bool]:
    """Check the file; the function that shows what was found and says whether all is well.

    Raises: ConfigError for a target without such rules; FileError for a file that cannot be read.
    """
    check = targets[target].lint
    if check is None:
        known = ", ".join(entry.name for entry in targets if entry.value.lint is not None)
        raise ConfigError("--target", target, f"a target whose files have documented rules to check ({known})")
    findings = check(path)

    def report() -> bool:
        if json:
            show_json({"file": str(path), "target": target, "findings": [asdict(finding) for finding in findings]})
            return not findings
        if not findings:
            show(Text(f"{path} keeps the documented rules of {target}."))
            return True
        rest = len(findings) - MOST_ROWS
        show(
            FittingTable(
                f"{path}: {len(findings)} breaches of {target}'s rules",
                ("rule", "node", "what is wrong"),
                [(finding.rule, finding.node, finding.sentence) for finding in findings[:MOST_ROWS]],
                left=3,
                note=f"... and {rest} more; --json shows all" if rest > 0 else "",
            )
        )
        return False

    return report

"""A work folder belongs to one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.errors import ConfigError
from gossamer.files import read_json, write_json


def claim(folder: Path, run: Mapping[str, Any], argument: str, *, kept: bool = True) -> None:
    """Note in the folder which run it belongs to; refuse a folder of another run, so that nothing is mixed up.

    run       plain data that tells the run from every other
    argument  what the caller calls the folder
    kept      whether the folder holds anything of that run but the note; False where it ended before it began to work

    Raises: ConfigError naming what differs; FileError when the note is damaged or cannot be written.
    """
    path = folder / "run.json"
    if kept and path.exists():
        known = read_json(path, "run of gossamer")
        known = known if isinstance(known, dict) else {}
        changed = _differences(known, run)
        if changed:
            raise ConfigError(
                argument, str(folder), f"empty or of the same run (it differs in {', '.join(changed)}); choose another folder"
            )
    write_json(path, dict(run))


def _differences(known: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, inside settings, too: "settings.epochs"."""
    found = []
    for name in sorted({**known, **run}):
        before, now = known.get(name), run.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += [f"{name}.{inner}" for inner in _differences(before, now)]
        elif before != now:
            found.append(name)
    return found

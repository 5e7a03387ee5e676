"""The target that docs/how-to/add-a-target.md builds, registered for as long as a test needs it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.targets.target import Target, add_target, remove_target

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-a-target.md"


def definitions() -> dict[str, Any]:
    """What the page defines before it registers anything: SPEC, emit, open_file."""
    namespace: dict[str, Any] = {"__name__": "toy"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if "add_target(" in block:
            return namespace
        exec(compile(block, str(PAGE), "exec"), namespace)
    raise AssertionError(f"{PAGE.name} registers no target")


@contextmanager
def registered_toy() -> Iterator[Target]:
    """The target, in and out again."""
    found = definitions()
    target = Target(spec=found["SPEC"], suffix=".toy", emit=found["emit"], open=found["open_file"], package="numpy")
    yield add_target(target, source="docs")
    remove_target("toy")

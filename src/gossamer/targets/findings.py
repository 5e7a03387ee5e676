"""What checking a file against a runtime's documented rules finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach of a rule.

    rule      its name, such as "zero-point"
    node      where: the name of the node in the file, or of what it makes where it has no name
    sentence  what is wrong there, and what the rule wants
    """

    rule: str
    node: str
    sentence: str

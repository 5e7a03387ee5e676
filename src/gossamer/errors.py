"""Every error a user can meet: one base, one sentence each (what, where, the rule, the way out).

GossamerError
├── ConfigError       an argument outside its rule
├── DataError         a loader or array that cannot be used
├── CaptureError      a network that torch.export refuses
├── UnsupportedOp     an op that a step has no rule for
├── PlanError         a plan that does not fit the network
├── TransplantError   a module whose code cannot run with the weights of a program
├── ParityError       a changed network that does not equal what it must equal
├── FileError         a file that is missing, damaged, foreign, or cannot be written
├── MissingRuntime    an optional package that is not installed
└── TrainingError     training that diverged or cannot start
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GossamerError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(GossamerError):
    """An argument is outside its rule.

    Example: ``Budget(min_speedup=-1)``; cure: ``Budget(min_speedup=2.0)``.
    """

    def __init__(self, name: str, value: object, rule: str) -> None:
        self.name, self.value, self.rule = name, value, rule
        super().__init__(f"{name} must be {rule}; got {value!r}.")


class DataError(GossamerError):
    """A data source is empty, has the wrong form, or holds values that cannot be used."""


class CaptureError(GossamerError):
    """A network cannot be turned into a program; names the line of the user's model where it is known."""

    def __init__(self, reason: str, *, line: str = "", way_out: str) -> None:
        self.reason, self.line, self.way_out = reason, line, way_out
        at = f" at {line}" if line else ""
        super().__init__(f"cannot capture the model{at}: {reason}; {way_out}.")


class UnsupportedOp(GossamerError):
    """A step has no rule for an op. Nothing is guessed."""

    def __init__(self, op: str, at: str, *, needed: str, way_out: str) -> None:
        self.op, self.at, self.needed = op, at, needed
        super().__init__(f"no {needed} rule for {op} at {at or 'the top level'}; {way_out}.")


class PlanError(GossamerError):
    """A plan was made for another network, names what does not exist, or asks for the impossible."""


class TransplantError(GossamerError):
    """The user's module cannot run with a program's weights; names the module and the line of code that stands in the way.

    `groups` are the groups of channels that must stay whole for that line: plan with Constraints(skip=groups).
    """

    def __init__(self, reason: str, *, module: str = "", line: str = "", groups: tuple[str, ...] = (), way_out: str) -> None:
        self.reason, self.module, self.line, self.groups = reason, module, line, groups
        where = (f" in {module!r}" if module else "") + (f" at {line}" if line else "")
        super().__init__(f"cannot put the program's weights into the module{where}: {reason}; {way_out}.")


class ParityError(GossamerError):
    """A changed network differs from what it was proven against. Nothing of it is kept."""

    def __init__(self, what: str, error: float, tolerance: float) -> None:
        self.error, self.tolerance = error, tolerance
        super().__init__(
            f"{what} differ by {error:.3g} (relative), more than {tolerance:.3g}; the change was thrown away, please report this network."
        )


class FileError(GossamerError):
    """A file is missing, truncated, foreign, hostile, or cannot be written."""

    def __init__(self, path: object, what: str, way_out: str) -> None:
        self.path, self.what = str(path), what
        super().__init__(f"{path}: {what}; {way_out}.")


class MissingRuntime(GossamerError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        self.package = package
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed; run: {install}")


class TrainingError(GossamerError):
    """Training diverged (loss is NaN or infinite) or cannot start."""


def first_line(error: BaseException) -> str:
    """Of what another package's error says, without the closing mark; its type's name where it says nothing."""
    return _lines(error)[0].rstrip(".:")


def last_line(error: BaseException) -> str:
    """Like first_line, where a package names its own source files first."""
    return _lines(error)[-1].rstrip(".:")


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the closest known name, or the first few known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(repr(n) for n in names[:8]) + (", ..." if len(names) > 8 else "")
    return f"known: {shown}" if names else "none is known"

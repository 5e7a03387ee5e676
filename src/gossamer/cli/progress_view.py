"""Progress on standard error: bars with the time left on a terminal, a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from gossamer.progress import OnProgress, Progress

LINE_EVERY_SECONDS = 30.0
TRIAL = "trial"  # the outer stage; how many trials there will be is not known beforehand


@contextmanager
def shown_progress(console: Console) -> Iterator[OnProgress]:
    """Give a function that shows records on `console`; what it drew is tidied up at the end."""
    if not console.is_terminal:
        yield LineView(lambda text: console.print(Text(text)), monotonic)
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.fields[stage]}", style="bold"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarView(bars)


class BarView:
    """One bar per stage. A stage that starts again starts its bar again; bars below the one that moves are taken away."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __call__(self, record: Progress) -> None:
        total = record.total or None
        if record.stage not in self._tasks:
            self._tasks[record.stage] = self._bars.add_task("", total=total, stage=record.stage, note=record.note)
        task = self._tasks[record.stage]
        if record.done < self._done.get(record.stage, 0):
            self._bars.reset(task, total=total)
        self._done[record.stage] = record.done
        self._bars.update(task, completed=record.done, total=total, note=record.note, visible=True)
        if record.stage == TRIAL:
            self._hide_others(task)

    def _hide_others(self, kept: TaskID) -> None:
        """A new trial begins: what its stages did last time is no longer of interest."""
        for stage, task in list(self._tasks.items()):
            if task != kept:
                self._bars.remove_task(task)
                del self._tasks[stage]
                self._done.pop(stage, None)


class LineView:
    """One line when a stage begins, and one every 30 seconds while it lasts, with an estimate of the time left."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._stage, self._begun, self._first, self._last = "", 0.0, 0, 0
        self._written = 0.0

    def __call__(self, record: Progress) -> None:
        now = self._clock()
        begins = record.stage != self._stage or record.done < self._last
        if begins:
            self._stage, self._begun, self._first = record.stage, now, record.done
        if begins or now - self._written >= LINE_EVERY_SECONDS:
            self._written = now
            self._write(self._line(record, now))
        self._last = record.done

    def _line(self, record: Progress, now: float) -> str:
        count = f" {record.done} of {record.total}" if record.total else ""
        if record.stage == TRIAL:
            count = f" {record.done + 1} of at most {record.total}"
        note = f": {record.note}" if record.note else ""
        moved = record.done - self._first
        left = ""
        if record.total and moved > 0:
            left = f" (about {duration((now - self._begun) / moved * (record.total - record.done))} left)"
        return f"{record.stage}{count}{note}{left}"


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

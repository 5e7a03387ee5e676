"""What progress looks like, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from gossamer.cli.progress_view import BarView, LineView, duration, shown_progress
from gossamer.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines():
    written: list[str] = []
    clock = Clock()
    return written, clock, LineView(written.append, clock)


def test_one_line_per_stage(lines):
    written, _, view = lines
    for stage in ("calibrate", "train"):
        for done in range(5):
            view(Progress(stage, done, 5, f"note {done}"))
    assert written == ["calibrate 0 of 5: note 0", "train 0 of 5: note 0"]


def test_a_stage_that_starts_again_gets_a_line_again(lines):
    written, _, view = lines
    for _ in range(2):
        view(Progress("train", 1, 3))
        view(Progress("train", 2, 3))
    assert written == ["train 1 of 3", "train 1 of 3"]


def test_long_stages_tell_the_time_left(lines):
    written, clock, view = lines
    for done in range(101):
        clock.now = float(done)
        view(Progress("train", done, 100))
    assert written == [
        "train 0 of 100",
        "train 30 of 100 (about 1 min 10 s left)",
        "train 60 of 100 (about 40 s left)",
        "train 90 of 100 (about 10 s left)",
    ]


def test_a_resumed_stage_counts_only_what_it_did_itself(lines):
    written, clock, view = lines
    view(Progress("train", 50, 100))
    clock.now = 30.0
    view(Progress("train", 60, 100))
    assert written[-1] == "train 60 of 100 (about 2 min 0 s left)"


def test_unknown_total(lines):
    written, clock, view = lines
    view(Progress("verify", 0, 0, "latency"))
    clock.now = 31.0
    view(Progress("verify", 1, 0, "latency"))
    assert written == ["verify: latency", "verify: latency"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def run_on(console: Console, *records: Progress) -> str:
    with shown_progress(console) as on_progress:
        for record in records:
            on_progress(record)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal_shows_bars_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    shown = run_on(console, Progress("train", 0, 4, "epoch 1"), Progress("train", 2, 4, "[red]epoch 2"))
    assert "train" in shown
    assert "2/4" in shown
    assert "left" in shown
    assert "[red]epoch 2" in shown  # a note is text, not markup


def test_no_terminal_shows_lines():
    console = Console(file=io.StringIO(), width=120)
    assert run_on(console, Progress("train", 0, 4, "[red]"), Progress("train", 2, 4)) == "train 0 of 4: [red]\n"


def test_a_new_trial_takes_the_bars_of_the_last_one_away():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with shown_progress(console) as view:
        assert isinstance(view, BarView)
        view(Progress("trial", 0, 6))
        view(Progress("train", 5, 5))
        view(Progress("train", 1, 5))
        assert len(view._bars.tasks) == 2
        assert view._bars.tasks[1].completed == 1
        view(Progress("trial", 1, 6))
        assert [task.completed for task in view._bars.tasks] == [1]
        view(Progress("train", 3, 5))
        assert len(view._bars.tasks) == 2

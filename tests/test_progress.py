import dataclasses

import pytest

from gossamer.progress import Progress, silent


def test_a_record_is_frozen_data():
    progress = Progress("train", 3)
    assert (progress.stage, progress.done, progress.total, progress.note) == ("train", 3, 0, "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        progress.done = 4
    assert progress == Progress("train", 3)


def test_silent_shows_nothing(capsys):
    assert silent(Progress("train", 1, 2, "note")) is None
    assert capsys.readouterr() == ("", "")

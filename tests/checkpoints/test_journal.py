"""What is done survives a kill at any byte, and another job is not mixed with it."""

import errno
import os

import pytest

from gossamer.checkpoints.journal import NAME, opened_journal
from gossamer.errors import FileError

JOB = {"weights": "int4", "block": 32, "source": [{"file": "a"}]}


def filled(folder):
    with opened_journal(folder) as journal:
        journal.begin(JOB)
        journal.add({"a": {"signal": 0.1}, "b": {"signal": 1 / 3}})
        journal.add({"c": {"signal": 2.0}})
    return folder / NAME


def test_killed_at_any_byte(tmp_path):
    whole = filled(tmp_path).read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / NAME).write_bytes(whole[:length])
        with opened_journal(tmp_path) as journal:
            journal.begin(JOB)
            kept = whole[:length].count(b"\n")
            assert list(journal.done) == ["a", "b", "c"][: max(0, kept - 1)]
            journal.add({"d": {}})
        lines = (tmp_path / NAME).read_bytes().split(b"\n")
        assert lines[-1] == b""
        assert lines[-2] == b'{"tensor": "d", "entry": {}}'
        assert len(lines) == max(1, kept) + 2


def test_numbers_keep_every_bit(tmp_path):
    filled(tmp_path)
    with opened_journal(tmp_path) as journal:
        journal.begin(JOB)
        assert journal.done == {"a": {"signal": 0.1}, "b": {"signal": 1 / 3}, "c": {"signal": 2.0}}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({**JOB, "weights": "int8"}, r"holds an unfinished compression that differs in weights \('int4', now 'int8'\)"),
        ({**JOB, "source": [{"file": "b"}]}, "differs in the source's files; give what was given then, or another folder"),
    ],
)
def test_another_job_is_refused(tmp_path, job, message):
    before = filled(tmp_path).read_bytes()
    with opened_journal(tmp_path) as journal, pytest.raises(FileError, match=message):
        journal.begin(job)
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize("content", [b"nonsense\n", b'{"block": 3}\n7\n', b'{"block": 3}\n{"tensor": 3}\n', b"\xff\n"])
def test_damaged_journals(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with opened_journal(tmp_path) as journal, pytest.raises(FileError, match="is damaged .*; delete the folder .* and begin anew"):
        journal.begin(JOB)


def test_something_else_as_the_first_line(tmp_path):
    (tmp_path / NAME).write_bytes(b"[3]\n")
    with opened_journal(tmp_path) as journal, pytest.raises(FileError, match="differs in everything"):
        journal.begin(JOB)


def test_two_at_once_are_refused(tmp_path):
    with opened_journal(tmp_path), pytest.raises(FileError, match="is being written by another process"), opened_journal(tmp_path):
        pass


def test_a_full_disk_and_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written .*choose a folder that is writable"), opened_journal(tmp_path / "file"):
        pass

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened_journal(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(FileError, match="cannot be written .No space left on device.; make space, then run again"):
            journal.begin(JOB)

"""Writing and reading: a crash leaves the old file or the new one, damaged input gives one sentence."""

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from gossamer.errors import FileError
from gossamer.files import read_json, read_tensors, temporary_folder, write_bytes, write_json, write_tensors, write_text, write_with


def test_round_trips(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_text(path, "ü\n")
    assert path.read_text(encoding="utf-8") == "ü\n"
    write_bytes(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    write_json(path, {"a": [1, 0.1, None, "x"]})
    assert read_json(path, "plan") == {"a": [1, 0.1, None, "x"]}


def test_a_crash_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def crash(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(path, crash)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/x: cannot be written \(.*\); choose a folder that is writable and has space"):
        write_text(tmp_path / "file" / "x", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@contextmanager
def full_disk():
    """No file may grow beyond 1 KiB; no fixture, since pytest may write its own log before a fixture ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_of_temporary_files():
    with (
        full_disk(),
        pytest.raises(FileError, match="temporary files cannot be written .File too large.; make space there, or .* TMPDIR"),
        temporary_folder() as folder,
    ):
        (folder / "big").write_bytes(bytes(10_000))
    assert not folder.exists()
    with pytest.raises(FileNotFoundError), temporary_folder() as folder:  # other mistakes stay what they are
        (folder / "no" / "such").write_text("")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with full_disk(), pytest.raises(FileError, match="cannot be written .*choose a folder that is writable and has space"):
        write_bytes(path, bytes(10_000))
    with full_disk(), pytest.raises(FileError, match="cannot be written .*choose a folder that is writable and has space"):
        write_tensors(path, {}, {"a": torch.zeros(10_000)})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileError, match=r"none: cannot be read \(No such file or directory\); name an existing plan"):
        read_json(tmp_path / "none", "plan")
    for content in (b'{"a": [1, 2', b"", b"\x80\x81", b"[" * 100_000):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(FileError, match=r"is not a plan \(no valid JSON: .*\); it was cut off or is another file"):
            read_json(tmp_path / "file", "plan")


def test_tensors_round_trip_also_when_they_share_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": base,
        "same": base,
        "turned": base.T,
        "part": base[1:, 2:],
        "codes": torch.tensor([1, 2], dtype=torch.int8),
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(base.clone()),
        "half": base.to(torch.bfloat16),
    }
    write_tensors(tmp_path / "file", {"note": ["ü", 1.5, None]}, tensors)
    header, found = read_tensors(tmp_path / "file", "program")
    assert header == {"note": ["ü", 1.5, None]}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_tensor_files_that_are_missing_foreign_or_cut_off(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileError, match="file: does not exist; name an existing program"):
        read_tensors(path, "program")
    with pytest.raises(FileError, match="does not exist"):
        read_tensors(tmp_path, "program")
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(FileError, match="is a safetensors file, but no program; name a program that gossamer wrote"):
        read_tensors(path, "program")
    write_tensors(path, {"a": 1}, {"a": torch.zeros(30)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="is truncated or no program"):
            read_tensors(path, "program")
    for text in ("{", "[" * 100_000):
        save_file({"a": torch.zeros(1)}, path, metadata={"gossamer": text})
        with pytest.raises(FileError, match="is truncated or no program"):
            read_tensors(path, "program")


def test_a_byte_that_changed_is_noticed_wherever_it_is(tmp_path):
    path, tensors = (
        tmp_path / "file",
        {"a": torch.randn(5, 3), "b": torch.arange(4, dtype=torch.int8), "c": torch.tensor(1.5, dtype=torch.bfloat16)},
    )
    write_tensors(path, {"a": [1, "x"]}, tensors)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            header, found = read_tensors(path, "program")
        except FileError:
            continue
        assert header == {"a": [1, "x"]}  # the name of the check sum itself
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write_tensors(tmp_path / "file", {}, {"a": torch.zeros(1)})
    (tmp_path / "file").chmod(0)
    with pytest.raises(FileError, match="cannot be read"):
        read_tensors(tmp_path / "file", "program")


def test_json_is_readable_and_stable(tmp_path):
    write_json(tmp_path / "file", {"b": 1, "a": 2})
    text = (tmp_path / "file").read_text()
    assert text.count("\n") > 2 and text.endswith("\n")
    assert list(json.loads(text)) == ["b", "a"]

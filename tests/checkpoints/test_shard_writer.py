"""Files written in pieces are what safetensors would read, and a full disk gives one sentence."""

import errno
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gossamer.checkpoints.shard_writer import ShardWriter, holds, lay_out, partial_path
from gossamer.checkpoints.tensor_file import read_header
from gossamer.errors import FileError

NUMPY = {"F32": "<f4", "U8": "u1", "I64": "<i8"}
TENSORS = {"b": ("U8", (3,)), "a": ("F32", (2, 3)), "c": ("I64", ())}


def layout():
    return lay_out((name, *rest) for name, rest in TENSORS.items())


@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_pieces_in_any_order_make_the_file(tmp_path_factory, random, step):
    path = tmp_path_factory.mktemp("made") / "m.safetensors"
    data = {name: random.randbytes(tensor.size_bytes) for name, tensor in layout().tensors.items()}
    places = [(name, start) for name, whole in data.items() for start in range(0, len(whole), step)]
    random.shuffle(places)
    with ShardWriter(path, layout()).opened() as writer:
        for name, start in places:
            writer.write(name, start, data[name][start : start + step])
        assert not path.exists()
        writer.finish()
    assert holds(path, layout())
    assert not partial_path(path).exists()
    found = load_file(path)
    assert {name: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in found.items()} == data
    assert list(read_header(path).tensors) == ["c", "a", "b"]  # wide types first: aligned


def test_a_partial_file_is_gone_on_with_and_another_one_replaced(tmp_path):
    path = tmp_path / "m.safetensors"
    with ShardWriter(path, layout()).opened() as writer:
        writer.write("b", 0, b"abc")
    assert not path.exists()
    with ShardWriter(path, layout()).opened() as writer:
        writer.finish()
    assert load_file(path)["b"].tolist() == list(b"abc")
    path.unlink()
    partial_path(path).write_bytes(bytes(layout().size_bytes))
    assert not holds(partial_path(path), layout())
    with ShardWriter(path, layout()).opened() as writer:
        writer.finish()
    assert holds(path, layout())


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync", "fsync", "replace"])
def test_a_full_disk_gives_one_sentence(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, no_space)
    message = r"m.safetensors: cannot be written \(No space left on device\); make space or choose another folder, then run again"
    with pytest.raises(FileError, match=message), ShardWriter(tmp_path / "m.safetensors", layout()).opened() as writer:  # noqa: PT012
        writer.write("b", 0, b"abc")
        writer.sync()
        writer.finish()
    if call == "posix_fallocate":
        assert list(tmp_path.iterdir()) == []  # a file that cannot be made whole is not left to fill the disk


def test_a_folder_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(FileError, match="cannot be written .No such file or directory"),
        ShardWriter(tmp_path / "no" / "m", layout()).opened(),
    ):
        pass

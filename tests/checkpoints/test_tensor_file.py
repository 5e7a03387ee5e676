"""Headers: what safetensors writes is read alike, what is damaged or hostile is refused in one sentence."""

import contextlib
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from checkpoint_files import raw_file
from gossamer.checkpoints.tensor_file import read_header, reading
from gossamer.errors import FileError

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5))
def test_what_safetensors_writes_is_read(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("made") / "m.safetensors"
    tensors = {f"t{place}.weight": torch.ones(shape).to(dtype) for place, (dtype, shape) in enumerate(wanted)}
    save_file(tensors, path, metadata={"format": "pt"})
    file = read_header(path)
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    with safe_open(path, "pt") as theirs, reading(file) as reader:
        for name, tensor in file.tensors.items():
            assert tensor.dtype == theirs.get_slice(name).get_dtype()
            whole = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.size_bytes else b""
            assert reader.read(tensor, 0, tensor.size_bytes) == whole
            assert reader.read(tensor, tensor.size_bytes // 2, tensor.size_bytes) == whole[tensor.size_bytes // 2 :]


def test_size_and_digest(tmp_path):
    text = json.dumps({"a": F32}).encode()
    file = read_header(raw_file(tmp_path / "m.safetensors", text, bytes(24)))
    assert (file.size_bytes, file.data) == (8 + len(text) + 24, 8 + len(text))
    assert file.header_sha256 == hashlib.sha256(text).hexdigest()


def change(**fields):
    return {"a": {**F32, **fields}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{{", bytes(24), "has a damaged header"),
        (b"\xff\xfe", bytes(24), "has a damaged header"),
        (b"[" * 10_000, b"", "has a damaged header"),
        (b"[]", b"", "has a header that is no JSON object"),
        (b'{"a": 1, "a": 2}', b"", r"has a damaged header \(a name comes twice\)"),
        ({"a": 7}, b"", "describes the tensor 'a' in a way that cannot be read"),
        (change(shape=[2, -3]), bytes(24), "describes the tensor 'a' in a way"),
        (change(shape=[2.0, 3]), bytes(24), "describes the tensor 'a' in a way"),
        (change(shape=[True, 6]), bytes(24), "describes the tensor 'a' in a way"),
        (change(data_offsets=[0]), bytes(24), "describes the tensor 'a' in a way"),
        (change(data_offsets=[-24, 0]), bytes(24), "describes the tensor 'a' in a way"),
        (change(shape=[1 << 70]), bytes(24), "describes the tensor 'a' in a way"),
        (change(dtype="Q7"), bytes(24), "stores 'a' as 'Q7', a type that is not known"),
        (change(shape=[2, 4]), bytes(24), r"gives 24 bytes to 'a', which needs 32 for \[2, 4\] of F32"),
        (change(data_offsets=[24, 0]), bytes(24), "gives -24 bytes to 'a'"),
        (change(), bytes(20), "ends 4 bytes before its tensors do"),
        (change(), bytes(25), "has 1 bytes after its tensors"),
        ({"a": F32, "b": {**F32, "data_offsets": [20, 44]}}, bytes(44), "has a tensor 'b' that overlaps 'a'"),
        ({"a": F32, "b": {**F32, "data_offsets": [28, 52]}}, bytes(52), "has a tensor 'b' that leaves a gap after 'a'"),
        ({"a": F32, "b": F32}, bytes(24), "has a tensor 'b' that overlaps 'a'"),
    ],
)
def test_damaged_and_hostile_headers(tmp_path, header, data, message):
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(FileError, match=f"bad.safetensors: {message}"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file"),
        (b"PK\x03\x04 a zip file of old times", "is no safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "is no safetensors file"),
        ((1).to_bytes(8, "little") + b"{}", r"is no safetensors file \(header of 1 bytes in a file of 10\)"),
    ],
)
def test_other_files(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_header(tmp_path / "x.safetensors")


def test_missing_and_shrinking_files(tmp_path):
    with pytest.raises(FileError, match="cannot be read .No such file"):
        read_header(tmp_path / "none.safetensors")
    path = raw_file(tmp_path / "m.safetensors", {"a": F32}, bytes(24))
    file = read_header(path)
    with reading(file) as reader:
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(FileError, match="became shorter while 'a' was read"):
            reader.read(file.tensors["a"], 0, 24)
    path.unlink()
    with pytest.raises(FileError, match="cannot be read .No such file"), reading(file):
        pass


@given(st.binary(max_size=200))
def test_any_bytes_give_a_file_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    for data in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(data)
        with contextlib.suppress(FileError):
            file = read_header(path)
            assert all(file.data + tensor.stop <= len(data) for tensor in file.tensors.values())

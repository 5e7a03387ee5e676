"""Which files make up a checkpoint, and what does not fit together."""

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_files import INDEX, language_model, sharded
from gossamer.checkpoints.source import open_checkpoint
from gossamer.errors import FileError


def test_a_folder_its_index_and_one_file(tmp_path):
    folder = language_model(tmp_path / "m", layers=2)
    for path in (folder, folder / INDEX, str(folder)):
        checkpoint = open_checkpoint(path)
        assert [shard.path.name[:11] for shard in checkpoint.shards] == ["model-00001", "model-00002", "model-00003"]
        assert len(checkpoint.tensors) == 12
        assert checkpoint.size_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    assert list(open_checkpoint(tmp_path / "one.safetensors").tensors) == ["a"]
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileError, match="holds no safetensors file and no index"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileError, match="none: does not exist; name a .safetensors file, its index, or their folder"):
        open_checkpoint(tmp_path / "none")
    for name in "ab":
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileError, match=r"holds 2 safetensors files without an index \(a.safetensors, b.safetensors\)"):
        open_checkpoint(tmp_path)


def change_map(folder, change):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: {**places, "c": FIRST}, f"{INDEX}: says that {FIRST} holds 'c', which it does not"),
        (lambda places: {**places, "a": SECOND}, f"says that {SECOND} holds 'a', which it does not"),
        (lambda places: {"b": SECOND, "a": FIRST}, f"leaves out 'a2', which {FIRST} holds"),
        (lambda places: {**places, "c": "third.safetensors"}, f"third.safetensors: does not exist, but {INDEX} names it"),
        (lambda places: {**places, "c": "../x.safetensors"}, "names '../x.safetensors', which is no .safetensors file beside it"),
        (lambda places: {**places, "c": "/etc/passwd"}, "names '/etc/passwd', which is no"),
        (lambda places: {**places, "c": 3}, "has no weight_map from tensors to files"),
        (lambda places: {}, "has no weight_map"),
        (lambda places: ["a"], "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, change, message):
    folder = sharded(tmp_path / "m", {"a": torch.ones(3), "a2": torch.ones(1)}, {"b": torch.ones(2)})
    change_map(folder, change)
    with pytest.raises(FileError, match=message):
        open_checkpoint(folder)


def test_a_missing_shard_two_that_hold_the_same_and_a_cut_index(tmp_path):
    folder = sharded(tmp_path / "m", {"a": torch.ones(3)}, {"b": torch.ones(2)})
    save_file({"b": torch.ones(2), "a": torch.ones(3)}, folder / SECOND)
    with pytest.raises(FileError, match="has two files that both hold 'a'"):
        open_checkpoint(folder)
    (folder / SECOND).unlink()
    with pytest.raises(FileError, match=f"{SECOND}: does not exist, but {INDEX} names it; fetch the missing file"):
        open_checkpoint(folder)
    (folder / INDEX).write_text((folder / INDEX).read_text()[:-9])
    with pytest.raises(FileError, match="is not a list of safetensors files"):
        open_checkpoint(folder)
